use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use async_trait::async_trait;
use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, SessionId};
use jump_session::ownership::SessionRecord;
use jump_session::policy::DevicePolicy;
use jump_session::reason::Reason;
use prost::Message as _;

use super::*;
use crate::addresses::Pools;
use crate::bindings::Bindings;
use crate::store::{EmbeddedStore, Lease, LeaseId, Page, SharedStore, Snapshot, Store, WatchStream};

/// Notes how many keys lie under each prefix that is asked for, and which keys were told.
#[derive(Debug)]
struct Counting {
    inner: EmbeddedStore,
    covered: Mutex<Vec<(String, usize)>>,
    told: Mutex<BTreeMap<String, usize>>,
}

#[async_trait]
impl Store for Counting {
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        assert!(keys.len() <= 2 * ADDRESSES_OF, "{} keys in one read", keys.len());
        self.inner.read(keys).await
    }
    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        let all = store::list(&self.inner, prefix).await?.1.len();
        self.covered.lock().unwrap().push((prefix.to_owned(), all));
        let page = self.inner.range(prefix, after, limit, at).await?;
        for value in &page.values {
            *self.told.lock().unwrap().entry(value.key.clone()).or_default() += 1;
        }
        Ok(page)
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.inner.commit(txn).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.inner.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }
    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.inner.watch(prefix, after)
    }
}

/// A replica with its store. Its cache follows the store until the guard is dropped.
struct Replica {
    store: Arc<Counting>,
    arbiter: Arbiter,
    _stop: tokio_util::sync::DropGuard,
    _dir: tempfile::TempDir,
}

/// The quarantine of the replica under test, in milliseconds.
const QUARANTINE: UnixMillis = 60_000;

impl Replica {
    /// Starts a replica that finds these in the store.
    async fn with(ops: Vec<Op>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
        // A revision 0 is no listing.
        for chunk in ops.chunks(500) {
            let _ = inner.commit(Txn { compares: vec![], ops: chunk.to_vec() }).await.unwrap();
        }
        let store = Arc::new(Counting { inner, covered: Mutex::default(), told: Mutex::default() });
        let policy = SessionPolicy {
            address_quarantine: Duration::from_millis(QUARANTINE),
            ..SessionPolicy::default()
        };
        let bindings = Arc::new(Bindings::new(&policy));
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&bindings).follow(Arc::clone(&store) as SharedStore, stop.clone()));
        bindings.ready().await;
        store.covered.lock().unwrap().clear();
        store.told.lock().unwrap().clear();
        let arbiter = Arbiter {
            store: Arc::clone(&store) as SharedStore,
            bindings,
            policy,
            pools: Pools::new(vec![]),
            handover_wait: Duration::ZERO,
        };
        Self { store, arbiter, _stop: stop.drop_guard(), _dir: dir }
    }

    /// Looks once, and waits until the cache has seen what was written.
    async fn look(&self, bucket: u8) {
        forget_unneeded(&self.arbiter, bucket).await.unwrap();
        let written = self.store.inner.read(&[]).await.unwrap().revision;
        let _ = self.arbiter.bindings.reached().wait_for(|revision| *revision >= written).await.unwrap();
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let (_, values) = store::list(&self.store.inner, prefix).await.unwrap();
        values.into_iter().map(|value| value.key).collect()
    }
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 77, 0, number])
}

fn id(number: u8) -> SessionId {
    SessionId::from_bytes([number; 16])
}

fn session(number: u8, phase: Phase) -> Op {
    let record = SessionRecord {
        id: id(number),
        device: DeviceKey::from_bytes([7; 32]),
        device_name: "laptop".to_owned(),
        epoch: Epoch(1),
        attach_seq: AttachSeq(1),
        attempt: AttemptId::from_bytes([1; 16]),
        phase,
        inner: vec![address(number)],
        created: 1,
        changed: 1,
        expires: UnixMillis::MAX,
        reason: Reason::Birth,
        history: Vec::new(),
        recent_switches: Vec::new(),
        moving: None,
        correlation: [1; 16],
        policy: DevicePolicy::default(),
    };
    Op::put(layout::session(record.id), layout::session_value(&record))
}

fn address_of(number: u8, session: SessionId, until: UnixMillis) -> Op {
    let record = AddressRecord { session_id: session.to_bytes().to_vec(), quarantine_until_ms: until };
    Op::put(layout::address(address(number)), record.encode_to_vec())
}

#[tokio::test]
async fn an_address_goes_once_it_has_rested_and_its_tombstone_not_before_it() {
    let now = clock::unix_millis();
    let week_ago = now - TOMBSTONE_RETENTION_MS - 1;
    let ended = |at| Phase::Terminated { at };
    let replica = Replica::with(vec![
        // Has rested for long; the tombstone stays.
        session(1, ended(now - QUARANTINE - 1)),
        address_of(1, id(1), now - 1),
        // Rests.
        session(2, ended(now)),
        address_of(2, id(2), now + QUARANTINE),
        // Another session took it; the tombstone's time has come.
        session(3, ended(week_ago)),
        address_of(3, id(9), 0),
        // Began to rest when the quarantine was longer than a tombstone is kept.
        session(4, ended(week_ago)),
        address_of(4, id(4), now + QUARANTINE),
        // Both times have come.
        session(5, ended(week_ago)),
        address_of(5, id(5), week_ago + QUARANTINE),
        // Lives.
        session(6, Phase::Released { since: now }),
        address_of(6, id(6), 0),
    ])
    .await;
    replica.look(0).await;
    let left = |numbers: [u8; 4]| numbers.map(|number| layout::address(address(number))).to_vec();
    assert_eq!(replica.keys(layout::ADDRESSES).await, left([2, 3, 4, 6]));
    let left = |numbers: [u8; 4]| numbers.map(|number| layout::session(id(number))).to_vec();
    assert_eq!(replica.keys(layout::SESSIONS).await, left([1, 2, 4, 6]));
    // What is released is not looked at again.
    let waiting = replica.arbiter.bindings.sessions_rested(now, usize::MAX);
    assert_eq!(waiting.iter().map(|session| session.record.id).collect::<Vec<_>>(), [id(4)]);
}

#[tokio::test]
async fn a_round_of_looks_sees_every_token_once_and_no_request_covers_more_than_a_bucket() {
    let now = clock::unix_millis();
    let day = 24 * 3600 * 1000;
    // Ten in each bucket, of which one is old.
    let token = |bucket: u8, number: u8| {
        let mut digest = [number; 32];
        digest[0] = bucket;
        let expires_ms = if number == 0 { now - day } else { now };
        Op::put(layout::token(&digest), TokenRecord { expires_ms, ..TokenRecord::default() }.encode_to_vec())
    };
    let tokens = (0..=u8::MAX).flat_map(|bucket| (0..10).map(move |number| token(bucket, number)));
    let in_use = (0..=u8::MAX).map(|number| address_of(number, id(number), 0));
    let replica = Replica::with(tokens.chain(in_use).collect()).await;
    let before = replica.keys(layout::TOKENS).await;
    for bucket in 0..=u8::MAX {
        replica.look(bucket).await;
    }
    let told = replica.store.told.lock().unwrap().clone();
    assert_eq!(told.keys().cloned().collect::<Vec<_>>(), before);
    assert!(told.values().all(|times| *times == 1));
    let covered = replica.store.covered.lock().unwrap().clone();
    assert!(covered.iter().all(|(_, keys)| *keys <= 10), "{covered:?}");
    assert_eq!(replica.keys(layout::TOKENS).await.len(), 9 * 256);
    assert_eq!(replica.keys(layout::ADDRESSES).await.len(), 256);
}
