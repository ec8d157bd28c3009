//! Where audit events go: rotated files, syslog, OTLP logs, HTTP collectors.
//!
//! Each sink has a bounded queue, a thread with a runtime of its own, and counters; a stalled one affects nothing
//! else. Policy everywhere: the newest event is dropped when the queue is full, what is queued is retried with
//! back-off until delivered, and everything is counted.

mod config;
mod file;
mod http;
mod net;
mod otlp;
mod spool;
mod syslog;
mod worker;

use std::time::SystemTime;

use crate::audit::ActionDef;
use crate::metrics::{Kind, MetricDef, Unit};

pub use config::{
    FileConfig, HttpConfig, OtlpConfig, QueueConfig, SinkConfig, SpoolConfig, SyslogConfig, SyslogTransport,
    TlsConfig,
};
pub use net::TlsError;
pub use worker::SinkStats;

pub(crate) use otlp::endpoint as otlp_endpoint;
pub(crate) use worker::{SinkHandle, SinkQueue};

/// Why a sink could not start.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A setting is unusable.
    #[error("{setting}: {problem}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The TLS files cannot be used.
    #[error("cannot use the TLS settings")]
    Tls(#[from] TlsError),
    /// A file or directory cannot be used.
    #[error("cannot use {path}")]
    Path {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The operating system gave no thread or runtime.
    #[error("could not start the sink's thread")]
    Thread(#[source] std::io::Error),
}

/// Events accepted by a sink's queue.
pub const EVENTS_QUEUED: MetricDef = MetricDef {
    name: "jump_audit_sink_events_queued_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Audit events accepted by the sink's queue.",
    labels: &["sink"],
};

/// Events delivered.
pub const EVENTS_SENT: MetricDef = MetricDef {
    name: "jump_audit_sink_events_sent_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Audit events that the sink delivered (acknowledged where the protocol acknowledges, else written).",
    labels: &["sink"],
};

/// Events dropped, by cause.
pub const EVENTS_DROPPED: MetricDef = MetricDef {
    name: "jump_audit_sink_events_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Audit events that the sink dropped: queue_full, rejected by the receiver, spool_full, shutdown.",
    labels: &["sink", "cause"],
};

/// Failed deliveries.
pub const FAILURES: MetricDef = MetricDef {
    name: "jump_audit_sink_failures_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Attempts of the sink to connect or deliver that failed.",
    labels: &["sink"],
};

/// Events in a sink's queue.
pub const QUEUE_EVENTS: MetricDef = MetricDef {
    name: "jump_audit_sink_queue_events",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Audit events that wait in the sink's queue or are being delivered.",
    labels: &["sink"],
};

/// Bytes in a sink's spool.
pub const SPOOL_BYTES: MetricDef = MetricDef {
    name: "jump_audit_sink_spool_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    help: "Bytes of audit events that wait in the sink's spool on disk.",
    labels: &["sink"],
};

/// The metrics of the sinks.
pub const METRICS: &[MetricDef] =
    &[EVENTS_QUEUED, EVENTS_SENT, EVENTS_DROPPED, FAILURES, QUEUE_EVENTS, SPOOL_BYTES];

/// One rendered event.
#[derive(Debug)]
pub(crate) struct Record {
    /// The OCSF object, one line without its newline.
    pub(crate) json: String,
    pub(crate) time: SystemTime,
    pub(crate) definition: &'static ActionDef,
    /// The run's number of the event.
    pub(crate) sequence: u64,
    pub(crate) session: Option<String>,
    pub(crate) correlation: Option<String>,
}

impl Record {
    /// What the record counts against a queue's bound, in bytes.
    fn size(&self) -> usize {
        self.json.len() + 128
    }
}
