//! Birth, reattach, and what decides between gateways.

use std::net::SocketAddr;
use std::time::Duration;

use super::world::{MS, Mood, World, download, rejected};
use crate::client::{Event, NetworkChange, State, Stored};
use crate::frame::Frame;
use crate::ids::{AttachSeq, Epoch, SessionId};
use crate::reason::Reason;

#[test]
fn a_new_session_is_born_in_epoch_one_and_carries_packets_both_ways() {
    let mut world = World::new(2, 1);
    world.start();
    world.run(MS * 100);
    let attaches = world.attaches();
    assert_eq!(attaches.len(), 1);
    assert!(attaches[0].1.born);
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert_eq!(world.states(), ["ATTACHED"]);

    let owner = world.owner();
    assert!(world.upload(b"up"));
    let index = world.active(owner);
    world.send_packet(owner, index, &download(7));
    world.run(MS * 10);
    assert_eq!(world.gateways[owner].packets, [b"up".to_vec()]);
    assert_eq!(world.received, [download(7)]);
    assert!(world.events.iter().any(|(_, event)| matches!(event, Event::FirstByte { epoch: Epoch(1), .. })));
}

#[test]
fn a_network_that_loses_one_address_family_silently_costs_one_step_and_one_attach_is_made() {
    for lost_is_v4 in [true, false] {
        let v4 = (1..=3u8).map(|n| SocketAddr::from(([192, 0, 2, n], 51820)));
        let v6 = (1..=3u16).map(|n| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 51820)));
        let all: Vec<SocketAddr> = if lost_is_v4 { v4.chain(v6).collect() } else { v6.chain(v4).collect() };
        let mut world = World::at_addresses(92, all);
        for gateway in &mut world.gateways {
            if gateway.address.is_ipv4() == lost_is_v4 {
                gateway.mood = Mood::Silent;
            }
        }
        world.start();
        world.run(MS * 150);
        assert_eq!(world.client.status().state, State::Attached);
        let tried: Vec<bool> = world
            .events
            .iter()
            .filter_map(|(_, event)| match event {
                Event::Attempted { gateway, .. } => Some(gateway.is_ipv4()),
                _ => None,
            })
            .collect();
        assert_eq!(tried, [lost_is_v4, !lost_is_v4]);
        let confirms: usize = world
            .gateways
            .iter()
            .map(|gateway| gateway.frames.iter().filter(|frame| matches!(frame, Frame::Confirm)).count())
            .sum();
        assert_eq!(confirms, 1, "more than one gateway was asked");
    }
}

#[test]
fn addresses_that_race_with_an_answer_each_lead_to_one_attach() {
    let addresses = (1..=4u8).map(|n| SocketAddr::from(([192, 0, 2, n], 51820))).collect();
    let mut world = World::at_addresses(93, addresses);
    // Every answer comes after others have been asked.
    world.latency = MS * 250;
    world.start();
    world.run(MS * 3000);
    let asked = world.gateways.iter().filter(|gateway| !gateway.inits.is_empty()).count();
    assert!(asked > 1, "nobody raced");
    assert_eq!((world.attaches().len(), world.store.epoch), (1, 1));
}

#[test]
fn no_attempt_leaves_before_its_number_is_on_disk() {
    let mut world = World::new(1, 2);
    world.disk = None;
    world.start();
    world.run(MS * 5000);
    assert!(world.gateways[0].inits.is_empty());
    assert!(!world.events.iter().any(|(_, event)| matches!(event, Event::Attempted { .. })));
}

#[test]
fn a_slow_disk_delays_the_birth_and_nothing_else() {
    let mut world = World::new(2, 3);
    world.disk = Some(MS * 700);
    world.start();
    world.run(MS * 1500);
    assert_eq!(world.client.status().state, State::Attached);
    world.events.clear();
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    world.upload(b"x");
    world.run(MS * 50);
    assert_eq!(world.client.status().epoch, Epoch(2), "a reattach waited for the disk");
}

#[test]
fn a_refusing_gateway_is_left_at_once_and_the_session_keeps_its_name_and_addresses() {
    let mut world = World::attached(2, 4);
    let before = world.client.status();
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    let start = world.now;
    assert!(world.upload(b"lost"));
    world.run(MS * 300);
    let (at, attached) = world.attaches().remove(0);
    assert!(at - start <= MS * 20, "took {:?}", at - start);
    assert_eq!(attached.reason, Reason::PathRefused);
    let after = world.client.status();
    assert_eq!((after.session, after.inner, after.epoch), (before.session, before.inner, Epoch(2)));
    assert_ne!(world.owner(), owner);
    assert_eq!(world.states(), ["REATTACHING", "RECOVERING", "ATTACHED"]);
}

#[test]
fn a_gateway_that_falls_silent_under_traffic_is_left_within_half_a_second() {
    let mut world = World::attached(2, 5);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Silent;
    let start = world.now;
    world.upload(b"lost");
    world.run(MS * 1000);
    let (at, attached) = world.attaches().remove(0);
    assert!(at - start <= MS * 500, "took {:?}", at - start);
    assert_eq!(attached.reason, Reason::GatewayUnresponsive);
    assert!(attached.timings.detect >= MS * 300);
    assert_eq!(world.states(), ["VOLATILE", "DEGRADED", "REATTACHING", "RECOVERING", "ATTACHED"]);
}

#[test]
fn an_idle_session_notices_a_dead_gateway_by_its_keepalive() {
    let mut world = World::attached(2, 6);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Silent;
    world.run(MS * 14_000);
    assert_eq!(world.client.status().state, State::Attached);
    world.run(MS * 2_000);
    assert_eq!(world.client.status().epoch, Epoch(2));
}

#[test]
fn an_idle_session_stays_attached_for_an_hour() {
    let mut world = World::attached(2, 7);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert!(world.states().is_empty());
}

#[test]
fn packets_wait_while_no_gateway_can_take_them_and_ride_along_with_the_confirmation() {
    let mut world = World::attached(2, 8);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[1 - owner].commit_delay = MS * 500;
    world.upload(b"lost");
    world.run(MS * 4);
    assert!(!world.upload(b"held"), "sent to a gateway that refuses");
    world.run(MS * 10);
    assert_eq!(world.client.status().state, State::Recovering);
    assert!(world.upload(b"riding"));
    world.run(MS * 600);
    assert_eq!(world.gateways[1 - owner].packets, [b"riding".to_vec()]);
    for _ in 0..200 {
        assert!(world.upload(b"free again"));
    }
}

#[test]
fn a_gateway_that_never_answers_the_handshake_does_not_stop_the_search() {
    let mut world = World::attached(3, 9);
    let owner = world.owner();
    let second = world.client.status().roster.iter().map(|g| world.place(*g)).find(|g| *g != owner).unwrap();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[second].mood = Mood::Silent;
    let start = world.now;
    world.upload(b"x");
    world.run(MS * 1000);
    let (at, _) = world.attaches().remove(0);
    assert!(at - start <= MS * 130, "took {:?}", at - start);
}

#[test]
fn a_gateway_that_dies_between_proof_and_answer_does_not_hold_the_session() {
    let mut world = World::attached(3, 10);
    let owner = world.owner();
    let second = world.client.status().roster.iter().map(|g| world.place(*g)).find(|g| *g != owner).unwrap();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[second].mood = Mood::Mute;
    world.upload(b"x");
    world.run(MS * 4000);
    assert_eq!(world.attaches().len(), 1);
    assert_eq!(world.states(), ["REATTACHING", "RECOVERING", "REATTACHING", "RECOVERING", "ATTACHED"]);
}

#[test]
fn a_late_answer_to_a_confirmation_that_was_given_up_is_still_accepted() {
    let mut world = World::attached(2, 11);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Silent;
    world.gateways[1 - owner].commit_delay = MS * 2550;
    world.upload(b"x");
    world.run(MS * 400);
    assert_eq!(world.client.status().state, State::Recovering);
    // The confirmation is given up, and no gateway answers the next handshakes in time.
    world.run(MS * 2510);
    world.run(MS * 3000);
    assert_eq!(world.client.status().state, State::Attached);
    assert_eq!(world.client.status().epoch.0, world.store.epoch);
}

#[test]
fn a_stale_attempt_jumps_past_the_stored_number() {
    let mut world = World::attached(2, 12);
    world.store.attach_seq = 50_000;
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    world.upload(b"x");
    world.run(MS * 100);
    assert_eq!(world.client.status().epoch, Epoch(2));
    assert_eq!(world.last_intent(1 - owner).attach_seq, AttachSeq(50_001));
}

#[test]
fn a_pending_handover_is_asked_for_again_with_the_same_claim() {
    let mut world = World::attached(2, 13);
    let owner = world.owner();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[1 - owner].script = vec![rejected(Reason::HandoverPending, 1, 1, MS * 100); 3];
    world.upload(b"x");
    world.run(MS * 1000);
    let claims: Vec<_> =
        world.gateways[1 - owner].intents.iter().map(|intent| (intent.attach_seq, intent.attempt)).collect();
    assert_eq!(claims.len(), 4);
    assert!(claims.iter().all(|claim| *claim == claims[0]), "{claims:?}");
    assert_eq!(world.client.status().epoch, Epoch(2));
}

#[test]
fn a_draining_gateway_sends_the_client_to_the_next() {
    let mut world = World::attached(3, 14);
    let owner = world.owner();
    let second = world.client.status().roster.iter().map(|g| world.place(*g)).find(|g| *g != owner).unwrap();
    world.gateways[owner].mood = Mood::Refusing;
    world.gateways[second].script = vec![rejected(Reason::NodeDraining, 1, 1, MS * 100); 9];
    world.upload(b"x");
    world.run(MS * 50);
    assert_eq!(world.client.status().epoch, Epoch(2));
    assert_ne!(world.owner(), second);
}

#[test]
fn a_rejection_that_no_gateway_can_change_ends_the_session_and_says_why() {
    for reason in [Reason::KeyRevoked, Reason::SessionTerminated, Reason::UnknownSession, Reason::WrongDevice]
    {
        let mut world = World::attached(2, 15);
        let owner = world.owner();
        world.gateways[owner].mood = Mood::Refusing;
        world.gateways[1 - owner].script = vec![rejected(reason, 0, 0, Duration::ZERO)];
        world.upload(b"x");
        world.run(MS * 100);
        assert_eq!(world.client.status().state, State::Terminated);
        assert!(world.events.iter().any(|(_, event)| *event == Event::Terminated { reason }));
        assert!(world.paths.is_empty(), "paths left open: {:?}", world.paths);
        assert_eq!(world.client.stored().session, None);
        assert_eq!(world.client.poll_timeout(), None);
    }
}

#[test]
fn a_restarted_client_goes_on_with_its_session_above_its_old_numbers() {
    let world = World::attached(2, 16);
    let stored = world.client.stored();
    let (store_session, store_epoch, store_seq) =
        (world.store.session, world.store.epoch, world.store.attach_seq);
    let mut again = World::with_stored(2, 17, stored.clone());
    again.store.session = store_session;
    again.store.epoch = store_epoch;
    again.store.attach_seq = store_seq;
    again.start();
    again.run(MS * 100);
    let attaches = again.attaches();
    assert_eq!(attaches[0].1.reason, Reason::ClientRestarted);
    assert!(!attaches[0].1.born);
    assert_eq!(again.client.status().session, store_session);
    assert_eq!(again.client.status().epoch, Epoch(2));
    assert!(again.store.attach_seq > stored.attach_seq.0);
}

#[test]
fn a_session_that_no_gateway_serves_is_given_up_after_the_recovery_window() {
    let mut world = World::attached(2, 18);
    world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Silent);
    world.upload(b"x");
    world.run(Duration::from_secs(122));
    assert_eq!(world.client.status().state, State::Reattaching);
    world.run(Duration::from_secs(3));
    assert!(
        world.events.iter().any(|(_, e)| *e == Event::Terminated { reason: Reason::RecoveryWindowExceeded })
    );
}

#[test]
fn a_birth_without_gateways_is_tried_for_ever_and_slowly() {
    let mut world = World::new(2, 19);
    world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Refusing);
    world.start();
    world.run(Duration::from_secs(600));
    assert_eq!(world.client.status().state, State::Birth);
    let attempts = world.events.iter().filter(|(_, event)| matches!(event, Event::Attempted { .. })).count();
    assert!((500..2000).contains(&attempts), "{attempts} attempts in ten minutes");
    world.gateways[1].mood = Mood::Alive;
    world.run(Duration::from_secs(3));
    assert_eq!(world.client.status().state, State::Attached);
}

#[test]
fn every_try_of_a_birth_names_the_same_attempt() {
    let mut world = World::new(2, 20);
    world.gateways[0].mood = Mood::Mute;
    world.start();
    world.run(MS * 5000);
    assert_eq!(world.client.status().state, State::Attached);
    let attempts: Vec<_> =
        world.gateways.iter().flat_map(|gateway| &gateway.intents).map(|intent| intent.attempt).collect();
    assert!(attempts.len() >= 2 && attempts.iter().all(|attempt| *attempt == attempts[0]));
}

#[test]
fn a_device_that_changes_its_network_asks_on_a_new_port_under_the_same_keys() {
    asks_on_a_new_port(NetworkChange::Changed, Reason::NetworkChanged);
}

#[test]
fn a_device_that_was_suspended_asks_on_a_new_port_at_once_and_says_why() {
    asks_on_a_new_port(NetworkChange::Resumed, Reason::Resumed);
}

fn asks_on_a_new_port(change: NetworkChange, why: Reason) {
    let mut world = World::attached(2, 21);
    let owner = world.owner();
    let pings = world.gateways[owner].frames.len();
    let before: Vec<_> = world.paths.keys().copied().collect();
    let now = world.clock();
    world.client.handle_network_change(now, change);
    world.settle();
    world.run(MS * 50);
    let told = |event: &Event| matches!(event, Event::PathChanged { reason, .. } if *reason == why);
    assert!(world.events.iter().any(|(_, event)| told(event)));
    assert!(matches!(world.gateways[owner].frames[pings..], [Frame::MtuProbe { .. }]));
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert!(world.upload(b"on the new path"));
    world.run(MS * 50);
    assert_eq!(world.gateways[owner].packets, [b"on the new path".to_vec()]);
    // What was under way on the old path could still arrive.
    assert!(world.paths.contains_key(&before[0]));
    world.run(MS * 2000);
    assert!(!world.paths.contains_key(&before[0]));
}

#[test]
fn a_stored_session_without_a_name_is_a_new_one() {
    let stored = Stored { session: None, epoch: Epoch(9), attach_seq: AttachSeq(77), ..Stored::default() };
    let mut world = World::with_stored(1, 22, stored);
    world.start();
    world.run(MS * 100);
    assert_eq!(world.client.status().epoch, Epoch(1));
    assert_eq!(world.last_intent(0).last_epoch, Epoch(0));
    assert_eq!(world.last_intent(0).attach_seq, AttachSeq(78));
    assert_eq!(world.client.status().session, Some(SessionId::from_bytes([0x11; 16])));
}
