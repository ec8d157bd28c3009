//! Metric definitions and the few places that count.

use std::sync::Arc;
use std::time::Duration;

use jump_session::reason::Reason;
use jump_telemetry::metrics::{Kind, LATENCY_BUCKETS, MetricDef, Unit, before_scrape};

use crate::arbiter::ArbiterError;
use crate::bindings::Bindings;
use crate::layout::StoredSession;

/// Attaches decided.
pub const ATTACH: MetricDef = MetricDef {
    name: "jump_control_attach_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Attaches decided, by outcome (accepted, rejected, failed) and reason.",
    labels: &["outcome", "reason"],
};

/// How long they took.
pub const ATTACH_SECONDS: MetricDef = MetricDef {
    name: "jump_control_attach_seconds",
    kind: Kind::Histogram(LATENCY_BUCKETS),
    unit: Unit::Seconds,
    help: "Time from an attach's arrival to its answer, waiting for a live owner included.",
    labels: &["outcome"],
};

/// Nodes registered.
pub const REGISTRATIONS: MetricDef = MetricDef {
    name: "jump_control_registrations_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Runs of gateway nodes registered here.",
    labels: &[],
};

/// What time did.
pub const EXPIRED: MetricDef = MetricDef {
    name: "jump_control_expired_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Sessions that this replica ended or released because time ran out or their owner's node was gone.",
    labels: &["reason"],
};

/// How long the store takes.
pub const STORE_SECONDS: MetricDef = MetricDef {
    name: "jump_control_store_seconds",
    kind: Kind::Histogram(LATENCY_BUCKETS),
    unit: Unit::Seconds,
    help: "Time of one operation of the store, by operation and outcome (ok, conflict, unknown, unavailable, refused).",
    labels: &["operation", "outcome"],
};

/// Sessions by phase.
pub const SESSIONS: MetricDef = MetricDef {
    name: "jump_control_sessions",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Sessions in the store as this replica sees it, by phase (owned, handover, released, terminated).",
    labels: &["phase"],
};

/// Changes of owner.
pub const OWNER_CHANGES: MetricDef = MetricDef {
    name: "jump_control_owner_changes_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Changes of owner that this replica committed, births included, by reason.",
    labels: &["reason"],
};

/// Copies what is kept elsewhere into the registry before every scrape.
pub(crate) fn publish(bindings: Arc<Bindings>) {
    before_scrape(move || {
        for (phase, sessions) in bindings.phases() {
            SESSIONS.gauge(&[("phase", phase)]).set(sessions as f64);
        }
    });
}

pub(crate) fn measure_store(operation: &'static str, outcome: &'static str, took: Duration) {
    STORE_SECONDS.histogram(&[("operation", operation), ("outcome", outcome)]).record(took.as_secs_f64());
}

pub(crate) fn count_owner_change(reason: Reason) {
    OWNER_CHANGES.counter(&[("reason", reason.code())]).increment(1);
}
/// Requests to the store that carry several transactions or reads.
pub const STORE_BATCH_RIDERS: MetricDef = MetricDef {
    name: "jump_control_store_batch_riders",
    kind: Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
    unit: Unit::Count,
    help: "How many transactions or reads shared one request to etcd, by kind (commit, read).",
    labels: &["kind"],
};

/// How long such requests took.
pub const STORE_BATCH_SECONDS: MetricDef = MetricDef {
    name: "jump_control_store_batch_seconds",
    kind: Kind::Histogram(LATENCY_BUCKETS),
    unit: Unit::Seconds,
    help: "Time of one such request, by kind (commit, read).",
    labels: &["kind"],
};

/// Batches that had to be taken apart.
pub const STORE_BATCH_SPLITS: MetricDef = MetricDef {
    name: "jump_control_store_batch_splits_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Batches that etcd refused as a whole; each of their transactions was tried by itself.",
    labels: &[],
};

/// Orders of the rebalancer.
pub const REBALANCE_ORDERS: MetricDef = MetricDef {
    name: "jump_control_rebalance_orders_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Sessions that this replica ordered from a full gateway to an emptier one.",
    labels: &[],
};

/// Open connections.
pub const CONNECTIONS: MetricDef = MetricDef {
    name: "jump_control_connections",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Connections to the API that are open.",
    labels: &[],
};

/// Connections turned away.
pub const CONNECTIONS_REFUSED: MetricDef = MetricDef {
    name: "jump_control_connections_refused_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Connections closed at once because there were too many, of all or of one source.",
    labels: &[],
};

/// All of them, for the registry and for `docs/metrics.md`.
pub const ALL: &[MetricDef] = &[
    ATTACH,
    ATTACH_SECONDS,
    REGISTRATIONS,
    EXPIRED,
    STORE_SECONDS,
    SESSIONS,
    OWNER_CHANGES,
    STORE_BATCH_RIDERS,
    STORE_BATCH_SECONDS,
    STORE_BATCH_SPLITS,
    REBALANCE_ORDERS,
    CONNECTIONS,
    CONNECTIONS_REFUSED,
];

pub(crate) fn count_attach(outcome: &Result<StoredSession, ArbiterError>, elapsed: Duration) {
    let (outcome, reason) = match outcome {
        Ok(stored) => ("accepted", stored.record.reason.code()),
        Err(ArbiterError::Refused(refusal)) => ("rejected", refusal.reason.code()),
        Err(ArbiterError::Store(_)) => ("failed", "STORE_UNAVAILABLE"),
        Err(ArbiterError::Value(_)) => ("failed", "BAD_STORED_VALUE"),
    };
    ATTACH.counter(&[("outcome", outcome), ("reason", reason)]).increment(1);
    ATTACH_SECONDS.histogram(&[("outcome", outcome)]).record(elapsed.as_secs_f64());
}

pub(crate) fn record_batch(kind: &'static str, riders: usize, elapsed: Duration) {
    STORE_BATCH_RIDERS.histogram(&[("kind", kind)]).record(riders as f64);
    STORE_BATCH_SECONDS.histogram(&[("kind", kind)]).record(elapsed.as_secs_f64());
}

pub(crate) fn count_batch_split() {
    STORE_BATCH_SPLITS.counter(&[]).increment(1);
}

pub(crate) fn count_rebalance_orders(orders: usize) {
    REBALANCE_ORDERS.counter(&[]).increment(orders as u64);
}

pub(crate) fn show_connections(open: usize) {
    CONNECTIONS.gauge(&[]).set(open as f64);
}

pub(crate) fn count_refused_connection() {
    CONNECTIONS_REFUSED.counter(&[]).increment(1);
}

pub(crate) fn count_registration() {
    REGISTRATIONS.counter(&[]).increment(1);
}

pub(crate) fn count_expired(reason: &'static str) {
    EXPIRED.counter(&[("reason", reason)]).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_keep_the_conventions_and_the_documentation() {
        assert_eq!(jump_telemetry::metrics::check_conventions(ALL), Vec::<String>::new());
        jump_telemetry::docs::assert_section(
            "docs/metrics.md",
            "control",
            &jump_telemetry::metrics::table(ALL),
        );
    }
}
