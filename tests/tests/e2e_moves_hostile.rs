//! Nobody moves a session but its client, and the client no faster than its policy.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, SealingKey};
use jump_session::frame::{AttachResult, FRAME_LEN_MAX, Frame};
use jump_session::policy::SessionPolicy;
use jump_session::reason::Reason;
use jump_tests::lab::bare_device::{BareDevice, ClusterKeys, device_key};
use jump_tests::lab::capture::Capture;
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::network::{ReturnRoute, WAN_LINK};
use jump_tests::lab::ownership::Ownership;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::process::Mark;
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::lab::rewriter::Rewriter;
use jump_tests::moves::{Change, Scene};
use jump_tests::support;

/// Asked a hundred times a second.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// A cluster with a victim that is up and probed, and an attacker's device that is enrolled.
struct Stage {
    probe: Probe,
    _echo: EchoServer,
    victim: Ownership,
    cluster: Cluster,
}

impl Stage {
    fn set(label: &'static str) -> Self {
        let mut cluster = Cluster::start(&Plan { devices: 2, ..Plan::small(label) }).unwrap();
        let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
        let victim = cluster.up(0).unwrap();
        let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
        probe.wait_for_echoes(40, support::SOON).unwrap();
        Self { probe, _echo: echo, victim, cluster }
    }

    fn attacker(&self) -> BareDevice {
        let state = self.cluster.state_dir(1);
        let (key, keys) = (device_key(&state).unwrap(), ClusterKeys::of_profile(&state).unwrap());
        BareDevice::new(key, keys, self.socket()).unwrap()
    }

    fn socket(&self) -> UdpSocket {
        let host = &self.cluster.network.devices[1];
        host.namespace.enter(|| UdpSocket::bind(host.wan_socket(0))).unwrap().unwrap()
    }

    /// The victim has felt nothing: same owner and epoch, and every probe came back.
    fn end(self, since: Instant) {
        self.probe.wait_for_echoes(40, support::SOON).unwrap();
        let now = self.cluster.ownership(&self.victim.session).unwrap();
        assert_eq!((now.owner, now.epoch), (self.victim.owner, self.victim.epoch));
        let bound = self.cluster.devices[0].as_ref().unwrap().lines_since(Mark::default());
        assert!(!bound.iter().any(|line| line.contains(r#""event":"bound""#)), "the victim was moved");
        let lost = self.probe.lost_between(since, Instant::now() - Duration::from_millis(100));
        assert_eq!(lost, 0, "the victim lost probes");
    }
}

fn sealed(sealing: &mut SealingKey, frame: &Frame) -> Vec<u8> {
    let mut buffer = [0u8; FRAME_LEN_MAX + OVERHEAD];
    let length = frame.encode(&mut buffer[HEADER_LEN..]).unwrap();
    let length = sealing.seal(Content::Control, &mut buffer, length).unwrap();
    buffer[..length].to_vec()
}

#[test]
fn a_client_that_asks_for_another_path_a_hundred_times_a_second_moves_as_often_as_its_policy_says() {
    let _one = support::one_at_a_time().unwrap();
    let stage = Stage::set("abuse-paths");
    let gateway = stage.cluster.network.gateways[0].wan_socket(GATEWAY_PORT);
    let mut hand = stage.attacker();
    let intent = hand.intent(None, 1, Reason::Birth).unwrap();
    let (result, mut ready) = hand.attach(&intent, gateway, support::SOON).unwrap();
    assert!(matches!(result, AttachResult::Accepted(_)), "{result:?}");
    let sockets = [stage.socket(), stage.socket()];
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let (start, mut bindings, mut asked) = (Instant::now(), Vec::new(), 0u32);
    while start.elapsed() < Duration::from_secs(support::scaled(4, 20) as u64) {
        let id = u64::from(asked);
        let ask = sealed(&mut ready.established.sealing, &Frame::Ping { id });
        sockets[asked as usize % 2].send_to(&ask, gateway).unwrap();
        asked += 1;
        while Instant::now() < start + ASK_EVERY * asked {
            for socket in &sockets {
                let mut bytes = [0u8; 2048];
                while let Ok(length) = socket.recv(&mut bytes) {
                    let Ok(opened) = ready.established.opening.open(&mut bytes[..length]) else { continue };
                    match Frame::decode(opened.plaintext) {
                        Ok(Frame::PathChallenge { token }) => {
                            let answer =
                                sealed(&mut ready.established.sealing, &Frame::PathResponse { token });
                            socket.send_to(&answer, gateway).unwrap();
                        }
                        Ok(Frame::Bound { binding }) => bindings.push(binding),
                        _ => {}
                    }
                }
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    let most = u64::from(SessionPolicy::default().switches_per_minute_max);
    let moved = bindings.iter().copied().max().unwrap_or(0);
    eprintln!("asked {asked} times, moved {moved} times");
    assert!((1..=most).contains(&moved), "moved {moved} times of {asked}");
    stage.cluster.wait_for_audited(Reason::SwitchRateExceeded.code(), support::SOON).unwrap();
    stage.end(start);
}

#[test]
fn a_client_that_asks_for_another_owner_a_hundred_times_a_second_is_refused_with_a_reason() {
    let _one = support::one_at_a_time().unwrap();
    let stage = Stage::set("abuse-owners");
    let gateways: Vec<SocketAddr> =
        stage.cluster.network.gateways.iter().map(|host| host.wan_socket(GATEWAY_PORT)).collect();
    let mut hand = stage.attacker();
    let intent = hand.intent(None, 1, Reason::Birth).unwrap();
    let (result, _) = hand.attach(&intent, gateways[0], support::SOON).unwrap();
    let AttachResult::Accepted(born) = result else { panic!("{result:?}") };
    let (start, mut accepted, mut refused) = (Instant::now(), 0, BTreeMap::new());
    for attempt in 0..support::scaled(60, 300) as u32 {
        let seq = 2 + u64::from(attempt);
        let intent = hand.intent(Some(born.session), seq, Reason::ClientRequest).unwrap();
        let gateway = gateways[attempt as usize % gateways.len()];
        match hand.attach(&intent, gateway, support::SOON).unwrap().0 {
            AttachResult::Accepted(_) => accepted += 1,
            AttachResult::Rejected { reason, .. } => *refused.entry(reason.code()).or_insert(0) += 1,
        }
        std::thread::sleep((start + ASK_EVERY * attempt).saturating_duration_since(Instant::now()));
    }
    eprintln!("{accepted} accepted, refused {refused:?} in {:?}", start.elapsed());
    let minutes = 1 + u32::try_from(start.elapsed().as_secs() / 60).unwrap();
    assert!(accepted <= SessionPolicy::default().switches_per_minute_max * minutes, "{accepted} accepted");
    let paced = [Reason::SwitchRateExceeded.code(), Reason::SwitchCooldown.code()];
    assert!(!refused.is_empty() && refused.keys().all(|reason| paced.contains(reason)), "{refused:?}");
    stage.end(start);
}

#[test]
fn somebody_on_the_way_who_rewrites_source_addresses_moves_nothing_and_gets_no_more_than_the_budget() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&Plan {
        devices: 2,
        gateways: 1,
        return_route: ReturnRoute::Gateway(0),
        ..Plan::small("rewritten")
    })
    .unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let gateway = cluster.network.gateways[0].wan_socket(GATEWAY_PORT);
    let rewriter = Rewriter::start(&cluster.network.devices[1], gateway).unwrap();
    let way = rewriter.address().to_string();
    let before = cluster.up_with(0, &["--gateway", &way, "--transports", "udp"]).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let start = Instant::now();
    rewriter.rewrite(true);
    probe.wait_for_echoes(support::scaled(600, 6000), support::SOON * 4).unwrap();
    rewriter.rewrite(false);
    let (sent, received) = rewriter.rewritten_bytes();
    eprintln!("{sent} bytes under a rewritten source, {received} bytes to it");
    assert!(sent > 0 && received <= 3 * sent, "{received} bytes for {sent}");
    probe.wait_for_echoes(100, support::SOON).unwrap();
    let lines = cluster.devices[0].as_ref().unwrap().lines_since(Mark::default());
    assert!(!lines.iter().any(|line| line.contains(r#""event":"bound""#)), "the session was moved");
    let now = cluster.ownership(&before.session).unwrap();
    assert_eq!((now.owner, now.epoch), (before.owner, before.epoch));
    assert_eq!(probe.lost_between(start, Instant::now() - Duration::from_millis(200)), 0);
}

#[test]
fn recorded_path_responses_and_reflected_datagrams_move_nothing() {
    let _one = support::one_at_a_time().unwrap();
    let mut scene = Scene::set(&Plan { devices: 2, ..Scene::plan("recorded") }).unwrap();
    let owner = scene.owner;
    let gateway = scene.cluster.network.gateways[owner].wan_socket(GATEWAY_PORT);
    let capture = Capture::start(
        &scene.cluster.network.gateways[owner],
        WAN_LINK,
        &format!("udp and port {GATEWAY_PORT}"),
    )
    .unwrap();
    // A move with its challenge and its response.
    scene.measure(Change::NatPort).unwrap();
    let recorded = capture.stop();
    let to_gateway = |up: bool| {
        let recorded = recorded
            .iter()
            .filter(move |packet| packet.udp_ports().is_some_and(|(_, to)| (to == GATEWAY_PORT) == up));
        recorded.filter_map(|packet| packet.udp_payload().map(<[u8]>::to_vec)).collect::<Vec<_>>()
    };
    let (up, down) = (to_gateway(true), to_gateway(false));
    assert!(up.len() > 10 && down.len() > 10, "{} up, {} down", up.len(), down.len());

    let probe = scene.probe().unwrap();
    let moves = scene.total("jump_gateway_events_total", r#"event="path_moves""#).unwrap();
    let replays = scene.total("jump_gateway_packets_dropped_total", r#"reason="replay""#).unwrap();
    let mark = scene.device().unwrap().mark();
    let attacker = &scene.cluster.network.devices[1];
    let socket = attacker.namespace.enter(|| UdpSocket::bind(attacker.wan_socket(0))).unwrap().unwrap();
    let mut sent = 0;
    for datagram in up.iter().chain(&down) {
        sent += datagram.len();
        socket.send_to(datagram, gateway).unwrap();
        // Slow enough for every one to be looked at.
        std::thread::sleep(Duration::from_micros(200));
    }
    probe.wait_for_echoes(100, support::SOON).unwrap();
    let mut received = 0;
    socket.set_nonblocking(true).unwrap();
    while let Ok(length) = socket.recv(&mut [0; 2048]) {
        received += length;
    }
    eprintln!("{} up and {} down replayed: {sent} bytes, {received} came back", up.len(), down.len());
    assert!(received <= 3 * sent);
    let replayed = scene.total("jump_gateway_packets_dropped_total", r#"reason="replay""#).unwrap() - replays;
    assert!(replayed >= up.len() as f64 * 0.9, "{replayed} of {} were counted as replays", up.len());
    assert_eq!(scene.total("jump_gateway_events_total", r#"event="path_moves""#).unwrap(), moves);
    assert!(scene.journal_since(mark, "bound").unwrap().is_empty(), "the session was moved");
    assert_eq!(probe.stop().duplicates, 0);
    scene.ensure_same_session().unwrap();
}
