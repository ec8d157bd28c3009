//! Whether the audit events of a run tell what its devices saw.

use std::collections::{BTreeMap, HashSet};

use super::live::trail::{Event, missing};
use crate::lab::fleet::Record;

/// Adds `audit.told`, the share of attaches whose new owner an event of control tells of, and `audit.missing`, the numbers
/// that no file has between the first and the last of each run of a program. `lines` are of every program's file.
pub(super) fn add<'a>(
    metrics: &mut BTreeMap<String, f64>,
    records: &[Record],
    lines: impl Iterator<Item = &'a str>,
) {
    let events: Vec<Event> =
        lines.filter_map(|line| Event::read(line, false)).map(|(_, event)| event).collect();
    let owners: HashSet<(String, u64)> = events
        .iter()
        .filter(|event| event.is_owner())
        .map(|event| (event.session.clone(), event.epoch))
        .collect();
    let attaches: Vec<(String, u64)> = records
        .iter()
        .filter_map(|record| Some((record.session?.to_string(), &record.attaches)))
        .flat_map(|(session, attaches)| attaches.iter().map(move |attach| (session.clone(), attach.epoch)))
        .collect();
    if !attaches.is_empty() {
        let told = attaches.iter().filter(|attach| owners.contains(attach)).count();
        metrics.insert("audit.told".into(), told as f64 / attaches.len() as f64);
    }
    metrics.insert("audit.missing".into(), missing(&events) as f64);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jump_session::ids::SessionId;
    use jump_session::reason::Reason;

    use super::*;
    use crate::lab::fleet::Attach;

    #[test]
    fn an_attach_that_no_event_tells_of_and_a_number_that_no_file_has_show() {
        let session = SessionId::from_bytes([7; 16]);
        let attach = |epoch| Attach {
            at: Duration::ZERO,
            began: Duration::ZERO,
            epoch,
            node: "gw1".into(),
            incarnation: 1,
            gateway: ([127, 0, 0, 1], 1).into(),
            path: 0,
            reason: Reason::Birth,
            born: epoch == 1,
            timings: jump_session::client::Timings::default(),
        };
        let record =
            Record { session: Some(session), attaches: (1..=4).map(attach).collect(), ..Record::default() };
        let event = |component: &str, action: &str, epoch: u64, sequence: u64| {
            serde_json::json!({
                "time": 1,
                "metadata": {"uid": sequence.to_string(), "sequence": sequence},
                "unmapped": {
                    "run": component, "component": component, "action": action,
                    "session": session.to_string(), "epoch": epoch,
                },
            })
            .to_string()
        };
        let lines = [
            event("control", "session_born", 1, 1),
            event("control", "session_owner_changed", 2, 2),
            event("control", "attach_accepted", 3, 4),
            event("gateway", "session_owner_changed", 4, 9),
        ];
        let mut metrics = BTreeMap::new();
        add(&mut metrics, &[record], lines.iter().map(String::as_str));
        assert_eq!((metrics["audit.told"], metrics["audit.missing"]), (0.5, 1.0));
    }
}
