//! Control replicas: each call is a chain of steps between which anything can happen, the replica's death included.

use jump_crypto::grant::{Grant, GrantClaims};
use jump_session::frame::{Accepted, AttachResult};
use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, Revision, SessionId};
use jump_session::ownership::{
    self, AttachRequest, Change, Decision, Owner, Refusal, SessionRecord, Transition,
};
use jump_session::policy::SessionPolicy;
use jump_session::reason::Reason;

use crate::event::Event;
use crate::store::Snapshot;
use crate::world::{MS, Nanos, TTL, World};

/// How long a replica waits for a live owner before it says that the handover is pending.
const PATIENCE: Nanos = 1_500 * MS;
/// How often it looks in between.
const LOOK_AGAIN: Nanos = 20 * MS;
/// Lost races before a call is given up.
const CONFLICTS_MAX: u32 = 8;

/// What a gateway asks.
#[derive(Clone)]
pub(crate) enum Call {
    Register { node: usize, reaped: Option<Incarnation>, mesh_public: [u8; 32] },
    Renew { run: Owner },
    Deregister { run: Owner },
    Attach(Box<Claim>),
    Change { session: SessionId, change: Change },
}

#[derive(Clone)]
pub(crate) struct Claim {
    pub(crate) request: AttachRequest,
    pub(crate) session: Option<SessionId>,
    pub(crate) handshake_hash: [u8; 32],
}

/// What control answers.
#[derive(Clone)]
pub(crate) enum Answer {
    Registered(Box<crate::store::NodeKey>),
    NotYet,
    Renewed { fences: Vec<(SessionId, Epoch)> },
    NotRegistered,
    Attached(Box<(SessionRecord, AttachResult)>),
    Refused(Box<AttachResult>),
    Done,
}

/// One call at one replica.
pub(crate) struct Operation {
    pub(crate) id: u64,
    pub(crate) replica: usize,
    /// The replica's life in which it began.
    pub(crate) life: u64,
    pub(crate) call: Call,
    since: Nanos,
    conflicts: u32,
    decided: Option<(Option<Revision>, Transition)>,
}

impl Operation {
    pub(crate) fn new(id: u64, replica: usize, life: u64, call: Call, since: Nanos) -> Self {
        Self { id, replica, life, call, since, conflicts: 0, decided: None }
    }
}

pub(crate) fn refused(refusal: &Refusal) -> AttachResult {
    AttachResult::Rejected {
        reason: refusal.reason,
        current_epoch: refusal.current_epoch,
        current_attach_seq: refusal.current_attach_seq,
        retry_after: refusal.retry_after,
    }
}

pub(crate) fn unavailable() -> AttachResult {
    AttachResult::Rejected {
        reason: Reason::ControlUnavailable,
        current_epoch: Epoch(0),
        current_attach_seq: AttachSeq(0),
        retry_after: std::time::Duration::from_millis(200),
    }
}

/// The session that an attempt gives birth to: the same for every retry.
fn session_of(device: &DeviceKey, attempt: AttemptId) -> SessionId {
    let mut bytes = attempt.to_bytes();
    bytes.iter_mut().zip(device.as_bytes()).for_each(|(byte, key)| *byte ^= key);
    SessionId::from_bytes(bytes)
}

impl World {
    /// The next step of a call at a replica that is still alive.
    pub(crate) fn step_operation(&mut self, mut operation: Operation) {
        let now = self.now;
        match operation.call.clone() {
            Call::Register { node, reaped, mesh_public } => {
                let name = self.gateways[node].node.clone();
                let answer = match self.store.register(&name, reaped, mesh_public, now) {
                    Some(key) => Answer::Registered(Box::new(key)),
                    None => Answer::NotYet,
                };
                self.answer(&operation, answer);
            }
            Call::Renew { run } => {
                let answer = match self.store.renew(&run, now) {
                    Some(()) => Answer::Renewed { fences: self.store.fences(&run) },
                    None => Answer::NotRegistered,
                };
                self.answer(&operation, answer);
            }
            Call::Deregister { run } => {
                self.store.deregister(&run);
                self.answer(&operation, Answer::Done);
            }
            Call::Attach(claim) => match operation.decided.take() {
                None => self.decide(operation, &claim),
                Some(decided) => self.run_transaction(operation, &claim, decided),
            },
            Call::Change { session, change } => self.change(operation, session, &change),
        }
    }

    fn decide(&mut self, mut operation: Operation, claim: &Claim) {
        let request = &claim.request;
        let session = claim.session.unwrap_or_else(|| session_of(&request.device, request.attempt));
        let Snapshot { record, view } = self.store.read(session, Some(&request.claimant));
        let policy = policy();
        let millis = self.wall_millis(operation.replica);
        let decision = match &record {
            Some((record, _)) => ownership::arbitrate(record, &view, request, &policy, millis),
            None if claim.session.is_some() => {
                let refusal = Refusal {
                    reason: Reason::UnknownSession,
                    current_epoch: Epoch(0),
                    current_attach_seq: AttachSeq(0),
                    retry_after: std::time::Duration::ZERO,
                };
                Err(refusal)
            }
            None => {
                let inner = vec![crate::world::INNER.into()];
                let name = "laptop".to_owned();
                ownership::birth(session, inner, name, [9; 16], &view, request, &policy, millis)
                    .map(Decision::Commit)
            }
        };
        let revision = record.as_ref().map(|(_, revision)| *revision);
        match (decision, record) {
            (Ok(Decision::Commit(transition) | Decision::Intend(transition)), _) => {
                operation.decided = Some((revision, transition));
                let delay = self.store_delay();
                self.push(delay, Event::Step(Box::new(operation)));
            }
            (Ok(Decision::AlreadyAccepted), Some((record, _))) => self.accept(&operation, claim, &record),
            (Ok(Decision::Wait), Some((record, _))) => {
                if self.now >= operation.since + PATIENCE {
                    let refusal = Refusal::handover_pending(&record);
                    self.answer(&operation, Answer::Refused(Box::new(refused(&refusal))));
                } else {
                    self.push(LOOK_AGAIN, Event::Step(Box::new(operation)));
                }
            }
            (Ok(Decision::AlreadyAccepted | Decision::Wait), None) => unreachable!("nothing was read"),
            (Err(refusal), record) => {
                let due = record.and_then(|(record, revision)| {
                    ownership::expire(&record, &view, &policy, millis).map(|due| (record.id, revision, due))
                });
                if let Some((session, revision, due)) = due {
                    self.store.commit(session, Some(revision), &due);
                }
                self.answer(&operation, Answer::Refused(Box::new(refused(&refusal))));
            }
        }
    }

    fn run_transaction(
        &mut self,
        mut operation: Operation,
        claim: &Claim,
        (revision, transition): (Option<Revision>, Transition),
    ) {
        let committed = self.store.commit(transition.next.id, revision, &transition);
        // The store's answer may be lost: then the replica does not know, and reads.
        let knows = !self.random.chance(self.weather.unknown_outcomes);
        let is_ours = transition.next.owner() == Some(&claim.request.claimant);
        if knows && committed && is_ours {
            return self.accept(&operation, claim, &transition.next);
        }
        if !committed {
            operation.conflicts += 1;
        }
        if operation.conflicts > CONFLICTS_MAX {
            let refusal = Refusal { reason: Reason::Conflict, ..Refusal::handover_pending(&transition.next) };
            return self.answer(&operation, Answer::Refused(Box::new(refused(&refusal))));
        }
        let delay = self.store_delay();
        self.push(delay, Event::Step(Box::new(operation)));
    }

    fn accept(&mut self, operation: &Operation, claim: &Claim, record: &SessionRecord) {
        let Owner { node, incarnation } = claim.request.claimant.clone();
        let claims = GrantClaims {
            handshake_hash: claim.handshake_hash,
            session: record.id,
            device: claim.request.device,
            epoch: record.epoch,
            node,
            incarnation,
            not_after: u64::MAX,
        };
        let policy = policy();
        let result = AttachResult::Accepted(Accepted {
            session: record.id,
            epoch: record.epoch,
            inner: record.inner.clone(),
            grant: Grant::issue(&claims, &self.grants).as_bytes().to_vec(),
            routes: Vec::new(),
            dns: Vec::new(),
            mtu: 1280,
            expires_in: policy.session_lifetime,
            lease: std::time::Duration::from_nanos(TTL),
            roster: self.gateways.iter().map(|gateway| gateway.address).collect(),
            doors: Vec::new(),
            correlation: record.correlation,
            switches_per_minute_max: 20,
            switch_cooldown: policy.switch_cooldown,
            recovery_window: policy.recovery_window,
        });
        self.answer(operation, Answer::Attached(Box::new((record.clone(), result))));
    }

    fn change(&mut self, mut operation: Operation, session: SessionId, change: &Change) {
        let millis = self.wall_millis(operation.replica);
        if let Some((revision, transition)) = operation.decided.take() {
            if self.store.commit(session, revision, &transition) {
                return self.answer(&operation, Answer::Done);
            }
            operation.conflicts += 1;
            if operation.conflicts > CONFLICTS_MAX {
                return;
            }
        }
        let Snapshot { record, view } = self.store.read(session, None);
        let Some((record, revision)) = record else { return };
        match ownership::change(&record, &view, change, millis) {
            Ok(Some(transition)) => {
                operation.decided = Some((Some(revision), transition));
                let delay = self.store_delay();
                self.push(delay, Event::Step(Box::new(operation)));
            }
            Ok(None) | Err(_) => self.answer(&operation, Answer::Done),
        }
    }

    /// What time alone does to the records; any replica may do it.
    pub(crate) fn sweep(&mut self) {
        let ids: Vec<SessionId> = self.store.sessions.keys().copied().collect();
        for id in ids {
            let Snapshot { record: Some((record, revision)), view } = self.store.read(id, None) else {
                continue;
            };
            if let Some(due) = ownership::expire(&record, &view, &policy(), self.wall_millis(0)) {
                self.store.commit(id, Some(revision), &due);
            }
        }
    }
}

pub(crate) fn policy() -> SessionPolicy {
    SessionPolicy { switches_per_minute_max: 60, ..SessionPolicy::default() }
}
