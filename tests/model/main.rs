//! Exhaustive model check of the ownership protocol, running the production functions (`docs/ownership.md`).
//!
//! `make test-model` runs the long sizes; `cargo test --test model` the short ones.

mod cluster;
mod defect;
mod record;
mod recovery;
mod replica;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use cluster::{Action, Cluster, GATEWAYS_MAX, Gateway, Message, Sizes, State};
use defect::{Defect, G1, G2, G3, G6, LIVENESS, OWNERS_ARE_REGISTERED};
use record::{Compare, Order, Phase, Run};

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.actions(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.apply(state, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn unbroken(state: &State, property: &str) -> bool {
            state.broken != Some(property)
        }
        vec![
            Property::always(G1, |cluster: &Self, state: &State| {
                state.gateways.iter().filter(|gateway| cluster.forwards(gateway)).count() <= 1
            }),
            Property::always(G2, |_, state| unbroken(state, G2)),
            Property::always(G3, |_, state| unbroken(state, G3)),
            Property::always(G6, |_, state| unbroken(state, G6)),
            Property::always(OWNERS_ARE_REGISTERED, |_, state| unbroken(state, OWNERS_ARE_REGISTERED)),
            Property::always(LIVENESS, |cluster: &Self, state: &State| cluster.recovers(state)),
            // The check would be empty if these did not happen.
            Property::sometimes("a live owner hands over", |_, state: &State| {
                state.network.iter().any(|message| matches!(message, Message::Ack { .. }))
                    && state.record.is_some_and(|record| record.epoch > 1)
            }),
            Property::sometimes("a session of a lost gateway is taken over", |_, state: &State| {
                let is_lost = |gateway: &Gateway| gateway.last > 0 && gateway.key == 0;
                let is_heir = |gateway: &Gateway| gateway.tenure.active().is_some_and(|epoch| epoch.0 > 1);
                state.gateways.iter().any(is_lost) && state.gateways.iter().any(is_heir)
            }),
        ]
    }
}

/// The state with the gateways renamed so that equal ones are interchangeable: of all renamings that sort the gateways,
/// the least state.
fn representative(state: &State) -> State {
    const RENAMINGS: [[u8; GATEWAYS_MAX]; 6] =
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let sorts = |names: &&[u8; GATEWAYS_MAX]| {
        let gateways = renamed_gateways(&state.gateways, names);
        gateways.is_sorted_by(|a, b| a >= b)
    };
    let renamings = RENAMINGS.iter().filter(sorts);
    renamings.map(|names| state.renamed(names)).min().expect("some renaming sorts them")
}

fn renamed_gateways(
    gateways: &[Gateway; GATEWAYS_MAX],
    names: &[u8; GATEWAYS_MAX],
) -> [Gateway; GATEWAYS_MAX] {
    let mut renamed = *gateways;
    for (old, new) in names.iter().enumerate() {
        renamed[usize::from(*new)] = gateways[old];
    }
    renamed
}

impl State {
    fn renamed(&self, names: &[u8; GATEWAYS_MAX]) -> Self {
        let run = |run: Run| Run { node: names[usize::from(run.node)], ..run };
        let phase = |phase: Phase| match phase {
            Phase::Owned(owner) => Phase::Owned(run(owner)),
            Phase::Handover { from, to, seq } => Phase::Handover { from: run(from), to: run(to), seq },
            Phase::Released | Phase::Terminated => phase,
        };
        let message = |message: &Message| match message.clone() {
            Message::Init { seq, run: r } => Message::Init { seq, run: run(r) },
            Message::Attach { seq, run: r } => Message::Attach { seq, run: run(r) },
            Message::Accepted { seq, run: r, epoch } => Message::Accepted { seq, run: run(r), epoch },
            Message::Order { run: r, epoch } => Message::Order { run: run(r), epoch },
            Message::Ack { run: r, epoch } => Message::Ack { run: run(r), epoch },
            Message::Release { run: r, epoch } => Message::Release { run: run(r), epoch },
            Message::Move { to } => Message::Move { to: to.map(|node| names[usize::from(node)]) },
            Message::Sweep => Message::Sweep,
        };
        let mut renamed = self.clone();
        renamed.gateways = renamed_gateways(&self.gateways, names);
        let moving = |order: Option<Order>| order.map(|to| to.map(|node| names[usize::from(node)]));
        if let Some(record) = &mut renamed.record {
            record.phase = phase(record.phase);
            record.moving = moving(record.moving);
        }
        renamed.network = self.network.iter().map(message).collect();
        renamed.network.sort_unstable();
        for pending in renamed.replicas.iter_mut().flatten() {
            pending.message = message(&pending.message);
            pending.write.next.phase = phase(pending.write.next.phase);
            pending.write.next.moving = moving(pending.write.next.moving);
            for compare in &mut pending.write.compares {
                *compare = match *compare {
                    Compare::Registered(r) => Compare::Registered(run(r)),
                    Compare::Gone(r) => Compare::Gone(run(r)),
                };
            }
        }
        renamed.replicas.sort_unstable_by(|a, b| b.cmp(a));
        renamed
    }
}

const SHORT: Sizes = Sizes {
    gateways: 2,
    replicas: 2,
    attempts: 2,
    restarts: 1,
    releases: 0,
    moves: 0,
    drains: 0,
    ttl: 2,
    margin: 1,
    lag_max: 0,
    wrong_views: false,
};

/// Checks every reachable state and prints how many there are.
fn check(name: &str, sizes: Sizes) {
    let started = Instant::now();
    let threads = std::env::var("JUMP_MODEL_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let checker = Cluster { sizes, defect: None }
        .checker()
        .symmetry_fn(representative)
        .threads(threads)
        .spawn_dfs()
        .join();
    println!(
        "model check, {name}: {} distinct states (gateways renamed), {} steps, depth {}, {:.1?}; {sizes:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed(),
    );
    checker.assert_properties();
}

#[test]
fn every_reachable_state_of_the_short_sizes_keeps_every_guarantee() {
    check("two gateways, two attempts", SHORT);
    check("the same, clocks run slow", Sizes { lag_max: 1, ..SHORT });
    check("the same, an owner gives up", Sizes { releases: 1, ..SHORT });
    check("the same, decisions on wrong views", Sizes { wrong_views: true, ..SHORT });
    check("the same, an operator moves and drains", Sizes { moves: 1, drains: 1, restarts: 0, ..SHORT });
    check("three attempts", Sizes { attempts: 3, ..SHORT });
    check("three gateways, two attempts", Sizes { gateways: 3, ..SHORT });
}

#[test]
fn every_deliberate_mistake_is_found_with_a_counterexample() {
    for (defect, property) in Defect::ALL {
        let lag_max = u8::from(*defect == Defect::NoMargin);
        let ttl = if *defect == Defect::GuardFromReceipt { 3 } else { 2 };
        let wrong_views = *defect == Defect::OldOwnerNotCompared;
        let moves = u8::from(*defect == Defect::MoveGivesAway);
        let drains = u8::from(*defect == Defect::DrainRenewsNodeKey);
        let sizes = Sizes { ttl, lag_max, wrong_views, moves, drains, ..SHORT };
        let checker = Cluster { sizes, defect: Some(*defect) }
            .checker()
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let found = checker.discovery(property);
        let path = found.unwrap_or_else(|| {
            panic!("{defect:?} was not found to break {property}; found: {:?}", checker.discoveries().keys())
        });
        println!("\n{defect:?} breaks {property}\n  ({} states searched)", checker.unique_state_count());
        for (step, action) in path.into_actions().iter().enumerate() {
            println!("  {:>2}. {action:?}", step + 1);
        }
    }
}

#[test]
#[ignore = "takes minutes: make test-model"]
fn every_reachable_state_of_the_long_sizes_keeps_every_guarantee() {
    let long = Sizes { gateways: 3, attempts: 3, ..SHORT };
    check("three gateways, three attempts", long);
    check("the same, clocks run slow", Sizes { lag_max: 1, restarts: 0, ..long });
    check("the same, owners give up", Sizes { releases: 2, restarts: 0, ..long });
    check("the same, decisions on wrong views", Sizes { wrong_views: true, restarts: 0, ..long });
    check("the same, an operator moves the session", Sizes { moves: 1, restarts: 0, attempts: 2, ..long });
    check("the same, nodes drain", Sizes { drains: 2, restarts: 0, attempts: 2, ..long });
    check("two gateways, moves, drains and a restart", Sizes { moves: 1, drains: 1, gateways: 2, ..long });
    check("four attempts", Sizes { attempts: 4, restarts: 0, ..long });
    check("two restarts", Sizes { restarts: 2, gateways: 2, ..long });
    check("longer leases", Sizes { ttl: 3, margin: 1, lag_max: 1, gateways: 2, ..long });
}
