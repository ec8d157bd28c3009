//! A planned move loses nothing and repeats nothing.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use jump_tests::moves::Scene;
use jump_tests::moves::drain::Way;
use jump_tests::support;

/// What a debug build carries on a busy machine without a queue of the system running over; the report of `make test-e2e`
/// holds 100 Mbit/s against the promise.
const RATE_BITS: u64 = 4_000_000;

fn drains(label: &'static str, way: Way) {
    let _one = support::one_at_a_time().unwrap();
    let mut scene = Scene::set(&Scene::plan(label)).unwrap();
    let drains = scene.drains(way, RATE_BITS, support::scaled(4, 50) as u64).unwrap();
    eprintln!("{drains:?}");
    assert_eq!((drains.stream.lost, drains.stream.duplicates), (0, 0), "{drains:#?}");
}

#[test]
fn drains_in_a_row_lose_and_repeat_nothing_on_the_way_to_the_device() {
    drains("drain-down", Way::Down);
}

#[test]
fn drains_in_a_row_lose_and_repeat_nothing_on_the_way_from_the_device() {
    drains("drain-up", Way::Up);
}
