//! How much attach work waits here, how fast it goes, and which first messages are part of it already.

use std::net::SocketAddr;
use std::time::Duration;

use jump_session::gateway::Nanos;

use super::HANDSHAKE_WAIT;

/// First messages that wait for one handshake thread before others are asked to come later.
const QUEUED_MAX: usize = 128;
/// The span over which the pace is measured, in nanoseconds.
const SPAN: Nanos = 100_000_000;
/// Work that waits, at least, while the pace is measured: without work there is no pace.
const MEASURED_ABOVE: usize = 16;
/// A pause between two pieces of work that is no work: a burst is over and the next has not come. Four times the longest at
/// the lowest pace.
const PAUSE: Nanos = 20_000_000;
/// Bounds of the pace, in attaches per second.
const PACE_MIN: u64 = 200;
const PACE_FIRST: u64 = 1000;
const PACE_MAX: u64 = 100_000;
/// Bounds of what a client is asked to wait.
const WAIT_MIN: Duration = Duration::from_millis(30);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The attach work that waits: first messages for the handshake threads, claims for control. Beyond a bound, who comes is
/// given a time at which its turn is due, one after another at the pace of the work.
#[derive(Debug)]
pub(super) struct Backlog {
    queued: usize,
    queued_max: usize,
    pace: u64,
    span_began: Nanos,
    /// When work was last seen to be done.
    last: Nanos,
    done: u64,
    /// The time that was given last.
    given: Nanos,
}

impl Backlog {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            queued: 0,
            queued_max: QUEUED_MAX * threads.max(1),
            pace: PACE_FIRST,
            span_began: 0,
            last: 0,
            done: 0,
            given: 0,
        }
    }

    /// A first message waits for a handshake thread.
    pub(super) fn queue(&mut self) {
        self.queued += 1;
    }

    /// A handshake thread is done with one.
    pub(super) fn unqueue(&mut self, now: Nanos) {
        let waiting = self.queued;
        self.queued = waiting.saturating_sub(1);
        if waiting > MEASURED_ABOVE {
            self.measure(now);
        }
    }

    /// Control has decided a claim; `claims` wait.
    pub(super) fn decided(&mut self, now: Nanos, claims: usize) {
        // Where handshakes wait as well, they are what is slow.
        if claims > MEASURED_ABOVE && self.queued <= MEASURED_ABOVE {
            self.measure(now);
        }
    }

    fn measure(&mut self, now: Nanos) {
        let pause = now.saturating_sub(self.last);
        self.last = now;
        if pause > PAUSE {
            self.span_began = self.span_began.saturating_add(pause);
        }
        let elapsed = now.saturating_sub(self.span_began);
        self.done += 1;
        if elapsed >= SPAN {
            let seen = self.done.saturating_mul(1_000_000_000) / elapsed;
            self.pace = ((self.pace + seen) / 2).clamp(PACE_MIN, PACE_MAX);
            (self.span_began, self.done) = (now, 0);
        }
    }

    /// How long the sender of another first message should wait; `None` when there is room for it. `claims` of at most
    /// `claims_max` wait for control.
    pub(super) fn wait(&mut self, now: Nanos, claims: usize, claims_max: usize) -> Option<Duration> {
        if self.queued < self.queued_max && claims * 2 < claims_max {
            return None;
        }
        let latest = now.saturating_add(nanos(WAIT_MAX));
        self.given = self.given.max(now.saturating_add(nanos(WAIT_MIN))) + 1_000_000_000 / self.pace;
        if self.given > latest {
            // More than can be told to wait: they share the second half of the time, so that nobody's turn is everybody's.
            self.given = now.saturating_add(nanos(WAIT_MAX) / 2);
        }
        Some(Duration::from_nanos(self.given - now))
    }
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One first message that is being worked on.
#[derive(Debug, Clone, Copy)]
struct Repeat {
    identity: [u8; 16],
    source: SocketAddr,
    local: u32,
    until: Nanos,
}

/// First messages of the last while by what identifies them, in a table of fixed size: newer ones take the place of older
/// ones, and what is forgotten is worked on anew.
#[derive(Debug)]
pub(super) struct Repeats {
    cells: Vec<Option<Repeat>>,
}

impl Repeats {
    const CELLS: usize = 4096;

    pub(super) fn new() -> Self {
        Self { cells: vec![None; Self::CELLS] }
    }

    /// The local index that was set aside for the same message from the same source.
    pub(super) fn find(&self, identity: &[u8; 16], source: SocketAddr, now: Nanos) -> Option<u32> {
        let cell = self.cells[Self::place(identity)]?;
        let same = cell.identity == *identity && cell.source == source && now < cell.until;
        same.then_some(cell.local)
    }

    /// Notes the local index that is set aside for a message.
    pub(super) fn note(&mut self, identity: [u8; 16], source: SocketAddr, local: u32, now: Nanos) {
        let until = now.saturating_add(HANDSHAKE_WAIT);
        self.cells[Self::place(&identity)] = Some(Repeat { identity, source, local, until });
    }

    fn place(identity: &[u8; 16]) -> usize {
        usize::from(u16::from_be_bytes([identity[0], identity[1]])) % Self::CELLS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn full(threads: usize) -> Backlog {
        let mut backlog = Backlog::new(threads);
        (0..QUEUED_MAX * threads).for_each(|_| backlog.queue());
        backlog
    }

    #[test]
    fn nobody_waits_while_there_is_room() {
        let mut backlog = full(1);
        backlog.unqueue(0);
        assert_eq!(backlog.wait(0, 511, 1024), None);
        assert!(backlog.wait(0, 512, 1024).is_some(), "claims are work as well");
        backlog.queue();
        assert!(backlog.wait(0, 0, 1024).is_some());
    }

    #[test]
    fn turns_come_one_after_another_at_the_pace_of_the_work_and_none_too_late() {
        let mut backlog = full(2);
        // 500 a second.
        for step in 0..1000 {
            backlog.queue();
            backlog.unqueue(step * 2 * MS);
        }
        let now = 2000 * MS;
        let first = backlog.wait(now, 0, 1024).unwrap();
        let hundredth = (0..99).map(|_| backlog.wait(now, 0, 1024).unwrap()).last().unwrap();
        let spread = hundredth - first;
        assert!(spread >= Duration::from_millis(190) && spread <= Duration::from_millis(210), "{spread:?}");
        let many: Vec<_> = (0..10_000).map(|_| backlog.wait(now, 0, 1024).unwrap()).collect();
        assert!(many.iter().all(|wait| *wait <= WAIT_MAX));
        let most = many.chunk_by(|a, b| a == b).map(<[Duration]>::len).max();
        assert_eq!(most, Some(1), "of too many, some were given one turn");
        // Time that has passed is not given again.
        assert!(backlog.wait(now + 10_000 * MS, 0, 1024).unwrap() < Duration::from_millis(40));
    }

    #[test]
    fn idle_time_is_no_slow_pace() {
        let mut backlog = Backlog::new(1);
        for step in 0..100 {
            backlog.queue();
            backlog.unqueue(step * 1000 * MS);
        }
        assert_eq!(backlog.pace, PACE_FIRST);
    }

    #[test]
    fn pauses_between_bursts_are_no_slow_pace() {
        let mut backlog = Backlog::new(1);
        for burst in 0..20 {
            (0..100).for_each(|_| backlog.queue());
            // 4,000 a second for 25 ms, twice a second.
            (0..100).for_each(|step| backlog.unqueue(burst * 500 * MS + step * MS / 4));
        }
        assert!(backlog.pace > 3 * PACE_FIRST, "{} a second", backlog.pace);
    }

    #[test]
    fn the_same_message_from_the_same_source_is_known_for_a_while_and_from_another_it_is_not() {
        let mut repeats = Repeats::new();
        let source = |port| SocketAddr::from(([192, 0, 2, 1], port));
        repeats.note([1; 16], source(1), 7, 0);
        assert_eq!(repeats.find(&[1; 16], source(1), HANDSHAKE_WAIT - 1), Some(7));
        assert_eq!(repeats.find(&[1; 16], source(2), 0), None);
        assert_eq!(repeats.find(&[1; 16], source(1), HANDSHAKE_WAIT), None);
        let mut other = [1; 16];
        other[15] = 2;
        assert_eq!(repeats.find(&other, source(1), 0), None);
        repeats.note(other, source(2), 8, 0);
        assert_eq!(repeats.find(&[1; 16], source(1), 0), None, "the newer one has its place");
    }
}
