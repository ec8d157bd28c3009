//! One timer per session in a heap; a deadline that moves later costs nothing until the old one is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use jump_session::gateway::Nanos;

/// Deadlines of local indices.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Nanos, u32)>>,
}

/// The deadline for which a session's entry is in the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Armed(Nanos);

impl Armed {
    /// No entry.
    pub(crate) const NEVER: Self = Self(Nanos::MAX);
}

impl Timers {
    /// Makes sure that `local` is looked at no later than `due`.
    pub(crate) fn arm(&mut self, armed: &mut Armed, due: Nanos, local: u32) {
        if due < armed.0 {
            armed.0 = due;
            self.heap.push(Reverse((due, local)));
        }
    }

    /// The next entry that is due at `now`: a local index and the deadline for which it was armed.
    pub(crate) fn pop(&mut self, now: Nanos) -> Option<(u32, Armed)> {
        match self.heap.peek() {
            Some(Reverse((due, _))) if *due <= now => {
                self.heap.pop().map(|Reverse((due, local))| (local, Armed(due)))
            }
            Some(_) | None => None,
        }
    }

    /// When the next entry is due.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse((due, _))| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_was_armed_anew_is_told_from_the_current_one() {
        let mut timers = Timers::default();
        let mut armed = Armed::NEVER;
        timers.arm(&mut armed, 100, 7);
        timers.arm(&mut armed, 200, 7);
        timers.arm(&mut armed, 50, 7);
        assert_eq!(timers.next(), Some(50));
        assert_eq!(timers.pop(49), None);
        let (local, due) = timers.pop(60).unwrap();
        assert!(local == 7 && due == armed);
        armed = Armed::NEVER;
        timers.arm(&mut armed, 300, 7);
        assert_ne!(timers.pop(100).unwrap().1, armed, "a superseded entry looks current");
    }
}
