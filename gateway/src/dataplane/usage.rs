//! What each session carried, told a page at a time: a page is bounded work between two batches.

use std::net::IpAddr;

use jump_crypto::ids::{Epoch, SessionId};

use super::DataPlane;
use super::session::{Entry, Traffic};

/// Slots that one page looks at.
const SLOTS_PER_PAGE: usize = 4096;

/// What one session carried at this gateway since it was accepted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The session.
    pub session: SessionId,
    /// The epoch in which it is carried.
    pub epoch: Epoch,
    /// Its inner addresses.
    pub inner: Vec<IpAddr>,
    /// What was forwarded.
    pub traffic: Traffic,
}

/// Some of the sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsagePage {
    /// They.
    pub sessions: Vec<Usage>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<usize>,
}

impl DataPlane {
    /// The sessions from slot `from` on, as many as one page holds.
    pub(super) fn usage(&mut self, from: usize) -> UsagePage {
        let slots = self.entries.slots();
        let end = from.saturating_add(SLOTS_PER_PAGE).min(slots);
        let mut sessions = Vec::new();
        for slot in from..end {
            if let Some(Entry::Session(session)) = self.entries.at_slot(slot) {
                sessions.push(Usage {
                    session: session.id,
                    epoch: session.machine.epoch(),
                    inner: session.inner.iter().collect(),
                    traffic: session.traffic,
                });
            }
        }
        UsagePage { sessions, next: (end < slots).then_some(end) }
    }
}
