//! The world: virtual time, one queue of events, the network between the parts, and what must hold after each step.

use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;

use jump_crypto::keys::{ClusterSecret, GrantSigner};
use jump_gateway::dataplane::Command;
use jump_session::ids::{Epoch, NodeId, SessionId};
use jump_session::ownership::Owner;

use crate::control::{Answer, Call, Operation};
use crate::device::Device;
use crate::event::{Entry, Event, Route};
use crate::gateway::{Gateway, Output};
use crate::random::Random;
use crate::store::Store;
use crate::trace::Trace;

pub(crate) type Nanos = u64;

pub(crate) const MS: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MS;
pub(crate) const TTL: Nanos = 3 * SECOND;
pub(crate) const MARGIN: Nanos = 300 * MS;
pub(crate) const RENEW_EVERY: Nanos = SECOND;
pub(crate) const UNIX: u64 = 1_800_000_000;
pub(crate) const INNER: [u8; 4] = [10, 64, 0, 2];
/// Where the inner network's server is.
pub(crate) const SERVER: [u8; 4] = [192, 0, 2, 200];
/// Time between two packets in each direction.
const PACKET_EVERY: Nanos = 50 * MS;

pub(crate) fn cluster_secret() -> ClusterSecret {
    ClusterSecret::from_bytes([3; 32])
}

/// How the network and the store behave at the moment.
#[derive(Default)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) jitter: Nanos,
    pub(crate) unknown_outcomes: u64,
    pub(crate) slow_store: Nanos,
}

/// One control replica.
#[derive(Default)]
pub(crate) struct Replica {
    /// Crashes so far.
    pub(crate) life: u64,
    pub(crate) is_down: bool,
    /// How its wall clock differs, in milliseconds.
    pub(crate) skew: i64,
}

pub(crate) struct World {
    pub(crate) now: Nanos,
    pub(crate) random: Random,
    pub(crate) store: Store,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) device: Device,
    pub(crate) weather: Weather,
    pub(crate) grants: GrantSigner,
    pub(crate) calls: u64,
    /// A deliberate mistake: gateways forward without authority.
    pub(crate) is_guard_off: bool,
    /// A deliberate mistake: the fence is acknowledged and not obeyed.
    pub(crate) is_fence_ignored: bool,
    callers: BTreeMap<u64, (usize, u64)>,
    queue: BinaryHeap<Entry>,
    order: u64,
    pub(crate) trace: Trace,
}

impl World {
    pub(crate) fn new(seed: u64, gateways: usize, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let gateways: Vec<Gateway> = (0..gateways).map(|at| Gateway::new(at, &mut random)).collect();
        let grants = GrantSigner::from_seed(&[4; 32]);
        let addresses = gateways.iter().map(|gateway| gateway.address).collect();
        let device = Device::new(addresses, &grants, &mut random);
        let mut replicas = vec![Replica::default(), Replica::default()];
        for replica in &mut replicas {
            replica.skew = random.between(0, 4_000) as i64 - 2_000;
        }
        let mut world = Self {
            now: 1_000 * SECOND,
            random,
            store: Store::default(),
            replicas,
            gateways,
            device,
            weather: Weather::default(),
            grants,
            calls: 0,
            is_guard_off: false,
            is_fence_ignored: false,
            callers: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            trace,
        };
        for at in 0..world.gateways.len() {
            world.boot(at);
        }
        world.push(200 * MS, Event::DeviceStarts);
        world.push(300 * MS, Event::Upload);
        world.push(310 * MS, Event::Download);
        world.push(SECOND, Event::Sweep);
        world
    }

    pub(crate) fn push(&mut self, delay: Nanos, event: Event) {
        self.order += 1;
        self.queue.push(Entry { at: self.now + delay, order: self.order, event });
    }

    /// Notes what a reader of a failed run wants to know.
    pub(crate) fn note(&self, line: impl FnOnce(&Self) -> String) {
        self.trace.add(self.now, &line(self));
    }

    /// Lets time pass until `end`.
    pub(crate) fn run(&mut self, end: Nanos) {
        while self.queue.peek().is_some_and(|entry| entry.at <= end) {
            let Some(Entry { at, event, .. }) = self.queue.pop() else { break };
            self.now = at;
            self.handle(event);
            self.spread_news();
            self.check();
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        let Some(event) = self.at_worker(event) else { return };
        match event {
            Event::Boot { at, .. } => self.boot(at),
            Event::RegisterAgain { at, .. } => self.register_again(at),
            Event::Renew { at, .. } => self.renew(at),
            Event::Answer { at, id, answer, .. } => {
                if !self.gateways[at].is_cut_from_control {
                    self.answered(at, id, answer);
                }
            }
            Event::CallTimeout { at, id, .. } => self.call_timed_out(at, id),
            Event::Handshake { at, job, .. } => self.handshake(at, &job),
            Event::PlaneTimer { at, .. } => self.plane_timer(at),
            Event::OpenStream { at, .. } => self.open_stream(at),
            Event::Stream { at, boot, is_snapshot, records, nodes } => {
                if self.gateways[at].is_cut_from_control {
                    self.gateways[at].is_stream_broken = true;
                    return self.push(100 * MS, Event::OpenStream { at, boot });
                }
                if is_snapshot {
                    self.command(at, Command::SnapshotBegins);
                }
                self.stream_news(at, &records, &nodes);
                if is_snapshot {
                    self.command(at, Command::SnapshotComplete);
                }
            }
            Event::FromClient { at, path, source, datagram } => {
                self.arrive_at_gateway(at, path, source, datagram)
            }
            Event::FromMesh { at, mut datagram } => {
                self.drive(at, |plane, tick, holds, output| {
                    if holds {
                        plane.handle_mesh(tick, &mut datagram, output);
                    }
                });
            }
            Event::FromInner { at, packet } => {
                self.drive(at, |plane, tick, holds, output| {
                    if holds {
                        plane.handle_inner(tick, &packet, output);
                    }
                });
            }
            Event::Reap { at, boot } => {
                if self.gateways[at].boot == boot && self.gateways[at].is_powered {
                    self.reap(at);
                }
            }
            Event::ToClient { to, datagram } => self.arrive_at_device(to, datagram),
            Event::Icmp { route } => self.device_refused(route),
            Event::DeviceTimer { life } => self.device_timer(life),
            Event::DiskDone { life, ticket } => self.disk_done(life, ticket),
            Event::DeviceStarts => self.device_starts(),
            Event::Upload => {
                self.upload();
                self.push(PACKET_EVERY, Event::Upload);
            }
            Event::Download => {
                self.download();
                self.push(PACKET_EVERY, Event::Download);
            }
            Event::Step(operation) => {
                let replica = &self.replicas[operation.replica];
                if replica.life == operation.life && !replica.is_down {
                    self.step_operation(*operation);
                }
            }
            Event::LeaseCheck { node } => self.check_lease(&node),
            Event::Sweep => {
                self.sweep();
                self.push(SECOND, Event::Sweep);
            }
            Event::Fault(fault, lasts) => self.strike(fault, lasts),
            Event::Heal(fault) => self.heal(fault),
        }
    }

    /// Voids what was for an earlier life of a worker, and keeps back what comes while it is paused.
    fn at_worker(&mut self, event: Event) -> Option<Event> {
        let (at, boot) = match &event {
            Event::Boot { at, boot }
            | Event::RegisterAgain { at, boot }
            | Event::Renew { at, boot }
            | Event::Answer { at, boot, .. }
            | Event::CallTimeout { at, boot, .. }
            | Event::Handshake { at, boot, .. }
            | Event::PlaneTimer { at, boot }
            | Event::OpenStream { at, boot }
            | Event::Stream { at, boot, .. } => (*at, Some(*boot)),
            Event::FromClient { at, .. } | Event::FromMesh { at, .. } | Event::FromInner { at, .. } => {
                (*at, None)
            }
            Event::Reap { .. }
            | Event::ToClient { .. }
            | Event::Icmp { .. }
            | Event::DeviceTimer { .. }
            | Event::DiskDone { .. }
            | Event::DeviceStarts
            | Event::Upload
            | Event::Download
            | Event::Step(_)
            | Event::LeaseCheck { .. }
            | Event::Sweep
            | Event::Fault(..)
            | Event::Heal(_) => return Some(event),
        };
        let gateway = &mut self.gateways[at];
        if boot.is_some_and(|boot| boot != gateway.boot) || !gateway.is_powered {
            return None;
        }
        if gateway.is_paused {
            gateway.backlog.push(event);
            return None;
        }
        Some(event)
    }

    fn arrive_at_gateway(&mut self, at: usize, route: Route, source: SocketAddr, mut datagram: Vec<u8>) {
        if self.gateways[at].run.is_none() {
            // The machine is there and nobody listens.
            let delay = self.latency();
            return self.push(delay, Event::Icmp { route });
        }
        self.drive(at, |plane, tick, holds, output| {
            if holds {
                plane.handle_client(tick, source, &mut datagram, output);
            } else {
                plane.refuse_client(tick, source, &datagram, output);
            }
        });
    }

    /// Sends what a data plane put out; what it forwarded to the inner network is held against the store.
    pub(crate) fn carry(&mut self, at: usize, output: Output) {
        for packet in output.inner {
            let owner = self.gateways[at].run.as_ref().map(|run| run.owner.clone());
            self.forwarded(owner.as_ref(), &packet);
        }
        for (to, datagram) in output.clients {
            if !self.gateways[at].is_cut_from_clients {
                for delay in self.copies() {
                    self.push(delay, Event::ToClient { to, datagram: datagram.clone() });
                }
            }
        }
        for (to, datagram) in output.mesh {
            let peer = self.gateways.iter().position(|gateway| gateway.mesh_address == to);
            if let Some(at) = peer {
                for delay in self.copies() {
                    self.push(delay, Event::FromMesh { at, datagram: datagram.clone() });
                }
            }
        }
    }

    /// The delays after which copies of a datagram arrive: none when it is lost.
    pub(crate) fn copies(&mut self) -> Vec<Nanos> {
        let copies = if self.random.chance(self.weather.duplicates) { 2 } else { 1 };
        let mut delays = Vec::new();
        for _ in 0..copies {
            if !self.random.chance(self.weather.loss) {
                delays.push(self.latency());
            }
        }
        delays
    }

    pub(crate) fn latency(&mut self) -> Nanos {
        let jitter = self.random.between(0, self.weather.jitter.max(1));
        self.random.between(MS / 2, 3 * MS) + jitter
    }

    /// Calls travel in order on good connections, mostly; some hang for so long that another replica is asked meanwhile.
    fn call_latency(&mut self) -> Nanos {
        let hangs = if self.random.chance(3) { self.random.between(0, 2_600) * MS } else { 0 };
        self.latency() + hangs
    }

    pub(crate) fn store_delay(&mut self) -> Nanos {
        let slow = self.random.between(0, self.weather.slow_store.max(1));
        self.random.between(MS / 4, 2 * MS) + slow
    }

    pub(crate) fn wall_millis(&self, replica: usize) -> u64 {
        let millis = (UNIX * 1_000 + self.now / MS) as i64 + self.replicas[replica].skew;
        millis as u64
    }

    pub(crate) fn send_call(&mut self, at: usize, id: u64, replica: usize, call: Call) {
        let gateway = &self.gateways[at];
        self.callers.insert(id, (at, gateway.boot));
        if gateway.is_cut_from_control || self.replicas[replica].is_down {
            return;
        }
        let delay = self.call_latency() + self.store_delay();
        let life = self.replicas[replica].life;
        let operation = Operation::new(id, replica, life, call, self.now);
        self.push(delay, Event::Step(Box::new(operation)));
    }

    pub(crate) fn answer(&mut self, operation: &Operation, answer: Answer) {
        if let Answer::Attached(accepted) = &answer {
            let (epoch, owner) = (accepted.0.epoch, accepted.0.owner().cloned());
            self.note(|_| format!("replica {} answers: epoch {epoch}, owner {owner:?}", operation.replica));
        }
        let Some((at, boot)) = self.callers.remove(&operation.id) else { return };
        let delay = self.call_latency();
        self.push(delay, Event::Answer { at, boot, id: operation.id, answer });
    }

    /// Expires a lease whose time is over, some time after that.
    fn check_lease(&mut self, node: &NodeId) {
        let Some(key) = self.store.nodes.get(node) else { return };
        let owner = Owner { node: node.clone(), incarnation: key.incarnation };
        if key.lease_until <= self.now {
            self.note(|_| format!("store: the lease of {owner:?} expires"));
            self.store.seen.expired_leases += 1;
            self.store.deregister(&owner);
        } else {
            let rest = key.lease_until - self.now;
            let late = self.random.between(0, 300 * MS);
            let late = if self.random.chance(50) { 0 } else { late };
            self.push(rest + late, Event::LeaseCheck { node: node.clone() });
        }
    }

    /// G1, at this instant: no two gateways hold themselves to be the active owner of one session.
    fn check(&mut self) {
        let mut active: BTreeMap<SessionId, Vec<(usize, Epoch)>> = BTreeMap::new();
        let holders: Vec<usize> = (0..self.gateways.len()).filter(|at| self.is_active(*at)).collect();
        if holders.len() < 2 {
            return;
        }
        for at in holders {
            for (session, epoch) in self.list(at) {
                active.entry(session).or_default().push((at, epoch));
            }
        }
        for (session, owners) in active {
            assert!(owners.len() < 2, "G1: {session} is active on {owners:?}");
        }
    }

    fn is_active(&self, at: usize) -> bool {
        self.gateways[at].run.as_ref().is_some_and(|run| run.plane.sessions() > 0) && self.holds(at)
    }

    fn list(&mut self, at: usize) -> Vec<(SessionId, Epoch)> {
        let (asked, mut answer) = tokio::sync::oneshot::channel();
        let tick = self.gateways[at].tick(self.now);
        let Some(run) = &mut self.gateways[at].run else { return Vec::new() };
        run.plane.handle_command(tick, Command::List(asked), true, &mut Output::default());
        answer.try_recv().unwrap_or_default().iter().map(|carried| (carried.session, carried.epoch)).collect()
    }
}
