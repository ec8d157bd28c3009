//! What operators see of a session's owner, read from `jumpctl --output json`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::process::{Mark, Process};

/// Who owns a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// The session.
    pub session: String,
    /// Its phase, as in the API without the prefix: `OWNED`, `HANDOVER`, `RELEASED` or `TERMINATED`.
    pub phase: String,
    /// Its epoch.
    pub epoch: u64,
    /// The owning node.
    pub owner: Option<String>,
    /// The owning run.
    pub incarnation: Option<u64>,
    /// The node that takes over, in a handover.
    pub handover_to: Option<String>,
    /// Reason code of the last transition.
    pub reason: String,
    /// Inner addresses.
    pub inner: Vec<IpAddr>,
}

impl Ownership {
    /// Its inner addresses, for people.
    pub fn inner_text(&self) -> String {
        self.inner.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Reads one object.
    ///
    /// # Errors
    /// When a field is missing.
    pub fn from_json(value: &Value) -> Result<Self> {
        let value = value.get("ownership").unwrap_or(value);
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
        let owner = value.get("owner").filter(|owner| !owner.is_null());
        let node = |owner: &Value| owner.get("node_id").and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            session: text("session_id").context("no session_id")?,
            phase: text("phase").context("no phase")?.trim_start_matches("SESSION_PHASE_").to_owned(),
            epoch: value.get("epoch").and_then(number).context("no epoch")?,
            owner: owner.and_then(node),
            handover_to: value.get("handover_to").and_then(node),
            incarnation: owner.and_then(|o| o.get("incarnation")).and_then(number),
            reason: text("last_reason").unwrap_or_default(),
            inner: value
                .get("inner_addresses")
                .and_then(Value::as_array)
                .map(|list| list.iter().filter_map(|a| a.as_str()?.parse().ok()).collect())
                .unwrap_or_default(),
        })
    }
}

/// A running `jumpctl ownership watch`.
#[derive(Debug)]
pub struct OwnershipWatch {
    process: Process,
    next: Mark,
}

impl OwnershipWatch {
    /// Follows the output of an already started watch.
    pub fn new(process: Process) -> Self {
        Self { process, next: Mark::default() }
    }

    /// Waits for the next change that `wanted` accepts; changes before it are passed to `seen` as well.
    ///
    /// # Errors
    /// When it does not come within `timeout`, or the watch ends.
    pub fn wait_for(
        &mut self,
        what: &str,
        timeout: Duration,
        mut seen: impl FnMut(&Ownership),
        wanted: impl Fn(&Ownership) -> bool,
    ) -> Result<Ownership> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (line, next) = self.process.wait_for(what, self.next, left, |line| line.starts_with('{'))?;
            self.next = next;
            let ownership = Ownership::from_json(&serde_json::from_str(&line)?)?;
            seen(&ownership);
            if wanted(&ownership) {
                return Ok(ownership);
            }
        }
    }
}
