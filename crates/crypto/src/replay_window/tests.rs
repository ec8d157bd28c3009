use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The plain model: every accepted counter is remembered for ever.
#[derive(Clone, Default)]
struct Model {
    accepted: BTreeSet<u64>,
    floor: u64,
    width: u64,
}

impl Model {
    fn check(&self, counter: u64) -> Result<(), ReplayError> {
        let newest = self.accepted.last().copied();
        if counter < self.floor || newest.is_some_and(|newest| newest.saturating_sub(counter) > self.width) {
            Err(ReplayError::TooOld)
        } else if self.accepted.contains(&counter) {
            Err(ReplayError::Duplicate)
        } else {
            Ok(())
        }
    }

    fn commit(&mut self, counter: u64) -> Result<(), ReplayError> {
        self.check(counter).map(|()| {
            self.accepted.insert(counter);
        })
    }

    fn shrink(&mut self) {
        if let Some(next) = self.accepted.last().and_then(|newest| newest.checked_add(1)) {
            self.floor = next;
        }
    }
}

/// Walks every sequence of `depth` operations: a commit of each counter in `base..base + span`, or a shrink. After
/// each step the window and the model must agree on every counter of the domain.
fn walk<const BLOCKS: usize, const BITS: u64>(
    window: &Window<BLOCKS, BITS>,
    model: &Model,
    domain: (u64, u64),
    depth: u32,
    visited: &mut u64,
) {
    let (base, span) = domain;
    for offset in 0..span {
        let counter = base + offset;
        assert_eq!(window.check(counter), model.check(counter), "{counter} after {:?}", model.accepted);
    }
    *visited += 1;
    if depth == 0 {
        return;
    }
    for offset in 0..span {
        let (mut window, mut model) = (window.clone(), model.clone());
        let outcome = model.commit(base + offset);
        assert_eq!(window.commit(base + offset), outcome);
        assert_eq!(window.newest, model.accepted.last().copied());
        // A refusal changed nothing, and what follows was walked already.
        if outcome.is_ok() {
            walk(&window, &model, domain, depth - 1, visited);
        }
    }
    let (mut window, mut model) = (window.clone(), model.clone());
    window.shrink();
    model.shrink();
    if model.floor > base && !model.accepted.is_empty() && depth > 1 {
        walk(&window, &model, domain, depth - 1, visited);
    }
}

fn exhaust<const BLOCKS: usize, const BITS: u64>(first: u64, span: u64, depth: u32) -> u64 {
    let width = Window::<BLOCKS, BITS>::WIDTH;
    let model = Model { floor: first, width, ..Model::default() };
    let mut visited = 0;
    // Two counters below the floor belong to the domain where there are any.
    let base = first.saturating_sub(2);
    let span = span.min(u64::MAX - base);
    walk(&Window::<BLOCKS, BITS>::starting_at(first), &model, (base, span), depth, &mut visited);
    visited
}

#[test]
fn at_small_widths_every_sequence_is_judged_as_by_an_unbounded_memory() {
    let visited = exhaust::<3, 2>(0, 12, 6);
    assert!(visited > 100_000, "only {visited} states were visited");
    exhaust::<2, 4>(0, 12, 5);
    exhaust::<5, 1>(3, 12, 4);
    exhaust::<2, 1>(1, 9, 5);
    exhaust::<4, 3>(7, 20, 4);
    exhaust::<3, 2>(u64::MAX - 11, 16, 4);
}

#[test]
fn the_highest_counter_does_not_wrap() {
    let mut window = ReplayWindow::new();
    window.commit(u64::MAX).unwrap();
    assert_eq!(window.check(u64::MAX), Err(ReplayError::Duplicate));
    assert_eq!(window.check(0), Err(ReplayError::TooOld));
    window.commit(u64::MAX - ReplayWindow::WIDTH).unwrap();
    assert_eq!(window.check(u64::MAX - ReplayWindow::WIDTH - 1), Err(ReplayError::TooOld));
    window.shrink();
    assert_eq!(window.check(u64::MAX), Err(ReplayError::Duplicate));
}

#[test]
fn exactly_the_full_width_behind_the_newest_is_told_apart() {
    for newest in [8192, 8193, 8255, 8256, 20_000, 1 << 40] {
        let mut window = ReplayWindow::new();
        window.commit(newest).unwrap();
        let oldest = newest - ReplayWindow::WIDTH;
        for counter in oldest..newest {
            assert_eq!(window.commit(counter), Ok(()), "{counter} below {newest}");
            assert_eq!(window.commit(counter), Err(ReplayError::Duplicate));
        }
        if let Some(older) = oldest.checked_sub(1) {
            assert_eq!(window.commit(older), Err(ReplayError::TooOld));
        }
    }
}

#[test]
fn an_idle_keys_window_owns_no_bitmap() {
    let mut window = ReplayWindow::starting_at(1);
    for counter in 1..=64 {
        window.commit(counter).unwrap();
    }
    assert!(window.0.ring.is_none());
    window.commit(65).unwrap();
    assert!(window.0.ring.is_some());
    window.shrink();
    assert!(window.0.ring.is_none());
    assert_eq!(window.check(65), Err(ReplayError::TooOld));
    assert_eq!(window.commit(66), Ok(()));
    assert!(window.0.ring.is_none());
    assert!(size_of::<ReplayWindow>() <= 48);
}

/// Counters that collide: near the newest one, at the edges of blocks and of the window, and far jumps.
fn steps() -> impl Strategy<Value = Vec<(i64, bool)>> {
    let delta = prop_oneof![
        8 => -70i64..70,
        2 => -8260i64..-8120,
        2 => 8120i64..8330,
        1 => -20_000i64..20_000,
        1 => Just(1i64 << 33),
    ];
    prop::collection::vec((delta, prop::bool::weighted(0.02)), 1..400)
}

proptest! {
    #[test]
    fn at_full_width_any_sequence_is_judged_as_by_an_unbounded_memory(first in 0u64..200, steps in steps()) {
        let mut window = ReplayWindow::starting_at(first);
        let mut model = Model { floor: first, width: ReplayWindow::WIDTH, ..Model::default() };
        for (delta, shrink) in steps {
            let counter = model.accepted.last().copied().unwrap_or(first).saturating_add_signed(delta);
            prop_assert_eq!(window.check(counter), model.check(counter));
            prop_assert_eq!(window.commit(counter), model.commit(counter));
            prop_assert_eq!(window.newest(), model.accepted.last().copied());
            if shrink {
                window.shrink();
                model.shrink();
            }
        }
    }
}
