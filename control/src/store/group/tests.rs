//! The rules of who rides with whom, and the driver against a store that can be stopped.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;
use crate::store::{Compare, EmbeddedStore};

fn swap(key: &str, revision: u64) -> Txn {
    Txn {
        compares: vec![Compare::Modified(key.to_owned(), Revision(revision))],
        ops: vec![Op::put(key, b"v".to_vec())],
    }
}

fn board(txns: Vec<Txn>) -> (Vec<Txn>, Vec<Txn>) {
    let mut queue = Queue::default();
    for rider in txns {
        queue.waiting.push_back(Waiting { rider, answer: oneshot::channel().0 });
    }
    let aboard = queue.board().into_iter().map(|waiting| waiting.rider).collect();
    (aboard, queue.waiting.into_iter().map(|waiting| waiting.rider).collect())
}

#[test]
fn independent_transactions_ride_together_up_to_the_limit_in_their_order() {
    let txns: Vec<Txn> = (0..RIDERS_MAX + 5).map(|i| swap(&format!("s/{i}"), 1)).collect();
    let (aboard, left) = board(txns.clone());
    assert_eq!(aboard, txns[..RIDERS_MAX]);
    assert_eq!(left, txns[RIDERS_MAX..]);
}

#[test]
fn two_writers_of_a_key_never_share_a_batch_and_neither_do_a_writer_and_a_comparer() {
    let claim = Txn { compares: vec![Compare::absent("device")], ops: vec![Op::put("session", vec![])] };
    for other in [
        swap("session", 1),
        swap("device", 1),
        Txn { compares: vec![], ops: vec![Op::delete("session")] },
        Txn { compares: vec![Compare::absent("session")], ops: vec![Op::put("x", vec![])] },
    ] {
        assert_eq!(board(vec![claim.clone(), other.clone()]).1.len(), 1, "{other:?}");
        assert_eq!(board(vec![other.clone(), claim.clone()]).1.len(), 1, "{other:?}");
    }
    // To compare the same key is no conflict: attaches of one node all compare its key.
    let compared = |key: &str| Txn {
        compares: vec![Compare::Created("nodes/a".to_owned(), Revision(5))],
        ops: vec![Op::put(key, vec![])],
    };
    assert!(board(vec![compared("1"), compared("2")]).1.is_empty());
}

#[test]
fn who_cannot_ride_now_is_overtaken_but_rides_next() {
    let (aboard, left) = board(vec![swap("a", 1), swap("a", 1), swap("b", 1)]);
    assert_eq!((aboard.len(), left), (2, vec![swap("a", 1)]));
}

#[test]
fn leases_nodes_and_empty_or_huge_transactions_go_alone() {
    let leased = Op::Put { key: "x".to_owned(), value: vec![], lease: Some(LeaseId(1)) };
    let of = |ops| Txn { compares: vec![], ops };
    assert!(!may_ride(&of(vec![leased])));
    assert!(!may_ride(&of(vec![Op::delete(format!("{}gw1", layout::NODES))])));
    assert!(!may_ride(&of(vec![Op::put(format!("{}0001", layout::NUMBERS), vec![])])));
    assert!(!may_ride(&of(vec![])));
    assert!(!may_ride(&of((0..=RIDER_PARTS_MAX).map(|i| Op::delete(format!("{i}"))).collect())));
    assert!(may_ride(&swap("s/1", 1)));
}

#[test]
fn a_batch_stays_below_the_size_that_the_store_takes_and_a_single_one_always_goes() {
    let large = |key: &str| Txn { compares: vec![], ops: vec![Op::put(key, vec![0; BATCH_BYTES_MAX / 3])] };
    assert_eq!(board(vec![large("1"), large("2"), large("3")]).0.len(), 2);
    let huge = Txn { compares: vec![], ops: vec![Op::put("1", vec![0; 2 * BATCH_BYTES_MAX])] };
    assert_eq!(board(vec![huge]).0.len(), 1);
}

#[test]
fn reads_of_the_same_keys_take_no_more_room() {
    let read = |i: usize| Keys(vec!["shared".to_owned(), format!("own/{i}")]);
    let mut union = HashSet::new();
    let joined = (0..READ_KEYS_MAX * 2).take_while(|i| read(*i).join(&mut union)).count();
    assert_eq!(joined, READ_KEYS_MAX - 1);
}

/// A small transaction over a handful of keys.
fn txn() -> impl Strategy<Value = Txn> {
    let key = || (0..6usize).prop_map(|i| format!("k{i}"));
    (vec((key(), 0..3u64), 0..3), vec(key(), 1..3)).prop_map(|(compares, mut keys)| {
        keys.sort();
        keys.dedup();
        Txn {
            compares: compares.into_iter().map(|(key, at)| Compare::Modified(key, Revision(at))).collect(),
            ops: keys.into_iter().map(|key| Op::put(key, vec![1])).collect(),
        }
    })
}

proptest! {
    #[test]
    fn whoever_rides_together_could_have_gone_one_after_the_other_in_any_order(
        txns in vec(txn(), 1..40),
        flip in any::<bool>(),
    ) {
        let (mut aboard, left) = board(txns.clone());
        prop_assert_eq!(aboard.len() + left.len(), txns.len());
        prop_assert_eq!(&aboard[0], &txns[0], "the oldest was passed over");
        if flip {
            aboard.reverse();
        }
        // Nobody's compares or writes depend on what another one wrote before it.
        let mut written: HashSet<&str> = HashSet::new();
        for txn in &aboard {
            let keys = txn.compares.iter().map(Compare::key).chain(txn.ops.iter().map(Op::key));
            for key in keys {
                prop_assert!(!written.contains(key), "{key} was written by a fellow rider");
            }
            written.extend(txn.ops.iter().map(Op::key));
        }
    }
}

/// An embedded store that runs batches one by one, waits for permits, and can refuse every batch.
#[derive(Debug)]
struct Stoppable {
    store: EmbeddedStore,
    permits: Semaphore,
    refuse: Option<StoreError>,
    requests: AtomicUsize,
}

#[async_trait]
impl Many for Arc<Stoppable> {
    async fn commit_many(&self, txns: &[Txn]) -> Result<Vec<Outcome>, StoreError> {
        self.permits.acquire().await.unwrap().forget();
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = &self.refuse {
            return Err(error.clone());
        }
        let mut outcomes = Vec::new();
        for txn in txns {
            outcomes.push(self.store.commit(txn.clone()).await?);
        }
        Ok(outcomes)
    }
}

#[async_trait]
impl Store for Arc<Stoppable> {
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.store.read(keys).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        self.store.range(prefix, after, limit, at).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.permits.acquire().await.unwrap().forget();
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.store.commit(txn).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke_lease(lease).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.store.watch(prefix, after)
    }
}

fn stoppable(
    permits: usize,
    refuse: Option<StoreError>,
) -> (tempfile::TempDir, Arc<Stoppable>, GroupCommit<Arc<Stoppable>>) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
    let store = Arc::new(Stoppable {
        store,
        permits: Semaphore::new(permits),
        refuse,
        requests: AtomicUsize::new(0),
    });
    (dir, Arc::clone(&store), GroupCommit::new(store))
}

#[tokio::test]
async fn each_of_a_crowd_is_told_its_own_outcome_and_few_requests_carry_them() {
    let (_dir, store, grouped) = stoppable(0, None);
    // Two contenders for each of 100 keys.
    let crowd = (0..200).map(|i| {
        let grouped = grouped.clone();
        tokio::spawn(async move { (i % 100, grouped.commit(swap(&format!("s/{}", i % 100), 0)).await) })
    });
    let crowd: Vec<_> = crowd.collect();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    store.permits.add_permits(1000);
    let mut winners = HashMap::new();
    for told in crowd {
        let (key, outcome) = told.await.unwrap();
        if matches!(outcome.unwrap(), Outcome::Committed(_)) {
            *winners.entry(key).or_insert(0) += 1;
        }
    }
    assert_eq!(winners.len(), 100);
    assert!(winners.values().all(|count| *count == 1), "{winners:?}");
    let requests = store.requests.load(Ordering::Relaxed);
    assert!(requests <= 12, "200 transactions took {requests} requests");
}

#[tokio::test]
async fn a_refused_batch_is_tried_again_one_by_one() {
    let refusal = StoreError::Refused("too many operations".to_owned());
    let (_dir, store, grouped) = stoppable(0, Some(refusal));
    let crowd: Vec<_> = (0..20)
        .map(|i| {
            let grouped = grouped.clone();
            tokio::spawn(async move { grouped.commit(swap(&format!("s/{i}"), 0)).await })
        })
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    store.permits.add_permits(1000);
    for told in crowd {
        assert!(matches!(told.await.unwrap(), Ok(Outcome::Committed(_))));
    }
}

#[tokio::test]
async fn an_unknown_batch_is_unknown_to_each_of_its_riders() {
    let unknown = StoreError::Unknown("timed out".to_owned());
    let (_dir, store, grouped) = stoppable(0, Some(unknown.clone()));
    let crowd: Vec<_> = (0..20)
        .map(|i| {
            let grouped = grouped.clone();
            tokio::spawn(async move { grouped.commit(swap(&format!("s/{i}"), 0)).await })
        })
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    store.permits.add_permits(1000);
    let mut unknowns = 0;
    for told in crowd {
        match told.await.unwrap() {
            Ok(Outcome::Committed(_)) => {}
            Err(error) => {
                assert_eq!(error, unknown);
                unknowns += 1;
            }
            Ok(Outcome::Conflict) => panic!("an unknown outcome was made a definite one"),
        }
    }
    assert!(unknowns >= 20 - REQUESTS_MAX, "{unknowns} of 20 were told");
}

#[tokio::test]
async fn grouped_reads_give_each_reader_its_keys_in_its_order() {
    let (_dir, store, grouped) = stoppable(1000, None);
    for i in 0..10 {
        let _ = grouped.commit(swap(&format!("s/{i}"), 0)).await.unwrap();
    }
    let before = store.requests.load(Ordering::Relaxed);
    let readers: Vec<_> = (0..100)
        .map(|i| {
            let grouped = grouped.clone();
            tokio::spawn(async move {
                let keys = [format!("s/{}", i % 10), "none".to_owned(), "s/3".to_owned()];
                (i % 10, grouped.read(&keys).await.unwrap())
            })
        })
        .collect();
    for reader in readers {
        let (i, snapshot) = reader.await.unwrap();
        let found: Vec<_> =
            snapshot.values.iter().map(|value| value.as_ref().map(|value| value.key.clone())).collect();
        assert_eq!(found, [Some(format!("s/{i}")), None, Some("s/3".to_owned())]);
    }
    let requests = store.requests.load(Ordering::Relaxed) - before;
    assert!(requests <= 50, "100 reads took {requests} requests");
}
