//! The life of one session, read back from exported audit events: who owned it when, why it moved, how long the user
//! was without service, and what is missing from the record.
//!
//! The input is what any sink exported: OCSF objects, one JSON text each, of any number of programs, in any order, some
//! of them twice (retries).

mod svg;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use jump_session::ids::SessionId;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since the Unix epoch.
pub type UnixMillis = u64;

/// One event of the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When, by the clock of who says so.
    pub time: UnixMillis,
    /// The program.
    pub component: String,
    /// Its node or replica name; may be empty.
    pub instance: String,
    /// The action's name (`docs/audit-events.md`).
    pub action: String,
    /// Whether it was a failure.
    pub failed: bool,
    /// The epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The binding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding: Option<u64>,
    /// The reason code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The node concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The node that the session comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_node: Option<String>,
    /// The path or state before and after, as `before → after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// Time without service that ended with this event, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_service_micros: Option<u64>,
    #[serde(skip)]
    order: (String, u64),
}

/// One owner's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ownership {
    /// The epoch.
    pub epoch: u64,
    /// The owner.
    pub node: String,
    /// Why it became the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    pub from: UnixMillis,
    /// Until when; `None` if it still is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<UnixMillis>,
}

/// Events that were emitted and are not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The program and its node.
    pub source: String,
    /// The run of the program.
    pub run: String,
    /// The first missing number of the session's events in that run.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// The life of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The session.
    pub session: String,
    /// Its correlation id, if an event has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// Its events in the order of their times.
    pub entries: Vec<Entry>,
    /// Its owners in the order of their epochs.
    pub owners: Vec<Ownership>,
    /// What is missing. What a program emitted last before the record ends cannot be missed.
    pub missing: Vec<Missing>,
    /// Lines that are not events.
    pub unreadable: u64,
}

impl Timeline {
    /// Builds the timeline of a session. Lines about other sessions are skipped.
    pub fn build<'a>(session: SessionId, lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut timeline = Self {
            session: session.to_string(),
            correlation: None,
            entries: Vec::new(),
            owners: Vec::new(),
            missing: Vec::new(),
            unreadable: 0,
        };
        let mut seen = HashSet::new();
        let mut numbers: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
        for line in lines {
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                timeline.unreadable += 1;
                continue;
            };
            let ours = &event["unmapped"];
            if ours["session"] != timeline.session.as_str() {
                continue;
            }
            let Some(uid) = event["metadata"]["uid"].as_str() else {
                timeline.unreadable += 1;
                continue;
            };
            if !seen.insert(uid.to_owned()) {
                continue;
            }
            let entry = Entry::read(&event);
            let run = text(&ours["run"]).unwrap_or_default();
            numbers.entry((run, entry.source())).or_default().extend(ours["session_sequence"].as_u64());
            timeline.correlation =
                timeline.correlation.or_else(|| text(&event["metadata"]["correlation_uid"]));
            timeline.entries.push(entry);
        }
        timeline.entries.sort_by(|a, b| (a.time, &a.order).cmp(&(b.time, &b.order)));
        timeline.owners = owners(&timeline.entries);
        timeline.missing = numbers
            .into_iter()
            .flat_map(|((run, source), numbers)| missing(&run, &source, numbers))
            .collect();
        timeline
    }

    /// Builds it from the store's history instead: the owners, newest or oldest first, and nothing else.
    pub fn from_owners(session: SessionId, correlation: Option<String>, mut owners: Vec<Ownership>) -> Self {
        owners.sort_by_key(|owner| owner.epoch);
        for i in 1..owners.len() {
            owners[i - 1].to = Some(owners[i].from);
        }
        let entry = |at: usize, owner: &Ownership| Entry {
            time: owner.from,
            component: "store".to_owned(),
            instance: String::new(),
            action: if owner.epoch == 1 { "session_born" } else { "session_owner_changed" }.to_owned(),
            failed: false,
            epoch: Some(owner.epoch),
            binding: None,
            reason: owner.reason.clone(),
            node: Some(owner.node.clone()),
            from_node: at.checked_sub(1).and_then(|before| Some(owners.get(before)?.node.clone())),
            change: None,
            without_service_micros: None,
            order: (String::new(), owner.epoch),
        };
        let entries = owners.iter().enumerate().map(|(at, owner)| entry(at, owner)).collect();
        let session = session.to_string();
        Self { session, correlation, entries, owners, missing: Vec::new(), unreadable: 0 }
    }

    /// Returns the whole time without service, in microseconds, as the recoveries report it.
    pub fn without_service_micros(&self) -> u64 {
        self.entries.iter().filter_map(|entry| entry.without_service_micros).sum()
    }

    /// Writes it for people, one line per event.
    pub fn to_text(&self) -> String {
        let mut text = format!("session {}", self.session);
        if let Some(correlation) = &self.correlation {
            let _ = write!(text, "  correlation {correlation}");
        }
        text.push('\n');
        let start = self.entries.first().map_or(0, |entry| entry.time);
        for entry in &self.entries {
            let after = (entry.time - start) as f64 / 1000.0;
            let epoch = entry
                .epoch
                .map_or_else(String::new, |epoch| format!("{epoch}.{}", entry.binding.unwrap_or_default()));
            let _ = write!(
                text,
                "{} {after:>+11.3}s  {epoch:>6}  {:<16} {:<26} {}",
                timestamp(entry.time),
                entry.source(),
                entry.action,
                entry.reason.as_deref().unwrap_or("-"),
            );
            match (&entry.from_node, &entry.node) {
                (Some(from), Some(node)) => {
                    let _ = write!(text, "  {from} → {node}");
                }
                (None, Some(node)) | (Some(node), None) => {
                    let _ = write!(text, "  {node}");
                }
                (None, None) => {}
            }
            if let Some(change) = &entry.change {
                let _ = write!(text, "  {change}");
            }
            if let Some(micros) = entry.without_service_micros {
                let _ = write!(text, "  without service {:.1} ms", micros as f64 / 1000.0);
            }
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "{} events, {} owners, without service {:.1} ms in all",
            self.entries.len(),
            self.owners.len(),
            self.without_service_micros() as f64 / 1000.0,
        );
        for missing in &self.missing {
            let _ =
                writeln!(text, "missing: events {} to {} of {}", missing.first, missing.last, missing.source);
        }
        text
    }

    /// Draws it as an SVG picture: a lane per node with its times as owner, and a mark per event.
    pub fn to_svg(&self) -> String {
        svg::draw(self)
    }
}

impl Entry {
    fn read(event: &Value) -> Self {
        let ours = &event["unmapped"];
        let path = |name: &str| {
            let path = &ours[name];
            let transport = path["transport"].as_str()?;
            Some(match path["client"].as_str() {
                Some(client) => format!("{transport} {client}"),
                None => transport.to_owned(),
            })
        };
        let change = |old: Option<String>, new: Option<String>| {
            (old.is_some() || new.is_some()).then(|| {
                format!("{} → {}", old.as_deref().unwrap_or("none"), new.as_deref().unwrap_or("none"))
            })
        };
        Self {
            time: event["time"].as_u64().unwrap_or_default(),
            component: text(&ours["component"]).unwrap_or_default(),
            instance: text(&ours["instance"]).unwrap_or_default(),
            action: text(&ours["action"]).unwrap_or_default(),
            failed: event["status_id"] == 2,
            epoch: ours["epoch"].as_u64(),
            binding: ours["binding"].as_u64(),
            reason: text(&ours["reason"]),
            node: text(&ours["node"]),
            from_node: text(&ours["from_node"]),
            change: change(path("old_path"), path("new_path"))
                .or_else(|| change(text(&ours["old_state"]), text(&ours["new_state"]))),
            without_service_micros: ours["recovery_micros"]["total"].as_u64(),
            order: (
                text(&ours["run"]).unwrap_or_default(),
                event["metadata"]["sequence"].as_u64().unwrap_or_default(),
            ),
        }
    }

    fn source(&self) -> String {
        match self.instance.as_str() {
            "" => self.component.clone(),
            instance => format!("{}/{instance}", self.component),
        }
    }
}

/// Follows births, changes of owner, releases and the end. The store's epochs decide the order, not the clocks.
fn owners(entries: &[Entry]) -> Vec<Ownership> {
    let mut owners: Vec<Ownership> = Vec::new();
    for entry in entries {
        match (entry.action.as_str(), entry.epoch, &entry.node) {
            ("session_born" | "session_owner_changed", Some(epoch), Some(node))
                if !owners.iter().any(|owner| owner.epoch == epoch) =>
            {
                let reason = entry.reason.clone();
                owners.push(Ownership { epoch, node: node.clone(), reason, from: entry.time, to: None });
            }
            ("session_released" | "session_terminated", _, _) => {
                if let Some(owner) = owners.iter_mut().max_by_key(|owner| owner.epoch)
                    && owner.to.is_none()
                {
                    owner.to = Some(entry.time);
                }
            }
            _ => {}
        }
    }
    owners.sort_by_key(|owner| owner.epoch);
    for i in 1..owners.len() {
        let next = owners[i].from;
        owners[i - 1].to.get_or_insert(next);
    }
    owners
}

fn missing(run: &str, source: &str, mut numbers: Vec<u64>) -> Vec<Missing> {
    numbers.sort_unstable();
    let mut expected = 1;
    let mut gaps = Vec::new();
    for number in numbers {
        if number > expected {
            gaps.push(Missing { source: source.into(), run: run.into(), first: expected, last: number - 1 });
        }
        expected = number.saturating_add(1);
    }
    gaps
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn timestamp(millis: UnixMillis) -> String {
    let nanos = i128::from(millis) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{millis} ms"))
}

#[cfg(test)]
mod tests;
