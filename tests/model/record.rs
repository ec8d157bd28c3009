//! The record and the views of the model, and the bridge to the production functions.
//!
//! The model keeps small integers so that millions of states fit; every decision is made by `jump_session::ownership`
//! on the production types. Times are all zero and the policy never binds: pace and lifetime only ever refuse, and have
//! tests of their own.

use std::time::Duration;

use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, NodeId, SessionId};
use jump_session::ownership::{
    self, AttachRequest, Change, Claim, Condition, Decision, DeviceStanding, MoveOrder, Owner, Refusal,
    SessionRecord, Transition, View,
};
use jump_session::policy::{DevicePolicy, SessionPolicy};
use jump_session::reason::Reason;

/// A gateway in one run; run 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) node: u8,
    pub(crate) incarnation: u8,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", (b'A' + self.node) as char, self.incarnation)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Released,
    Owned(Run),
    Handover { from: Run, to: Run, seq: u8 },
    Terminated,
}

/// Where an operator wants a session: `None` for any other gateway.
pub(crate) type Order = Option<u8>;

/// The session's record in the store. An attempt's id is its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    /// Counts writes: the store's mod revision.
    pub(crate) revision: u8,
    pub(crate) epoch: u8,
    pub(crate) seq: u8,
    pub(crate) attempt: u8,
    pub(crate) phase: Phase,
    /// An operator's order to move it.
    pub(crate) moving: Option<Order>,
}

/// What a transaction compares besides the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Compare {
    Registered(Run),
    Gone(Run),
}

/// A transaction that a replica has decided on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Write {
    /// The revision that was read; 0 for no record.
    pub(crate) read_revision: u8,
    pub(crate) next: Record,
    pub(crate) compares: Vec<Compare>,
}

/// A decision over an attach, in the model's terms.
pub(crate) enum Decided {
    Commit(Write),
    Intend(Write),
    Wait,
    Accepted,
    Refused { is_final: bool },
}

/// What a replica believes of the nodes.
#[derive(Clone, Copy)]
pub(crate) struct Nodes<'a> {
    /// Which runs hold a node key.
    pub(crate) registered: &'a dyn Fn(Run) -> bool,
    /// Which runs drain.
    pub(crate) draining: &'a dyn Fn(Run) -> bool,
}

const SESSION: SessionId = SessionId::from_bytes([1; 16]);
const DEVICE: DeviceKey = DeviceKey::from_bytes([7; 32]);
const INNER: [u8; 4] = [10, 64, 0, 2];

fn policy() -> SessionPolicy {
    SessionPolicy {
        switch_cooldown: Duration::ZERO,
        switches_per_minute_max: 100,
        session_lifetime: Duration::MAX,
        recovery_window: Duration::MAX,
        ..SessionPolicy::default()
    }
}

fn node(place: u8) -> NodeId {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    NAMES[usize::from(place)].parse().expect("a valid name")
}

fn place(node: &NodeId) -> u8 {
    node.as_str().as_bytes()[0] - b'a'
}

fn owner(run: Run) -> Owner {
    Owner { node: node(run.node), incarnation: Incarnation(u64::from(run.incarnation)) }
}

fn run(owner: &Owner) -> Run {
    Run { node: place(&owner.node), incarnation: owner.incarnation.0 as u8 }
}

fn attempt(id: u8) -> AttemptId {
    AttemptId::from_bytes([id; 16])
}

fn claim(run: Run, seq: u8) -> Claim {
    Claim {
        owner: owner(run),
        attach_seq: AttachSeq(u64::from(seq)),
        attempt: attempt(seq),
        since: 0,
        reason: Reason::GatewayUnresponsive,
        charged: true,
    }
}

fn request(claimant: Run, seq: u8) -> AttachRequest {
    AttachRequest {
        claimant: owner(claimant),
        device: DEVICE,
        attach_seq: AttachSeq(u64::from(seq)),
        attempt: attempt(seq),
        reason: Reason::GatewayUnresponsive,
        switch_ages: Vec::new(),
    }
}

impl Record {
    fn to_production(self) -> SessionRecord {
        let phase = match self.phase {
            Phase::Released => ownership::Phase::Released { since: 0 },
            Phase::Owned(run) => ownership::Phase::Owned { owner: owner(run) },
            Phase::Handover { from, to, seq } => {
                ownership::Phase::Handover { from: owner(from), to: claim(to, seq) }
            }
            Phase::Terminated => ownership::Phase::Terminated { at: 0 },
        };
        SessionRecord {
            id: SESSION,
            device: DEVICE,
            device_name: String::new(),
            epoch: Epoch(u64::from(self.epoch)),
            attach_seq: AttachSeq(u64::from(self.seq)),
            attempt: attempt(self.attempt),
            phase,
            inner: vec![INNER.into()],
            created: 0,
            changed: 0,
            expires: u64::MAX,
            reason: Reason::Birth,
            history: Vec::new(),
            recent_switches: Vec::new(),
            moving: self.moving.map(|to| MoveOrder { to: to.map(node), since: 0 }),
            correlation: [3; 16],
            policy: DevicePolicy::default(),
        }
    }

    fn from_production(record: &SessionRecord, revision: u8) -> Self {
        let phase = match &record.phase {
            ownership::Phase::Released { .. } => Phase::Released,
            ownership::Phase::Owned { owner } => Phase::Owned(run(owner)),
            ownership::Phase::Handover { from, to } => {
                assert_eq!(to.attempt, attempt(to.attach_seq.0 as u8), "a claim of two attempts");
                Phase::Handover { from: run(from), to: run(&to.owner), seq: to.attach_seq.0 as u8 }
            }
            ownership::Phase::Terminated { .. } => Phase::Terminated,
        };
        assert_eq!(
            (record.id, record.device, record.inner.as_slice()),
            (SESSION, DEVICE, [INNER.into()].as_slice()),
            "G4: a write changed the session's identity"
        );
        Self {
            revision,
            epoch: record.epoch.0 as u8,
            seq: record.attach_seq.0 as u8,
            attempt: record.attempt.to_bytes()[0],
            phase,
            moving: record.moving.as_ref().map(|order| order.to.as_ref().map(place)),
        }
    }

    pub(crate) fn owner(&self) -> Option<Run> {
        match self.phase {
            Phase::Owned(owner) | Phase::Handover { from: owner, .. } => Some(owner),
            Phase::Released | Phase::Terminated => None,
        }
    }
}

fn view(record: Option<&Record>, claimant: Option<Run>, nodes: Nodes<'_>) -> View {
    let target = record.and_then(|record| match record.phase {
        Phase::Handover { to, .. } => Some(to),
        Phase::Released | Phase::Owned(_) | Phase::Terminated => None,
    });
    let owner = record.and_then(Record::owner);
    View {
        claimant_registered: claimant.is_some_and(nodes.registered),
        claimant_draining: claimant.is_some_and(nodes.draining),
        owner_draining: owner.is_some_and(nodes.draining),
        owner_registered: owner.is_some_and(nodes.registered),
        target_registered: target.is_some_and(nodes.registered),
        device: DeviceStanding::Active,
    }
}

fn write(record: Option<&Record>, transition: &Transition) -> Write {
    let read_revision = record.map_or(0, |record| record.revision);
    let compares = transition
        .conditions
        .iter()
        .map(|condition| match condition {
            Condition::Registered(owner) => Compare::Registered(run(owner)),
            Condition::Gone(owner) => Compare::Gone(run(owner)),
        })
        .collect();
    Write { read_revision, next: Record::from_production(&transition.next, read_revision + 1), compares }
}

/// What the production functions say to an attach.
pub(crate) fn attach(record: Option<&Record>, claimant: Run, seq: u8, nodes: Nodes<'_>) -> Decided {
    let view = view(record, Some(claimant), nodes);
    let request = request(claimant, seq);
    let refused = |refusal: Refusal| Decided::Refused { is_final: refusal.is_final() };
    let Some(existing) = record else {
        let inner = vec![INNER.into()];
        let born = ownership::birth(SESSION, inner, String::new(), [3; 16], &view, &request, &policy(), 0);
        return born.map_or_else(refused, |transition| Decided::Commit(write(None, &transition)));
    };
    match ownership::arbitrate(&existing.to_production(), &view, &request, &policy(), 0) {
        Ok(Decision::Commit(transition)) => Decided::Commit(write(record, &transition)),
        Ok(Decision::Intend(transition)) => Decided::Intend(write(record, &transition)),
        Ok(Decision::Wait) => Decided::Wait,
        Ok(Decision::AlreadyAccepted) => Decided::Accepted,
        Err(refusal) => refused(refusal),
    }
}

/// What they say to a fence acknowledgement.
pub(crate) fn fenced(record: &Record, by: Run, epoch: u8, nodes: Nodes<'_>) -> Option<Write> {
    let epoch = Epoch(u64::from(epoch));
    changed(record, &Change::FenceAcknowledged { by: owner(by), epoch, switch_ages: Vec::new() }, nodes)
}

/// What they say to a release.
pub(crate) fn released(record: &Record, by: Run, epoch: u8, nodes: Nodes<'_>) -> Option<Write> {
    let epoch = Epoch(u64::from(epoch));
    changed(
        record,
        &Change::Release { by: owner(by), epoch, reason: Reason::Drained, switch_ages: Vec::new() },
        nodes,
    )
}

/// What they say to an operator's order to move the session.
pub(crate) fn ordered(record: &Record, to: Order, nodes: Nodes<'_>) -> Option<Write> {
    changed(record, &Change::Move { to: to.map(node) }, nodes)
}

fn changed(record: &Record, change: &Change, nodes: Nodes<'_>) -> Option<Write> {
    let view = view(Some(record), None, nodes);
    let outcome = ownership::change(&record.to_production(), &view, change, 0);
    outcome.ok().flatten().map(|transition| write(Some(record), &transition))
}

/// What they say to the passing of time.
pub(crate) fn swept(record: &Record, nodes: Nodes<'_>) -> Option<Write> {
    let view = view(Some(record), None, nodes);
    ownership::expire(&record.to_production(), &view, &policy(), 0)
        .map(|transition| write(Some(record), &transition))
}
