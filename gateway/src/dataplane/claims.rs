//! Becoming, being and ceasing to be a session's owner: control's verdicts and orders.

use std::time::Duration;

use jump_crypto::ids::{AttachSeq, Epoch, SessionId};
use jump_crypto::record::Content;
use jump_session::client::BASE_MTU;
use jump_session::frame::{AttachResult, CAPABILITY_MTU, Frame};
use jump_session::gateway::{GatewaySession, Nanos, Ownership};
use jump_session::ownership::Tenure;
use jump_session::reason::Reason;
use jump_transport::tun::ErrorPace;

use super::fair::Share;
use super::policy::Bounds;
use super::route::Target;
use super::session::{Entry, Handshake, Outcome, Retired, Retirement, Session, Stage, Traffic};
use super::slab::Rest;
use super::timers::Armed;
use super::{
    Activation, CLAIM_WAIT, Carried, Count, DataPlane, Event, GIVEN_UP_MEMORY, Note, OUTCOME_WAIT, Place,
    RETIRED_WAIT, ReceiverIndex, StopCause, Tick, Verdict, What, Wire, encode, seal_to_client, send_frame,
    send_key_set,
};

/// What is remembered of a session that was given up here.
#[derive(Debug, Clone)]
pub(super) struct GivenUp {
    /// The highest epoch that was given up.
    epoch: Epoch,
    /// Whether the session has ended for good.
    ended: bool,
    /// When it is forgotten.
    pub(super) until: Nanos,
    /// Its path switches here within a minute before it stopped, as ages at that time.
    switches: Switches,
}

/// Ages of path switches at some time.
#[derive(Debug, Clone, Default)]
struct Switches {
    at: Nanos,
    ages: Vec<Duration>,
}

impl DataPlane {
    /// Control has decided the claim of a handshake.
    pub(super) fn handle_verdict<W: Wire>(
        &mut self,
        tick: Tick,
        index: ReceiverIndex,
        verdict: Verdict,
        wire: &mut W,
    ) {
        let local = index.local();
        match (self.entries.get(local), verdict) {
            (Some(Entry::Handshake(handshake)), verdict) if handshake.stage == Stage::Claiming => {
                self.backlog.decided(tick.now, self.claims);
                match verdict {
                    Verdict::Accepted(activation) => self.accept(local, activation, tick, wire),
                    Verdict::Rejected(result) => self.reject(local, result, tick, wire),
                }
            }
            // The claim has timed out here: the client asks again, by the same attempt, and gets the same answer.
            (
                Some(Entry::Handshake(_) | Entry::Reserved | Entry::Session(_) | Entry::Retired(_)) | None,
                Verdict::Accepted(_) | Verdict::Rejected(_),
            ) => {}
        }
    }

    pub(super) fn reject<W: Wire>(&mut self, local: u32, result: AttachResult, tick: Tick, wire: &mut W) {
        self.claim_ended(local);
        let Some(Entry::Handshake(handshake)) = self.entries.get_mut(local) else { return };
        let frame = encode(&Frame::AttachResult(Box::new(result)));
        let sealing = &mut handshake.keys.sealing;
        seal_to_client(sealing, Content::Control, handshake.path, &frame, wire, &mut self.counters);
        handshake.stage = Stage::Rejected(frame);
        self.rejected.push_back((tick.now.saturating_add(CLAIM_WAIT), local));
        self.parking.take(Place::Claim(local));
        self.counters.add(Count::Rejected);
        // The oldest give way: who is refused may be a stranger, and must not fill the table for the others.
        if self.rejected.len() > self.limits.claims_max
            && let Some((_, oldest)) = self.rejected.pop_front()
        {
            self.forget_rejected(oldest, tick.now);
        }
    }

    fn accept<W: Wire>(&mut self, local: u32, activation: Activation, tick: Tick, wire: &mut W) {
        let id = activation.session;
        // An order to stop this epoch, or the news of a later one, may overtake the answer that gave it (ownership.md, O3).
        let newest = activation.inner.iter().filter_map(|address| self.routes.epoch_of(address, id)).max();
        let is_past = newest.is_some_and(|newest| newest > activation.epoch);
        if is_past || !self.tenure(id).accept(activation.epoch) {
            let refused = self.overtaken(local, &activation, newest);
            return self.reject(local, refused, tick, wire);
        }
        // Older keys of the same session end here, before the new ones are used. What the client sealed with them before it
        // hears of that is under way: they still open it for a while.
        self.claim_ended(local);
        let (mut replaced, mut anchors) = (None, None);
        if let Some(old) = self.carried(id)
            && let Some(Entry::Session(mut old_session)) = self.entries.replace(old, Entry::Reserved)
        {
            self.census.leave(old_session.machine.state());
            anchors = old_session.anchors.take();
            replaced = Some(self.retire(old, *old_session, Retirement::Replaced, tick));
        }
        let Some(Entry::Handshake(handshake)) = self.entries.replace(local, Entry::Reserved) else { return };
        let Handshake { keys, device, path, key_set, intent, .. } = *handshake;
        // A client that tells its MTU takes until then what the inner network carries; another takes what control says.
        let given = match &activation.result {
            AttachResult::Accepted(accepted) => accepted.mtu,
            AttachResult::Rejected { .. } => BASE_MTU,
        };
        let mtu_max = self.limits.mtu_max.max(given);
        let tells = intent.capabilities & CAPABILITY_MTU != 0;
        let ownership = Ownership {
            mtu: if tells { mtu_max } else { given },
            mtu_max,
            epoch: activation.epoch,
            path,
            expires: activation.expires,
            idle_transport_max: activation.idle_transport_max,
            switches_per_minute_max: activation.switches_per_minute_max,
            switch_cooldown: activation.switch_cooldown,
            switch_ages: activation.switch_ages,
        };
        let mut machine = GatewaySession::accepted(&ownership, tick.now);
        if let Some(replaced) = &replaced {
            machine.replaces(replaced);
        }
        let anchors = if replaced.is_some() && anchors.is_none() {
            None
        } else {
            self.first_anchors(id, activation.inner, anchors, tick.now)
        };
        let frame = encode(&Frame::AttachResult(Box::new(activation.result)));
        let mut session = Box::new(Session {
            opening: keys.opening,
            sealing: keys.sealing,
            machine,
            inner: activation.inner,
            id,
            device,
            correlation: activation.correlation,
            bounds: Bounds::of(self.newest_policy(id, activation.epoch).unwrap_or(activation.policy)),
            outcome: None,
            armed: Armed::NEVER,
            share: Share::default(),
            traffic: Traffic::default(),
            swept: u64::MAX,
            errors: ErrorPace::default(),
            anchors,
        });
        seal_to_client(&mut session.sealing, Content::Control, path, &frame, wire, &mut self.counters);
        send_key_set(&mut session.sealing, path, key_set, wire, &mut self.counters);
        session.outcome = Some(Box::new(Outcome { frame, until: tick.now.saturating_add(OUTCOME_WAIT) }));
        self.census.enter(session.machine.state());
        self.entries.replace(local, Entry::Session(session));
        self.by_session.insert(id, local);
        self.counters.add(Count::Accepted);
        self.note(local, What::Activated);
        for address in activation.inner.iter() {
            self.routes.set(address, id, activation.epoch, Target::Local(local));
        }
        self.take_early(id, tick, wire);
        self.release_claim_packets(local, tick, wire);
        for address in activation.inner.iter() {
            self.release_parked(tick, address, wire);
        }
        if let Some((reason, targets)) = self.draining.clone() {
            self.ask_to_move(local, reason, &targets, tick, wire);
        }
        self.arm(local);
    }

    /// What this run may do with a session: the epoch that it carries, and the epochs that it has given up.
    fn tenure(&self, id: SessionId) -> Tenure {
        let given_up = self.given_up.get(&id).map_or(Epoch(0), |given_up| given_up.epoch);
        Tenure::of(self.carried_epoch(id), given_up)
    }

    /// The final answer to a claim whose acceptance was overtaken: a newer attempt has won, or the session has ended. It
    /// carries the newest epoch that is known here; the client goes past its own attempt's number.
    fn overtaken(&self, local: u32, activation: &Activation, newest: Option<Epoch>) -> AttachResult {
        let id = activation.session;
        let given_up = self.given_up.get(&id);
        let known = [newest, given_up.map(|given_up| given_up.epoch), self.carried_epoch(id)];
        let current_attach_seq = match self.entries.get(local) {
            Some(Entry::Handshake(handshake)) => handshake.intent.attach_seq,
            Some(Entry::Reserved | Entry::Session(_) | Entry::Retired(_)) | None => AttachSeq(0),
        };
        AttachResult::Rejected {
            reason: match given_up {
                Some(GivenUp { ended: true, .. }) => Reason::SessionTerminated,
                Some(_) | None => Reason::SupersededAttempt,
            },
            current_epoch: known
                .into_iter()
                .flatten()
                .max()
                .map_or(activation.epoch, |epoch| epoch.max(activation.epoch)),
            current_attach_seq,
            retry_after: Duration::ZERO,
        }
    }

    /// A claim that waited for control does so no longer.
    pub(super) fn claim_ended(&mut self, local: u32) {
        self.claims -= 1;
        if let Some(session) = self.claimed_session(local) {
            session.machine.claim_ended();
        }
    }

    /// The session that a handshake claims, when it is carried here.
    pub(super) fn claimed_session(&mut self, local: u32) -> Option<&mut Session> {
        let Some(Entry::Handshake(handshake)) = self.entries.get(local) else { return None };
        // New keys inside the epoch claim nothing.
        let id = handshake.intent.session.filter(|_| !handshake.intent.rekey)?;
        match self.entries.get_mut(self.carried(id)?) {
            Some(Entry::Session(session)) => Some(session),
            Some(Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => None,
        }
    }

    /// Ages of the path switches that this gateway made of a session that it carries or has given up.
    pub(super) fn switch_ages(&self, id: SessionId, now: Nanos) -> Vec<Duration> {
        let carried = self.carried(id).and_then(|local| self.entries.get(local));
        if let Some(Entry::Session(session)) = carried {
            return session.machine.switch_ages(now);
        }
        let Some(GivenUp { switches, .. }) = self.given_up.get(&id) else { return Vec::new() };
        let since = Duration::from_nanos(now.saturating_sub(switches.at));
        switches.ages.iter().map(|age| *age + since).collect()
    }

    /// Stops a session in `epoch` and every earlier one. Nothing of it is forwarded afterwards.
    pub(super) fn handle_stop<W: Wire>(
        &mut self,
        tick: Tick,
        id: SessionId,
        epoch: Epoch,
        cause: StopCause,
        authority: bool,
        wire: &mut W,
    ) {
        let stops = self.tenure(id).give_up(epoch);
        self.remember_given_up(id, epoch, matches!(cause, StopCause::Terminated(_)), tick.now);
        if !stops {
            return;
        }
        let Some(local) = self.carried(id) else { return };
        let Some(Entry::Session(session)) = self.entries.get_mut(local) else { return };
        let path = session.machine.path();
        let farewell = match &cause {
            StopCause::Moved => None,
            StopCause::Terminated(reason) => Some(Frame::Terminated { reason: *reason }),
            StopCause::Released(targets) => {
                Some(Frame::Migrate { reason: Reason::Drained, targets: targets.clone() })
            }
        };
        if let Some(frame) = farewell
            && authority
        {
            send_frame(&mut session.sealing, path, &frame, wire, &mut self.counters);
        }
        let ages = session.machine.switch_ages(tick.now);
        if let Some(given_up) = self.given_up.get_mut(&id) {
            given_up.switches = Switches { at: tick.now, ages };
        }
        self.fence_entry(local, &cause, tick);
    }

    fn fence_entry(&mut self, local: u32, cause: &StopCause, tick: Tick) {
        let Some(Entry::Session(session)) = self.entries.get_mut(local) else { return };
        match cause {
            StopCause::Moved | StopCause::Released(_) => session.machine.fence(&mut self.effects),
            StopCause::Terminated(reason) => {
                session.machine.terminate(*reason, &mut self.effects);
            }
        }
        self.note_changes(local);
        let Some(Entry::Session(mut session)) = self.entries.replace(local, Entry::Reserved) else { return };
        self.by_session.remove(&session.id);
        self.census.leave(session.machine.state());
        self.counters.add(Count::Fenced);
        let inner = session.inner;
        if let StopCause::Terminated(_) = cause {
            for address in inner.iter() {
                self.routes.remove(address, session.id);
                self.parking.take(Place::Down(address));
                self.parking.take(Place::Up(address));
            }
            self.entries.remove(local, Rest::Long, tick.now);
            return;
        }
        for address in inner.iter() {
            if let Some(route) = self.routes.get_mut(address)
                && route.session == session.id
                && route.target == Target::Local(local)
            {
                route.target = Target::Nobody;
            }
        }
        self.leave(&mut session, tick.now);
        self.retire(local, *session, Retirement::Fenced, tick);
    }

    /// Keeps the opening key of a session that stopped here, for what is under way; its machine is left over.
    fn retire(&mut self, local: u32, session: Session, cause: Retirement, tick: Tick) -> GatewaySession {
        let Session { opening, inner, id, machine, .. } = session;
        self.by_session.remove(&id);
        self.entries.replace(local, Entry::Retired(Box::new(Retired { opening, inner, session: id, cause })));
        self.retired.push_back((tick.now.saturating_add(RETIRED_WAIT), local));
        machine
    }

    pub(super) fn remember_given_up(&mut self, id: SessionId, epoch: Epoch, ended: bool, now: Nanos) {
        let until = now.saturating_add(GIVEN_UP_MEMORY);
        let switches = Switches::default();
        let given_up = self.given_up.entry(id).or_insert(GivenUp { epoch, ended, until, switches });
        given_up.epoch = given_up.epoch.max(epoch);
        given_up.ended |= ended;
        given_up.until = until;
        self.given_up_order.push_back((until, id));
    }

    /// A session ends by its own machine's decision.
    pub(super) fn end_session(&mut self, local: u32, reason: Reason, now: Nanos) {
        let Some(Entry::Session(session)) = self.entries.remove(local, Rest::Long, now) else { return };
        self.by_session.remove(&session.id);
        self.census.leave(session.machine.state());
        for address in session.inner.iter() {
            self.routes.remove(address, session.id);
        }
        let epoch = session.machine.epoch();
        self.remember_given_up(session.id, epoch, true, now);
        let carried = Carried { session: session.id, epoch, correlation: session.correlation };
        self.emit(Event::Ended(carried, reason));
    }

    /// Asks every client to move to one of `targets`; sessions that come later are asked as well.
    pub(super) fn handle_drain<W: Wire>(
        &mut self,
        tick: Tick,
        reason: Reason,
        targets: Vec<std::net::SocketAddr>,
        wire: &mut W,
    ) {
        let locals: Vec<u32> = self.by_session.values().copied().collect();
        for local in locals {
            self.ask_to_move(local, reason, &targets, tick, wire);
        }
        self.draining = Some((reason, targets));
    }

    /// Asks one client to move. False when the session is not carried here in `epoch`.
    pub(super) fn handle_move<W: Wire>(
        &mut self,
        tick: Tick,
        id: SessionId,
        epoch: Epoch,
        targets: &[std::net::SocketAddr],
        wire: &mut W,
    ) -> bool {
        let Some(local) = self.carried(id).filter(|_| self.carried_epoch(id) == Some(epoch)) else {
            return false;
        };
        self.ask_to_move(local, Reason::OperatorMove, targets, tick, wire);
        true
    }

    fn ask_to_move<W: Wire>(
        &mut self,
        local: u32,
        reason: Reason,
        targets: &[std::net::SocketAddr],
        tick: Tick,
        wire: &mut W,
    ) {
        if let Some(Entry::Session(session)) = self.entries.get_mut(local) {
            session.machine.ask_to_move(reason, targets.to_vec(), &mut self.effects);
            self.apply_effects(local, tick, wire);
            self.arm(local);
        }
    }

    /// The sessions carried here.
    pub(super) fn list(&self) -> Vec<Carried> {
        self.by_session
            .iter()
            .filter_map(|(id, local)| match self.entries.get(*local) {
                Some(Entry::Session(session)) => {
                    let (epoch, correlation) = (session.machine.epoch(), session.correlation);
                    Some(Carried { session: *id, epoch, correlation })
                }
                Some(Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => None,
            })
            .collect()
    }

    /// Says what happened to a session, if the queue has room.
    pub(super) fn note(&mut self, local: u32, what: What) {
        if let Some(Entry::Session(session)) = self.entries.get(local) {
            let note = Note {
                session: session.id,
                correlation: session.correlation,
                epoch: session.machine.epoch(),
                what,
            };
            self.send_note(note);
        }
    }

    fn note_changes(&mut self, local: u32) {
        for effect in std::mem::take(&mut self.effects) {
            if let jump_session::gateway::Effect::Changed { from, to, reason } = effect {
                self.census.change(from, to);
                self.note(local, What::Changed(from, to, reason));
            }
        }
    }
}
