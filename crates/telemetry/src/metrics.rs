//! Prometheus metrics: definitions as constants, one registry, and the HTTP endpoint with the health pages.
//!
//! Every crate keeps its definitions in its own `metrics.rs`:
//!
//! ```
//! use jump_telemetry::metrics::{Kind, MetricDef, Unit};
//!
//! /// Packets dropped.
//! pub const PACKETS_DROPPED: MetricDef = MetricDef {
//!     name: "jump_gateway_packets_dropped_total",
//!     kind: Kind::Counter,
//!     unit: Unit::Count,
//!     help: "Packets dropped by the data plane.",
//!     labels: &["reason"],
//! };
//!
//! /// All of them, for the registry and for `docs/metrics.md`.
//! pub const ALL: &[MetricDef] = &[PACKETS_DROPPED];
//!
//! let replays = PACKETS_DROPPED.counter(&[("reason", "replay")]);
//! replays.increment(1);
//! ```
//!
//! A test in the same crate calls [`check_conventions`] and compares [`table`] with its section of `docs/metrics.md`.

mod server;

use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

pub use server::{MetricsServer, ServeConfig, ServeError, serve};

/// Buckets for latencies from 1 ms to a minute, in seconds.
pub const LATENCY_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Buckets for counts in one batch.
pub const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets with these upper bounds, rising.
    Histogram(&'static [f64]),
}

impl Kind {
    /// Returns the name that Prometheus uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// What a metric counts in. Base units only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Seconds; the name ends in `_seconds`.
    Seconds,
    /// Bytes; the name ends in `_bytes`.
    Bytes,
    /// 0 to 1; the name ends in `_ratio`.
    Ratio,
    /// Seconds since the Unix epoch; the name ends in `_timestamp_seconds`.
    Timestamp,
    /// Yes (1) or no (0).
    Flag,
}

impl Unit {
    /// Returns the word in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
            Self::Timestamp => "Unix time in seconds",
            Self::Flag => "0 or 1",
        }
    }

    const fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Count | Self::Flag => None,
            Self::Seconds => Some("_seconds"),
            Self::Bytes => Some("_bytes"),
            Self::Ratio => Some("_ratio"),
            Self::Timestamp => Some("_timestamp_seconds"),
        }
    }
}

/// One metric: the only place where its name is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricDef {
    /// The name: `jump_<part>_<what>[_<unit>][_total]`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it counts in.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// Its labels. Every one has a small, fixed set of values: never a session, an address or a device.
    pub labels: &'static [&'static str],
}

impl MetricDef {
    /// Returns the counter with these label values. Keep the handle where it is used often: looking it up allocates.
    ///
    /// # Panics
    /// In debug builds, when the labels are not those of the definition.
    pub fn counter(&self, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert!(self.kind == Kind::Counter, "{} is not a counter", self.name);
        metrics::with_recorder(|recorder| recorder.register_counter(&self.key(labels), &METADATA))
    }

    /// Returns the gauge with these label values, under the same rules as [`Self::counter`].
    ///
    /// # Panics
    /// In debug builds, when the labels are not those of the definition.
    pub fn gauge(&self, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert!(self.kind == Kind::Gauge, "{} is not a gauge", self.name);
        metrics::with_recorder(|recorder| recorder.register_gauge(&self.key(labels), &METADATA))
    }

    /// Returns the histogram with these label values, under the same rules as [`Self::counter`].
    ///
    /// # Panics
    /// In debug builds, when the labels are not those of the definition.
    pub fn histogram(&self, labels: &[(&'static str, &str)]) -> Histogram {
        debug_assert!(matches!(self.kind, Kind::Histogram(_)), "{} is not a histogram", self.name);
        metrics::with_recorder(|recorder| recorder.register_histogram(&self.key(labels), &METADATA))
    }

    fn key(&self, labels: &[(&'static str, &str)]) -> Key {
        debug_assert!(
            labels.iter().map(|(name, _)| name).eq(self.labels),
            "{}: labels {labels:?}, defined {:?}",
            self.name,
            self.labels
        );
        let labels: Vec<Label> =
            labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        Key::from_parts(self.name, labels)
    }
}

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Why metrics could not start.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A definition has impossible buckets.
    #[error("metric {name} has no buckets")]
    Buckets {
        /// The metric.
        name: &'static str,
    },
    /// The process has a recorder of another kind.
    #[error("another metrics recorder is installed")]
    AlreadyInstalled,
}

/// The process's registry.
#[derive(Clone)]
pub struct Registry {
    prometheus: PrometheusHandle,
}

impl Registry {
    /// Renders everything in the Prometheus text format, after running what [`before_scrape`] was given.
    pub fn render(&self) -> String {
        for collect in collectors().lock().unwrap_or_else(PoisonError::into_inner).iter() {
            collect();
        }
        self.prometheus.render()
    }

    /// Folds fresh histogram observations into their buckets, so that memory stays bounded without scrapes.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

type Collector = Box<dyn Fn() + Send>;

fn collectors() -> &'static Mutex<Vec<Collector>> {
    static COLLECTORS: Mutex<Vec<Collector>> = Mutex::new(Vec::new());
    &COLLECTORS
}

/// Runs `collect` before every scrape: for values that are kept elsewhere, such as counters of another thread.
pub fn before_scrape(collect: impl Fn() + Send + 'static) {
    collectors().lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(collect));
}

/// Installs the process's recorder and describes the metrics. A second call describes more metrics in the same
/// registry; buckets are fixed by the first. Metrics used before the first call are lost.
///
/// # Errors
/// [`MetricsError`]: a histogram without buckets, a foreign recorder.
pub fn install(definitions: &[&[MetricDef]]) -> Result<Registry, MetricsError> {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let registry = match REGISTRY.get() {
        Some(registry) => registry.clone(),
        None => {
            let mut builder = PrometheusBuilder::new()
                .set_buckets(LATENCY_BUCKETS)
                .map_err(|_| MetricsError::Buckets { name: "default" })?;
            for definition in all(definitions) {
                if let Kind::Histogram(buckets) = definition.kind {
                    builder = builder
                        .set_buckets_for_metric(Matcher::Full(definition.name.to_owned()), buckets)
                        .map_err(|_| MetricsError::Buckets { name: definition.name })?;
                }
            }
            let prometheus = builder.install_recorder().map_err(|_| MetricsError::AlreadyInstalled)?;
            REGISTRY.get_or_init(|| Registry { prometheus }).clone()
        }
    };
    all(definitions).for_each(describe);
    Ok(registry)
}

/// This crate's own metrics: they are part of every registry.
pub const OWN: &[&[MetricDef]] = &[
    crate::log::METRICS,
    crate::audit::METRICS,
    crate::sink::METRICS,
    crate::trace::METRICS,
    crate::recovery::METRICS,
    crate::entropy::METRICS,
];

fn all<'a>(definitions: &'a [&'a [MetricDef]]) -> impl Iterator<Item = &'a MetricDef> {
    OWN.iter().chain(definitions).flat_map(|part| part.iter())
}

fn describe(definition: &MetricDef) {
    metrics::with_recorder(|recorder| {
        let (name, help) = (definition.name.into(), definition.help.into());
        match definition.kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
        }
    });
}

/// Checks names, suffixes, labels and help texts against the conventions. Returns one sentence per fault.
pub fn check_conventions(definitions: &[MetricDef]) -> Vec<String> {
    let mut faults = Vec::new();
    for (i, definition) in definitions.iter().enumerate() {
        let MetricDef { name, kind, unit, help, labels } = definition;
        let mut fault = |what: &str| faults.push(format!("{name}: {what}"));
        let snake = |text: &str| {
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && !text.is_empty()
        };
        if !snake(name) || !name.starts_with("jump_") {
            fault("the name must be jump_snake_case");
        }
        let base = name.strip_suffix("_total");
        if (*kind == Kind::Counter) != base.is_some() {
            fault("counters, and only they, end in _total");
        }
        if unit.suffix().is_some_and(|suffix| !base.unwrap_or(name).ends_with(suffix)) {
            fault("the name does not end in its unit");
        }
        if !help.ends_with('.') || help.contains(['\n', '|']) {
            fault("the help text must be one sentence ending in a full stop, on one line, without a bar");
        }
        if labels
            .iter()
            .any(|label| !snake(label) || matches!(*label, "le" | "quantile" | "session" | "device"))
        {
            fault("a label is reserved, unbounded or not snake_case");
        }
        if let Kind::Histogram(buckets) = kind
            && (buckets.is_empty() || !buckets.is_sorted_by(|a, b| a < b))
        {
            fault("buckets must be rising");
        }
        if definitions[..i].iter().any(|other| other.name == *name) {
            fault("defined twice");
        }
    }
    faults
}

/// Renders definitions as the table of `docs/metrics.md`.
pub fn table(definitions: &[MetricDef]) -> String {
    let mut text = String::from("| Name | Type | Unit | Labels | Meaning |\n|---|---|---|---|---|\n");
    for MetricDef { name, kind, unit, help, labels } in definitions {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".into() } else { labels.join(", ") };
        let _ = writeln!(text, "| `{name}` | {} | {} | {labels} | {help} |", kind.name(), unit.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: MetricDef = MetricDef {
        name: "jump_test_wait_seconds",
        kind: Kind::Histogram(LATENCY_BUCKETS),
        unit: Unit::Seconds,
        help: "Waiting.",
        labels: &["cause"],
    };

    #[test]
    fn the_crates_own_metrics_keep_the_conventions_and_the_documentation() {
        let own: Vec<MetricDef> = OWN.concat();
        assert_eq!(check_conventions(&own), Vec::<String>::new());
        crate::docs::assert_section("docs/metrics.md", "telemetry", &table(&own));
    }

    #[test]
    fn every_broken_convention_is_reported() {
        let broken = [
            MetricDef { name: "jump_test_Wait_seconds", ..GOOD },
            MetricDef { name: "jump_test_wait_ms", ..GOOD },
            MetricDef { name: "jump_test_waits", kind: Kind::Counter, unit: Unit::Count, ..GOOD },
            MetricDef { help: "Waiting", ..GOOD },
            MetricDef { labels: &["session"], ..GOOD },
            MetricDef { kind: Kind::Histogram(&[2.0, 1.0]), ..GOOD },
        ];
        for definition in broken {
            assert!(!check_conventions(&[definition]).is_empty(), "{definition:?}");
        }
        assert_eq!(check_conventions(&[GOOD]), Vec::<String>::new());
        assert_eq!(check_conventions(&[GOOD, GOOD]).len(), 1);
    }
}
