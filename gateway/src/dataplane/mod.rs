//! The data plane: all packet state of one gateway, on one thread that runs to completion.
//!
//! [`DataPlane`] is a value without sockets: datagrams and packets go in, output goes to a [`Wire`], news to a queue.
//! [`engine`] drives it with real sockets. Nothing here locks, waits or logs per packet; what is dropped is counted.

mod admission;
mod anchors;
mod backlog;
mod bindings;
mod census;
mod claims;
mod command;
mod counters;
pub mod doors;
mod downlink;
mod egress;
pub mod engine;
mod fair;
mod flow;
mod handed;
mod idle;
mod inner;
mod limiter;
mod links;
mod orders;
mod parking;
mod policy;
mod route;
mod session;
mod slab;
#[cfg(test)]
mod tests;
mod timers;
mod uplink;
mod usage;
mod wire;

use std::collections::{HashMap, VecDeque};

use ipnet::IpNet;
use jump_crypto::cookie::Gate;
use jump_crypto::entropy::Entropy;
use jump_crypto::ids::{Epoch, NodeNumber, ReceiverIndex, SessionId};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, SealingKey};
use jump_session::frame::{FRAME_LEN_MAX, Frame, MTU_MAX};
use jump_session::gateway::{Effect, Nanos, State, Timing};
use jump_session::path::Path;
use jump_transport::tun::ecn_of;
use tokio::sync::mpsc;

pub use command::*;
pub use counters::{Count, Counters, DropReason, SharedCounters, Suspect};
pub use egress::{EgressSetup, FlowAnswer, FlowQuestion, LIST_WAIT};
pub use flow::Flow;
pub(crate) use flow::TCP;
pub use handed::FLOWS_MAX;
pub use limiter::Rate;
pub use links::Link;
pub use orders::After;
pub use parking::{PLACE_BYTES_MAX, TOTAL_BYTES_MAX, WAIT_MAX};
pub use policy::Policy;
pub use route::NodeRef;
pub use session::{Inner, Traffic};
pub use slab::{ENTRIES_MAX, Slab};
pub use usage::{Usage, UsagePage};
pub use wire::Wire;

use claims::GivenUp;
use egress::Egress;
use limiter::{Bucket, SourceLimiter};
use links::Links;
use parking::{ParkingLot, Place};
use route::Routes;
use session::Entry;
use slab::Rest;
use timers::{Armed, Timers};

/// The longest UDP payload.
pub(crate) const DATAGRAM_LEN_MAX: usize = 65_507;
/// How long a reserved index and an answered handshake wait, in nanoseconds.
pub const HANDSHAKE_WAIT: Nanos = 5_000_000_000;
/// How long a confirmed handshake waits for control, in nanoseconds; longer than any attach call.
pub const CLAIM_WAIT: Nanos = 15_000_000_000;
/// How long the outcome of an attach is repeated, in nanoseconds.
const OUTCOME_WAIT: Nanos = 10_000_000_000;
/// How long retired keys still open records, in nanoseconds.
const RETIRED_WAIT: Nanos = 2_000_000_000;
/// How long the stream may take to mention a session that a snapshot did not contain, in nanoseconds.
const SNAPSHOT_GRACE: Nanos = 1_000_000_000;
/// How long an epoch that was given up is remembered, in nanoseconds; longer than any attach call may take.
const GIVEN_UP_MEMORY: Nanos = 60_000_000_000;

/// The bounds of a data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes that are answered and not confirmed; the oldest give way.
    pub handshakes_max: usize,
    /// Confirmed handshakes that wait for control.
    pub claims_max: usize,
    /// Sessions carried here.
    pub sessions_max: usize,
    /// First messages per source prefix.
    pub source_rate: Rate,
    /// First messages per second above which cookies are asked for.
    pub cookie_above_per_second: u32,
    /// Reattach hints in all.
    pub hint_rate: Rate,
    /// The session machines' timing.
    pub timing: Timing,
    /// The largest inner packet that the inner network takes, in bytes.
    pub mtu_max: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes_max: 4096,
            claims_max: 1024,
            sessions_max: 100_000,
            source_rate: Rate { per_second: 500, burst: 1000 },
            cookie_above_per_second: 1000,
            hint_rate: Rate { per_second: 10_000, burst: 2_000 },
            timing: Timing::default(),
            mtu_max: 1360,
        }
    }
}

/// The time of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Nanoseconds of the suspend-counting clock.
    pub now: Nanos,
    /// Seconds since the Unix epoch, for cookies.
    pub unix: u64,
}

/// What a data plane is made with.
pub struct Setup {
    /// This run's steering number.
    pub number: NodeNumber,
    /// Inner address pools.
    pub pools: Vec<IpNet>,
    /// Gates of the cluster keys, current first.
    pub gates: Vec<Gate>,
    /// The bounds.
    pub limits: Limits,
    /// Randomness for challenges and cookies.
    pub entropy: Box<dyn Entropy>,
    /// News goes here.
    pub events: mpsc::Sender<Event>,
    /// First messages go here.
    pub inits: InitQueues,
    /// What anchored egress needs; `None` where it is off.
    pub egress: Option<EgressSetup>,
}

/// All packet state of one gateway.
pub struct DataPlane {
    number: NodeNumber,
    limits: Limits,
    gates: Vec<Gate>,
    entropy: Box<dyn Entropy>,
    entries: Slab<Entry>,
    by_session: HashMap<SessionId, u32>,
    routes: Routes,
    links: Links,
    parking: ParkingLot,
    timers: Timers,
    /// Reserved and answered handshakes, oldest first.
    waiting: VecDeque<(Nanos, u32)>,
    answered: usize,
    /// Claims, rejections (at most as many as claims), and retired keys, by the time of their end.
    claiming: VecDeque<(Nanos, u32)>,
    claims: usize,
    rejected: VecDeque<(Nanos, u32)>,
    retired: VecDeque<(Nanos, u32)>,
    /// What of each session is over here.
    given_up: HashMap<SessionId, GivenUp>,
    given_up_order: VecDeque<(Nanos, SessionId)>,
    /// Policies of sessions whose claims are under way.
    early_policies: HashMap<SessionId, (Epoch, Policy)>,
    /// When sessions that the last snapshot and the news after it do not mention are over.
    snapshot_due: Option<Nanos>,
    sources: SourceLimiter,
    hints: Bucket,
    fairness: fair::Fairness,
    /// Whether this node had authority when it was last said, and since when not, once it was there.
    held: bool,
    refusing_since: Option<Nanos>,
    /// ECN bits of the datagram at hand.
    outer_ecn: u8,
    sweep: idle::Sweep,
    load: admission::Load,
    backlog: backlog::Backlog,
    repeats: backlog::Repeats,
    inits: InitQueues,
    next_queue: usize,
    events: mpsc::Sender<Event>,
    /// Events that must not be lost and found the queue full.
    unsent: VecDeque<Event>,
    draining: Option<(jump_session::reason::Reason, Vec<std::net::SocketAddr>)>,
    egress: Option<Egress>,
    effects: Vec<Effect>,
    census: census::Census,
    counters: Counters,
}

impl DataPlane {
    /// A data plane without sessions.
    pub fn new(setup: Setup) -> Self {
        Self {
            number: setup.number,
            sources: SourceLimiter::new(setup.limits.source_rate),
            limits: setup.limits,
            gates: setup.gates,
            entropy: setup.entropy,
            entries: Slab::new(),
            by_session: HashMap::new(),
            routes: Routes::new(setup.pools),
            links: Links::default(),
            parking: ParkingLot::default(),
            timers: Timers::default(),
            waiting: VecDeque::new(),
            answered: 0,
            claiming: VecDeque::new(),
            claims: 0,
            rejected: VecDeque::new(),
            retired: VecDeque::new(),
            given_up: HashMap::new(),
            given_up_order: VecDeque::new(),
            early_policies: HashMap::new(),
            snapshot_due: None,
            hints: Bucket::default(),
            fairness: fair::Fairness::new(),
            held: false,
            refusing_since: None,
            outer_ecn: 0,
            sweep: idle::Sweep::default(),
            load: admission::Load::default(),
            backlog: backlog::Backlog::new(setup.inits.len()),
            repeats: backlog::Repeats::new(),
            inits: setup.inits,
            next_queue: 0,
            events: setup.events,
            unsent: VecDeque::new(),
            draining: None,
            egress: setup.egress.map(Egress::new),
            effects: Vec::with_capacity(16),
            census: census::Census::default(),
            counters: Counters::new(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Sessions carried here.
    pub fn sessions(&self) -> usize {
        self.by_session.len()
    }

    /// Those of them that are in `state`.
    pub fn sessions_in(&self, state: State) -> u32 {
        self.census.count(state)
    }

    /// Indices in use: sessions, handshakes and retired keys.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Known ways to inner addresses.
    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Links to other gateways.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    fn index(&self, local: u32) -> ReceiverIndex {
        ReceiverIndex::of_node(self.number, local)
    }

    /// A pass over the sockets begins; `backlogged` says that the last one left datagrams of clients waiting. Then no
    /// session gets much more than its share of this one.
    pub fn begin_pass(&mut self, backlogged: bool) {
        self.fairness.begin_pass(backlogged);
    }

    /// Says whether this node has the authority to forward, before anything else of a pass. The end of it is counted; when
    /// it is back, nobody's silence of the time between counts, because whatever came was refused.
    pub fn handle_authority(&mut self, now: Nanos, holds: bool) {
        if std::mem::replace(&mut self.held, holds) && !holds {
            self.counters.add(Count::GuardTrips);
            self.refusing_since = Some(now);
        }
        let Some(since) = self.refusing_since.take_if(|_| holds) else { return };
        let refused = now.saturating_sub(since);
        for slot in 0..self.entries.slots() {
            if let Some(Entry::Session(session)) = self.entries.at_slot(slot) {
                session.machine.excuse(now, refused);
            }
        }
    }

    /// Does what is due.
    pub fn handle_timers<W: Wire>(&mut self, tick: Tick, wire: &mut W) {
        let now = tick.now;
        while let Some((local, due)) = self.timers.pop(now) {
            if let Some(Entry::Session(session)) = self.entries.get_mut(local)
                && session.armed == due
            {
                session.armed = Armed::NEVER;
                if session.outcome.as_ref().is_some_and(|outcome| outcome.until <= now) {
                    session.outcome = None;
                }
                session.machine.on_timeout(now, &self.limits.timing, &mut self.effects);
                self.apply_effects(local, tick, wire);
                self.arm(local);
            }
        }
        self.expire_handshakes(now);
        while let Some((_, local)) = take_due(&mut self.retired, now) {
            if matches!(self.entries.get(local), Some(Entry::Retired(_))) {
                self.entries.remove(local, Rest::Long, now);
            }
        }
        if self.snapshot_due.take_if(|due| *due <= now).is_some() {
            self.stop_unmentioned(tick, wire);
        }
        self.handle_egress_timers(tick, wire);
        self.sweep_idle(now);
        let expired = self.parking.expire(now);
        self.counters.drop_many(DropReason::ParkingExpired, expired);
        while let Some((_, session)) = take_due(&mut self.given_up_order, now) {
            if self.given_up.get(&session).is_some_and(|given_up| given_up.until <= now) {
                self.given_up.remove(&session);
            }
        }
        for suspect in self.counters.take_suspects(now).into_iter().flatten().flatten() {
            // One that is lost is counted all the same.
            let _ = self.events.try_send(Event::Suspect(suspect));
        }
        while let Some(event) = self.unsent.pop_front() {
            if let Err(error) = self.events.try_send(event) {
                self.unsent.push_front(error.into_inner());
                break;
            }
        }
    }

    /// When [`Self::handle_timers`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        let front = |queue: &VecDeque<(Nanos, u32)>| queue.front().map(|(due, _)| *due);
        let queues = [&self.waiting, &self.claiming, &self.rejected, &self.retired];
        let others = [self.timers.next(), self.snapshot_due, self.egress.as_ref().and_then(Egress::next)];
        others.into_iter().chain(queues.map(front)).flatten().min()
    }

    fn arm(&mut self, local: u32) {
        if let Some(Entry::Session(session)) = self.entries.get_mut(local) {
            let due = session.due(&self.limits.timing);
            self.timers.arm(&mut session.armed, due, local);
        }
    }

    /// Carries out what a session's machine asked for.
    fn apply_effects<W: Wire>(&mut self, local: u32, tick: Tick, wire: &mut W) {
        if self.effects.is_empty() {
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            let Some(Entry::Session(session)) = self.entries.get_mut(local) else { break };
            match effect {
                Effect::Send { to, frame } => {
                    send_frame(&mut session.sealing, to, &frame, wire, &mut self.counters);
                }
                Effect::Moved { from, to, binding, reason } => {
                    self.counters.add(Count::PathMoves);
                    self.note(local, What::Moved(from, to, binding, reason));
                }
                Effect::Changed { from, to, reason } => {
                    self.census.change(from, to);
                    self.note(local, What::Changed(from, to, reason));
                }
                Effect::MoveRefused { to, reason } => {
                    self.counters.add(Count::PathMovesRefused);
                    self.note(local, What::MoveRefused(to, reason));
                }
                Effect::End { reason } => self.end_session(local, reason, tick.now),
            }
        }
        self.effects = effects;
    }

    /// A queue that fills up loses notes first: half of it is kept for what must be heard.
    fn send_note(&self, note: Note) {
        if self.events.capacity() * 2 > self.events.max_capacity() {
            // Full meanwhile: one more note is lost.
            let _ = self.events.try_send(Event::Note(note));
        }
    }

    fn emit(&mut self, event: Event) {
        if let Err(error) = self.events.try_send(event) {
            self.unsent.push_back(error.into_inner());
        }
    }
}

fn take_due<T: Copy>(queue: &mut VecDeque<(Nanos, T)>, now: Nanos) -> Option<(Nanos, T)> {
    queue.front().is_some_and(|(due, _)| *due <= now).then(|| queue.pop_front()).flatten()
}

/// Seals one frame to a client.
fn send_frame<W: Wire>(
    sealing: &mut SealingKey,
    to: Path,
    frame: &Frame,
    wire: &mut W,
    counters: &mut Counters,
) {
    // An MtuAnswer is as long as the largest inner packet.
    let mut text = [0; MTU_MAX as usize];
    if let Some(len) = frame.encode(&mut text) {
        seal_to_client(sealing, Content::Control, to, &text[..len], wire, counters);
    }
}

/// Sends a key set that the client does not have. One that is lost comes again with the next attach or rekey.
fn send_key_set<W: Wire>(
    sealing: &mut SealingKey,
    to: Path,
    key_set: Option<Box<[u8]>>,
    wire: &mut W,
    counters: &mut Counters,
) {
    if let Some(key_set) = key_set {
        send_frame(sealing, to, &Frame::Keys { key_set: key_set.into() }, wire, counters);
    }
}

/// Seals `text` to a client. False when it could not be sent.
#[inline]
fn seal_to_client<W: Wire>(
    sealing: &mut SealingKey,
    content: Content,
    to: Path,
    text: &[u8],
    wire: &mut W,
    counters: &mut Counters,
) -> bool {
    if text.len() + OVERHEAD > DATAGRAM_LEN_MAX {
        counters.drop(DropReason::TooLong);
        return false;
    }
    if content == Content::Packet {
        wire.mark_next(ecn_of(text));
    }
    let slot = wire.to_client(to, text.len() + OVERHEAD);
    slot[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    if sealing.seal(content, slot, text.len()).is_err() {
        wire.cancel_client();
        counters.drop(DropReason::SealLimit);
        return false;
    }
    true
}

fn encode(frame: &Frame) -> Box<[u8]> {
    let mut text = [0; FRAME_LEN_MAX];
    let len = frame.encode(&mut text).unwrap_or(0);
    Box::from(&text[..len])
}
