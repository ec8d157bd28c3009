//! The data plane in memory: real handshakes and records, no sockets.

mod anchors;
mod attach;
mod egress;
mod forward;
mod fuzz;
mod garbage;
mod handover;
mod mesh;
mod mtu;
mod replay;

use std::net::IpAddr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use jump_crypto::certificate::{NodeCertificate, NodeClaims, NodeSigner};
use jump_crypto::entropy::EntropyError;
use jump_crypto::handshake::{
    AttachIntent, Established, INIT_LEN, Initiation, InitiationInput, REPLY_LEN_MAX, ReplyInfo, Responder,
    Suite,
};
use jump_crypto::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation};
use jump_crypto::keys::{ClusterSecret, DeviceSecret, GrantSigner, GrantVerifier};
use jump_crypto::mesh::{MeshEnd, MeshSecret};
use jump_crypto::record::Opened;
use jump_session::frame::{Accepted, AttachResult};
use std::net::SocketAddr;

use super::After;
use super::*;

/// Seeded, unlike anything in production.
pub(super) struct Seeded(u64);

impl Entropy for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for byte in bytes {
            // SplitMix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)) as u8;
        }
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct MemoryWire {
    pub(super) clients: Vec<(SocketAddr, Vec<u8>)>,
    pub(super) mesh: Vec<(SocketAddr, Vec<u8>)>,
    pub(super) inner: Vec<Vec<u8>>,
    /// ECN bits asked for the datagrams to clients that carry packets.
    pub(super) marks: Vec<u8>,
}

impl Wire for MemoryWire {
    fn to_client(&mut self, path: Path, len: usize) -> &mut [u8] {
        self.clients.push((path.peer, vec![0; len]));
        &mut self.clients.last_mut().unwrap().1
    }

    fn mark_next(&mut self, ecn: u8) {
        self.marks.push(ecn);
    }

    fn cancel_client(&mut self) {
        self.clients.pop();
    }

    fn to_mesh(&mut self, destination: SocketAddr, len: usize) -> &mut [u8] {
        self.mesh.push((destination, vec![0; len]));
        &mut self.mesh.last_mut().unwrap().1
    }

    fn cancel_mesh(&mut self) {
        self.mesh.pop();
    }

    fn to_inner(&mut self, packet: &[u8]) {
        self.inner.push(packet.to_vec());
    }
}

/// What the nodes of one test share.
pub(super) struct Cluster {
    secret: [u8; 32],
    grants: GrantSigner,
    entropy: Seeded,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let mut entropy = Seeded(1);
        let grants = GrantSigner::generate(&mut entropy).unwrap();
        let mut secret = [0; 32];
        entropy.fill(&mut secret).unwrap();
        Self { secret, grants, entropy }
    }

    pub(super) fn secret(&self) -> ClusterSecret {
        ClusterSecret::from_bytes(self.secret)
    }
}

/// A gateway without sockets.
pub(super) struct Node {
    pub(super) plane: DataPlane,
    pub(super) wire: MemoryWire,
    pub(super) now: Nanos,
    events: mpsc::Receiver<Event>,
    jobs: Receiver<InitJob>,
    responder: Responder,
    entropy: Seeded,
    mesh: MeshSecret,
    end: MeshEnd,
    mesh_address: SocketAddr,
    /// Everything that came, where it is recorded: from a client or another gateway.
    tape: Option<Vec<(Option<SocketAddr>, Vec<u8>)>>,
    questions: Option<Receiver<FlowQuestion>>,
}

pub(super) const SECOND: Nanos = 1_000_000_000;

impl Node {
    pub(super) fn new(cluster: &mut Cluster, number: u16) -> Self {
        Self::with_limits(cluster, number, Limits::default())
    }

    pub(super) fn with_limits(cluster: &mut Cluster, number: u16, limits: Limits) -> Self {
        Self::made(cluster, number, limits, None)
    }

    /// With anchored egress, and a kernel that is the test.
    pub(super) fn anchoring(cluster: &mut Cluster, number: u16) -> Self {
        Self::anchoring_with_limits(cluster, number, Limits::default())
    }

    pub(super) fn anchoring_with_limits(cluster: &mut Cluster, number: u16, limits: Limits) -> Self {
        let (questions, asked) = std::sync::mpsc::sync_channel(64);
        let setup = EgressSetup { incarnation: Incarnation(u64::from(number)), questions };
        let node = Self::made(cluster, number, limits, Some(setup));
        Self { questions: Some(asked), ..node }
    }

    fn made(cluster: &mut Cluster, number: u16, limits: Limits, egress: Option<EgressSetup>) -> Self {
        let mut entropy = Seeded(u64::from(number) << 32);
        let signer = NodeSigner::generate(&mut cluster.entropy).unwrap();
        let claims = NodeClaims {
            node: format!("gw-{number}").parse().unwrap(),
            incarnation: Incarnation(u64::from(number)),
            verifying_key: signer.verifying_key(),
            not_after: u64::MAX,
        };
        let certificate = NodeCertificate::issue(&claims, &cluster.grants);
        let mesh = MeshSecret::generate(&mut entropy).unwrap();
        let end =
            MeshEnd { number: NodeNumber(number), incarnation: claims.incarnation, public: mesh.public() };
        let (events, news) = mpsc::channel(4096);
        let (queue, jobs) = std::sync::mpsc::sync_channel(INITS_MAX);
        let mut plane = DataPlane::new(Setup {
            number: NodeNumber(number),
            pools: vec!["10.64.0.0/16".parse().unwrap()],
            gates: vec![Gate::new(&cluster.secret())],
            limits,
            entropy: Box::new(Seeded(7)),
            events,
            inits: vec![queue],
            egress,
        });
        plane.routes.complete = true;
        Self {
            plane,
            wire: MemoryWire::default(),
            now: 1_000 * SECOND,
            events: news,
            jobs,
            responder: Responder::new(vec![cluster.secret()], certificate, signer),
            entropy,
            mesh,
            end,
            mesh_address: SocketAddr::from(([192, 0, 2, number as u8], 51821)),
            tape: None,
            questions: None,
        }
    }

    /// What the kernel is asked.
    pub(super) fn questions(&self) -> Vec<FlowQuestion> {
        self.questions.iter().flat_map(|questions| questions.try_iter()).collect()
    }

    /// Answers every question by these flows.
    pub(super) fn kernel_says(&mut self, flows: &[Flow]) {
        let answer = |FlowQuestion { session, epoch, .. }| FlowAnswer {
            session,
            epoch,
            flows: flows.to_vec(),
            is_whole: true,
        };
        let answers = self.questions().into_iter().map(answer).collect();
        self.command(Command::Flows(answers));
        self.advance(0);
    }

    pub(super) fn tick(&self) -> Tick {
        Tick { now: self.now, unix: 1_700_000_000 + self.now / SECOND }
    }

    pub(super) fn command(&mut self, command: Command) -> After {
        let after = self.plane.handle_command(self.tick(), command, true, &mut self.wire);
        self.check_census();
        after
    }

    /// The sessions counted by state are those that are there.
    fn check_census(&self) {
        let mut there = [0; State::ALL.len()];
        for local in self.plane.by_session.values() {
            let Some(Entry::Session(session)) = self.plane.entries.get(*local) else { panic!("no session") };
            there[session.machine.state() as usize] += 1;
        }
        assert_eq!(State::ALL.map(|state| self.plane.sessions_in(state)), there);
    }

    pub(super) fn client_sends(&mut self, source: SocketAddr, datagram: &[u8]) {
        let mut datagram = datagram.to_vec();
        if let Some(tape) = &mut self.tape {
            tape.push((Some(source), datagram.clone()));
        }
        self.plane.handle_client(self.tick(), source, &mut datagram, &mut self.wire);
        self.check_census();
    }

    pub(super) fn mesh_brings(&mut self, datagram: &[u8]) {
        let mut datagram = datagram.to_vec();
        if let Some(tape) = &mut self.tape {
            tape.push((None, datagram.clone()));
        }
        self.plane.handle_mesh(self.tick(), &mut datagram, &mut self.wire);
    }

    pub(super) fn inner_sends(&mut self, packet: &[u8]) {
        self.plane.handle_inner(self.tick(), packet, &mut self.wire);
    }

    pub(super) fn advance(&mut self, by: Nanos) {
        self.now += by;
        self.plane.handle_timers(self.tick(), &mut self.wire);
        self.check_census();
    }

    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.plane.counters().dropped(reason)
    }

    pub(super) fn count(&self, count: Count) -> u64 {
        self.plane.counters().count(count)
    }

    /// Does a handshake thread's work.
    pub(super) fn answer_inits(&mut self) {
        while let Ok(job) = self.jobs.try_recv() {
            let command = match self.responder.read_init(&job.datagram[..]) {
                Ok(pending) => {
                    let (device, intent) = (pending.device(), pending.intent().clone());
                    let mut reply = [0; REPLY_LEN_MAX];
                    let (len, keys) = pending
                        .write_reply(&self.responder, job.index, job.hint, &[], &mut self.entropy, &mut reply)
                        .unwrap();
                    let reply = Box::from(&reply[..len]);
                    Command::Answered(Box::new(Answered {
                        keys,
                        device,
                        intent,
                        path: job.source,
                        reply,
                        key_set: None,
                    }))
                }
                Err(_) => Command::Refused { index: job.index, reason: DropReason::RefusedInit },
            };
            self.command(command);
        }
    }

    /// The confirmations that control has not heard of.
    pub(super) fn confirmed(&mut self) -> Vec<Confirmed> {
        let mut confirmed = vec![];
        while let Ok(event) = self.events.try_recv() {
            if let Event::Confirmed(one) = event {
                confirmed.push(*one);
            }
        }
        confirmed
    }

    pub(super) fn ended(&mut self) -> Vec<(SessionId, Epoch, jump_session::reason::Reason)> {
        let mut ended = vec![];
        while let Ok(event) = self.events.try_recv() {
            if let Event::Ended(Carried { session, epoch, .. }, reason) = event {
                ended.push((session, epoch, reason));
            }
        }
        ended
    }

    pub(super) fn accept(&mut self, confirmed: &Confirmed, session: SessionId, epoch: u64, inner: &[IpAddr]) {
        let verdict = Verdict::Accepted(activation(session, epoch, inner, self.now));
        self.command(Command::Decide { index: confirmed.index, verdict: Box::new(verdict) });
    }

    /// Stops a session as a fence does; true when the order asks for an acknowledgement after the flush.
    pub(super) fn stop(&mut self, session: SessionId, epoch: u64, cause: StopCause) -> bool {
        matches!(self.stopped(session, epoch, cause), After::Acknowledge(..))
    }

    /// Stops a session as a fence does; the ages of its path switches that the asker hears.
    pub(super) fn stop_ages(&mut self, session: SessionId, epoch: u64) -> Vec<Duration> {
        match self.stopped(session, epoch, StopCause::Moved) {
            After::Acknowledge(_, ages) => ages,
            After::Nothing | After::Shutdown => panic!("nobody was told"),
        }
    }

    fn stopped(&mut self, session: SessionId, epoch: u64, cause: StopCause) -> After {
        let (done, _) = tokio::sync::oneshot::channel();
        self.command(Command::Stop { session, epoch: Epoch(epoch), cause, done: Some(done) })
    }

    pub(super) fn bind(&mut self, session: SessionId, epoch: u64, inner: &[IpAddr], phase: BindingPhase) {
        let update = BindingUpdate {
            session,
            epoch: Epoch(epoch),
            inner: inner.to_vec(),
            phase,
            policy: Policy::default(),
        };
        self.command(Command::Bindings(vec![update]));
    }
}

/// Links two nodes with each other; each knows the other as its number.
pub(super) fn link(a: &mut Node, b: &mut Node) {
    let (a_end, b_end) = ((a.end, a.mesh_address), (b.end, b.mesh_address));
    for (own, (peer, address)) in [(a, b_end), (b, a_end)] {
        let (sealing, opening) = own.mesh.link(&own.end, &peer).unwrap();
        let node = NodeRef(u32::from(peer.number.0));
        let (number, incarnation) = (peer.number, peer.incarnation);
        let link = Link { node, number, incarnation, address, sealing, opening };
        own.command(Command::Link(Box::new(link)));
    }
}

pub(super) fn activation(session: SessionId, epoch: u64, inner: &[IpAddr], now: Nanos) -> Activation {
    let result = AttachResult::Accepted(Accepted {
        session,
        epoch: Epoch(epoch),
        inner: inner.to_vec(),
        grant: vec![1; 200],
        routes: vec![],
        dns: vec![],
        mtu: 1280,
        expires_in: Duration::from_secs(3600),
        lease: Duration::from_secs(3),
        roster: vec![],
        doors: vec![],
        correlation: [3; 16],
        switches_per_minute_max: 20,
        switch_cooldown: Duration::ZERO,
        recovery_window: Duration::from_secs(120),
    });
    Activation {
        session,
        epoch: Epoch(epoch),
        inner: Inner::new(inner.iter().copied()),
        correlation: [3; 16],
        expires: now + 3600 * SECOND,
        idle_transport_max: Duration::from_secs(120),
        switches_per_minute_max: 20,
        switch_cooldown: Duration::ZERO,
        switch_ages: Vec::new(),
        policy: Policy::default(),
        result,
    }
}

/// A device at one address.
pub(super) struct Client {
    device: DeviceSecret,
    pub(super) address: SocketAddr,
    entropy: Seeded,
    verifier: GrantVerifier,
    cluster: jump_crypto::keys::ClusterPublic,
    next_seq: u64,
    pub(super) capabilities: u32,
    pub(super) keys: Option<Established>,
}

impl Client {
    pub(super) fn new(cluster: &mut Cluster, number: u16) -> Self {
        let device = DeviceSecret::generate(&mut cluster.entropy).unwrap();
        Self {
            device,
            address: SocketAddr::from(([198, 51, 100, number as u8], 1000 + number)),
            entropy: Seeded(u64::from(number) << 16),
            verifier: GrantVerifier::new(&[cluster.grants.public()]),
            cluster: cluster.secret().public(),
            next_seq: 1,
            capabilities: 0,
            keys: None,
        }
    }

    pub(super) fn device_key(&self) -> DeviceKey {
        self.device.public()
    }

    pub(super) fn init(
        &mut self,
        session: Option<SessionId>,
        rekey_epoch: Option<u64>,
    ) -> (Initiation, [u8; INIT_LEN]) {
        let intent = AttachIntent {
            session,
            attach_seq: AttachSeq(self.next_seq),
            attempt: AttemptId::from_bytes([self.next_seq as u8; 16]),
            last_epoch: Epoch(rekey_epoch.unwrap_or(0)),
            reason: 1,
            capabilities: self.capabilities,
            rekey: rekey_epoch.is_some(),
            holding: jump_crypto::handshake::Holding::default(),
        };
        self.next_seq += 1;
        let mut index = [0; 4];
        self.entropy.fill(&mut index).unwrap();
        let input = InitiationInput {
            device: &self.device,
            cluster: &self.cluster,
            suite: Suite::ChaChaPolyBlake2s,
            intent: &intent,
            index: ReceiverIndex(u32::from_be_bytes(index)),
            cookie: None,
        };
        let mut init = [0; INIT_LEN];
        let initiation = Initiation::start(&input, &mut self.entropy, &mut init).unwrap();
        (initiation, init)
    }

    /// Handshakes with `node` up to the established keys; nothing is confirmed yet.
    pub(super) fn handshake(
        &mut self,
        node: &mut Node,
        session: Option<SessionId>,
        rekey_epoch: Option<u64>,
    ) -> (Established, ReplyInfo) {
        let (mut initiation, init) = self.init(session, rekey_epoch);
        node.client_sends(self.address, &init);
        node.answer_inits();
        let (to, reply) = node.wire.clients.pop().expect("a reply");
        assert_eq!(to, self.address);
        initiation.finish(&reply, &self.verifier, 0).unwrap()
    }

    /// Handshakes and confirms; returns what control is asked.
    pub(super) fn confirm(&mut self, node: &mut Node, session: Option<SessionId>) -> Confirmed {
        let (keys, _) = self.handshake(node, session, None);
        self.keys = Some(keys);
        self.send(node, &Frame::Confirm);
        let mut confirmed = node.confirmed();
        assert_eq!(confirmed.len(), 1);
        confirmed.remove(0)
    }

    /// Attaches and is accepted; the result is read.
    pub(super) fn attach(&mut self, node: &mut Node, session: SessionId, epoch: u64, inner: &[IpAddr]) {
        let confirmed = self.confirm(node, Some(session));
        node.accept(&confirmed, session, epoch, inner);
        let frames = self.frames(node);
        assert!(matches!(&frames[..], [Frame::AttachResult(r)] if matches!(**r, AttachResult::Accepted(_))));
    }

    pub(super) fn seal(&mut self, content: Content, text: &[u8]) -> Vec<u8> {
        let mut record = vec![0; text.len() + OVERHEAD];
        record[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
        self.keys.as_mut().unwrap().sealing.seal(content, &mut record, text.len()).unwrap();
        record
    }

    pub(super) fn send(&mut self, node: &mut Node, frame: &Frame) {
        let record = self.seal(Content::Control, &encode(frame));
        node.client_sends(self.address, &record);
    }

    pub(super) fn send_packet(&mut self, node: &mut Node, packet: &[u8]) {
        let record = self.seal(Content::Packet, packet);
        node.client_sends(self.address, &record);
    }

    /// Opens everything that the node has sent to this client.
    pub(super) fn receive(&mut self, node: &mut Node) -> (Vec<Frame>, Vec<Vec<u8>>) {
        let (mut frames, mut packets) = (vec![], vec![]);
        let address = self.address;
        for (_, mut datagram) in node.wire.clients.extract_if(.., |(to, _)| *to == address) {
            let Ok(Opened { content, plaintext, .. }) =
                self.keys.as_mut().unwrap().opening.open(&mut datagram)
            else {
                continue;
            };
            match content {
                Content::Control => frames.push(Frame::decode(plaintext).unwrap()),
                Content::Packet => packets.push(plaintext.to_vec()),
            }
        }
        (frames, packets)
    }

    pub(super) fn frames(&mut self, node: &mut Node) -> Vec<Frame> {
        self.receive(node).0
    }

    pub(super) fn packets(&mut self, node: &mut Node) -> Vec<Vec<u8>> {
        self.receive(node).1
    }
}

pub(super) fn session(number: u8) -> SessionId {
    SessionId::from_bytes([number; 16])
}

/// The inner address of a client.
pub(super) fn inner(number: u8) -> IpAddr {
    IpAddr::from([10, 64, 0, number])
}

/// An address of the inner network.
pub(super) fn server() -> IpAddr {
    IpAddr::from([10, 1, 0, 1])
}

pub(super) use super::inner::tests::packet;
