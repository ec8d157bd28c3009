//! A rolling restart of everything under a stream: no reset, no packet lost.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::time::{Duration, Instant};

use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::download::{Download, Downloaded, WebServer, expected_digest};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::network::ReturnRoute;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::stream::Stream;
use jump_tests::support;
use rustix::process::Signal;

/// The numbered stream to the device, in Mbit/s: what a debug build carries beside everything else, and the promise.
const STREAM_MBIT: (usize, usize) = (4, 50);
/// The pace of the TCP connection beside it: 8 Mbit/s.
const BYTES_PER_SECOND: u64 = 1_000_000;
/// Seconds that one connection lasts.
const CONNECTION_SECONDS: (usize, usize) = (15, 60);
/// Rounds of restarts.
const ROUNDS: (usize, usize) = (1, 5);
const SEED: u64 = 9;
/// A drain, a registration, or a download's rest on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One TCP connection after the other, so that there is always one whatever the machine's pace.
struct Connections {
    length: u64,
    now: Download,
    ended: Vec<Downloaded>,
}

impl Connections {
    fn start(cluster: &Cluster, web: &WebServer) -> Self {
        let length = BYTES_PER_SECOND * support::scaled(CONNECTION_SECONDS.0, CONNECTION_SECONDS.1) as u64;
        let now = Download::start(&cluster.network.devices[0], web.address(), SEED, length).unwrap();
        now.wait_for(1, PATIENCE).unwrap();
        Self { length, now, ended: Vec::new() }
    }

    /// Makes sure that one is under way.
    fn go_on(&mut self, cluster: &Cluster, web: &WebServer) {
        if self.now.has_ended() {
            let next = Self::start(cluster, web).now;
            self.ended.push(std::mem::replace(&mut self.now, next).finish(PATIENCE).unwrap());
        }
    }

    fn finish(mut self) -> Vec<Downloaded> {
        self.ended.push(self.now.finish(PATIENCE * 2).unwrap());
        for one in &self.ended {
            assert_eq!(one.digest, expected_digest(SEED, self.length), "a connection came through changed");
        }
        self.ended
    }
}

/// Waits until every probe that was sent has had a second to come back, and says how many did not.
fn lost_until_now(probe: &Probe, since: Instant) -> usize {
    let sent = probe.report_since(Some(since)).sent;
    // Those that are not back by then are lost.
    let _ = wait_until("every echo is back", Duration::from_secs(1), || {
        probe.report_since(Some(since)).answered >= sent
    });
    sent.saturating_sub(probe.report_since(Some(since)).answered)
}

#[test]
fn a_rolling_restart_of_all_gateways_and_control_replicas_resets_nothing_and_loses_no_packet() {
    let _one = support::one_at_a_time().unwrap();
    let mut plan = Plan::small("rolling").with_store(Store::Etcd);
    plan.return_route = ReturnRoute::Gateway(0);
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let web = WebServer::start(&cluster.network.inner, 8080, BYTES_PER_SECOND).unwrap();
    let before = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(20, PATIENCE).unwrap();
    let start = Instant::now();
    let mut connections = Connections::start(&cluster, &web);
    let rate_bits = support::scaled(STREAM_MBIT.0, STREAM_MBIT.1) as u64 * 1_000_000;
    let sink = std::net::SocketAddr::new(before.inner[0], 9);
    let stream = Stream::start(&cluster.network.inner, &cluster.network.devices[0], sink, rate_bits).unwrap();
    stream.wait_for(100, PATIENCE).unwrap();

    for round in 1..=support::scaled(ROUNDS.0, ROUNDS.1) {
        for i in 0..cluster.gateways.len() {
            connections.go_on(&cluster, &web);
            // What a routing daemon does before a gateway is told to end: its way back is withdrawn.
            let other = (i + 1) % cluster.gateways.len();
            cluster.network.route_back(ReturnRoute::Gateway(other)).unwrap();
            cluster.gateways[i].signal(Signal::TERM).unwrap();
            let status = cluster.gateways[i].wait_end(PATIENCE).unwrap();
            assert!(status.success(), "gateway {i} ended with {status}");
            cluster.gateways[i] = cluster.start_gateway(i).unwrap();
            cluster.wait_registered(i, PATIENCE).unwrap();
            probe.wait_for_echoes(100, PATIENCE).unwrap();
            let lost = lost_until_now(&probe, start);
            eprintln!("round {round}: gateway {i} restarted, {lost} probes unanswered so far");
        }
        for i in 0..cluster.controls.len() {
            connections.go_on(&cluster, &web);
            cluster.controls[i].signal(Signal::TERM).unwrap();
            let status = cluster.controls[i].wait_end(PATIENCE).unwrap();
            assert!(status.success(), "control replica {i} ended with {status}");
            cluster.controls[i] = cluster.start_control(i).unwrap();
            probe.wait_for_echoes(100, PATIENCE).unwrap();
            let lost = lost_until_now(&probe, start);
            eprintln!("round {round}: control {i} restarted, {lost} probes unanswered so far");
        }
    }

    let stream = stream.finish().unwrap();
    let lost = lost_until_now(&probe, start);
    let seen = probe.report_since(Some(start));
    let connections = connections.finish();
    let after = cluster.ownership(&before.session).unwrap();
    eprintln!(
        "{stream:?}; {} probes, {lost} lost, longest gap {:?}; {} TCP connections, longest stall {:?}; epoch {} to {}",
        seen.sent,
        seen.longest_gap,
        connections.len(),
        connections.iter().map(|one| one.longest_stall).max(),
        before.epoch,
        after.epoch
    );
    assert_eq!(after.inner_text(), before.inner_text(), "the inner addresses changed");
    assert_eq!((stream.lost, stream.duplicates), (0, 0), "{stream:?}");
    assert_eq!((lost, seen.duplicates, seen.send_errors), (0, 0, 0), "of {} probes", seen.sent);
}
