//! Garbage from the network: no panic, no growth, no harm to sessions.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::process::resident_bytes;
use jump_tests::lab::programs::{GATEWAY_PORT, MESH_PORT};
use jump_tests::lab::rng::Rng;
use jump_tests::support;

/// What the worker may grow by, for tables that fill up once.
const GROWTH_MAX: u64 = 24 << 20;
/// A pace that the receiver keeps up with, so that the datagrams are looked at and not dropped by the kernel.
const PER_SECOND: u32 = 40_000;

/// Random bytes behind a plausible or an absurd head; every hundredth is larger than the network's MTU.
fn garbage(rng: &mut Rng, buffer: &mut [u8]) -> usize {
    let length = match rng.below(100) {
        0 => 1500 + rng.below(30_000),
        1..=9 => rng.below(20),
        10..=29 => 640,
        _ => rng.below(1400),
    };
    let length = usize::try_from(length).unwrap();
    rng.fill(&mut buffer[..length]);
    if length > 4 && rng.chance(0.9) {
        buffer[0] = u8::try_from(rng.below(8)).unwrap();
        buffer[1] = u8::try_from(rng.below(2)).unwrap();
        buffer[2..4].fill(0);
    }
    length
}

#[test]
fn a_flood_of_garbage_harms_no_session_and_leaves_no_memory_behind() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&Plan { devices: 2, ..Plan::small("garbage") }).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let before = cluster.up(0).unwrap();
    let owner = cluster.gateway_number(before.owner.as_deref().unwrap()).unwrap();
    let worker = cluster.worker(owner).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let host = &cluster.network.devices[1];
    let socket = host.namespace.enter(|| UdpSocket::bind(host.wan_socket(0))).unwrap().unwrap();
    let mut rng = Rng::new(1);
    let mut buffer = vec![0u8; 65_536];
    let mut send = |count: usize| {
        let start = Instant::now();
        for sent in 0..count {
            let length = garbage(&mut rng, &mut buffer);
            let port = if rng.chance(0.8) { GATEWAY_PORT } else { MESH_PORT };
            // A full socket is no concern of ours.
            let _ = socket.send_to(&buffer[..length], cluster.network.gateways[owner].wan_socket(port));
            let due = Duration::from_secs(1) * u32::try_from(sent).unwrap() / PER_SECOND;
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    };
    let count = support::scaled(200_000, 1_000_000);
    // The first part fills every bounded table; from then on nothing may grow.
    send(count / 5);
    let warm = resident_bytes(worker).unwrap();
    send(count - count / 5);
    let grown = resident_bytes(worker).unwrap().saturating_sub(warm);
    assert!(grown < GROWTH_MAX, "the worker grew by {grown} bytes");
    assert_eq!(cluster.worker(owner).unwrap(), worker, "the worker was replaced");
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let now = cluster.ownership(&before.session).unwrap();
    assert_eq!((now.epoch, &now.owner), (before.epoch, &before.owner));
    let report = probe.stop();
    assert!(
        report.answered * 10 >= report.sent * 9,
        "the session lost more than a tenth of its packets: {report:?}"
    );
}
