//! Path MTU discovery over a link that loses what is too long without a word.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::network::{Host, ReturnRoute};
use jump_tests::lab::programs;
use jump_tests::support;

/// IPv4, UDP and a record around an inner packet, and what the switch lets pass above its MTU.
const OUTSIDE: u16 = 20 + 8 + 32;
const SLACK: u16 = 4;
/// A flow that rests longer than this has stalled. Far above what discovery takes, for machines that are busy otherwise.
const STALL_MAX: Duration = Duration::from_secs(10);
const LENGTH: u64 = 24 << 20;

fn carried_by(link: u16) -> RangeInclusive<u64> {
    u64::from(link - OUTSIDE)..=u64::from(link - OUTSIDE + SLACK)
}

fn status(cluster: &Cluster) -> serde_json::Value {
    let state = cluster.state_dir(0);
    let arguments = ["--state-dir", &state.to_string_lossy(), "status", "--output", "json"];
    serde_json::from_str(&programs::output(&cluster.network.devices[0], "jump", &arguments).unwrap()).unwrap()
}

fn wait_for_mtu(cluster: &Cluster, expected: &RangeInclusive<u64>) {
    wait_until(&format!("an inner MTU in {expected:?}"), Duration::from_secs(30), || {
        let status = status(cluster);
        status["mtu_discovery"] == "complete"
            && status["mtu"].as_u64().is_some_and(|mtu| expected.contains(&mtu))
    })
    .unwrap();
}

/// Sends `LENGTH` bytes from the device; the thread returns how many arrived and the longest time without one.
fn upload(device: &Host, inner: &Host, port: u16) -> JoinHandle<(u64, Duration)> {
    let address: SocketAddr = inner.lan_socket(port);
    let listener = inner.namespace.enter(|| TcpListener::bind(address)).unwrap().unwrap();
    let mut stream = device.namespace.enter(|| TcpStream::connect(address)).unwrap().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    std::thread::spawn(move || {
        let chunk = [7; 16 << 10];
        for _ in 0..LENGTH / chunk.len() as u64 {
            if stream.write_all(&chunk).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(4));
        }
    });
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (mut received, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            received += len as u64;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        (received, longest)
    })
}

#[test]
fn the_inner_mtu_rises_to_what_a_narrow_link_carries_and_flows_survive_when_it_gets_narrower() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan { gateways: 1, return_route: ReturnRoute::Gateway(0), ..Plan::small("mtu") };
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.network.set_wan_mtu(&cluster.network.devices[0], 1400).unwrap();
    let before = cluster.up(0).unwrap();
    wait_for_mtu(&cluster, &carried_by(1400));

    let web = WebServer::start(&cluster.network.inner, 80, 4 << 20).unwrap();
    let (device, inner) = (&cluster.network.devices[0], &cluster.network.inner);
    let download = Download::start(device, web.address(), 11, LENGTH).unwrap();
    let upload = upload(device, inner, 81);
    download.wait_for(LENGTH / 4, Duration::from_secs(30)).unwrap();
    cluster.network.set_wan_mtu(device, 1360).unwrap();
    let downloaded = download.finish(Duration::from_secs(120)).unwrap();
    let (uploaded, upload_stall) = upload.join().unwrap();

    assert_eq!(downloaded.digest, expected_digest(11, LENGTH));
    assert_eq!(uploaded, LENGTH);
    println!("longest rest: {:?} down, {upload_stall:?} up", downloaded.longest_stall);
    assert!(downloaded.longest_stall < STALL_MAX, "the download stalled for {:?}", downloaded.longest_stall);
    assert!(upload_stall < STALL_MAX, "the upload stalled for {upload_stall:?}");
    wait_for_mtu(&cluster, &carried_by(1360));
    let after = cluster.ownership(&before.session).unwrap();
    assert_eq!(
        (after.epoch, after.session),
        (before.epoch, before.session),
        "the session was attached again"
    );
}
