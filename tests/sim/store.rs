//! The store: records and node keys with revisions, transactions that compare, leases that run out.

use std::collections::BTreeMap;

use jump_session::ids::{Epoch, Incarnation, NodeId, NodeNumber, Revision, SessionId};
use jump_session::ownership::{Condition, DeviceStanding, Owner, Phase, SessionRecord, Transition, View};

use crate::world::{Nanos, TTL};

/// A node key.
#[derive(Clone)]
pub(crate) struct NodeKey {
    pub(crate) incarnation: Incarnation,
    pub(crate) number: NodeNumber,
    pub(crate) mesh_public: [u8; 32],
    /// The store may expire the key from then on.
    pub(crate) lease_until: Nanos,
}

/// How sessions came to their owners, and what was in the way: a simulation in which nothing of this happens shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// A live owner stopped and the claim that waited won.
    pub(crate) handovers: u64,
    /// The owner's node key was gone.
    pub(crate) takeovers: u64,
    /// The same run got the session again.
    pub(crate) reattaches: u64,
    /// Nobody owned it.
    pub(crate) claims_of_released: u64,
    /// A claim replaced another that waited.
    pub(crate) replaced_claims: u64,
    /// A transaction lost against another.
    pub(crate) lost_races: u64,
    /// Leases that ran out.
    pub(crate) expired_leases: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.handovers += other.handovers;
        self.takeovers += other.takeovers;
        self.reattaches += other.reattaches;
        self.claims_of_released += other.claims_of_released;
        self.replaced_claims += other.replaced_claims;
        self.lost_races += other.lost_races;
        self.expired_leases += other.expired_leases;
    }

    fn note(&mut self, before: &Phase, next: &Phase, waited: bool) {
        let count = match (before, next) {
            (Phase::Owned { owner: old } | Phase::Handover { from: old, .. }, Phase::Owned { owner }) => {
                match (old == owner, waited) {
                    (true, _) => &mut self.reattaches,
                    (false, true) => &mut self.handovers,
                    (false, false) => &mut self.takeovers,
                }
            }
            (Phase::Released { .. }, Phase::Owned { .. }) => &mut self.claims_of_released,
            (Phase::Handover { .. }, Phase::Handover { .. }) => &mut self.replaced_claims,
            _ => return,
        };
        *count += 1;
    }
}

#[derive(Default)]
pub(crate) struct Store {
    revision: u64,
    pub(crate) sessions: BTreeMap<SessionId, (SessionRecord, Revision)>,
    pub(crate) nodes: BTreeMap<NodeId, NodeKey>,
    pub(crate) draining: Option<NodeId>,
    /// Every epoch's owner, to see that none is given twice.
    epochs: BTreeMap<(SessionId, Epoch), Owner>,
    pub(crate) seen: Seen,
    /// Sessions that changed and nodes that came or went since the last look.
    pub(crate) news: Vec<News>,
}

#[derive(Clone)]
pub(crate) enum News {
    Session(SessionId),
    Node(NodeId),
}

/// What a replica read in one transaction.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) record: Option<(SessionRecord, Revision)>,
    pub(crate) view: View,
}

impl Store {
    pub(crate) fn is_registered(&self, owner: &Owner) -> bool {
        self.nodes.get(&owner.node).is_some_and(|key| key.incarnation == owner.incarnation)
    }

    pub(crate) fn read(&self, session: SessionId, claimant: Option<&Owner>) -> Snapshot {
        let record = self.sessions.get(&session).cloned();
        let target = record.as_ref().and_then(|(record, _)| match &record.phase {
            Phase::Handover { to, .. } => Some(to.owner.clone()),
            Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => None,
        });
        let view = View {
            claimant_registered: claimant.is_some_and(|claimant| self.is_registered(claimant)),
            claimant_draining: claimant
                .is_some_and(|claimant| self.draining.as_ref() == Some(&claimant.node)),
            owner_draining: record
                .as_ref()
                .and_then(|(record, _)| record.owner())
                .is_some_and(|owner| self.draining.as_ref() == Some(&owner.node)),
            owner_registered: record
                .as_ref()
                .and_then(|(record, _)| record.owner())
                .is_some_and(|owner| self.is_registered(owner)),
            target_registered: target.is_some_and(|target| self.is_registered(&target)),
            device: DeviceStanding::Active,
        };
        Snapshot { record, view }
    }

    /// One transaction: true when every compare held and the record was written.
    pub(crate) fn commit(
        &mut self,
        session: SessionId,
        read: Option<Revision>,
        transition: &Transition,
    ) -> bool {
        let stored = self.sessions.get(&session);
        if stored.map(|(_, revision)| *revision) != read {
            self.seen.lost_races += 1;
            return false;
        }
        let holds = transition.conditions.iter().all(|condition| match condition {
            Condition::Registered(owner) => self.is_registered(owner),
            Condition::Gone(owner) => !self.is_registered(owner),
        });
        if !holds {
            self.seen.lost_races += 1;
            return false;
        }
        let next = transition.next.clone();
        if let Some((before, _)) = stored {
            assert!(next.epoch >= before.epoch, "G2: the epoch of {session} went back");
            assert!(next.attach_seq >= before.attach_seq, "the sequence number of {session} went back");
            assert_eq!(
                (&before.inner, before.id),
                (&next.inner, next.id),
                "G4: {session} changed its identity"
            );
            let waited =
                !transition.conditions.iter().any(|condition| matches!(condition, Condition::Gone(_)));
            self.seen.note(&before.phase, &next.phase, waited);
            assert!(!matches!(before.phase, Phase::Terminated { .. }), "a tombstone was written to");
        }
        if let Phase::Owned { owner } = &next.phase {
            let first = self.epochs.entry((session, next.epoch)).or_insert_with(|| owner.clone());
            assert_eq!(first, owner, "G2: epoch {} of {session} was given twice", next.epoch);
        }
        self.revision += 1;
        self.sessions.insert(session, (next, Revision(self.revision)));
        self.news.push(News::Session(session));
        true
    }

    /// Creates a node key; `None` while another run holds it, unless it is `reaped`.
    pub(crate) fn register(
        &mut self,
        node: &NodeId,
        reaped: Option<Incarnation>,
        mesh_public: [u8; 32],
        now: Nanos,
    ) -> Option<NodeKey> {
        if let Some(key) = self.nodes.get(node) {
            if Some(key.incarnation) != reaped {
                return None;
            }
            self.remove(node);
        }
        self.revision += 1;
        let number = NodeNumber((self.revision % 4095) as u16 + 1);
        let incarnation = Incarnation(self.revision);
        let key = NodeKey { incarnation, number, mesh_public, lease_until: now + TTL };
        self.nodes.insert(node.clone(), key.clone());
        self.news.push(News::Node(node.clone()));
        Some(key)
    }

    /// Renews the lease of a run; `None` when its key is gone.
    pub(crate) fn renew(&mut self, owner: &Owner, now: Nanos) -> Option<()> {
        let key = self.nodes.get_mut(&owner.node).filter(|key| key.incarnation == owner.incarnation)?;
        key.lease_until = key.lease_until.max(now + TTL);
        Some(())
    }

    pub(crate) fn deregister(&mut self, owner: &Owner) {
        if self.is_registered(owner) {
            self.remove(&owner.node);
        }
    }

    fn remove(&mut self, node: &NodeId) {
        self.revision += 1;
        self.nodes.remove(node);
        self.news.push(News::Node(node.clone()));
    }

    /// Sessions that this run owns and must stop.
    pub(crate) fn fences(&self, run: &Owner) -> Vec<(SessionId, Epoch)> {
        let ordered = self
            .sessions
            .values()
            .filter(|(record, _)| matches!(&record.phase, Phase::Handover { from, .. } if from == run));
        ordered.map(|(record, _)| (record.id, record.epoch)).collect()
    }
}
