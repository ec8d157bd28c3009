//! One budget for both kinds of switches, wherever they are counted: the owner's for paths, control's for owners.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Incarnation, NodeId, SessionId};
use jump_session::ownership::{
    AttachRequest, Change, Decision, DeviceStanding, Owner, Phase, SessionRecord, View, arbitrate, birth,
    change,
};
use jump_session::path::{KEPT_FOR_ATTACH, SwitchRate};
use jump_session::policy::SessionPolicy;
use jump_session::reason::Reason;
use proptest::prelude::*;

const VIEW: View = View {
    claimant_registered: true,
    claimant_draining: false,
    owner_registered: true,
    owner_draining: false,
    target_registered: true,
    device: DeviceStanding::Active,
};

fn gateway(number: u8) -> Owner {
    let node: NodeId = format!("gw{number}").parse().unwrap();
    Owner { node, incarnation: Incarnation(1) }
}

/// A session with its record and what its owner counts.
struct World {
    policy: SessionPolicy,
    record: SessionRecord,
    rate: SwitchRate,
    now_ms: u64,
    seq: u64,
    /// When all switches that count took effect.
    switches: Vec<u64>,
    /// How long after its decision the next switch takes effect.
    delay_ms: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    /// From now on decisions take so long to take effect.
    Delay(u64),
    /// The client's path is another one.
    Path,
    /// It attaches to this gateway, which may be the present one. The owner may have been asked to drain.
    Attach(u8, bool),
    /// The owner acknowledges a fence, and says so twice.
    Acknowledge,
    /// It gives the session up.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u64..9_000).prop_map(Step::Wait),
        2 => (0u64..1_000).prop_map(Step::Delay),
        5 => Just(Step::Path),
        5 => (1u8..4, prop::bool::weighted(0.1)).prop_map(|(to, drains)| Step::Attach(to, drains)),
        4 => Just(Step::Acknowledge),
        1 => Just(Step::Release),
    ]
}

impl World {
    fn new(per_minute: u32) -> Self {
        let policy = SessionPolicy {
            switches_per_minute_max: per_minute,
            switch_cooldown: Duration::ZERO,
            ..SessionPolicy::default()
        };
        let now_ms = 10_000_000;
        let id = SessionId::from_bytes([1; 16]);
        let inner = vec!["10.0.0.1".parse().unwrap()];
        let request = Self::request(gateway(1), 1, vec![]);
        let born = birth(id, inner, String::new(), [0; 16], &VIEW, &request, &policy, now_ms).unwrap().next;
        let rate = SwitchRate::new(per_minute, Duration::ZERO);
        Self { policy, record: born, rate, now_ms, seq: 1, switches: vec![], delay_ms: 0 }
    }

    fn request(claimant: Owner, seq: u64, switch_ages: Vec<Duration>) -> AttachRequest {
        AttachRequest {
            claimant,
            device: DeviceKey::from_bytes([7; 32]),
            attach_seq: AttachSeq(seq),
            attempt: AttemptId::from_bytes(u128::from(seq).to_be_bytes()),
            reason: Reason::ClientRequest,
            switch_ages,
        }
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms)
    }

    fn take(&mut self, step: &Step) {
        let epoch = self.record.epoch;
        let owner = self.record.owner().cloned();
        match step {
            Step::Wait(ms) => self.now_ms += ms,
            Step::Delay(ms) => self.delay_ms = *ms,
            Step::Path => {
                if owner.is_some() && self.rate.allows(self.now(), KEPT_FOR_ATTACH) {
                    self.rate.spend(self.now());
                    self.switches.push(self.now_ms + self.delay_ms);
                }
            }
            Step::Attach(to, drains) => {
                self.seq += 1;
                let claimant = gateway(*to);
                let stays = owner.as_ref() == Some(&claimant);
                let ages = if stays { self.rate.ages(self.now()) } else { vec![] };
                let view = View { owner_draining: *drains, owner_registered: owner.is_some(), ..VIEW };
                let request = Self::request(claimant, self.seq, ages);
                match arbitrate(&self.record, &view, &request, &self.policy, self.now_ms) {
                    Ok(Decision::Commit(transition)) => self.own(transition.next, stays),
                    Ok(Decision::Intend(transition)) => self.record = transition.next,
                    Ok(Decision::Wait | Decision::AlreadyAccepted) | Err(_) => {}
                }
            }
            Step::Acknowledge => {
                let Some(by) = owner else { return };
                let told = Change::FenceAcknowledged { by, epoch, switch_ages: self.rate.ages(self.now()) };
                if let Ok(Some(transition)) = change(&self.record, &VIEW, &told, self.now_ms) {
                    self.own(transition.next, false);
                    assert_eq!(change(&self.record, &VIEW, &told, self.now_ms), Ok(None));
                }
            }
            Step::Release => {
                let Some(by) = owner else { return };
                let switch_ages = self.rate.ages(self.now());
                let told = Change::Release { by, epoch, reason: Reason::Drained, switch_ages };
                if let Ok(Some(transition)) = change(&self.record, &VIEW, &told, self.now_ms) {
                    self.own(transition.next, false);
                }
            }
        }
    }

    /// Writes the record; a new owner counts from what it is told.
    fn own(&mut self, next: SessionRecord, stays: bool) {
        let waited = matches!(&self.record.phase, Phase::Handover { to, .. } if to.charged);
        if next.epoch > self.record.epoch && (stays || waited) {
            self.switches.push(self.now_ms + self.delay_ms);
        }
        let mut rate = SwitchRate::new(self.policy.switches_per_minute_max, Duration::ZERO);
        next.switch_ages(self.now_ms).into_iter().for_each(|age| rate.tell(self.now(), age));
        if stays {
            rate.go_on_from(&self.rate);
        }
        (self.record, self.rate) = (next, rate);
    }

    fn most_in_a_minute(&self) -> usize {
        let window = 60_000;
        let from =
            |start: &u64| self.switches.iter().filter(|at| (*start..start + window).contains(*at)).count();
        self.switches.iter().map(from).max().unwrap_or(0)
    }
}

proptest! {
    #[test]
    fn path_switches_and_changes_of_owner_together_never_exceed_the_policy(
        per_minute in 1u32..7,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(per_minute);
        for step in &steps {
            world.take(step);
            prop_assert!(world.most_in_a_minute() <= per_minute as usize, "{:?} after {step:?}", world.switches);
        }
    }
}

#[test]
fn the_whole_budget_can_be_used_by_paths_and_a_move_and_by_attaches_alone() {
    let mut paths = World::new(3);
    (0..9).for_each(|_| paths.take(&Step::Path));
    paths.take(&Step::Attach(1, false));
    assert_eq!(paths.switches.len(), 2, "what is kept for going elsewhere was spent on staying");
    paths.take(&Step::Attach(2, false));
    paths.take(&Step::Acknowledge);
    assert_eq!(paths.most_in_a_minute(), 3);
    let mut owners = World::new(3);
    (0..9).for_each(|_| owners.take(&Step::Attach(1, false)));
    assert_eq!(owners.most_in_a_minute(), 3);
}
