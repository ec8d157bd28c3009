//! What must move nothing: forgeries, replays, lies, floods.

use jump_crypto::cookie::Gate;
use jump_crypto::keys::ClusterSecret;
use jump_crypto::record::OVERHEAD;

use std::time::Duration;

use super::world::{MS, Mood, World, download, keys, rejected};
use crate::client::{Event, PathId, State};
use crate::ids::{Epoch, ReceiverIndex};
use crate::reason::Reason;

#[test]
fn a_gateway_with_a_grant_for_another_handshake_is_not_believed() {
    let mut world = World::attached(3, 40);
    let owner = world.owner();
    let liar = world.client.status().roster.iter().map(|g| world.place(*g)).find(|g| *g != owner).unwrap();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[liar].mood = Mood::Lying;
    world.upload(b"x");
    world.run(MS * 100);
    assert!(world.events.iter().any(|(_, event)| matches!(event, Event::Untrusted { .. })));
    assert_ne!(world.owner(), liar);
    assert_eq!(world.client.status().drops.bad_grant, 1);
    assert!(world.gateways[liar].packets.is_empty());
}

#[test]
fn a_forged_hint_moves_nothing_and_a_true_one_reattaches_to_another_gateway_at_once() {
    let mut world = World::attached(2, 41);
    let owner = world.owner();
    let path = *world.paths.keys().next().unwrap();
    let index = ReceiverIndex(world.active(owner));
    let forged = Gate::new(&ClusterSecret::from_bytes([99; 32])).hint_datagram(index);
    let other = Gate::new(&keys().0).hint_datagram(ReceiverIndex(index.0 + 1));
    for hint in [forged, other] {
        let now = world.clock();
        world.client.handle_datagram(now, path, &mut hint.to_vec());
        world.settle();
    }
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.client.status().drops.bad_hint, 2);

    // The gateway restarts: it has forgotten the session.
    world.gateways[owner].peers.clear();
    let start = world.now;
    world.upload(b"x");
    world.run(MS * 100);
    let (at, attached) = world.attaches().remove(0);
    assert!(at - start <= MS * 20, "took {:?}", at - start);
    assert_eq!(attached.reason, Reason::ReattachHint);
    assert_ne!(world.owner(), owner);
}

#[test]
fn a_true_hint_for_keys_that_the_gateway_still_holds_costs_a_ping_and_no_epoch() {
    let mut world = World::attached(2, 52);
    let owner = world.owner();
    let path = *world.paths.keys().next().unwrap();
    let hint = Gate::new(&keys().0).hint_datagram(ReceiverIndex(world.active(owner)));
    let now = world.clock();
    world.client.handle_datagram(now, path, &mut hint.to_vec());
    world.settle();
    assert_eq!(world.client.status().state, State::Reattaching);
    world.run(MS * 200);
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert!(world.upload(b"goes on"));
}

#[test]
fn garbage_of_every_type_and_length_is_dropped_and_counted() {
    let mut world = World::attached(2, 42);
    let path = *world.paths.keys().next().unwrap();
    for round in 0..2000u32 {
        let mut datagram = vec![0; (round % 700) as usize];
        for byte in &mut datagram {
            *byte = world.random.next() as u8;
        }
        if let Some(kind) = datagram.first_mut() {
            *kind = (round % 8) as u8;
        }
        let now = world.clock();
        assert_eq!(world.client.handle_datagram(now, path, &mut datagram), None);
        assert_eq!(world.client.handle_datagram(now, PathId(9999), &mut datagram), None);
    }
    world.settle();
    world.run(MS * 1000);
    assert_eq!(world.client.status().state, State::Attached);
    assert!(world.states().is_empty());
}

#[test]
fn forged_replies_do_not_end_a_handshake() {
    let mut world = World::new(1, 43);
    world.gateways[0].mood = Mood::Silent;
    world.start();
    world.run(MS * 10);
    let path = *world.paths.keys().next().unwrap();
    for len in [1, 100, 300, 640].into_iter().cycle().take(100) {
        let mut forged = vec![2; len];
        let now = world.clock();
        world.client.handle_datagram(now, path, &mut forged);
    }
    assert_eq!(world.client.status().drops.malformed, 100);
    world.gateways[0].mood = Mood::Alive;
    world.run(MS * 200);
    assert_eq!(world.client.status().state, State::Attached);
}

#[test]
fn a_replayed_or_altered_record_is_dropped() {
    let mut world = World::attached(1, 44);
    world.duplicate_percent = 100;
    let index = world.active(0);
    world.send_packet(0, index, &download(1));
    world.run(MS * 10);
    assert_eq!(world.received.len(), 1);
    assert_eq!(world.client.status().drops.replayed, 1);
}

#[test]
fn a_packet_for_a_foreign_address_is_not_delivered() {
    let mut world = World::attached(1, 45);
    let index = world.active(0);
    let mut foreign = download(1);
    foreign[19] ^= 1;
    for packet in [foreign, vec![], vec![0x45; 10], vec![0x60; 20]] {
        world.send_packet(0, index, &packet);
    }
    world.run(MS * 10);
    assert!(world.received.is_empty());
    assert_eq!(world.client.status().drops.foreign, 4);
}

#[test]
fn an_acceptance_of_an_old_epoch_is_not_believed() {
    let mut world = World::attached(2, 46);
    let owner = world.owner();
    world.store.epoch = 0;
    world.gateways[owner].mood = Mood::Refusing;
    world.upload(b"x");
    world.run(MS * 30);
    assert!(world.events.iter().any(|(_, event)| matches!(event, Event::Untrusted { .. })));
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert!(world.attaches().is_empty());
}

#[test]
fn a_gateway_under_load_gets_its_cookie() {
    let mut world = World::new(1, 47);
    world.gateways[0].mood = Mood::Loaded;
    world.start();
    world.run(MS * 100);
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.store.attach_seq, 1, "a cookie cost a new attempt");
}

#[test]
fn a_gateway_that_drives_the_number_to_its_end_ends_the_session_only() {
    let mut world = World::attached(2, 48);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[1 - owner].script = vec![rejected(Reason::StaleAttempt, 1, u64::MAX, Duration::ZERO)];
    world.upload(b"x");
    world.run(MS * 100);
    assert!(world.events.iter().any(|(_, e)| *e == Event::Terminated { reason: Reason::AttemptsExceeded }));
    let mut next = World::with_stored(2, 49, world.client.stored());
    next.start();
    next.run(MS * 100);
    assert_eq!(next.client.status().state, State::Attached);
}

#[test]
fn rejections_for_ever_are_asked_at_a_bounded_rate() {
    let mut world = World::attached(2, 50);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[1 - owner].script = vec![rejected(Reason::Conflict, 1, 1, Duration::ZERO); 100_000];
    world.upload(b"x");
    world.run(MS * 1000);
    let asked = world.gateways[1 - owner].inits.len();
    assert!(asked <= 50, "{asked} attempts in a second");
}

#[test]
fn sealing_needs_no_more_room_than_the_overhead() {
    let mut world = World::attached(1, 51);
    let mut frame = vec![0; 1280 + OVERHEAD];
    let now = world.clock();
    let sealed = world.client.seal(now, &mut frame, 1280).unwrap();
    assert_eq!(sealed.len, 1280 + OVERHEAD);
}
