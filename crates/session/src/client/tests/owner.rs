//! Life with an owner: moves, drains, rekeys, the end.

use std::time::Duration;

use jump_crypto::key_set::{KeySet, KeySetClaims};
use jump_crypto::keys::{ClusterSecret, GrantKeyId, GrantSigner};

use super::world::{MS, Mood, World, download, keys};
use crate::client::{Event, State};
use crate::frame::Frame;
use crate::ids::Epoch;
use crate::reason::Reason;

#[test]
fn the_old_gateway_forwards_until_the_new_one_is_accepted_and_then_only_its_packets_in_flight_count() {
    let mut world = World::attached(2, 30);
    let old = world.owner();
    let index = world.active(old);
    let target = world.gateways[1 - old].address;
    world.gateways[1 - old].commit_delay = MS * 200;
    world.say(old, index, &Frame::Migrate { reason: Reason::GatewayDraining, targets: vec![target] });
    world.run(MS * 50);
    assert_eq!(world.client.status().state, State::Recovering);
    assert!(world.upload(b"by the old one"));
    world.send_packet(old, index, &download(1));
    world.run(MS * 50);
    assert_eq!(world.gateways[old].packets, [b"by the old one".to_vec()]);
    assert_eq!(world.received, [download(1)]);

    world.run(MS * 200);
    assert_eq!(world.owner(), 1 - old);
    assert_eq!(world.attaches()[0].1.reason, Reason::GatewayDraining);
    assert!(world.upload(b"by the new one"));
    world.send_packet(old, index, &download(2));
    world.run(MS * 50);
    assert_eq!(world.gateways[1 - old].packets, [b"by the new one".to_vec()]);
    assert_eq!(world.received, [download(1), download(2)]);

    world.run(MS * 2000);
    world.send_packet(old, index, &download(3));
    world.run(MS * 50);
    assert_eq!(world.received.len(), 2, "the drain window does not end");
    assert_eq!(world.paths.len(), 1, "the old path is still open");
}

#[test]
fn a_key_set_is_taken_from_control_alone_and_the_next_attach_uses_it() {
    let mut world = World::attached(2, 33);
    let (cluster, grants, _) = keys();
    let owner = world.owner();
    let index = world.active(owner);
    let next = ClusterSecret::from_bytes([77; 32]).public();
    let claims = KeySetClaims {
        serial: 5,
        hybrid: true,
        cluster: vec![cluster.public(), next],
        grant: vec![grants.public(), [78; 32]],
    };
    let send = |world: &mut World, claims: &KeySetClaims, signer: &GrantSigner| {
        let key_set = KeySet::issue(claims, signer).as_bytes().to_vec();
        world.say(owner, index, &Frame::Keys { key_set });
        world.run(MS * 50);
    };
    // The gateway's own word, and a signature that the device has no reason to believe.
    world.say(owner, index, &Frame::Keys { key_set: vec![1; 100] });
    send(&mut world, &claims, &GrantSigner::from_seed(&[99; 32]));
    assert_eq!(world.client.status().drops.bad_key_set, 2);
    send(&mut world, &claims, &grants);
    send(&mut world, &claims, &grants);
    send(&mut world, &KeySetClaims { serial: 4, ..claims.clone() }, &grants);
    let changes =
        world.events.iter().filter(|(_, event)| *event == Event::KeysChanged(claims.clone())).count();
    assert_eq!((changes, world.client.status().drops.bad_key_set), (1, 2));
    let now = world.clock();
    world.client.request_move(now, Reason::ClientRequest, &[]);
    world.settle();
    world.run(MS * 50);
    let holding = world.last_intent(world.owner()).holding;
    assert_eq!(holding.key_set, 5);
    let suite = world.client.status().suite.expect("attached");
    assert!(suite.is_hybrid(), "the set asks for the hybrid suites, and the session kept {suite:?}");
    assert_eq!(holding.grant_keys[..2], [grants.id(), GrantKeyId::of(&[78; 32])]);
}

#[test]
fn keys_that_the_owner_has_half_spent_are_replaced_long_before_they_are_due() {
    let mut world = World::attached(1, 33);
    let owner = world.owner();
    let index = world.active(owner);
    let half = jump_crypto::record::Aead::ChaCha20Poly1305.sealed_records_max() / 2;
    for (counter, rekeyed) in [(half - 1, false), (half, true)] {
        world.skip_to(owner, index, counter);
        world.say(owner, index, &Frame::Keys { key_set: vec![1; 100] });
        world.run(MS * 100);
        assert_eq!(world.last_intent(owner).rekey, rekeyed);
    }
    assert_ne!(world.active(owner), index, "the owner seals under the new keys");
}

#[test]
fn an_owner_that_was_replaced_commands_nothing() {
    let mut world = World::attached(2, 31);
    let old = world.owner();
    let index = world.active(old);
    let now = world.clock();
    world.client.request_move(now, Reason::ClientRequest, &[]);
    world.settle();
    world.run(MS * 50);
    assert_eq!(world.client.status().epoch, Epoch(2));
    world.say(old, index, &Frame::Terminated { reason: Reason::OperatorTerminated });
    world.say(old, index, &Frame::Migrate { reason: Reason::GatewayDraining, targets: vec![] });
    world.run(MS * 50);
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.client.status().drops.unexpected, 2);
}

#[test]
fn a_path_that_was_given_up_and_answers_first_is_taken_back() {
    let mut world = World::attached(2, 32);
    let owner = world.owner();
    let index = world.active(owner);
    world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Silent);
    world.upload(b"x");
    world.run(MS * 600);
    assert_eq!(world.client.status().state, State::Reattaching);
    world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Alive);
    world.send_packet(owner, index, &download(1));
    world.run(MS * 3);
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert!(world.upload(b"y"));
    world.run(MS * 3000);
    assert_eq!(world.client.status().epoch, Epoch(1), "the search went on");
    assert_eq!(world.paths.len(), 1);
}

#[test]
fn one_answer_does_not_make_a_bad_path_steady_and_silence_does_not_keep_it_volatile() {
    let mut world = World::attached(2, 33);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Silent;
    world.upload(b"x");
    world.run(MS * 260);
    assert_eq!(world.states(), ["VOLATILE", "DEGRADED"]);
    world.gateways[owner].mood = Mood::Alive;
    let index = world.active(owner);
    world.send_packet(owner, index, &download(1));
    world.run(MS * 3);
    assert_eq!(world.states(), ["VOLATILE", "DEGRADED"]);
    world.run(MS * 1000);
    assert_eq!(world.states(), ["VOLATILE", "DEGRADED", "VOLATILE", "ATTACHED"]);
    assert_eq!(world.client.status().epoch, Epoch(1));
}

#[test]
fn keys_are_replaced_in_time_without_a_new_epoch_or_a_lost_packet() {
    let mut world = World::attached(2, 34);
    let owner = world.owner();
    let old = world.active(owner);
    world.run(Duration::from_secs(119));
    world.gateways[owner].commit_delay = MS * 20;
    let mut sent = 0;
    for _ in 0..200 {
        assert!(world.upload(&[1]));
        sent += 1;
        world.run(MS * 10);
    }
    world.send_packet(owner, old, &download(1));
    world.run(MS * 50);
    assert!(world.events.iter().any(|(_, event)| *event == Event::Rekeyed { epoch: Epoch(1) }));
    assert_eq!(world.gateways[owner].packets.len(), sent);
    assert_eq!(world.received, [download(1)], "a packet under the old keys was lost");
    assert_eq!(world.store.epoch, 1);
    assert!(world.last_intent(owner).rekey);
    assert!(world.attaches().is_empty());
    world.run(MS * 3000);
    assert!(world.upload(b"still"));
}

#[test]
fn a_close_is_told_to_the_owner_and_ends_with_its_word() {
    let mut world = World::attached(2, 35);
    let owner = world.owner();
    let now = world.clock();
    world.client.close(now, Reason::ClientClosed);
    world.settle();
    world.run(MS * 5);
    assert!(world.gateways[owner].frames.contains(&Frame::Close { reason: Reason::ClientClosed }));
    assert!(world.events.iter().any(|(_, e)| *e == Event::Terminated { reason: Reason::ClientClosed }));
}

#[test]
fn a_close_does_not_wait_long_for_a_silent_owner() {
    let mut world = World::attached(2, 36);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Silent;
    let now = world.clock();
    world.client.close(now, Reason::ClientClosed);
    world.settle();
    world.run(MS * 400);
    assert_eq!(world.client.status().state, State::Terminated);
}

#[test]
fn a_session_ended_by_its_owner_says_why() {
    let mut world = World::attached(2, 37);
    let owner = world.owner();
    let index = world.active(owner);
    world.say(owner, index, &Frame::Terminated { reason: Reason::OperatorTerminated });
    world.run(MS * 5);
    assert!(world.events.iter().any(|(_, e)| *e == Event::Terminated { reason: Reason::OperatorTerminated }));
    assert!(!world.upload(b"x"));
}

#[test]
fn pings_and_path_challenges_are_answered() {
    let mut world = World::attached(1, 38);
    let index = world.active(0);
    world.gateways[0].frames.clear();
    world.say(0, index, &Frame::Ping { id: 5 });
    world.say(0, index, &Frame::PathChallenge { token: [8; 8] });
    world.say(0, index, &Frame::Bound { binding: 3 });
    world.run(MS * 5);
    assert_eq!(
        world.gateways[0].frames,
        [Frame::Pong { id: 5, received: 1, newest: 2 }, Frame::PathResponse { token: [8; 8] }]
    );
    assert_eq!(world.client.status().binding, 3);
}
