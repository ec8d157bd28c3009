//! Control against a real etcd: what grouping gains, how long a mass reattach takes, what a million records cost.
//! `make bench-control` runs it; `docs/ownership.md` keeps the numbers.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed benchmark")]
#![expect(dead_code, reason = "the tests' support has more than a benchmark needs")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jump_control::layout;
use jump_control::store::etcd::EtcdStore;
use jump_control::store::group::Many as _;
use jump_control::store::{Compare, GroupCommit, Op, Outcome, SharedStore, Txn};
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::gateway_service_client::GatewayServiceClient;
use jump_proto::store_v1::{AddressRecord, DeviceRecord};
use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, NodeId, Revision, SessionId};
use jump_session::ownership::{HistoryEntry, Owner, Phase, SessionRecord};
use jump_session::policy::DevicePolicy;
use jump_session::reason::Reason;
use prost::Message as _;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[path = "../tests/support/cluster.rs"]
mod cluster;
#[path = "../tests/support/mod.rs"]
mod support;

use cluster::{Gateway, Pki, Server};
use support::Etcd;

/// Requests that wait for an answer at a time, in the first comparison.
const OUTSTANDING: usize = 256;
/// Calls to control that one gateway has open at a time, as the gateway itself bounds them.
const CALLS_PER_GATEWAY: usize = 256;
/// How long each side of the comparison runs, each of three times.
const ROUND: Duration = Duration::from_secs(3);
/// Attaches that are measured at each size.
const MEASURED: usize = 4000;
/// Calls at a time when single latencies are measured.
const MEASURED_AT_A_TIME: usize = 4;
/// How long the store may take to read its records at a start.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// How long the store rests between the records' writing and the measurement.
const AFTER_LOAD: Duration = Duration::from_secs(10);
/// Sessions of the gateway that dies.
const REATTACHED: usize = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{} CPUs, etcd on loopback with its write-ahead log synced to disk", cpus());
    let mut met = true;
    if wanted("batches") {
        met &= runtime.block_on(compare_batches());
    }
    if wanted("reattach") {
        met &= runtime.block_on(mass_reattach());
    }
    if wanted("million") {
        met &= runtime.block_on(million());
    }
    if !met {
        println!("a bar was not met");
        std::process::exit(1);
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT MET" }
}

/// Compare-and-swaps per second, [`OUTSTANDING`] at a time, each worker on a key of its own.
async fn swaps(store: &SharedStore, round: &str) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let deadline = Instant::now() + ROUND;
    let workers = (0..OUTSTANDING).map(|worker| {
        let (store, done) = (Arc::clone(store), Arc::clone(&done));
        let key = format!("/bench/{round}/{worker}");
        tokio::spawn(async move {
            let mut at = Revision(0);
            while Instant::now() < deadline {
                let txn = Txn {
                    compares: vec![Compare::Modified(key.clone(), at)],
                    ops: vec![Op::put(&key, vec![7; 300])],
                };
                match store.commit(txn).await.unwrap() {
                    Outcome::Committed(revision) => at = revision,
                    Outcome::Conflict => panic!("a worker lost on its own key"),
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let started = Instant::now();
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

async fn compare_batches() -> bool {
    let etcd = Etcd::start_as(true);
    let plain = etcd.connect().await;
    let grouped: SharedStore = Arc::new(GroupCommit::new(plain.clone()));
    let plain: SharedStore = Arc::new(plain);
    let mut ratios = Vec::new();
    for round in 0..3 {
        let single = swaps(&plain, &format!("single{round}")).await;
        let batched = swaps(&grouped, &format!("batched{round}")).await;
        println!(
            "  {OUTSTANDING} outstanding: single {single:.0}/s, batched {batched:.0}/s, ratio {:.2}",
            batched / single
        );
        ratios.push(batched / single);
    }
    ratios.sort_by(f64::total_cmp);
    let met = ratios[1] >= 3.0;
    println!(
        "batched compare-and-swap at {OUTSTANDING} outstanding: median ratio {:.2}, bar 3: {}",
        ratios[1],
        verdict(met)
    );
    met
}

fn device(number: usize) -> [u8; 32] {
    let mut key = [9; 32];
    key[..8].copy_from_slice(&(number as u64).to_be_bytes());
    key
}

/// The id of the `number`th session: spread over the buckets.
fn session(number: usize) -> SessionId {
    let mixed = (number as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mixed.to_be_bytes());
    bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
    SessionId::from_bytes(bytes)
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// A session as a day's use leaves it: owned, with some history.
fn record(number: usize, owner: &Owner) -> SessionRecord {
    let entry = |epoch| HistoryEntry {
        epoch: Epoch(epoch),
        owner: owner.clone(),
        since: now() - 60_000,
        reason: Reason::NetworkChanged,
    };
    SessionRecord {
        id: session(number),
        device: DeviceKey::from_bytes(device(number)),
        device_name: format!("device {number}"),
        epoch: Epoch(4),
        attach_seq: AttachSeq(4),
        attempt: AttemptId::from_bytes([4; 16]),
        phase: Phase::Owned { owner: owner.clone() },
        inner: vec![std::net::Ipv4Addr::from(0x0a00_0002 + number as u32).into()],
        created: now() - 3_600_000,
        changed: now() - 60_000,
        expires: now() + 20 * 3_600_000,
        reason: Reason::NetworkChanged,
        history: (1..=4).rev().map(entry).collect(),
        recent_switches: Vec::new(),
        moving: None,
        correlation: [7; 16],
        policy: DevicePolicy::default(),
    }
}

/// Writes sessions with their devices and addresses straight into the store.
async fn populate(etcd: &Etcd, numbers: std::ops::Range<usize>, owner: &Owner) {
    let started = Instant::now();
    let store = etcd.connect().await;
    let count = numbers.len();
    let numbers: Vec<usize> = numbers.collect();
    let batches = numbers.chunks(60).map(|chunk| {
        let txns: Vec<Txn> = chunk
            .iter()
            .map(|number| {
                let record = record(*number, owner);
                let device = DeviceRecord {
                    device_key: record.device.as_bytes().to_vec(),
                    name: record.device_name.clone(),
                    sessions: vec![record.id.to_bytes().to_vec()],
                    ..DeviceRecord::default()
                };
                let session_id = record.id.to_bytes().to_vec();
                let address = AddressRecord { session_id, quarantine_until_ms: 0 }.encode_to_vec();
                let addresses =
                    record.inner.iter().map(|inner| Op::put(layout::address(*inner), address.clone()));
                let mut ops = vec![
                    Op::put(layout::session(record.id), layout::session_value(&record)),
                    Op::put(layout::device(&record.device), device.encode_to_vec()),
                ];
                ops.extend(addresses);
                Txn { compares: Vec::new(), ops }
            })
            .collect();
        let store = store.clone();
        async move { store.commit_many(&txns).await.unwrap() }
    });
    futures::stream::iter(batches).buffer_unordered(4).for_each(|_| async {}).await;
    println!(
        "  wrote {count} sessions with their devices and addresses in {:.1} s",
        started.elapsed().as_secs_f64()
    );
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Reattaches sessions through `gateways` in turn, `at_a_time` calls of each open; the sorted times of the calls.
async fn reattach(gateways: &[Gateway], numbers: Vec<usize>, at_a_time: usize) -> Vec<Duration> {
    let shares = gateways.iter().enumerate().map(|(index, gateway)| {
        let mine: Vec<usize> = numbers.iter().copied().skip(index).step_by(gateways.len()).collect();
        let gateway = gateway.clone();
        tokio::spawn(async move {
            let calls = mine.into_iter().map(|number| {
                let gateway = gateway.clone();
                async move {
                    let request = gateway.attach_request(device(number), &session(number).to_string(), 5);
                    let started = Instant::now();
                    let accepted = gateway.accepted(request).await;
                    assert_eq!(accepted.epoch, 5, "session {number}");
                    started.elapsed()
                }
            });
            futures::stream::iter(calls).buffer_unordered(at_a_time).collect::<Vec<_>>().await
        })
    });
    let mut times = Vec::new();
    for share in shares.collect::<Vec<_>>() {
        times.extend(share.await.unwrap());
    }
    times.sort_unstable();
    times
}

fn owner_of(gateway: &Gateway) -> Owner {
    let node: NodeId = gateway.name.parse().unwrap();
    Owner { node, incarnation: Incarnation(gateway.incarnation) }
}

/// With the longest lease: writing a million records takes most of it.
const SETTINGS: [(&str, &str); 2] = [("pools", "10.0.0.0/8,fd00:77::/64"), ("lease.ttl", "60s")];

async fn replica(pki: &Pki, etcd: &Etcd) -> Server {
    Server::start(pki, Arc::new(GroupCommit::new(etcd.connect().await)), &SETTINGS).await
}

/// Follows the bindings as a gateway does; counts what it is told of sessions.
async fn follow(gateway: &Gateway) -> Arc<AtomicU64> {
    let request = wire::WatchBindingsRequest {
        node_id: gateway.name.clone(),
        incarnation: gateway.incarnation,
        after_revision: 0,
    };
    let mut stream = gateway.client.clone().watch_bindings(request).await.unwrap().into_inner();
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok(Some(message)) = stream.message().await {
            count.fetch_add(message.bindings.len() as u64, Ordering::Relaxed);
        }
    });
    told
}

async fn mass_reattach() -> bool {
    let mut worst = Duration::ZERO;
    for run in 1..=3 {
        let (etcd, pki) = (Etcd::start_as(true), Pki::new());
        let server = replica(&pki, &etcd).await;
        let dead = Gateway::register(&pki, &server, "gw1").await;
        populate(&etcd, 0..REATTACHED, &owner_of(&dead)).await;
        let others =
            [Gateway::register(&pki, &server, "gw2").await, Gateway::register(&pki, &server, "gw3").await];
        let told = [follow(&others[0]).await, follow(&others[1]).await];
        let started = Instant::now();
        let gone = wire::DeregisterRequest {
            node_id: dead.name.clone(),
            incarnation: dead.incarnation,
            reason: "NODE_LOST".to_owned(),
        };
        dead.client.clone().deregister(gone).await.unwrap();
        let times = reattach(&others, (0..REATTACHED).collect(), CALLS_PER_GATEWAY).await;
        let took = started.elapsed();
        worst = worst.max(took);
        println!(
            "  run {run}: {REATTACHED} sessions reattached in {:.2} s ({:.0}/s), call p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms; {} bindings streamed",
            took.as_secs_f64(),
            REATTACHED as f64 / took.as_secs_f64(),
            millis(percentile(&times, 0.5)),
            millis(percentile(&times, 0.99)),
            millis(times[times.len() - 1]),
            told.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>(),
        );
        server.stop().await;
    }
    let met = worst <= Duration::from_secs(3);
    println!(
        "mass reattach of {REATTACHED} sessions, deregistration to the last acceptance: worst {:.2} s, bar 3 s: {}",
        worst.as_secs_f64(),
        verdict(met)
    );
    met
}

/// Waits until a replica has listed the store: before that nobody sends it anything.
async fn until_ready(channel: Channel) {
    let mut health = HealthClient::new(channel);
    loop {
        let answer = health.check(HealthCheckRequest { service: String::new() }).await;
        if answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts the store again, as it would stand after a day's use. etcd 3.4 keeps a read buffer as long as its fullest batch of
/// writes was, and copies it for every read: after writing a million records at once that are 0.66 MB a transaction, and its
/// garbage collector marks the index of all records without a pause (docs/ownership.md).
async fn restart(etcd: &mut Etcd) {
    etcd.kill();
    etcd.spawn();
    let deadline = Instant::now() + RESTART_MAX;
    while EtcdStore::connect(etcd.config()).await.is_err() {
        assert!(Instant::now() < deadline, "etcd does not serve {RESTART_MAX:?} after its start");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Renews the leases of gateways by a replica that they may not have met yet; from here on each has a minute.
async fn renew_all(pki: &Pki, server: &Server, gateways: &mut [Gateway]) {
    for gateway in gateways {
        let channel = server.channel(pki, Some(&format!("gateway-{}", gateway.name))).await;
        gateway.client = GatewayServiceClient::new(channel);
        let request = wire::RenewRequest {
            node_id: gateway.name.clone(),
            incarnation: gateway.incarnation,
            ..wire::RenewRequest::default()
        };
        gateway.client.renew(request).await.unwrap();
    }
}

async fn million() -> bool {
    let (mut etcd, pki) = (Etcd::start_as(true), Pki::new());
    let mut p99 = Vec::new();
    let mut filled = 0;
    // Every gateway lives on: of a lost one the reaper would release the sessions, one after another, beside what is measured.
    let mut gateways: Vec<Gateway> = Vec::new();
    for (size, first) in [(10_000, 0), (1_000_000, 10_000)] {
        let server = replica(&pki, &etcd).await;
        let old = Gateway::register(&pki, &server, &format!("old{size}")).await;
        let owner = owner_of(&old);
        gateways.push(old);
        renew_all(&pki, &server, &mut gateways).await;
        server.stop().await;
        populate(&etcd, filled..size, &owner).await;
        filled = size;
        restart(&mut etcd).await;
        let started = Instant::now();
        let server = replica(&pki, &etcd).await;
        let channel = server.channel(&pki, Some(&format!("gateway-{}", owner.node))).await;
        until_ready(channel).await;
        renew_all(&pki, &server, &mut gateways).await;
        let old = gateways[gateways.len() - 1].clone();
        let new = Gateway::register(&pki, &server, &format!("new{size}")).await;
        gateways.push(new.clone());
        println!(
            "  a replica lists {size} sessions and serves after {:.1} s",
            started.elapsed().as_secs_f64()
        );
        // Attaches among that many records are measured, not what the store does after so many writes at once.
        tokio::time::sleep(AFTER_LOAD).await;
        // Each attach is a takeover after a release.
        let release = |number: usize| {
            let mut client = old.client.clone();
            let request = wire::ReleaseRequest {
                node_id: old.name.clone(),
                incarnation: old.incarnation,
                session_id: session(number).to_string(),
                epoch: 4,
                reason: "DRAINED".to_owned(),
                terminate: false,
                switch_ages_ms: Vec::new(),
            };
            async move { client.release(request).await.unwrap() }
        };
        let numbers: Vec<usize> = (first..first + MEASURED).collect();
        futures::stream::iter(numbers.clone()).map(release).buffer_unordered(64).for_each(|_| async {}).await;
        let times = reattach(&[new], numbers, MEASURED_AT_A_TIME).await;
        println!(
            "  {size} records: {MEASURED} attaches, {MEASURED_AT_A_TIME} at a time: p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
            millis(percentile(&times, 0.5)),
            millis(percentile(&times, 0.99)),
            millis(times[times.len() - 1]),
        );
        p99.push(percentile(&times, 0.99));
        server.stop().await;
    }
    let ratio = p99[1].as_secs_f64() / p99[0].as_secs_f64();
    println!(
        "attach p99 at 1,000,000 records to that at 10,000: {ratio:.2}, bar 2: {}",
        verdict(ratio <= 2.0)
    );
    ratio <= 2.0
}
