//! Path validation: a new source address is used only after it has answered a challenge, and is sent at most three
//! times what came from it until then.

use jump_crypto::record::OVERHEAD;
use subtle::ConstantTimeEq as _;

use super::Nanos;
use crate::path::Path;

/// How many challenges an unproven address gets.
pub const CHALLENGES_MAX: u8 = 3;
/// Bytes sent per byte received, until the address is proven.
const AMPLIFICATION_MAX: u64 = 3;
/// A sealed `PathChallenge`, in bytes.
const CHALLENGE_LEN: usize = 9 + OVERHEAD;
/// How long an answer may take after the last challenge, in repetitions of the first interval.
const PATIENCE: u64 = 20;

/// A path that must prove that the client receives there.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) path: Path,
    token: [u8; 8],
    budget: u64,
    challenges: u8,
    next_at: Nanos,
}

impl Candidate {
    pub(super) fn new(path: Path, token: [u8; 8], received: usize, now: Nanos) -> Self {
        let mut new = Self { path, token, budget: 0, challenges: 0, next_at: now };
        new.credit(received);
        new
    }

    /// Notes `len` authenticated bytes from the address.
    pub(super) fn credit(&mut self, len: usize) {
        self.budget = self.budget.saturating_add(AMPLIFICATION_MAX.saturating_mul(len as u64));
    }

    /// Takes `len` bytes for a copy of an inner packet; what two challenges cost is kept back.
    pub(super) fn spend_on_copy(&mut self, len: usize) -> bool {
        let spare = self.budget.saturating_sub(2 * CHALLENGE_LEN as u64);
        len as u64 <= spare && self.spend(len)
    }

    /// Takes `len` bytes from the budget; false when it is too small.
    pub(super) fn spend(&mut self, len: usize) -> bool {
        match self.budget.checked_sub(len as u64) {
            Some(rest) => {
                self.budget = rest;
                true
            }
            None => false,
        }
    }

    /// The token to send now, if a challenge is due and within the budget.
    pub(super) fn challenge(&mut self, now: Nanos, interval: Nanos) -> Option<[u8; 8]> {
        if self.challenges >= CHALLENGES_MAX || now < self.next_at {
            return None;
        }
        let wait = interval.max(1).saturating_mul(1 << self.challenges);
        self.challenges += 1;
        self.next_at = now.saturating_add(if self.challenges == CHALLENGES_MAX {
            interval.max(1).saturating_mul(PATIENCE)
        } else {
            wait
        });
        self.spend(CHALLENGE_LEN).then_some(self.token)
    }

    /// True when `token` is the one that was sent.
    pub(super) fn proves(&self, token: [u8; 8]) -> bool {
        self.challenges > 0 && bool::from(self.token.ct_eq(&token))
    }

    /// True when the last challenge went unanswered.
    pub(super) fn is_exhausted(&self, now: Nanos) -> bool {
        self.challenges >= CHALLENGES_MAX && now >= self.next_at
    }

    pub(super) fn next_at(&self) -> Nanos {
        self.next_at
    }
}
