//! What a gateway tells auditors: one function per kind of event, called beside the packet path, never on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jump_crypto::ids::{Incarnation, NodeId};
use jump_session::reason::Reason;
use jump_telemetry::audit::{
    Actor, Event, Identity, LOCAL, NodeAction, Path, SecurityAction, SessionAction, TrafficAction, emit,
};
use jump_transport::clock::boottime_nanos;

use crate::dataplane::engine::Shared;
use crate::dataplane::{Count, DropReason, Note, Suspect, What};
use crate::lease::Guard;

/// Who emits: this node.
pub fn instance(node: &NodeId) -> Identity {
    Identity {
        component: "gateway".to_owned(),
        node: node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The supervisor replaced a dead worker by this one.
pub(crate) fn worker_restarted(node: &NodeId, reaped: Incarnation) {
    let event = Event::node(NodeAction::WorkerRestarted, node).reason(Reason::NodeLost);
    emit(event.detail(format!("instead of run {}", reaped.0)));
}

/// The node was told to end and hands its sessions over.
pub(crate) fn draining(node: &NodeId, sessions: usize) {
    let event = Event::node(NodeAction::Draining, node).reason(Reason::GatewayDraining);
    emit(event.actor(Actor::Node(node.clone())).detail(format!("sessions: {sessions}")));
}

/// The data plane says that something happened to a session.
pub(crate) fn noted(node: &NodeId, note: &Note) {
    let told =
        |path: jump_session::path::Path| Path { transport: path.transport.name(), client: Some(path.peer) };
    let of = |action| Event::session(action, note.session);
    let event = match &note.what {
        What::Activated => of(SessionAction::Activated),
        What::Rekeyed => of(SessionAction::Rekeyed).reason(Reason::Rekey),
        What::Changed(from, to, reason) => {
            let fenced = *reason == Reason::Fenced;
            of(if fenced { SessionAction::Fenced } else { SessionAction::StateChanged })
                .reason(*reason)
                .states(from.name(), to.name())
        }
        What::Moved(from, to, binding, reason) => of(SessionAction::PathSwitched)
            .reason(*reason)
            .binding(*binding)
            .paths(Some(told(*from)), Some(told(*to))),
        What::MoveRefused(to, reason) => {
            of(SessionAction::PathRejected).reason(*reason).paths(None, Some(told(*to)))
        }
    };
    emit(event.correlation(note.correlation).epoch(note.epoch).on_node(node));
}

/// Kinds of refused datagrams that security wants to know, each with the drops that make it up.
const KINDS: [(Kind, &[DropReason]); 5] = [
    (Kind::Security(SecurityAction::Replay), &[DropReason::Replay, DropReason::ReplayedInit]),
    (Kind::Security(SecurityAction::Forgery), &[DropReason::Authentication, DropReason::RefusedInit]),
    (
        Kind::Security(SecurityAction::Flood),
        &[DropReason::NoCookie, DropReason::SourceRate, DropReason::HandshakeQueue],
    ),
    (Kind::Security(SecurityAction::Spoof), &[DropReason::InnerSource]),
    (Kind::Traffic, &[DropReason::InnerDestination]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Security(SecurityAction),
    Traffic,
}

/// The shortest time between two events of one kind; each counts what came meanwhile.
const EVENT_INTERVAL: Duration = Duration::from_secs(10);

/// Turns the data plane's counters into events at a bounded rate.
pub(crate) struct Security {
    node: NodeId,
    shared: Arc<Shared>,
    guard: Guard,
    kinds: [Watched; KINDS.len()],
    trips: u64,
    tripped: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    told: u64,
    quiet_until: Option<Instant>,
    suspect: Option<Suspect>,
}

impl Security {
    /// Time between two looks.
    pub(crate) const LOOK: Duration = Duration::from_secs(1);

    pub(crate) fn new(node: NodeId, shared: Arc<Shared>, guard: Guard) -> Self {
        Self { node, shared, guard, kinds: [Watched::default(); KINDS.len()], trips: 0, tripped: false }
    }

    /// Remembers one offender of a kind until the kind's next event.
    pub(crate) fn suspect(&mut self, suspect: Suspect) {
        for ((_, reasons), watched) in KINDS.iter().zip(&mut self.kinds) {
            if reasons.contains(&suspect.reason) {
                watched.suspect.get_or_insert(suspect);
            }
        }
    }

    /// Tells what the counters say is new.
    pub(crate) fn look(&mut self, now: Instant) {
        for ((kind, reasons), watched) in KINDS.iter().zip(&mut self.kinds) {
            let total: u64 = reasons.iter().map(|reason| self.shared.counters.dropped(*reason)).sum();
            let count = total.saturating_sub(watched.told);
            if count == 0 || watched.quiet_until.is_some_and(|until| now < until) {
                continue;
            }
            watched.told = total;
            watched.quiet_until = Some(now + EVENT_INTERVAL);
            emit(refused(*kind, count, watched.suspect.take()).on_node(&self.node));
        }
        let trips = self.shared.counters.count(Count::GuardTrips);
        if trips > self.trips {
            let event = Event::node(NodeAction::GuardTripped, &self.node).reason(Reason::GuardTripped);
            emit(event.count(trips - self.trips));
            self.trips = trips;
            self.tripped = true;
        }
        if self.tripped && self.guard.holds(boottime_nanos()) {
            self.tripped = false;
            emit(Event::node(NodeAction::GuardRecovered, &self.node).reason(Reason::GuardRecovered));
        }
    }
}

fn refused(kind: Kind, count: u64, suspect: Option<Suspect>) -> Event {
    let source = suspect.map(|suspect| suspect.source);
    let event = match kind {
        Kind::Security(action) => Event::security(action),
        Kind::Traffic => {
            let destination = suspect.and_then(|suspect| suspect.destination);
            let unknown = LOCAL.ip();
            Event::traffic(TrafficAction::Refused, source.unwrap_or(LOCAL), destination.unwrap_or(unknown))
        }
    };
    let event = match source {
        Some(source) => event.source(source),
        None => event,
    };
    let event = match suspect.and_then(|suspect| suspect.session) {
        Some((session, correlation, epoch, device)) => {
            event.with_session(session).correlation(correlation).epoch(epoch).device(device, "")
        }
        None => event,
    };
    event.count(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_made_of_drops_of_its_own() {
        let mut all: Vec<DropReason> =
            KINDS.iter().flat_map(|(_, reasons)| reasons.iter().copied()).collect();
        let before = all.len();
        all.sort_by_key(|reason| *reason as usize);
        all.dedup();
        assert_eq!(all.len(), before, "one drop would be told twice");
    }
}
