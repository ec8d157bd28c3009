//! Token buckets in fixed tables: work that strangers can cause is bounded per source prefix and in all.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use jump_session::gateway::Nanos;

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Events per second.
    pub per_second: u32,
    /// Events at once.
    pub burst: u32,
}

impl Rate {
    fn cost(self) -> Nanos {
        1_000_000_000 / u64::from(self.per_second.max(1))
    }
}

/// One bucket: the time at which it is empty again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket(Nanos);

impl Bucket {
    /// Takes one token, if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Nanos) -> bool {
        let empty_at = self.0.max(now).saturating_add(rate.cost());
        let allowed =
            empty_at <= now.saturating_add(rate.cost().saturating_mul(u64::from(rate.burst.max(1))));
        if allowed {
            self.0 = empty_at;
        }
        allowed
    }
}

/// Buckets by source prefix (IPv4 /32, IPv6 /64) in a fixed table under a secret hash; prefixes that collide share.
#[derive(Debug)]
pub(crate) struct SourceLimiter {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    rate: Rate,
}

impl SourceLimiter {
    const BUCKETS: usize = 4096;

    pub(crate) fn new(rate: Rate) -> Self {
        Self { buckets: vec![Bucket::default(); Self::BUCKETS].into(), hasher: RandomState::new(), rate }
    }

    /// Takes one token of the source's prefix, if there is one.
    pub(crate) fn take(&mut self, source: SocketAddr, now: Nanos) -> bool {
        let prefix = match source.ip() {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        let bucket = self.hasher.hash_one((source.is_ipv4(), prefix)) as usize % Self::BUCKETS;
        self.buckets[bucket].take(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 10, burst: 5 };
        let mut bucket = Bucket::default();
        let now = 1_000_000_000_000;
        assert_eq!((0..100).filter(|_| bucket.take(rate, now)).count(), 5);
        assert_eq!((0..100).filter(|_| bucket.take(rate, now + 1_000_000_000)).count(), 5);
        assert_eq!((0..100).filter(|_| bucket.take(rate, now + 1_200_000_000)).count(), 2);
    }

    #[test]
    fn one_prefix_cannot_use_up_anothers_share() {
        let mut limiter = SourceLimiter::new(Rate { per_second: 1, burst: 1 });
        let source = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
        while limiter.take(source(0), 0) {}
        // Prefixes may share a bucket, but not all of them with the first.
        assert!((1..=255).filter(|n| limiter.take(source(*n), 0)).count() > 200);
    }
}
