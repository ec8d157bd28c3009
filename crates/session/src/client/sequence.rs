//! Attach sequence numbers, made durable before they are used.
//!
//! The file is written ahead in blocks: it names a number that no attempt has exceeded, so most attempts start without
//! waiting for a disk. After a restart the client goes on above the file's number.

use crate::ids::AttachSeq;

/// How many numbers one write reserves.
const BLOCK: u64 = 64;
/// Fewer left than this, and the next block is asked for.
const LOW: u64 = 16;
/// A new session starts from 1 again when an old one's numbers went past this.
const RESTART_ABOVE: u64 = 1 << 48;

/// The client's attach sequence numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence {
    next: u64,
    durable: u64,
    asked: u64,
}

impl Sequence {
    /// Goes on above `stored`. `new_session` forgets numbers that a lying gateway may have driven up.
    pub(crate) fn new(stored: AttachSeq, new_session: bool) -> Self {
        let stored = if new_session && stored.0 > RESTART_ABOVE { 0 } else { stored.0 };
        Self { next: stored.saturating_add(1), durable: stored, asked: stored }
    }

    /// The next number, or `None` while it is not durable (or none is left).
    pub(crate) fn take(&mut self) -> Option<AttachSeq> {
        (self.next <= self.durable && self.next < u64::MAX).then(|| {
            let taken = AttachSeq(self.next);
            self.next += 1;
            taken
        })
    }

    /// Goes past a number that the store knows. False when no number is left.
    pub(crate) fn go_past(&mut self, stored: AttachSeq) -> bool {
        self.next = self.next.max(stored.0.saturating_add(1));
        self.next < u64::MAX
    }

    /// The number to make durable, when it is time to.
    pub(crate) fn wanted(&mut self) -> Option<AttachSeq> {
        if self.asked.saturating_sub(LOW) >= self.next {
            return None;
        }
        self.asked = self.next.saturating_add(BLOCK);
        Some(AttachSeq(self.asked))
    }

    /// The number that the file should name in any write made now.
    pub(crate) fn reserved(&self) -> AttachSeq {
        AttachSeq(self.asked)
    }

    /// `reserved` is on disk.
    pub(crate) fn persisted(&mut self, reserved: AttachSeq) {
        self.durable = self.durable.max(reserved.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_given_out_before_it_is_durable() {
        let mut sequence = Sequence::new(AttachSeq(7), false);
        assert_eq!(sequence.take(), None);
        let wanted = sequence.wanted().expect("a block");
        assert_eq!(sequence.take(), None);
        sequence.persisted(wanted);
        assert_eq!(sequence.take(), Some(AttachSeq(8)));
    }

    #[test]
    fn the_next_block_is_asked_for_before_the_last_one_ends() {
        let mut sequence = Sequence::new(AttachSeq(0), false);
        for expected in 1..1000 {
            if let Some(wanted) = sequence.wanted() {
                sequence.persisted(wanted);
            }
            assert_eq!(sequence.take(), Some(AttachSeq(expected)));
        }
    }

    #[test]
    fn going_past_a_far_number_waits_for_the_disk_again() {
        let mut sequence = Sequence::new(AttachSeq(0), false);
        let wanted = sequence.wanted().expect("a block");
        sequence.persisted(wanted);
        assert!(sequence.go_past(AttachSeq(1_000_000)));
        assert_eq!(sequence.take(), None);
        let wanted = sequence.wanted().expect("a block");
        sequence.persisted(wanted);
        assert_eq!(sequence.take(), Some(AttachSeq(1_000_001)));
    }

    #[test]
    fn a_poisoned_number_ends_the_session_but_not_the_device() {
        let mut sequence = Sequence::new(AttachSeq(0), false);
        assert!(!sequence.go_past(AttachSeq(u64::MAX)));
        assert_eq!(sequence.take(), None);
        let mut fresh = Sequence::new(AttachSeq(u64::MAX), true);
        let wanted = fresh.wanted().expect("a block");
        fresh.persisted(wanted);
        assert_eq!(fresh.take(), Some(AttachSeq(1)));
    }
}
