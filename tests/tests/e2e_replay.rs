//! A recorded or withheld first message changes nothing, whoever delivers it, wherever and whenever.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use jump_session::frame::AttachResult;
use jump_session::reason::Reason;
use jump_tests::lab::bare_device::{BareDevice, ClusterKeys, device_key};
use jump_tests::lab::capture::Capture;
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::network::WAN_LINK;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::programs::{GATEWAY_PORT, metric};
use jump_tests::support;

/// Type and length of a first message.
const INIT: (u8, usize) = (1, 640);

/// Two devices: the first is the victim, the second the attacker, who sends from an address of its own.
fn plan(label: &'static str) -> Plan {
    Plan { devices: 2, ..Plan::small(label) }
}

fn attacker_socket(cluster: &Cluster) -> UdpSocket {
    let host = &cluster.network.devices[1];
    host.namespace.enter(|| UdpSocket::bind(host.wan_socket(0))).unwrap().unwrap()
}

/// First messages that all gateways have counted: as ones to look at, or as replays.
fn counted(cluster: &Cluster) -> f64 {
    let of = |name: &str, label: &str| -> f64 {
        cluster.network.gateways.iter().map(|host| metric(host, name, label).unwrap()).sum()
    };
    of("jump_gateway_events_total", r#"event="attach_inits""#)
        + of("jump_gateway_packets_dropped_total", r#"reason="replayed_init""#)
        + of("jump_gateway_packets_dropped_total", r#"reason="source_rate""#)
}

#[test]
fn a_recorded_attach_init_replayed_to_every_gateway_moves_neither_epoch_nor_endpoint() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&plan("replay")).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let capture =
        Capture::start(&cluster.network.devices[0], WAN_LINK, &format!("udp and dst port {GATEWAY_PORT}"))
            .unwrap();
    let before = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let recorded: Vec<_> = capture
        .stop()
        .iter()
        .filter_map(|p| p.udp_payload().map(<[u8]>::to_vec))
        .filter(|d| (d.first().copied(), d.len()) == (Some(INIT.0), INIT.1))
        .collect();
    assert!(!recorded.is_empty(), "the capture holds no first message");

    let attacker = attacker_socket(&cluster);
    let pause = Duration::from_secs(support::scaled(5, 60) as u64);
    let start = Instant::now();
    for round in 0..2 {
        let counted_before = counted(&cluster);
        for gateway in &cluster.network.gateways {
            for datagram in &recorded {
                attacker.send_to(datagram, gateway.wan_socket(GATEWAY_PORT)).unwrap();
            }
        }
        probe.wait_for_echoes(100, support::SOON).unwrap();
        let sent = (recorded.len() * cluster.network.gateways.len()) as f64;
        assert!(counted(&cluster) >= counted_before + sent, "round {round}: a replay was not counted");
        let now = cluster.ownership(&before.session).unwrap();
        assert_eq!((now.epoch, &now.owner), (before.epoch, &before.owner), "round {round}");
        if round == 0 {
            std::thread::sleep(pause.saturating_sub(start.elapsed()));
        }
    }
    let report = probe.stop();
    assert!(report.longest_gap < Duration::from_secs(1), "the endpoint moved: {report:?}");
}

#[test]
fn a_withheld_attach_init_delivered_late_changes_nothing() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&plan("withheld")).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let before = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();

    // The device's own key made these messages; they never arrived, and an attacker delivers them now.
    let state = cluster.state_dir(0);
    let socket = attacker_socket(&cluster);
    let mut hand =
        BareDevice::new(device_key(&state).unwrap(), ClusterKeys::of_profile(&state).unwrap(), socket)
            .unwrap();
    let session = before.session.parse().unwrap();
    for seq in [0, 1, 2, 1_000_000] {
        let intent = hand.intent(Some(session), seq, Reason::GatewayUnresponsive).unwrap();
        let withheld = hand.start(&intent).unwrap();
        for gateway in &cluster.network.gateways {
            hand.socket().send_to(&withheld.datagram, gateway.wan_socket(GATEWAY_PORT)).unwrap();
        }
    }
    probe.wait_for_echoes(400, support::SOON).unwrap();
    let now = cluster.ownership(&before.session).unwrap();
    assert_eq!((now.epoch, &now.owner), (before.epoch, &before.owner));
    let report = probe.stop();
    assert!(report.longest_gap < Duration::from_secs(1), "the endpoint moved: {report:?}");
}

#[test]
fn a_confirmed_attach_with_an_old_sequence_number_is_rejected_with_the_stored_one() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&plan("stale")).unwrap();
    let before = cluster.up(0).unwrap();
    let state = cluster.state_dir(0);
    let socket = attacker_socket(&cluster);
    let mut hand =
        BareDevice::new(device_key(&state).unwrap(), ClusterKeys::of_profile(&state).unwrap(), socket)
            .unwrap();
    for gateway in &cluster.network.gateways {
        let intent =
            hand.intent(Some(before.session.parse().unwrap()), 0, Reason::GatewayUnresponsive).unwrap();
        let (result, _) = hand.attach(&intent, gateway.wan_socket(GATEWAY_PORT), support::SOON).unwrap();
        match result {
            AttachResult::Rejected { reason, current_epoch, current_attach_seq, .. } => {
                assert_eq!(reason, Reason::StaleAttempt);
                assert_eq!(current_epoch.0, before.epoch);
                assert!(current_attach_seq.0 >= 1);
            }
            AttachResult::Accepted(accepted) => panic!("accepted in epoch {}", accepted.epoch),
        }
    }
    let now = cluster.ownership(&before.session).unwrap();
    assert_eq!((now.epoch, now.owner), (before.epoch, before.owner));
}
