//! Control: replicas that read, decide by the shipped functions, and let transactions ride together.

use std::collections::VecDeque;
use std::time::Duration;

use jump_control::store::group::{REQUESTS_MAX, RIDERS_MAX};
use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, SessionId};
use jump_session::ownership::{
    self, AttachRequest, Change, Condition, Decision, DeviceStanding, Owner, Phase, Refusal, SessionRecord,
    Transition, UnixMillis, View,
};
use jump_session::reason::Reason;

use super::cluster::{Cluster, Event, address, number_of};
use super::store::{REPLICA_DECISION, WATCH};
use super::{MILLISECOND, Nanos};

/// How long an attach waits for a live owner to stop (`handover_wait`).
const HANDOVER_WAIT: Nanos = 1500 * MILLISECOND;
/// Keys that a birth writes: the session, its two addresses, its device.
const BIRTH_WRITES: u64 = 4;
/// The pause after a transaction that lost.
const CONFLICT_PAUSE: Nanos = 5 * MILLISECOND;
/// Virtual time began then.
const EPOCH_MS: UnixMillis = 1_700_000_000_000;

/// One gateway's request that a replica works on.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) session: usize,
    pub(super) gateway: usize,
    pub(super) attach_seq: AttachSeq,
    pub(super) attempt: AttemptId,
    /// `None` for an attach; the epoch that its owner has stopped in.
    pub(super) stopped: Option<Epoch>,
    pub(super) run: Owner,
    pub(super) reason: Reason,
    /// Until when it waits for a live owner.
    pub(super) deadline: Option<Nanos>,
}

/// A transaction on its way.
#[derive(Debug)]
pub(super) struct Rider {
    call: usize,
    revision: u64,
    transition: Transition,
    writes: u64,
}

/// A replica's transactions for one store.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Oldest first: a store carries out one request after another.
    under_way: VecDeque<Vec<Rider>>,
    waiting: VecDeque<Rider>,
}

/// A control replica.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// When it has worked off what it was asked so far.
    pub(super) free_at: Nanos,
    pub(super) lines: Vec<Line>,
}

impl Cluster {
    /// What control takes for the time.
    fn unix_millis(&self) -> UnixMillis {
        EPOCH_MS + self.now / MILLISECOND
    }

    /// A request has come to its replica.
    pub(super) fn enter_replica(&mut self, call: usize) {
        let replica = self.replica_of(self.calls[call].gateway);
        let free_at = &mut self.replicas[replica].free_at;
        *free_at = (*free_at).max(self.now) + REPLICA_DECISION;
        let at = *free_at + self.stores[0].read_takes();
        self.at(at, Event::Decide { call });
    }

    /// What was read is decided on.
    pub(super) fn decide(&mut self, call: usize) {
        let asked = self.calls[call].clone();
        let now = self.unix_millis();
        let Some((record, revision)) = &self.records[asked.session] else {
            let id = SessionId::from_bytes(asked.attempt.to_bytes());
            let device = device_of(asked.session);
            let request = request(&asked, device);
            let view = self.view(None, &asked.run);
            let inner = address(asked.session);
            let name = format!("device-{:07}", asked.session);
            match ownership::birth(id, inner, name, id.to_bytes(), &view, &request, &self.policy, now) {
                Ok(transition) => self.board(Rider { call, revision: 0, transition, writes: BIRTH_WRITES }),
                Err(refusal) => self.refused(call, &refusal),
            }
            return;
        };
        let view = self.view(Some(record), &asked.run);
        let revision = *revision;
        if let Some(epoch) = asked.stopped {
            let change = Change::FenceAcknowledged { by: asked.run, epoch, switch_ages: Vec::new() };
            match ownership::change(record, &view, &change, now) {
                Ok(Some(transition)) => self.board(Rider { call, revision, transition, writes: 1 }),
                Ok(None) | Err(_) => drop(self.end_call(call)),
            }
            return;
        }
        let request = request(&asked, record.device);
        match ownership::arbitrate(record, &view, &request, &self.policy, now) {
            Ok(Decision::Commit(transition) | Decision::Intend(transition)) => {
                self.board(Rider { call, revision, transition, writes: 1 });
            }
            Ok(Decision::Wait) => self.wait(call),
            Ok(Decision::AlreadyAccepted) => self.accepted(call),
            Err(refusal) => self.refused(call, &refusal),
        }
    }

    fn view(&self, record: Option<&SessionRecord>, claimant: &Owner) -> View {
        let draining = |owner: &Owner| self.gateways[number_of(owner)].is_draining;
        let owner = record.and_then(SessionRecord::owner);
        let target = record.and_then(|record| match &record.phase {
            Phase::Handover { to, .. } => Some(&to.owner),
            Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => None,
        });
        View {
            claimant_registered: self.is_registered(claimant),
            claimant_draining: draining(claimant),
            owner_registered: owner.is_some_and(|owner| self.is_registered(owner)),
            owner_draining: owner.is_some_and(draining),
            target_registered: target.is_some_and(|target| self.is_registered(target)),
            device: DeviceStanding::Active,
        }
    }

    fn board(&mut self, rider: Rider) {
        let call = &self.calls[rider.call];
        let (replica, shard) = (self.replica_of(call.gateway), self.shard_of(call.session));
        self.replicas[replica].lines[shard].waiting.push_back(rider);
        self.depart(replica, shard);
    }

    /// Sends a request to the store if fewer than three are under way and anybody waits.
    fn depart(&mut self, replica: usize, shard: usize) {
        let line = &mut self.replicas[replica].lines[shard];
        if line.under_way.len() >= REQUESTS_MAX || line.waiting.is_empty() {
            return;
        }
        let aboard: Vec<Rider> = line.waiting.drain(..line.waiting.len().min(RIDERS_MAX)).collect();
        let writes = aboard.iter().map(|rider| rider.writes).sum();
        line.under_way.push_back(aboard);
        let heard = self.stores[shard].request(self.now, writes);
        self.at(heard, Event::Committed { replica, shard });
    }

    /// A request to the store is done: each of its transactions wins or loses by itself.
    pub(super) fn committed(&mut self, replica: usize, shard: usize) {
        let Some(batch) = self.replicas[replica].lines[shard].under_way.pop_front() else { return };
        for rider in batch {
            self.commit(rider);
        }
        self.depart(replica, shard);
    }

    fn commit(&mut self, rider: Rider) {
        let Rider { call, revision, transition, writes: _ } = rider;
        let session = self.calls[call].session;
        let stored = &self.records[session];
        let is_unchanged = stored.as_ref().map_or(0, |(_, revision)| *revision) == revision;
        let holds = transition.conditions.iter().all(|condition| match condition {
            Condition::Registered(owner) => self.is_registered(owner),
            Condition::Gone(owner) => !self.is_registered(owner),
        });
        if !is_unchanged || !holds {
            self.totals.conflicts += 1;
            self.at(self.now + CONFLICT_PAUSE, Event::AtReplica { call });
            return;
        }
        let next = transition.next;
        if let Some((before, _)) = stored {
            assert!(next.epoch >= before.epoch, "G2: the epoch of {} went back", next.id);
            assert!((next.id, &next.inner) == (before.id, &before.inner), "G4: {} changed", next.id);
        }
        // G1: whoever takes a session from a gateway that may still forward must have its word, or its end.
        for condition in &transition.conditions {
            if let Condition::Gone(owner) = condition {
                let old = &self.gateways[number_of(owner)];
                let forwards = old.is_alive && old.owner == *owner && old.authority.holds(self.now);
                assert!(!forwards, "G1: {} is taken from {:?}, which may still forward", next.id, owner);
            }
        }
        self.revision += 1;
        let fence = match &next.phase {
            Phase::Handover { from, .. } => Some(number_of(from)),
            Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => None,
        };
        let is_attach = self.calls[call].stopped.is_none();
        self.records[session] = Some((next, self.revision));
        if let Some(from) = fence {
            self.at(self.now + WATCH, Event::Fence { session, gateway: from });
            self.at(self.now, Event::AtReplica { call });
        } else if is_attach {
            self.accepted(call);
        } else {
            drop(self.end_call(call));
            self.wake(session);
        }
    }

    /// The old owner hears that it must stop a session: it stops, and says so.
    pub(super) fn fence(&mut self, session: usize, gateway: usize) {
        let run = self.gateways[gateway].owner.clone();
        if !self.gateways[gateway].is_reachable() {
            return;
        }
        let Some((SessionRecord { epoch, phase: Phase::Handover { from, .. }, .. }, _)) =
            &self.records[session]
        else {
            return;
        };
        if *from != run {
            return;
        }
        let (stopped, attempt) = (Some(*epoch), AttemptId::from_bytes([0; 16]));
        let reason = Reason::Fenced;
        let attach_seq = AttachSeq(0);
        let call = Call { session, gateway, attach_seq, attempt, stopped, run, reason, deadline: None };
        let call = self.new_call(call);
        self.enter_replica(call);
    }

    fn wait(&mut self, call: usize) {
        let waiting = &mut self.calls[call];
        let session = waiting.session;
        let deadline = *waiting.deadline.get_or_insert(self.now + HANDOVER_WAIT);
        if self.now >= deadline {
            let Some((record, _)) = &self.records[session] else { return };
            let refusal = Refusal::handover_pending(record);
            return self.refused(call, &refusal);
        }
        self.clients[session].waits = Some(call);
        self.at(deadline, Event::WaitOver { session, call });
    }

    /// What a waiting claim depends on has changed: it is decided on again.
    pub(super) fn wake(&mut self, session: usize) {
        if let Some(call) = self.clients[session].waits.take() {
            self.enter_replica(call);
        }
    }

    fn accepted(&mut self, call: usize) {
        let asked = self.end_call(call);
        self.told(&asked, None);
    }

    fn refused(&mut self, call: usize, refusal: &Refusal) {
        let retry_after = nanos(refusal.retry_after);
        if refusal.reason == Reason::HandoverPending {
            self.calls[call].deadline = None;
            self.totals.pending += 1;
            return self.at(self.now + retry_after, Event::AtReplica { call });
        }
        self.totals.refused += 1;
        let asked = self.end_call(call);
        self.told(&asked, Some(retry_after));
    }
}

fn request(call: &Call, device: DeviceKey) -> AttachRequest {
    AttachRequest {
        claimant: call.run.clone(),
        device,
        attach_seq: call.attach_seq,
        attempt: call.attempt,
        reason: call.reason,
        switch_ages: Vec::new(),
    }
}

fn device_of(session: usize) -> DeviceKey {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&(session as u64).to_be_bytes());
    DeviceKey::from_bytes(key)
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
