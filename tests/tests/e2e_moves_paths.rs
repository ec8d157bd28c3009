//! A session goes on when the way to its gateway changes: another network, another NAT mapping, another transport.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use jump_session::reason::Reason;
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::moves::{Change, Sample, Scene};
use jump_tests::support;

const SEED: u64 = 11;
/// A download that would last a minute, until it is told to hurry.
const LENGTH: u64 = 30 << 20;
const RATE: u64 = 512 << 10;
const HURRY: u64 = 1 << 30;

/// A scene with a download through the tunnel that goes on under whatever is done to it.
struct Streaming {
    scene: Scene,
    web: WebServer,
    download: Download,
}

impl Streaming {
    fn start(label: &'static str) -> Self {
        let scene = Scene::set(&Scene::plan(label)).unwrap();
        let web = WebServer::start(&scene.cluster.network.inner, 80, RATE).unwrap();
        let device = &scene.cluster.network.devices[0];
        let download = Download::start(device, web.address(), SEED, LENGTH).unwrap();
        download.wait_for(RATE / 8, support::SOON).unwrap();
        Self { scene, web, download }
    }

    fn change(&mut self, change: Change) -> Sample {
        let sample = self.scene.measure(change).unwrap();
        eprintln!("{change:?}: {sample:?}");
        assert_eq!(sample.duplicates, 0, "{change:?}");
        sample
    }

    /// The connection that was open all the time has lost nothing, the session is the one that it was, and a gateway has told
    /// of its move and why.
    fn end(self, reason: Reason) {
        self.scene.cluster.wait_for_audited(reason.code(), support::SOON).unwrap();
        let (received, _) = self.download.progress();
        assert!(received < LENGTH, "the download was over before the last change");
        self.web.set_pace(HURRY);
        let done = self.download.finish(support::SOON * 4).unwrap();
        assert_eq!(done.digest, expected_digest(SEED, LENGTH));
        self.scene.ensure_same_session().unwrap();
    }
}

#[test]
fn a_session_and_its_connections_follow_the_device_into_other_networks() {
    let _one = support::one_at_a_time().unwrap();
    let mut streaming = Streaming::start("moves-networks");
    let changes =
        [Change::OtherNetwork, Change::PreferredNetwork, Change::PreferredNetwork, Change::OtherNetwork];
    let bindings: Vec<u64> = changes.into_iter().map(|change| streaming.change(change).binding).collect();
    assert!(bindings.is_sorted_by(|a, b| a < b), "each move has a number of its own: {bindings:?}");
    streaming.end(Reason::NetworkChanged);
}

#[test]
fn a_nat_that_forgets_the_session_costs_a_binding_and_nothing_else() {
    let _one = support::one_at_a_time().unwrap();
    let mut streaming = Streaming::start("moves-nat");
    let ports = streaming.change(Change::NatPort).binding;
    let addresses = streaming.change(Change::NatAddress).binding;
    assert!(0 < ports && ports < addresses, "{ports} {addresses}");
    streaming.end(Reason::NatRebind);
}

#[test]
fn a_session_that_only_receives_survives_a_nat_that_forgets_it() {
    let _one = support::one_at_a_time().unwrap();
    let mut scene = Scene::set(&Scene::plan("moves-downlink")).unwrap();
    let sample = scene.measure(Change::NatPortDownlinkOnly).unwrap();
    eprintln!("{sample:?}");
    assert_eq!(sample.duplicates, 0);
    assert!(sample.binding > 0);
    scene.ensure_same_session().unwrap();
}

/// Leaves UDP and comes back: once each, under the same session, and the connection inside has lost nothing.
fn leaves_and_returns(label: &'static str, change: Change) {
    let _one = support::one_at_a_time().unwrap();
    let mut streaming = Streaming::start(label);
    let mark = streaming.scene.device().unwrap().mark();
    let sample = streaming.change(change);
    assert!(sample.back.is_some());
    let path = streaming.scene.journal_since(mark, "path").unwrap();
    assert_eq!(path.len(), 2, "left once and came back once, no flapping: {path:?}");
    streaming.end(Reason::TransportChanged);
}

#[test]
fn udp_that_is_dropped_is_left_for_tcp_and_taken_back() {
    leaves_and_returns("moves-dropped", Change::UdpDropped);
}

#[test]
fn udp_that_is_refused_is_left_for_tcp_and_taken_back() {
    leaves_and_returns("moves-refused", Change::UdpRejected);
}

#[test]
fn a_udp_port_that_is_dropped_is_left_for_quic_and_taken_back() {
    leaves_and_returns("moves-quic", Change::OnlyQuic);
}

#[test]
fn a_network_that_lets_only_tls_through_is_good_enough() {
    leaves_and_returns("moves-tls", Change::OnlyTls);
}
