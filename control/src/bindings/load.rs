//! How many sessions each gateway carries, and which of them may be ordered to go.

use std::collections::BTreeMap;

use jump_session::ids::{NodeId, SessionId};
use jump_session::ownership::{Owner, Phase, UnixMillis};

use super::{Bindings, lock};

impl Bindings {
    /// The sessions of every node that takes sessions, as if each order to move that stands had been followed already. The
    /// cost grows with the nodes and the orders, not with the sessions.
    pub fn loads(&self, now: UnixMillis) -> BTreeMap<NodeId, u64> {
        let state = lock(&self.state);
        let nodes = state.nodes.values().filter(|node| !state.is_draining(node));
        let owned = |owner: &Owner| state.owned.get(owner).map_or(0, |sessions| sessions.len() as u64);
        let mut loads: BTreeMap<_, _> = nodes.map(|node| (node.id.clone(), owned(&node.owner()))).collect();
        for session in state.moving.iter().filter_map(|id| state.sessions.get(id)) {
            let order = session.record.moving.as_ref().filter(|order| order.stands(now));
            let Some(to) = order.and_then(|order| order.to.as_ref()) else { continue };
            let owner = session.record.owner().filter(|owner| state.is_registered(owner));
            if let Some(load) = owner.and_then(|owner| loads.get_mut(&owner.node)) {
                *load = load.saturating_sub(1);
            }
            if let Some(load) = loads.get_mut(to) {
                *load += 1;
            }
        }
        loads
    }

    /// Up to `limit` sessions that `node` owns and that no standing order moves; first those that were not ordered before, as
    /// a client that did not follow an order may not follow the next one either.
    pub fn movable(&self, node: &NodeId, limit: usize, now: UnixMillis) -> Vec<SessionId> {
        let state = lock(&self.state);
        let Some(node) = state.nodes.get(node) else { return Vec::new() };
        let owned = || {
            let sessions = state.owned.get(&node.owner()).into_iter().flatten();
            let sessions = sessions.filter_map(|id| state.sessions.get(id));
            sessions.filter(|session| matches!(session.record.phase, Phase::Owned { .. }))
        };
        let fresh = owned().filter(|session| session.record.moving.is_none());
        let again =
            owned().filter(|session| session.record.moving.as_ref().is_some_and(|order| !order.stands(now)));
        fresh.chain(again).map(|session| session.record.id).take(limit).collect()
    }
}
