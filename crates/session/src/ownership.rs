//! Who owns a session: the record, and the pure decisions over it (`docs/ownership.md`).
//!
//! ```text
//!            attach            attach by another node, owner alive
//! (none) ──────────▶ Owned ─────────────────────────────────────▶ Handover
//!                    ▲ │ ▲                                          │ │
//!       attach       │ │ └───────── fence acknowledged and ─────────┘ │
//!                    │ │            target alive, or attach by the    │
//!                    │ │            target with the old owner gone    │
//!                    │ ▼                                              │
//!                   Released ◀── release, owner gone, or fence ───────┤
//!                      │         acknowledged and target gone         │
//!                      │                                              │
//!                      └────────────▶ Terminated ◀────────────────────┘  (final, tombstone)
//! ```
//!
//! Within `Owned` an attach by the same run of the owner, or by anybody once the owner's node key is gone, goes to
//! `Owned` with the next epoch. Nothing else changes the owner.

mod arbitrate;
mod authority;
mod change;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use crate::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, NodeId, Revision, SessionId};
use crate::policy::DevicePolicy;
use crate::reason::Reason;

pub use arbitrate::{arbitrate, birth};
pub use authority::{Authority, Tenure};
pub use change::{change, expire};

/// Milliseconds since the Unix epoch, as control replicas read them. Never used to decide who owns a session.
pub type UnixMillis = u64;

/// How many past owners a record keeps.
pub const HISTORY_MAX: usize = 16;

/// How many chosen switches a record counts within [`SWITCH_WINDOW`], whatever the policy says.
pub const RECENT_SWITCHES_MAX: usize = 128;

/// The window in which the policy counts switches: a minute, and a second for what passes between the decision over a
/// switch and its effect, so that no minute sees one too many from outside either.
pub const SWITCH_WINDOW: Duration = Duration::from_secs(61);

/// When a client may ask again that met a node which cannot take it, or a live owner that has not stopped yet.
pub const RETRY_AFTER: Duration = Duration::from_millis(250);

/// How long an operator's order to move a session stands.
pub const MOVE_WINDOW: Duration = Duration::from_secs(60);

/// One run of a gateway node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
}

/// Where a session stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nobody owns it.
    Released {
        /// Since when.
        since: UnixMillis,
    },
    /// One gateway owns it in the record's epoch.
    Owned {
        /// The owner.
        owner: Owner,
    },
    /// `from` owns it in the record's epoch until it has stopped; then `to` owns the next.
    Handover {
        /// The owner that must stop.
        from: Owner,
        /// Who takes over, and by which attempt.
        to: Claim,
    },
    /// Ended; kept as a tombstone.
    Terminated {
        /// When.
        at: UnixMillis,
    },
}

/// A claim that waits for the old owner to stop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The claimant.
    pub owner: Owner,
    /// The client's sequence number of the attempt.
    pub attach_seq: AttachSeq,
    /// The attempt.
    pub attempt: AttemptId,
    /// Since when it waits.
    pub since: UnixMillis,
    /// Why the client moves.
    pub reason: Reason,
    /// Whether the switch counts as the client's choice, decided when it was recorded.
    pub charged: bool,
}

/// An operator's order to move a session away from its owner. The owner tells the client, who moves by an attach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MoveOrder {
    /// Where to; `None` for any other gateway.
    pub to: Option<NodeId>,
    /// Since when.
    pub since: UnixMillis,
}

impl MoveOrder {
    /// Says whether the order stands at `now`. One from the future (a replica's clock had jumped) does not.
    pub fn stands(&self, now: UnixMillis) -> bool {
        now.abs_diff(self.since) < millis(MOVE_WINDOW)
    }
}

/// One past or present owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HistoryEntry {
    /// Its epoch.
    pub epoch: Epoch,
    /// The owner.
    pub owner: Owner,
    /// When it became owner.
    pub since: UnixMillis,
    /// Why.
    pub reason: Reason,
}

/// The store's record of one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionRecord {
    /// The session.
    pub id: SessionId,
    /// The device that may attach.
    pub device: DeviceKey,
    /// The device's name, for people.
    pub device_name: String,
    /// Changes of owner so far.
    pub epoch: Epoch,
    /// The highest sequence number of any attempt that was accepted, or whose claim was dropped. Never decreases.
    pub attach_seq: AttachSeq,
    /// The attempt that carried it.
    pub attempt: AttemptId,
    /// Where it stands.
    pub phase: Phase,
    /// Its inner addresses, for its whole life.
    pub inner: Vec<IpAddr>,
    /// Birth.
    pub created: UnixMillis,
    /// Last change of the record.
    pub changed: UnixMillis,
    /// Latest end.
    pub expires: UnixMillis,
    /// Reason of the last transition.
    pub reason: Reason,
    /// Owners, newest first, at most [`HISTORY_MAX`].
    pub history: Vec<HistoryEntry>,
    /// Times of the switches within the last minute that the client chose (away from a live owner, or anew to the
    /// same one; and of its path, as each owner told when it stopped), oldest first; at most [`RECENT_SWITCHES_MAX`].
    pub recent_switches: Vec<UnixMillis>,
    /// An operator's order to move it, until it has another owner or none.
    pub moving: Option<MoveOrder>,
    /// One id through logs, spans and audit events.
    pub correlation: [u8; 16],
    /// What bounds it: its device's policy as of the last attach or change of the policy. Decides nothing here.
    pub policy: DevicePolicy,
}

/// A gateway's request on behalf of a client that has confirmed the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AttachRequest {
    /// The claimant.
    pub claimant: Owner,
    /// The device that proved possession of its key.
    pub device: DeviceKey,
    /// The client's sequence number.
    pub attach_seq: AttachSeq,
    /// The attempt.
    pub attempt: AttemptId,
    /// Why.
    pub reason: Reason,
    /// From the present owner only: ages of the path switches that it made within the last minute, which the record does
    /// not have yet.
    pub switch_ages: Vec<Duration>,
}

/// What the store says about the parties, read with the record (any later change fails the transaction's compares).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The claimant's node key exists with the claimed incarnation.
    pub claimant_registered: bool,
    /// The claimant is draining.
    pub claimant_draining: bool,
    /// The node key of the record's owner (`Owned.owner`, `Handover.from`) exists with that incarnation.
    pub owner_registered: bool,
    /// The record's owner is draining: its clients are asked to leave.
    pub owner_draining: bool,
    /// The node key of `Handover.to` exists with that incarnation.
    pub target_registered: bool,
    /// The device's standing.
    pub device: DeviceStanding,
}

/// A device's standing at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceStanding {
    /// May attach.
    Active,
    /// Not enrolled.
    Unknown,
    /// Revoked.
    Revoked,
    /// Outside its validity.
    Expired,
}

/// What the transaction must compare besides the record's revision (always compared).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The node key exists with exactly this incarnation.
    Registered(Owner),
    /// The node key does not exist with this incarnation (gone, or a later run).
    Gone(Owner),
}

/// A decision that changes the record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Transition {
    /// The record to write.
    pub next: SessionRecord,
    /// What must still hold when it is written.
    pub conditions: Vec<Condition>,
}

/// A decision over an attach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Write this: the claimant becomes owner (`next.phase` is `Owned` by it).
    Commit(Transition),
    /// Write this: a live owner must stop first (`next.phase` is `Handover` to the claimant). Then wait and decide again.
    Intend(Transition),
    /// Nothing to write: this very attempt is already waiting. Wait and decide again.
    Wait,
    /// Nothing to write: this very attempt was accepted in this epoch and its claimant still owns the session.
    AlreadyAccepted,
}

/// A deterministic rejection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The record's epoch; 0 when there is no record or the device may not know it.
    pub current_epoch: Epoch,
    /// The highest attach sequence number that was recorded, a waiting claim's included, under the same rule. An
    /// attempt can succeed only above it.
    pub current_attach_seq: AttachSeq,
    /// When asking again makes sense; zero for never.
    pub retry_after: Duration,
}

/// What a gateway or operator asks besides attaching.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// The old owner says that it has stopped in `epoch`, or that it carries nothing of it, and that it will not
    /// activate the session in any epoch up to this one (see [`Tenure`]).
    FenceAcknowledged {
        /// Who says so.
        by: Owner,
        /// The epoch that it owned.
        epoch: Epoch,
        /// Ages of the path switches that it made within the last minute.
        switch_ages: Vec<Duration>,
    },
    /// The owner has stopped and gives up the session; anyone may claim it. During a handover this is a fence
    /// acknowledgement.
    Release {
        /// Who.
        by: Owner,
        /// The epoch that it owns.
        epoch: Epoch,
        /// Why.
        reason: Reason,
        /// Ages of the path switches that it made within the last minute.
        switch_ages: Vec<Duration>,
    },
    /// The owner ends the session.
    Terminate {
        /// Who; `None` for an operator or control itself, which may end a session in any phase.
        by: Option<(Owner, Epoch)>,
        /// Why.
        reason: Reason,
    },
    /// An operator wants another gateway to own the session. The owner stays until its client has come to the other.
    Move {
        /// Where to; `None` for any other gateway.
        to: Option<NodeId>,
    },
}

impl SessionRecord {
    /// The owner in the record's epoch: of `Owned`, and of `Handover` until it has stopped.
    pub fn owner(&self) -> Option<&Owner> {
        match &self.phase {
            Phase::Owned { owner } | Phase::Handover { from: owner, .. } => Some(owner),
            Phase::Released { .. } | Phase::Terminated { .. } => None,
        }
    }

    /// The highest attach sequence number that was recorded: an attempt can succeed only above it.
    pub fn highest_attach_seq(&self) -> AttachSeq {
        match &self.phase {
            Phase::Handover { to, .. } => self.attach_seq.max(to.attach_seq),
            Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => self.attach_seq,
        }
    }

    /// The same record in another phase, written `now` for `reason`. A claim that the new phase no longer holds leaves
    /// its sequence number behind, so that a refused attempt stays refused.
    fn moved_to(&self, phase: Phase, reason: Reason, now: UnixMillis) -> Self {
        let mut next = Self { phase, reason, changed: now.max(self.changed), ..self.clone() };
        if let (Phase::Handover { to, .. }, Phase::Released { .. } | Phase::Terminated { .. }) =
            (&self.phase, &next.phase)
            && to.attach_seq > self.attach_seq
        {
            next.attach_seq = to.attach_seq;
            next.attempt = to.attempt;
        }
        if next.owner().is_none_or(|owner| self.owner().is_none_or(|old| old.node != owner.node)) {
            next.moving = None;
        }
        next
    }

    /// The record with `claim`'s owner in the next epoch; `None` at the end of the epochs.
    fn owned_next(&self, claim: Claim, now: UnixMillis) -> Option<Self> {
        let Claim { owner, attach_seq, attempt, since: _, reason, charged } = claim;
        let mut next = self.moved_to(Phase::Owned { owner: owner.clone() }, reason, now);
        next.epoch = self.epoch.next()?;
        next.attach_seq = attach_seq;
        next.attempt = attempt;
        next.history.insert(0, HistoryEntry { epoch: next.epoch, owner, since: now, reason });
        next.history.truncate(HISTORY_MAX);
        next.count_switches(if charged { &[Duration::ZERO] } else { &[] }, now);
        Some(next)
    }

    /// Counts switches of these ages, and forgets those that count no longer.
    fn count_switches(&mut self, ages: &[Duration], now: UnixMillis) {
        let switches = &mut self.recent_switches;
        switches.extend(ages.iter().map(|age| now.saturating_sub(millis(*age))));
        switches.retain(|at| is_recent(*at, now));
        switches.sort_unstable();
        let surplus = switches.len().saturating_sub(RECENT_SWITCHES_MAX);
        switches.drain(..surplus);
    }

    /// The ages at `now` of the switches that count, oldest first: what a new owner has to know.
    pub fn switch_ages(&self, now: UnixMillis) -> Vec<Duration> {
        let recent = self.recent_switches.iter().filter(|at| is_recent(**at, now));
        recent.map(|at| Duration::from_millis(now.saturating_sub(*at))).collect()
    }
}

impl Refusal {
    /// A refusal that tells its caller where the record stands.
    fn of(record: &SessionRecord, reason: Reason, retry_after: Duration) -> Self {
        Self {
            reason,
            current_epoch: record.epoch,
            current_attach_seq: record.highest_attach_seq(),
            retry_after,
        }
    }

    /// A refusal that tells nothing about any record.
    fn blank(reason: Reason, retry_after: Duration) -> Self {
        Self { reason, current_epoch: Epoch(0), current_attach_seq: AttachSeq(0), retry_after }
    }

    /// The answer for a claim that still waits when the server's patience ends. The claim stays recorded: the same
    /// attempt asked again goes on with it.
    pub fn handover_pending(record: &SessionRecord) -> Self {
        Self::of(record, Reason::HandoverPending, RETRY_AFTER)
    }

    /// Whether this attempt can never succeed, however often it is asked again.
    pub fn is_final(&self) -> bool {
        self.retry_after.is_zero()
    }
}

/// Whether a switch at `at` counts at `now`. A time far in the future (a replica's clock had jumped) does not.
fn is_recent(at: UnixMillis, now: UnixMillis) -> bool {
    now.abs_diff(at) < millis(SWITCH_WINDOW)
}

/// Whole milliseconds, saturating.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Re-exported so that callers name revisions with the record.
pub type RecordRevision = Revision;
