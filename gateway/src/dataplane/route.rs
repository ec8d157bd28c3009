//! Which session has which inner address, and who owns it: the gateway's copy of the bindings.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;
use jump_crypto::ids::{Epoch, SessionId};

/// One run of a node, as the control side of the gateway numbers them. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeRef(pub u32);

impl NodeRef {
    /// This very run.
    pub const OWN: Self = Self(0);
}

/// Who carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A session of this data plane: its local index.
    Local(u32),
    /// Another gateway.
    Node(NodeRef),
    /// Nobody at this moment.
    Nobody,
}

/// The way to one inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) session: SessionId,
    pub(crate) epoch: Epoch,
    pub(crate) target: Target,
    /// The snapshot in which it was last seen.
    pub(crate) snapshot: u32,
    /// The other gateways that carried the session before, the last one first; [`NodeRef::OWN`] stands for nobody.
    pub(crate) before: [NodeRef; 2],
}

impl Route {
    /// Those that carried the session before it goes to `target`.
    fn before(&self, target: Target) -> [NodeRef; 2] {
        match self.target {
            Target::Node(node) if target != self.target && node != self.before[0] => [node, self.before[0]],
            Target::Node(_) | Target::Local(_) | Target::Nobody => self.before,
        }
    }
}

/// All routes.
#[derive(Debug)]
pub(crate) struct Routes {
    by_address: HashMap<u128, Route, BuildHasherDefault<AddressHasher>>,
    pools: Vec<IpNet>,
    snapshot: u32,
    /// True once a whole snapshot was seen: an unknown address is nobody's.
    pub(crate) complete: bool,
}

impl Routes {
    pub(crate) fn new(pools: Vec<IpNet>) -> Self {
        Self { by_address: HashMap::default(), pools, snapshot: 0, complete: false }
    }

    #[inline]
    pub(crate) fn get(&self, address: IpAddr) -> Option<&Route> {
        self.by_address.get(&key(address))
    }

    pub(crate) fn get_mut(&mut self, address: IpAddr) -> Option<&mut Route> {
        self.by_address.get_mut(&key(address))
    }

    /// The epoch of the way to `address`, if it is this session's.
    pub(crate) fn epoch_of(&self, address: IpAddr, session: SessionId) -> Option<Epoch> {
        self.get(address).filter(|route| route.session == session).map(|route| route.epoch)
    }

    /// Sets the way to `address`; it belongs to the current snapshot.
    pub(crate) fn set(&mut self, address: IpAddr, session: SessionId, epoch: Epoch, target: Target) {
        let snapshot = self.snapshot;
        let known = self.get(address).filter(|route| route.session == session);
        let before = known.map_or([NodeRef::OWN; 2], |route| route.before(target));
        self.by_address.insert(key(address), Route { session, epoch, target, snapshot, before });
    }

    /// Notes that `node` carried the session of `address` before its present owner: news that the owner's own has overtaken.
    pub(crate) fn note_before(&mut self, address: IpAddr, session: SessionId, node: NodeRef) {
        if let Some(route) = self.by_address.get_mut(&key(address))
            && route.session == session
            && route.before[0] != node
        {
            route.before = [node, route.before[0]];
        }
    }

    /// Marks the way to `address` as part of the current snapshot.
    pub(crate) fn touch(&mut self, address: IpAddr) {
        if let Some(route) = self.by_address.get_mut(&key(address)) {
            route.snapshot = self.snapshot;
        }
    }

    /// Forgets `address`, if it is still this session's.
    pub(crate) fn remove(&mut self, address: IpAddr, session: SessionId) {
        let key = key(address);
        if self.by_address.get(&key).is_some_and(|route| route.session == session) {
            self.by_address.remove(&key);
        }
    }

    /// A snapshot begins.
    pub(crate) fn begin_snapshot(&mut self) {
        self.snapshot = self.snapshot.wrapping_add(1);
    }

    /// The snapshot is whole: forgets every way of others that it does not contain.
    pub(crate) fn complete_snapshot(&mut self) {
        let snapshot = self.snapshot;
        self.by_address
            .retain(|_, route| route.snapshot == snapshot || matches!(route.target, Target::Local(_)));
        self.complete = true;
    }

    /// True when the way to `address` was seen in the current snapshot or since.
    pub(crate) fn is_current(&self, address: IpAddr) -> bool {
        self.get(address).is_some_and(|route| route.snapshot == self.snapshot)
    }

    /// True when `address` lies in one of the inner pools.
    pub(crate) fn in_pools(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(&address))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }
}

#[inline]
fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Mixes an address. Its keys come from control alone, so nobody can choose them to collide.
#[derive(Debug, Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    #[inline]
    fn write_u128(&mut self, value: u128) {
        let folded = (value as u64) ^ ((value >> 64) as u64).rotate_left(32);
        self.0 =
            folded.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: u8) -> SessionId {
        SessionId::from_bytes([n; 16])
    }

    #[test]
    fn a_whole_snapshot_forgets_what_it_does_not_contain_except_own_sessions() {
        let mut routes = Routes::new(vec![]);
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        routes.set(address(1), session(1), Epoch(1), Target::Node(NodeRef(1)));
        routes.set(address(2), session(2), Epoch(1), Target::Node(NodeRef(1)));
        routes.set(address(3), session(3), Epoch(1), Target::Local(7));
        routes.begin_snapshot();
        routes.touch(address(2));
        routes.complete_snapshot();
        assert!(routes.get(address(1)).is_none());
        assert!(routes.get(address(2)).is_some() && routes.get(address(3)).is_some());
    }

    #[test]
    fn a_way_remembers_the_two_gateways_that_had_it_before() {
        let mut routes = Routes::new(vec![]);
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut go = |owner: u8, target| {
            routes.set(address, session(owner), Epoch(1), target);
            routes.get(address).unwrap().before.map(|node| node.0)
        };
        let node = |n| Target::Node(NodeRef(n));
        assert_eq!(go(1, node(5)), [0, 0]);
        assert_eq!(go(1, node(5)), [0, 0], "the same news again");
        assert_eq!(go(1, Target::Nobody), [5, 0]);
        assert_eq!(go(1, node(6)), [5, 0]);
        assert_eq!(go(1, Target::Local(1)), [6, 5]);
        assert_eq!(go(1, Target::Local(2)), [6, 5]);
        assert_eq!(go(1, node(7)), [6, 5]);
        assert_eq!(go(1, Target::Nobody), [7, 6]);
        assert_eq!(go(2, node(7)), [0, 0], "another session's");
    }

    #[test]
    fn an_address_that_went_to_another_session_is_not_forgotten_with_the_first() {
        let mut routes = Routes::new(vec![]);
        let address = IpAddr::from([10, 0, 0, 1]);
        routes.set(address, session(2), Epoch(1), Target::Nobody);
        routes.remove(address, session(1));
        assert!(routes.get(address).is_some());
    }
}
