//! Numbers for events, so that a reader sees what is missing.
//!
//! Every event of one run of a process carries that run's next number, and every event about a session the run's next
//! number for that session. Numbers are given before an event may be dropped, so a drop is a visible gap.

use std::collections::{HashMap, VecDeque};

use jump_session::ids::SessionId;

/// Sessions numbered at once. Past it the one that was first seen longest ago is forgotten and starts again at 1.
pub(crate) const SESSIONS_MAX: usize = 131_072;

/// An event's numbers, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    /// Among all events of this run.
    pub(crate) run: u64,
    /// Among this run's events about the session.
    pub(crate) session: Option<u64>,
}

/// Gives numbers.
#[derive(Debug)]
pub(crate) struct Sequence {
    run: u64,
    sessions: HashMap<SessionId, u64>,
    /// Sessions in the order in which they were first seen.
    order: VecDeque<SessionId>,
    sessions_max: usize,
}

impl Sequence {
    pub(crate) fn new(sessions_max: usize) -> Self {
        Self { run: 0, sessions: HashMap::new(), order: VecDeque::new(), sessions_max }
    }

    pub(crate) fn next(&mut self, session: Option<SessionId>) -> Number {
        self.run += 1;
        Number { run: self.run, session: session.map(|session| self.next_of(session)) }
    }

    fn next_of(&mut self, session: SessionId) -> u64 {
        if let Some(number) = self.sessions.get_mut(&session) {
            *number += 1;
            return *number;
        }
        if self.sessions.len() >= self.sessions_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.sessions.remove(&oldest);
        }
        self.sessions.insert(session, 1);
        self.order.push_back(session);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_the_run_and_each_session_and_the_table_stays_bounded() {
        let [a, b, c] = [1u8, 2, 3].map(|n| SessionId::from_bytes([n; 16]));
        let mut sequence = Sequence::new(2);
        let mut next = |session| {
            let number = sequence.next(session);
            (number.run, number.session)
        };
        assert_eq!(next(Some(a)), (1, Some(1)));
        assert_eq!(next(Some(b)), (2, Some(1)));
        assert_eq!(next(None), (3, None));
        assert_eq!(next(Some(a)), (4, Some(2)));
        assert_eq!(next(Some(c)), (5, Some(1)), "a, first seen longest ago, is forgotten");
        assert_eq!(next(Some(b)), (6, Some(2)));
        assert_eq!(next(Some(a)), (7, Some(1)), "it starts again");
        assert_eq!((sequence.sessions.len(), sequence.order.len()), (2, 2));
    }
}
