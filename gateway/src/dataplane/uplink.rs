//! What comes from clients: their datagrams, directly or relayed by another gateway.

use jump_crypto::record::{Content, OpenError, RecordHeader};
use jump_crypto::wire::DatagramType;
use jump_session::frame::{Accepted, AttachResult, Frame};
use jump_session::gateway::{Nanos, Received};
use jump_session::ids::Epoch;
use jump_session::path::Path;
use jump_session::reason::Reason;
use jump_transport::tun::apply_outer_ecn;
use std::time::Duration;

use super::egress::{Exits, leave_elsewhere};
use super::inner::InnerHeader;
use super::links::{Kind, encode_source};
use super::policy::Way;
use super::route::Target;
use super::session::{Entry, Handshake, Outcome, Retired, Retirement, Session, Stage};
use super::{
    Confirmed, Count, DataPlane, DropReason, Event, OUTCOME_WAIT, Place, RETIRED_WAIT, ReceiverIndex, Tick,
    Wire, encode, seal_to_client, send_frame, send_key_set,
};

/// How a record reached this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// On the clients' socket.
    Direct,
    /// Through another gateway.
    Relayed,
}

pub(super) fn refusal(error: OpenError) -> DropReason {
    match error {
        OpenError::Malformed => DropReason::Malformed,
        OpenError::Replay(_) => DropReason::Replay,
        OpenError::Authentication | OpenError::LimitReached => DropReason::Authentication,
    }
}

impl DataPlane {
    /// A datagram on the clients' socket. The caller has checked the guard for the batch.
    pub fn handle_client<W: Wire>(
        &mut self,
        tick: Tick,
        source: impl Into<Path>,
        datagram: &mut [u8],
        wire: &mut W,
    ) {
        let source = source.into();
        match DatagramType::of(datagram) {
            Some(DatagramType::Record) => self.handle_record(tick, source, datagram, Arrival::Direct, wire),
            Some(DatagramType::AttachInit) => self.handle_init(tick, source, datagram, wire),
            Some(
                DatagramType::AttachReply
                | DatagramType::CookieReply
                | DatagramType::ReattachHint
                | DatagramType::Busy
                | DatagramType::Mesh,
            ) => self.counters.drop(DropReason::UnknownType),
            None => self.counters.drop(DropReason::UnknownType),
        }
    }

    /// As [`Self::handle_client`], for a datagram whose outer header had these ECN bits.
    pub fn handle_marked_client<W: Wire>(
        &mut self,
        tick: Tick,
        source: impl Into<Path>,
        ecn: u8,
        datagram: &mut [u8],
        wire: &mut W,
    ) {
        self.outer_ecn = ecn;
        self.handle_client(tick, source, datagram, wire);
        self.outer_ecn = 0;
    }

    /// A datagram of a client while this node's authority has run out: nothing is done with it. Who still sends records of a
    /// session here is told to look for another gateway, which the session needs before this one may serve it again.
    pub fn refuse_client<W: Wire>(
        &mut self,
        tick: Tick,
        source: impl Into<Path>,
        datagram: &[u8],
        wire: &mut W,
    ) {
        self.counters.drop(DropReason::Guard);
        let Some(header) = RecordHeader::parse(datagram) else { return };
        let is_own = header.receiver.node() == self.number;
        if is_own && matches!(self.entries.get(header.receiver.local()), Some(Entry::Session(_))) {
            self.hint(tick, source.into(), header.receiver, wire);
        }
    }

    pub(super) fn handle_record<W: Wire>(
        &mut self,
        tick: Tick,
        source: Path,
        record: &mut [u8],
        arrival: Arrival,
        wire: &mut W,
    ) {
        let Some(header) = RecordHeader::parse(record) else {
            return self.counters.drop(DropReason::Malformed);
        };
        if header.receiver.node() != self.number {
            return self.handle_stray(tick, source, header.receiver, record, arrival, wire);
        }
        let local = header.receiver.local();
        match self.entries.get_mut(local) {
            Some(Entry::Session(session)) => {
                if !self.fairness.allows(&session.share) {
                    return self.counters.drop(DropReason::SessionShare);
                }
                let len = record.len();
                let opened = match session.opening.open(record) {
                    Ok(opened) => opened,
                    Err(error) => {
                        return self.counters.drop_of(session.suspect(refusal(error), source, None));
                    }
                };
                self.fairness.charge(&mut session.share);
                let frame = match opened.content {
                    Content::Packet => None,
                    Content::Control => Some(Frame::decode(opened.plaintext)),
                };
                let received = Received {
                    source,
                    counter: opened.counter,
                    newest: opened.newest,
                    len,
                    probes: matches!(frame, Some(Ok(Frame::PathChallenge { .. }))),
                };
                session.machine.on_record(
                    tick.now,
                    received,
                    &self.limits.timing,
                    &mut *self.entropy,
                    &mut self.effects,
                );
                match frame {
                    None if !apply_outer_ecn(opened.plaintext, self.outer_ecn) => {
                        self.counters.drop(DropReason::Congestion);
                    }
                    None => {
                        let exits = Exits { links: &mut self.links, parking: &mut self.parking };
                        deliver(session, opened.plaintext, tick.now, exits, wire, &mut self.counters);
                    }
                    Some(frame) => self.handle_frame(tick, local, source, frame.ok(), wire),
                }
                if !self.effects.is_empty() {
                    self.apply_effects(local, tick, wire);
                    self.arm(local);
                }
            }
            Some(Entry::Handshake(_)) => self.handle_handshake_record(tick, local, record, wire),
            Some(Entry::Retired(_)) => self.handle_retired_record(tick, local, record, wire),
            Some(Entry::Reserved) => self.counters.drop(DropReason::UnknownIndex),
            None => {
                self.counters.drop(DropReason::UnknownIndex);
                self.hint(tick, source, header.receiver, wire);
            }
        }
    }

    fn handle_frame<W: Wire>(
        &mut self,
        tick: Tick,
        local: u32,
        source: Path,
        frame: Option<Frame>,
        wire: &mut W,
    ) {
        let Some(Entry::Session(session)) = self.entries.get_mut(local) else { return };
        let Some(frame) = frame else { return self.counters.drop(DropReason::UnexpectedFrame) };
        if frame == Frame::Confirm {
            if let Some(outcome) = &session.outcome {
                let path = session.machine.path();
                seal_to_client(
                    &mut session.sealing,
                    Content::Control,
                    path,
                    &outcome.frame,
                    wire,
                    &mut self.counters,
                );
            }
        } else if session.machine.on_frame(tick.now, source, &frame, &mut self.effects).is_err() {
            self.counters.drop(DropReason::UnexpectedFrame);
        }
    }

    /// A record under the keys of a handshake that is not yet a session.
    fn handle_handshake_record<W: Wire>(&mut self, tick: Tick, local: u32, record: &mut [u8], wire: &mut W) {
        let Some(Entry::Handshake(handshake)) = self.entries.get_mut(local) else { return };
        let opened = match handshake.keys.opening.open(record) {
            Ok(opened) => opened,
            Err(error) => return self.counters.drop(refusal(error)),
        };
        match opened.content {
            Content::Packet => match self.parking.park(Place::Claim(local), opened.plaintext, tick.now) {
                Ok(()) => self.counters.add(Count::Parked),
                Err(reason) => self.counters.drop(reason),
            },
            Content::Control => match Frame::decode(opened.plaintext) {
                Ok(Frame::Confirm) => self.handle_confirm(tick, local, wire),
                Ok(_) => self.counters.drop(DropReason::NotActive),
                Err(_) => self.counters.drop(DropReason::UnexpectedFrame),
            },
        }
    }

    fn handle_confirm<W: Wire>(&mut self, tick: Tick, local: u32, wire: &mut W) {
        let index = self.index(local);
        let Some(Entry::Handshake(handshake)) = self.entries.get_mut(local) else { return };
        match &handshake.stage {
            Stage::Claiming => self.say_pending(local, wire),
            Stage::Rejected(result) => {
                let keys = &mut handshake.keys.sealing;
                seal_to_client(keys, Content::Control, handshake.path, result, wire, &mut self.counters);
            }
            Stage::Answered if handshake.intent.rekey => self.confirm_rekey(tick, local, wire),
            Stage::Answered => {
                let full = self.by_session.len() + self.claims >= self.limits.sessions_max;
                if full || self.claims >= self.limits.claims_max {
                    self.counters.drop(DropReason::HandshakeQueue);
                    return self.say_pending(local, wire);
                }
                let (device, intent) = (handshake.device, handshake.intent.clone());
                let (handshake_hash, path) = (handshake.keys.handshake_hash, handshake.path);
                let claimed = self.claimed_session(local);
                let switch_ages =
                    claimed.map_or_else(Vec::new, |session| session.machine.switch_ages(tick.now));
                let confirmed =
                    Box::new(Confirmed { index, device, intent, handshake_hash, path, switch_ages });
                // A full queue: the client repeats its confirmation.
                if self.events.try_send(Event::Confirmed(confirmed)).is_err() {
                    return self.counters.drop(DropReason::HandshakeQueue);
                }
                if let Some(session) = self.claimed_session(local) {
                    session.machine.claim_waits();
                }
                let Some(Entry::Handshake(handshake)) = self.entries.get_mut(local) else { return };
                handshake.stage = Stage::Claiming;
                self.counters.add(Count::Confirms);
                self.note_claim(local, tick.now);
            }
        }
    }

    /// The claim waits for its turn or for control: the client should go on waiting here.
    fn say_pending<W: Wire>(&mut self, local: u32, wire: &mut W) {
        let Some(Entry::Handshake(handshake)) = self.entries.get_mut(local) else { return };
        send_frame(&mut handshake.keys.sealing, handshake.path, &Frame::Pending, wire, &mut self.counters);
    }

    /// New keys inside the epoch: no store is asked, because the owner does not change.
    fn confirm_rekey<W: Wire>(&mut self, tick: Tick, local: u32, wire: &mut W) {
        let Some(Entry::Handshake(handshake)) = self.entries.get(local) else { return };
        let old = handshake.intent.session.and_then(|id| self.by_session.get(&id)).copied();
        let current = old.filter(|old| match self.entries.get(*old) {
            Some(Entry::Session(session)) => {
                session.machine.forwards()
                    && session.device == handshake.device
                    && session.machine.epoch() == handshake.intent.last_epoch
            }
            Some(Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => false,
        });
        self.note_claim(local, tick.now);
        let Some(old) = current else {
            let refused = AttachResult::Rejected {
                reason: Reason::StaleEpoch,
                current_epoch: Epoch(0),
                current_attach_seq: jump_session::ids::AttachSeq(0),
                retry_after: Duration::ZERO,
            };
            return self.reject(local, refused, tick, wire);
        };
        self.swap_keys(tick, old, local, wire);
    }

    fn swap_keys<W: Wire>(&mut self, tick: Tick, old: u32, new: u32, wire: &mut W) {
        let Some(Entry::Handshake(handshake)) = self.entries.replace(new, Entry::Reserved) else { return };
        self.claims -= 1;
        let Some(Entry::Session(mut session)) = self.entries.replace(old, Entry::Reserved) else { return };
        let Handshake { keys, key_set, .. } = *handshake;
        session.sealing = keys.sealing;
        session.machine.rekeyed();
        let retired = Retired {
            opening: std::mem::replace(&mut session.opening, keys.opening),
            inner: session.inner,
            session: session.id,
            cause: Retirement::Replaced,
        };
        self.entries.replace(old, Entry::Retired(Box::new(retired)));
        self.retired.push_back((tick.now.saturating_add(RETIRED_WAIT), old));
        session.armed = super::Armed::NEVER;
        self.by_session.insert(session.id, new);
        for address in session.inner.iter() {
            if let Some(route) = self.routes.get_mut(address)
                && route.target == Target::Local(old)
            {
                route.target = Target::Local(new);
            }
        }
        let renewed = encode(&Frame::AttachResult(Box::new(renewed(&session))));
        let path = session.machine.path();
        seal_to_client(&mut session.sealing, Content::Control, path, &renewed, wire, &mut self.counters);
        send_key_set(&mut session.sealing, path, key_set, wire, &mut self.counters);
        session.outcome =
            Some(Box::new(Outcome { frame: renewed, until: tick.now.saturating_add(OUTCOME_WAIT) }));
        self.entries.replace(new, Entry::Session(session));
        self.counters.add(Count::Rekeys);
        self.note(new, super::What::Rekeyed);
        self.arm(new);
        self.release_claim_packets(new, tick, wire);
    }

    /// A record under keys that only open.
    fn handle_retired_record<W: Wire>(&mut self, tick: Tick, local: u32, record: &mut [u8], wire: &mut W) {
        let Some(Entry::Retired(retired)) = self.entries.get_mut(local) else { return };
        let opened = match retired.opening.open(record) {
            Ok(opened) => opened,
            Err(error) => return self.counters.drop(refusal(error)),
        };
        let (session, inner) = (retired.session, retired.inner);
        match (retired.cause, opened.content) {
            (Retirement::Replaced | Retirement::Fenced, Content::Control) => {
                // A fenced owner answers nothing: the client must learn that it is gone.
                self.counters.drop(DropReason::NotActive);
            }
            (Retirement::Replaced | Retirement::Fenced, Content::Packet) => {
                let Some(header) = InnerHeader::parse(opened.plaintext) else {
                    return self.counters.drop(DropReason::InnerMalformed);
                };
                if !inner.has(header.source) {
                    return self.counters.drop(DropReason::InnerSource);
                }
                // It may have come back here since.
                let current = self.by_session.get(&session).and_then(|local| self.entries.get_mut(*local));
                if let Some(Entry::Session(session)) = current {
                    let exits = Exits { links: &mut self.links, parking: &mut self.parking };
                    return deliver(session, opened.plaintext, tick.now, exits, wire, &mut self.counters);
                }
                self.hand_on_uplink(tick, header.source, opened.plaintext, wire);
            }
        }
    }

    /// An inner packet of a client whose session went elsewhere: to the new owner, now or once it is known.
    fn hand_on_uplink<W: Wire>(
        &mut self,
        tick: Tick,
        address: std::net::IpAddr,
        packet: &[u8],
        wire: &mut W,
    ) {
        match self.routes.get(address).map(|route| route.target) {
            Some(Target::Node(node)) => {
                if let Some(link) = self.links.get_mut(node) {
                    if link.send(Kind::UplinkPacket, &[], packet, wire, &mut self.counters) {
                        self.counters.add(Count::RelayedOut);
                    }
                    return;
                }
            }
            Some(Target::Local(_)) => return self.counters.drop(DropReason::NotActive),
            Some(Target::Nobody) => {}
            None => return self.counters.drop(DropReason::NoRoute),
        }
        self.park(Place::Up(address), packet, tick.now);
    }

    /// A record whose index another node gave out.
    fn handle_stray<W: Wire>(
        &mut self,
        tick: Tick,
        source: Path,
        index: ReceiverIndex,
        record: &[u8],
        arrival: Arrival,
        wire: &mut W,
    ) {
        if arrival == Arrival::Relayed {
            return self.counters.drop(DropReason::UnknownNode);
        }
        match self.links.by_number_mut(index.node()) {
            Some(link) => {
                if link.send(Kind::StrayRecord, &encode_source(source.peer), record, wire, &mut self.counters)
                {
                    self.counters.add(Count::StraysOut);
                }
            }
            None => {
                self.counters.drop(DropReason::UnknownNode);
                self.hint(tick, source, index, wire);
            }
        }
    }

    fn hint<W: Wire>(&mut self, tick: Tick, source: Path, index: ReceiverIndex, wire: &mut W) {
        let Some(gate) = self.gates.first() else { return };
        if self.hints.take(self.limits.hint_rate, tick.now) {
            let hint = gate.hint_datagram(index);
            wire.to_client(source, hint.len()).copy_from_slice(&hint);
            self.counters.add(Count::Hints);
        }
    }
}

/// What confirms a rekey: the same session in the same epoch. The rest stands as the attach has said it; there is no
/// grant, because the owner has not changed.
fn renewed(session: &Session) -> AttachResult {
    AttachResult::Accepted(Accepted {
        session: session.id,
        epoch: session.machine.epoch(),
        inner: session.inner.iter().collect(),
        grant: Vec::new(),
        routes: Vec::new(),
        dns: Vec::new(),
        mtu: 1280,
        expires_in: Duration::ZERO,
        lease: Duration::ZERO,
        roster: Vec::new(),
        doors: Vec::new(),
        correlation: session.correlation,
        switches_per_minute_max: 0,
        switch_cooldown: Duration::ZERO,
        recovery_window: Duration::ZERO,
    })
}

/// Hands a client's inner packet to the inner network, if it may go there: here, or by the gateway that translates its flow.
#[inline]
pub(super) fn deliver<W: Wire>(
    session: &mut Session,
    packet: &[u8],
    now: Nanos,
    exits: Exits<'_>,
    wire: &mut W,
    counters: &mut super::Counters,
) {
    if !session.machine.forwards() {
        return counters.drop(DropReason::NotActive);
    }
    let Some(header) = InnerHeader::parse(packet) else {
        return counters.drop(DropReason::InnerMalformed);
    };
    // First, because every Linux device solicits routers from its link-local address: that is no spoofing.
    if !header.destination_is_routed() {
        return counters.drop(DropReason::InnerScope);
    }
    if !session.inner.has(header.source) {
        let (path, to) = (session.machine.path(), Some(header.destination));
        return counters.drop_of(session.suspect(DropReason::InnerSource, path, to));
    }
    if !session.may_reach(header.destination) {
        let (path, to) = (session.machine.path(), Some(header.destination));
        return counters.drop_of(session.suspect(DropReason::InnerDestination, path, to));
    }
    let elsewhere = if session.anchors.is_some() {
        leave_elsewhere(session, (packet, &header), now, exits, wire, counters)
    } else {
        None
    };
    match elsewhere {
        Some(true) => {}
        Some(false) => return,
        None if !session.takes(Way::FromClient, packet.len(), now) => {
            return counters.drop(DropReason::RateLimit);
        }
        None => wire.to_inner(packet),
    }
    counters.add(Count::PacketsUp);
    counters.add_many(Count::BytesUp, packet.len() as u64);
    session.traffic.packets_up += 1;
    session.traffic.bytes_up += packet.len() as u64;
}
