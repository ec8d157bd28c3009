//! What a gateway may do on its own: the lease guard, and its tenure of one session.

use std::time::Duration;

use crate::ids::Epoch;

/// A gateway's authority to forward: renewed by the store's answer, measured from the request's send time, on a clock
/// that counts suspended time. Past the deadline the gateway forwards nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Authority {
    /// Nanoseconds of the gateway's suspend-counting clock; forward only before this.
    pub deadline: u64,
}

impl Authority {
    /// The authority that a successful renewal sent at `sent` (nanoseconds) gives. With a margin of `ttl` or more it
    /// never holds.
    pub fn renewed(sent: u64, ttl: Duration, margin: Duration) -> Self {
        let span = u64::try_from(ttl.saturating_sub(margin).as_nanos()).unwrap_or(u64::MAX);
        Self { deadline: sent.saturating_add(span) }
    }

    /// Says whether forwarding is allowed at `now`.
    pub fn holds(&self, now: u64) -> bool {
        now < self.deadline
    }
}

/// What one run of a gateway knows of its own right to one session: the epoch that it may forward in, and the epochs
/// that it has given up.
///
/// An accepting answer can be overtaken: the answer to `Attach` is delayed, the client moves on, and the fence for the
/// very epoch in that answer arrives first. The gateway has nothing to stop and acknowledges; were it to activate the
/// session when the answer comes at last, two gateways would forward. So every fence, release, and every binding
/// that names another owner raises a floor, and an answer at or below the floor activates nothing.
///
/// Kept for as long as the session is active here or an `Attach` for it is unanswered; an answer for which no tenure is
/// kept is dropped. A new run starts with none and answers to none of the old run's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenure {
    active: Option<Epoch>,
    given_up: Epoch,
}

impl Tenure {
    /// The tenure of a run that keeps what it forwards and what it has given up elsewhere.
    pub fn of(active: Option<Epoch>, given_up: Epoch) -> Self {
        Self { active, given_up }
    }

    /// The epoch to forward in.
    pub fn active(&self) -> Option<Epoch> {
        self.active
    }

    /// Control accepted an attach here in `epoch`. False when the answer was overtaken: then the session must not be
    /// activated in it.
    pub fn accept(&mut self, epoch: Epoch) -> bool {
        let is_newest = epoch > self.given_up && self.active.is_none_or(|active| epoch >= active);
        if is_newest {
            self.active = Some(epoch);
        }
        is_newest
    }

    /// Gives up `epoch` and every earlier one, active or not: on a fence order, before it is acknowledged; on a release
    /// or an end; and on a binding of another owner, with the epoch before that one's. True when forwarding must stop.
    pub fn give_up(&mut self, epoch: Epoch) -> bool {
        self.given_up = self.given_up.max(epoch);
        let stops = self.active.is_some_and(|active| active <= epoch);
        if stops {
            self.active = None;
        }
        stops
    }
}
