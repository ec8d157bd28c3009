//! What audit events say: faults, who owned what when, what ended, what is missing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use jump_session::reason::Reason;
use serde_json::Value;

use crate::lab::histogram::Summary;
use crate::scenario::measure::is_policy;

/// Of a session that no earlier event tells of, a change of owner this long after a fault has another cause.
const FAULT_LASTS_MS: u64 = 120_000;
/// The cause of a node's end that nobody told of.
const GONE: &str = "node_killed";
/// A node that a supervisor gave back, or that stopped, is gone from the store within this: no fault of its own.
const SAME_END_MS: u64 = 5_000;

/// The part of an event that is read here.
#[derive(Debug, Clone)]
pub(in crate::scenario) struct Event {
    at_ms: u64,
    /// Whether it was written before the watch began: it tells who owned what, and counts for nothing else.
    is_past: bool,
    action: String,
    component: String,
    run: String,
    sequence: u64,
    pub(in crate::scenario) session: String,
    device: String,
    pub(in crate::scenario) epoch: u64,
    node: String,
    from_node: String,
    reason: Option<Reason>,
    recovery_micros: Option<u64>,
}

impl Event {
    pub(in crate::scenario) fn read(line: &str, is_past: bool) -> Option<(String, Self)> {
        let event: Value = serde_json::from_str(line).ok()?;
        let ours = &event["unmapped"];
        let text = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
        let uid = event["metadata"]["uid"].as_str()?.to_owned();
        Some((
            uid,
            Self {
                at_ms: event["time"].as_u64()?,
                is_past,
                action: text("action"),
                component: text("component"),
                run: text("run"),
                sequence: event["metadata"]["sequence"].as_u64().unwrap_or(0),
                session: text("session"),
                device: text("device"),
                epoch: ours["epoch"].as_u64().unwrap_or(0),
                node: text("node"),
                from_node: text("from_node"),
                reason: ours["reason"].as_str().and_then(Reason::from_code),
                recovery_micros: ours["recovery_micros"]["total"].as_u64(),
            },
        ))
    }

    /// Whether it says that `node` became the session's owner.
    pub(in crate::scenario) fn is_owner(&self) -> bool {
        self.component == "control"
            && matches!(self.action.as_str(), "session_born" | "session_owner_changed")
    }
}

/// A node that failed or was taken out of service.
#[derive(Debug)]
struct Fault {
    cause: &'static str,
    node: String,
    at_ms: u64,
    /// When the trail told of it: no earlier, and later where nobody saw it happen.
    told_ms: u64,
    is_past: bool,
}

/// The numbers of a trail, and what is to be known about them.
/// `past` is what the files held before the watch began.
pub(super) fn read<'a>(
    past: impl Iterator<Item = &'a str>,
    lines: impl Iterator<Item = &'a str>,
    lease: Duration,
) -> (BTreeMap<String, f64>, Vec<String>) {
    let (mut seen, mut unreadable, mut events) = (HashSet::new(), 0u32, Vec::new());
    let lines = past.map(|line| (line, true)).chain(lines.map(|line| (line, false)));
    for (line, is_past) in lines.filter(|(line, _)| !line.trim().is_empty()) {
        match Event::read(line, is_past) {
            Some((uid, event)) => {
                if seen.insert(uid) {
                    events.push(event);
                }
            }
            None => unreadable += u32::from(!is_past),
        }
    }
    events.sort_by_key(|event| event.at_ms);
    let mut metrics = BTreeMap::new();
    let mut set = |name: &str, value: f64| {
        metrics.insert(name.to_owned(), value);
    };
    let of = |action: &str| {
        let is_of = |event: &&Event| !event.is_past && event.action == action && event.component != "client";
        events.iter().filter(is_of).count()
    };
    set("audit.events", events.iter().filter(|event| !event.is_past).count() as f64);
    set("audit.missing", missing(&events) as f64);
    set("audit.unreadable", f64::from(unreadable));
    set("sessions.born", of("session_born") as f64);
    set("guard.trips", of("node_guard_tripped") as f64);
    let faults = faults(&events, lease);
    let stories = stories(&events);
    let interrupted = interruptions(&faults, &stories);
    let ended = ended(&events, &interrupted);
    set("sessions.lost", ended.lost as f64);
    set("sessions.idle", ended.idle as f64);
    set("sessions.not_back", not_back(&interrupted) as f64);
    set("sessions.reset", reset(&events) as f64);
    set("switches.max_per_minute", switches_per_minute(&events) as f64);
    set("history.register_violations", contradictions(&events) as f64);
    let notes = recoveries(&mut metrics, &events, &faults, &interrupted, lease);
    (metrics, notes)
}

/// Numbers of events that no file has, from each run's last one before the watch (its first one, when it began in it) to
/// its last one.
pub(in crate::scenario) fn missing(events: &[Event]) -> usize {
    let mut numbers: BTreeMap<&str, (BTreeSet<u64>, u64)> = BTreeMap::new();
    for event in events {
        let (seen, last_past) = numbers.entry(&event.run).or_default();
        seen.insert(event.sequence);
        if event.is_past {
            *last_past = event.sequence.max(*last_past);
        }
    }
    let gaps = |(numbers, last_past): &(BTreeSet<u64>, u64)| {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return 0 };
        let from = *first.max(last_past);
        usize::try_from(last - from + 1).unwrap_or(usize::MAX) - numbers.range(from..).count()
    };
    numbers.values().map(gaps).sum()
}

/// Sessions that ended, neither by policy nor by their device's or an operator's wish.
#[derive(Debug)]
struct Ended {
    /// Their owner failed, or their end has another reason than silence.
    lost: usize,
    /// The device went silent while its owner was well: switched off, or out of reach.
    idle: usize,
}

fn ended(events: &[Event], interrupted: &[Interruption<'_>]) -> Ended {
    let wished = [Reason::ClientClosed, Reason::OperatorTerminated, Reason::Superseded];
    let silence = [Reason::TransportLost, Reason::RecoveryWindowExceeded];
    let (mut lost, mut idle) = (BTreeSet::new(), BTreeSet::new());
    // Sessions that control released because of their node, whether or not a fault was told of.
    let mut orphans: BTreeSet<&str> = BTreeSet::new();
    for event in events.iter().filter(|event| event.component == "control") {
        let session = event.session.as_str();
        let reason = event.reason.unwrap_or(Reason::NodeLost);
        match event.action.as_str() {
            "session_released" if reason == Reason::NodeLost => drop(orphans.insert(session)),
            "session_owner_changed" => drop(orphans.remove(session)),
            "session_terminated" if !event.is_past && !is_policy(reason) && !wished.contains(&reason) => {
                let is_failed = orphans.contains(session)
                    || interrupted.iter().any(|one| {
                        one.session == session && matches!(one.outcome, Outcome::Ended | Outcome::Waits)
                    });
                if is_failed || !silence.contains(&reason) {
                    lost.insert(session)
                } else {
                    idle.insert(session)
                };
            }
            _ => {}
        }
    }
    Ended { lost: lost.len(), idle: idle.len() }
}

/// Sessions whose owner failed during the watch and that nobody has taken over, though nobody wished their end.
fn not_back(interrupted: &[Interruption<'_>]) -> usize {
    let is_waiting = |one: &&Interruption<'_>| !one.fault.is_past && one.outcome == Outcome::Waits;
    interrupted.iter().filter(is_waiting).map(|one| one.session).collect::<BTreeSet<_>>().len()
}

/// Devices that began another session though they had one that nobody wished to end.
fn reset(events: &[Event]) -> usize {
    let mut have: BTreeMap<&str, &str> = BTreeMap::new();
    let mut reset = 0;
    for event in events.iter().filter(|event| event.component == "control") {
        match event.action.as_str() {
            "session_born" => {
                let old = have.insert(&event.device, &event.session);
                reset += usize::from(!event.is_past && old.is_some_and(|old| old != event.session));
            }
            "session_owner_changed" => drop(have.insert(&event.device, &event.session)),
            // A new session ends the old one as superseded, and control may tell of that end first.
            "session_terminated" if event.reason == Some(Reason::Superseded) => {}
            "session_terminated" if have.get(event.device.as_str()) == Some(&event.session.as_str()) => {
                have.remove(event.device.as_str());
            }
            _ => {}
        }
    }
    reset
}

fn switches_per_minute(events: &[Event]) -> usize {
    let mut times: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let is_switch =
        |event: &&Event| !event.is_past && event.is_owner() && event.action == "session_owner_changed";
    for event in events.iter().filter(is_switch) {
        times.entry(&event.session).or_default().push(event.at_ms);
    }
    let most = |times: &Vec<u64>| {
        let within = |from: &u64| times.iter().filter(|at| (*from..from + 60_000).contains(*at)).count();
        times.iter().map(within).max().unwrap_or(0)
    };
    times.values().map(most).max().unwrap_or(0)
}

/// Epochs of a session that two nodes are said to have owned: by control, or by a gateway that forwarded in it.
fn contradictions(events: &[Event]) -> usize {
    let mut owners: BTreeMap<(&str, u64), BTreeSet<&str>> = BTreeMap::new();
    let says_owner = |event: &&Event| {
        event.is_owner() || (event.component == "gateway" && event.action == "session_activated")
    };
    for event in events.iter().filter(says_owner).filter(|event| event.epoch > 0 && !event.node.is_empty()) {
        owners.entry((&event.session, event.epoch)).or_default().insert(&event.node);
    }
    owners.values().filter(|nodes| nodes.len() > 1).count()
}

/// Nodes that failed, in the order of time. That a node is gone is told by every replica, of every node that ends in any
/// way, and by some before anybody says why: it counts only where nobody does.
fn faults(events: &[Event], lease: Duration) -> Vec<Fault> {
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    let one_end_ms = SAME_END_MS.max(lease_ms.saturating_mul(2));
    let mut faults: Vec<Fault> = Vec::new();
    let cause = |event: &Event| match (event.component.as_str(), event.action.as_str()) {
        ("control", "node_lost") => Some("worker_killed"),
        ("control", "node_draining" | "node_stopped") | ("gateway", "node_draining") => Some("drained"),
        ("control", "node_gone") => Some(GONE),
        _ => None,
    };
    for is_gone in [false, true] {
        for event in events {
            let Some(cause) = cause(event).filter(|cause| (*cause == GONE) == is_gone) else { continue };
            // Its machine or its way to control went that much earlier, at the most.
            let at_ms = event.at_ms.saturating_sub(if is_gone { lease_ms } else { 0 });
            let is_known = faults
                .iter()
                .any(|fault| fault.node == event.node && event.at_ms.abs_diff(fault.at_ms) < one_end_ms);
            if !is_known {
                let (node, told_ms, is_past) = (event.node.clone(), event.at_ms, event.is_past);
                faults.push(Fault { cause, node, at_ms, told_ms, is_past });
            }
        }
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// What control told of each session, in the order of time.
fn stories(events: &[Event]) -> BTreeMap<&str, Vec<&Event>> {
    let mut stories: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let is_told = |event: &&Event| {
        event.is_owner()
            || (event.component == "control"
                && matches!(event.action.as_str(), "session_released" | "session_terminated"))
    };
    for event in events.iter().filter(is_told) {
        stories.entry(&event.session).or_default().push(event);
    }
    stories
}

/// What became of a session whose owner failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It has another owner, since then, in this epoch.
    Owned { at_ms: u64, epoch: u64 },
    /// It ended as its policy, its device or an operator wished.
    Wished,
    /// It ended because nobody took it over in time.
    Ended,
    /// It has no owner yet.
    Waits,
}

/// A session that a fault took the owner from.
#[derive(Debug)]
struct Interruption<'a> {
    fault: &'a Fault,
    session: &'a str,
    outcome: Outcome,
}

/// Each session that a node owned when it failed, once per fault.
fn interruptions<'a>(
    faults: &'a [Fault],
    stories: &BTreeMap<&'a str, Vec<&'a Event>>,
) -> Vec<Interruption<'a>> {
    let of = |fault: &'a Fault| {
        let outcome = move |(session, story): (&&'a str, &Vec<&'a Event>)| {
            let outcome = outcome(fault, story)?;
            Some(Interruption { fault, session, outcome })
        };
        stories.iter().filter_map(outcome).collect::<Vec<_>>()
    };
    faults.iter().flat_map(of).collect()
}

/// What became of the session of this story after the fault; `None` when the node did not own it then.
fn outcome(fault: &Fault, story: &[&Event]) -> Option<Outcome> {
    // The last time that it got an owner before the trail told of the fault: after that the node is known to be gone.
    let owned = story.iter().rposition(|event| event.is_owner() && event.at_ms <= fault.told_ms);
    let mut after = match owned {
        Some(i) if story[i].node == fault.node && !is_over_before(fault, story.get(i + 1)) => i + 1,
        // It was taken over between the fault and the word of it.
        Some(i) if story[i].at_ms >= fault.at_ms && story[i].from_node == fault.node => {
            let was_owner = i == 0
                || story[i - 1].at_ms >= fault.at_ms
                || (story[i - 1].is_owner() && story[i - 1].node == fault.node);
            if !was_owner {
                return None;
            }
            i
        }
        Some(_) => return None,
        // Nothing is known of it before: where it comes from then is where it was.
        None => {
            let first = story.first()?;
            let is_its = first.is_owner()
                && first.from_node == fault.node
                && first.at_ms >= fault.at_ms
                && first.at_ms - fault.at_ms < FAULT_LASTS_MS;
            if !is_its {
                return None;
            }
            0
        }
    };
    while let Some(event) = story.get(after) {
        let reason = event.reason.unwrap_or(Reason::NodeLost);
        match event.action.as_str() {
            // A node that drains still sees that a device went silent; one that is dead releases nothing.
            "session_released" if reason == Reason::TransportLost => return None,
            "session_released" => after += 1,
            "session_terminated"
                if matches!(
                    reason,
                    Reason::RecoveryWindowExceeded | Reason::TransportLost | Reason::NodeLost
                ) =>
            {
                return Some(Outcome::Ended);
            }
            "session_terminated" => return Some(Outcome::Wished),
            _ => return Some(Outcome::Owned { at_ms: event.at_ms, epoch: event.epoch }),
        }
    }
    Some(Outcome::Waits)
}

/// Whether what came next for a session, its end or its release, came before the fault.
fn is_over_before(fault: &Fault, next: Option<&&Event>) -> bool {
    next.is_some_and(|next| next.at_ms < fault.at_ms)
}

/// Adds, by cause, the times from a fault until its sessions had another owner, and until devices that export their own
/// events had service again.
fn recoveries(
    metrics: &mut BTreeMap<String, f64>,
    events: &[Event],
    faults: &[Fault],
    interrupted: &[Interruption<'_>],
    lease: Duration,
) -> Vec<String> {
    let told = |event: &'_ Event| Some(Duration::from_micros(event.recovery_micros?));
    let by_device: BTreeMap<(&str, u64), Duration> = events
        .iter()
        .filter(|event| event.action == "session_recovered")
        .filter_map(|event| Some(((event.session.as_str(), event.epoch), told(event)?)))
        .collect();
    let faults: Vec<_> = faults.iter().filter(|fault| !fault.is_past).collect();
    let mut reattach: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut recovery: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut by_control: BTreeMap<&str, usize> = BTreeMap::new();
    // A fault that nobody noticed, or recovered from, is worth a line too.
    for fault in &faults {
        reattach.entry(fault.cause).or_default();
        recovery.entry(fault.cause).or_default();
    }
    for one in interrupted.iter().filter(|one| !one.fault.is_past) {
        let Outcome::Owned { at_ms, epoch } = one.outcome else { continue };
        let cause = one.fault.cause;
        let took = Duration::from_millis(at_ms.saturating_sub(one.fault.at_ms));
        reattach.entry(cause).or_default().push(took);
        let device = by_device.get(&(one.session, epoch)).copied();
        if device.is_none() {
            *by_control.entry(cause).or_default() += 1;
        }
        recovery.entry(cause).or_default().push(device.unwrap_or(took));
    }
    let mut notes = Vec::new();
    for (what, by_cause) in [("reattach", reattach), ("recovery", recovery)] {
        for (cause, times) in by_cause {
            add(metrics, what, cause, &Summary::of(times));
        }
    }
    for (cause, count) in by_control {
        notes.push(format!(
            "recovery.{cause} is the time to the new owner for {count} sessions: no device's audit events say more of them"
        ));
    }
    if faults.iter().any(|fault| fault.cause == GONE) {
        notes.push(format!(
            "{GONE} counts from {lease:?} (the lease) before the store let go of the node: nobody saw it die"
        ));
    }
    notes
}

fn add(metrics: &mut BTreeMap<String, f64>, what: &str, cause: &str, summary: &Summary) {
    metrics.insert(format!("{what}.{cause}.count"), summary.count as f64);
    // No percentile of nothing: it would hold any bound.
    if summary.count == 0 {
        return;
    }
    metrics.insert(format!("{what}.{cause}.p50_ms"), summary.p50_ms);
    metrics.insert(format!("{what}.{cause}.p99_ms"), summary.p99_ms);
    metrics.insert(format!("{what}.{cause}.max_ms"), summary.max_ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, at_ms: u64, component: &str, action: &str, rest: &Value) -> String {
        let mut ours = serde_json::json!({ "action": action, "component": component, "run": component });
        ours.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let uid = format!("{component}-{sequence}");
        serde_json::json!({
            "time": at_ms,
            "metadata": { "uid": uid, "sequence": sequence },
            "unmapped": ours,
        })
        .to_string()
    }

    fn numbers(lines: &[String]) -> BTreeMap<String, f64> {
        after(&[], lines)
    }

    fn after(past: &[String], lines: &[String]) -> BTreeMap<String, f64> {
        let [past, lines] = [past, lines].map(|lines| lines.iter().map(String::as_str));
        read(past, lines, Duration::from_secs(3)).0
    }

    fn lost_at(sequence: u64, at_ms: u64) -> String {
        event(sequence, at_ms, "control", "node_lost", &serde_json::json!({ "node": "gw1" }))
    }

    fn ends(sequence: u64, at_ms: u64, action: &str, session: &str, reason: &str) -> String {
        let rest = serde_json::json!({ "session": session, "device": "d", "reason": reason });
        event(sequence, at_ms, "control", action, &rest)
    }

    fn owned(sequence: u64, at_ms: u64, action: &str, epoch: u64, from: &str, node: &str) -> String {
        let rest = serde_json::json!({ "session": "s", "device": "d", "epoch": epoch, "node": node, "from_node": from });
        event(sequence, at_ms, "control", action, &rest)
    }

    #[test]
    fn a_session_of_a_killed_worker_recovers_from_the_moment_that_its_supervisor_told_of() {
        let lost = event(3, 10_000, "control", "node_lost", &serde_json::json!({ "node": "gw1" }));
        let gone = event(2, 9_998, "control", "node_gone", &serde_json::json!({ "node": "gw1" }));
        // The replica that watches is faster than the one that was told.
        let lines = [
            owned(1, 5_000, "session_born", 1, "", "gw1"),
            gone,
            lost,
            owned(4, 10_250, "session_owner_changed", 2, "gw1", "gw2"),
        ];
        let found = numbers(&lines);
        assert_eq!(found["reattach.worker_killed.max_ms"], 250.0);
        assert_eq!(found["recovery.worker_killed.count"], 1.0);
        assert!(!found.contains_key("reattach.node_killed.count"), "{found:?}");
        assert_eq!(
            (found["sessions.lost"], found["sessions.reset"], found["audit.missing"]),
            (0.0, 0.0, 0.0)
        );
        assert_eq!(found["switches.max_per_minute"], 1.0);
    }

    #[test]
    fn a_lost_machine_counts_from_a_lease_before_its_end() {
        let gone = event(2, 10_000, "control", "node_gone", &serde_json::json!({ "node": "gw1" }));
        let lines = [gone, owned(3, 10_100, "session_owner_changed", 2, "gw1", "gw2")];
        assert_eq!(numbers(&lines)["reattach.node_killed.max_ms"], 3_100.0);
    }

    #[test]
    fn a_missing_number_a_lost_session_a_reset_and_two_owners_of_an_epoch_are_seen() {
        let ended = serde_json::json!({ "session": "s", "device": "e", "reason": "NODE_LOST" });
        let activated = serde_json::json!({ "session": "s", "epoch": 1, "node": "gw9" });
        let again = serde_json::json!({ "session": "t", "device": "d", "epoch": 1, "node": "gw1" });
        let lines = [
            owned(1, 1_000, "session_born", 1, "", "gw1"),
            event(1, 1_001, "gateway", "session_activated", &activated),
            event(3, 2_000, "control", "session_terminated", &ended),
            event(4, 3_000, "control", "session_born", &again),
        ];
        let found = numbers(&lines);
        assert_eq!((found["audit.missing"], found["sessions.lost"]), (1.0, 1.0));
        assert_eq!((found["sessions.reset"], found["history.register_violations"]), (1.0, 1.0));
    }

    #[test]
    fn a_session_counts_once_per_fault_and_only_when_the_node_owned_it_then() {
        let moved_before = [
            owned(1, 1_000, "session_born", 1, "", "gw1"),
            owned(2, 2_000, "session_owner_changed", 2, "gw1", "gw2"),
            lost_at(3, 10_000),
            owned(4, 11_000, "session_owner_changed", 3, "gw2", "gw1"),
            owned(5, 12_000, "session_owner_changed", 4, "gw1", "gw2"),
        ];
        assert_eq!(numbers(&moved_before)["reattach.worker_killed.count"], 0.0);
        let comes_and_goes = [
            owned(1, 1_000, "session_born", 1, "", "gw1"),
            lost_at(3, 10_000),
            owned(4, 10_200, "session_owner_changed", 2, "gw1", "gw2"),
            owned(5, 20_000, "session_owner_changed", 3, "gw2", "gw1"),
            owned(6, 30_000, "session_owner_changed", 4, "gw1", "gw2"),
        ];
        let found = numbers(&comes_and_goes);
        assert_eq!(
            (found["reattach.worker_killed.count"], found["reattach.worker_killed.max_ms"]),
            (1.0, 200.0)
        );
        let released_before = [
            owned(1, 1_000, "session_born", 1, "", "gw1"),
            ends(2, 5_000, "session_released", "s", "TRANSPORT_LOST"),
            lost_at(3, 10_000),
            owned(4, 60_000, "session_owner_changed", 2, "gw1", "gw2"),
        ];
        assert_eq!(numbers(&released_before)["reattach.worker_killed.count"], 0.0);
    }

    #[test]
    fn only_the_device_of_an_interrupted_session_tells_of_its_recovery() {
        let recovered = |sequence, session: &str, epoch: u64, micros: u64| {
            let rest = serde_json::json!({
                "session": session, "epoch": epoch, "recovery_micros": { "total": micros }
            });
            event(sequence, 10_300, "client", "session_recovered", &rest)
        };
        let mut lines = vec![
            owned(1, 5_000, "session_born", 1, "", "gw1"),
            lost_at(2, 10_000),
            owned(3, 10_250, "session_owner_changed", 2, "gw1", "gw2"),
            recovered(1, "another", 2, 9_000_000),
            recovered(2, "s", 1, 8_000_000),
        ];
        assert_eq!(numbers(&lines)["recovery.worker_killed.max_ms"], 250.0);
        lines.push(recovered(3, "s", 2, 300_000));
        let found = numbers(&lines);
        assert_eq!(
            (found["recovery.worker_killed.count"], found["recovery.worker_killed.max_ms"]),
            (1.0, 300.0)
        );
    }

    #[test]
    fn a_device_that_had_a_session_before_the_watch_is_seen_to_begin_another() {
        let past = [owned(1, 1_000, "session_born", 1, "", "gw1")];
        let born = |device: &str| {
            let rest = serde_json::json!({ "session": "t", "device": device, "epoch": 1, "node": "gw1" });
            event(3, 3_000, "control", "session_born", &rest)
        };
        let superseded = ends(2, 2_999, "session_terminated", "s", "SUPERSEDED");
        assert_eq!(after(&past, &[superseded, born("d")])["sessions.reset"], 1.0);
        let other = ends(2, 2_999, "session_terminated", "older", "CLIENT_CLOSED");
        assert_eq!(after(&past, &[other, born("d")])["sessions.reset"], 1.0);
        let closed = ends(2, 2_999, "session_terminated", "s", "CLIENT_CLOSED");
        assert_eq!(after(&past, &[closed, born("d")])["sessions.reset"], 0.0);
    }

    #[test]
    fn a_fault_from_which_nobody_recovers_is_judged() {
        let past = [owned(1, 5_000, "session_born", 1, "", "gw1")];
        let found = after(&past, &[lost_at(2, 10_000)]);
        assert_eq!((found["reattach.worker_killed.count"], found["sessions.not_back"]), (0.0, 1.0));
        assert!(!found.contains_key("recovery.worker_killed.p99_ms"), "no percentile of nothing: {found:?}");
        let late =
            [lost_at(2, 10_000), ends(3, 90_000, "session_terminated", "s", "RECOVERY_WINDOW_EXCEEDED")];
        let found = after(&past, &late);
        assert_eq!(
            (found["sessions.lost"], found["sessions.idle"], found["sessions.not_back"]),
            (1.0, 0.0, 0.0)
        );
    }

    #[test]
    fn a_device_that_was_switched_off_is_not_lost() {
        let past = [owned(1, 5_000, "session_born", 1, "", "gw1")];
        let lines = [
            ends(2, 9_000, "session_released", "s", "TRANSPORT_LOST"),
            lost_at(3, 10_000),
            ends(4, 90_000, "session_terminated", "s", "RECOVERY_WINDOW_EXCEEDED"),
        ];
        let found = after(&past, &lines);
        assert_eq!(
            (found["sessions.lost"], found["sessions.idle"], found["sessions.not_back"]),
            (0.0, 1.0, 0.0)
        );
    }

    #[test]
    fn a_number_missing_where_the_watch_begins_is_seen() {
        let past = [owned(1, 1_000, "session_born", 1, "", "gw1")];
        assert_eq!(after(&past, &[lost_at(2, 10_000)])["audit.missing"], 0.0);
        assert_eq!(after(&past, &[lost_at(4, 10_000)])["audit.missing"], 2.0);
    }
}
