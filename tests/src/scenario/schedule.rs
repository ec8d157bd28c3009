//! A scenario's schedule: every step with its time and target, drawn from the seed before anything starts.

use serde::{Deserialize, Serialize};

use super::{Action, FaultKind, FloodKind, Scenario};
use crate::lab::relay::Impairment;
use crate::lab::rng::Rng;

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Milliseconds after the warm-up.
    pub at_ms: u64,
    /// What is done.
    pub act: Act,
    /// What people call it, and what recoveries are counted under.
    pub cause: String,
    /// True for a step that ends what an earlier one began.
    pub ends: bool,
}

/// What is done, with its target. Gateways and replicas count from 0 here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant says what its fields are")]
pub enum Act {
    /// SIGKILL to a worker.
    KillWorker { gateway: usize },
    /// SIGKILL to supervisor and worker.
    KillNode { gateway: usize },
    /// Starts it again.
    StartNode { gateway: usize },
    /// SIGSTOP to a worker.
    PauseWorker { gateway: usize },
    /// SIGSTOP to both.
    PauseNode { gateway: usize },
    /// SIGCONT to what was paused of this gateway.
    ResumeNode { gateway: usize },
    /// SIGTERM, and a new start.
    RestartNode { gateway: usize },
    /// SIGTERM, and that is all.
    StopNode { gateway: usize },
    /// An operator's drain.
    Drain { gateway: usize },
    /// No way to control.
    CutFromControl { gateway: usize },
    /// The way to control is back.
    Mend { gateway: usize },
    /// The outer cable is out.
    Unplug { gateway: usize },
    /// And in.
    Plug { gateway: usize },
    /// The inner network sends nothing through this gateway any more, or again.
    Route { gateway: usize, used: bool },
    /// SIGKILL to a replica.
    KillControl { replica: usize },
    /// Starts it again.
    StartControl { replica: usize },
    /// SIGKILL to the leading store node.
    KillStoreLeader,
    /// SIGSTOP to the leading store node.
    PauseStoreLeader,
    /// Whatever store nodes are down or paused go on.
    HealStore,
    /// New ports.
    Rebind { group: usize, share: f64, address: bool },
    /// The relay's rules.
    Impair { up: Impairment, down: Impairment },
    /// Devices ask for a gateway.
    Move { group: usize, gateway: usize },
    /// Each device asks for the gateway whose number is its own plus `turn`, unless it is there.
    Spread { group: usize, turn: usize },
    /// Another pace.
    Pace { group: usize, probe_ms: u64 },
    /// Waiting devices start.
    Release { group: usize, starts_per_second: f64 },
    /// A flood begins.
    Flood { kind: FloodKind, per_second: u32 },
    /// And ends.
    EndFlood,
    /// How the sessions are spread.
    Count { name: String },
    /// A name for what follows.
    Phase { name: String },
}

/// How long the inner network takes to stop using a gateway that is gone: three hellos of 300 ms, as routers do.
const ROUTING_MS: u64 = 900;

/// The whole schedule, in the order of time.
pub fn schedule(scenario: &Scenario) -> Vec<Step> {
    let mut rng = Rng::new(scenario.seed ^ 0x7363_6865_6475_6c65);
    let mut steps = Vec::new();
    for event in &scenario.events {
        for i in 0..event.times.unwrap_or(1) {
            let at = event.at + f64::from(i) * event.every.unwrap_or(1.0);
            add(&mut steps, scenario, &mut rng, at, &event.action);
        }
    }
    if let Some(faults) = &scenario.faults {
        let mut at = faults.pause;
        // Each round is a shuffle of all kinds, so that a short run tries each.
        let mut round: Vec<FaultKind> = Vec::new();
        while at < scenario.times.run {
            if round.is_empty() {
                round.clone_from(&faults.kinds);
                shuffle(&mut round, &mut rng);
            }
            let Some(kind) = round.pop() else { break };
            // Live owners first: devices go round to other gateways, so that each fault meets sessions wherever it hits.
            let turn = usize::try_from(rng.below(scenario.topology.gateways as u64)).unwrap_or(0);
            let spread = ms(at - faults.pause / 2.0);
            let act = Act::Spread { group: 0, turn };
            steps.push(Step { at_ms: spread, act, cause: "moved_live".to_owned(), ends: false });
            let action = draw(kind, &mut rng);
            let end = add(&mut steps, scenario, &mut rng, at, &action);
            at = end + faults.pause + rng.fraction() * faults.spread;
        }
        let last = ms(scenario.times.run);
        // What begins in time also ends, even after the end.
        steps.retain(|step| step.ends || step.at_ms <= last);
    }
    steps.sort_by_key(|step| step.at_ms);
    steps
}

/// The schedule as text: one JSON object per line.
pub fn to_lines(steps: &[Step]) -> String {
    steps.iter().filter_map(|step| serde_json::to_string(step).ok()).map(|line| line + "\n").collect()
}

fn draw(kind: FaultKind, rng: &mut Rng) -> Action {
    let mut between = |from: f64, to: f64| from + ((to - from) * rng.fraction() * 1000.0).round() / 1000.0;
    match kind {
        FaultKind::KillWorker => Action::KillWorker { gateway: None },
        FaultKind::KillNode => Action::KillNode { gateway: None, seconds: between(4.0, 6.0) },
        // Around the supervisor's patience of a second, on both sides.
        FaultKind::PauseWorker => Action::PauseWorker { gateway: None, seconds: between(0.3, 3.0) },
        // Around the lease's three seconds, on both sides.
        FaultKind::PauseNode => Action::PauseNode { gateway: None, seconds: between(1.0, 7.0) },
        FaultKind::Restart => Action::Restart { gateway: None },
        FaultKind::CutFromControl => Action::CutFromControl { gateway: None, seconds: between(1.0, 7.0) },
        FaultKind::CutOff => Action::CutOff { gateway: None, seconds: between(1.0, 7.0) },
        FaultKind::KillControl => Action::KillControl { replica: None, seconds: between(1.0, 4.0) },
        FaultKind::KillStoreLeader => Action::KillStoreLeader { seconds: between(2.0, 5.0) },
        FaultKind::PauseStoreLeader => Action::PauseStoreLeader { seconds: between(1.0, 4.0) },
        FaultKind::Rebind => Action::Rebind { group: 0, share: 0.5, address: false },
    }
}

/// Adds an action's steps; returns when it is over, in seconds.
fn add(steps: &mut Vec<Step>, scenario: &Scenario, rng: &mut Rng, at: f64, action: &Action) -> f64 {
    let gateways = scenario.topology.gateways;
    let mut pick = |named: Option<usize>, count: usize| {
        // The draw is made either way, so that naming one target does not shift the next ones.
        let drawn = usize::try_from(rng.below(count.max(1) as u64)).unwrap_or(0);
        named.map_or(drawn, |number| number - 1)
    };
    let mut end = at;
    let mut step = |after_ms: u64, act: Act, cause: &str, ends: bool| {
        let at_ms = ms(at) + after_ms;
        steps.push(Step { at_ms, act, cause: cause.to_owned(), ends });
        end = end.max(at_ms as f64 / 1000.0);
    };
    match action {
        Action::KillWorker { gateway } => {
            step(0, Act::KillWorker { gateway: pick(*gateway, gateways) }, "worker_killed", false);
        }
        Action::KillNode { gateway, seconds } => {
            let gateway = pick(*gateway, gateways);
            step(0, Act::KillNode { gateway }, "node_killed", false);
            step(ROUTING_MS, Act::Route { gateway, used: false }, "node_killed", true);
            step(ms(*seconds), Act::StartNode { gateway }, "node_killed", true);
            step(ms(*seconds) + 1, Act::Route { gateway, used: true }, "node_killed", true);
        }
        Action::PauseWorker { gateway, seconds } => {
            let gateway = pick(*gateway, gateways);
            step(0, Act::PauseWorker { gateway }, "worker_paused", false);
            step(ms(*seconds), Act::ResumeNode { gateway }, "worker_paused", true);
        }
        Action::PauseNode { gateway, seconds } => {
            let gateway = pick(*gateway, gateways);
            step(0, Act::PauseNode { gateway }, "node_paused", false);
            if ms(*seconds) > ROUTING_MS {
                step(ROUTING_MS, Act::Route { gateway, used: false }, "node_paused", true);
            }
            step(ms(*seconds), Act::ResumeNode { gateway }, "node_paused", true);
            step(ms(*seconds) + 1, Act::Route { gateway, used: true }, "node_paused", true);
        }
        Action::Restart { gateway } => {
            let gateway = pick(*gateway, gateways);
            step(0, Act::Route { gateway, used: false }, "drained", true);
            step(1, Act::RestartNode { gateway }, "drained", false);
            step(2, Act::Route { gateway, used: true }, "drained", true);
        }
        Action::Start { gateway } => {
            let gateway = pick(Some(*gateway), gateways);
            step(0, Act::StartNode { gateway }, "started", true);
            step(1, Act::Route { gateway, used: true }, "started", true);
        }
        Action::Stop { gateway } => {
            let gateway = pick(Some(*gateway), gateways);
            step(0, Act::Route { gateway, used: false }, "stopped", true);
            step(1, Act::StopNode { gateway }, "stopped", false);
        }
        Action::Drain { gateway } => {
            step(0, Act::Drain { gateway: pick(Some(*gateway), gateways) }, "drained", false);
        }
        Action::CutFromControl { gateway, seconds } => {
            let gateway = pick(*gateway, gateways);
            step(0, Act::CutFromControl { gateway }, "cut_from_control", false);
            step(ms(*seconds), Act::Mend { gateway }, "cut_from_control", true);
        }
        Action::CutOff { gateway, seconds } => {
            let gateway = pick(*gateway, gateways);
            step(0, Act::Unplug { gateway }, "cut_off", false);
            if ms(*seconds) > ROUTING_MS {
                step(ROUTING_MS, Act::Route { gateway, used: false }, "cut_off", true);
            }
            step(ms(*seconds), Act::Plug { gateway }, "cut_off", true);
            step(ms(*seconds) + 1, Act::Route { gateway, used: true }, "cut_off", true);
        }
        Action::KillControl { replica, seconds } => {
            let replica = pick(*replica, controls(scenario));
            step(0, Act::KillControl { replica }, "control_killed", false);
            step(ms(*seconds), Act::StartControl { replica }, "control_killed", true);
        }
        Action::KillAllControls { seconds } => {
            for replica in 0..controls(scenario) {
                step(0, Act::KillControl { replica }, "control_outage", false);
                step(ms(*seconds), Act::StartControl { replica }, "control_outage", true);
            }
        }
        Action::KillStoreLeader { seconds } => {
            step(0, Act::KillStoreLeader, "store_leader_killed", false);
            step(ms(*seconds), Act::HealStore, "store_leader_killed", true);
        }
        Action::PauseStoreLeader { seconds } => {
            step(0, Act::PauseStoreLeader, "store_leader_paused", false);
            step(ms(*seconds), Act::HealStore, "store_leader_paused", true);
        }
        Action::Rebind { group, share, address } => {
            step(0, Act::Rebind { group: *group, share: *share, address: *address }, "rebound", false);
        }
        Action::Impair { up, down } => step(0, Act::Impair { up: *up, down: *down }, "impaired", false),
        Action::Move { group, gateway } => {
            step(0, Act::Move { group: *group, gateway: pick(*gateway, gateways) }, "moved", false);
        }
        Action::Pace { group, probe_ms } => {
            step(0, Act::Pace { group: *group, probe_ms: *probe_ms }, "paced", true);
        }
        Action::Release { group, starts_per_second } => {
            let act = Act::Release { group: *group, starts_per_second: *starts_per_second };
            step(0, act, "released", true);
        }
        Action::Flood { kind, per_second, seconds } => {
            step(0, Act::Flood { kind: *kind, per_second: *per_second }, "flood", false);
            step(ms(*seconds), Act::EndFlood, "flood", true);
        }
        Action::Count { name } => step(0, Act::Count { name: name.clone() }, "count", true),
        Action::Phase { name } => step(0, Act::Phase { name: name.clone() }, "phase", true),
    }
    end
}

fn controls(scenario: &Scenario) -> usize {
    match scenario.topology.store {
        super::StoreKind::Embedded => 1,
        super::StoreKind::Etcd => 2,
    }
}

fn shuffle<T>(list: &mut [T], rng: &mut Rng) {
    for i in (1..list.len()).rev() {
        let j = usize::try_from(rng.below(i as u64 + 1)).unwrap_or(0);
        list.swap(i, j);
    }
}

fn ms(seconds: f64) -> u64 {
    // Saturates; schedules are shorter than a day.
    (seconds * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(seed: u64) -> Scenario {
        let text = format!(
            "name = 'x'\ntitle = 'x'\nseed = {seed}\n[[devices]]\ncount = 2\n[times]\nrun = 600\n\
             [faults]\npause = 4\nspread = 3\nkinds = ['kill_worker', 'pause_node', 'cut_off', 'kill_store_leader']\n"
        );
        Scenario::parse(&text, false).unwrap()
    }

    #[test]
    fn one_seed_gives_one_schedule_byte_for_byte_and_another_seed_another() {
        let once = to_lines(&schedule(&faults(7)));
        assert!(once.lines().count() > 60, "{once}");
        assert_eq!(once, to_lines(&schedule(&faults(7))));
        assert_ne!(once, to_lines(&schedule(&faults(8))));
    }

    #[test]
    fn every_fault_ends_before_the_next_begins() {
        let mut under_way = 0;
        for step in schedule(&faults(3)) {
            let begins = matches!(
                step.act,
                Act::KillNode { .. } | Act::PauseNode { .. } | Act::Unplug { .. } | Act::KillStoreLeader
            );
            let ends = matches!(
                step.act,
                Act::StartNode { .. } | Act::ResumeNode { .. } | Act::Plug { .. } | Act::HealStore
            );
            assert!(!begins || under_way == 0, "{step:?}");
            under_way += i32::from(begins) - i32::from(ends);
        }
        assert_eq!(under_way, 0);
    }

    #[test]
    fn naming_a_target_does_not_change_the_targets_of_later_events() {
        let text = |first: &str| {
            format!(
                "name = 'x'\ntitle = 'x'\n[[devices]]\ncount = 2\n[[events]]\nat = 1\ndo = 'kill_worker'\n{first}\
                 [[events]]\nat = 2\ndo = 'kill_worker'\n"
            )
        };
        let second = |first| schedule(&Scenario::parse(&text(first), false).unwrap())[1].clone();
        assert_eq!(second(""), second("gateway = 2\n"));
    }
}
