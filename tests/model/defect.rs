//! Deliberate mistakes. Each must be found; one that is not would mean that the check proves nothing about it.

/// One mistake in one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Gateways forward without looking at their authority.
    NoGuard,
    /// Authority counts from the receipt of the renewal's answer.
    GuardFromReceipt,
    /// Authority lasts as long as the lease (and clocks may be slow).
    NoMargin,
    /// A gateway's clock is slower than the margin allows for.
    SlowClock,
    /// The fence is acknowledged before the gateway has stopped.
    AcknowledgeBeforeStop,
    /// A late accepting answer activates whatever was given up meanwhile.
    LateAnswerActivates,
    /// A new run keeps what the lost one had.
    NewRunKeepsSessions,
    /// Control gives a live owner's session away without its acknowledgement.
    NoFence,
    /// The transaction does not compare the record's revision.
    RevisionNotCompared,
    /// The transaction does not compare that the old owner is gone.
    OldOwnerNotCompared,
    /// The transaction does not compare that the claimant is registered.
    ClaimantNotCompared,
    /// Attempts are not ordered by the client's sequence number.
    SequenceIgnored,
    /// A transaction whose answer was lost is taken for one that failed.
    LostAnswerMeansRefused,
    /// Gateways claim a session on the first message, before the client has confirmed.
    CommitOnFirstMessage,
    /// An operator's order to move a session gives it away at once.
    MoveGivesAway,
    /// The mark of a node that drains is written as a new node key: the run's own is gone while it still serves.
    DrainRenewsNodeKey,
    /// Control never believes that an owner is gone.
    DeadOwnerBelievedAlive,
}

impl Defect {
    /// All of them, with the property that each must break.
    pub(crate) const ALL: &'static [(Self, &'static str)] = &[
        (Self::NoGuard, G1),
        (Self::GuardFromReceipt, G1),
        (Self::NoMargin, G1),
        (Self::SlowClock, G1),
        (Self::AcknowledgeBeforeStop, G1),
        (Self::LateAnswerActivates, G1),
        (Self::NewRunKeepsSessions, G1),
        (Self::NoFence, G1),
        (Self::RevisionNotCompared, G2),
        (Self::OldOwnerNotCompared, G1),
        (Self::ClaimantNotCompared, OWNERS_ARE_REGISTERED),
        (Self::SequenceIgnored, G3),
        (Self::LostAnswerMeansRefused, G3),
        (Self::CommitOnFirstMessage, G6),
        (Self::MoveGivesAway, G1),
        (Self::DrainRenewsNodeKey, G1),
        (Self::DeadOwnerBelievedAlive, LIVENESS),
    ];
}

pub(crate) const G1: &str = "G1: no two gateways forward a session at one instant";
pub(crate) const G2: &str = "G2: every change of owner has its own epoch, and epochs never go back";
pub(crate) const G3: &str = "G3: an attempt is never answered in two ways, and an overtaken one never wins";
pub(crate) const G6: &str = "G6: only a gateway that the client confirmed with becomes owner";
pub(crate) const OWNERS_ARE_REGISTERED: &str = "whoever becomes owner is registered at that moment";
pub(crate) const LIVENESS: &str = "liveness: once faults stop, a fresh attempt at any live gateway succeeds";
