//! A bound on events that strangers can cause.

use std::time::{Duration, Instant};

/// At most so many events per interval; the others are counted, and the next one that is let through tells how many.
#[derive(Debug)]
pub struct RateLimit {
    events_max: u32,
    interval: Duration,
    since: Option<Instant>,
    admitted: u32,
    left_out: u64,
}

impl RateLimit {
    /// At most `events_max` in each `interval`.
    pub const fn new(events_max: u32, interval: Duration) -> Self {
        Self { events_max, interval, since: None, admitted: 0, left_out: 0 }
    }

    /// Says whether one more event may be emitted at `now`, and how many were left out before it.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= self.interval) {
            self.since = Some(now);
            self.admitted = 0;
        }
        if self.admitted >= self.events_max {
            self.left_out += 1;
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_in_one_interval_is_told_in_the_next() {
        let start = Instant::now();
        let mut limit = RateLimit::new(2, Duration::from_secs(1));
        let admitted: Vec<_> = (0..5).map(|_| limit.admit(start)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None, None]);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(3));
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(0));
    }
}
