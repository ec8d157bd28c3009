//! The anchors of one session: which of its flows leave by another gateway, because that one translates them.
//!
//! ```text
//!            awaited list whole, its gateway gone, or too late
//!   awaiting ────────────────────────────────────────────────▶ settled
//!   (packets wait)                                             (each leaves here or at its anchor)
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use jump_session::gateway::Nanos;

use super::flow::{Flow, Signal, TCP};
use super::handed::{FLOWS_MAX, Part};
use super::inner::InnerHeader;
use super::links::{Link, Links};
use super::route::NodeRef;

/// A silent TCP flow is over after two hours and four minutes (RFC 5382), in nanoseconds.
const TCP_IDLE: Nanos = 7_440_000_000_000;
/// A TCP flow whose device has sent FIN or RST is over after so much silence, in nanoseconds: the other direction may go on.
const TCP_ENDING: Nanos = 120_000_000_000;
/// Any other silent flow is over after this, in nanoseconds (RFC 4787).
const OTHER_IDLE: Nanos = 300_000_000_000;

/// Where a packet of the session leaves.
pub(super) enum Exit<'a> {
    /// Here.
    Here,
    /// At the other end of this link.
    At(&'a mut Link),
    /// It is not known yet.
    Unknown,
}

/// One flow's anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    node: NodeRef,
    /// When the device last sent.
    used: Nanos,
    /// It has sent FIN or RST.
    ending: bool,
}

/// The list that a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Awaited {
    from: NodeRef,
    until: Nanos,
    /// The parts that have come, a bit each.
    parts: u64,
}

/// The anchors of one session.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    awaited: Option<Awaited>,
    flows: HashMap<Flow, Anchor>,
}

impl Anchors {
    /// None yet; the gateway `from` tells them, until `until` at the latest.
    pub(super) fn awaited(from: NodeRef, until: Nanos) -> Self {
        Self { awaited: Some(Awaited { from, until, parts: 0 }), flows: HashMap::new() }
    }

    /// These, with nothing to wait for.
    pub(super) fn held(flows: impl IntoIterator<Item = (Flow, NodeRef)>, now: Nanos) -> Self {
        let anchor = |(flow, node)| (flow, Anchor { node, used: now, ending: false });
        Self { awaited: None, flows: flows.into_iter().take(FLOWS_MAX).map(anchor).collect() }
    }

    /// True while the list of `from` is awaited.
    pub(super) fn awaits(&self, from: NodeRef) -> bool {
        self.awaited.is_some_and(|awaited| awaited.from == from)
    }

    /// True when the list is awaited no longer at `now`, though it has not come.
    pub(super) fn is_late(&self, now: Nanos) -> bool {
        self.awaited.is_some_and(|awaited| awaited.until <= now)
    }

    /// Waits no longer.
    pub(super) fn settle(&mut self) {
        self.awaited = None;
    }

    /// True when it is as good as none.
    pub(super) fn is_empty(&self) -> bool {
        self.awaited.is_none() && self.flows.is_empty()
    }

    /// Where a packet with this header leaves. Allocates nothing.
    pub(super) fn exit<'a>(
        &mut self,
        packet: &[u8],
        header: &InnerHeader,
        now: Nanos,
        links: &'a mut Links,
    ) -> Exit<'a> {
        if self.awaited.is_some() {
            return Exit::Unknown;
        }
        let read = Flow::of(packet, header)
            .or_else(|| Flow::quoted(packet, header).map(|flow| (flow, Signal::Continues)));
        let Some((flow, signal)) = read else { return Exit::Here };
        let Some(anchor) = self.flows.get_mut(&flow) else { return Exit::Here };
        // A new connection with the ports of one that has ended is no part of it.
        let is_over = anchor.is_over(flow.protocol, now) || (anchor.ending && signal == Signal::Opens);
        if !is_over && let Some(link) = links.get_mut(anchor.node) {
            anchor.used = now;
            anchor.ending |= signal == Signal::Ends;
            return Exit::At(link);
        }
        self.flows.remove(&flow);
        Exit::Here
    }

    /// Takes what `from` told: `anchor` is the gateway that translates the flows of this part, `None` when it is this one or
    /// gone. What the gateway tells whose list is or was awaited wins over what others tell. Returns how many flows are new.
    pub(super) fn take(
        &mut self,
        from: NodeRef,
        part: &Part<'_>,
        anchor: Option<NodeRef>,
        wins: bool,
        now: Nanos,
    ) -> u64 {
        let mut new = 0;
        for flow in part.flows() {
            let Some(node) = anchor else {
                if wins {
                    self.flows.remove(&flow);
                }
                continue;
            };
            let room = self.flows.len() < FLOWS_MAX;
            match self.flows.entry(flow) {
                Entry::Occupied(mut known) => {
                    if wins {
                        known.get_mut().node = node;
                    }
                }
                Entry::Vacant(vacant) => {
                    if room {
                        vacant.insert(Anchor { node, used: now, ending: false });
                        new += 1;
                    }
                }
            }
        }
        if let Some(awaited) = self.awaited.as_mut().filter(|awaited| awaited.from == from) {
            awaited.parts |= 1u64.checked_shl(u32::from(part.number)).unwrap_or(0);
            if awaited.parts.count_ones() >= u32::from(part.parts) {
                self.awaited = None;
            }
        }
        new
    }

    /// Forgets the flows that are over.
    pub(super) fn expire(&mut self, now: Nanos) {
        self.flows.retain(|flow, anchor| !anchor.is_over(flow.protocol, now));
    }

    /// The flows and where they leave.
    pub(super) fn flows(&self) -> impl Iterator<Item = (Flow, NodeRef)> {
        self.flows.iter().map(|(flow, anchor)| (*flow, anchor.node))
    }
}

impl Anchor {
    fn is_over(&self, protocol: u8, now: Nanos) -> bool {
        let idle = match (protocol, self.ending) {
            (TCP, false) => TCP_IDLE,
            (TCP, true) => TCP_ENDING,
            (_, _) => OTHER_IDLE,
        };
        now >= self.used.saturating_add(idle)
    }
}
