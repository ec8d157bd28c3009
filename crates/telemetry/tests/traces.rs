//! Spans over a real gRPC call, into a collector built from the protocol's own messages.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jump_session::ids::AttemptId;
use jump_telemetry::log::{self, LogConfig};
use jump_telemetry::trace::{self, TraceConfig, TraceInterceptor};
use jump_telemetry::{Correlation, metrics};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tracing::Instrument;

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    fn span(&self, name: &str) -> Option<Span> {
        self.0.lock().expect("no panic").iter().find(|span| span.name == name).cloned()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().expect("no panic").extend(spans.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Any gRPC service will do for a call between two parts.
struct Control;

#[tonic::async_trait]
impl LogsService for Control {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        assert_eq!(trace::correlation(request.metadata()), Some(Correlation::from_bytes([7; 16])));
        tracing::info_span!("store transaction").in_scope(|| tracing::info!("committed"));
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}

// One test, because a process has one subscriber.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_client_over_the_gateway_to_control_and_a_dead_collector_costs_spans_only() {
    let address = free_address();
    let config = TraceConfig {
        endpoint: format!("http://{address}"),
        tls: None,
        ratio: 1.0,
        filter: "info".into(),
        queue_spans_max: 1000,
        timeout: Duration::from_secs(2),
    };
    let log = LogConfig {
        filter: "off".into(),
        component: "gateway".into(),
        node: "gw1".into(),
        ..LogConfig::default()
    };
    let guard = log::init_with_traces(log, Some(config)).expect("the only subscriber");
    let registry = metrics::install(&[]).expect("the only recorder");
    let stats = || guard.trace_stats().expect("traces are on");

    // Nobody listens: callers do not wait, and every span is accounted for.
    (0..50_000).for_each(|n| drop(tracing::info_span!("lost", n).entered()));
    let burst = stats();
    assert_eq!(burst.queued + burst.dropped_queue_full, 50_000);
    eventually("the lost spans are counted", || stats().queued == stats().dropped_failed).await;
    assert_eq!(stats().exported, 0);
    assert!(registry.render().contains("jump_trace_spans_dropped_total{cause=\"failed\"}"));

    let collector = Collector::default();
    tokio::spawn(Server::builder().add_service(TraceServiceServer::new(collector.clone())).serve(address));
    let control = free_address();
    tokio::spawn(
        Server::builder()
            .trace_fn(trace::server_span)
            .add_service(LogsServiceServer::new(Control))
            .serve(control),
    );
    let mut channel = None;
    let endpoint = Channel::from_shared(format!("http://{control}")).expect("a URL");
    for _ in 0..500 {
        match endpoint.connect().await {
            Ok(connected) => {
                channel = Some(connected);
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }

    // The client's decision and the gateway's attach meet in the attempt's trace.
    let attempt = AttemptId::from_bytes([0x5a; 16]);
    let decision = tracing::info_span!("reattach");
    trace::join_attempt(&decision, attempt);
    decision.in_scope(|| tracing::info!("decided"));
    drop(decision);
    let attach = tracing::info_span!("attach", session = "s-1");
    trace::join_attempt(&attach, attempt);
    let mut client = LogsServiceClient::with_interceptor(channel.expect("control listens"), TraceInterceptor);
    let mut request = Request::new(ExportLogsServiceRequest::default());
    trace::set_correlation(request.metadata_mut(), Correlation::from_bytes([7; 16]));
    client.export(request).instrument(attach).await.expect("control answers");

    let names = ["reattach", "attach", "rpc", "store transaction"];
    eventually("the collector has the spans", || names.iter().all(|name| collector.span(name).is_some()))
        .await;
    let [reattach, attach, rpc, store] = names.map(|name| collector.span(name).expect(name));
    let trace_id = |span: &Span| span.trace_id.clone();
    for span in [&attach, &rpc, &store] {
        assert_eq!(trace_id(span), trace_id(&reattach), "{} is in another trace", span.name);
    }
    assert_eq!(attach.parent_span_id, reattach.parent_span_id, "both hang below the attempt");
    assert_eq!(rpc.parent_span_id, attach.span_id);
    assert_eq!(store.parent_span_id, rpc.span_id);
    let text = format!("{:?}", rpc.attributes);
    assert!(
        text.contains(&Correlation::from_bytes([7; 16]).to_string()) && text.contains("LogsService/Export"),
        "{text}"
    );
    // The collector has them before it has said so.
    eventually("the acknowledged spans are counted", || stats().exported >= 4).await;
}
