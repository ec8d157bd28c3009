//! Gateways that are slow or busy: what a client asks for, and how often.

use std::time::Duration;

use super::world::{MS, Mood, World};
use crate::client::{Event, State};
use crate::ids::Epoch;

/// First messages that reached a gateway, repeated ones included.
fn asked(world: &World) -> usize {
    world.gateways.iter().map(|gateway| gateway.inits.len()).sum()
}

fn attempts(world: &World) -> usize {
    world.events.iter().filter(|(_, event)| matches!(event, Event::Attempted { .. })).count()
}

/// Where the client goes first after the loss of its owner.
fn second(world: &World, owner: usize) -> usize {
    world
        .client
        .status()
        .roster
        .iter()
        .map(|g| world.place(*g))
        .find(|g| *g != owner)
        .expect("another gateway")
}

fn lose_owner(world: &mut World) -> usize {
    let owner = world.owner();
    world.gateways.iter_mut().for_each(|gateway| gateway.inits.clear());
    world.gateways[owner].mood = Mood::Refusing;
    world.upload(b"lost");
    owner
}

#[test]
fn a_busy_gateway_is_asked_again_at_its_time_by_the_same_message_and_nobody_else_is_asked_meanwhile() {
    let mut world = World::attached(3, 31);
    let owner = world.owner();
    let second = second(&world, owner);
    world.gateways[second].busy = vec![MS * 250, MS * 200];
    lose_owner(&mut world);
    let start = world.now;
    world.run(MS * 440);
    assert_eq!(world.gateways[second].inits.len(), 2);
    world.run(MS * 1000);
    let inits = &world.gateways[second].inits;
    assert_eq!(asked(&world), 3, "somebody else was asked");
    assert!(inits.iter().all(|init| init == &inits[0]), "a new message was made");
    let (at, _) = world.attaches().remove(0);
    assert!(at - start >= MS * 450 && at - start < MS * 500, "after {:?}", at - start);
}

#[test]
fn a_gateway_with_a_long_queue_is_left_for_one_that_has_time() {
    let mut world = World::attached(3, 32);
    let owner = world.owner();
    let second = second(&world, owner);
    world.gateways[second].busy = vec![MS * 2000];
    lose_owner(&mut world);
    let start = world.now;
    world.run(MS * 1000);
    let (at, _) = world.attaches().remove(0);
    assert!(at - start < MS * 30, "after {:?}", at - start);
    assert_ne!(world.owner(), second);
}

#[test]
fn a_busy_gateway_that_dies_meanwhile_is_left_after_its_time() {
    let mut world = World::attached(3, 33);
    let owner = world.owner();
    let second = second(&world, owner);
    world.gateways[second].busy = vec![MS * 250];
    lose_owner(&mut world);
    world.run(MS * 50);
    world.gateways[second].mood = Mood::Silent;
    world.run(MS * 500);
    assert_eq!(world.client.status().epoch, Epoch(2));
}

#[test]
fn busy_words_without_end_do_not_hold_the_client_for_ever() {
    let mut world = World::attached(2, 34);
    let owner = world.owner();
    world.gateways[1 - owner].busy = vec![MS * 50; 10_000];
    lose_owner(&mut world);
    world.gateways[owner].mood = Mood::Alive;
    world.run(Duration::from_secs(5));
    assert_eq!(world.owner(), owner, "the other gateway was never asked");
    assert_eq!(world.client.status().state, State::Attached);
}

#[test]
fn a_claim_that_a_gateway_works_on_is_waited_for_and_one_that_it_forgot_is_not() {
    let mut world = World::attached(3, 35);
    let owner = world.owner();
    let second = second(&world, owner);
    world.gateways[second].says_pending = true;
    world.gateways[second].commit_delay = MS * 6000;
    lose_owner(&mut world);
    world.run(MS * 6500);
    assert_eq!((world.owner(), world.client.status().epoch), (second, Epoch(2)));
    assert_eq!(asked(&world), 1, "another attempt was made");
    let confirms =
        world.gateways[second].frames.iter().filter(|f| **f == crate::frame::Frame::Confirm).count();
    assert!(confirms < 12, "{confirms} confirmations");

    let mut world = World::attached(3, 36);
    let owner = world.owner();
    let second = self::second(&world, owner);
    world.gateways[second].says_pending = true;
    world.gateways[second].commit_delay = Duration::from_secs(100);
    lose_owner(&mut world);
    world.run(Duration::from_secs(20));
    assert_eq!(world.client.status().epoch, Epoch(2), "it waits for ever");
}

#[test]
fn silence_is_asked_less_and_less_often_and_never_seldom() {
    let mut world = World::attached(3, 37);
    world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Silent);
    world.upload(b"lost");
    world.run(MS * 400);
    let before = attempts(&world);
    world.run(Duration::from_secs(12));
    let tried = attempts(&world) - before;
    assert!(tried <= 12, "{tried} attempts in twelve seconds");
    world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Alive);
    world.run(MS * 1600);
    assert_eq!(world.client.status().state, State::Attached);
}

#[test]
fn one_silent_gateway_costs_no_more_than_the_timeout() {
    let mut world = World::attached(3, 38);
    let owner = world.owner();
    let second = second(&world, owner);
    world.gateways[second].mood = Mood::Silent;
    lose_owner(&mut world);
    let start = world.now;
    world.run(MS * 1000);
    let (at, _) = world.attaches().remove(0);
    assert!(at - start <= MS * 130, "after {:?}", at - start);
}

#[test]
fn replies_that_take_long_are_waited_for_once_that_is_known() {
    let mut world = World::attached(3, 39);
    world.gateways.iter_mut().for_each(|gateway| gateway.handshake_delay = MS * 250);
    // The first time other gateways are asked too soon; then the time of a reply is known.
    for (expected, what) in [(2..=4, "first"), (1..=1, "second")] {
        let owner = lose_owner(&mut world);
        world.run(MS * 2000);
        assert!(expected.contains(&asked(&world)), "{} messages the {what} time", asked(&world));
        world.gateways[owner].mood = Mood::Alive;
    }
}

#[test]
fn a_forged_busy_word_is_dropped() {
    let mut world = World::attached(2, 40);
    let owner = world.owner();
    world.gateways[1 - owner].mood = Mood::Silent;
    lose_owner(&mut world);
    world.run(MS * 20);
    let paths: Vec<_> = world.paths.keys().copied().collect();
    let drops = world.client.status().drops.bad_cookie;
    for path in paths {
        let mut forged = [0; 24];
        forged[..4].copy_from_slice(&[7, 1, 0x13, 0x88]);
        let now = world.clock();
        world.client.handle_datagram(now, path, &mut forged);
        world.settle();
    }
    assert!(world.client.status().drops.bad_cookie > drops);
    world.gateways[1 - owner].mood = Mood::Alive;
    world.run(MS * 400);
    assert_eq!(world.client.status().epoch, Epoch(2), "the forgery was believed");
}
