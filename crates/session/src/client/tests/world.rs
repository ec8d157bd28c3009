//! A network of fake gateways around one client: seeded, single-threaded, in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jump_crypto::certificate::{NodeCertificate, NodeClaims, NodeSigner};
use jump_crypto::cookie::{Admission, Gate};
use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::grant::{Grant, GrantClaims};
use jump_crypto::handshake::{AttachIntent, Established, REPLY_LEN_MAX, Responder, Suite};
use jump_crypto::keys::{ClusterSecret, DeviceSecret, GrantSigner, GrantVerifier};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, RecordHeader};
use jump_crypto::wire::DatagramType;

use crate::client::{
    Attached, Client, ClientConfig, Event, Now, PathError, PathId, State, Stored, Ticket, Transmit, Tuning,
};
use crate::frame::{Accepted, AttachResult, FRAME_LEN_MAX, Frame, MTU_MAX};
use crate::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, NodeId, ReceiverIndex, SessionId};
use crate::path::Transport;
use crate::reason::Reason;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const UNIX: u64 = 1_800_000_000;
pub(super) const INNER: [u8; 4] = [10, 64, 0, 2];

/// xorshift64*: unpredictable enough for a test, the same in every run.
#[derive(Clone)]
pub(super) struct Seeded(u64);

impl Seeded {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

impl Entropy for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

/// What control would store, without its arbitration: last writer wins unless scripted.
pub(super) struct Store {
    pub(super) session: Option<SessionId>,
    pub(super) epoch: u64,
    pub(super) attach_seq: u64,
    pub(super) accepted: Option<(AttachSeq, AttemptId, usize)>,
}

/// How a gateway behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Alive,
    /// Says nothing: its datagrams vanish.
    Silent,
    /// Nobody listens: an ICMP error comes back.
    Refusing,
    /// Asks for a cookie first.
    Loaded,
    /// Accepts with a grant made for another handshake.
    Lying,
    /// Answers handshakes and then falls silent.
    Mute,
}

pub(super) struct Peer {
    keys: Established,
    intent: AttachIntent,
    device: DeviceKey,
    pub(super) active: bool,
    /// Another took over: nothing is answered any more.
    fenced: bool,
    source: (SocketAddr, PathId),
    answer: Option<AttachResult>,
}

pub(super) struct FakeGateway {
    pub(super) address: SocketAddr,
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    responder: Responder,
    pub(super) mood: Mood,
    pub(super) peers: BTreeMap<u32, Peer>,
    /// Answers to give to the next attaches instead of a decision.
    pub(super) script: Vec<AttachResult>,
    pub(super) inits: Vec<Vec<u8>>,
    pub(super) intents: Vec<AttachIntent>,
    /// Inner packets that came out, with the epoch-order number of the peer that sent them.
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) frames: Vec<Frame>,
    pub(super) commit_delay: Duration,
    /// Tells the senders of the next first messages to come again after these times.
    pub(super) busy: Vec<Duration>,
    /// Says that an outcome is pending.
    pub(super) says_pending: bool,
    /// How long a handshake takes here.
    pub(super) handshake_delay: Duration,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Arrival {
    AtGateway(SocketAddr, PathId, Vec<u8>),
    AtClient(PathId, Vec<u8>),
    Icmp(PathId),
    DiskDone(Ticket),
    Result(SocketAddr, u32),
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) client: Client,
    pub(super) gateways: Vec<FakeGateway>,
    pub(super) store: Store,
    pub(super) events: Vec<(Duration, Event)>,
    pub(super) paths: BTreeMap<PathId, SocketAddr>,
    pub(super) transports: BTreeMap<PathId, Transport>,
    /// Datagrams by these vanish.
    pub(super) blocked: Vec<Transport>,
    /// Longer datagrams by these vanish.
    pub(super) carries: BTreeMap<Transport, usize>,
    /// The largest inner packet that gateways take; `None` for gateways that do not know path MTU discovery.
    pub(super) mtu_max: Option<u16>,
    pub(super) received: Vec<Vec<u8>>,
    pub(super) latency: Duration,
    pub(super) loss_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) jitter: Duration,
    pub(super) disk: Option<Duration>,
    pub(super) durable: AttachSeq,
    writes: BTreeMap<Ticket, Stored>,
    pub(super) random: Seeded,
    gate: Gate,
    grants: GrantSigner,
    queue: BinaryHeap<Reverse<(Duration, u64, Arrival)>>,
    order: u64,
    next_local: u32,
}

pub(super) fn address(i: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, i as u8 + 1], 51820))
}

pub(super) fn keys() -> (ClusterSecret, GrantSigner, DeviceSecret) {
    (ClusterSecret::from_bytes([3; 32]), GrantSigner::from_seed(&[4; 32]), DeviceSecret::from_bytes([5; 32]))
}

pub(super) fn config(gateways: usize) -> ClientConfig {
    let (cluster, grants, device) = keys();
    ClientConfig {
        device,
        cluster_keys: vec![cluster.public()],
        verifier: GrantVerifier::new(&[grants.public()]),
        key_set: 0,
        gateways: (0..gateways).map(address).collect(),
        suite: Suite::ChaChaPolyBlake2s,
        transports: vec![Transport::Udp],
        tuning: Tuning::default(),
    }
}

impl World {
    pub(super) fn new(gateways: usize, seed: u64) -> Self {
        Self::with_stored(gateways, seed, Stored::default())
    }

    pub(super) fn with_stored(gateways: usize, seed: u64, stored: Stored) -> Self {
        Self::made(seed, config(gateways), stored)
    }

    /// A world whose client may use these transports, and has not begun.
    pub(super) fn unstarted(gateways: usize, seed: u64, transports: &[Transport]) -> Self {
        Self::made(
            seed,
            ClientConfig { transports: transports.to_vec(), ..config(gateways) },
            Stored::default(),
        )
    }

    /// A world whose gateways have these addresses, and whose client has not begun.
    pub(super) fn at_addresses(seed: u64, addresses: Vec<SocketAddr>) -> Self {
        let config = ClientConfig { gateways: addresses.clone(), ..config(addresses.len()) };
        let mut world = Self::made(seed, config, Stored::default());
        for (gateway, address) in world.gateways.iter_mut().zip(addresses) {
            gateway.address = address;
        }
        world
    }

    fn made(seed: u64, config: ClientConfig, stored: Stored) -> Self {
        let gateways = config.gateways.len();
        let (cluster, grants, _) = keys();
        let mut random = Seeded::new(seed);
        let gateways_made = (0..gateways).map(|i| FakeGateway::new(i, &mut random)).collect();
        Self {
            now: Duration::from_secs(1000),
            client: Client::new(config, stored, Box::new(Seeded::new(seed + 1))),
            gateways: gateways_made,
            store: Store { session: None, epoch: 0, attach_seq: 0, accepted: None },
            events: Vec::new(),
            paths: BTreeMap::new(),
            transports: BTreeMap::new(),
            blocked: Vec::new(),
            carries: BTreeMap::new(),
            mtu_max: None,
            received: Vec::new(),
            latency: MS * 2,
            loss_percent: 0,
            duplicate_percent: 0,
            jitter: Duration::ZERO,
            disk: Some(MS * 3),
            durable: AttachSeq(0),
            writes: BTreeMap::new(),
            random,
            gate: Gate::new(&cluster),
            grants,
            queue: BinaryHeap::new(),
            order: 0,
            next_local: 1,
        }
    }

    pub(super) fn clock(&self) -> Now {
        Now { at: self.now, unix_seconds: UNIX + self.now.as_secs() }
    }

    pub(super) fn start(&mut self) {
        let now = self.clock();
        self.client.start(now);
        self.settle();
    }

    /// A world whose client is attached.
    pub(super) fn attached(gateways: usize, seed: u64) -> Self {
        Self::attached_over(gateways, seed, &[Transport::Udp])
    }

    /// The same with these transports.
    pub(super) fn attached_over(gateways: usize, seed: u64, transports: &[Transport]) -> Self {
        let mut world = Self::unstarted(gateways, seed, transports);
        world.start();
        world.run(MS * 100);
        assert_eq!(world.client.status().state, State::Attached);
        world.events.clear();
        world
    }

    /// Lets `time` pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 200_000, "the world does not come to rest");
            let arrival = self.queue.peek().map(|Reverse((at, ..))| *at);
            let timeout = self.client.poll_timeout();
            let next = [arrival, timeout].into_iter().flatten().min().filter(|next| *next <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            let now = self.clock();
            if arrival == Some(next) {
                if let Some(Reverse((_, _, arrival))) = self.queue.pop() {
                    self.arrive(arrival);
                }
            } else {
                self.client.handle_timeout(now);
            }
            self.settle();
        }
        self.now = end;
    }

    /// Drains the client.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match &event {
                Event::OpenPath { path, gateway, transport, .. } => {
                    self.transports.insert(*path, *transport);
                    assert!(self.paths.insert(*path, *gateway).is_none(), "{path:?} was opened twice");
                }
                Event::ClosePath { path } => {
                    assert!(self.paths.remove(path).is_some(), "{path:?} was closed twice");
                }
                Event::Persist { ticket, stored } => {
                    self.writes.insert(*ticket, stored.clone());
                    if let Some(disk) = self.disk {
                        self.push(self.now + disk, Arrival::DiskDone(*ticket));
                    }
                }
                _ => {}
            }
            self.events.push((self.now, event));
        }
        while let Some(Transmit { path, datagram }) = self.client.poll_transmit() {
            let gateway = *self.paths.get(&path).expect("transmits name open paths");
            if datagram[0] == DatagramType::AttachInit as u8 {
                let latest = self.latest_attempt();
                assert!(latest <= self.durable, "attempt {latest} was sent before it was on disk");
            }
            self.carry_up(path, gateway, datagram);
        }
    }

    fn latest_attempt(&self) -> AttachSeq {
        let attempts = self.events.iter().filter_map(|(_, event)| match event {
            Event::Attempted { attach_seq, .. } => Some(*attach_seq),
            _ => None,
        });
        attempts.max().unwrap_or_default()
    }

    fn push(&mut self, at: Duration, arrival: Arrival) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, arrival)));
    }

    fn delays(&mut self) -> Vec<Duration> {
        let copies = if self.random.chance(self.duplicate_percent) { 2 } else { 1 };
        let mut delays = Vec::new();
        for _ in 0..copies {
            if !self.random.chance(self.loss_percent) {
                let jitter = self.jitter.as_micros() as u64;
                let extra = if jitter == 0 { 0 } else { self.random.next() % jitter };
                delays.push(self.latency + Duration::from_micros(extra));
            }
        }
        delays
    }

    fn is_blocked(&self, path: PathId, len: usize) -> bool {
        self.transports.get(&path).is_some_and(|transport| {
            self.blocked.contains(transport) || self.carries.get(transport).is_some_and(|max| len > *max)
        })
    }

    pub(super) fn carry_up(&mut self, path: PathId, gateway: SocketAddr, datagram: Vec<u8>) {
        if self.is_blocked(path, datagram.len()) {
            return;
        }
        for delay in self.delays() {
            self.push(self.now + delay, Arrival::AtGateway(gateway, path, datagram.clone()));
        }
    }

    pub(super) fn carry_down(&mut self, path: PathId, datagram: Vec<u8>) {
        if self.is_blocked(path, datagram.len()) {
            return;
        }
        for delay in self.delays() {
            self.push(self.now + delay, Arrival::AtClient(path, datagram.clone()));
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        let now = self.clock();
        match arrival {
            Arrival::AtClient(path, mut datagram) => {
                if self.paths.contains_key(&path)
                    && let Some(packet) = self.client.handle_datagram(now, path, &mut datagram)
                {
                    self.received.push(packet.to_vec());
                }
            }
            Arrival::Icmp(path) => {
                if self.paths.contains_key(&path) {
                    self.client.handle_path_error(now, path, PathError::Refused);
                }
            }
            Arrival::DiskDone(ticket) => {
                let stored = self.writes.remove(&ticket).expect("each write ends once");
                self.durable = self.durable.max(stored.attach_seq);
                self.client.persisted(now, ticket, &stored);
            }
            Arrival::AtGateway(gateway, path, datagram) => self.at_gateway(gateway, path, datagram),
            Arrival::Result(gateway, index) => self.send_result(gateway, index),
        }
    }

    pub(super) fn place(&self, gateway: SocketAddr) -> usize {
        self.gateways.iter().position(|g| g.address == gateway).expect("a known gateway")
    }

    fn at_gateway(&mut self, address: SocketAddr, path: PathId, mut datagram: Vec<u8>) {
        let at = self.place(address);
        match self.gateways[at].mood {
            Mood::Silent => return,
            Mood::Refusing => {
                let at = self.now + self.latency;
                return self.push(at, Arrival::Icmp(path));
            }
            Mood::Alive | Mood::Loaded | Mood::Lying | Mood::Mute => {}
        }
        match DatagramType::of(&datagram) {
            Some(DatagramType::AttachInit) => self.at_init(at, path, &datagram),
            Some(DatagramType::Record) => self.at_record(at, path, &mut datagram),
            _ => panic!("clients send inits and records only"),
        }
    }

    fn at_init(&mut self, at: usize, path: PathId, init: &[u8]) {
        let source = SocketAddr::from(([198, 51, 100, 1], 10_000 + path.0 as u16));
        let unix = self.clock().unix_seconds;
        let admission = self.gate.admit(init, source, unix);
        assert_ne!(admission, Admission::BadMac);
        if self.gateways[at].mood == Mood::Loaded && admission != Admission::Cookie {
            let mut out = [0; 640];
            let len = self.gate.cookie_reply(init, source, unix, [9; 16], &mut out).expect("an init");
            return self.carry_down(path, out[..len].to_vec());
        }
        if !self.gateways[at].busy.is_empty() {
            let after = self.gateways[at].busy.remove(0);
            self.gateways[at].inits.push(init.to_vec());
            let busy = self.gate.busy(init, after).expect("an init");
            return self.carry_down(path, busy.to_vec());
        }
        let local = self.next_local;
        self.next_local += 1;
        let index = ReceiverIndex(((at as u32 + 1) << 20) | local);
        let hint = self.gate.hint(index);
        let roster: Vec<_> = self.gateways.iter().map(|g| g.address).collect();
        let gateway = &mut self.gateways[at];
        gateway.inits.push(init.to_vec());
        let pending = gateway.responder.read_init(init).expect("the client's own message");
        let (device, intent) = (pending.device(), pending.intent().clone());
        gateway.intents.push(intent.clone());
        let mut out = [0; REPLY_LEN_MAX];
        let (len, keys) = pending
            .write_reply(&gateway.responder, index, hint, &roster, &mut self.random, &mut out)
            .expect("entropy");
        let source = (gateway.address, path);
        gateway.peers.insert(
            index.0,
            Peer { keys, intent, device, active: false, fenced: false, source, answer: None },
        );
        let at = self.now + self.latency + self.gateways[at].handshake_delay;
        match self.gateways[self.place(source.0)].handshake_delay.is_zero() {
            true => self.carry_down(path, out[..len].to_vec()),
            false => self.push(at, Arrival::AtClient(path, out[..len].to_vec())),
        }
    }

    fn at_record(&mut self, at: usize, path: PathId, record: &mut [u8]) {
        let header = RecordHeader::parse(record).expect("a record");
        let address = self.gateways[at].address;
        let Some(peer) = self.gateways[at].peers.get_mut(&header.receiver.0) else {
            let hint = self.gate.hint_datagram(header.receiver).to_vec();
            return self.carry_down(path, hint);
        };
        let Ok(opened) = peer.keys.opening.open(record) else { return };
        let (content, plaintext) = (opened.content, opened.plaintext.to_vec());
        let fenced = peer.fenced && content == Content::Control;
        if fenced || self.gateways[at].mood == Mood::Mute {
            return;
        }
        if content == Content::Packet {
            self.move_peer(at, header.receiver.0, path);
            return self.gateways[at].packets.push(plaintext);
        }
        let frame = Frame::decode(&plaintext).expect("a frame");
        let before = self.move_peer(at, header.receiver.0, path);
        self.gateways[at].frames.push(frame.clone());
        match frame {
            Frame::Confirm => {
                let index = header.receiver.0;
                let delay = self.gateways[at].commit_delay;
                if self.gateways[at].says_pending
                    && self.gateways[at].peers.get(&index).is_some_and(|peer| peer.answer.is_none())
                {
                    self.say(at, index, &Frame::Pending);
                }
                self.push(self.now + delay, Arrival::Result(address, index));
            }
            Frame::MtuProbe { id, mtu, len } if mtu > 0 && self.mtu_max.is_some() => {
                let mtu_max = self.mtu_max.expect("just checked");
                let answer = Frame::MtuAnswer { id, mtu_max, len: len.min(mtu_max) };
                self.say(at, header.receiver.0, &answer);
            }
            Frame::Ping { id } | Frame::MtuProbe { id, .. } => {
                self.say(at, header.receiver.0, &Frame::Pong { id, received: 0, newest: 0 });
            }
            Frame::PathChallenge { token } => {
                self.say(at, header.receiver.0, &Frame::PathResponse { token });
                // A client that tries a path has not moved to it.
                self.move_peer(at, header.receiver.0, before);
            }
            Frame::Close { reason } => {
                self.say(at, header.receiver.0, &Frame::Terminated { reason });
            }
            _ => {}
        }
    }

    /// Answers go to `path` from now on; returns where they went before.
    fn move_peer(&mut self, at: usize, index: u32, path: PathId) -> PathId {
        let peer = self.gateways[at].peers.get_mut(&index).expect("a peer");
        core::mem::replace(&mut peer.source.1, path)
    }

    fn send_result(&mut self, gateway: SocketAddr, index: u32) {
        let at = self.place(gateway);
        if !matches!(self.gateways[at].mood, Mood::Alive | Mood::Loaded | Mood::Lying) {
            return;
        }
        if self.gateways[at].peers.get(&index).is_some_and(|peer| peer.answer.is_none()) {
            let answer = self.decide(at, index);
            if let Some(peer) = self.gateways[at].peers.get_mut(&index) {
                peer.answer = Some(answer);
            }
        }
        let answer = self.gateways[at].peers.get(&index).and_then(|peer| peer.answer.clone());
        if let Some(answer) = answer {
            self.say(at, index, &Frame::AttachResult(Box::new(answer)));
        }
    }

    fn decide(&mut self, at: usize, index: u32) -> AttachResult {
        if !self.gateways[at].script.is_empty() {
            return self.gateways[at].script.remove(0);
        }
        let intent = self.gateways[at].peers[&index].intent.clone();
        let again = self.store.accepted == Some((intent.attach_seq, intent.attempt, at));
        if !intent.rekey && !again {
            if intent.attach_seq.0 <= self.store.attach_seq {
                return rejected(
                    Reason::StaleAttempt,
                    self.store.epoch,
                    self.store.attach_seq,
                    Duration::ZERO,
                );
            }
            self.store.attach_seq = intent.attach_seq.0;
            self.store.epoch += 1;
            self.store.accepted = Some((intent.attach_seq, intent.attempt, at));
            for gateway in &mut self.gateways {
                for peer in gateway.peers.values_mut() {
                    peer.fenced |= std::mem::take(&mut peer.active);
                }
            }
        }
        let session = *self.store.session.get_or_insert(SessionId::from_bytes([0x11; 16]));
        if let Some(asked) = intent.session {
            assert_eq!(asked, session);
        }
        let rekey = intent.rekey;
        let accepted = self.accepted(at, index, Epoch(self.store.epoch), session, rekey);
        if let Some(peer) = self.gateways[at].peers.get_mut(&index) {
            peer.active = true;
        }
        AttachResult::Accepted(accepted)
    }

    fn accepted(&self, at: usize, index: u32, epoch: Epoch, session: SessionId, rekey: bool) -> Accepted {
        let gateway = &self.gateways[at];
        let peer = &gateway.peers[&index];
        let mut handshake_hash = peer.keys.handshake_hash;
        if gateway.mood == Mood::Lying {
            handshake_hash[0] ^= 1;
        }
        let claims = GrantClaims {
            handshake_hash,
            session,
            device: peer.device,
            epoch,
            node: gateway.node.clone(),
            incarnation: gateway.incarnation,
            not_after: UNIX + 100_000,
        };
        let grant = Grant::issue(&claims, &self.grants);
        Accepted {
            session,
            epoch,
            inner: vec![IpAddr::from(INNER)],
            grant: if rekey { Vec::new() } else { grant.as_bytes().to_vec() },
            routes: vec![(IpAddr::from([10, 0, 0, 0]), 8)],
            dns: vec![],
            mtu: 1280,
            expires_in: Duration::from_secs(86_400),
            lease: Duration::from_secs(3),
            roster: self.gateways.iter().map(|g| g.address).collect(),
            doors: vec![],
            correlation: [1; 16],
            switches_per_minute_max: 20,
            switch_cooldown: MS * 100,
            recovery_window: Duration::from_secs(120),
        }
    }

    /// Sends a control frame under the keys of `index`.
    pub(super) fn say(&mut self, at: usize, index: u32, frame: &Frame) {
        let room = FRAME_LEN_MAX.max(usize::from(MTU_MAX));
        let mut buffer = vec![0; room + OVERHEAD];
        let len = frame.encode(&mut buffer[HEADER_LEN..room + HEADER_LEN]).expect("fits");
        self.send_sealed(at, index, Content::Control, buffer, len);
    }

    /// The gateway's next record under the keys of `index` has this counter.
    pub(super) fn skip_to(&mut self, at: usize, index: u32, counter: u64) {
        self.gateways[at].peers.get_mut(&index).expect("a peer").keys.sealing.skip_to(counter);
    }

    /// Sends an inner packet under the keys of `index`.
    pub(super) fn send_packet(&mut self, at: usize, index: u32, packet: &[u8]) {
        let mut buffer = vec![0; packet.len() + OVERHEAD];
        buffer[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(packet);
        self.send_sealed(at, index, Content::Packet, buffer, packet.len());
    }

    fn send_sealed(&mut self, at: usize, index: u32, content: Content, mut buffer: Vec<u8>, len: usize) {
        let peer = self.gateways[at].peers.get_mut(&index).expect("a peer");
        let path = peer.source.1;
        let sealed = peer.keys.sealing.seal(content, &mut buffer, len).expect("below the limit");
        buffer.truncate(sealed);
        self.carry_down(path, buffer);
    }

    /// The index of the newest active peer of gateway `at`.
    pub(super) fn active(&self, at: usize) -> u32 {
        let active = self.gateways[at].peers.iter().filter(|(_, peer)| peer.active);
        *active.map(|(index, _)| index).next_back().expect("an active peer")
    }

    /// The gateway that the client holds to be the owner.
    pub(super) fn owner(&self) -> usize {
        let (_, address) = self.client.status().owner.expect("an owner");
        self.place(address)
    }

    /// Sends an inner packet from the device; false when it is held.
    pub(super) fn upload(&mut self, packet: &[u8]) -> bool {
        let mut frame = vec![0; packet.len() + OVERHEAD];
        frame[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(packet);
        let now = self.clock();
        let sealed = self.client.seal(now, &mut frame, packet.len());
        self.settle();
        let Ok(sealed) = sealed else { return false };
        frame.truncate(sealed.len);
        let gateway = *self.paths.get(&sealed.path).expect("packets leave on open paths");
        self.carry_up(sealed.path, gateway, frame);
        true
    }

    pub(super) fn states(&self) -> Vec<&'static str> {
        let changes = self.events.iter().filter_map(|(_, event)| match event {
            Event::StateChanged { to, .. } => Some(to.code()),
            _ => None,
        });
        changes.collect()
    }

    pub(super) fn attaches(&self) -> Vec<(Duration, Attached)> {
        let attaches = self.events.iter().filter_map(|(at, event)| match event {
            Event::Attached(attached) => Some((*at, (**attached).clone())),
            _ => None,
        });
        attaches.collect()
    }

    pub(super) fn last_intent(&self, at: usize) -> &AttachIntent {
        self.gateways[at].intents.last().expect("an intent")
    }
}

impl FakeGateway {
    fn new(i: usize, random: &mut Seeded) -> Self {
        let (cluster, grants, _) = keys();
        let node: NodeId = format!("gw{i}").parse().expect("valid");
        let signer = NodeSigner::generate(random).expect("entropy");
        let claims = NodeClaims {
            node: node.clone(),
            incarnation: Incarnation(100 + i as u64),
            verifying_key: signer.verifying_key(),
            not_after: UNIX + 100_000,
        };
        let certificate = NodeCertificate::issue(&claims, &grants);
        Self {
            address: address(i),
            node,
            incarnation: claims.incarnation,
            responder: Responder::new(vec![cluster], certificate, signer),
            mood: Mood::Alive,
            peers: BTreeMap::new(),
            script: Vec::new(),
            inits: Vec::new(),
            intents: Vec::new(),
            packets: Vec::new(),
            frames: Vec::new(),
            commit_delay: MS,
            busy: Vec::new(),
            says_pending: false,
            handshake_delay: Duration::ZERO,
        }
    }
}

pub(super) fn rejected(reason: Reason, epoch: u64, attach_seq: u64, retry_after: Duration) -> AttachResult {
    AttachResult::Rejected {
        reason,
        current_epoch: Epoch(epoch),
        current_attach_seq: AttachSeq(attach_seq),
        retry_after,
    }
}

/// An IPv4 packet to the device's inner address.
pub(super) fn download(mark: u8) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x45;
    packet[16..20].copy_from_slice(&INNER);
    packet[39] = mark;
    packet
}
