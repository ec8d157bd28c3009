//! Gateway nodes: register, renew, deregister, drain.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jump_proto::store_v1::{DrainRecord, NodeRecord, NumberRecord};
use jump_session::ids::{Incarnation, NodeId, NodeNumber, Revision};
use jump_session::ownership::Owner;
use jump_session::reason::Reason;
use prost::Message;

use crate::arbiter::blank;
use crate::bindings::Bindings;
use crate::layout::{self, BadValue, Node};
use crate::store::{Compare, Lease, LeaseId, Op, Outcome, SharedStore, StoreError, Txn, list};
use crate::{ArbiterError, clock};

/// How often a lost compare-and-swap is repeated.
const CONFLICTS_MAX: usize = 32;

/// How many runs are remembered before those that ended are forgotten: twice what can be registered at once.
pub(crate) const RUNS_REMEMBERED_MAX: usize = 2 * NodeNumber::MAX.0 as usize;

/// How many claims all gateways together may have under way: 1.3 s of one replica's work (153 µs each, docs/scaling.md), even
/// when all of them come to it. A renewal waits behind them, and a lease ends 3 s after it was renewed last.
const CLAIMS_MAX: usize = 8192;
/// The most that one gateway may have under way.
const CLAIMS_EACH_MAX: usize = 256;
const _: () =
    assert!(CLAIMS_MAX >= NodeNumber::MAX.0 as usize, "every gateway that may register has a claim");

/// How many claims one of this many registered gateways may have under way.
pub fn claims_each(gateways: usize) -> usize {
    (CLAIMS_MAX / gateways.max(1)).clamp(1, CLAIMS_EACH_MAX)
}

/// What a gateway says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The node.
    pub node: NodeId,
    /// Where clients reach its UDP socket.
    pub endpoints: Vec<String>,
    /// Where clients reach its TCP listeners.
    pub tcp_endpoints: Vec<String>,
    /// Where clients reach its QUIC listeners.
    pub quic_endpoints: Vec<String>,
    /// Its mesh socket.
    pub mesh_endpoint: String,
    /// Its mesh key in this run.
    pub mesh_public_key: [u8; 32],
    /// Its signing key in this run.
    pub node_verifying_key: [u8; 32],
    /// The run that the caller knows to be dead.
    pub reaped: Option<Incarnation>,
    /// Makes a retry idempotent.
    pub request_id: String,
}

/// Why a node could not register or renew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// An earlier run's key exists.
    #[error("node {node} is registered as run {incarnation}: it must end, or its lease expire, first")]
    Registered {
        /// The node.
        node: NodeId,
        /// The run that holds the name.
        incarnation: u64,
    },
    /// All 4095 numbers are taken.
    #[error("all node numbers are in use")]
    NoNumber,
    /// The caller's run is not registered.
    #[error("run {} of node {} is not registered: register again", .0.incarnation, .0.node)]
    NotRegistered(Owner),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored value cannot be read.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// Others keep changing the same keys.
    #[error("too many concurrent registrations: try again")]
    Busy,
}

impl From<RegistryError> for ArbiterError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => Self::Store(error),
            RegistryError::Value(error) => Self::Value(error),
            RegistryError::NotRegistered(_) => {
                Self::Refused(blank(Reason::NodeNotRegistered, Duration::ZERO))
            }
            RegistryError::Registered { .. } | RegistryError::NoNumber | RegistryError::Busy => {
                Self::Refused(blank(Reason::Conflict, Duration::ZERO))
            }
        }
    }
}

/// Keeps the node keys and their leases.
#[derive(Debug)]
pub struct Registry {
    store: SharedStore,
    bindings: Arc<Bindings>,
    lease_ttl: Duration,
    /// Leases of runs seen here, so that a renewal needs no read.
    leases: Mutex<HashMap<Owner, LeaseId>>,
}

impl Registry {
    /// A registry that asks for leases of `lease_ttl`.
    pub fn new(store: SharedStore, bindings: Arc<Bindings>, lease_ttl: Duration) -> Self {
        Self { store, bindings, lease_ttl, leases: Mutex::default() }
    }

    /// Registers a run: a lease, the node key and a number, in one transaction.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn register(&self, registration: &Registration) -> Result<(Node, Duration), RegistryError> {
        let mut lease: Option<Lease> = None;
        let result = self.register_under(registration, &mut lease).await;
        if result.is_err()
            && let Some(lease) = lease
        {
            // It would end by itself; ending it now frees the name in case the write did land.
            let _ = self.store.revoke_lease(lease.id).await;
        }
        result
    }

    async fn register_under(
        &self,
        registration: &Registration,
        lease: &mut Option<Lease>,
    ) -> Result<(Node, Duration), RegistryError> {
        let node_key = layout::node(&registration.node);
        for _ in 0..CONFLICTS_MAX {
            let keys = [node_key.clone(), layout::LAST_NUMBER.to_owned()];
            let snapshot = self.store.read(&keys).await?;
            if let Some(stored) = &snapshot.values[0] {
                let node = Node::read(stored)?;
                if node.record.request_id == registration.request_id {
                    // The caller counts its authority from when it sent this call, which may be long after the first
                    // one: the lease must count from here as well (docs/ownership.md, O1).
                    match self.store.keep_alive(node.lease).await {
                        Ok(()) => {}
                        Err(StoreError::LeaseNotFound) => continue,
                        Err(error) => return Err(error.into()),
                    }
                    return Ok((node, lease.map_or(self.lease_ttl, |lease| lease.ttl)));
                }
                if registration.reaped != Some(node.incarnation) {
                    let incarnation = node.incarnation.0;
                    return Err(RegistryError::Registered { node: node.id, incarnation });
                }
                self.store.revoke_lease(node.lease).await?;
                continue;
            }
            let granted = match *lease {
                Some(lease) => lease,
                None => *lease.insert(self.store.grant_lease(self.lease_ttl).await?),
            };
            let last = snapshot.values[1].as_ref();
            let number = self.next_number(last.map(|value| value.value.as_slice())).await?;
            let last_modified = last.map_or(Revision(0), |value| value.mod_revision);
            let record = record(registration, number, granted.id);
            let txn = Txn {
                compares: vec![
                    Compare::absent(&node_key),
                    Compare::absent(layout::number(number)),
                    Compare::Modified(layout::LAST_NUMBER.to_owned(), last_modified),
                ],
                ops: vec![
                    Op::Put { key: node_key.clone(), value: record.encode_to_vec(), lease: Some(granted.id) },
                    Op::Put {
                        key: layout::number(number),
                        value: NumberRecord { node_id: registration.node.to_string() }.encode_to_vec(),
                        lease: Some(granted.id),
                    },
                    Op::put(layout::LAST_NUMBER, number.0.to_be_bytes().to_vec()),
                ],
            };
            match self.store.commit(txn).await {
                Ok(Outcome::Committed(revision)) => {
                    let incarnation = Incarnation(revision.0);
                    let id = registration.node.clone();
                    let node = Node { id, incarnation, number, lease: granted.id, record };
                    self.remember(&node);
                    return Ok((node, granted.ttl));
                }
                // Read again: the request id tells whether it was ours.
                Ok(Outcome::Conflict) | Err(StoreError::Unknown(_)) => {}
                Err(StoreError::LeaseNotFound) => *lease = None,
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistryError::Busy)
    }

    /// The free number that was given back longest ago: the next one after the last that was given.
    async fn next_number(&self, last: Option<&[u8]>) -> Result<NodeNumber, RegistryError> {
        let last = last.and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes);
        let (_, taken) = list(&*self.store, layout::NUMBERS).await?;
        let taken: std::collections::BTreeSet<String> = taken.into_iter().map(|value| value.key).collect();
        (0..NodeNumber::MAX.0)
            .map(|step| NodeNumber((last + step) % NodeNumber::MAX.0 + 1))
            .find(|number| !taken.contains(&layout::number(*number)))
            .ok_or(RegistryError::NoNumber)
    }

    /// Renews a run's lease. A run that is `ending` is marked so for as long as it lives.
    ///
    /// # Errors
    /// [`RegistryError::NotRegistered`] when the run has ended, and the store's.
    pub async fn renew(&self, owner: &Owner, ending: bool) -> Result<(), RegistryError> {
        let lease = self.lease_of(owner).await?;
        match self.store.keep_alive(lease).await {
            Ok(()) if ending => self.mark_ending(owner).await,
            Ok(()) => Ok(()),
            Err(StoreError::LeaseNotFound) => {
                self.forget(owner);
                Err(RegistryError::NotRegistered(owner.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the mark into the node's own record: the key keeps its create revision, and goes with the lease.
    async fn mark_ending(&self, owner: &Owner) -> Result<(), RegistryError> {
        let known = |node: &Node| node.owner() == *owner && node.record.draining;
        if self.bindings.node(&owner.node).is_some_and(|(node, _)| known(&node)) {
            return Ok(());
        }
        let key = layout::node(&owner.node);
        let Some((mut node, _)) = self.node(&owner.node).await?.filter(|(node, _)| node.owner() == *owner)
        else {
            return Err(RegistryError::NotRegistered(owner.clone()));
        };
        node.record.draining = true;
        let txn = Txn {
            compares: vec![Compare::Created(key.clone(), Revision(owner.incarnation.0))],
            ops: vec![Op::Put { key, value: node.record.encode_to_vec(), lease: Some(node.lease) }],
        };
        match self.store.commit(txn).await {
            // Without the mark the drain goes on all the same; the next renewal tries again.
            Ok(_) | Err(StoreError::Unknown(_)) => Ok(()),
            Err(StoreError::LeaseNotFound) => Err(RegistryError::NotRegistered(owner.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a run: its node key and number are gone when this returns. A run that has ended already is no error.
    ///
    /// # Errors
    /// The store's.
    pub async fn deregister(&self, owner: &Owner) -> Result<(), RegistryError> {
        let lease = match self.lease_of(owner).await {
            Ok(lease) => lease,
            Err(RegistryError::NotRegistered(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.store.revoke_lease(lease).await?;
        self.forget(owner);
        Ok(())
    }

    /// Marks a node as drained, or takes the mark away. Both are idempotent.
    ///
    /// # Errors
    /// The store's.
    pub async fn set_drained(&self, node: &NodeId, drained: bool) -> Result<(), RegistryError> {
        let key = layout::drain(node);
        let txn = match drained {
            true => {
                let value = DrainRecord { since_ms: clock::unix_millis() }.encode_to_vec();
                Txn { compares: vec![Compare::absent(&key)], ops: vec![Op::put(key, value)] }
            }
            false => Txn { compares: Vec::new(), ops: vec![Op::delete(key)] },
        };
        // A conflict means that the mark is there already.
        let _ = self.store.commit(txn).await?;
        Ok(())
    }

    /// A node as the store has it, and whether it is drained.
    ///
    /// # Errors
    /// The store's.
    pub async fn node(&self, id: &NodeId) -> Result<Option<(Node, bool)>, RegistryError> {
        let snapshot = self.store.read(&[layout::node(id), layout::drain(id)]).await?;
        let drained = snapshot.values[1].is_some();
        let node = snapshot.values[0].as_ref().map(Node::read).transpose()?;
        Ok(node.map(|node| (node, drained)))
    }

    async fn lease_of(&self, owner: &Owner) -> Result<LeaseId, RegistryError> {
        if let Some(lease) = self.leases().get(owner) {
            return Ok(*lease);
        }
        if let Some((node, _)) = self.bindings.node(&owner.node)
            && node.incarnation == owner.incarnation
        {
            return Ok(node.lease);
        }
        match self.node(&owner.node).await? {
            Some((node, _)) if node.incarnation == owner.incarnation => {
                self.remember(&node);
                Ok(node.lease)
            }
            Some(_) | None => Err(RegistryError::NotRegistered(owner.clone())),
        }
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, HashMap<Owner, LeaseId>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, node: &Node) {
        let mut leases = self.leases();
        leases.retain(|owner, _| owner.node != node.id);
        if leases.len() >= RUNS_REMEMBERED_MAX {
            leases.retain(|owner, _| self.bindings.is_registered(owner));
        }
        leases.insert(node.owner(), node.lease);
    }

    fn forget(&self, owner: &Owner) {
        self.leases().remove(owner);
    }
}

fn record(registration: &Registration, number: NodeNumber, lease: LeaseId) -> NodeRecord {
    NodeRecord {
        node_id: registration.node.to_string(),
        number: u32::from(number.0),
        endpoints: registration.endpoints.clone(),
        mesh_endpoint: registration.mesh_endpoint.clone(),
        mesh_public_key: registration.mesh_public_key.to_vec(),
        node_verifying_key: registration.node_verifying_key.to_vec(),
        registered_ms: clock::unix_millis(),
        lease_id: lease.0,
        request_id: registration.request_id.clone(),
        tcp_endpoints: registration.tcp_endpoints.clone(),
        quic_endpoints: registration.quic_endpoints.clone(),
        draining: false,
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::store::{EmbeddedStore, Page, Snapshot, Store, WatchStream};

    #[test]
    fn the_claims_of_all_gateways_together_stay_within_their_bound_and_every_gateway_has_one() {
        assert_eq!([0, 1, 32, 33, 1000].map(claims_each), [256, 256, 256, 248, 8]);
        for gateways in 1..=usize::from(NodeNumber::MAX.0) {
            assert!((1..=CLAIMS_EACH_MAX).contains(&claims_each(gateways)), "{gateways}");
            assert!(gateways * claims_each(gateways) <= CLAIMS_MAX, "{gateways}");
        }
    }

    /// Notes which leases were renewed.
    #[derive(Debug)]
    struct Noting {
        inner: EmbeddedStore,
        renewed: Mutex<Vec<LeaseId>>,
    }

    #[async_trait]
    impl Store for Noting {
        async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
            self.inner.read(keys).await
        }
        async fn range(
            &self,
            prefix: &str,
            after: &str,
            limit: usize,
            at: Option<Revision>,
        ) -> Result<Page, StoreError> {
            self.inner.range(prefix, after, limit, at).await
        }
        async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
            self.inner.commit(txn).await
        }
        async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
            self.inner.grant_lease(ttl).await
        }
        async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
            self.renewed.lock().unwrap().push(lease);
            self.inner.keep_alive(lease).await
        }
        async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
            self.inner.revoke_lease(lease).await
        }
        fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
            self.inner.watch(prefix, after)
        }
    }

    fn registration(node: &str) -> Registration {
        Registration {
            node: node.parse().unwrap(),
            endpoints: vec!["192.0.2.1:51820".to_owned()],
            tcp_endpoints: vec![],
            quic_endpoints: vec![],
            mesh_endpoint: "192.0.2.1:51821".to_owned(),
            mesh_public_key: [1; 32],
            node_verifying_key: [2; 32],
            reaped: None,
            request_id: "one".to_owned(),
        }
    }

    /// A gateway whose first answer was lost asks again, and counts its authority from the second question.
    #[tokio::test]
    async fn a_repeated_registration_renews_the_lease_that_it_speaks_of() {
        let dir = tempfile::tempdir().unwrap();
        let inner = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
        let store = Arc::new(Noting { inner, renewed: Mutex::default() });
        let registry =
            Registry::new(Arc::clone(&store) as SharedStore, Arc::default(), Duration::from_secs(30));
        let (first, _) = registry.register(&registration("gw1")).await.unwrap();
        assert!(store.renewed.lock().unwrap().is_empty());
        let (again, _) = registry.register(&registration("gw1")).await.unwrap();
        assert_eq!((again.incarnation, again.lease), (first.incarnation, first.lease));
        assert_eq!(*store.renewed.lock().unwrap(), [first.lease]);
    }
}
