//! What idle sessions give back: expanded keys and the replay window's ring, about two and a half KiB of each.

use jump_session::gateway::Nanos;

use super::DataPlane;
use super::session::Entry;

/// A session for which nothing was forwarded for this long, in nanoseconds, is idle. Everything in flight has arrived by
/// then, which is what lets the replay window forget.
const IDLE_AFTER: Nanos = 10_000_000_000;
/// One look over all sessions is made in this many steps.
const STEPS: u64 = 128;

/// How far the current look has come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    next_slot: usize,
    due: Nanos,
}

impl DataPlane {
    /// Looks at the next few sessions. The table is gone through once in [`IDLE_AFTER`], a part at a time.
    pub(super) fn sweep_idle(&mut self, now: Nanos) {
        if now < self.sweep.due {
            return;
        }
        self.sweep.due = now.saturating_add(IDLE_AFTER / STEPS);
        let slots = self.entries.slots();
        let end = (self.sweep.next_slot + slots.div_ceil(STEPS as usize)).min(slots);
        for slot in self.sweep.next_slot..end {
            let Some(Entry::Session(session)) = self.entries.at_slot(slot) else { continue };
            if let Some(anchors) = &mut session.anchors {
                anchors.expire(now);
                if anchors.is_empty() {
                    session.anchors = None;
                }
            }
            let forwarded = session.traffic.packets_up + session.traffic.packets_down;
            if forwarded == session.swept {
                session.sealing.shrink();
                session.opening.shrink();
            }
            session.swept = forwarded;
        }
        self.sweep.next_slot = if end == slots { 0 } else { end };
    }
}
