//! Where a session should go: gateways in an order of its own for every device, the same for everyone who computes it.
//!
//! Rendezvous hashing (Thaler and Ravishankar 1998): each device ranks all gateways by a hash of both. So the devices of a
//! gateway that is gone spread over all others, and those of the others stay where they are.

use std::net::{IpAddr, SocketAddr};

use crate::ids::DeviceKey;

/// Sorts `gateways` by how much they are `device`'s, the most first.
pub fn rank(device: &DeviceKey, gateways: &mut [SocketAddr]) {
    gateways.sort_by_cached_key(|gateway| std::cmp::Reverse(weight(device, *gateway)));
}

/// How much `gateway` is `device`'s: larger is more. Changes with neither the other gateways nor the release.
pub fn weight(device: &DeviceKey, gateway: SocketAddr) -> u64 {
    let mut hash = Fnv::new();
    hash.add(device.as_bytes());
    match gateway.ip().to_canonical() {
        IpAddr::V4(ip) => hash.add(&ip.octets()),
        IpAddr::V6(ip) => hash.add(&ip.octets()),
    }
    hash.add(&gateway.port().to_be_bytes());
    hash.finish()
}

/// FNV-1a (RFC 9923) with the finalizer of SplitMix64, without which close inputs give close hashes. Nothing secret.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn gateways(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|host| SocketAddr::from(([192, 0, 2, host], 51820))).collect()
    }

    fn device(number: u32) -> DeviceKey {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        DeviceKey::from_bytes(key)
    }

    fn ranked(number: u32, mut gateways: Vec<SocketAddr>) -> Vec<SocketAddr> {
        rank(&device(number), &mut gateways);
        gateways
    }

    #[test]
    fn the_order_does_not_depend_on_the_order_in_which_gateways_are_named() {
        let (forwards, mut backwards) = (gateways(5), gateways(5));
        backwards.reverse();
        for number in 0..100 {
            assert_eq!(ranked(number, forwards.clone()), ranked(number, backwards.clone()));
        }
    }

    #[test]
    fn devices_spread_evenly_and_those_of_a_lost_gateway_over_all_others() {
        let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
        for number in 0..6000 {
            let order = ranked(number, gateways(3));
            *first.entry(order[0]).or_insert(0) += 1;
            *second.entry((order[0], order[1])).or_insert(0) += 1;
        }
        assert!(first.len() == 3 && first.values().all(|count| (1800..2200).contains(count)), "{first:?}");
        assert!(second.len() == 6 && second.values().all(|count| (850..1150).contains(count)), "{second:?}");
    }

    #[test]
    fn a_gateway_that_goes_moves_only_its_own_devices() {
        for number in 0..1000 {
            let before = ranked(number, gateways(4));
            let mut left = before.clone();
            left.retain(|gateway| *gateway != gateways(4)[2]);
            let without = gateways(4).into_iter().filter(|gateway| *gateway != gateways(4)[2]).collect();
            assert_eq!(ranked(number, without), left);
        }
    }
}
