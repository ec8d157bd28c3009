//! A control replica: reads, decides with the production functions, and runs its transaction.

use crate::cluster::{Belief, Cluster, Gateway, Message, Pending, State};
use crate::defect::{Defect, G2, G3, G6, OWNERS_ARE_REGISTERED};
use crate::record::{self, Compare, Decided, Nodes, Order, Phase, Record, Run, Write};

impl Cluster {
    /// A replica reads record and node keys in one transaction and decides.
    pub(crate) fn read(&self, state: &mut State, replica: usize, message: &Message, belief: Belief) {
        let gateways = state.gateways;
        let blind = self.has(Defect::DeadOwnerBelievedAlive);
        let owner = state.record.and_then(|record| record.owner());
        let claimant = if let Message::Attach { run, .. } = message { Some(*run) } else { None };
        let registered = |run: Run| match belief {
            Belief::Truth => {
                gateways[usize::from(run.node)].key == run.incarnation || (blind && Some(run) == owner)
            }
            Belief::OthersGone => Some(run) == claimant,
            Belief::AllAlive => true,
        };
        let draining = |run: Run| {
            let gateway = &gateways[usize::from(run.node)];
            gateway.key == run.incarnation && gateway.draining
        };
        let nodes = Nodes { registered: &registered, draining: &draining };
        let record = state.record.as_ref();
        let mut is_intent = false;
        let write = match (message, record) {
            (Message::Attach { seq, run }, _) => match self.decide(record, *run, *seq, nodes) {
                Decided::Commit(write) => Some(write),
                Decided::Intend(write) => {
                    is_intent = true;
                    Some(write)
                }
                Decided::Wait => None,
                Decided::Accepted => {
                    let epoch = record.map_or(0, |record| record.epoch);
                    return state.accepted(*seq, *run, epoch);
                }
                Decided::Refused { is_final } => {
                    if is_final {
                        state.refused |= 1 << seq;
                    }
                    return;
                }
            },
            (Message::Ack { run, epoch }, Some(record)) => record::fenced(record, *run, *epoch, nodes),
            (Message::Release { run, epoch }, Some(record)) => record::released(record, *run, *epoch, nodes),
            (Message::Sweep, Some(record)) => record::swept(record, nodes),
            (Message::Move { to }, Some(record)) => {
                record::ordered(record, *to, nodes).map(|write| self.moved(record, *to, write, &gateways))
            }
            (Message::Ack { .. } | Message::Release { .. } | Message::Move { .. } | Message::Sweep, None) => {
                None
            }
            (Message::Init { .. } | Message::Accepted { .. } | Message::Order { .. }, _) => None,
        };
        if let Some(write) = write {
            state.replicas[replica] = Some(Pending { message: message.clone(), write, is_intent });
        }
    }

    /// An order as it is written; the mistake is to give the session away with it.
    fn moved(&self, record: &Record, to: Order, write: Write, gateways: &[Gateway]) -> Write {
        let target = to.map(|node| Run { node, incarnation: gateways[usize::from(node)].key });
        match target.filter(|run| self.has(Defect::MoveGivesAway) && run.incarnation != 0) {
            Some(run) => {
                let next = Record { epoch: record.epoch + 1, phase: Phase::Owned(run), ..write.next };
                Write { next, ..write }
            }
            None => write,
        }
    }

    fn decide(&self, record: Option<&Record>, run: Run, seq: u8, nodes: Nodes<'_>) -> Decided {
        let decided = if self.has(Defect::SequenceIgnored) && record.is_some_and(|record| seq < record.seq) {
            // Decides as if the attempt were the newest.
            let mut forgetful = *record.expect("checked");
            forgetful.seq = 0;
            record::attach(Some(&forgetful), run, seq, nodes)
        } else {
            record::attach(record, run, seq, nodes)
        };
        if !self.has(Defect::NoFence) {
            return decided;
        }
        let Decided::Intend(write) = decided else { return decided };
        let Phase::Handover { from, .. } = write.next.phase else { return Decided::Wait };
        match record::fenced(&write.next, from, write.next.epoch, nodes) {
            Some(fenced) => Decided::Commit(Write { read_revision: write.read_revision, ..fenced }),
            None => Decided::Wait,
        }
    }

    pub(crate) fn commit(&self, state: &mut State, pending: &Pending) {
        let Pending { message, write, is_intent } = pending;
        let stored_revision = state.record.map_or(0, |record| record.revision);
        if write.read_revision != stored_revision && !self.has(Defect::RevisionNotCompared) {
            // Somebody wrote first: the replica reads again, which is another `Read` of the same message.
            return;
        }
        let is_registered = |run: Run| state.gateways[usize::from(run.node)].key == run.incarnation;
        let holds = write.compares.iter().all(|compare| match compare {
            Compare::Registered(run) => is_registered(*run) || self.has(Defect::ClaimantNotCompared),
            Compare::Gone(run) => !is_registered(*run) || self.has(Defect::OldOwnerNotCompared),
        });
        if !holds {
            return;
        }
        self.check_write(state, &write.next);
        state.record = Some(Record { revision: stored_revision + 1, ..write.next });
        if !self.has(Defect::RevisionNotCompared) {
            // What was decided on an earlier revision cannot commit any more: the same as not being there.
            let current = |pending: &Pending| pending.write.read_revision > stored_revision;
            state.replicas.iter_mut().for_each(|replica| *replica = replica.take().filter(current));
        }
        if let Phase::Handover { from, .. } = write.next.phase {
            state.send(Message::Order { run: from, epoch: write.next.epoch });
        }
        if let (Message::Move { .. }, Phase::Owned(run), true) =
            (message, write.next.phase, self.has(Defect::MoveGivesAway))
        {
            return state.send(Message::Accepted { seq: write.next.seq, run, epoch: write.next.epoch });
        }
        if let (Message::Attach { seq, run }, false) = (message, is_intent) {
            if self.has(Defect::LostAnswerMeansRefused) {
                state.refused |= 1 << seq;
                return;
            }
            let confirmed_elsewhere =
                |m: &Message| matches!(m, Message::Init { seq: s, run: r } if s == seq && r != run);
            if state.network.iter().any(confirmed_elsewhere) {
                state.broken = Some(G6);
                return;
            }
            state.accepted(*seq, *run, write.next.epoch);
        }
    }

    /// G2, and that nobody becomes owner who cannot be one, at the moment of the write.
    fn check_write(&self, state: &mut State, next: &Record) {
        let (epoch, seq) = state.record.map_or((0, 0), |record| (record.epoch, record.seq));
        let stays = state.record.is_some_and(|r| (r.epoch, r.phase) == (next.epoch, next.phase));
        let new_owner = match next.phase {
            // An order to move changes neither owner nor epoch.
            Phase::Owned(_) if stays => None,
            Phase::Owned(run) => Some(run),
            Phase::Released | Phase::Handover { .. } | Phase::Terminated => None,
        };
        if next.epoch < epoch || (next.epoch == epoch && new_owner.is_some()) || next.epoch > epoch + 1 {
            state.broken = Some(G2);
        }
        if next.seq < seq {
            state.broken = Some(G3);
        }
        if let Some(run) = new_owner
            && state.gateways[usize::from(run.node)].key != run.incarnation
        {
            state.broken = Some(OWNERS_ARE_REGISTERED);
        }
    }
}
