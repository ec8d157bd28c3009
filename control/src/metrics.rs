//! Metric names and the few places that count.

use std::time::Duration;

use crate::arbiter::ArbiterError;
use crate::layout::StoredSession;

/// Attaches decided, by outcome and reason.
pub const ATTACH_TOTAL: &str = "jump_control_attach_total";
/// Time from an attach's arrival to its answer, waiting for a live owner included.
pub const ATTACH_SECONDS: &str = "jump_control_attach_seconds";
/// Nodes registered.
pub const REGISTRATIONS_TOTAL: &str = "jump_control_registrations_total";
/// Sessions ended or released by time, by reason.
pub const EXPIRED_TOTAL: &str = "jump_control_expired_total";

pub(crate) fn count_attach(outcome: &Result<StoredSession, ArbiterError>, elapsed: Duration) {
    let (outcome, reason) = match outcome {
        Ok(stored) => ("accepted", stored.record.reason.code()),
        Err(ArbiterError::Refused(refusal)) => ("rejected", refusal.reason.code()),
        Err(ArbiterError::Store(_)) => ("failed", "STORE_UNAVAILABLE"),
        Err(ArbiterError::Value(_)) => ("failed", "BAD_STORED_VALUE"),
    };
    metrics::counter!(ATTACH_TOTAL, "outcome" => outcome, "reason" => reason.to_ascii_lowercase())
        .increment(1);
    metrics::histogram!(ATTACH_SECONDS, "outcome" => outcome).record(elapsed.as_secs_f64());
}

pub(crate) fn count_registration() {
    metrics::counter!(REGISTRATIONS_TOTAL).increment(1);
}

pub(crate) fn count_expired(reason: &'static str) {
    metrics::counter!(EXPIRED_TOTAL, "reason" => reason.to_ascii_lowercase()).increment(1);
}
