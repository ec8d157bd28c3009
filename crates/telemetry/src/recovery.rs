//! How long service was gone, by cause and phase: one histogram and one trace, whoever measures.

use std::time::{Duration, SystemTime};

use jump_session::ids::AttemptId;
use jump_session::reason::Reason;

use crate::Correlation;
use crate::audit::RecoveryDurations;
use crate::metrics::{Kind, LATENCY_BUCKETS, MetricDef, Unit};
use crate::trace;

/// Recovery latency. The client measures every phase; a gateway the commits of those that come to it.
pub const RECOVERY: MetricDef = MetricDef {
    name: "jump_session_recovery_seconds",
    kind: Kind::Histogram(LATENCY_BUCKETS),
    unit: Unit::Seconds,
    help: "Time that recoveries took, by why the client attached and by phase: detect, handshake, commit, first_byte.",
    labels: &["cause", "phase"],
};

/// The metrics of this module.
pub const METRICS: &[MetricDef] = &[RECOVERY];

/// A phase of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From the last good receipt to the decision.
    Detect,
    /// From the decision to proven keys.
    Handshake,
    /// From the confirmation to the accepted attach.
    Commit,
    /// From there to the first byte.
    FirstByte,
}

impl Phase {
    /// The label and the span's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Handshake => "handshake",
            Self::Commit => "commit",
            Self::FirstByte => "first_byte",
        }
    }
}

/// Records one phase of one recovery.
pub fn measured(cause: Reason, phase: Phase, took: Duration) {
    RECOVERY.histogram(&[("cause", cause.code()), ("phase", phase.name())]).record(took.as_secs_f64());
}

/// Records a whole recovery as the client saw it: the histogram, and the root of the attempt's trace with a span for
/// each phase. The trace goes from the decision to the first byte; the detection before it is an attribute.
pub fn completed(
    attempt: AttemptId,
    cause: Reason,
    accepted: SystemTime,
    durations: RecoveryDurations,
    correlation: Correlation,
) {
    let RecoveryDurations { detect, handshake, commit, first_byte } = durations;
    let phases = [(Phase::Handshake, handshake), (Phase::Commit, commit), (Phase::FirstByte, first_byte)];
    measured(cause, Phase::Detect, detect);
    let Some(mut start) = accepted.checked_sub(handshake + commit) else { return };
    trace::past_root(
        attempt,
        "reattach",
        start..accepted + first_byte,
        correlation,
        &[("reason", cause.code().to_owned()), ("detect_us", detect.as_micros().to_string())],
    );
    for (phase, took) in phases {
        measured(cause, phase, took);
        trace::past_span(attempt, phase.name(), start..start + took, correlation);
        start += took;
    }
}
