//! What the store says, in memory: fed by a watch, served to gateways and operators, a wake-up for waiting attaches.
//!
//! The cache may lag. Nothing is granted from it: decisions read the store, the cache only says when to look again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jump_session::ids::{NodeId, Revision, SessionId};
use jump_session::ownership::{Owner, Phase, UnixMillis};
use jump_session::policy::SessionPolicy;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::layout::{self, Node, StoredSession};
use crate::store::{Event, KeyValue, RANGE_LIMIT_MAX, SharedStore, StoreError, WatchBatch};

mod load;

/// How many deltas a watcher may be behind before it gets a new snapshot.
pub const DELTAS_MAX: usize = 65_536;

/// How many prefixes are listed at a time.
const LISTS_MAX: usize = 16;

/// How long a tombstone is kept.
pub const TOMBSTONE_RETENTION_MS: UnixMillis = 7 * 24 * 3600 * 1000;

/// Pause before the store is listed again after a failure.
const RELIST_PAUSE: Duration = Duration::from_millis(250);

/// One change that watchers are told.
#[derive(Debug, Clone)]
pub enum Delta {
    /// A session was written.
    Session(Arc<StoredSession>),
    /// A node registered, or began or ended to drain.
    Node(Arc<Node>, bool),
    /// A node's key is gone.
    NodeGone(NodeId),
}

/// Why a waiting attach should look again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wake {
    /// The session changed.
    Session(SessionId),
    /// The node registered or is gone.
    Node(NodeId),
}

/// The cache. Shared by every service.
#[derive(Debug)]
pub struct Bindings {
    state: Mutex<State>,
    reached: watch::Sender<Revision>,
    wakes: Mutex<HashMap<Wake, Arc<Notify>>>,
    keys_changed: Arc<Notify>,
}

/// The phases of a session, as metrics name them.
const PHASES: [&str; 4] = ["owned", "handover", "released", "terminated"];

fn phase_index(phase: &Phase) -> usize {
    match phase {
        Phase::Owned { .. } => 0,
        Phase::Handover { .. } => 1,
        Phase::Released { .. } => 2,
        Phase::Terminated { .. } => 3,
    }
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    sessions: BTreeMap<SessionId, Arc<StoredSession>>,
    /// How many sessions each of [`PHASES`] has.
    phases: [u64; PHASES.len()],
    addresses: BTreeMap<IpAddr, SessionId>,
    /// Sessions by owner: what to look at when a node is gone.
    owned: BTreeMap<Owner, BTreeSet<SessionId>>,
    /// Sessions by the earliest time at which time alone may change them.
    due: BTreeSet<(UnixMillis, SessionId)>,
    /// Ended sessions whose addresses this replica has not seen released, by the end of their rest; they are not in `due`.
    resting: BTreeSet<(UnixMillis, SessionId)>,
    /// The time that a client has to come back.
    recovery_window_ms: UnixMillis,
    /// The time that an address rests after its session.
    address_quarantine_ms: UnixMillis,
    /// Sessions that each node must stop.
    handovers: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// Sessions that are ordered to move.
    moving: BTreeSet<SessionId>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    drains: BTreeSet<NodeId>,
    deltas: VecDeque<(Revision, Delta)>,
    /// Every delta after this revision is in `deltas`.
    floor: Revision,
    ready: bool,
}

/// Everything at one revision, for a watcher that starts.
#[derive(Debug, Clone)]
pub struct Everything {
    /// The revision.
    pub revision: Revision,
    /// Sessions, ended ones included.
    pub sessions: Vec<Arc<StoredSession>>,
    /// Nodes, and whether each is drained.
    pub nodes: Vec<(Arc<Node>, bool)>,
}

impl Default for Bindings {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            reached: watch::Sender::new(Revision(0)),
            wakes: Mutex::default(),
            keys_changed: Arc::new(Notify::new()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bindings {
    /// An empty cache for a cluster whose sessions have these bounds.
    pub fn new(policy: &SessionPolicy) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let this = Self::default();
        {
            let mut state = lock(&this.state);
            state.recovery_window_ms = millis(policy.recovery_window);
            state.address_quarantine_ms = millis(policy.address_quarantine);
        }
        this
    }

    /// Follows the store until `stop`; lists again when the watch cannot resume.
    pub async fn follow(self: Arc<Self>, store: SharedStore, stop: CancellationToken) {
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.list_and_watch(&store) => outcome,
            };
            match outcome {
                Err(StoreError::Compacted) => {
                    tracing::info!("the store's history is compacted; listing again")
                }
                Err(error) => tracing::warn!(%error, "cannot follow the store; trying again"),
                Ok(()) => return,
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RELIST_PAUSE) => {}
            }
        }
    }

    /// Waits until the first listing is done.
    pub async fn ready(&self) {
        // The sender lives in `self`, so that this cannot fail.
        let _ = self.reached.subscribe().wait_for(|revision| revision.0 > 0).await;
    }

    /// Says whether the first listing is done.
    pub fn is_ready(&self) -> bool {
        lock(&self.state).ready
    }

    /// The newest revision that the cache shows.
    pub fn revision(&self) -> Revision {
        lock(&self.state).revision
    }

    /// A receiver that changes whenever the cache moves.
    pub fn reached(&self) -> watch::Receiver<Revision> {
        self.reached.subscribe()
    }

    /// Notified when a key ring changes.
    pub fn keys_changed(&self) -> Arc<Notify> {
        Arc::clone(&self.keys_changed)
    }

    /// How many sessions there are in each phase.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, u64)> {
        PHASES.into_iter().zip(lock(&self.state).phases)
    }

    /// A session, as the cache has it.
    pub fn session(&self, id: SessionId) -> Option<Arc<StoredSession>> {
        lock(&self.state).sessions.get(&id).cloned()
    }

    /// Up to `limit` sessions after `after` that `filter` takes; it is also told whether the owner's node key is in the
    /// cache. The cache is locked meanwhile: `filter` must not call it.
    pub fn sessions_after(
        &self,
        after: Option<SessionId>,
        limit: usize,
        filter: impl Fn(&StoredSession, bool) -> bool,
    ) -> Vec<Arc<StoredSession>> {
        use std::ops::Bound;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = lock(&self.state);
        let range = state.sessions.range((start, Bound::Unbounded));
        range
            .map(|(_, session)| session)
            .filter(|session| {
                let registered = session.record.owner().is_some_and(|owner| state.is_registered(owner));
                filter(session, registered)
            })
            .take(limit)
            .cloned()
            .collect()
    }

    /// Up to `limit` sessions that `filter` takes among those that time alone may change by `now`: their time has come, or
    /// their owner's run is gone. The cost grows with those, not with all sessions. `filter` as in
    /// [`sessions_after`](Self::sessions_after).
    pub fn sessions_due(
        &self,
        now: UnixMillis,
        limit: usize,
        filter: impl Fn(&StoredSession, bool) -> bool,
    ) -> Vec<Arc<StoredSession>> {
        let state = lock(&self.state);
        let timed = state.due.range(..(now.saturating_add(1), SessionId::from_bytes([0; 16])));
        let lost = state.owned.iter().filter(|(owner, _)| !state.is_registered(owner));
        timed
            .map(|(_, id)| id)
            .chain(lost.flat_map(|(_, sessions)| sessions))
            .filter_map(|id| state.sessions.get(id))
            .filter(|session| {
                let registered = session.record.owner().is_some_and(|owner| state.is_registered(owner));
                filter(session, registered)
            })
            .take(limit)
            .cloned()
            .collect()
    }

    /// Up to `limit` ended sessions whose addresses have rested and may still be in the store.
    pub fn sessions_rested(&self, now: UnixMillis, limit: usize) -> Vec<Arc<StoredSession>> {
        let state = lock(&self.state);
        let rested = state.resting.range(..(now.saturating_add(1), SessionId::from_bytes([0; 16])));
        rested.filter_map(|(_, id)| state.sessions.get(id)).take(limit).cloned().collect()
    }

    /// Notes that no address of this ended session is in the store any more: its tombstone may go when its time comes.
    pub fn addresses_released(&self, session: &StoredSession) {
        let mut state = lock(&self.state);
        let id = session.record.id;
        let rested = state.rested_at(session);
        if state.resting.remove(&(rested, id)) {
            let due = state.due_at(session);
            state.due.insert((due, id));
        }
    }

    /// A node, as the cache has it, and whether it drains: by an operator's order or because it is ending.
    pub fn node(&self, id: &NodeId) -> Option<(Arc<Node>, bool)> {
        let state = lock(&self.state);
        let node = state.nodes.get(id)?;
        Some((Arc::clone(node), state.is_draining(node)))
    }

    /// Says whether an operator drains a node.
    pub fn is_drained(&self, id: &NodeId) -> bool {
        lock(&self.state).drains.contains(id)
    }

    /// Every node, and whether it drains.
    pub fn nodes(&self) -> Vec<(Arc<Node>, bool)> {
        let state = lock(&self.state);
        state.nodes.values().map(|node| (Arc::clone(node), state.is_draining(node))).collect()
    }

    /// How many gateways are registered.
    pub fn gateways(&self) -> usize {
        lock(&self.state).nodes.len()
    }

    /// Says whether this run's node key is in the cache.
    pub fn is_registered(&self, owner: &Owner) -> bool {
        lock(&self.state).is_registered(owner)
    }

    /// Says whether an inner address is in use by a session in the cache.
    pub fn is_in_use(&self, address: IpAddr) -> bool {
        lock(&self.state).addresses.contains_key(&address)
    }

    /// Sessions that this run must stop.
    pub fn handovers_from(&self, owner: &Owner) -> Vec<Arc<StoredSession>> {
        let state = lock(&self.state);
        let sessions = state.handovers.get(&owner.node).into_iter().flatten();
        sessions
            .filter_map(|id| state.sessions.get(id))
            .filter(|session| matches!(&session.record.phase, Phase::Handover { from, .. } if from == owner))
            .cloned()
            .collect()
    }

    /// Everything the cache has.
    pub fn everything(&self) -> Everything {
        let state = lock(&self.state);
        Everything {
            revision: state.revision,
            sessions: state.sessions.values().cloned().collect(),
            nodes: state.nodes.values().map(|node| (Arc::clone(node), state.is_draining(node))).collect(),
        }
    }

    /// The deltas after `after`, with the revision reached; `None` when they are no longer kept.
    pub fn deltas_after(&self, after: Revision) -> Option<(Revision, Vec<Delta>)> {
        let state = lock(&self.state);
        if after < state.floor || !state.ready {
            return None;
        }
        let start = state.deltas.partition_point(|(revision, _)| *revision <= after);
        let deltas = state.deltas.range(start..).map(|(_, delta)| delta.clone()).collect();
        Some((state.revision.max(after), deltas))
    }

    /// A wake-up for one subject. Subscribe first, then read the store, then wait.
    pub fn wake(&self, subject: Wake) -> Arc<Notify> {
        let mut wakes = lock(&self.wakes);
        // Forget subjects that nobody waits for, now and then, so that the map stays as small as its use.
        if wakes.len() > 1024 && wakes.len().is_power_of_two() {
            wakes.retain(|_, notify| Arc::strong_count(notify) > 1);
        }
        Arc::clone(wakes.entry(subject).or_default())
    }

    async fn list_and_watch(&self, store: &SharedStore) -> Result<(), StoreError> {
        let revision = self.list(store).await?;
        let mut watch = store.watch(layout::ROOT, revision);
        while let Some(batch) = watch.next().await {
            self.apply(batch?);
        }
        // A watch ends only after an error, or with its store.
        Ok(())
    }

    async fn list(&self, store: &SharedStore) -> Result<Revision, StoreError> {
        let page = store.range(layout::SESSIONS, "", RANGE_LIMIT_MAX, None).await?;
        let revision = page.revision;
        let mut values = page.values;
        let mut prefixes = vec![layout::NODES.to_owned(), layout::DRAINS.to_owned()];
        if page.more {
            // Paging through all sessions would cost the store the square of their number: go by bucket.
            values.clear();
            prefixes.extend(layout::session_buckets());
        }
        let lists = prefixes.into_iter().map(|prefix| list_at(Arc::clone(store), prefix, revision));
        let mut lists = futures::stream::iter(lists).buffer_unordered(LISTS_MAX);
        while let Some(listed) = lists.next().await {
            values.extend(listed?);
        }
        let mut fresh = {
            let State { recovery_window_ms, address_quarantine_ms, .. } = *lock(&self.state);
            State { recovery_window_ms, address_quarantine_ms, ..State::default() }
        };
        (fresh.revision, fresh.floor, fresh.ready) = (revision, revision, true);
        for value in values {
            fresh.put(value);
        }
        fresh.deltas.clear();
        *lock(&self.state) = fresh;
        self.reached.send_replace(revision);
        for notify in lock(&self.wakes).values() {
            notify.notify_waiters();
        }
        self.keys_changed.notify_one();
        Ok(revision)
    }

    fn apply(&self, batch: WatchBatch) {
        let mut woken = Vec::new();
        {
            let mut state = lock(&self.state);
            for event in batch.events {
                if event.key().starts_with(layout::CLUSTER_KEYS)
                    || event.key().starts_with(layout::GRANT_KEYS)
                {
                    self.keys_changed.notify_one();
                }
                woken.extend(match event {
                    Event::Put(value) => state.put(value),
                    Event::Delete { key, revision } => state.delete(&key, revision),
                });
            }
            state.revision = batch.revision;
            while state.deltas.len() > DELTAS_MAX {
                if let Some((revision, _)) = state.deltas.pop_front() {
                    state.floor = revision;
                }
            }
        }
        self.reached.send_replace(batch.revision);
        let wakes = lock(&self.wakes);
        for subject in woken {
            if let Some(notify) = wakes.get(&subject) {
                notify.notify_waiters();
            }
        }
    }
}

/// Every key that starts with `prefix`, as of `revision`.
async fn list_at(
    store: SharedStore,
    prefix: String,
    revision: Revision,
) -> Result<Vec<KeyValue>, StoreError> {
    let mut values: Vec<KeyValue> = Vec::new();
    loop {
        let after = values.last().map(|value| value.key.clone()).unwrap_or_default();
        let page = store.range(&prefix, &after, RANGE_LIMIT_MAX, Some(revision)).await?;
        values.extend(page.values);
        if !page.more {
            return Ok(values);
        }
    }
}

impl State {
    fn is_draining(&self, node: &Node) -> bool {
        node.record.draining || self.drains.contains(&node.id)
    }

    fn is_registered(&self, owner: &Owner) -> bool {
        self.nodes.get(&owner.node).is_some_and(|node| node.incarnation == owner.incarnation)
    }

    fn put(&mut self, value: KeyValue) -> Option<Wake> {
        let revision = value.mod_revision;
        if value.key.starts_with(layout::SESSIONS) {
            let session = match StoredSession::read(&value) {
                Ok(session) => Arc::new(session),
                Err(error) => {
                    tracing::error!(%error, "skipping a session");
                    return None;
                }
            };
            let id = session.record.id;
            self.forget_session(id);
            if let Phase::Handover { from, .. } = &session.record.phase {
                self.handovers.entry(from.node.clone()).or_default().insert(id);
            }
            if let Some(owner) = session.record.owner() {
                self.owned.entry(owner.clone()).or_default().insert(id);
            }
            if session.record.moving.is_some() {
                self.moving.insert(id);
            }
            if matches!(session.record.phase, Phase::Terminated { .. }) {
                self.resting.insert((self.rested_at(&session), id));
            } else {
                self.due.insert((self.due_at(&session), id));
                self.addresses.extend(session.record.inner.iter().map(|address| (*address, id)));
            }
            self.phases[phase_index(&session.record.phase)] += 1;
            self.sessions.insert(id, Arc::clone(&session));
            self.deltas.push_back((revision, Delta::Session(session)));
            return Some(Wake::Session(id));
        }
        if value.key.starts_with(layout::NODES) {
            let node = match Node::read(&value) {
                Ok(node) => Arc::new(node),
                Err(error) => {
                    tracing::error!(%error, "skipping a node");
                    return None;
                }
            };
            let id = node.id.clone();
            self.nodes.insert(id.clone(), Arc::clone(&node));
            let draining = self.is_draining(&node);
            self.deltas.push_back((revision, Delta::Node(node, draining)));
            return Some(Wake::Node(id));
        }
        let drained: NodeId = value.key.strip_prefix(layout::DRAINS)?.parse().ok()?;
        self.drains.insert(drained.clone());
        self.drain_changed(&drained, revision)
    }

    fn delete(&mut self, key: &str, revision: Revision) -> Option<Wake> {
        if let Some(id) = key.strip_prefix(layout::SESSIONS) {
            let id = id.split_once('/')?.1.parse().ok()?;
            self.forget_session(id);
            return Some(Wake::Session(id));
        }
        if let Some(id) = key.strip_prefix(layout::NODES) {
            let id: NodeId = id.parse().ok()?;
            self.nodes.remove(&id);
            crate::audit::node_gone(&id);
            self.deltas.push_back((revision, Delta::NodeGone(id.clone())));
            return Some(Wake::Node(id));
        }
        let drained: NodeId = key.strip_prefix(layout::DRAINS)?.parse().ok()?;
        self.drains.remove(&drained);
        self.drain_changed(&drained, revision)
    }

    fn drain_changed(&mut self, id: &NodeId, revision: Revision) -> Option<Wake> {
        let node = Arc::clone(self.nodes.get(id)?);
        let draining = self.is_draining(&node);
        self.deltas.push_back((revision, Delta::Node(node, draining)));
        None
    }

    /// When time alone may change a session whose owner, if any, is alive.
    fn due_at(&self, session: &StoredSession) -> UnixMillis {
        let record = &session.record;
        match &record.phase {
            Phase::Owned { .. } | Phase::Handover { .. } => record.expires,
            Phase::Released { since } => record.expires.min(since.saturating_add(self.recovery_window_ms)),
            Phase::Terminated { at } => at.saturating_add(TOMBSTONE_RETENTION_MS),
        }
    }

    /// When the addresses of an ended session have rested.
    fn rested_at(&self, session: &StoredSession) -> UnixMillis {
        match session.record.phase {
            Phase::Terminated { at } => at.saturating_add(self.address_quarantine_ms),
            Phase::Owned { .. } | Phase::Handover { .. } | Phase::Released { .. } => UnixMillis::MAX,
        }
    }

    fn forget_session(&mut self, id: SessionId) {
        let Some(old) = self.sessions.remove(&id) else { return };
        self.phases[phase_index(&old.record.phase)] -= 1;
        self.due.remove(&(self.due_at(&old), id));
        self.resting.remove(&(self.rested_at(&old), id));
        self.moving.remove(&id);
        if let Some(owner) = old.record.owner()
            && let Some(sessions) = self.owned.get_mut(owner)
        {
            sessions.remove(&id);
            if sessions.is_empty() {
                self.owned.remove(owner);
            }
        }
        for address in &old.record.inner {
            if self.addresses.get(address) == Some(&id) {
                self.addresses.remove(address);
            }
        }
        if let Phase::Handover { from, .. } = &old.record.phase
            && let Some(sessions) = self.handovers.get_mut(&from.node)
        {
            sessions.remove(&id);
            if sessions.is_empty() {
                self.handovers.remove(&from.node);
            }
        }
    }
}
