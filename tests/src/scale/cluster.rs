//! The cluster on virtual time: what happens when, and what each part then does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use jump_control::registry::claims_each;
use jump_session::ids::{Incarnation, NodeId};
use jump_session::ownership::{Authority, Owner, SessionRecord};
use jump_session::policy::SessionPolicy;
use jump_session::reason::Reason;

use super::client::Client;
use super::control::{Call, Line, Replica};
use super::fault::duration;
use super::store::{EXPIRY_LATE_MAX, Fit, HANDSHAKE, KEEP_ALIVE, Store};
use super::{MILLISECOND, Nanos, SECOND};
use crate::lab::histogram::Histogram;
use crate::lab::rng::Rng;

/// The defaults of control: node lease, renewal interval, guard margin.
const TTL: Duration = Duration::from_secs(3);
const RENEW_EVERY: Nanos = SECOND;
const MARGIN: Duration = Duration::from_millis(300);
/// A replica's part of a renewal; assumed, not measured.
const RENEWAL: Nanos = 50_000;
/// Between a gateway and control, one way.
const TO_CONTROL: Nanos = 250_000;
/// How long a client waits for the outcome before it looks elsewhere.
const CONFIRM_TIMEOUT: Nanos = 2500 * MILLISECOND;

/// How large a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Sessions.
    pub sessions: usize,
    /// Gateways.
    pub gateways: usize,
    /// Control replicas.
    pub replicas: usize,
    /// Stores, each with its share of the sessions. More than one is planned, not built.
    pub stores: usize,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Renewals answered.
    pub renewals: u64,
    /// The slowest of them.
    pub renewal_max: Nanos,
    /// Times that a gateway stopped forwarding because no renewal came back in time.
    pub lapses: u64,
    /// Runs of living gateways that lost their lease.
    pub lost_runs: u64,
    /// Transactions that lost against another.
    pub conflicts: u64,
    /// Attaches refused, to be tried again.
    pub refused: u64,
    /// Attaches that waited for an owner longer than control waits.
    pub pending: u64,
}

/// A gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) owner: Owner,
    pub(super) is_alive: bool,
    pub(super) is_cut_off: bool,
    pub(super) is_draining: bool,
    /// Its node key is in the store.
    is_registered: bool,
    lease_until: Nanos,
    pub(super) authority: Authority,
    /// When it has worked off its handshakes.
    busy_until: Nanos,
    open_calls: usize,
    waiting: VecDeque<usize>,
}

impl Gateway {
    pub(super) fn is_reachable(&self) -> bool {
        self.is_alive && !self.is_cut_off
    }
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A device wants a gateway that has none, or another one.
    Want {
        session: usize,
    },
    /// It tries one.
    Search {
        session: usize,
    },
    /// Its handshake is confirmed: the gateway asks control.
    Confirmed {
        call: usize,
    },
    AtReplica {
        call: usize,
    },
    Decide {
        call: usize,
    },
    Committed {
        replica: usize,
        shard: usize,
    },
    WaitOver {
        session: usize,
        call: usize,
    },
    Fence {
        session: usize,
        gateway: usize,
    },
    Renew {
        gateway: usize,
        run: Incarnation,
    },
    Renewed {
        gateway: usize,
        run: Incarnation,
        sent: Nanos,
    },
    LeaseCheck {
        gateway: usize,
        run: Incarnation,
    },
    KeyGone {
        gateway: usize,
        run: Incarnation,
    },
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    pub(super) now: Nanos,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    order: u64,
    pub(super) rng: Rng,
    pub(super) policy: SessionPolicy,
    pub(super) gateways: Vec<Gateway>,
    pub(super) replicas: Vec<Replica>,
    pub(super) stores: Vec<Store>,
    pub(super) records: Vec<Option<(SessionRecord, u64)>>,
    pub(super) clients: Vec<Client>,
    pub(super) calls: Vec<Call>,
    free_calls: Vec<usize>,
    pub(super) revision: u64,
    /// Claims that a gateway has under way at a time, as control says with every renewal; here it knows at once.
    claims_each: usize,
    /// Devices that want a gateway now.
    wanting: usize,
    pub(super) measured: Histogram,
    /// What was counted so far.
    pub totals: Totals,
}

impl Cluster {
    /// A cluster of registered gateways and devices that have not arrived.
    ///
    /// # Panics
    /// For a size without gateways, replicas or stores.
    pub fn new(size: Size, fit: Fit, seed: u64) -> Self {
        assert!(size.gateways > 1 && size.replicas > 0 && size.stores > 0, "{size:?}");
        let lines = || (0..size.stores).map(|_| Line::default()).collect();
        let mut cluster = Self {
            now: 0,
            events: BinaryHeap::new(),
            order: 0,
            rng: Rng::new(seed),
            policy: SessionPolicy::default(),
            gateways: (0..size.gateways).map(gateway).collect(),
            replicas: (0..size.replicas).map(|_| Replica { free_at: 0, lines: lines() }).collect(),
            stores: (0..size.stores).map(|shard| Store::new(fit, seed ^ (shard as u64 + 1))).collect(),
            records: vec![None; size.sessions],
            clients: vec![Client::new(); size.sessions],
            calls: Vec::new(),
            free_calls: Vec::new(),
            revision: 0,
            claims_each: claims_each(size.gateways),
            wanting: 0,
            measured: Histogram::default(),
            totals: Totals::default(),
        };
        for gateway in 0..size.gateways {
            cluster.start_again(gateway);
        }
        cluster
    }

    /// Every device arrives, evenly over `over`; runs until all are attached. How long that took.
    pub fn arrive(&mut self, over: Nanos) -> Nanos {
        let from = self.now;
        self.begin_measuring();
        for session in 0..self.clients.len() {
            let at = from + self.rng.below(over);
            self.at(at, Event::Want { session });
        }
        self.run_until(from + over);
        self.run_until_calm(from + over + 600 * SECOND);
        self.now - from
    }

    /// Time passes in which each session moves to another gateway on average once per `every`.
    pub fn pass(&mut self, time: Nanos, every: Nanos) {
        self.begin_measuring();
        let moves = (self.clients.len() as u64 * time) / every;
        let end = self.now + time;
        for _ in 0..moves {
            let session = self.rng.below(self.clients.len() as u64) as usize;
            let at = self.now + self.rng.below(time);
            self.at(at, Event::Want { session });
        }
        self.run_until(end);
        self.run_until_calm(end + 60 * SECOND);
    }

    /// What devices waited for since the last stage began, from wanting a gateway to having one.
    pub fn waited(&self) -> &Histogram {
        &self.measured
    }

    /// The time now.
    pub fn time(&self) -> Nanos {
        self.now
    }

    /// How many devices are attached to a gateway.
    pub fn sessions_of(&self, gateway: usize) -> u64 {
        self.clients.iter().filter(|client| client.gateway == Some(gateway)).count() as u64
    }

    /// Keys written so far.
    pub fn writes(&self) -> u64 {
        self.stores.iter().map(|store| store.writes).sum()
    }

    /// The records as they are now.
    pub fn records(&self) -> impl Iterator<Item = &SessionRecord> {
        self.records.iter().flatten().map(|(record, _)| record)
    }

    pub(super) fn begin_measuring(&mut self) {
        self.measured = Histogram::default();
        self.totals.renewal_max = 0;
    }

    pub(super) fn run_until(&mut self, end: Nanos) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            self.step();
        }
        self.now = self.now.max(end);
    }

    /// Runs until no device wants a gateway.
    pub(super) fn run_until_calm(&mut self, limit: Nanos) {
        while self.wanting > 0 {
            assert!(self.now < limit, "{} devices have no gateway: {:?}", self.wanting, self.totals);
            self.step();
        }
    }

    pub(super) fn at(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at.max(self.now), self.order, event)));
    }

    fn step(&mut self) {
        let Some(Reverse((at, _, event))) = self.events.pop() else { return };
        self.now = at;
        match event {
            Event::Want { session } => {
                if self.want(session) {
                    self.search(session);
                }
            }
            Event::Search { session } => self.search(session),
            Event::Confirmed { call } => self.confirmed(call),
            Event::AtReplica { call } => self.enter_replica(call),
            Event::Decide { call } => self.decide(call),
            Event::Committed { replica, shard } => self.committed(replica, shard),
            Event::WaitOver { session, call } => {
                if self.clients[session].waits == Some(call) {
                    self.wake(session);
                }
            }
            Event::Fence { session, gateway } => self.fence(session, gateway),
            Event::Renew { gateway, run } => self.renew(gateway, run),
            Event::Renewed { gateway, run, sent } => self.renewed(gateway, run, sent),
            Event::LeaseCheck { gateway, run } => self.check_lease(gateway, run),
            Event::KeyGone { gateway, run } => self.key_gone(gateway, run),
        }
    }

    /// Notes that a device wants a gateway from now on; false when it wanted one already.
    pub(super) fn want(&mut self, session: usize) -> bool {
        let client = &mut self.clients[session];
        if client.since.is_some() {
            return false;
        }
        client.since = Some(self.now);
        client.unanswered = 0;
        self.wanting += 1;
        true
    }

    /// A device tries a gateway, any but the one it has.
    fn search(&mut self, session: usize) {
        let present = self.clients[session].gateway;
        let mut gateway = self.rng.below(self.gateways.len() as u64) as usize;
        if present == Some(gateway) {
            gateway = (gateway + 1) % self.gateways.len();
        }
        if !self.gateways[gateway].is_reachable() {
            let patience = self.clients[session].patience();
            return self.at(self.now + patience, Event::Search { session });
        }
        let round_trip = Client::round_trip(&mut self.rng);
        let busy_until = &mut self.gateways[gateway].busy_until;
        *busy_until = (*busy_until).max(self.now + round_trip / 2) + HANDSHAKE;
        let confirmed = *busy_until + round_trip;
        let call = self.claim(session, gateway);
        self.at(confirmed, Event::Confirmed { call });
    }

    /// A device's next attempt at `gateway`.
    pub(super) fn claim(&mut self, session: usize, gateway: usize) -> usize {
        let (attach_seq, attempt) = self.clients[session].next_attempt(session);
        let (run, reason) = (self.gateways[gateway].owner.clone(), Reason::PathRefused);
        self.new_call(Call {
            session,
            gateway,
            attach_seq,
            attempt,
            stopped: None,
            run,
            reason,
            deadline: None,
        })
    }

    /// A gateway asks control, or waits for its turn to.
    fn confirmed(&mut self, call: usize) {
        let gateway = &mut self.gateways[self.calls[call].gateway];
        if !gateway.is_reachable() {
            let session = self.end_call(call).session;
            return self.at(self.now + CONFIRM_TIMEOUT, Event::Search { session });
        }
        if gateway.open_calls >= self.claims_each {
            gateway.waiting.push_back(call);
            return;
        }
        gateway.open_calls += 1;
        self.at(self.now + TO_CONTROL, Event::AtReplica { call });
    }

    /// A call's outcome has come to its gateway, which tells the device: accepted, or to ask again after a while.
    pub(super) fn told(&mut self, call: &Call, again_after: Option<Nanos>) {
        let gateway = &mut self.gateways[call.gateway];
        gateway.open_calls = gateway.open_calls.saturating_sub(1);
        if let Some(next) = gateway.waiting.pop_front() {
            self.at(self.now, Event::Confirmed { call: next });
        }
        if call.stopped.is_some() || !self.clients[call.session].asked(call) {
            return;
        }
        let session = call.session;
        let there = Client::round_trip(&mut self.rng) / 2 + TO_CONTROL;
        if !self.gateways[call.gateway].is_reachable() {
            return self.at(self.now + CONFIRM_TIMEOUT, Event::Search { session });
        }
        if let Some(after) = again_after {
            return self.at(self.now + there + after, Event::Search { session });
        }
        let client = &mut self.clients[session];
        client.gateway = Some(call.gateway);
        let since = client.since.take().unwrap_or(self.now);
        self.wanting -= 1;
        self.measured.add(duration(self.now + there - since));
    }

    pub(super) fn new_call(&mut self, call: Call) -> usize {
        match self.free_calls.pop() {
            Some(free) => {
                self.calls[free] = call;
                free
            }
            None => {
                self.calls.push(call);
                self.calls.len() - 1
            }
        }
    }

    pub(super) fn end_call(&mut self, call: usize) -> Call {
        self.free_calls.push(call);
        self.calls[call].clone()
    }

    fn renew(&mut self, gateway: usize, run: Incarnation) {
        let renewing = &self.gateways[gateway];
        if !renewing.is_alive || renewing.owner.incarnation != run {
            return;
        }
        if !renewing.is_cut_off {
            let replica = self.replica_of(gateway);
            let free_at = &mut self.replicas[replica].free_at;
            *free_at = (*free_at).max(self.now + TO_CONTROL) + RENEWAL;
            let kept = *free_at + KEEP_ALIVE;
            let sent = self.now;
            self.at(kept, Event::Renewed { gateway, run, sent });
        }
        // The next one follows the answer; where none comes, a gateway asks again all the same.
        self.at(self.now + RENEW_EVERY, Event::Renew { gateway, run });
    }

    fn renewed(&mut self, gateway: usize, run: Incarnation, sent: Nanos) {
        let (now, renewing) = (self.now, &mut self.gateways[gateway]);
        if renewing.owner.incarnation != run || !renewing.is_registered {
            return;
        }
        renewing.lease_until = now + nanos(TTL);
        let expires = renewing.lease_until;
        if renewing.is_reachable() {
            if !renewing.authority.holds(now + TO_CONTROL) {
                self.totals.lapses += 1;
            }
            let authority = Authority::renewed(sent, TTL, MARGIN);
            renewing.authority.deadline = renewing.authority.deadline.max(authority.deadline);
            self.totals.renewals += 1;
            self.totals.renewal_max = self.totals.renewal_max.max(now + TO_CONTROL - sent);
        }
        self.at(expires, Event::LeaseCheck { gateway, run });
    }

    fn check_lease(&mut self, gateway: usize, run: Incarnation) {
        let checked = &self.gateways[gateway];
        if checked.owner.incarnation == run && checked.is_registered && checked.lease_until <= self.now {
            let late = self.rng.below(EXPIRY_LATE_MAX);
            self.at(self.now + late, Event::KeyGone { gateway, run });
        }
    }

    /// A gateway's node key is gone: whoever waited for it goes on.
    fn key_gone(&mut self, gateway: usize, run: Incarnation) {
        let gone = &mut self.gateways[gateway];
        if !gone.is_registered
            || gone.owner.incarnation != run
            || (gone.is_alive && gone.lease_until > self.now)
        {
            return;
        }
        let forwards = gone.is_alive && gone.authority.holds(self.now);
        assert!(!forwards, "G1: the lease of {:?} ended before its authority", gone.owner);
        gone.is_registered = false;
        let run = gone.owner.clone();
        let is_lost_run = gone.is_reachable();
        for session in 0..self.records.len() {
            if self.clients[session].waits.is_some()
                && self.records[session].as_ref().is_some_and(|(record, _)| record.owner() == Some(&run))
            {
                self.wake(session);
            }
            if is_lost_run && self.clients[session].gateway == Some(gateway) && self.want(session) {
                self.search(session);
            }
        }
        if is_lost_run {
            self.totals.lost_runs += 1;
            self.start_again(gateway);
        }
    }

    /// A gateway registers a new run, with nothing of the old one.
    pub(super) fn start_again(&mut self, number: usize) {
        self.revision += 1;
        let run = Incarnation(self.revision);
        let gateway = &mut self.gateways[number];
        gateway.owner.incarnation = run;
        (gateway.is_alive, gateway.is_cut_off, gateway.is_draining) = (true, false, false);
        gateway.is_registered = true;
        gateway.lease_until = self.now + nanos(TTL);
        gateway.authority = Authority::renewed(self.now, TTL, MARGIN);
        gateway.busy_until = self.now;
        let first = self.now + self.rng.below(RENEW_EVERY);
        self.at(first, Event::Renew { gateway: number, run });
    }

    pub(super) fn is_registered(&self, owner: &Owner) -> bool {
        let gateway = &self.gateways[number_of(owner)];
        gateway.is_registered && gateway.owner.incarnation == owner.incarnation
    }

    pub(super) fn replica_of(&self, gateway: usize) -> usize {
        gateway % self.replicas.len()
    }

    pub(super) fn shard_of(&self, session: usize) -> usize {
        session % self.stores.len()
    }
}

fn gateway(number: usize) -> Gateway {
    let node: NodeId = format!("gw-{number:04}").parse().expect("a node's name is made of these");
    Gateway {
        owner: Owner { node, incarnation: Incarnation(0) },
        is_alive: true,
        is_cut_off: false,
        is_draining: false,
        is_registered: false,
        lease_until: 0,
        authority: Authority { deadline: 0 },
        busy_until: 0,
        open_calls: 0,
        waiting: VecDeque::new(),
    }
}

/// The gateway that a run is of.
pub(super) fn number_of(owner: &Owner) -> usize {
    owner.node.as_str().trim_start_matches("gw-").parse().expect("every node here is named by `gateway`")
}

/// A session's inner addresses.
pub(super) fn address(session: usize) -> Vec<IpAddr> {
    let number = u32::try_from(session).unwrap_or(u32::MAX);
    let v4 = Ipv4Addr::from(0x0a00_0002 + number);
    let v6 = Ipv6Addr::from((0xfd00_0007_u128 << 96) + u128::from(number) + 2);
    vec![v4.into(), v6.into()]
}

fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).unwrap_or(Nanos::MAX)
}
