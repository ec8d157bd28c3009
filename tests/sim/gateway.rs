//! A gateway machine: the production data plane, driven as its engine and its worker drive it, in virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, sync_channel};

use jump_crypto::certificate::{NodeCertificate, NodeClaims, NodeSigner};
use jump_crypto::cookie::Gate;
use jump_crypto::handshake::{REPLY_LEN_MAX, ROSTER_MAX, Responder};
use jump_crypto::mesh::{MeshEnd, MeshSecret};
use jump_gateway::dataplane::{
    Activation, After, Answered, BindingPhase, BindingUpdate, Carried, Command, Confirmed, DataPlane,
    DropReason, Event as News, InitJob, Inner, Limits, Link, NodeRef, Policy, Setup, StopCause, Tick,
    Verdict, Wire,
};
use jump_session::frame::AttachResult;
use jump_session::ids::{Epoch, Incarnation, NodeId, SessionId};
use jump_session::ownership::{AttachRequest, Authority, Change, Owner, Phase, SessionRecord};
use jump_session::path::Path;
use jump_session::reason::Reason;

use crate::control::{Answer, Call, Claim, unavailable};
use crate::event::Event;
use crate::random::Random;
use crate::store::NodeKey;
use crate::world::{MARGIN, MS, Nanos, RENEW_EVERY, TTL, UNIX, World, cluster_secret};

/// What the data plane sent in one step.
#[derive(Default)]
pub(crate) struct Output {
    pub(crate) clients: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) mesh: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) inner: Vec<Vec<u8>>,
}

impl Wire for Output {
    fn to_client(&mut self, path: Path, len: usize) -> &mut [u8] {
        self.clients.push((path.peer, vec![0; len]));
        &mut self.clients.last_mut().expect("just pushed").1
    }

    fn cancel_client(&mut self) {
        self.clients.pop();
    }

    fn to_mesh(&mut self, destination: SocketAddr, len: usize) -> &mut [u8] {
        self.mesh.push((destination, vec![0; len]));
        &mut self.mesh.last_mut().expect("just pushed").1
    }

    fn cancel_mesh(&mut self) {
        self.mesh.pop();
    }

    fn to_inner(&mut self, packet: &[u8]) {
        self.inner.push(packet.to_vec());
    }
}

/// One registered life of the worker.
pub(crate) struct Run {
    pub(crate) owner: Owner,
    pub(crate) plane: DataPlane,
    pub(crate) authority: Authority,
    news: tokio::sync::mpsc::Receiver<News>,
    inits: Receiver<InitJob>,
    responder: Responder,
    own: MeshEnd,
    mesh: MeshSecret,
    references: BTreeMap<Owner, NodeRef>,
    linked: BTreeMap<NodeId, Owner>,
    random: Random,
    timer_at: Option<Nanos>,
}

/// What a worker that is not registered yet has made for its run.
struct Cradle {
    mesh: MeshSecret,
    signer: NodeSigner,
}

/// Why a call was made.
#[derive(Clone)]
pub(crate) enum Purpose {
    Register,
    Renew {
        sent: Nanos,
    },
    Attach(Box<Confirmed>),
    /// An acknowledgement, a release, an end, a supervisor's word: repeated until it is heard.
    Tell,
}

pub(crate) struct Pending {
    call: Call,
    purpose: Purpose,
    tries: usize,
}

/// One gateway machine.
pub(crate) struct Gateway {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) mesh_address: SocketAddr,
    /// How its clock differs from the store's, in parts per million.
    pub(crate) drift: i64,
    /// False while the whole machine is gone.
    pub(crate) is_powered: bool,
    /// Lives of the worker so far: whatever belongs to an earlier one is void.
    pub(crate) boot: u64,
    pub(crate) run: Option<Run>,
    cradle: Option<Cradle>,
    pub(crate) is_paused: bool,
    pub(crate) backlog: Vec<Event>,
    pub(crate) is_cut_from_control: bool,
    pub(crate) is_cut_from_clients: bool,
    pub(crate) replica: usize,
    pub(crate) calls: BTreeMap<u64, Pending>,
    reaped: Option<Incarnation>,
    /// When the last news of the bindings arrives: the stream keeps its order.
    pub(crate) stream_until: Nanos,
    pub(crate) is_stream_broken: bool,
}

impl Gateway {
    pub(crate) fn new(at: usize, random: &mut Random) -> Self {
        let host = at as u8 + 1;
        Self {
            node: format!("gw-{host}").parse().expect("a valid name"),
            address: SocketAddr::from(([192, 0, 2, host], 51820)),
            mesh_address: SocketAddr::from(([192, 0, 2, host], 51821)),
            drift: random.between(0, 80_000) as i64 - 40_000,
            is_powered: true,
            boot: 0,
            run: None,
            cradle: None,
            is_paused: false,
            backlog: Vec::new(),
            is_cut_from_control: false,
            is_cut_from_clients: false,
            replica: random.below(2),
            calls: BTreeMap::new(),
            reaped: None,
            stream_until: 0,
            is_stream_broken: true,
        }
    }

    /// The gateway's suspend-counting clock.
    pub(crate) fn clock(&self, now: Nanos) -> Nanos {
        let drifted = i128::from(now) * i128::from(1_000_000 + self.drift) / 1_000_000;
        u64::try_from(drifted).unwrap_or(0) + 5_000 * MS
    }

    pub(crate) fn tick(&self, now: Nanos) -> Tick {
        Tick { now: self.clock(now), unix: UNIX + now / (1_000 * MS) }
    }
}

impl World {
    /// The supervisor starts a worker.
    pub(crate) fn boot(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.boot += 1;
        let mesh = MeshSecret::generate(&mut self.random).expect("entropy");
        let signer = NodeSigner::generate(&mut self.random).expect("entropy");
        gateway.cradle = Some(Cradle { mesh, signer });
        self.register(at);
    }

    fn register(&mut self, at: usize) {
        let gateway = &self.gateways[at];
        let Some(cradle) = &gateway.cradle else { return };
        let mesh_public = cradle.mesh.public();
        let call = Call::Register { node: at, reaped: gateway.reaped, mesh_public };
        self.call(at, call, Purpose::Register, 0);
    }

    /// The worker is gone, with everything it held.
    pub(crate) fn kill_worker(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.boot += 1;
        if let Some(run) = gateway.run.take() {
            gateway.reaped = Some(run.owner.incarnation);
        }
        gateway.cradle = None;
        gateway.is_paused = false;
        gateway.backlog.clear();
        gateway.calls.clear();
        gateway.is_stream_broken = true;
    }

    /// The supervisor has reaped the worker: it says so and starts another.
    pub(crate) fn reap(&mut self, at: usize) {
        let gateway = &self.gateways[at];
        if let Some(incarnation) = gateway.reaped {
            let run = Owner { node: gateway.node.clone(), incarnation };
            self.call(at, Call::Deregister { run }, Purpose::Tell, 0);
        }
        let delay = self.random.between(20, 200) * MS;
        let boot = self.gateways[at].boot;
        self.push(delay, Event::Boot { at, boot });
    }

    /// What a machine that lost its power does not remember.
    pub(crate) fn forget_reaped(&mut self, at: usize) {
        self.gateways[at].reaped = None;
    }

    fn call(&mut self, at: usize, call: Call, purpose: Purpose, tries: usize) {
        self.calls += 1;
        let id = self.calls;
        let patience = match purpose {
            Purpose::Attach(_) => 2_500 * MS,
            Purpose::Renew { .. } => 700 * MS,
            Purpose::Register | Purpose::Tell => 1_000 * MS,
        };
        let gateway = &mut self.gateways[at];
        gateway.calls.insert(id, Pending { call: call.clone(), purpose, tries });
        let (replica, boot) = (gateway.replica, gateway.boot);
        self.send_call(at, id, replica, call);
        self.push(patience, Event::CallTimeout { at, boot, id });
    }

    /// No replica answered in time.
    pub(crate) fn call_timed_out(&mut self, at: usize, id: u64) {
        let gateway = &mut self.gateways[at];
        let Some(Pending { call, purpose, tries }) = gateway.calls.remove(&id) else { return };
        gateway.replica = (gateway.replica + 1) % self.replicas.len();
        if tries + 1 < self.replicas.len() || matches!(purpose, Purpose::Tell) {
            return self.call(at, call, purpose, tries + 1);
        }
        let boot = gateway.boot;
        match purpose {
            Purpose::Register => self.push(100 * MS, Event::RegisterAgain { at, boot }),
            Purpose::Renew { .. } => self.push(150 * MS, Event::Renew { at, boot }),
            Purpose::Attach(confirmed) => {
                let verdict = Box::new(Verdict::Rejected(unavailable()));
                self.command(at, Command::Decide { index: confirmed.index, verdict });
            }
            Purpose::Tell => {}
        }
    }

    pub(crate) fn register_again(&mut self, at: usize) {
        self.register(at);
    }

    pub(crate) fn renew(&mut self, at: usize) {
        let gateway = &self.gateways[at];
        let Some(run) = &gateway.run else { return };
        let (run, sent) = (run.owner.clone(), gateway.clock(self.now));
        self.call(at, Call::Renew { run }, Purpose::Renew { sent }, 0);
    }

    pub(crate) fn answered(&mut self, at: usize, id: u64, answer: Answer) {
        let Some(Pending { purpose, .. }) = self.gateways[at].calls.remove(&id) else { return };
        let boot = self.gateways[at].boot;
        match (purpose, answer) {
            (Purpose::Register, Answer::Registered(key)) => self.begin_run(at, &key),
            (Purpose::Register, _) => self.push(100 * MS, Event::RegisterAgain { at, boot }),
            (Purpose::Renew { sent }, Answer::Renewed { fences }) => {
                for (session, epoch) in fences {
                    self.stop(at, session, epoch);
                }
                if let Some(run) = &mut self.gateways[at].run {
                    let ns = std::time::Duration::from_nanos;
                    let renewed = Authority::renewed(sent, ns(TTL), ns(MARGIN));
                    run.authority.deadline = run.authority.deadline.max(renewed.deadline);
                }
                self.push(RENEW_EVERY, Event::Renew { at, boot });
            }
            (Purpose::Renew { .. }, Answer::NotRegistered) => {
                self.note(|world| format!("{} lost its lease", world.gateways[at].node));
                self.kill_worker(at);
                self.reap(at);
            }
            (Purpose::Renew { .. }, _) => self.push(150 * MS, Event::Renew { at, boot }),
            (Purpose::Attach(confirmed), Answer::Attached(accepted)) => {
                let (record, result) = *accepted;
                let activation = self.activation(at, &record, result);
                let verdict = Box::new(Verdict::Accepted(activation));
                self.command(at, Command::Decide { index: confirmed.index, verdict });
            }
            (Purpose::Attach(confirmed), Answer::Refused(result)) => {
                let verdict = Box::new(Verdict::Rejected(*result));
                self.command(at, Command::Decide { index: confirmed.index, verdict });
            }
            (Purpose::Attach(_) | Purpose::Tell, _) => {}
        }
    }

    fn activation(&self, at: usize, record: &SessionRecord, result: AttachResult) -> Activation {
        let policy = crate::control::policy();
        let lifetime = u64::try_from(policy.session_lifetime.as_nanos()).expect("a day");
        Activation {
            session: record.id,
            epoch: record.epoch,
            inner: Inner::new(record.inner.iter().copied()),
            correlation: record.correlation,
            expires: self.gateways[at].clock(self.now) + lifetime,
            idle_transport_max: policy.idle_transport_max,
            switches_per_minute_max: policy.switches_per_minute_max,
            switch_cooldown: policy.switch_cooldown,
            switch_ages: record.switch_ages(self.wall_millis(0)),
            policy: Policy::default(),
            result,
        }
    }

    fn begin_run(&mut self, at: usize, key: &NodeKey) {
        let gateway = &mut self.gateways[at];
        let Some(Cradle { mesh, signer }) = gateway.cradle.take() else { return };
        let owner = Owner { node: gateway.node.clone(), incarnation: key.incarnation };
        let claims = NodeClaims {
            node: gateway.node.clone(),
            incarnation: key.incarnation,
            verifying_key: signer.verifying_key(),
            not_after: u64::MAX,
        };
        let certificate = NodeCertificate::issue(&claims, &self.grants);
        let (events, news) = tokio::sync::mpsc::channel(4096);
        let (queue, inits) = sync_channel(256);
        let own = MeshEnd { number: key.number, incarnation: key.incarnation, public: mesh.public() };
        let plane = DataPlane::new(Setup {
            number: key.number,
            pools: vec!["10.64.0.0/16".parse().expect("a network")],
            gates: vec![Gate::new(&cluster_secret())],
            limits: Limits::default(),
            entropy: Box::new(self.random.fork()),
            events,
            inits: vec![queue],
            egress: None,
        });
        gateway.reaped = None;
        gateway.is_stream_broken = true;
        gateway.run = Some(Run {
            references: BTreeMap::from([(owner.clone(), NodeRef::OWN)]),
            owner,
            plane,
            authority: Authority { deadline: 0 },
            news,
            inits,
            responder: Responder::new(vec![cluster_secret()], certificate, signer),
            own,
            mesh,
            linked: BTreeMap::new(),
            random: self.random.fork(),
            timer_at: None,
        });
        self.note(|world| format!("{} begins run {}", world.gateways[at].node, key.incarnation));
        self.renew(at);
        let boot = self.gateways[at].boot;
        self.push(MS, Event::OpenStream { at, boot });
        self.push(25 * MS, Event::PlaneTimer { at, boot });
    }

    /// Whether the gateway may forward at this moment.
    pub(crate) fn holds(&self, at: usize) -> bool {
        let gateway = &self.gateways[at];
        let guarded = |run: &Run| run.authority.holds(gateway.clock(self.now)) || self.is_guard_off;
        gateway.run.as_ref().is_some_and(guarded)
    }

    /// Lets the data plane do something, and carries what comes of it.
    pub(crate) fn drive(&mut self, at: usize, act: impl FnOnce(&mut DataPlane, Tick, bool, &mut Output)) {
        let holds = self.holds(at);
        let tick = self.gateways[at].tick(self.now);
        let Some(run) = &mut self.gateways[at].run else { return };
        let mut output = Output::default();
        run.plane.handle_authority(tick.now, holds);
        act(&mut run.plane, tick, holds, &mut output);
        self.carry(at, output);
        self.settle(at);
    }

    pub(crate) fn command(&mut self, at: usize, command: Command) {
        self.drive(at, |plane, tick, holds, output| {
            plane.handle_command(tick, command, holds, output);
        });
    }

    /// Everything the data plane asks of the rest of the worker.
    fn settle(&mut self, at: usize) {
        let boot = self.gateways[at].boot;
        loop {
            let Some(run) = &mut self.gateways[at].run else { return };
            if let Ok(job) = run.inits.try_recv() {
                self.push(MS / 5, Event::Handshake { at, boot, job: Box::new(job) });
                continue;
            }
            match run.news.try_recv() {
                Ok(News::Confirmed(confirmed)) => self.claim(at, confirmed),
                Ok(News::Ended(Carried { session, epoch, .. }, reason)) => {
                    let by = Some((run.owner.clone(), epoch));
                    let change = Change::Terminate { by, reason };
                    self.call(at, Call::Change { session, change }, Purpose::Tell, 0);
                }
                Ok(News::Note(_) | News::Suspect(_)) => {}
                Err(_) => break,
            }
        }
        let gateway = &mut self.gateways[at];
        let local = gateway.clock(self.now);
        let Some(run) = &mut gateway.run else { return };
        if let Some(due) = run.plane.poll_timeout() {
            let delay = due.saturating_sub(local).clamp(MS, 25 * MS);
            if run.timer_at.is_none_or(|timer| timer > self.now + delay) {
                run.timer_at = Some(self.now + delay);
                self.push(delay, Event::PlaneTimer { at, boot });
            }
        }
    }

    pub(crate) fn plane_timer(&mut self, at: usize) {
        if let Some(run) = &mut self.gateways[at].run {
            run.timer_at = None;
        }
        self.drive(at, |plane, tick, holds, output| {
            if holds {
                plane.handle_timers(tick, output);
            }
        });
    }

    fn claim(&mut self, at: usize, confirmed: Box<Confirmed>) {
        let Some(run) = &self.gateways[at].run else { return };
        let intent = &confirmed.intent;
        let claim = Claim {
            request: AttachRequest {
                claimant: run.owner.clone(),
                device: confirmed.device,
                attach_seq: intent.attach_seq,
                attempt: intent.attempt,
                reason: Reason::from_number(intent.reason).unwrap_or(Reason::ClientRequest),
                switch_ages: confirmed.switch_ages.clone(),
            },
            session: intent.session,
            handshake_hash: confirmed.handshake_hash,
        };
        self.call(at, Call::Attach(Box::new(claim)), Purpose::Attach(confirmed), 0);
    }

    /// A handshake thread has done its work.
    pub(crate) fn handshake(&mut self, at: usize, job: &InitJob) {
        let roster: Vec<SocketAddr> = self.gateways.iter().map(|g| g.address).take(ROSTER_MAX).collect();
        let Some(run) = &mut self.gateways[at].run else { return };
        let Ok(pending) = run.responder.read_init(&job.datagram[..]) else {
            return self.command(at, Command::Refused { index: job.index, reason: DropReason::RefusedInit });
        };
        let (device, intent) = (pending.device(), pending.intent().clone());
        let mut reply = [0; REPLY_LEN_MAX];
        let (len, keys) = pending
            .write_reply(&run.responder, job.index, job.hint, &roster, &mut run.random, &mut reply)
            .expect("entropy");
        let reply = Box::from(&reply[..len]);
        let answered = Answered { keys, device, intent, path: job.source, reply, key_set: None };
        self.command(at, Command::Answered(Box::new(answered)));
    }

    /// A fence order: the data plane stops, then control is told.
    fn stop(&mut self, at: usize, session: SessionId, epoch: Epoch) {
        let mut switch_ages = Vec::new();
        if !self.is_fence_ignored {
            let (done, _) = tokio::sync::oneshot::channel();
            let stop = Command::Stop { session, epoch, cause: StopCause::Moved, done: Some(done) };
            self.drive(at, |plane, tick, holds, output| {
                if let After::Acknowledge(_, ages) = plane.handle_command(tick, stop, holds, output) {
                    switch_ages = ages;
                }
            });
        }
        let Some(run) = &self.gateways[at].run else { return };
        let change = Change::FenceAcknowledged { by: run.owner.clone(), epoch, switch_ages };
        self.call(at, Call::Change { session, change }, Purpose::Tell, 0);
    }

    /// One message of the stream of bindings.
    pub(crate) fn stream_news(
        &mut self,
        at: usize,
        records: &[SessionRecord],
        nodes: &[(NodeId, Option<NodeKey>)],
    ) {
        for (node, key) in nodes {
            self.node_news(at, node, key.as_ref());
        }
        let Some(run) = &mut self.gateways[at].run else { return };
        let mut fences = Vec::new();
        let mut updates = Vec::new();
        for record in records {
            let phase = match &record.phase {
                Phase::Owned { owner } => BindingPhase::Owned(run.reference(owner)),
                Phase::Handover { from, .. } => {
                    if *from == run.owner {
                        fences.push((record.id, record.epoch));
                    }
                    BindingPhase::Handover { from: run.reference(from) }
                }
                Phase::Released { .. } => BindingPhase::Released(record.reason),
                Phase::Terminated { .. } => BindingPhase::Terminated(record.reason),
            };
            let inner = record.inner.clone();
            updates.push(BindingUpdate {
                session: record.id,
                epoch: record.epoch,
                inner,
                phase,
                policy: Policy::default(),
            });
        }
        self.command(at, Command::Bindings(updates));
        for (session, epoch) in fences {
            self.stop(at, session, epoch);
        }
    }

    fn node_news(&mut self, at: usize, node: &NodeId, key: Option<&NodeKey>) {
        if *node == self.gateways[at].node {
            return;
        }
        let address = self.gateways.iter().find(|g| g.node == *node).map(|g| g.mesh_address);
        let Some(run) = &mut self.gateways[at].run else { return };
        let peer = key.map(|key| Owner { node: node.clone(), incarnation: key.incarnation });
        if run.linked.get(node) == peer.as_ref() {
            return;
        }
        let gone = run.linked.remove(node).map(|old| run.reference(&old));
        let link = match (peer, key, address) {
            (Some(peer), Some(key), Some(address)) => {
                let end =
                    MeshEnd { number: key.number, incarnation: key.incarnation, public: key.mesh_public };
                let reference = run.reference(&peer);
                run.linked.insert(node.clone(), peer);
                let keys = run.mesh.link(&run.own, &end).ok();
                keys.map(|(sealing, opening)| Link {
                    node: reference,
                    number: key.number,
                    incarnation: key.incarnation,
                    address,
                    sealing,
                    opening,
                })
            }
            _ => None,
        };
        if let Some(gone) = gone {
            self.command(at, Command::Unlink(gone));
        }
        if let Some(link) = link {
            self.command(at, Command::Link(Box::new(link)));
        }
    }
}

impl Run {
    fn reference(&mut self, owner: &Owner) -> NodeRef {
        let next = NodeRef(self.references.len() as u32);
        *self.references.entry(owner.clone()).or_insert(next)
    }
}
