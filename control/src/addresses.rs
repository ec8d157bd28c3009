//! Inner addresses: which one a new session gets.
//!
//! The choice is a hint; the birth transaction makes it exclusive by creating the address's key. A session that ends
//! leaves its addresses in quarantine, in the transaction that ends it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jump_proto::store_v1::AddressRecord;
use jump_session::ids::{Revision, SessionId};
use jump_session::ownership::UnixMillis;
use prost::Message;

use crate::layout;
use crate::store::{Compare, KeyValue, Op};

/// How many candidates of a pool are looked up at a time.
pub const CANDIDATES: usize = 8;

/// Longest scan for an address that the cache does not know as used.
const SCAN_MAX: u64 = 1 << 16;

/// The pools that sessions get their addresses from: one address of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools(Vec<IpNet>);

impl Pools {
    /// Takes the pools as configured and validated: at most one per family.
    pub fn new(pools: Vec<IpNet>) -> Self {
        Self(pools.into_iter().map(|pool| pool.trunc()).collect())
    }

    /// The pools.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.0.iter().copied()
    }
}

/// How many addresses of a pool sessions can get: not the network's own, the first host, or the IPv4 broadcast.
pub fn usable(pool: IpNet) -> u64 {
    let host_bits = u32::from(pool.max_prefix_len() - pool.prefix_len());
    let size = if host_bits >= 48 { 1 << 48 } else { 1u64 << host_bits };
    let reserved = if pool.addr().is_ipv4() { 3 } else { 2 };
    size.saturating_sub(reserved)
}

/// The `index`-th usable address.
fn nth(pool: IpNet, index: u64) -> IpAddr {
    match pool.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(index + 2).unwrap_or(u32::MAX);
            IpAddr::V4(Ipv4Addr::from(u32::from(base).wrapping_add(offset)))
        }
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base).wrapping_add(u128::from(index) + 2))),
    }
}

/// Up to [`CANDIDATES`] addresses that `in_use` does not know, starting at a place that differs by session, after
/// skipping `skip` of them.
pub fn candidates(
    pool: IpNet,
    session: SessionId,
    skip: usize,
    in_use: impl Fn(IpAddr) -> bool,
) -> Vec<IpAddr> {
    let size = usable(pool);
    if size == 0 {
        return Vec::new();
    }
    let [a, b, c, d, e, f, g, h, ..] = session.to_bytes();
    // UUIDs fix a few bits; multiplying spreads what is left over the pool.
    let start = u64::from_be_bytes([a, b, c, d, e, f, g, h]).wrapping_mul(0x9e37_79b9_7f4a_7c15) % size;
    (0..size.min(SCAN_MAX))
        .map(|step| nth(pool, (start + step) % size))
        .filter(|address| !in_use(*address))
        .skip(skip)
        .take(CANDIDATES)
        .collect()
}

/// A free address with what the transaction must compare to take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Free {
    /// The address.
    pub address: IpAddr,
    modified: Revision,
}

impl Free {
    /// The address, if what the store says about it leaves it free at `now`.
    pub fn check(address: IpAddr, stored: Option<&KeyValue>, now: UnixMillis) -> Option<Self> {
        let Some(stored) = stored else {
            return Some(Self { address, modified: Revision(0) });
        };
        let record: AddressRecord = layout::decode(stored).ok()?;
        has_rested(&record, now).then_some(Self { address, modified: stored.mod_revision })
    }

    /// What must hold, and the write that takes the address.
    pub fn take(&self, session: SessionId) -> (Compare, Op) {
        let key = layout::address(self.address);
        let record = AddressRecord { session_id: session.to_bytes().to_vec(), quarantine_until_ms: 0 };
        (Compare::Modified(key.clone(), self.modified), Op::put(key, record.encode_to_vec()))
    }
}

/// The write that gives an address back, to rest until `until`.
pub fn quarantine(address: IpAddr, session: SessionId, until: UnixMillis) -> Op {
    let record = AddressRecord { session_id: session.to_bytes().to_vec(), quarantine_until_ms: until.max(1) };
    Op::put(layout::address(address), record.encode_to_vec())
}

/// Says whether the address was given back and its quarantine is over at `now`.
pub fn has_rested(record: &AddressRecord, now: UnixMillis) -> bool {
    record.quarantine_until_ms != 0 && record.quarantine_until_ms <= now
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_small_pool_is_handed_out_to_its_last_address_and_no_further() {
        let pool: IpNet = "10.0.0.0/28".parse().unwrap();
        let mut used = BTreeSet::new();
        for i in 0..usable(pool) {
            let session = SessionId::from_bytes([i as u8 * 17; 16]);
            let free = candidates(pool, session, 0, |address| used.contains(&address));
            assert!(used.insert(*free.first().expect("one is left")));
        }
        assert_eq!(used.len(), 13);
        assert!(candidates(pool, SessionId::from_bytes([0; 16]), 0, |a| used.contains(&a)).is_empty());
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.15"] {
            assert!(!used.contains(&reserved.parse::<IpAddr>().unwrap()), "{reserved} was handed out");
        }
        assert!(used.iter().all(|address| pool.contains(address)));
    }

    #[test]
    fn a_large_pool_gives_addresses_inside_it() {
        for pool in ["fd00:7::/64", "10.0.0.0/8", "fd00::/16"] {
            let pool: IpNet = pool.parse().unwrap();
            for seed in 0..=255 {
                let free = candidates(pool, SessionId::from_bytes([seed; 16]), 0, |_| false);
                assert!(free.len() == CANDIDATES && free.iter().all(|address| pool.contains(address)));
            }
        }
    }

    #[test]
    fn an_address_in_use_or_resting_is_not_free() {
        let address: IpAddr = "10.0.0.9".parse().unwrap();
        let stored = |until| KeyValue {
            key: layout::address(address),
            value: AddressRecord { session_id: vec![1; 16], quarantine_until_ms: until }.encode_to_vec(),
            create_revision: Revision(1),
            mod_revision: Revision(2),
            lease: None,
        };
        assert!(Free::check(address, None, 5).is_some());
        assert_eq!(Free::check(address, Some(&stored(0)), 5), None);
        assert_eq!(Free::check(address, Some(&stored(6)), 5), None);
        assert!(Free::check(address, Some(&stored(5)), 5).is_some());
    }
}
