//! Anchored egress: flows that the kernel of one gateway translates go on through it when their session has moved.
//!
//! The gateway that gives a session up asks its kernel for the session's translated flows (off this thread), and tells
//! them to the next owner once it knows who that is. The next owner lets the session's packets wait for that list, for a
//! moment; then it sends what belongs to one of those flows to the gateway that translates it. Nothing here changes who
//! owns a session, or when.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::mpsc::SyncSender;

use jump_crypto::ids::{Epoch, Incarnation, SessionId};
use jump_session::gateway::Nanos;

use super::anchors::{Anchors, Exit};
use super::flow::Flow;
use super::handed::{self, AnchorName, Part};
use super::inner::InnerHeader;
use super::links::{Kind, Links};
use super::parking::ParkingLot;
use super::policy::{Bounds, Way};
use super::route::{NodeRef, Target};
use super::session::{Entry, Inner, Session};
use super::uplink::deliver;
use super::{BindingUpdate, Count, Counters, DataPlane, DropReason, Place, Tick, Wire, take_due};

/// How long a session's packets wait for the list of its last owner, in nanoseconds: what is parked of a stream of
/// 100 Mbit/s lasts for as long.
pub const LIST_WAIT: Nanos = 150_000_000;
/// A list is told again after each of these, in nanoseconds: a datagram may be lost.
const TELL_AGAIN: [Nanos; 2] = [10_000_000, 40_000_000];
/// Most lists that are kept because they came before the acceptance; beyond it they are dropped.
const EARLY_MAX: usize = 256;

/// What anchored egress needs of the rest of the worker.
pub struct EgressSetup {
    /// This run.
    pub incarnation: Incarnation,
    /// Questions to the kernel go here.
    pub questions: SyncSender<FlowQuestion>,
}

/// Asks which flows of a session the kernel translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowQuestion {
    /// The session.
    pub session: SessionId,
    /// The epoch that was given up.
    pub epoch: Epoch,
    /// Its addresses.
    pub inner: Inner,
}

/// What the kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowAnswer {
    /// The session.
    pub session: SessionId,
    /// The epoch of the question.
    pub epoch: Epoch,
    /// The flows, at most [`FLOWS_MAX`](super::FLOWS_MAX).
    pub flows: Vec<Flow>,
    /// Whether these are all.
    pub is_whole: bool,
}

/// A session that this gateway has given up.
struct Left {
    epoch: Epoch,
    inner: Inner,
    bounds: Option<Box<Bounds>>,
    /// Its anchors at other gateways when it left.
    held: Vec<(Flow, NodeRef)>,
    /// What the kernel said to the last question; `None` until then, and once it has been told.
    flows: Option<Vec<Flow>>,
    /// Whether the kernel translated flows of it by its last word.
    is_anchored: bool,
    /// Who has it now.
    owner: Option<(NodeRef, Epoch)>,
    /// How often that one was told.
    told: usize,
}

/// Part of a list, and who told it.
type EarlyPart = (NodeRef, Box<[u8]>);

/// The state of anchored egress.
pub(super) struct Egress {
    incarnation: Incarnation,
    questions: SyncSender<FlowQuestion>,
    /// Sessions given up here that others carry: what they may still send through this gateway.
    left: HashMap<SessionId, Left>,
    /// When whose list is told.
    telling: BTreeSet<(Nanos, SessionId)>,
    /// Sessions that wait for their list.
    waits: VecDeque<(Nanos, SessionId)>,
    /// Parts that came before the acceptance of the session that they are for.
    early: HashMap<SessionId, Vec<EarlyPart>>,
}

impl Egress {
    pub(super) fn new(setup: EgressSetup) -> Self {
        Self {
            incarnation: setup.incarnation,
            questions: setup.questions,
            left: HashMap::new(),
            telling: BTreeSet::new(),
            waits: VecDeque::new(),
            early: HashMap::new(),
        }
    }

    /// When something is due.
    pub(super) fn next(&self) -> Option<Nanos> {
        let telling = self.telling.first().map(|(due, _)| *due);
        telling.into_iter().chain(self.waits.front().map(|(due, _)| *due)).min()
    }

    fn ask(&mut self, session: SessionId, now: Nanos, counters: &mut Counters) {
        let Some(left) = self.left.get_mut(&session) else { return };
        (left.flows, left.told) = (None, 0);
        let question = FlowQuestion { session, epoch: left.epoch, inner: left.inner };
        if self.questions.try_send(question).is_err() {
            // Whoever has the session next must not wait for what will not come.
            left.flows = Some(Vec::new());
            counters.add(Count::AnchorsUnknown);
            self.ready(session, now);
        }
    }

    /// Has the list told if it is there and it is known to whom.
    fn ready(&mut self, session: SessionId, now: Nanos) {
        if self.left.get(&session).is_some_and(|left| left.flows.is_some() && left.owner.is_some()) {
            self.telling.insert((now, session));
        }
    }
}

/// What a client's packet may need besides the inner network.
pub(super) struct Exits<'a> {
    pub(super) links: &'a mut Links,
    pub(super) parking: &'a mut ParkingLot,
}

/// Sends a packet of a session that has anchors to where it leaves, if that is not here. `None` when it leaves here.
pub(super) fn leave_elsewhere<W: Wire>(
    session: &mut Session,
    (packet, header): (&[u8], &InnerHeader),
    now: Nanos,
    exits: Exits<'_>,
    wire: &mut W,
    counters: &mut Counters,
) -> Option<bool> {
    let anchors = session.anchors.as_mut()?;
    let link = match anchors.exit(packet, header, now, exits.links) {
        Exit::Here => return None,
        Exit::At(link) => link,
        Exit::Unknown => {
            match exits.parking.park(Place::Up(header.source), packet, now) {
                Ok(()) => counters.add(Count::Parked),
                Err(reason) => counters.drop(reason),
            }
            return Some(false);
        }
    };
    if !session.takes(Way::FromClient, packet.len(), now) {
        counters.drop(DropReason::RateLimit);
        return Some(false);
    }
    let sent = link.send(Kind::AnchoredPacket, &[], packet, wire, counters);
    counters.add_many(Count::AnchoredOut, u64::from(sent));
    Some(sent)
}

impl DataPlane {
    /// A session stops here for another gateway.
    pub(super) fn leave(&mut self, session: &mut Session, now: Nanos) {
        let Some(egress) = &mut self.egress else { return };
        if egress.left.len() >= self.limits.sessions_max.saturating_mul(2) {
            return self.counters.add(Count::AnchorsUnknown);
        }
        let held = session.anchors.take().map_or_else(Vec::new, |anchors| anchors.flows().collect());
        let left = Left {
            epoch: session.machine.epoch(),
            inner: session.inner,
            bounds: session.bounds.take(),
            held,
            flows: None,
            is_anchored: false,
            owner: None,
            told: 0,
        };
        egress.left.insert(session.id, left);
        egress.ask(session.id, now, &mut self.counters);
    }

    /// The kernel has answered.
    pub(super) fn handle_flows(&mut self, answers: Vec<FlowAnswer>, now: Nanos) {
        let Some(egress) = &mut self.egress else { return };
        for answer in answers {
            if !answer.is_whole {
                self.counters.add(Count::AnchorsUnknown);
            }
            let left = egress.left.get_mut(&answer.session).filter(|left| left.epoch == answer.epoch);
            let Some(left) = left else { continue };
            left.is_anchored = !answer.flows.is_empty();
            left.flows = Some(answer.flows);
            egress.ready(answer.session, now);
        }
    }

    /// News of a session that may have left here.
    pub(super) fn follow_left(&mut self, update: &BindingUpdate, target: Option<Target>, now: Nanos) {
        let Some(egress) = &mut self.egress else { return };
        let Some(left) = egress.left.get_mut(&update.session) else { return };
        let Some(target) = target else {
            egress.left.remove(&update.session);
            return;
        };
        let known = left.owner.map_or(left.epoch, |(_, epoch)| epoch);
        if update.epoch < known {
            return;
        }
        left.bounds = Bounds::of(update.policy.clone());
        let Target::Node(node) = target else { return };
        if update.epoch == known {
            return;
        }
        let is_first = left.owner.is_none();
        let is_same = left.owner.is_some_and(|(owner, _)| owner == node);
        left.owner = Some((node, update.epoch));
        if is_same {
            // New keys at the same gateway: it has the list.
            return;
        }
        if is_first {
            egress.ready(update.session, now);
        } else {
            // The one in between may be gone, and its word with it.
            left.held.clear();
            egress.ask(update.session, now, &mut self.counters);
        }
    }

    /// After a snapshot: forgets the sessions that are over.
    pub(super) fn forget_left(&mut self) {
        let Some(egress) = &mut self.egress else { return };
        let routes = &self.routes;
        egress.left.retain(|id, left| {
            left.inner.iter().any(|address| routes.get(address).is_some_and(|route| route.session == *id))
        });
    }

    /// Inner addresses of the sessions that were given up here and may have flows that this gateway translates.
    pub(super) fn anchored(&self) -> Vec<IpAddr> {
        let Some(egress) = &self.egress else { return Vec::new() };
        // Of some the kernel has not answered yet.
        let may_be = |left: &&Left| left.is_anchored || (left.flows.is_none() && left.told == 0);
        egress.left.values().filter(may_be).flat_map(|left| left.inner.iter()).collect()
    }

    /// The anchors with which a session begins here: those that it had here a moment ago, or none yet and a list to wait
    /// for. Looks at the ways before they lead here.
    pub(super) fn first_anchors(
        &mut self,
        id: SessionId,
        inner: Inner,
        replaced: Option<Box<Anchors>>,
        now: Nanos,
    ) -> Option<Box<Anchors>> {
        let egress = self.egress.as_mut()?;
        let left = egress.left.remove(&id);
        if replaced.is_some() {
            return replaced;
        }
        if let Some(left) = left
            && left.owner.is_none()
        {
            return (!left.held.is_empty()).then(|| Box::new(Anchors::held(left.held, now)));
        }
        let route = inner.iter().find_map(|address| self.routes.get(address).filter(|r| r.session == id))?;
        let candidates = match route.target {
            Target::Node(node) => [node, route.before[0], route.before[1]],
            Target::Nobody => [route.before[0], route.before[1], NodeRef::OWN],
            Target::Local(_) => return None,
        };
        let from = candidates.into_iter().find(|node| self.links.get(*node).is_some())?;
        let until = now.saturating_add(LIST_WAIT);
        egress.waits.push_back((until, id));
        Some(Box::new(Anchors::awaited(from, until)))
    }

    /// Lists that came before the acceptance, now that the ways lead here.
    pub(super) fn take_early<W: Wire>(&mut self, id: SessionId, tick: Tick, wire: &mut W) {
        let Some(egress) = &mut self.egress else { return };
        let parts = egress.early.remove(&id);
        if self.claims == 0 {
            // Left over from claims that nobody answered.
            egress.early.clear();
        }
        for (from, part) in parts.into_iter().flatten() {
            self.handle_anchors(tick, from, &part, wire);
        }
    }

    /// Part of a list, from the gateway `from`.
    pub(super) fn handle_anchors<W: Wire>(&mut self, tick: Tick, from: NodeRef, body: &[u8], wire: &mut W) {
        let Some(part) = Part::parse(body) else { return self.counters.drop(DropReason::Malformed) };
        let Some(egress) = &mut self.egress else { return self.counters.drop(DropReason::NotAnchored) };
        let local = self.by_session.get(&part.session).copied();
        let session = match local.and_then(|local| self.entries.get_mut(local)) {
            Some(Entry::Session(session)) if session.machine.epoch() == part.epoch => session,
            Some(Entry::Session(session)) if session.machine.epoch() > part.epoch => {
                return self.counters.drop(DropReason::NotOwner);
            }
            Some(Entry::Session(_) | Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => {
                // The answer to the claim may be under way.
                let room = egress.early.len() < EARLY_MAX || egress.early.contains_key(&part.session);
                if self.claims == 0 || !room {
                    return self.counters.drop(DropReason::NotOwner);
                }
                let parts = egress.early.entry(part.session).or_default();
                if parts.len() < 2 * handed::PARTS_MAX {
                    parts.push((from, body.into()));
                }
                return;
            }
        };
        // Only who carried the session before may say where its flows leave.
        let id = session.id;
        let route = session.inner.iter().find_map(|address| self.routes.get(address));
        let before =
            route.filter(|route| route.session == id).map_or([NodeRef::OWN; 2], |route| route.before);
        if !before.contains(&from) {
            return self.counters.drop(DropReason::NotOwner);
        }
        let own = AnchorName { number: self.number, incarnation: egress.incarnation };
        let anchor = match part.anchor {
            anchor if anchor == own => None,
            AnchorName { number, incarnation } => self.links.of_run(number, incarnation),
        };
        let anchors = session.anchors.get_or_insert_default();
        let waited = anchors.awaits(from);
        let taken = anchors.take(from, &part, anchor, before[0] == from, tick.now);
        self.counters.add_many(Count::AnchorsTaken, taken);
        let settled = waited && !anchors.awaits(from);
        if anchors.is_empty() {
            session.anchors = None;
        }
        if settled {
            self.release_waiting(id, tick, wire);
        }
    }

    /// Sends on what waited for a session's list.
    fn release_waiting<W: Wire>(&mut self, id: SessionId, tick: Tick, wire: &mut W) {
        let local = self.carried(id);
        let Some(Entry::Session(session)) = local.and_then(|local| self.entries.get(local)) else { return };
        for address in session.inner.iter() {
            if let Some(packets) = self.parking.take(Place::Up(address)) {
                self.release_uplink(tick, address, &packets, wire);
            }
        }
    }

    /// Does what is due.
    pub(super) fn handle_egress_timers<W: Wire>(&mut self, tick: Tick, wire: &mut W) {
        while let Some(egress) = &mut self.egress
            && let Some((due, id)) = egress.telling.first().copied()
            && due <= tick.now
        {
            egress.telling.pop_first();
            self.tell(id, tick.now, wire);
        }
        while let Some(egress) = &mut self.egress
            && let Some((_, id)) = take_due(&mut egress.waits, tick.now)
        {
            self.give_up_waiting(id, tick, wire, |anchors, now| anchors.is_late(now));
        }
    }

    /// A gateway is gone: nobody waits for its list any more.
    pub(super) fn forget_awaited<W: Wire>(&mut self, node: NodeRef, tick: Tick, wire: &mut W) {
        let Some(egress) = &self.egress else { return };
        let waiting: Vec<SessionId> = egress.waits.iter().map(|(_, id)| *id).collect();
        for id in waiting {
            self.give_up_waiting(id, tick, wire, |anchors, _| anchors.awaits(node));
        }
    }

    fn give_up_waiting<W: Wire>(
        &mut self,
        id: SessionId,
        tick: Tick,
        wire: &mut W,
        is_over: impl Fn(&Anchors, Nanos) -> bool,
    ) {
        let local = self.carried(id);
        let Some(Entry::Session(session)) = local.and_then(|local| self.entries.get_mut(local)) else {
            return;
        };
        let Some(anchors) = session.anchors.as_mut().filter(|anchors| is_over(anchors, tick.now)) else {
            return;
        };
        anchors.settle();
        if anchors.is_empty() {
            session.anchors = None;
        }
        self.counters.add(Count::AnchorsMissed);
        self.release_waiting(id, tick, wire);
    }

    /// Tells the next owner of a session which of its flows leave where.
    fn tell<W: Wire>(&mut self, id: SessionId, now: Nanos, wire: &mut W) {
        let Some(egress) = &mut self.egress else { return };
        let own = AnchorName { number: self.number, incarnation: egress.incarnation };
        let Some(left) = egress.left.get_mut(&id) else { return };
        let (Some(flows), Some((node, epoch))) = (&left.flows, left.owner) else { return };
        let links = &self.links;
        let named = |node: NodeRef| {
            let link = links.get(node)?;
            Some(AnchorName { number: link.number, incarnation: link.incarnation })
        };
        // The device's packets go by what was held: where the kernel knows such a flow as well, it is an older one.
        let held = left.held.iter().filter_map(|(flow, at)| Some((*flow, named(*at)?)));
        let mut list: Vec<(Flow, AnchorName)> = held.collect();
        let known: HashSet<Flow> = list.iter().map(|(flow, _)| *flow).collect();
        let fresh = flows.iter().filter(|flow| !known.contains(flow));
        list.extend(fresh.map(|flow| (*flow, own)));
        let parts = handed::encode(id, epoch, own, &list);
        if left.told == 0 {
            self.counters.add(Count::AnchorsTold);
        }
        match TELL_AGAIN.get(left.told) {
            Some(pause) => {
                egress.telling.insert((now.saturating_add(*pause), id));
                left.told += 1;
            }
            None => (left.flows, left.held) = (None, Vec::new()),
        }
        let Some(link) = self.links.get_mut(node) else { return };
        for part in parts {
            link.send(Kind::Anchors, &[], &part, wire, &mut self.counters);
        }
    }

    /// A packet of a flow that is translated here, from the gateway that carries its session.
    pub(super) fn handle_anchored_packet<W: Wire>(
        &mut self,
        tick: Tick,
        from: NodeRef,
        packet: &[u8],
        wire: &mut W,
    ) {
        let Some(header) = InnerHeader::parse(packet) else {
            return self.counters.drop(DropReason::InnerMalformed);
        };
        let Some(egress) = &self.egress else { return self.counters.drop(DropReason::NotAnchored) };
        let Some(route) = self.routes.get(header.source) else {
            return self.counters.drop(DropReason::NotOwner);
        };
        match route.target {
            Target::Node(owner) if owner == from => {}
            // It came back here while the packet was under way.
            Target::Local(local) => {
                if let Some(Entry::Session(session)) = self.entries.get_mut(local) {
                    let exits = Exits { links: &mut self.links, parking: &mut self.parking };
                    deliver(session, packet, tick.now, exits, wire, &mut self.counters);
                }
                return;
            }
            // The sender may have heard of its ownership before this gateway.
            Target::Nobody => return self.park(Place::Up(header.source), packet, tick.now),
            Target::Node(_) => return self.counters.drop(DropReason::NotOwner),
        }
        let Some(left) = egress.left.get(&route.session) else {
            return self.counters.drop(DropReason::NotAnchored);
        };
        if !header.destination_is_routed() {
            return self.counters.drop(DropReason::InnerScope);
        }
        if !left.bounds.as_ref().is_none_or(|bounds| bounds.reaches(header.destination)) {
            return self.counters.drop(DropReason::InnerDestination);
        }
        wire.to_inner(packet);
        self.counters.add(Count::AnchoredIn);
    }
}
