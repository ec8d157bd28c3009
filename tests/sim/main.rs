//! Deterministic simulation of a whole cluster: one thread, virtual time, every choice from one seed.
//!
//! What runs is what is shipped: the client machine, the gateway's data plane with its authority, the handshake and
//! record cryptography, and arbitration's decisions. What is modelled: sockets, the store, control and the gateway's
//! tasks around those decisions, the calls between them, and everything that goes wrong. One seed is one run, the same every time:
//!
//! ```text
//! make test-sim SEED=42        one run, with its trace
//! make test-sim SEEDS=10000    many
//! ```

mod control;
mod device;
mod event;
mod faults;
mod gateway;
mod random;
mod store;
mod stream;
mod trace;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jump_session::client::State;

use store::Seen;
use trace::Trace;
use world::{Nanos, SECOND, World};

/// Seeds of the short form.
const SEEDS_SHORT: u64 = 100;
/// Things go wrong for this long, and are right again for this long.
const STORM: Nanos = 22 * SECOND;
const CALM: Nanos = 14 * SECOND;

/// A deliberate mistake in the driver's gateways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    NoGuard,
    FenceIgnored,
}

/// What one run showed.
struct Shown {
    seen: Seen,
    fingerprint: u64,
}

/// Runs one seed; panics when a guarantee does not hold.
fn run(seed: u64, mistake: Mistake, trace: &Trace) -> Shown {
    let gateways = 2 + (seed % 2) as usize;
    let mut world = World::new(seed, gateways, trace.clone());
    world.is_guard_off = mistake == Mistake::NoGuard;
    world.is_fence_ignored = mistake == Mistake::FenceIgnored;
    let storm_ends = world.now + STORM;
    world.plan_faults(storm_ends);
    world.run(storm_ends + CALM);
    assert_eq!(
        world.device.state(),
        Some(State::Attached),
        "the client is not attached when all is well again"
    );
    let recent = world.now - SECOND;
    assert!(world.device.last_up > recent, "nothing goes up when all is well again");
    assert!(world.device.last_down > recent, "nothing comes down when all is well again");
    Shown { seen: world.store.seen, fingerprint: trace.fingerprint() }
}

fn try_run(seed: u64, mistake: Mistake) -> Result<(Shown, Trace), (String, Trace)> {
    let trace = Trace::default();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, mistake, &trace)));
    match result {
        Ok(shown) => Ok((shown, trace)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err((text.unwrap_or_default(), trace))
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_seed_keeps_every_guarantee_and_comes_back_to_work() {
    let (first, count) = match number("JUMP_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("JUMP_SIM_FIRST").unwrap_or(1), number("JUMP_SIM_SEEDS").unwrap_or(SEEDS_SHORT)),
    };
    let threads = number("JUMP_SIM_THREADS").unwrap_or(1);
    let (next, failures) = (AtomicU64::new(first), AtomicU64::new(0));
    let seen = Mutex::new(Seen::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match try_run(seed, Mistake::None) {
                        Ok((shown, trace)) => {
                            if count == 1 {
                                println!("{}", trace.tail());
                            }
                            seen.lock().unwrap().add(&shown.seen);
                        }
                        Err((problem, trace)) => {
                            failures.fetch_add(1, Ordering::Relaxed);
                            println!(
                                "{}seed {seed}: {problem}\nreplay: make test-sim SEED={seed}\n",
                                trace.tail()
                            );
                        }
                    }
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    println!("simulation: {count} seeds from {first} in {:.1?}: {seen:?}", started.elapsed());
    assert_eq!(failures.load(Ordering::Relaxed), 0, "seeds failed");
    if count >= SEEDS_SHORT {
        let Seen { handovers, takeovers, reattaches, claims_of_released, .. } = seen;
        assert!(handovers.min(takeovers).min(reattaches) > 0, "the simulation shows nothing: {seen:?}");
        assert!(claims_of_released > 0, "the simulation shows nothing: {seen:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..=5 {
        let runs = [(); 2].map(|()| try_run(seed, Mistake::None).map(|(shown, _)| shown.fingerprint).ok());
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}

#[test]
fn a_missing_guard_and_an_ignored_fence_are_found() {
    for mistake in [Mistake::NoGuard, Mistake::FenceIgnored] {
        let found = (1..=200).find_map(|seed| match try_run(seed, mistake) {
            Err((problem, _)) if problem.contains("G1") => Some((seed, problem)),
            _ => None,
        });
        let (seed, problem) = found.expect("no seed found it");
        println!("found by seed {seed}: {problem}");
    }
}
