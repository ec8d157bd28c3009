//! What audit events say: faults, who owned what when, what ended, what is missing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use jump_session::reason::Reason;
use serde_json::Value;

use crate::lab::histogram::Summary;
use crate::scenario::measure::is_policy;

/// A change of owner this long after a fault has another cause.
const FAULT_LASTS_MS: u64 = 120_000;
/// The cause of a node's end that nobody told of.
const GONE: &str = "node_killed";
/// A node that a supervisor gave back, or that stopped, is gone from the store within this: no fault of its own.
const SAME_END_MS: u64 = 5_000;

/// The part of an event that is read here.
#[derive(Debug, Clone)]
struct Event {
    at_ms: u64,
    action: String,
    component: String,
    run: String,
    sequence: u64,
    session: String,
    device: String,
    epoch: u64,
    node: String,
    from_node: String,
    reason: Option<Reason>,
    recovery_micros: Option<u64>,
}

impl Event {
    fn read(line: &str) -> Option<(String, Self)> {
        let event: Value = serde_json::from_str(line).ok()?;
        let ours = &event["unmapped"];
        let text = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
        let uid = event["metadata"]["uid"].as_str()?.to_owned();
        Some((
            uid,
            Self {
                at_ms: event["time"].as_u64()?,
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
    fn is_owner(&self) -> bool {
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
}

/// The numbers of a trail, and what is to be known about them.
pub(super) fn read<'a>(
    lines: impl Iterator<Item = &'a str>,
    lease: Duration,
) -> (BTreeMap<String, f64>, Vec<String>) {
    let (mut seen, mut unreadable, mut events) = (HashSet::new(), 0u32, Vec::new());
    for line in lines.filter(|line| !line.trim().is_empty()) {
        match Event::read(line) {
            Some((uid, event)) => {
                if seen.insert(uid) {
                    events.push(event);
                }
            }
            None => unreadable += 1,
        }
    }
    events.sort_by_key(|event| event.at_ms);
    let mut metrics = BTreeMap::new();
    let mut set = |name: &str, value: f64| {
        metrics.insert(name.to_owned(), value);
    };
    let of = |action: &str| {
        events.iter().filter(|event| event.action == action && event.component != "client").count()
    };
    set("audit.events", events.len() as f64);
    set("audit.missing", missing(&events) as f64);
    set("audit.unreadable", f64::from(unreadable));
    set("sessions.born", of("session_born") as f64);
    set("guard.trips", of("node_guard_tripped") as f64);
    set("sessions.lost", lost(&events) as f64);
    set("sessions.reset", reset(&events) as f64);
    set("switches.max_per_minute", switches_per_minute(&events) as f64);
    set("history.register_violations", contradictions(&events) as f64);
    let notes = recoveries(&mut metrics, &events, lease);
    (metrics, notes)
}

/// Numbers of events that no file has, between the first and the last of each run.
fn missing(events: &[Event]) -> usize {
    let mut numbers: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for event in events {
        numbers.entry(&event.run).or_default().insert(event.sequence);
    }
    let gaps = |numbers: &BTreeSet<u64>| match (numbers.first(), numbers.last()) {
        (Some(first), Some(last)) => usize::try_from(last - first + 1).unwrap_or(usize::MAX) - numbers.len(),
        _ => 0,
    };
    numbers.values().map(gaps).sum()
}

/// Sessions that ended, neither by policy nor by their device's or an operator's wish.
fn lost(events: &[Event]) -> usize {
    let wished = [Reason::ClientClosed, Reason::OperatorTerminated, Reason::Superseded];
    let is_lost = |event: &&Event| {
        let reason = event.reason.unwrap_or(Reason::NodeLost);
        event.component == "control"
            && event.action == "session_terminated"
            && !is_policy(reason)
            && !wished.contains(&reason)
    };
    events.iter().filter(is_lost).map(|event| &event.session).collect::<BTreeSet<_>>().len()
}

/// Devices that began another session though they had one that nobody wished to end.
fn reset(events: &[Event]) -> usize {
    let mut have: BTreeMap<&str, &str> = BTreeMap::new();
    let mut reset = 0;
    for event in events.iter().filter(|event| event.component == "control") {
        match event.action.as_str() {
            "session_born" => {
                let old = have.insert(&event.device, &event.session);
                reset += usize::from(old.is_some_and(|old| old != event.session));
            }
            "session_owner_changed" => drop(have.insert(&event.device, &event.session)),
            "session_terminated" => drop(have.remove(event.device.as_str())),
            _ => {}
        }
    }
    reset
}

fn switches_per_minute(events: &[Event]) -> usize {
    let mut times: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.is_owner() && event.action == "session_owner_changed") {
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
                faults.push(Fault { cause, node: event.node.clone(), at_ms });
            }
        }
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// Adds, by cause, the times from a fault until its sessions had another owner, and until devices that export their own
/// events had service again.
fn recoveries(metrics: &mut BTreeMap<String, f64>, events: &[Event], lease: Duration) -> Vec<String> {
    let faults = faults(events, lease);
    let latest = |at_ms: u64, node: Option<&str>| {
        let before = |fault: &&Fault| {
            fault.at_ms <= at_ms
                && at_ms - fault.at_ms < FAULT_LASTS_MS
                && node.is_none_or(|node| node == fault.node)
        };
        faults.iter().rfind(before)
    };
    let mut reattach: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut recovery: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for event in events {
        if event.is_owner() && event.action == "session_owner_changed" {
            if let Some(fault) = latest(event.at_ms, Some(&event.from_node)) {
                let took = Duration::from_millis(event.at_ms - fault.at_ms);
                reattach.entry(fault.cause).or_default().push(took);
            }
        } else if event.action == "session_recovered"
            && let (Some(fault), Some(micros)) = (latest(event.at_ms, None), event.recovery_micros)
        {
            recovery.entry(fault.cause).or_default().push(Duration::from_micros(micros));
        }
    }
    let mut notes = Vec::new();
    for (cause, times) in reattach {
        let seen = Summary::of(times);
        add(metrics, "reattach", cause, &seen);
        match recovery.remove(cause) {
            Some(times) => add(metrics, "recovery", cause, &Summary::of(times)),
            None => {
                add(metrics, "recovery", cause, &seen);
                notes.push(format!(
                    "recovery.{cause} is the time to the new owner: no device's audit events say more"
                ));
            }
        }
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
        read(lines.iter().map(String::as_str), Duration::from_secs(3)).0
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
        let ended =
            serde_json::json!({ "session": "s", "device": "e", "reason": "RECOVERY_WINDOW_EXCEEDED" });
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
}
