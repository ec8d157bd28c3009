//! The states of a session on a gateway, and the total table of their transitions.

use crate::reason::Reason;

/// Where a session stands on one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A new session's claim waits for control.
    Birth,
    /// The client is here and heard.
    Attached,
    /// The client has not been heard for a while.
    Volatile,
    /// The client has been silent for long and is probed.
    Degraded,
    /// The client was asked to move; it is served until another owner is accepted.
    Reattaching,
    /// Nobody forwards here: a claim waits for control, or this old owner has stopped for its successor.
    Recovering,
    /// Over, here and in the store. Final.
    Terminated,
}

/// What happens to a session on a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Control accepted the claim.
    Accepted,
    /// Control rejected the claim.
    Rejected(Reason),
    /// An authenticated record came.
    Heard,
    /// Nothing came for the first bound of silence.
    Quiet,
    /// Nothing came for the second bound.
    Silent,
    /// The client was asked to go elsewhere.
    MoveAsked(Reason),
    /// Another gateway owns the session, or is about to.
    Fenced,
    /// The session has ended for good.
    Ended(Reason),
}

/// The answer of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Go there, for this reason.
    To(State, Reason),
    /// Nothing changes.
    Stay,
}

/// The event cannot happen in this state; nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("event is impossible in this state")]
pub struct Illegal;

impl State {
    /// Every state, in their order.
    pub const ALL: [Self; 7] = [
        Self::Birth,
        Self::Attached,
        Self::Volatile,
        Self::Degraded,
        Self::Reattaching,
        Self::Recovering,
        Self::Terminated,
    ];

    /// True while the gateway forwards for the session (authority permitting).
    pub const fn forwards(self) -> bool {
        match self {
            Self::Attached | Self::Volatile | Self::Degraded | Self::Reattaching => true,
            Self::Birth | Self::Recovering | Self::Terminated => false,
        }
    }

    /// The name in logs and audit events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Birth => "BIRTH",
            Self::Attached => "ATTACHED",
            Self::Volatile => "VOLATILE",
            Self::Degraded => "DEGRADED",
            Self::Reattaching => "REATTACHING",
            Self::Recovering => "RECOVERING",
            Self::Terminated => "TERMINATED",
        }
    }
}

/// The table: every state and event has an answer.
///
/// # Errors
/// [`Illegal`] when the event cannot happen in the state.
pub const fn transition(state: State, event: Event) -> Result<Next, Illegal> {
    use State::{Attached, Birth, Degraded, Reattaching, Recovering, Terminated, Volatile};
    Ok(match (state, event) {
        (Birth | Recovering, Event::Accepted) => Next::To(Attached, Reason::Accepted),
        (Birth | Recovering, Event::Rejected(reason)) => Next::To(Terminated, reason),
        (Birth | Recovering | Attached | Reattaching, Event::Heard) => Next::Stay,
        (Volatile, Event::Heard) => Next::To(Attached, Reason::PathRecovered),
        (Degraded, Event::Heard) => Next::To(Volatile, Reason::PathRecovered),
        (Attached, Event::Quiet) => Next::To(Volatile, Reason::PathDegraded),
        (Volatile | Degraded | Reattaching, Event::Quiet) => Next::Stay,
        (Attached | Volatile, Event::Silent) => Next::To(Degraded, Reason::PathDegraded),
        (Degraded | Reattaching, Event::Silent) => Next::Stay,
        (Attached | Volatile | Degraded, Event::MoveAsked(reason)) => Next::To(Reattaching, reason),
        (Reattaching, Event::MoveAsked(_)) => Next::Stay,
        (Attached | Volatile | Degraded | Reattaching, Event::Fenced) => Next::To(Recovering, Reason::Fenced),
        (Recovering, Event::Fenced) => Next::Stay,
        (Birth | Attached | Volatile | Degraded | Reattaching | Recovering, Event::Ended(reason)) => {
            Next::To(Terminated, reason)
        }
        (Attached | Volatile | Degraded | Reattaching, Event::Accepted | Event::Rejected(_))
        | (Birth | Recovering, Event::Quiet | Event::Silent | Event::MoveAsked(_))
        | (Birth, Event::Fenced)
        | (
            Terminated,
            Event::Accepted
            | Event::Rejected(_)
            | Event::Heard
            | Event::Quiet
            | Event::Silent
            | Event::MoveAsked(_)
            | Event::Fenced
            | Event::Ended(_),
        ) => return Err(Illegal),
    })
}
