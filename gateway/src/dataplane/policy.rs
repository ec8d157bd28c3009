//! What bounds a session by its device's policy: where it may go, and how much.

use std::net::IpAddr;

use ipnet::IpNet;
use jump_session::gateway::Nanos;

/// A device's policy as control hands it out. The default bounds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Networks that the device may reach and be reached from; `None` for all.
    pub allowed: Option<Vec<IpNet>>,
    /// Inner bytes per second in each direction; 0 for no bound.
    pub bytes_per_second: u64,
}

/// Most bytes at once, in parts of a second's: a quarter.
const BURST_PARTS: u64 = 4;
/// But never less than this: a few superpackets, so that a slow rate does not break TCP.
const BURST_BYTES_MIN: u64 = 128 * 1024;

/// A policy in force for one session.
#[derive(Debug)]
pub(super) struct Bounds {
    allowed: Option<Box<[IpNet]>>,
    rate: Option<Rates>,
}

#[derive(Debug)]
struct Rates {
    bytes_per_second: u64,
    /// From the client, to the client.
    buckets: [Bucket; 2],
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    FromClient = 0,
    ToClient = 1,
}

/// A token bucket of bytes: the time at which it is full again.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket(Nanos);

impl Bounds {
    /// What `policy` means for a session; `None` when it bounds nothing.
    pub(super) fn of(policy: Policy) -> Option<Box<Self>> {
        if policy == Policy::default() {
            return None;
        }
        let rate = (policy.bytes_per_second > 0)
            .then(|| Rates { bytes_per_second: policy.bytes_per_second, buckets: Default::default() });
        Some(Box::new(Self { allowed: policy.allowed.map(Into::into), rate }))
    }

    /// True when they are what `policy` means.
    pub(super) fn is(&self, policy: &Policy) -> bool {
        self.allowed.as_deref() == policy.allowed.as_deref()
            && self.rate.as_ref().map_or(0, |rate| rate.bytes_per_second) == policy.bytes_per_second
    }

    /// True when the device may exchange packets with `address`.
    #[inline]
    pub(super) fn reaches(&self, address: IpAddr) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|network| network.contains(&address)))
    }

    /// Takes `bytes` out of what may go this way now; false when there is not enough left.
    #[inline]
    pub(super) fn takes(&mut self, way: Way, bytes: usize, now: Nanos) -> bool {
        let Some(rate) = &mut self.rate else { return true };
        rate.buckets[way as usize].take(bytes as u64, rate.bytes_per_second, now)
    }
}

impl Bucket {
    fn take(&mut self, bytes: u64, per_second: u64, now: Nanos) -> bool {
        let nanos = |bytes: u64| bytes.saturating_mul(1_000_000_000) / per_second;
        let burst = nanos((per_second / BURST_PARTS).max(BURST_BYTES_MIN));
        let full_at = self.0.max(now).saturating_add(nanos(bytes));
        let allowed = full_at <= now.saturating_add(burst);
        if allowed {
            self.0 = full_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn carried(bounds: &mut Bounds, way: Way, packets: usize, now: Nanos) -> usize {
        (0..packets).filter(|_| bounds.takes(way, 1000, now)).count()
    }

    #[test]
    fn a_rate_gives_its_burst_and_then_itself_in_each_direction() {
        let policy = Policy { allowed: None, bytes_per_second: 1_000_000 };
        let mut bounds = Bounds::of(policy).unwrap();
        let burst = 1_000_000 / 4 / 1000;
        assert_eq!(carried(&mut bounds, Way::FromClient, 10_000, 5 * SECOND), burst);
        assert_eq!(carried(&mut bounds, Way::ToClient, 10_000, 5 * SECOND), burst);
        assert_eq!(carried(&mut bounds, Way::FromClient, 10_000, 5 * SECOND + SECOND / 10), 100);
        assert_eq!(carried(&mut bounds, Way::FromClient, 10_000, 60 * SECOND), burst, "no more than a burst");
    }

    #[test]
    fn the_slowest_rate_still_passes_a_few_superpackets_at_once_and_the_fastest_does_not_overflow() {
        let policy = |bytes_per_second| Policy { allowed: None, bytes_per_second };
        let mut slow = Bounds::of(policy(1)).unwrap();
        assert_eq!(carried(&mut slow, Way::FromClient, 1000, SECOND), BURST_BYTES_MIN as usize / 1000);
        let mut fast = Bounds::of(policy(u64::MAX)).unwrap();
        assert_eq!(carried(&mut fast, Way::FromClient, 1000, SECOND), 1000);
    }

    #[test]
    fn a_policy_that_bounds_nothing_costs_nothing_and_one_without_readable_networks_allows_none() {
        assert!(Bounds::of(Policy::default()).is_none());
        let nowhere = Bounds::of(Policy { allowed: Some(vec![]), bytes_per_second: 0 }).unwrap();
        assert!(!nowhere.reaches(IpAddr::from([10, 0, 0, 1])));
    }
}
