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

/// Buckets by source prefix (IPv4 /32, IPv6 /64 and the site around it, /48) in a fixed table under a secret hash; prefixes
/// that collide share.
#[derive(Debug)]
pub(crate) struct SourceLimiter {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    rate: Rate,
}

impl SourceLimiter {
    const BUCKETS: usize = 4096;
    /// How many single prefixes' share a /48 has: whoever has one has 65,536 of them.
    const SITE_SHARES: u32 = 16;

    pub(crate) fn new(rate: Rate) -> Self {
        Self { buckets: vec![Bucket::default(); Self::BUCKETS].into(), hasher: RandomState::new(), rate }
    }

    /// Takes one token of the source's prefix, if there is one.
    pub(crate) fn take(&mut self, source: SocketAddr, now: Nanos) -> bool {
        let rate = self.rate;
        match source.ip() {
            IpAddr::V4(v4) => self.bucket(32, u64::from(v4.to_bits())).take(rate, now),
            IpAddr::V6(v6) => {
                let prefix = (v6.to_bits() >> 64) as u64;
                let shares = |n: u32| n.saturating_mul(Self::SITE_SHARES);
                let site = Rate { per_second: shares(rate.per_second), burst: shares(rate.burst) };
                // The site first: what it may not have does not fill the table with its prefixes.
                self.bucket(48, prefix >> 16).take(site, now) && self.bucket(64, prefix).take(rate, now)
            }
        }
    }

    /// The bucket of a prefix of `len` bits.
    fn bucket(&mut self, len: u8, prefix: u64) -> &mut Bucket {
        let at = self.hasher.hash_one((len, prefix)) as usize % Self::BUCKETS;
        &mut self.buckets[at]
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

    #[test]
    fn a_site_with_many_prefixes_gets_a_bounded_multiple_of_the_share_of_one() {
        let mut limiter = SourceLimiter::new(Rate { per_second: 1, burst: 2 });
        let source =
            |site: u16, prefix: u16| SocketAddr::from(([0x2001, 0xdb8, site, prefix, 0, 0, 0, 1], 1));
        let admitted = (0..10_000).filter(|prefix| limiter.take(source(1, *prefix), 0)).count();
        assert!((20..=32).contains(&admitted), "{admitted} first messages of one /48");
        assert!((2..=255).filter(|site| limiter.take(source(*site, 0), 0)).count() > 100, "other sites pay");
    }
}
