//! Seeded runs through bad networks and dying gateways: whatever happens, the invariants hold and service returns.

use std::time::Duration;

use super::world::{MS, Mood, World, download};
use crate::client::{Event, NetworkChange, State};
use crate::reason::Reason;

#[test]
fn whatever_the_network_does_epochs_only_grow_and_service_returns() {
    for seed in 0..150 {
        let mut world = World::new(3, 1000 + seed);
        world.loss_percent = world.random.next() % 40;
        world.duplicate_percent = world.random.next() % 30;
        world.jitter = MS * (world.random.next() % 60) as u32;
        world.latency = MS * (1 + world.random.next() % 80) as u32;
        world.start();
        for _ in 0..40 {
            step(&mut world);
        }
        world.loss_percent = 0;
        world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Alive);
        // A gateway that dozed through a takeover is no owner any more.
        world.run(Duration::from_secs(10));
        world.upload(b"end");
        world.run(Duration::from_secs(30));
        check(&world, seed);
    }
}

fn step(world: &mut World) {
    let at = (world.random.next() % 3) as usize;
    match world.random.next() % 9 {
        0 => world.gateways[at].mood = Mood::Silent,
        1 => world.gateways[at].mood = Mood::Refusing,
        2 => world.gateways[at].mood = Mood::Mute,
        3 => world.gateways[at].mood = Mood::Loaded,
        4 => world.gateways[at].peers.clear(),
        5 => {
            let now = world.clock();
            world.client.handle_network_change(now, NetworkChange::Changed);
            world.settle();
        }
        6 => {
            let now = world.clock();
            world.client.request_move(now, Reason::ClientRequest, &[]);
            world.settle();
        }
        _ => world.gateways.iter_mut().for_each(|gateway| gateway.mood = Mood::Alive),
    }
    for _ in 0..5 {
        world.upload(b"traffic");
        if let Some((_, owner)) = world.client.status().owner {
            let owner = world.place(owner);
            if let Some(index) =
                world.gateways[owner].peers.iter().rev().find(|(_, p)| p.active).map(|(i, _)| *i)
            {
                world.send_packet(owner, index, &download(1));
            }
        }
        let pause = MS * (world.random.next() % 120) as u32;
        world.run(pause);
    }
}

fn check(world: &World, seed: u64) {
    let status = world.client.status();
    assert_eq!(status.state, State::Attached, "seed {seed}: {:?}", world.states());
    assert_eq!(status.epoch.0, world.store.epoch, "seed {seed}");
    let epochs: Vec<_> = world.attaches().iter().map(|(_, attached)| attached.accepted.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "seed {seed}: {epochs:?}");
    let sequence: Vec<_> = world
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::StateChanged { from, to, .. } => Some((*from, *to)),
            _ => None,
        })
        .collect();
    assert!(sequence.windows(2).all(|pair| pair[0].1 == pair[1].0), "seed {seed}");
    assert_eq!(world.paths.len(), 1, "seed {seed}: paths leak: {:?}", world.paths);
}
