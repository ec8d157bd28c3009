//! The ways to the owner: fallback, return, and no flapping.

use std::time::Duration;

use super::world::{MS, Mood, World, download};
use crate::client::{Event, State, TriedWay};
use crate::ids::Epoch;
use crate::path::Transport;
use crate::reason::Reason;

const ALL: [Transport; 3] = [Transport::Udp, Transport::Quic, Transport::Tcp];

/// An attached world that may use `transports`.
fn world(transports: &[Transport], seed: u64) -> World {
    World::attached_over(1, seed, transports)
}

fn changes(world: &World) -> Vec<(Transport, Transport)> {
    let change = |event: &Event| match event {
        Event::PathChanged { from, to, .. } => Some((*from, *to)),
        _ => None,
    };
    world.events.iter().filter_map(|(_, event)| change(event)).collect()
}

/// Sends a packet each way every 20 ms for `time`.
fn talk(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.upload(b"up");
        let index = world.active(0);
        world.send_packet(0, index, &download(1));
        world.run(MS * 20);
    }
}

#[test]
fn a_session_whose_udp_is_dropped_goes_on_over_another_transport_within_a_second_in_the_same_epoch() {
    for (blocked, expected) in [(&ALL[..1], Transport::Quic), (&ALL[..2], Transport::Tcp)] {
        let mut world = world(&ALL, 70);
        talk(&mut world, MS * 500);
        world.blocked = blocked.to_vec();
        let received = world.received.len();
        talk(&mut world, MS * 600);
        let status = world.client.status();
        assert_eq!((status.transport, status.epoch), (Some(expected), Epoch(1)));
        assert!(world.received.len() > received + 5, "nothing came over {expected}");
        talk(&mut world, MS * 2000);
        assert_eq!(world.client.status().state, State::Attached);
        assert_eq!(world.paths.len(), 1, "paths were left open");
        assert_eq!(changes(&world), [(Transport::Udp, expected)]);
    }
}

#[test]
fn udp_that_works_again_is_taken_back_after_the_dwell_and_only_then() {
    let mut world = world(&ALL, 71);
    world.blocked = vec![Transport::Udp, Transport::Quic];
    talk(&mut world, MS * 1000);
    assert_eq!(world.client.status().transport, Some(Transport::Tcp));
    world.blocked = vec![Transport::Quic];
    talk(&mut world, MS * 3500);
    assert_eq!(world.client.status().transport, Some(Transport::Tcp), "back before the dwell");
    talk(&mut world, MS * 3500);
    assert_eq!(world.client.status().transport, Some(Transport::Udp));
    assert_eq!(changes(&world), [(Transport::Udp, Transport::Tcp), (Transport::Tcp, Transport::Udp)]);
    talk(&mut world, MS * 5000);
    assert_eq!(world.paths.len(), 1, "paths were left open");
    assert_eq!(world.client.status().epoch, Epoch(1));
}

#[test]
fn udp_that_comes_and_goes_every_second_is_left_once() {
    let mut world = world(&ALL, 72);
    for second in 0..60 {
        world.blocked = if second % 2 == 0 { vec![Transport::Udp, Transport::Quic] } else { Vec::new() };
        talk(&mut world, MS * 1000);
    }
    assert_eq!(changes(&world).len(), 1, "{:?}", changes(&world));
    assert_eq!(world.client.status().state, State::Attached);
}

#[test]
fn a_path_that_loses_a_third_and_answers_is_kept_and_its_state_returns() {
    let mut world = world(&[Transport::Udp], 73);
    world.loss_percent = 30;
    talk(&mut world, MS * 3000);
    world.loss_percent = 0;
    talk(&mut world, MS * 3000);
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.client.status().epoch, Epoch(1));
}

#[test]
fn a_birth_behind_a_network_without_udp_happens_over_tcp() {
    let mut world = World::unstarted(1, 74, &ALL);
    world.blocked = vec![Transport::Udp, Transport::Quic];
    world.start();
    world.run(MS * 1000);
    let status = world.client.status();
    assert_eq!((status.state, status.transport), (State::Attached, Some(Transport::Tcp)));
}

#[test]
fn a_gateway_that_dies_while_tcp_carries_the_session_is_replaced_over_tcp() {
    let mut world = World::attached_over(2, 75, &ALL);
    world.blocked = vec![Transport::Udp, Transport::Quic];
    world.upload(b"x");
    world.run(MS * 1000);
    assert_eq!(world.client.status().transport, Some(Transport::Tcp));
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Silent;
    world.upload(b"x");
    world.run(MS * 1000);
    let status = world.client.status();
    assert_eq!(
        (status.state, status.transport, status.epoch),
        (State::Attached, Some(Transport::Tcp), Epoch(2))
    );
    assert_eq!(world.owner(), 1 - owner);
}

#[test]
fn a_response_to_a_challenge_of_an_earlier_time_moves_nothing() {
    let mut world = world(&ALL, 76);
    let index = world.active(0);
    let before = world.client.status().drops.unexpected;
    world.say(0, index, &crate::frame::Frame::PathResponse { token: [9; 8] });
    world.run(MS * 50);
    assert_eq!(world.client.status().transport, Some(Transport::Udp));
    assert_eq!(world.client.status().drops.unexpected, before + 1);
}

#[test]
fn a_silent_gateway_is_given_up_as_fast_as_without_other_transports() {
    let alone = |transports: &[Transport]| {
        let mut world = World::attached_over(2, 77, transports);
        let owner = world.owner();
        world.gateways[owner].mood = Mood::Silent;
        let start = world.now;
        world.upload(b"x");
        world.run(MS * 1000);
        let (at, attached) = world.attaches().pop().unwrap();
        assert_eq!(attached.reason, Reason::GatewayUnresponsive);
        at - start
    };
    assert_eq!(alone(&ALL), alone(&ALL[..1]));
}

#[test]
fn a_way_that_is_tried_shows_in_the_status_and_ends_when_the_path_recovers() {
    let mut world = world(&ALL, 78);
    world.blocked = vec![Transport::Udp, Transport::Tcp, Transport::Quic];
    world.upload(b"x");
    world.run(MS * 200);
    let tried: Vec<_> = world.client.status().tried.iter().map(|way: &TriedWay| way.transport).collect();
    assert_eq!(tried, [Transport::Quic, Transport::Tcp]);
    world.blocked.clear();
    world.upload(b"x");
    talk(&mut world, MS * 1000);
    assert!(world.client.status().tried.is_empty());
    assert_eq!(world.paths.len(), 1);
}
