//! Sequences of operations against a small store, with the invariants checked after every step. Names, runs and
//! sequence numbers come from tiny domains so that they collide.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::table::{owner, request};
use super::*;
use crate::policy::SessionPolicy;

#[derive(Debug, Clone)]
enum Step {
    Attach { node: usize, seq: u64 },
    Fence { node: usize, epoch_back: u64 },
    Release { node: usize, epoch_back: u64 },
    Terminate,
    Expire,
    Restart { node: usize },
    Lose { node: usize },
    Drain { node: usize },
    Move { node: Option<usize> },
    Later { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3usize, 1..40u64).prop_map(|(node, seq)| Step::Attach { node, seq }),
        4 => (0..3usize, 0..2u64).prop_map(|(node, epoch_back)| Step::Fence { node, epoch_back }),
        1 => (0..3usize, 0..2u64).prop_map(|(node, epoch_back)| Step::Release { node, epoch_back }),
        2 => Just(Step::Expire),
        1 => Just(Step::Terminate),
        2 => (0..3usize).prop_map(|node| Step::Restart { node }),
        1 => (0..3usize).prop_map(|node| Step::Lose { node }),
        1 => (0..3usize).prop_map(|node| Step::Drain { node }),
        1 => proptest::option::of(0..3usize).prop_map(|node| Step::Move { node }),
        4 => (0..200u64).prop_map(|millis| Step::Later { millis }),
        1 => (0..70_000u64).prop_map(|millis| Step::Later { millis }),
    ]
}

const NAMES: [&str; 3] = ["a", "b", "c"];

struct World {
    /// The registered run of each node.
    nodes: [Option<u64>; 3],
    /// Whether each node drains.
    draining: [bool; 3],
    runs: u64,
    record: SessionRecord,
    now: UnixMillis,
    policy: SessionPolicy,
    /// Attempts that were refused for good.
    refused: BTreeSet<(usize, u64, u64)>,
    /// Who was accepted in each epoch.
    owners: BTreeMap<u64, Owner>,
}

impl World {
    fn new() -> Self {
        let policy = SessionPolicy {
            switches_per_minute_max: 4,
            session_lifetime: Duration::from_secs(600),
            ..SessionPolicy::default()
        };
        let mut world = Self {
            nodes: [Some(1), Some(2), Some(3)],
            draining: [false; 3],
            runs: 3,
            record: super::table::record(Phase::Terminated { at: 0 }),
            now: 1_000_000,
            policy,
            refused: BTreeSet::new(),
            owners: BTreeMap::new(),
        };
        let view = world.view(&owner("a", 1));
        let request = request(owner("a", 1), 1);
        let inner = vec!["10.0.0.1".parse().unwrap()];
        let id = SessionId::from_bytes([1; 16]);
        let born =
            birth(id, inner, String::new(), [0; 16], &view, &request, &world.policy, world.now).unwrap();
        world.record = born.next;
        world.owners.insert(1, owner("a", 1));
        world
    }

    fn is_registered(&self, owner: &Owner) -> bool {
        NAMES
            .iter()
            .position(|name| *name == owner.node.as_str())
            .is_some_and(|i| self.nodes[i] == Some(owner.incarnation.0))
    }

    fn is_draining(&self, owner: &Owner) -> bool {
        NAMES.iter().position(|name| *name == owner.node.as_str()).is_some_and(|node| self.draining[node])
    }

    fn view(&self, claimant: &Owner) -> View {
        View {
            claimant_registered: self.is_registered(claimant),
            claimant_draining: self.is_draining(claimant),
            owner_draining: self.record.owner().is_some_and(|owner| self.is_draining(owner)),
            owner_registered: self.record.owner().is_some_and(|owner| self.is_registered(owner)),
            target_registered: match &self.record.phase {
                Phase::Handover { to, .. } => self.is_registered(&to.owner),
                Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => false,
            },
            device: DeviceStanding::Active,
        }
    }

    /// The named node's registered run, or a run that it will never have.
    fn run(&self, node: usize) -> Owner {
        owner(NAMES[node], self.nodes[node].unwrap_or(0))
    }

    fn apply(&mut self, transition: Transition, may_overrun: bool) {
        for condition in &transition.conditions {
            let holds = match condition {
                Condition::Registered(owner) => self.is_registered(owner),
                Condition::Gone(owner) => !self.is_registered(owner),
            };
            assert!(holds, "decided on what the view did not say: {condition:?}");
        }
        let before = std::mem::replace(&mut self.record, transition.next);
        let after = &self.record;
        assert!(after.epoch >= before.epoch, "the epoch went back");
        assert!(after.attach_seq >= before.attach_seq, "the stored sequence number went back");
        assert!(
            after.highest_attach_seq() >= before.highest_attach_seq(),
            "a sequence number was given back"
        );
        assert!(after.changed >= before.changed);
        assert!(after.history.len() <= HISTORY_MAX);
        assert!(after.recent_switches.len() <= self.policy.switches_per_minute_max as usize);
        assert_eq!((after.id, &after.inner, after.created), (before.id, &before.inner, before.created));
        assert!(!matches!(before.phase, Phase::Terminated { .. }), "a tombstone was written to");
        if before.phase == after.phase && before.epoch == after.epoch {
            // An operator's order: nothing about the ownership changes.
            assert_eq!((after.attach_seq, &after.history), (before.attach_seq, &before.history));
        } else if let Phase::Owned { owner } = &after.phase {
            assert_eq!(after.epoch.0, before.epoch.0 + 1, "an owner without an epoch of its own");
            assert_eq!(self.owners.insert(after.epoch.0, owner.clone()), None, "an epoch was given twice");
            let overrun = before.owner().filter(|old| *old != owner && self.is_registered(old));
            assert!(overrun.is_none() || may_overrun, "a live owner was overrun without its fence");
        } else {
            assert_eq!(after.epoch, before.epoch, "an epoch without an owner");
        }
    }

    fn attach(&mut self, node: usize, seq: u64) {
        let claimant = self.run(node);
        let key = (node, claimant.incarnation.0, seq);
        let request = request(claimant.clone(), seq);
        let view = self.view(&claimant);
        let outcome = arbitrate(&self.record, &view, &request, &self.policy, self.now);
        assert_eq!(outcome, arbitrate(&self.record, &view, &request, &self.policy, self.now));
        if self.refused.contains(&key) {
            assert!(outcome.is_err(), "refused for good, then {outcome:?}");
        }
        match outcome {
            Ok(Decision::Commit(transition)) => {
                self.apply(transition, false);
                let view = self.view(&claimant);
                let again = arbitrate(&self.record, &view, &request, &self.policy, self.now);
                assert_eq!(again, Ok(Decision::AlreadyAccepted));
            }
            Ok(Decision::Intend(transition)) => {
                self.apply(transition, false);
                let view = self.view(&claimant);
                let again = arbitrate(&self.record, &view, &request, &self.policy, self.now);
                assert_eq!(again, Ok(Decision::Wait));
            }
            Ok(Decision::Wait | Decision::AlreadyAccepted) => {}
            Err(refusal) => self.refused(key, &request, &view, &refusal),
        }
    }

    fn refused(&mut self, key: (usize, u64, u64), request: &AttachRequest, view: &View, refusal: &Refusal) {
        let after = |millis: u64| arbitrate(&self.record, view, request, &self.policy, self.now + millis);
        let is_pace = |reason| matches!(reason, Reason::SwitchCooldown | Reason::SwitchRateExceeded);
        let is_due = matches!(refusal.reason, Reason::LifetimeExceeded | Reason::RecoveryWindowExceeded);
        if is_pace(refusal.reason) {
            let wait = refusal.retry_after.as_millis() as u64;
            let early = after(wait - 1).expect_err("could have asked earlier");
            assert!(is_pace(early.reason));
            let in_time = after(wait).err().map(|refusal| refusal.reason);
            assert!(!in_time.is_some_and(is_pace), "still too soon after {wait} ms");
            assert!(view.owner_registered, "held back without a live owner");
        } else if is_due {
            let due = expire(&self.record, view, &self.policy, self.now).expect("nothing is due");
            assert_eq!(due.next.reason, refusal.reason);
        }
        if refusal.is_final() {
            self.refused.insert(key);
        }
    }

    fn step(&mut self, step: &Step) {
        let back = |record: &SessionRecord, by: u64| Epoch(record.epoch.0.saturating_sub(by));
        let wanted = match *step {
            Step::Attach { node, seq } => return self.attach(node, seq),
            Step::Fence { node, epoch_back } => {
                let epoch = back(&self.record, epoch_back);
                Change::FenceAcknowledged { by: self.run(node), epoch, switch_ages: Vec::new() }
            }
            Step::Release { node, epoch_back } => {
                let epoch = back(&self.record, epoch_back);
                Change::Release {
                    by: self.run(node),
                    epoch,
                    reason: Reason::Drained,
                    switch_ages: Vec::new(),
                }
            }
            Step::Move { node } => Change::Move { to: node.map(|node| NAMES[node].parse().unwrap()) },
            Step::Terminate => Change::Terminate { by: None, reason: Reason::OperatorTerminated },
            Step::Expire => {
                let view = self.view(&owner("a", 0));
                if let Some(transition) = expire(&self.record, &view, &self.policy, self.now) {
                    self.apply(transition, false);
                    let view = self.view(&owner("a", 0));
                    assert_eq!(expire(&self.record, &view, &self.policy, self.now), None, "never settles");
                }
                return;
            }
            Step::Restart { node } => {
                self.runs += 1;
                self.nodes[node] = Some(self.runs);
                return;
            }
            Step::Lose { node } => {
                self.nodes[node] = None;
                return;
            }
            Step::Drain { node } => {
                self.draining[node] = !self.draining[node];
                return;
            }
            Step::Later { millis } => {
                self.now += millis;
                return;
            }
        };
        let view = self.view(&owner("a", 0));
        if let Ok(Some(transition)) = change(&self.record, &view, &wanted, self.now) {
            let is_the_owners = match &wanted {
                Change::FenceAcknowledged { by, epoch, .. } | Change::Release { by, epoch, .. } => {
                    self.record.owner() == Some(by) && self.record.epoch == *epoch
                }
                Change::Terminate { .. } | Change::Move { .. } => true,
            };
            assert!(is_the_owners, "{wanted:?} was not the owner's to ask");
            self.apply(transition, true);
            let view = self.view(&owner("a", 0));
            let again = change(&self.record, &view, &wanted, self.now);
            assert!(!matches!(again, Ok(Some(_))), "the same change was written twice: {wanted:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_sequence_of_operations_breaks_an_invariant_of_the_record(steps in vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }

    #[test]
    fn a_session_with_any_past_can_be_claimed_by_a_fresh_attempt(steps in vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps.iter().filter(|step| !matches!(step, Step::Terminate)) {
            world.step(step);
        }
        world.nodes[2] = Some(1_000);
        world.draining = [false; 3];
        world.now += 61_000;
        if super::arbitrate::ended(&world.record, &world.policy, world.now).is_some() {
            return Ok(());
        }
        let claimant = world.run(2);
        let seq = world.record.highest_attach_seq().0 + 1;
        world.attach(2, seq);
        // Whoever was asked to stop does.
        if let Phase::Handover { from, .. } = world.record.phase.clone() {
            let change = Change::FenceAcknowledged { by: from, epoch: world.record.epoch, switch_ages: Vec::new() };
            let view = world.view(&claimant);
            let transition = super::change(&world.record, &view, &change, world.now).unwrap().unwrap();
            world.apply(transition, true);
        }
        prop_assert_eq!(world.record.owner(), Some(&claimant));
    }
}
