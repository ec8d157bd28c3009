//! One suite, run against every implementation of the store.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jump_control::store::{
    Compare, Event, LeaseId, Op, Outcome, SharedStore, Store, StoreError, Txn, WatchStream, list,
};
use jump_session::ids::Revision;

mod support;

use support::{HISTORY_REVISIONS, Harness};

/// Runs each claim once per store.
macro_rules! suite {
    ($($claim:ident;)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $claim() { super::$claim(super::Harness::embedded()).await })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $claim() { super::$claim(super::Harness::etcd()).await })*
        }
    };
}

suite! {
    a_read_shows_what_was_committed_and_its_revisions;
    a_transaction_with_one_failed_compare_writes_nothing;
    a_key_that_is_deleted_and_made_again_has_a_new_create_revision;
    not_created_holds_for_a_missing_key_and_for_a_later_one;
    writing_a_key_twice_in_one_transaction_is_refused;
    of_many_racing_creates_exactly_one_commits;
    racing_compare_and_swaps_lose_no_update;
    a_lease_that_is_not_renewed_takes_its_keys_along;
    a_renewed_lease_keeps_its_keys;
    a_revoked_lease_deletes_its_keys_at_once_and_cannot_be_renewed;
    a_put_under_a_dead_lease_is_refused_and_writes_nothing;
    a_watch_delivers_every_change_once_in_order_from_its_revision;
    a_watch_sees_keys_of_one_transaction_together;
    a_watch_from_a_compacted_revision_says_so;
    pages_pinned_to_a_revision_do_not_see_later_writes;
    a_prefix_does_not_leak_into_its_neighbours;
    what_was_committed_survives_a_restart;
    a_watch_survives_a_restart_of_the_server;
}

fn put(key: &str, value: &str) -> Op {
    Op::put(key, value.as_bytes().to_vec())
}

async fn set(store: &SharedStore, key: &str, value: &str) -> Revision {
    committed(store.commit(Txn { compares: vec![], ops: vec![put(key, value)] }).await.unwrap())
}

fn committed(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("the transaction was refused"),
    }
}

async fn get(store: &SharedStore, key: &str) -> Option<jump_control::store::KeyValue> {
    store.read(&[key.to_owned()]).await.unwrap().values.remove(0)
}

async fn text(store: &SharedStore, key: &str) -> Option<String> {
    get(store, key).await.map(|value| String::from_utf8(value.value).unwrap())
}

/// The next events, failing when nothing comes for long.
async fn next(watch: &mut WatchStream) -> Result<Vec<Event>, StoreError> {
    tokio::time::timeout(Duration::from_secs(20), watch.next())
        .await
        .expect("the watch stays silent")
        .expect("the watch ended")
        .map(|batch| batch.events)
}

/// Collects events until `last` has been seen.
async fn until(watch: &mut WatchStream, last: &str) -> Vec<(String, u64)> {
    let mut seen = Vec::new();
    while !seen.iter().any(|(key, _): &(String, u64)| key == last) {
        seen.extend(next(watch).await.unwrap().iter().map(|event| match event {
            Event::Put(value) => (value.key.clone(), value.mod_revision.0),
            Event::Delete { key, revision } => (format!("-{key}"), revision.0),
        }));
    }
    seen
}

async fn a_read_shows_what_was_committed_and_its_revisions(harness: Harness) {
    let store = harness.open().await;
    let first = set(&store, "a/1", "one").await;
    let second = set(&store, "a/1", "two").await;
    assert!(second > first);
    let keys = ["a/1".to_owned(), "a/none".to_owned()];
    let snapshot = store.read(&keys).await.unwrap();
    let value = snapshot.values[0].clone().unwrap();
    assert_eq!((value.create_revision, value.mod_revision), (first, second));
    assert_eq!(value.value, b"two");
    assert_eq!(snapshot.values[1], None);
    assert!(snapshot.revision >= second);
    assert!(store.read(&[]).await.unwrap().values.is_empty());
}

async fn a_transaction_with_one_failed_compare_writes_nothing(harness: Harness) {
    let store = harness.open().await;
    let at = set(&store, "a", "1").await;
    let txn = |revision| Txn {
        compares: vec![Compare::Modified("a".into(), revision), Compare::absent("b")],
        ops: vec![put("a", "2"), put("b", "2")],
    };
    assert_eq!(store.commit(txn(Revision(at.0 + 7))).await.unwrap(), Outcome::Conflict);
    assert_eq!((text(&store, "a").await.as_deref(), text(&store, "b").await), (Some("1"), None));
    committed(store.commit(txn(at)).await.unwrap());
    assert_eq!(store.commit(txn(at)).await.unwrap(), Outcome::Conflict);
    assert_eq!(text(&store, "b").await.as_deref(), Some("2"));
}

async fn a_key_that_is_deleted_and_made_again_has_a_new_create_revision(harness: Harness) {
    let store = harness.open().await;
    let first = set(&store, "a", "1").await;
    committed(store.commit(Txn { compares: vec![], ops: vec![Op::delete("a")] }).await.unwrap());
    let second = set(&store, "a", "1").await;
    assert_eq!(get(&store, "a").await.unwrap().create_revision, second);
    let stale = Txn { compares: vec![Compare::Created("a".into(), first)], ops: vec![put("b", "")] };
    assert_eq!(store.commit(stale).await.unwrap(), Outcome::Conflict);
}

async fn not_created_holds_for_a_missing_key_and_for_a_later_one(harness: Harness) {
    let store = harness.open().await;
    let first = set(&store, "n", "1").await;
    let txn =
        || Txn { compares: vec![Compare::NotCreated("n".into(), first)], ops: vec![put("taken", "over")] };
    assert_eq!(store.commit(txn()).await.unwrap(), Outcome::Conflict);
    committed(store.commit(Txn { compares: vec![], ops: vec![Op::delete("n")] }).await.unwrap());
    committed(store.commit(txn()).await.unwrap());
    set(&store, "n", "2").await;
    committed(store.commit(txn()).await.unwrap());
}

async fn writing_a_key_twice_in_one_transaction_is_refused(harness: Harness) {
    let store = harness.open().await;
    let txn = Txn { compares: vec![], ops: vec![put("a", "1"), put("a", "2")] };
    assert!(matches!(store.commit(txn).await, Err(StoreError::Refused(_))));
    assert_eq!(text(&store, "a").await, None);
}

async fn of_many_racing_creates_exactly_one_commits(harness: Harness) {
    let store = harness.open().await;
    let racers = (0..50).map(|i| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let txn =
                Txn { compares: vec![Compare::absent("prize")], ops: vec![put("prize", &i.to_string())] };
            matches!(store.commit(txn).await.unwrap(), Outcome::Committed(_)).then_some(i)
        })
    });
    let outcomes = futures::future::join_all(racers).await;
    let winners: Vec<i32> = outcomes.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(text(&store, "prize").await, Some(winners[0].to_string()));
}

async fn racing_compare_and_swaps_lose_no_update(harness: Harness) {
    let store = harness.open().await;
    set(&store, "counter", "0").await;
    let adders = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..10 {
                loop {
                    let old = get(&store, "counter").await.unwrap();
                    let value: u32 = String::from_utf8(old.value).unwrap().parse().unwrap();
                    let txn = Txn {
                        compares: vec![Compare::Modified("counter".into(), old.mod_revision)],
                        ops: vec![put("counter", &(value + 1).to_string())],
                    };
                    if let Outcome::Committed(_) = store.commit(txn).await.unwrap() {
                        break;
                    }
                }
            }
        })
    });
    for adder in futures::future::join_all(adders).await {
        adder.unwrap();
    }
    assert_eq!(text(&store, "counter").await.as_deref(), Some("80"));
}

async fn leased(store: &SharedStore, key: &str, ttl: Duration) -> LeaseId {
    let lease = store.grant_lease(ttl).await.unwrap();
    assert!(lease.ttl >= ttl);
    let op = Op::Put { key: key.into(), value: vec![1], lease: Some(lease.id) };
    committed(store.commit(Txn { compares: vec![], ops: vec![op] }).await.unwrap());
    lease.id
}

async fn a_lease_that_is_not_renewed_takes_its_keys_along(harness: Harness) {
    let store = harness.open().await;
    let lease = leased(&store, "nodes/a", Duration::from_secs(1)).await;
    set(&store, "nodes/b", "stays").await;
    let at = store.read(&[]).await.unwrap().revision;
    assert_eq!(get(&store, "nodes/a").await.unwrap().lease, Some(lease));
    let mut watch = store.watch("nodes/", at);
    let events = next(&mut watch).await.unwrap();
    assert!(matches!(&events[..], [Event::Delete { key, .. }] if key == "nodes/a"), "{events:?}");
    assert_eq!(get(&store, "nodes/a").await, None);
    assert_eq!(text(&store, "nodes/b").await.as_deref(), Some("stays"));
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseNotFound));
}

async fn a_renewed_lease_keeps_its_keys(harness: Harness) {
    let store = harness.open().await;
    let renewed = leased(&store, "renewed", Duration::from_secs(2)).await;
    leased(&store, "left", Duration::from_secs(2)).await;
    let mut watch = store.watch("left", store.read(&[]).await.unwrap().revision);
    loop {
        tokio::select! {
            events = next(&mut watch) => { events.unwrap(); break }
            () = tokio::time::sleep(Duration::from_millis(300)) => store.keep_alive(renewed).await.unwrap(),
        }
    }
    assert!(get(&store, "renewed").await.is_some());
}

async fn a_revoked_lease_deletes_its_keys_at_once_and_cannot_be_renewed(harness: Harness) {
    let store = harness.open().await;
    let lease = leased(&store, "a", Duration::from_secs(60)).await;
    store.revoke_lease(lease).await.unwrap();
    assert_eq!(get(&store, "a").await, None);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseNotFound));
    store.revoke_lease(lease).await.unwrap();
}

async fn a_put_under_a_dead_lease_is_refused_and_writes_nothing(harness: Harness) {
    let store = harness.open().await;
    let lease = leased(&store, "a", Duration::from_secs(60)).await;
    store.revoke_lease(lease).await.unwrap();
    let op = Op::Put { key: "b".into(), value: vec![], lease: Some(lease) };
    let txn = Txn { compares: vec![], ops: vec![op, put("c", "1")] };
    assert_eq!(store.commit(txn).await, Err(StoreError::LeaseNotFound));
    assert_eq!(get(&store, "c").await, None);
}

async fn a_watch_delivers_every_change_once_in_order_from_its_revision(harness: Harness) {
    let store = harness.open().await;
    set(&store, "w/before", "").await;
    let from = set(&store, "w/from", "").await;
    set(&store, "w/past", "").await;
    let mut watch = store.watch("w/", from);
    for i in 0..20 {
        set(&store, &format!("w/{i}"), "").await;
        set(&store, "elsewhere", "").await;
    }
    committed(store.commit(Txn { compares: vec![], ops: vec![Op::delete("w/3")] }).await.unwrap());
    set(&store, "w/end", "").await;
    let seen = until(&mut watch, "w/end").await;
    let mut expected = vec!["w/past".to_owned()];
    expected.extend((0..20).map(|i| format!("w/{i}")));
    expected.extend(["-w/3".to_owned(), "w/end".to_owned()]);
    assert_eq!(seen.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), expected);
    assert!(seen.is_sorted_by_key(|(_, revision)| *revision));
}

async fn a_watch_sees_keys_of_one_transaction_together(harness: Harness) {
    let store = harness.open().await;
    let at = store.read(&[]).await.unwrap().revision;
    let mut watch = store.watch("t/", at);
    let txn = Txn { compares: vec![], ops: (0..10).map(|i| put(&format!("t/{i}"), "")).collect() };
    committed(store.commit(txn).await.unwrap());
    assert_eq!(next(&mut watch).await.unwrap().len(), 10);
}

async fn a_watch_from_a_compacted_revision_says_so(harness: Harness) {
    let store = harness.open().await;
    let first = set(&store, "c/0", "").await;
    for i in 0..=HISTORY_REVISIONS {
        set(&store, &format!("c/{i}"), "again").await;
    }
    if let Harness::Etcd(etcd) = &harness {
        let mut client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
        let revision = i64::try_from(first.0).unwrap() + 10;
        client.compact(revision, None).await.unwrap();
    }
    let mut watch = store.watch("c/", first);
    assert_eq!(next(&mut watch).await, Err(StoreError::Compacted));
    assert!(watch.next().await.is_none(), "the stream goes on after it was compacted");
    assert_eq!(store.range("c/", "", 10, Some(first)).await, Err(StoreError::Compacted));
    // Listing again gives a place to watch from.
    let (revision, values) = list(&*store, "c/").await.unwrap();
    assert_eq!(values.len(), HISTORY_REVISIONS + 1);
    let mut watch = store.watch("c/", revision);
    set(&store, "c/new", "").await;
    assert_eq!(until(&mut watch, "c/new").await.len(), 1);
}

async fn pages_pinned_to_a_revision_do_not_see_later_writes(harness: Harness) {
    let store = harness.open().await;
    for i in 10..30 {
        set(&store, &format!("p/{i}"), "old").await;
    }
    let first = store.range("p/", "", 7, None).await.unwrap();
    assert!(first.more && first.values.len() == 7);
    let txn = Txn {
        compares: vec![],
        ops: vec![Op::delete("p/20"), put("p/21", "new"), put("p/195", "new"), put("p/40", "new")],
    };
    committed(store.commit(txn).await.unwrap());
    let mut keys: Vec<String> = first.values.iter().map(|value| value.key.clone()).collect();
    loop {
        let after = keys.last().unwrap().clone();
        let page = store.range("p/", &after, 7, Some(first.revision)).await.unwrap();
        assert!(page.values.iter().all(|value| value.value == b"old"), "{:?}", page.values);
        keys.extend(page.values.into_iter().map(|value| value.key));
        if !page.more {
            break;
        }
    }
    assert_eq!(keys, (10..30).map(|i| format!("p/{i}")).collect::<Vec<_>>());
}

async fn a_prefix_does_not_leak_into_its_neighbours(harness: Harness) {
    let store = harness.open().await;
    for key in ["a", "a/", "a/1", "a/2", "a0", "b/1"] {
        set(&store, key, "").await;
    }
    let (_, values) = list(&*store, "a/").await.unwrap();
    assert_eq!(values.iter().map(|value| value.key.as_str()).collect::<Vec<_>>(), ["a/", "a/1", "a/2"]);
}

async fn what_was_committed_survives_a_restart(mut harness: Harness) {
    let store = harness.open().await;
    let lease = leased(&store, "node", Duration::from_secs(2)).await;
    let revision = set(&store, "kept", "value").await;
    drop(store);
    if let Harness::Etcd(etcd) = &mut harness {
        etcd.kill();
        etcd.spawn();
    }
    let store = harness.open().await;
    assert_eq!(text(&store, "kept").await.as_deref(), Some("value"));
    // The lease starts anew, in full, and still takes its keys along.
    store.keep_alive(lease).await.unwrap();
    assert!(get(&store, "node").await.is_some());
    let mut watch = store.watch("node", store.read(&[]).await.unwrap().revision);
    assert!(matches!(&next(&mut watch).await.unwrap()[..], [Event::Delete { .. }]));
    assert!(set(&store, "later", "").await > revision);
}

async fn a_watch_survives_a_restart_of_the_server(mut harness: Harness) {
    let Harness::Etcd(_) = harness else {
        // The embedded store has no server: its watches end with it.
        return;
    };
    let store = harness.open().await;
    let mut watch = store.watch("s/", store.read(&[]).await.unwrap().revision);
    set(&store, "s/1", "").await;
    until(&mut watch, "s/1").await;
    if let Harness::Etcd(etcd) = &mut harness {
        etcd.kill();
        etcd.spawn();
    }
    let again = harness.open().await;
    set(&again, "s/2", "").await;
    assert_eq!(until(&mut watch, "s/2").await.len(), 1);
}

#[tokio::test]
async fn a_dead_endpoint_does_not_keep_the_others_from_answering() {
    let etcd = support::Etcd::start();
    let dead = format!("http://127.0.0.1:{}", support::free_port());
    let mut config = etcd.config();
    drop(etcd.connect().await);
    config.endpoints = vec![dead.clone(), etcd.endpoint(), dead];
    let store: SharedStore = Arc::new(jump_control::store::EtcdStore::connect(config).await.unwrap());
    for i in 0..20 {
        set(&store, &format!("f/{i}"), "").await;
    }
    assert_eq!(list(&*store, "f/").await.unwrap().1.len(), 20);
}

#[tokio::test]
async fn an_unreachable_cluster_is_an_error_that_names_its_endpoints() {
    let dead = format!("http://127.0.0.1:{}", support::free_port());
    let config = jump_control::store::etcd::EtcdConfig::new(vec![dead.clone()]);
    let error = jump_control::store::EtcdStore::connect(config).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains(&dead)), "{error}");
}

#[tokio::test]
async fn a_write_that_was_never_sent_is_not_reported_as_unknown() {
    let mut etcd = support::Etcd::start();
    let store = etcd.connect().await;
    etcd.kill();
    let txn = || Txn { compares: vec![], ops: vec![put("a", "1")] };
    // The first may have met the dying connection; once it is known dead, nothing is sent.
    let _ = store.commit(txn()).await;
    let error = store.commit(txn()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}
