//! The birth of a session: its id, its addresses, its place among the device's sessions.

use jump_proto::store_v1::DeviceRecord;
use jump_session::ids::SessionId;
use jump_session::ownership::{
    self, AttachRequest, Change, Phase, RETRY_AFTER, Refusal, Transition, UnixMillis,
};
use jump_session::reason::Reason;
use prost::Message;
use std::net::IpAddr;

use super::{Arbiter, ArbiterError, Facts, blank};
use crate::addresses::{self, CANDIDATES, Free};
use crate::layout::{self, StoredSession};
use crate::store::{Compare, Op};

/// How many rounds of candidates are looked up in each pool.
const ROUNDS_MAX: usize = 8;

/// A transition with what else its transaction compares and writes.
pub(super) type Write = (Transition, Vec<Compare>, Vec<Op>);

impl Arbiter {
    /// Decides a birth and finds its addresses. The inner refusal is the client's answer.
    pub(super) async fn birth(
        &self,
        id: SessionId,
        facts: &Facts,
        request: &AttachRequest,
        now: UnixMillis,
    ) -> Result<Result<Write, Refusal>, ArbiterError> {
        // Who may not attach does not make anyone look for addresses.
        let decide = |inner: Vec<IpAddr>, name: String| {
            ownership::birth(id, inner, name, id.correlation(), &facts.view, request, &self.policy, now)
        };
        let Some((device, _)) = &facts.device else {
            return Ok(decide(Vec::new(), String::new()).map(|never| (never, Vec::new(), Vec::new())));
        };
        let placeholder = vec![IpAddr::from([0, 0, 0, 0])];
        if let Err(refusal) = decide(placeholder, String::new()) {
            return Ok(Err(refusal));
        }
        let mut device = device.clone();
        if let Err(refusal) = self.make_room(&mut device, now).await? {
            return Ok(Err(refusal));
        }
        let Some(free) = self.free_addresses(id, now).await? else {
            return Ok(Err(blank(Reason::AddressPoolExhausted, RETRY_AFTER)));
        };
        let inner = free.iter().map(|free| free.address).collect();
        let transition = match decide(inner, device.name.clone()) {
            Ok(transition) => transition,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (compares, mut ops): (Vec<_>, Vec<_>) = free.iter().map(|free| free.take(id)).unzip();
        device.sessions.push(id.to_bytes().to_vec());
        ops.push(Op::put(layout::device(&request.device), device.encode_to_vec()));
        Ok(Ok((transition, compares, ops)))
    }

    /// Strikes ended sessions from the device's list. At the limit, a session that no live gateway owns gives way.
    async fn make_room(
        &self,
        device: &mut DeviceRecord,
        now: UnixMillis,
    ) -> Result<Result<(), Refusal>, ArbiterError> {
        let ids: Vec<SessionId> = device
            .sessions
            .iter()
            .filter_map(|bytes| Some(SessionId::from_bytes(bytes.as_slice().try_into().ok()?)))
            .collect();
        let keys: Vec<String> = ids.iter().map(|id| layout::session(*id)).collect();
        let found = self.store.read(&keys).await?.values;
        let mut live: Vec<StoredSession> = Vec::new();
        for stored in found.iter().flatten() {
            let stored = StoredSession::read(stored)?;
            let over =
                matches!(stored.record.phase, Phase::Terminated { .. }) || stored.record.expires <= now;
            if !over {
                live.push(stored);
            }
        }
        let limit = usize::try_from(self.policy.sessions_per_device_max).unwrap_or(usize::MAX);
        if live.len() >= limit {
            let idle = |stored: &&StoredSession| match stored.record.owner() {
                None => true,
                Some(owner) => !self.bindings.is_registered(owner),
            };
            let Some(oldest) = live.iter().filter(idle).min_by_key(|stored| stored.record.changed) else {
                return Ok(Err(blank(Reason::SessionLimit, RETRY_AFTER)));
            };
            let oldest = oldest.record.id;
            if let Err(error) = self.supersede(oldest).await {
                return match error {
                    ArbiterError::Refused(refusal) => Ok(Err(refusal)),
                    ArbiterError::Store(_) | ArbiterError::Value(_) => Err(error),
                };
            }
            live.retain(|stored| stored.record.id != oldest);
        }
        device.sessions = live.iter().map(|stored| stored.record.id.to_bytes().to_vec()).collect();
        Ok(Ok(()))
    }

    /// Ends a session that no live gateway owns. The cache only proposed it: the store has the last word.
    async fn supersede(&self, id: SessionId) -> Result<(), ArbiterError> {
        let end = Change::Terminate { by: None, reason: Reason::Superseded };
        self.apply(id, |stored, view, now| match view.owner_registered {
            true => Err(blank(Reason::SessionLimit, RETRY_AFTER).into()),
            false => Ok(ownership::change(&stored.record, view, &end, now)?),
        })
        .await?;
        Ok(())
    }

    /// One free address of each pool; `None` when a pool has none.
    async fn free_addresses(
        &self,
        id: SessionId,
        now: UnixMillis,
    ) -> Result<Option<Vec<Free>>, ArbiterError> {
        let mut free = Vec::new();
        for pool in self.pools.iter() {
            let mut found = None;
            for round in 0..ROUNDS_MAX {
                let candidates =
                    addresses::candidates(pool, id, round * CANDIDATES, |a| self.bindings.is_in_use(a));
                if candidates.is_empty() {
                    break;
                }
                let keys: Vec<String> = candidates.iter().map(|a| layout::address(*a)).collect();
                let stored = self.store.read(&keys).await?.values;
                let mut checked = candidates.iter().zip(&stored);
                found = checked.find_map(|(address, stored)| Free::check(*address, stored.as_ref(), now));
                if found.is_some() {
                    break;
                }
            }
            match found {
                Some(address) => free.push(address),
                None => return Ok(None),
            }
        }
        Ok(Some(free))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use jump_proto::convert::AttachAsk;
    use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch};
    use jump_session::policy::{DevicePolicy, SessionPolicy};

    use super::*;
    use crate::addresses::Pools;
    use crate::bindings::Bindings;
    use crate::devices::Devices;
    use crate::registry::{Registration, Registry};
    use crate::store::{EmbeddedStore, SharedStore};

    /// The cache of this replica has not heard of anything yet.
    #[tokio::test]
    async fn a_birth_at_the_limit_ends_no_session_of_a_live_owner_whatever_the_cache_says() {
        let dir = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(EmbeddedStore::open(&dir.path().join("store.redb")).unwrap());
        let bindings = Arc::new(Bindings::default());
        let arbiter = Arbiter {
            store: Arc::clone(&store),
            bindings: Arc::clone(&bindings),
            policy: SessionPolicy { sessions_per_device_max: 1, ..SessionPolicy::default() },
            pools: Pools::new(vec!["10.77.0.0/24".parse().unwrap()]),
            handover_wait: Duration::ZERO,
        };
        let registry = Registry::new(Arc::clone(&store), bindings, Duration::from_secs(30));
        let registration = Registration {
            node: "gw1".parse().unwrap(),
            endpoints: vec![],
            tcp_endpoints: vec![],
            quic_endpoints: vec![],
            mesh_endpoint: String::new(),
            mesh_public_key: [1; 32],
            node_verifying_key: [2; 32],
            reaped: None,
            request_id: "one".to_owned(),
        };
        let (node, _) = registry.register(&registration).await.unwrap();
        let device = DeviceKey::from_bytes([7; 32]);
        let devices = Devices { store, arbiter: arbiter.clone(), overlap: Duration::from_secs(60) };
        devices.enrol(device, "laptop", 0, &DevicePolicy::default()).await.unwrap();
        let ask = |attempt: u8| AttachAsk {
            request: AttachRequest {
                claimant: node.owner(),
                device,
                attach_seq: AttachSeq(1),
                attempt: AttemptId::from_bytes([attempt; 16]),
                reason: Reason::Birth,
                switch_ages: Vec::new(),
            },
            session: None,
            last_epoch: Epoch(0),
            handshake_hash: [0; 32],
            client_address: String::new(),
            grant_keys: Vec::new(),
        };
        let first = arbiter.attach(&ask(1)).await.unwrap();
        let refused = arbiter.attach(&ask(2)).await.unwrap_err();
        assert!(
            matches!(&refused, ArbiterError::Refused(r) if r.reason == Reason::SessionLimit),
            "{refused}"
        );
        assert_eq!(arbiter.session(first.record.id).await.unwrap().0.record.phase, first.record.phase);
        // Once its owner is gone it gives way.
        registry.deregister(&node.owner()).await.unwrap();
        let (node, _) =
            registry.register(&Registration { request_id: "two".to_owned(), ..registration }).await.unwrap();
        let mut again = ask(3);
        again.request.claimant = node.owner();
        arbiter.attach(&again).await.unwrap();
        let (over, ..) = arbiter.session(first.record.id).await.unwrap();
        assert!(matches!(over.record.phase, Phase::Terminated { .. }));
    }
}
