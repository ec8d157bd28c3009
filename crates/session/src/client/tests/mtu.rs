//! Path MTU discovery of a whole client: what it costs, and what it must not disturb.

use std::time::Duration;

use jump_crypto::record::OVERHEAD;

use super::world::{MS, World};
use crate::client::{Event, MtuPhase, State};
use crate::frame::Frame;
use crate::path::Transport;

const SECOND: Duration = Duration::from_secs(1);

/// Inner packets of this length fit.
fn carrying(inner: usize, transports: &[Transport]) -> World {
    let mut world = World::unstarted(1, 90, transports);
    world.mtu_max = Some(1360);
    world.carries.insert(Transport::Udp, inner + OVERHEAD);
    world.start();
    world.run(SECOND * 5);
    assert_eq!(world.client.status().state, State::Attached);
    world
}

/// An inner packet of `len` bytes goes out every 20 ms for `time`.
fn upload(world: &mut World, len: usize, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.upload(&vec![1; len]);
        world.run(MS * 20);
    }
}

fn found(world: &World) -> (u16, MtuPhase) {
    world.client.status().mtu.expect("attached")
}

#[test]
fn the_mtu_rises_to_what_the_path_carries_without_disturbing_the_path() {
    let world = carrying(1340, &[Transport::Udp]);
    assert_eq!(found(&world), (1340, MtuPhase::Complete));
    assert_eq!(world.client.mtu(), Some(1340));
    let changes = world.events.iter().filter(|(_, event)| matches!(event, Event::MtuChanged { .. })).count();
    assert!((1..=2).contains(&changes), "{changes} changes");
    let states = world.states();
    assert!(!states.contains(&"VOLATILE"), "lost probes look like a bad path: {states:?}");
    assert_eq!(world.client.status().meter.loss_up, 0.0, "lost probes look like loss");
}

#[test]
fn a_gateway_that_does_not_know_the_discovery_is_asked_once() {
    let mut world = World::attached(1, 91);
    world.run(SECOND * 30);
    let probes = world.gateways[0].frames.iter().filter(|frame| matches!(frame, Frame::MtuProbe { .. }));
    assert_eq!((found(&world), probes.count()), ((1280, MtuPhase::Off), 1));
}

#[test]
fn a_path_that_shrinks_under_large_packets_is_left_for_the_floor_in_the_same_state_and_searched_again() {
    let mut world = carrying(1360, &[Transport::Udp]);
    upload(&mut world, 1360, SECOND * 3);
    assert_eq!(found(&world).0, 1360);
    world.events.clear();
    world.carries.insert(Transport::Udp, 1300 + OVERHEAD);
    upload(&mut world, 1360, MS * 1500);
    assert!(found(&world).0 <= 1300, "{:?} after 1.5 s", found(&world));
    upload(&mut world, 1280, SECOND * 5);
    assert_eq!(found(&world), (1300, MtuPhase::Complete));
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.gateways[0].peers.len(), 1, "no second attach");
}

#[test]
fn a_lost_path_and_a_new_port_do_not_lower_what_was_found() {
    let mut world = carrying(1340, &[Transport::Udp]);
    let now = world.clock();
    world.client.handle_network_change(now, crate::client::NetworkChange::Changed);
    world.settle();
    assert_eq!(world.client.mtu(), Some(1340));
    world.run(SECOND * 5);
    assert_eq!(found(&world), (1340, MtuPhase::Complete));
}

#[test]
fn a_transport_that_carries_less_starts_from_the_floor() {
    let mut world = carrying(1360, &[Transport::Udp, Transport::Quic]);
    world.carries.insert(Transport::Quic, 1320 + OVERHEAD);
    world.blocked = vec![Transport::Udp];
    upload(&mut world, 1280, SECOND);
    assert_eq!(world.client.status().transport, Some(Transport::Quic));
    assert_eq!(world.client.mtu(), Some(1280));
    upload(&mut world, 1280, SECOND * 4);
    assert_eq!(found(&world).0, 1320);
}

#[test]
fn errors_that_anybody_can_send_lower_nothing_and_cost_a_bounded_number_of_probes() {
    let mut world = carrying(1360, &[Transport::Udp]);
    let path = *world.paths.keys().next().expect("a path");
    let before = world.gateways[0].frames.len();
    for _ in 0..1000 {
        let now = world.clock();
        world.client.handle_too_long(now, path);
        world.settle();
        world.run(MS);
    }
    assert_eq!(world.client.mtu(), Some(1360));
    assert!(world.gateways[0].frames.len() - before <= 8, "{}", world.gateways[0].frames.len() - before);
}
