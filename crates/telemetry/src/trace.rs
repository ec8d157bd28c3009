//! Traces: spans of attaches, handovers and recoveries over OTLP, and W3C trace context between the parts.
//!
//! A server makes its span with [`server_span`], a client of gRPC adds [`TraceInterceptor`]. Client and gateway speak no
//! gRPC to each other: both join the trace of an attach attempt, whose id follows from the attempt's id
//! ([`join_attempt`]). So one trace goes from the client's decision over the gateway and control to the first byte.

mod exporter;

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use jump_session::ids::AttemptId;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider};
use serde::Deserialize;
use tonic::codegen::http;
use tonic::metadata::{Ascii, KeyRef, MetadataKey, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::correlation::{CORRELATION_KEY, Correlation};
use crate::metrics::{Kind, MetricDef, Unit};
use crate::sink::{SinkError, TlsConfig};

pub(crate) use exporter::TraceGuard;
pub use exporter::TraceStats;

/// Spans accepted by the queue.
pub const SPANS_QUEUED: MetricDef = MetricDef {
    name: "jump_trace_spans_queued_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Sampled spans accepted by the bounded span queue.",
    labels: &[],
};

/// Spans delivered.
pub const SPANS_EXPORTED: MetricDef = MetricDef {
    name: "jump_trace_spans_exported_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Spans that the collector acknowledged.",
    labels: &[],
};

/// Spans dropped, by cause.
pub const SPANS_DROPPED: MetricDef = MetricDef {
    name: "jump_trace_spans_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Spans dropped: queue_full, or failed because the collector did not take the batch.",
    labels: &["cause"],
};

/// The metrics of this module.
pub const METRICS: &[MetricDef] = &[SPANS_QUEUED, SPANS_EXPORTED, SPANS_DROPPED];

/// The `[trace]` table of a configuration file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// The collector: `http://host:4317`, or `https://…` with `tls`.
    pub endpoint: String,
    /// Needed for, and only for, an `https` endpoint.
    pub tls: Option<TlsConfig>,
    /// The share of traces that are recorded, 0 to 1. Use the same on client, gateways and control: the decision
    /// follows from the trace id.
    #[serde(default = "ratio")]
    pub ratio: f64,
    /// Which spans are recorded, as `tracing` writes levels per target.
    #[serde(default = "filter")]
    pub filter: String,
    /// The longest queue, in spans. A span that finds it full is dropped and counted.
    #[serde(default = "queue_spans_max")]
    pub queue_spans_max: usize,
    /// How long one request to the collector may take. A batch that fails is dropped and counted.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
}

impl TraceConfig {
    /// Traces to a collector, with the default bounds.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            tls: None,
            ratio: ratio(),
            filter: filter(),
            queue_spans_max: queue_spans_max(),
            timeout: timeout(),
        }
    }

    /// What is wrong with the settings, as far as can be said without opening anything.
    pub fn problems(&self) -> Vec<String> {
        let ratio = (!(0.0..=1.0).contains(&self.ratio)).then(|| TraceError::Ratio(self.ratio).to_string());
        let endpoint = (!self.endpoint.starts_with("http://") && !self.endpoint.starts_with("https://"))
            .then(|| {
                format!("trace.endpoint {:?} must be a URL such as http://127.0.0.1:4317", self.endpoint)
            });
        let filter = crate::log::check_filter(&self.filter).err().map(|error| error.to_string());
        ratio.into_iter().chain(endpoint).chain(filter).collect()
    }
}

fn ratio() -> f64 {
    0.1
}

fn filter() -> String {
    // Operations of the store have spans for traces alone; log lines have nothing from them.
    "info,jump_control::store=debug".into()
}

fn queue_spans_max() -> usize {
    4096
}

fn timeout() -> Duration {
    Duration::from_secs(10)
}

/// Why tracing could not start.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The ratio is not between 0 and 1.
    #[error("trace ratio {0} is not between 0 and 1")]
    Ratio(f64),
    /// The collector's settings are unusable.
    #[error("unusable trace collector")]
    Collector(#[from] SinkError),
    /// The exporter could not be built.
    #[error("could not build the span exporter")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The operating system gave no thread or runtime.
    #[error("could not start the span exporter")]
    Thread(#[source] std::io::Error),
}

/// The share of attempts that are sampled: what [`TraceConfig::ratio`] says, 0 before.
static RATIO: OnceLock<f64> = OnceLock::new();

thread_local! {
    /// The ids of the root that this thread is recording.
    static ROOT: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Random ids, but for the root of an attempt, whose ids both sides know.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        ROOT.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        ROOT.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// Records spans that are over already.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Builds the provider and its exporter.
pub(crate) fn start(
    config: &TraceConfig,
    component: &str,
    node: &str,
) -> Result<(SdkTracerProvider, TraceGuard), TraceError> {
    if !(0.0..=1.0).contains(&config.ratio) {
        return Err(TraceError::Ratio(config.ratio));
    }
    let (processor, guard) = exporter::start(config)?;
    let mut resource =
        opentelemetry_sdk::Resource::builder_empty().with_service_name(format!("jump-{component}"));
    if !node.is_empty() {
        resource =
            resource.with_attribute(opentelemetry::KeyValue::new("service.instance.id", node.to_owned()));
    }
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio))))
        .with_id_generator(Ids::default())
        .with_max_attributes_per_span(64)
        .with_max_events_per_span(64)
        .with_span_processor(processor)
        .build();
    let _ = RATIO.set(config.ratio);
    let _ = TRACER.set(provider.tracer("jump"));
    Ok((provider, guard))
}

/// Makes the span of a gRPC request, a child of the caller's. For `tonic::transport::Server::trace_fn`.
///
/// Trusts the caller's sampling decision: serve it to authenticated peers.
pub fn server_span(request: &http::Request<()>) -> Span {
    let span = tracing::info_span!(
        "rpc",
        rpc.method = request.uri().path(),
        correlation = tracing::field::Empty,
        otel.kind = "server",
    );
    let headers = Headers(request.headers());
    // Without traces there is nobody to tell.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&headers));
    if let Some(correlation) = headers.get(CORRELATION_KEY).and_then(|text| text.parse::<Correlation>().ok())
    {
        span.record("correlation", tracing::field::display(correlation));
    }
    span
}

/// Makes a span a part of the trace of an attach attempt, on whichever side. Call it before the span is entered.
pub fn join_attempt(span: &Span, attempt: AttemptId) {
    let _ =
        span.set_parent(Context::new().with_remote_span_context(attempt_context(attempt, ratio_in_force())));
}

fn ratio_in_force() -> f64 {
    RATIO.get().copied().unwrap_or_default()
}

/// Records a span of an attempt that is over already, below the attempt's root. Costs nothing where nothing is traced.
pub fn past_span(attempt: AttemptId, name: &'static str, time: Range<SystemTime>, correlation: Correlation) {
    let context = attempt_context(attempt, ratio_in_force());
    if let Some(tracer) = TRACER.get().filter(|_| context.is_sampled()) {
        let parent = Context::new().with_remote_span_context(context);
        record(tracer, tracer.span_builder(name), &parent, time, correlation, &[]);
    }
}

/// Records the root of an attempt's trace, which is over already: the parent of every [`past_span`] and of every span
/// that [`join_attempt`]s, on whichever side.
pub fn past_root(
    attempt: AttemptId,
    name: &'static str,
    time: Range<SystemTime>,
    correlation: Correlation,
    attributes: &[(&'static str, String)],
) {
    let context = attempt_context(attempt, ratio_in_force());
    if let Some(tracer) = TRACER.get().filter(|_| context.is_sampled()) {
        ROOT.set(Some((context.trace_id(), context.span_id())));
        record(tracer, tracer.span_builder(name), &Context::new(), time, correlation, attributes);
        ROOT.set(None);
    }
}

fn record(
    tracer: &SdkTracer,
    span: SpanBuilder,
    parent: &Context,
    time: Range<SystemTime>,
    correlation: Correlation,
    attributes: &[(&'static str, String)],
) {
    let attributes = attributes.iter().map(|(key, value)| KeyValue::new(*key, value.clone()));
    let attributes = attributes.chain([KeyValue::new("correlation", correlation.to_string())]);
    let span = span.with_start_time(time.start).with_attributes(attributes);
    tracer.build_with_context(span, parent).end_with_timestamp(time.end);
}

/// The root of all spans of an attempt: known to both sides, recorded by the client when it is over ([`past_root`]).
fn attempt_context(attempt: AttemptId, ratio: f64) -> SpanContext {
    let number = attempt.as_uuid().as_u128();
    // A UUID has fixed bits, and a time in it makes neighbours alike; sampling wants the low half evenly spread.
    let high = mix((number >> 64) as u64);
    let low = mix(number as u64 ^ high);
    let trace = TraceId::from((u128::from(high) << 64) | u128::from(low));
    let span = SpanId::from(mix(low).max(1));
    let sampled = ratio >= 1.0 || ((low >> 1) as f64) < ratio * (1u64 << 63) as f64;
    let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Adds the current span's trace context to every request of a gRPC client.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceInterceptor;

impl Interceptor for TraceInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        inject(&Span::current(), request.metadata_mut());
        Ok(request)
    }
}

/// Writes a span's trace context (`traceparent`, `tracestate`) into gRPC metadata.
pub fn inject(span: &Span, metadata: &mut MetadataMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut Metadata(metadata));
}

/// Reads the trace context of gRPC metadata and makes it the span's parent. Call it before the span is entered.
pub fn extract(span: &Span, metadata: &MetadataMap) {
    let _ = span.set_parent(TraceContextPropagator::new().extract(&MetadataRef(metadata)));
}

/// Writes a correlation id into gRPC metadata.
pub fn set_correlation(metadata: &mut MetadataMap, correlation: Correlation) {
    let value = MetadataValue::<Ascii>::try_from(correlation.to_string());
    metadata.insert(CORRELATION_KEY, value.expect("a UUID is a metadata value"));
}

/// Reads the correlation id of gRPC metadata; `None` if there is none or it is not one.
pub fn correlation(metadata: &MetadataMap) -> Option<Correlation> {
    metadata.get(CORRELATION_KEY)?.to_str().ok()?.parse().ok()
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct MetadataRef<'a>(&'a MetadataMap);

impl Extractor for MetadataRef<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .map(|key| match key {
                KeyRef::Ascii(key) => key.as_str(),
                KeyRef::Binary(key) => key.as_str(),
            })
            .collect()
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::<Ascii>::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(n: u128) -> AttemptId {
        // As version 7 makes them: a time in front, the version and the variant in between.
        let time = 0x0199_0000_0000_u128 + n;
        AttemptId::from_uuid(uuid::Uuid::from_u128((time << 80) | (7 << 76) | (0b10 << 62) | (n * 7919)))
    }

    #[test]
    fn both_sides_derive_the_same_context_and_the_share_sampled_is_the_ratio() {
        assert_eq!(attempt_context(attempt(1), 0.5), attempt_context(attempt(1), 0.5));
        assert_ne!(attempt_context(attempt(1), 0.5).trace_id(), attempt_context(attempt(2), 0.5).trace_id());
        for ratio in [0.0, 0.1, 0.5, 1.0] {
            let sampled = (0..10_000).filter(|n| attempt_context(attempt(*n), ratio).is_sampled()).count();
            let expected = ratio * 10_000.0;
            assert!((sampled as f64 - expected).abs() <= 250.0, "{sampled} of 10000 at {ratio}");
        }
    }

    #[test]
    fn a_correlation_id_travels_in_metadata_and_nonsense_does_not_arrive() {
        let mut metadata = MetadataMap::new();
        assert_eq!(correlation(&metadata), None);
        set_correlation(&mut metadata, Correlation::from_bytes([9; 16]));
        assert_eq!(correlation(&metadata), Some(Correlation::from_bytes([9; 16])));
        metadata.insert(CORRELATION_KEY, "nonsense".parse().expect("a value"));
        assert_eq!(correlation(&metadata), None);
    }
}
