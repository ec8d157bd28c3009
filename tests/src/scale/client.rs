//! Devices: they notice, search, ask, and are told.

use jump_session::ids::{AttachSeq, AttemptId};

use super::control::Call;
use super::{MILLISECOND, Nanos, SECOND};
use crate::lab::rng::Rng;

/// Between a device and a gateway, there and back: from this, up to twice.
const ROUND_TRIP_MIN: Nanos = 20 * MILLISECOND;
/// A device sends at least this often, so that it notices.
pub(super) const SENDS_EVERY: Nanos = SECOND;
/// Probes that go unanswered before a path counts as dead, in all.
pub(super) const UNANSWERED: Nanos = 300 * MILLISECOND;
/// A first message that nobody answers; doubled from the third one on.
const UNANSWERED_INIT: Nanos = 100 * MILLISECOND;
const UNANSWERED_INIT_MAX: Nanos = SECOND;

/// A device.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) attach_seq: u64,
    /// The gateway that it is attached to.
    pub(super) gateway: Option<usize>,
    /// Since when it has wanted another, while it does.
    pub(super) since: Option<Nanos>,
    /// First messages that nobody answered since then.
    pub(super) unanswered: u32,
    /// The claim that waits at a replica.
    pub(super) waits: Option<usize>,
}

impl Client {
    pub(super) fn new() -> Self {
        Self { attach_seq: 0, gateway: None, since: None, unanswered: 0, waits: None }
    }

    /// The next attempt's number and name.
    pub(super) fn next_attempt(&mut self, number: usize) -> (AttachSeq, AttemptId) {
        self.attach_seq += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        id[8..].copy_from_slice(&self.attach_seq.to_be_bytes());
        (AttachSeq(self.attach_seq), AttemptId::from_bytes(id))
    }

    /// How long it waits for a gateway that does not answer.
    pub(super) fn patience(&mut self) -> Nanos {
        self.unanswered += 1;
        let doublings = self.unanswered.saturating_sub(2).min(8);
        (UNANSWERED_INIT << doublings).min(UNANSWERED_INIT_MAX)
    }

    /// How long its messages take there and back.
    pub(super) fn round_trip(rng: &mut Rng) -> Nanos {
        ROUND_TRIP_MIN + rng.below(ROUND_TRIP_MIN)
    }

    /// Whether a call is of its present attempt: an older one has nobody who waits for it.
    pub(super) fn asked(&self, call: &Call) -> bool {
        self.since.is_some() && call.attach_seq == AttachSeq(self.attach_seq)
    }
}
