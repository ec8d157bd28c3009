//! First messages: cheap checks, then a reserved index and the queue to a handshake thread.

use jump_crypto::cookie::{Admission, COOKIE_REPLY_LEN, identity};
use jump_crypto::handshake::is_init_len;
use jump_session::gateway::Nanos;
use jump_session::path::Path;

use super::session::{Entry, Handshake, Stage};
use super::slab::Rest;
use super::{Answered, ReceiverIndex, Suspect};
use super::{CLAIM_WAIT, Count, DataPlane, DropReason, HANDSHAKE_WAIT, InitJob, Place, Tick, Wire, take_due};

const SECOND: Nanos = 1_000_000_000;

/// How many first messages came in the current and the last second.
#[derive(Debug, Default)]
pub(super) struct Load {
    second: Nanos,
    current: u32,
    last: u32,
}

impl Load {
    fn note(&mut self, now: Nanos) -> u32 {
        let second = now / SECOND;
        if second != self.second {
            self.last = if second == self.second + 1 { self.current } else { 0 };
            self.current = 0;
            self.second = second;
        }
        self.current = self.current.saturating_add(1);
        self.current.max(self.last)
    }
}

impl DataPlane {
    /// An `AttachInit` from `source`.
    pub(super) fn handle_init<W: Wire>(&mut self, tick: Tick, source: Path, init: &[u8], wire: &mut W) {
        if !is_init_len(init.len()) {
            return self.counters.drop(DropReason::Malformed);
        }
        let admitted = self.gates.iter().map(|gate| (gate, gate.admit(init, source.peer, tick.unix)));
        let Some((gate, admission)) = admitted.into_iter().find(|(_, a)| *a != Admission::BadMac) else {
            return self.counters.drop(DropReason::BadMac);
        };
        let Some(identity) = identity(init) else { return self.counters.drop(DropReason::Malformed) };
        let known = self.repeats.find(&identity, source.peer, tick.now);
        let (claims, claims_max) = (self.claims, self.limits.claims_max);
        if known.is_none()
            && let Some(after) = self.backlog.wait(tick.now, claims, claims_max)
        {
            if let Some(busy) = gate.busy(init, after) {
                wire.to_client(source, busy.len()).copy_from_slice(&busy);
            }
            return self.counters.drop(DropReason::Busy);
        }
        let loaded = self.load.note(tick.now) > self.limits.cookie_above_per_second
            || self.answered * 2 > self.limits.handshakes_max;
        let flood = |reason| Suspect { reason, session: None, source: source.peer, destination: None };
        if loaded && admission == Admission::NoCookie {
            self.counters.drop_of(flood(DropReason::NoCookie));
            let mut nonce = [0; 16];
            if self.entropy.fill(&mut nonce).is_ok() {
                let slot = wire.to_client(source, COOKIE_REPLY_LEN);
                if gate.cookie_reply(init, source.peer, tick.unix, nonce, slot).is_some() {
                    self.counters.add(Count::Cookies);
                } else {
                    wire.cancel_client();
                }
            }
            return;
        }
        if !self.sources.take(source.peer, tick.now) {
            return self.counters.drop_of(flood(DropReason::SourceRate));
        }
        if let Some(local) = known
            && self.entries.get(local).is_some()
        {
            return self.repeat_answer(local, wire);
        }
        let Ok(local) = self.entries.insert(Entry::Reserved, tick.now) else {
            return self.counters.drop(DropReason::TableFull);
        };
        let index = self.index(local);
        let hint = self.gates.first().map_or([0; 16], |gate| gate.hint(index));
        let job = InitJob { datagram: Box::from(init), source, index, hint, at: tick.now };
        self.next_queue = self.next_queue.wrapping_add(1);
        let queues = self.inits.len().max(1);
        let queued =
            self.inits.get(self.next_queue % queues).is_some_and(|queue| queue.try_send(job).is_ok());
        if !queued {
            self.entries.remove(local, Rest::Short, tick.now);
            return self.counters.drop(DropReason::HandshakeQueue);
        }
        self.counters.add(Count::AttachInits);
        self.backlog.queue();
        self.repeats.note(identity, source.peer, local, tick.now);
        self.waiting.push_back((tick.now.saturating_add(HANDSHAKE_WAIT), local));
        self.make_room(tick.now);
    }

    /// The same first message again: its reply was lost, or is still being made.
    fn repeat_answer<W: Wire>(&mut self, local: u32, wire: &mut W) {
        match self.entries.get(local) {
            Some(Entry::Handshake(handshake)) if handshake.stage == Stage::Answered => {
                let slot = wire.to_client(handshake.path, handshake.reply.len());
                slot.copy_from_slice(&handshake.reply);
                self.counters.add(Count::AttachReplies);
            }
            Some(Entry::Handshake(_) | Entry::Reserved | Entry::Session(_) | Entry::Retired(_)) | None => {
                self.counters.drop(DropReason::RepeatedInit);
            }
        }
    }

    /// Lets the oldest unconfirmed handshakes give way.
    fn make_room(&mut self, now: Nanos) {
        while self.waiting.len() > self.limits.handshakes_max {
            let Some((_, local)) = self.waiting.pop_front() else { break };
            self.drop_unconfirmed(local, now);
        }
    }

    fn drop_unconfirmed(&mut self, local: u32, now: Nanos) {
        let answered = match self.entries.get(local) {
            Some(Entry::Reserved) => false,
            Some(Entry::Handshake(handshake)) if handshake.stage == Stage::Answered => true,
            Some(Entry::Handshake(_) | Entry::Session(_) | Entry::Retired(_)) | None => return,
        };
        self.entries.remove(local, Rest::Short, now);
        if answered {
            self.answered -= 1;
            self.counters.drop(DropReason::Unconfirmed);
            self.parking.take(Place::Claim(local));
        }
    }

    /// Forgets handshakes, claims and rejections whose time is over.
    pub(super) fn expire_handshakes(&mut self, now: Nanos) {
        while let Some((_, local)) = take_due(&mut self.waiting, now) {
            self.drop_unconfirmed(local, now);
        }
        while let Some((_, local)) = take_due(&mut self.claiming, now) {
            let stage = match self.entries.get(local) {
                Some(Entry::Handshake(handshake)) => &handshake.stage,
                Some(Entry::Reserved | Entry::Session(_) | Entry::Retired(_)) | None => continue,
            };
            match stage {
                Stage::Answered | Stage::Rejected(_) => continue,
                Stage::Claiming => self.claim_ended(local),
            }
            self.entries.remove(local, Rest::Short, now);
            self.parking.take(Place::Claim(local));
        }
        while let Some((_, local)) = take_due(&mut self.rejected, now) {
            self.forget_rejected(local, now);
        }
    }

    /// The outcome of this handshake is repeated no longer.
    pub(super) fn forget_rejected(&mut self, local: u32, now: Nanos) {
        if let Some(Entry::Handshake(handshake)) = self.entries.get(local)
            && matches!(handshake.stage, Stage::Rejected(_))
        {
            self.entries.remove(local, Rest::Short, now);
        }
    }

    /// A handshake thread has answered a first message: keeps the keys and sends the reply.
    pub(super) fn handle_answered<W: Wire>(&mut self, answered: Answered, now: Nanos, wire: &mut W) {
        self.backlog.unqueue(now);
        let Answered { keys, device, intent, path, reply, key_set } = answered;
        let local = keys.own_index.local();
        // The reservation may have given way meanwhile; then the client asks again.
        let Some(entry @ Entry::Reserved) = self.entries.get_mut(local) else { return };
        let stage = Stage::Answered;
        wire.to_client(path, reply.len()).copy_from_slice(&reply);
        *entry = Entry::Handshake(Box::new(Handshake { keys, device, intent, path, stage, reply, key_set }));
        self.answered += 1;
        self.counters.add(Count::AttachReplies);
    }

    /// A handshake thread has refused a first message.
    pub(super) fn handle_refused(&mut self, index: ReceiverIndex, reason: DropReason, now: Nanos) {
        self.backlog.unqueue(now);
        if matches!(self.entries.get(index.local()), Some(Entry::Reserved)) {
            self.entries.remove(index.local(), Rest::Short, now);
        }
        self.counters.drop(reason);
    }

    /// Notes that a claim waits for control until [`CLAIM_WAIT`] has passed.
    pub(super) fn note_claim(&mut self, local: u32, now: Nanos) {
        self.answered -= 1;
        self.claims += 1;
        self.claiming.push_back((now.saturating_add(CLAIM_WAIT), local));
    }
}
