//! A paused gateway never wakes up as a second owner: seen on the wires, not in its logs.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use jump_tests::lab::capture::{Capture, Captured};
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::network::{LAN_LINK, ReturnRoute, WAN_LINK};
use jump_tests::lab::ownership::Ownership;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::support;
use rustix::process::{Signal, kill_process};

/// The most packets that one turn of the data plane may have in hand.
const BATCH_MAX: usize = 64;
/// Longer than any lease: what still comes through after that is not coming.
const LONG: Duration = Duration::from_secs(20);

/// A cluster with a session whose owner is about to be paused, a probe through it, and captures on the owner's wires.
struct Scene {
    probe: Probe,
    _echo: EchoServer,
    before: Ownership,
    inner: Ipv4Addr,
    owner: usize,
    lan: Capture,
    wan: Capture,
    cluster: Cluster,
}

impl Scene {
    fn set(label: &'static str) -> Self {
        let mut cluster = Cluster::start(&Plan::small(label)).unwrap();
        let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
        let before = cluster.up(0).unwrap();
        let owner = cluster.gateway_number(before.owner.as_deref().unwrap()).unwrap();
        cluster.network.route_back(ReturnRoute::Gateway(1 - owner)).unwrap();
        let Some(IpAddr::V4(inner)) = before.inner.iter().find(|a| a.is_ipv4()).copied() else {
            panic!("no inner IPv4 address in {before:?}")
        };
        let host = &cluster.network.gateways[owner];
        let lan = Capture::start(host, LAN_LINK, &format!("src host {inner}")).unwrap();
        let device = cluster.network.devices[0].wan;
        let wan =
            Capture::start(host, WAN_LINK, &format!("udp and src port {GATEWAY_PORT} and dst host {device}"))
                .unwrap();
        let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
        probe.wait_for_echoes(40, support::SOON).unwrap();
        Self { probe, _echo: echo, before, inner, owner, lan, wan, cluster }
    }

    /// Waits until the other gateway owns the session and the probe is answered through it.
    fn wait_for_takeover(&self) -> Ownership {
        let mut watch = self.cluster.watch_ownership(&self.before.session).unwrap();
        let after = watch
            .wait_for("the other owner", LONG, |_| {}, |o| o.epoch > self.before.epoch && o.phase == "OWNED")
            .unwrap();
        assert_ne!(after.owner, self.before.owner);
        assert_eq!(after.inner, self.before.inner);
        self.probe.wait_for_echoes(40, support::SOON).unwrap();
        after
    }

    /// Inner packets that the paused gateway put on the inner network, and records that it sent to the device, since.
    fn forwarded_since(self, since: SystemTime) -> (usize, usize) {
        let count = |packets: Vec<Captured>| packets.iter().filter(|p| p.at > since).count();
        let up = self.lan.stop();
        assert!(
            up.iter().any(|p| p.ipv4().is_some_and(|(source, _)| source == self.inner)),
            "the capture saw nothing"
        );
        // A record carries an inner packet; what is shorter is an answer about the gateway's own state, such as a hint.
        let down =
            self.wan.stop().into_iter().filter(|p| p.udp_payload().is_some_and(|d| d.first() == Some(&4)));
        (count(up), count(down.collect()))
    }
}

#[test]
fn a_paused_worker_forwards_nothing_once_the_session_has_moved() {
    let _one = support::one_at_a_time().unwrap();
    let scene = Scene::set("pause-worker");
    let worker = scene.cluster.worker(scene.owner).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    scene.wait_for_takeover();
    let resumed = SystemTime::now();
    // The supervisor has killed it by now; if it had not, this would wake it up.
    let _ = kill_process(worker, Signal::CONT);
    scene.cluster.wait_registered(scene.owner, support::SOON).unwrap();
    scene.probe.wait_for_echoes(100, support::SOON).unwrap();
    assert_eq!(scene.forwarded_since(resumed), (0, 0));
}

#[test]
fn a_gateway_paused_whole_forwards_at_most_the_batch_in_hand_when_it_wakes_up() {
    let _one = support::one_at_a_time().unwrap();
    let scene = Scene::set("pause-both");
    let worker = scene.cluster.worker(scene.owner).unwrap();
    let supervisor = scene.cluster.gateways[scene.owner].pid();
    kill_process(supervisor, Signal::STOP).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let after = scene.wait_for_takeover();
    let resumed = SystemTime::now();
    kill_process(worker, Signal::CONT).unwrap();
    kill_process(supervisor, Signal::CONT).unwrap();
    scene.cluster.wait_registered(scene.owner, support::SOON).unwrap();
    scene.probe.wait_for_echoes(100, support::SOON).unwrap();
    let now = scene.cluster.ownership(&scene.before.session).unwrap();
    assert_eq!((now.owner, now.epoch), (after.owner, after.epoch), "the woken gateway took the session back");
    let (up, down) = scene.forwarded_since(resumed);
    assert!(up <= BATCH_MAX && down <= BATCH_MAX, "{up} inner packets and {down} records after the deadline");
}
