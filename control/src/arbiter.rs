//! Runs the decisions of [`jump_session::ownership`] against the store: read, decide, compare-and-swap, again.
//!
//! Every write compares the record's revision, the device's revision, and what the decision was based on: the
//! claimant's run exists, the old owner's run does not. There is no other way to become owner.

use std::sync::Arc;
use std::time::Duration;

use jump_proto::convert::AttachAsk;
use jump_proto::store_v1::DeviceRecord;
use jump_session::ids::{AttachSeq, DeviceKey, Epoch, NodeId, Revision, SessionId};
use jump_session::ownership::{
    self, AttachRequest, Change, Condition, Decision, DeviceStanding, Owner, Phase, Refusal, Transition,
    UnixMillis, View,
};
use jump_session::policy::SessionPolicy;
use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use tokio::time::Instant;

use crate::addresses::{self, Pools};
use crate::bindings::{Bindings, Wake};
use crate::layout::{self, BadValue, StoredSession};
use crate::store::{Compare, KeyValue, Op, Outcome, SharedStore, StoreError, Txn};
use crate::{audit, clock, devices};

mod birth;

/// How often a decision is repeated after losing a compare-and-swap.
const CONFLICTS_MAX: u32 = 32;

/// Longest pause after a lost compare-and-swap.
const CONFLICT_PAUSE_MAX: Duration = Duration::from_millis(20);

/// How long a waiting attach trusts the wake-ups before it reads the store anyway.
const WAIT_POLL: Duration = Duration::from_millis(100);

/// Decides who owns what. Stateless: any replica gives the same answers.
#[derive(Debug, Clone)]
pub struct Arbiter {
    /// The store.
    pub store: SharedStore,
    /// Wake-ups and hints.
    pub bindings: Arc<Bindings>,
    /// The bounds of sessions.
    pub policy: SessionPolicy,
    /// Where inner addresses come from.
    pub pools: Pools,
    /// How long an attach waits for a live owner to stop.
    pub handover_wait: Duration,
}

/// Why there is no accepted session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArbiterError {
    /// The deterministic answer is no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed; asking again with the same attempt id is safe.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored value cannot be read.
    #[error(transparent)]
    Value(#[from] BadValue),
}

/// Where no device is asked about.
const NO_DEVICE: DeviceKey = DeviceKey::from_bytes([0; 32]);

/// What one consistent read says.
#[derive(Debug)]
struct Facts {
    session: Option<StoredSession>,
    device: Option<(DeviceRecord, Revision)>,
    view: View,
    revision: Revision,
}

/// How a write ended.
enum Written {
    Yes(Box<StoredSession>),
    Conflict,
    Unknown(StoreError),
}

impl Arbiter {
    /// Decides an attach: the session as accepted, or why not. May wait for a live owner to stop.
    ///
    /// # Errors
    /// [`ArbiterError`].
    pub async fn attach(&self, ask: &AttachAsk) -> Result<StoredSession, ArbiterError> {
        correlation(ask.session_id()).scope(self.decide(ask)).await
    }

    async fn decide(&self, ask: &AttachAsk) -> Result<StoredSession, ArbiterError> {
        // A device keeps the name of its first key, whichever of its keys made the handshake.
        let key = ask.request.device;
        let mut request = ask.request.clone();
        let id = ask.session_id();
        let deadline = Instant::now() + self.handover_wait;
        let mut conflicts = 0;
        // A write of ours whose outcome is unknown may still land; no refusal is final before that is excluded.
        let mut unsettled = false;
        loop {
            let session_wake = self.bindings.wake(Wake::Session(id));
            let session_changed = session_wake.notified();
            tokio::pin!(session_changed);
            session_changed.as_mut().enable();
            let facts = self.facts(id, Some(&request.claimant), &request.device, &key).await?;
            if facts.device.is_none()
                && request.device == key
                && let Some(device) = self.alias(&key).await?
            {
                request.device = device;
                continue;
            }
            let request = &request;
            let now = clock::unix_millis();
            let attempt = match &facts.session {
                Some(stored) => {
                    match ownership::arbitrate(&stored.record, &facts.view, request, &self.policy, now) {
                        Ok(Decision::Commit(transition) | Decision::Intend(transition)) => {
                            Ok(Some((transition, Vec::new(), Vec::new())))
                        }
                        Ok(Decision::AlreadyAccepted) => {
                            if unsettled {
                                audit::session_settled(&stored.record);
                            }
                            return Ok(stored.clone());
                        }
                        Ok(Decision::Wait) => Ok(None),
                        Err(refusal) => Err(refusal),
                    }
                }
                None if ask.session.is_some() => Err(unknown_session(facts.view.device)),
                None => self.birth(id, &facts, request, now).await?.map(Some),
            };
            let (transition, compares, ops) = match attempt {
                Ok(Some(write)) => write,
                Ok(None) => {
                    if Instant::now() >= deadline {
                        let stored = facts.session.as_ref().expect("only a record makes an attempt wait");
                        return Err(Refusal::handover_pending(&stored.record).into());
                    }
                    let owner = facts.session.as_ref().and_then(|stored| stored.record.owner());
                    self.wait(session_changed, owner.map(|owner| &owner.node), deadline).await;
                    continue;
                }
                Err(refusal) => {
                    let due =
                        matches!(refusal.reason, Reason::LifetimeExceeded | Reason::RecoveryWindowExceeded);
                    if (due || unsettled) && !self.settle(&facts, now, &mut unsettled).await? {
                        backoff(request, &mut conflicts)?.await;
                        continue;
                    }
                    return Err(refusal.into());
                }
            };
            let accepted = matches!(transition.next.phase, Phase::Owned { .. });
            match self.write(&facts, transition, compares, ops, now).await? {
                Written::Yes(stored) if accepted => return Ok(*stored),
                Written::Yes(_) => {}
                Written::Conflict => backoff(request, &mut conflicts)?.await,
                Written::Unknown(error) => {
                    tracing::warn!(session = %id, correlation = %correlation(id), %error, "unknown outcome; reading");
                    unsettled = true;
                    backoff(request, &mut conflicts)?.await;
                }
            }
        }
    }

    /// Applies a change that is not an attach. The session as it is afterwards.
    ///
    /// # Errors
    /// [`ArbiterError`]; `UNKNOWN_SESSION` when there is no record.
    pub async fn change(&self, id: SessionId, change: &Change) -> Result<StoredSession, ArbiterError> {
        self.apply(id, |stored, view, now| Ok(ownership::change(&stored.record, view, change, now)?)).await
    }

    /// Applies what time alone does to a session.
    ///
    /// # Errors
    /// [`ArbiterError`].
    pub async fn expire(&self, id: SessionId) -> Result<StoredSession, ArbiterError> {
        self.apply(id, |stored, view, now| Ok(ownership::expire(&stored.record, view, &self.policy, now)))
            .await
    }

    /// Bounds a live session by its device's policy, as it stands in the transaction that does; says whether there was one
    /// to bound.
    ///
    /// # Errors
    /// [`ArbiterError`].
    pub async fn bound(&self, id: SessionId, device: &DeviceKey) -> Result<bool, ArbiterError> {
        for round in 0..CONFLICTS_MAX {
            let facts = self.facts(id, None, device, device).await?;
            let (Some(stored), Some((record, _))) = (&facts.session, &facts.device) else { return Ok(false) };
            if matches!(stored.record.phase, Phase::Terminated { .. }) {
                return Ok(false);
            }
            if stored.record.policy == devices::policy(record)? {
                return Ok(true);
            }
            let transition = Transition { next: stored.record.clone(), conditions: Vec::new() };
            match self.write(&facts, transition, Vec::new(), Vec::new(), clock::unix_millis()).await? {
                Written::Yes(_) => return Ok(true),
                Written::Conflict | Written::Unknown(_) => {}
            }
            tokio::time::sleep(pause(round, id.to_bytes()[15])).await;
        }
        Err(conflict().into())
    }

    /// Reads a session linearizably, with whether its owner's node key exists and the revision of the read.
    ///
    /// # Errors
    /// [`ArbiterError`]; `UNKNOWN_SESSION` when there is no record.
    pub async fn session(&self, id: SessionId) -> Result<(StoredSession, bool, Revision), ArbiterError> {
        let facts = correlation(id).scope(self.facts(id, None, &NO_DEVICE, &NO_DEVICE)).await?;
        let stored = facts.session.ok_or_else(|| unknown_session(DeviceStanding::Active))?;
        Ok((stored, facts.view.owner_registered, facts.revision))
    }

    async fn apply(
        &self,
        id: SessionId,
        decide: impl Fn(&StoredSession, &View, UnixMillis) -> Result<Option<Transition>, ArbiterError>,
    ) -> Result<StoredSession, ArbiterError> {
        correlation(id).scope(self.write_decided(id, decide)).await
    }

    async fn write_decided(
        &self,
        id: SessionId,
        decide: impl Fn(&StoredSession, &View, UnixMillis) -> Result<Option<Transition>, ArbiterError>,
    ) -> Result<StoredSession, ArbiterError> {
        let mut last_unknown = None;
        for round in 0..CONFLICTS_MAX {
            let facts = self.facts(id, None, &NO_DEVICE, &NO_DEVICE).await?;
            let Some(stored) = &facts.session else {
                return Err(unknown_session(DeviceStanding::Active).into());
            };
            let now = clock::unix_millis();
            let Some(transition) = decide(stored, &facts.view, now)? else {
                if last_unknown.is_some() {
                    audit::session_settled(&stored.record);
                }
                return Ok(stored.clone());
            };
            match self.write(&facts, transition, Vec::new(), Vec::new(), now).await? {
                Written::Yes(stored) => return Ok(*stored),
                Written::Conflict => {}
                Written::Unknown(error) => last_unknown = Some(error),
            }
            tokio::time::sleep(pause(round, id.to_bytes()[15])).await;
        }
        Err(last_unknown.map_or_else(|| conflict().into(), Into::into))
    }

    /// The device that rotated to `key`, if any.
    async fn alias(&self, key: &DeviceKey) -> Result<Option<DeviceKey>, ArbiterError> {
        let snapshot = self.store.read(&[layout::device_key(key)]).await?;
        Ok(snapshot.values[0].as_ref().map(devices::read_alias).transpose()?)
    }

    /// Reads the session, its device, and every node that the decision is about, at one revision.
    async fn facts(
        &self,
        id: SessionId,
        claimant: Option<&Owner>,
        device: &DeviceKey,
        key: &DeviceKey,
    ) -> Result<Facts, ArbiterError> {
        // The cache's guess of the nodes involved saves a second read, most of the time.
        let mut nodes: Vec<NodeId> = claimant.map(|owner| owner.node.clone()).into_iter().collect();
        if let Some(cached) = self.bindings.session(id) {
            add_parties(&mut nodes, &cached.record.phase);
        }
        loop {
            let mut keys = vec![layout::session(id), layout::device(device)];
            let first_node = keys.len();
            keys.extend(nodes.iter().flat_map(|node| [layout::node(node), layout::drain(node)]));
            let snapshot = self.store.read(&keys).await?;
            let session = snapshot.values[0].as_ref().map(StoredSession::read).transpose()?;
            let known = nodes.len();
            if let Some(stored) = &session {
                add_parties(&mut nodes, &stored.record.phase);
            }
            if nodes.len() > known {
                continue;
            }
            let party = |owner: &Owner| {
                let index = nodes.iter().position(|node| *node == owner.node);
                index.map_or((None, None), |index| {
                    let at = first_node + 2 * index;
                    (snapshot.values[at].as_ref(), snapshot.values[at + 1].as_ref())
                })
            };
            let is_run = |owner: &Owner| layout::is_run(party(owner).0, owner);
            let is_draining = |owner: &Owner| {
                let (run, mark) = party(owner);
                mark.is_some() || run.is_some_and(layout::is_ending)
            };
            let phase = session.as_ref().map(|stored| &stored.record.phase);
            let device = snapshot.values[1].as_ref().map(read_device).transpose()?;
            let view = View {
                claimant_registered: claimant.is_some_and(is_run),
                claimant_draining: claimant.is_some_and(is_draining),
                owner_draining: phase.and_then(owner_of).is_some_and(is_draining),
                owner_registered: phase.and_then(owner_of).is_some_and(is_run),
                target_registered: phase.and_then(target_of).is_some_and(is_run),
                device: devices::standing_with(
                    device.as_ref().map(|(record, _)| record),
                    key,
                    clock::unix_millis(),
                ),
            };
            return Ok(Facts { session, device, view, revision: snapshot.revision });
        }
    }

    /// Writes a transition if everything that it was decided on still holds.
    async fn write(
        &self,
        facts: &Facts,
        transition: Transition,
        mut compares: Vec<Compare>,
        mut ops: Vec<Op>,
        now: UnixMillis,
    ) -> Result<Written, ArbiterError> {
        let Transition { mut next, conditions } = transition;
        let key = layout::session(next.id);
        let modified = facts.session.as_ref().map_or(Revision(0), |stored| stored.modified);
        compares.push(Compare::Modified(key.clone(), modified));
        if let Some((record, modified)) = &facts.device
            && record.device_key == next.device.as_bytes()
        {
            // Whoever comes in the end obeys what holds for the device at this very transaction.
            next.policy = devices::policy(record)?;
            compares.push(Compare::Modified(layout::device(&next.device), *modified));
        }
        compares.extend(conditions.iter().map(|condition| match condition {
            Condition::Registered(owner) => {
                Compare::Created(layout::node(&owner.node), Revision(owner.incarnation.0))
            }
            Condition::Gone(owner) => {
                Compare::NotCreated(layout::node(&owner.node), Revision(owner.incarnation.0))
            }
        }));
        ops.push(Op::put(key, layout::session_value(&next)));
        if matches!(next.phase, Phase::Terminated { .. }) {
            let rest = u64::try_from(self.policy.address_quarantine.as_millis()).unwrap_or(u64::MAX);
            let until = now.saturating_add(rest);
            ops.extend(next.inner.iter().map(|address| addresses::quarantine(*address, next.id, until)));
        }
        match self.store.commit(Txn { compares, ops }).await {
            Ok(Outcome::Committed(modified)) => {
                audit::session_written(facts.session.as_ref().map(|stored| &stored.record), &next);
                Ok(Written::Yes(Box::new(StoredSession { record: next, modified })))
            }
            Ok(Outcome::Conflict) => Ok(Written::Conflict),
            Err(error @ StoreError::Unknown(_)) => Ok(Written::Unknown(error)),
            Err(
                error @ (StoreError::Unavailable(_)
                | StoreError::LeaseNotFound
                | StoreError::Compacted
                | StoreError::Refused(_)),
            ) => Err(error.into()),
        }
    }

    /// Before a refusal: writes what time has done to the record, or the record as it is, so that no earlier write of
    /// this attempt can land any more. False when the record moved meanwhile.
    async fn settle(
        &self,
        facts: &Facts,
        now: UnixMillis,
        unsettled: &mut bool,
    ) -> Result<bool, ArbiterError> {
        let Some(stored) = &facts.session else {
            // Nothing to write on: let the caller ask again rather than answer what may turn out false.
            return Err(StoreError::Unknown("a birth may still commit".to_owned()).into());
        };
        let due = ownership::expire(&stored.record, &facts.view, &self.policy, now);
        let transition = match (due, *unsettled) {
            (Some(due), _) => due,
            (None, true) => Transition { next: stored.record.clone(), conditions: Vec::new() },
            (None, false) => return Ok(true),
        };
        Ok(match self.write(facts, transition, Vec::new(), Vec::new(), now).await? {
            Written::Yes(_) => true,
            Written::Conflict => false,
            Written::Unknown(_) => {
                *unsettled = true;
                false
            }
        })
    }

    /// Waits until the session or its owner's node changes, or for a while.
    async fn wait(
        &self,
        session_changed: impl Future<Output = ()>,
        owner: Option<&NodeId>,
        deadline: Instant,
    ) {
        let node_wake = owner.map(|node| self.bindings.wake(Wake::Node(node.clone())));
        let node_changed = async {
            match &node_wake {
                Some(wake) => wake.notified().await,
                None => std::future::pending().await,
            }
        };
        let poll = (Instant::now() + WAIT_POLL).min(deadline);
        tokio::select! {
            () = session_changed => {}
            () = node_changed => {}
            () = tokio::time::sleep_until(poll) => {}
        }
    }
}

/// The id that the store's spans bear while they work for the session.
fn correlation(id: SessionId) -> Correlation {
    id.correlation().into()
}

fn read_device(stored: &KeyValue) -> Result<(DeviceRecord, Revision), BadValue> {
    Ok((layout::decode(stored)?, stored.mod_revision))
}

fn owner_of(phase: &Phase) -> Option<&Owner> {
    match phase {
        Phase::Owned { owner } | Phase::Handover { from: owner, .. } => Some(owner),
        Phase::Released { .. } | Phase::Terminated { .. } => None,
    }
}

fn target_of(phase: &Phase) -> Option<&Owner> {
    match phase {
        Phase::Handover { to, .. } => Some(&to.owner),
        Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => None,
    }
}

fn add_parties(nodes: &mut Vec<NodeId>, phase: &Phase) {
    for owner in owner_of(phase).into_iter().chain(target_of(phase)) {
        if !nodes.contains(&owner.node) {
            nodes.push(owner.node.clone());
        }
    }
}

/// A refusal that says nothing about any record.
pub(crate) fn blank(reason: Reason, retry_after: Duration) -> Refusal {
    Refusal { reason, current_epoch: Epoch(0), current_attach_seq: AttachSeq(0), retry_after }
}

/// A device that may not attach learns why before it learns what exists.
fn unknown_session(device: DeviceStanding) -> Refusal {
    let reason = match device {
        DeviceStanding::Active => Reason::UnknownSession,
        DeviceStanding::Unknown => Reason::UnknownDevice,
        DeviceStanding::Revoked => Reason::KeyRevoked,
        DeviceStanding::Expired => Reason::KeyExpired,
    };
    blank(reason, Duration::ZERO)
}

fn conflict() -> Refusal {
    blank(Reason::Conflict, ownership::RETRY_AFTER)
}

/// A pause that grows with the rounds and differs by `salt`.
fn pause(round: u32, salt: u8) -> Duration {
    let ceiling = Duration::from_millis(1 << round.min(5)).min(CONFLICT_PAUSE_MAX);
    let share = u32::from(salt.wrapping_mul(167).wrapping_add(round as u8)) + 1;
    ceiling * share / 256
}

fn backoff(request: &AttachRequest, conflicts: &mut u32) -> Result<tokio::time::Sleep, ArbiterError> {
    *conflicts += 1;
    if *conflicts > CONFLICTS_MAX {
        return Err(conflict().into());
    }
    let [.., salt] = request.attempt.to_bytes();
    Ok(tokio::time::sleep(pause(*conflicts, salt)))
}
