use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jump_session::ids::{Binding, DeviceKey, Epoch, NodeId};
use jump_session::reason::Reason;

use super::*;
use crate::audit::{self, AttachAction, Event, Identity, NodeAction, Path, RecoveryDurations, SessionAction};

const SESSION: SessionId = SessionId::from_bytes([0xab; 16]);
const START: u64 = 1_795_000_000_000;

fn at(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(START + millis)
}

fn node(name: &str) -> NodeId {
    name.parse().expect("a node name")
}

fn say(action: SessionAction, millis: u64, epoch: u64, reason: Reason) -> Event {
    Event::session(action, SESSION).correlation([7; 16]).epoch(Epoch(epoch)).reason(reason).at(at(millis))
}

fn path(transport: &'static str, client: &str) -> Option<Path> {
    Some(Path { transport, client: Some(client.parse().expect("an address")) })
}

/// The lines that control, two gateways and the client export over: birth, NAT rebinding, UDP blocked, the gateway
/// killed, a drain, a revocation.
fn story() -> Vec<String> {
    let program = |component: &str, name: &str| {
        audit::capture(Identity { component: component.into(), node: name.into(), version: "0".into() })
    };
    let (control, from_control) = program("control", "c1");
    let (gw1, from_gw1) = program("gateway", "gw1");
    let (gw2, from_gw2) = program("gateway", "gw2");
    let (client, from_client) = program("client", "");
    let device = DeviceKey::from_bytes([0xd0; 32]);

    control.emit(say(SessionAction::Born, 0, 1, Reason::Birth).on_node(&node("gw1")));
    control.emit(Event::attach(AttachAction::Accepted, device, Some(SESSION)).at(at(1)));
    let (udp, rebound) = (path("udp", "198.51.100.7:4711"), path("udp", "198.51.100.7:9999"));
    gw1.emit(
        say(SessionAction::PathSwitched, 10_000, 1, Reason::NatRebind)
            .binding(Binding(1))
            .paths(udp, rebound.clone())
            .on_node(&node("gw1")),
    );
    gw1.emit(
        say(SessionAction::PathSwitched, 20_000, 1, Reason::TransportChanged)
            .binding(Binding(2))
            .paths(rebound, path("tcp", "198.51.100.7:5000"))
            .on_node(&node("gw1")),
    );
    client.emit(say(SessionAction::ReattachStarted, 30_310, 1, Reason::GatewayUnresponsive));
    control.emit(Event::node(NodeAction::Lost, &node("gw1")).at(at(30_050)));
    control.emit(
        say(SessionAction::OwnerChanged, 30_350, 2, Reason::GatewayUnresponsive)
            .previous_node(&node("gw1"))
            .on_node(&node("gw2")),
    );
    let durations = RecoveryDurations {
        detect: Duration::from_millis(310),
        handshake: Duration::from_millis(20),
        commit: Duration::from_millis(20),
        first_byte: Duration::from_millis(10),
    };
    client.emit(say(SessionAction::Recovered, 30_360, 2, Reason::GatewayUnresponsive).recovery(durations));
    gw2.emit(say(SessionAction::Fenced, 60_000, 2, Reason::GatewayDraining).on_node(&node("gw2")));
    control.emit(
        say(SessionAction::OwnerChanged, 60_020, 3, Reason::GatewayDraining)
            .previous_node(&node("gw2"))
            .on_node(&node("gw3")),
    );
    control.emit(say(SessionAction::Terminated, 90_000, 3, Reason::KeyRevoked).on_node(&node("gw3")));

    let mut lines: Vec<String> = [from_client, from_gw2, from_control, from_gw1]
        .iter()
        .flat_map(|captured| captured.take())
        .map(|event| event.to_string())
        .collect();
    // Retries deliver twice; other sessions and other programs write into the same file.
    lines.push(lines[0].clone());
    lines.push("{\"unmapped\":{\"session\":\"another\"}}".into());
    lines.push("not an event".into());
    lines
}

#[test]
fn a_story_reconstructs_exactly_from_the_exported_events_alone() {
    let lines = story();
    let timeline = Timeline::build(SESSION, lines.iter().map(String::as_str));
    let told: Vec<(u64, &str, Option<&str>)> = timeline
        .entries
        .iter()
        .map(|entry| (entry.time - START, entry.action.as_str(), entry.reason.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            (0, "session_born", Some("BIRTH")),
            (1, "attach_accepted", None),
            (10_000, "session_path_switched", Some("NAT_REBIND")),
            (20_000, "session_path_switched", Some("TRANSPORT_CHANGED")),
            (30_310, "session_reattach_started", Some("GATEWAY_UNRESPONSIVE")),
            (30_350, "session_owner_changed", Some("GATEWAY_UNRESPONSIVE")),
            (30_360, "session_recovered", Some("GATEWAY_UNRESPONSIVE")),
            (60_000, "session_fenced", Some("GATEWAY_DRAINING")),
            (60_020, "session_owner_changed", Some("GATEWAY_DRAINING")),
            (90_000, "session_terminated", Some("KEY_REVOKED")),
        ]
    );
    let owned: Vec<(u64, &str, u64, Option<u64>)> = timeline
        .owners
        .iter()
        .map(|owner| (owner.epoch, owner.node.as_str(), owner.from - START, owner.to.map(|to| to - START)))
        .collect();
    assert_eq!(
        owned,
        [(1, "gw1", 0, Some(30_350)), (2, "gw2", 30_350, Some(60_020)), (3, "gw3", 60_020, Some(90_000)),]
    );
    assert_eq!(timeline.without_service_micros(), 360_000);
    assert_eq!(timeline.entries[3].change.as_deref(), Some("udp 198.51.100.7:9999 → tcp 198.51.100.7:5000"));
    assert_eq!((timeline.missing.len(), timeline.unreadable), (0, 1));
    assert_eq!(timeline.correlation.as_deref(), Some("07070707-0707-0707-0707-070707070707"));
}

#[test]
fn a_lost_event_is_named() {
    let lines: Vec<String> = story().into_iter().filter(|line| !line.contains("NAT_REBIND")).collect();
    let timeline = Timeline::build(SESSION, lines.iter().map(String::as_str));
    let missing: Vec<_> = timeline
        .missing
        .iter()
        .map(|missing| (missing.source.as_str(), missing.first, missing.last))
        .collect();
    assert_eq!(missing, [("gateway/gw1", 1, 1)]);
    assert!(timeline.to_text().contains("missing: events 1 to 1 of gateway/gw1"));
}

#[test]
fn the_text_and_the_picture_show_owners_and_gaps_and_hostile_names_stay_text() {
    let hostile: Vec<String> = story().into_iter().map(|line| line.replace("\"gw3\"", "\"<b>&\"")).collect();
    let timeline = Timeline::build(SESSION, hostile.iter().map(String::as_str));
    let text = timeline.to_text();
    assert!(text.contains("gw1 → gw2") && text.contains("without service 360.0 ms in all"), "{text}");
    let svg = timeline.to_svg();
    assert!(svg.contains("&lt;b&gt;&amp;") && !svg.contains("<b>"), "{svg}");
    assert_eq!(svg.matches("<title>epoch").count(), 3);
    assert_eq!(svg.matches("without service").count(), 1);
}

#[test]
fn nothing_makes_an_empty_timeline() {
    let timeline = Timeline::build(SESSION, []);
    assert!(timeline.to_text().contains("0 events"));
    assert!(timeline.to_svg().ends_with("</svg>\n"));
}
