//! The states of a session as its client sees them, and the total table of their transitions.

use core::fmt;

/// Where the client's session stands.
///
/// ```text
///            Accepted              Unanswered           Unanswered
///   BIRTH ─────────────▶ ATTACHED ───────────▶ VOLATILE ───────────▶ DEGRADED
///                         ▲  ▲  │ ◀─────────── │   ▲ ◀───────────────── │
///                Returned │  │  │    Answered  │   │      Answered      │
///                         │  │  │ Lost, Move   │ Lost, Move             │ Lost, Move
///                         │  │  ▼              ▼                        │
///                         │  │ REATTACHING ◀───┴────────────────────────┘
///                         └──┼──┘  │  ▲
///                   Accepted │     │  │ Failed
///                            │     ▼  │ Proven
///                           RECOVERING┘              Ended, from anywhere: TERMINATED (final)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// No gateway has accepted the session yet.
    Birth,
    /// A gateway owns the session and its path answers.
    Attached,
    /// The path left a probe unanswered; it may be a hiccup.
    Volatile,
    /// The path left several probes unanswered; it still carries what it can.
    Degraded,
    /// The client looks for a gateway that proves itself. A path that was left, not lost, still forwards.
    Reattaching,
    /// A gateway has proved itself and was asked to take the session over; its answer is outstanding.
    Recovering,
    /// The session has ended for good.
    Terminated,
}

/// What moves a session between states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// A gateway finished the handshake and proved that control vouches for it.
    Proven,
    /// The attach was accepted, and its grant verified.
    Accepted,
    /// The attempt ended without acceptance; another follows.
    Failed,
    /// A probe was left unanswered.
    Unanswered,
    /// The path answered for a while.
    Answered,
    /// The path or its gateway is lost.
    Lost,
    /// A path that works is to be left.
    Move,
    /// The path that was given up answered before any other gateway did.
    Returned,
    /// The session ends.
    Ended,
}

/// The trigger means nothing in the state; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{trigger:?} means nothing in {state}")]
pub struct IllegalTransition {
    /// The state.
    pub state: State,
    /// The trigger.
    pub trigger: Trigger,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Birth,
        Self::Attached,
        Self::Volatile,
        Self::Degraded,
        Self::Reattaching,
        Self::Recovering,
        Self::Terminated,
    ];

    /// The stable text, UPPER_SNAKE_CASE.
    pub const fn code(self) -> &'static str {
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

    /// The state after `trigger`: the whole table.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the trigger means nothing here.
    pub const fn after(self, trigger: Trigger) -> Result<Self, IllegalTransition> {
        use State::{Attached, Birth, Degraded, Reattaching, Recovering, Terminated, Volatile};
        use Trigger as T;
        let next = match (self, trigger) {
            (Birth, T::Proven | T::Failed) => Birth,
            (Birth, T::Accepted) => Attached,

            (Attached, T::Unanswered) => Volatile,
            (Attached, T::Answered) => Attached,
            (Volatile, T::Unanswered) => Degraded,
            (Volatile, T::Answered) => Attached,
            (Degraded, T::Unanswered) => Degraded,
            (Degraded, T::Answered) => Volatile,
            (Attached | Volatile | Degraded, T::Lost | T::Move) => Reattaching,

            (Reattaching, T::Proven) => Recovering,
            // The answer to an earlier confirmation that was already given up.
            (Reattaching, T::Accepted) => Attached,
            (Reattaching, T::Returned) => Attached,
            (Reattaching, T::Failed | T::Unanswered | T::Answered | T::Lost | T::Move) => Reattaching,

            (Recovering, T::Accepted) => Attached,
            (Recovering, T::Failed) => Reattaching,
            (Recovering, T::Proven | T::Unanswered | T::Answered | T::Lost | T::Move) => Recovering,

            (Birth | Attached | Volatile | Degraded | Reattaching | Recovering, T::Ended) => Terminated,

            (Birth, T::Unanswered | T::Answered | T::Lost | T::Move | T::Returned)
            | (Attached | Volatile | Degraded, T::Proven | T::Accepted | T::Failed | T::Returned)
            | (Recovering, T::Returned)
            | (
                Terminated,
                T::Proven
                | T::Accepted
                | T::Failed
                | T::Unanswered
                | T::Answered
                | T::Lost
                | T::Move
                | T::Returned
                | T::Ended,
            ) => return Err(IllegalTransition { state: self, trigger }),
        };
        Ok(next)
    }
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Self; 9] = [
        Self::Proven,
        Self::Accepted,
        Self::Failed,
        Self::Unanswered,
        Self::Answered,
        Self::Lost,
        Self::Move,
        Self::Returned,
        Self::Ended,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows are states, columns triggers in the order of [`Trigger::ALL`]; `-` is a refusal.
    const TABLE: &str = "\
BIRTH: BIRTH ATTACHED BIRTH - - - - - TERMINATED
ATTACHED: - - - VOLATILE ATTACHED REATTACHING REATTACHING - TERMINATED
VOLATILE: - - - DEGRADED ATTACHED REATTACHING REATTACHING - TERMINATED
DEGRADED: - - - DEGRADED VOLATILE REATTACHING REATTACHING - TERMINATED
REATTACHING: RECOVERING ATTACHED REATTACHING REATTACHING REATTACHING REATTACHING REATTACHING ATTACHED TERMINATED
RECOVERING: RECOVERING ATTACHED REATTACHING RECOVERING RECOVERING RECOVERING RECOVERING - TERMINATED
TERMINATED: - - - - - - - - -
";

    #[test]
    fn every_cell_of_the_transition_table_is_as_documented() {
        let mut table = String::new();
        for state in State::ALL {
            table.push_str(state.code());
            table.push(':');
            for trigger in Trigger::ALL {
                table.push(' ');
                table.push_str(state.after(trigger).map_or("-", State::code));
            }
            table.push('\n');
        }
        assert_eq!(table, TABLE);
    }

    #[test]
    fn nothing_leaves_the_final_state() {
        for trigger in Trigger::ALL {
            assert_eq!(
                State::Terminated.after(trigger),
                Err(IllegalTransition { state: State::Terminated, trigger })
            );
        }
    }
}
