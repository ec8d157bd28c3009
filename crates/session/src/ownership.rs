//! Who owns a session: the record, and the pure decisions over it (`docs/ownership.md`).
//!
//! ```text
//!            attach            attach by another node, owner alive
//! (none) ──────────▶ Owned ─────────────────────────────────────▶ Handover
//!                    ▲ │ ▲                                          │
//!       attach,      │ │ └───────── fence acknowledged ─────────────┤
//!       owner's node │ │            or the old owner's node key gone│
//!       key gone     │ ▼                                            │
//!                   Released ◀── release                            │
//!                      │                                            │
//!                      └────────────▶ Terminated ◀──────────────────┘  (final, tombstone)
//! ```

use std::net::IpAddr;
use std::time::Duration;

use crate::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, NodeId, Revision, SessionId};
use crate::policy::SessionPolicy;
use crate::reason::Reason;

/// Milliseconds since the Unix epoch, as control replicas read them. Never used to decide who owns a session.
pub type UnixMillis = u64;

/// How many past owners a record keeps.
pub const HISTORY_MAX: usize = 16;

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
    /// The sequence number of the last accepted attempt.
    pub attach_seq: AttachSeq,
    /// The last accepted attempt.
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
    /// Times of accepted owner changes within the last minute, oldest first; bounded by the policy.
    pub recent_switches: Vec<UnixMillis>,
    /// One id through logs, spans and audit events.
    pub correlation: [u8; 16],
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
    /// The record's attach sequence number, under the same rule.
    pub current_attach_seq: AttachSeq,
    /// When asking again makes sense; zero for never.
    pub retry_after: Duration,
}

/// What a gateway or operator asks besides attaching.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// The old owner says that it has stopped in `epoch`.
    FenceAcknowledged {
        /// Who says so.
        by: Owner,
        /// The epoch that it owned.
        epoch: Epoch,
    },
    /// The owner gives up the session; anyone may claim it.
    Release {
        /// Who.
        by: Owner,
        /// The epoch that it owns.
        epoch: Epoch,
        /// Why.
        reason: Reason,
    },
    /// The owner ends the session.
    Terminate {
        /// Who; `None` for an operator or control itself, which may end a session in any phase.
        by: Option<(Owner, Epoch)>,
        /// Why.
        reason: Reason,
    },
}

/// Decides an attach. The same record, view, request and policy always give the same answer.
///
/// # Errors
/// [`Refusal`] with the reason that the client is told.
pub fn arbitrate(
    _record: &SessionRecord,
    _view: &View,
    _request: &AttachRequest,
    _policy: &SessionPolicy,
    _now: UnixMillis,
) -> Result<Decision, Refusal> {
    todo!()
}

/// Decides the birth of a session: the record to create, owned by the claimant in epoch 1.
///
/// # Errors
/// [`Refusal`] with the reason that the client is told.
pub fn birth(
    _id: SessionId,
    _inner: Vec<IpAddr>,
    _device_name: String,
    _correlation: [u8; 16],
    _view: &View,
    _request: &AttachRequest,
    _policy: &SessionPolicy,
    _now: UnixMillis,
) -> Result<Transition, Refusal> {
    todo!()
}

/// Decides a change that is not an attach. `None` when there is nothing to write (already so).
///
/// # Errors
/// [`Refusal`] when the caller may not (not the owner, another epoch, already terminated).
pub fn change(
    _record: &SessionRecord,
    _view: &View,
    _change: &Change,
    _now: UnixMillis,
) -> Result<Option<Transition>, Refusal> {
    todo!()
}

/// Decides what time alone does to a record: lifetime and recovery window. `None` when nothing is due.
pub fn expire(
    _record: &SessionRecord,
    _view: &View,
    _policy: &SessionPolicy,
    _now: UnixMillis,
) -> Option<Transition> {
    todo!()
}

/// A gateway's authority to forward: renewed by the store's answer, measured from the request's send time, on a clock
/// that counts suspended time. Past the deadline the gateway forwards nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Authority {
    /// Nanoseconds of the gateway's suspend-counting clock; forward only before this.
    pub deadline: u64,
}

impl Authority {
    /// The authority that a successful renewal sent at `sent` (nanoseconds) gives.
    pub fn renewed(_sent: u64, _ttl: Duration, _margin: Duration) -> Self {
        todo!()
    }

    /// Says whether forwarding is allowed at `now`.
    pub fn holds(&self, _now: u64) -> bool {
        todo!()
    }
}

/// Re-exported so that callers name revisions with the record.
pub type RecordRevision = Revision;
