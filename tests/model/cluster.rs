//! The cluster as a state machine: what every part can do next, in any order.
//!
//! - **Network**: a set of messages that only grows. A message in it may be delivered at any time, again and again, or
//!   never: loss, duplication and reordering come for free.
//! - **Control replicas**: each holds at most one decided transaction between its read and its write. A replica that is
//!   given another request forgets the one it held: that is its death. An answer that never arrives is a message that
//!   is never delivered, so "committed, then died before answering" is there too.
//! - **Pauses**: nobody has to take a step while time passes. A paused gateway is one that takes none.
//! - **Clocks**: each gateway's lease runs down on its own, in whole ticks; its guard runs on its own clock, which may
//!   lose up to `lag_max` ticks per lease.

use std::time::Duration;

use jump_session::ids::Epoch;
use jump_session::ownership::{Authority, Tenure};

use crate::defect::{Defect, G3};
use crate::record::{Order, Phase, Record, Run, Write};

/// Gateways at most.
pub(crate) const GATEWAYS_MAX: usize = 3;
/// Control replicas.
pub(crate) const REPLICAS: usize = 2;
/// Ticks of a gateway's clock before which nothing happens: lets deadlines be kept relative to now.
const NOW: u64 = 1_000;

/// The sizes of one check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) gateways: usize,
    pub(crate) replicas: usize,
    /// Attach attempts of the client, the birth included. All of them may be under way at once, on any path.
    pub(crate) attempts: u8,
    /// Runs of gateways beyond the first of each.
    pub(crate) restarts: u8,
    /// Releases by an owner (drain without a target).
    pub(crate) releases: u8,
    /// Operators' orders to move the session, and marks of nodes that drain.
    pub(crate) moves: u8,
    pub(crate) drains: u8,
    /// Lease time and guard margin, in ticks.
    pub(crate) ttl: u8,
    pub(crate) margin: u8,
    /// How many ticks a gateway's clock may lose per lease.
    pub(crate) lag_max: u8,
    /// Whether replicas may decide on wrong ideas of who is registered (a stale cache instead of a read): the compares
    /// alone have to keep the guarantees then.
    pub(crate) wrong_views: bool,
}

/// What a replica believes of the node keys when it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Belief {
    /// What the store says.
    Truth,
    /// Only the claimant is registered.
    OthersGone,
    /// Everybody is registered.
    AllAlive,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Message {
    /// The client's first message of an attempt, as the network or an attacker holds it.
    Init { seq: u8, run: Run },
    /// A gateway asks control for the session, for a client that has confirmed.
    Attach { seq: u8, run: Run },
    /// Control's accepting answer.
    Accepted { seq: u8, run: Run, epoch: u8 },
    /// Control's order to stop (stream or renewal).
    Order { run: Run, epoch: u8 },
    /// The gateway has stopped.
    Ack { run: Run, epoch: u8 },
    /// The gateway gives the session up.
    Release { run: Run, epoch: u8 },
    /// An operator orders a move.
    Move { to: Order },
    /// The sweeper's turn.
    Sweep,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pending {
    pub(crate) message: Message,
    pub(crate) write: Write,
    pub(crate) is_intent: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Gateway {
    /// The run of the living process; 0 when there is none.
    pub(crate) process: u8,
    /// The run that holds the node key; 0 for no key.
    pub(crate) key: u8,
    /// The last run.
    pub(crate) last: u8,
    /// Ticks until the store may expire the lease.
    pub(crate) lease: u8,
    /// Ticks for which the guard still holds.
    pub(crate) authority: u8,
    /// Ticks that the gateway's clock lost in this lease.
    pub(crate) lag: u8,
    /// The node's key bears the mark of a node that drains: by an operator's word or because it ends.
    pub(crate) draining: bool,
    pub(crate) tenure: Tenure,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) record: Option<Record>,
    pub(crate) gateways: [Gateway; GATEWAYS_MAX],
    /// Sorted.
    pub(crate) network: Vec<Message>,
    /// Sorted.
    pub(crate) replicas: [Option<Pending>; REPLICAS],
    pub(crate) attempts: u8,
    pub(crate) restarts: u8,
    pub(crate) releases: u8,
    pub(crate) moves: u8,
    pub(crate) drains: u8,
    /// Attempts that were refused for good, by bit.
    pub(crate) refused: u16,
    /// The first guarantee that a step broke.
    pub(crate) broken: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// The client completes a handshake with the gateway and confirms; the gateway asks control.
    Attempt { gateway: u8 },
    /// An attacker delivers a recorded first message.
    Replay { seq: u8, gateway: u8 },
    /// A replica reads the store and decides over a message.
    Read { replica: usize, message: Message, belief: Belief },
    /// A replica runs the transaction that it decided on.
    Commit { replica: usize },
    /// An accepting answer reaches its gateway.
    Accept { seq: u8, run: Run, epoch: u8 },
    /// A fence order reaches its gateway.
    Stop { run: Run, epoch: u8 },
    /// The owner gives the session up.
    GiveUp { gateway: u8 },
    /// An operator orders the session to go.
    Order { to: Order },
    /// A node begins to drain.
    Drain { gateway: u8 },
    /// It no longer drains.
    Undrain { gateway: u8 },
    /// Time passes at the gateway and for its lease.
    Tick { gateway: u8 },
    /// Time passes for the lease alone: the gateway's clock runs slow.
    LagTick { gateway: u8 },
    /// The answer to a renewal that was sent so many ticks ago arrives.
    Renew { gateway: u8, sent_ago: u8 },
    /// The store expires the lease.
    Expire { gateway: u8 },
    /// The worker dies.
    Crash { gateway: u8 },
    /// The supervisor revokes the dead worker's lease, or it expires.
    Deregister { gateway: u8 },
    /// A new run registers.
    Restart { gateway: u8 },
}

pub(crate) struct Cluster {
    pub(crate) sizes: Sizes,
    pub(crate) defect: Option<Defect>,
}

impl Cluster {
    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    pub(crate) fn initial(&self) -> State {
        let mut gateways = [Gateway::default(); GATEWAYS_MAX];
        for gateway in gateways.iter_mut().take(self.sizes.gateways) {
            self.register(gateway);
        }
        State {
            record: None,
            gateways,
            network: Vec::new(),
            replicas: [None, None],
            attempts: 0,
            restarts: 0,
            releases: 0,
            moves: 0,
            drains: 0,
            refused: 0,
            broken: None,
        }
    }

    fn register(&self, gateway: &mut Gateway) {
        let keeps_sessions = self.has(Defect::NewRunKeepsSessions);
        let tenure = if keeps_sessions { gateway.tenure } else { Tenure::default() };
        let run = gateway.last + 1;
        *gateway = Gateway { process: run, key: run, last: run, tenure, ..Gateway::default() };
        self.renew(gateway, 0);
    }

    /// A renewal sent some ticks ago, processed by the store at once then: the least lease that its authority can have.
    fn renew(&self, gateway: &mut Gateway, sent_ago: u8) {
        let Sizes { ttl, margin, .. } = self.sizes;
        let margin = if self.has(Defect::NoMargin) { 0 } else { margin };
        let sent = if self.has(Defect::GuardFromReceipt) { NOW } else { NOW - u64::from(sent_ago) };
        let ticks = |n: u8| Duration::from_nanos(u64::from(n));
        let renewed = Authority::renewed(sent, ticks(ttl), ticks(margin));
        let authority = u8::try_from(renewed.deadline.saturating_sub(NOW)).expect("few ticks");
        if sent_ago == 0 {
            gateway.lag = 0;
        }
        gateway.authority = gateway.authority.max(authority);
        gateway.lease = gateway.lease.max(ttl.saturating_sub(sent_ago));
    }

    /// Whether the gateway would forward a packet of the session now.
    pub(crate) fn forwards(&self, gateway: &Gateway) -> bool {
        let authority = Authority { deadline: NOW + u64::from(gateway.authority) };
        let guard = authority.holds(NOW) || self.has(Defect::NoGuard);
        gateway.process != 0 && gateway.tenure.active().is_some() && guard
    }

    pub(crate) fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        let sizes = &self.sizes;
        for gateway in 0..sizes.gateways as u8 {
            let g = &state.gateways[usize::from(gateway)];
            let is_registered = g.process != 0 && g.process == g.key;
            let born = state.attempts == 0 || state.record.is_some();
            if g.process != 0 && state.attempts < sizes.attempts && born {
                actions.push(Action::Attempt { gateway });
            }
            if self.has(Defect::CommitOnFirstMessage) {
                let inits = state.network.iter();
                actions.extend(inits.filter_map(|message| {
                    let Message::Init { seq, .. } = message else { return None };
                    Some(Action::Replay { seq: *seq, gateway })
                }));
            }
            if g.process != 0 && (g.lease > 0 || g.authority > 0) {
                actions.push(Action::Tick { gateway });
                let lag_max = if self.has(Defect::SlowClock) { sizes.margin + 1 } else { sizes.lag_max };
                if g.lag < lag_max && g.authority > 0 {
                    actions.push(Action::LagTick { gateway });
                }
            }
            if is_registered {
                actions.extend((0..sizes.ttl).map(|sent_ago| Action::Renew { gateway, sent_ago }));
                if g.lease == 0 {
                    actions.push(Action::Expire { gateway });
                }
            }
            if g.process != 0 && state.restarts < sizes.restarts {
                actions.push(Action::Crash { gateway });
            }
            if g.process == 0 && g.key != 0 {
                actions.push(Action::Deregister { gateway });
            }
            if g.key == 0 && state.restarts < sizes.restarts {
                actions.push(Action::Restart { gateway });
            }
            if g.process != 0 && g.tenure.active().is_some() && state.releases < sizes.releases {
                actions.push(Action::GiveUp { gateway });
            }
            if is_registered && !g.draining && state.drains < sizes.drains {
                actions.push(Action::Drain { gateway });
            }
            if is_registered && g.draining {
                actions.push(Action::Undrain { gateway });
            }
        }
        let is_owned = state.record.is_some_and(|record| matches!(record.phase, Phase::Owned(_)));
        if is_owned && state.moves < sizes.moves {
            let targets = (0..sizes.gateways as u8).map(Some).chain([None]);
            actions.extend(targets.map(|to| Action::Order { to }));
        }
        for message in &state.network {
            match message {
                Message::Accepted { seq, run, epoch } => {
                    actions.push(Action::Accept { seq: *seq, run: *run, epoch: *epoch });
                }
                Message::Order { run, epoch } => actions.push(Action::Stop { run: *run, epoch: *epoch }),
                Message::Attach { .. }
                | Message::Ack { .. }
                | Message::Release { .. }
                | Message::Move { .. } => {
                    self.push_reads(state, message, actions);
                }
                Message::Init { .. } | Message::Sweep => {}
            }
        }
        if state.record.is_some() {
            self.push_reads(state, &Message::Sweep, actions);
        }
        for replica in 0..sizes.replicas {
            if state.replicas[replica].is_some() {
                actions.push(Action::Commit { replica });
            }
        }
    }

    /// A free replica takes the message; with none free, any of them dies and takes it anew.
    fn push_reads(&self, state: &State, message: &Message, actions: &mut Vec<Action>) {
        let free = (0..self.sizes.replicas).find(|replica| state.replicas[*replica].is_none());
        let replicas = free.map_or(0..self.sizes.replicas, |replica| replica..replica + 1);
        let wrong = [Belief::OthersGone, Belief::AllAlive].into_iter().filter(|_| self.sizes.wrong_views);
        let beliefs: Vec<Belief> = [Belief::Truth].into_iter().chain(wrong).collect();
        for replica in replicas {
            let read = |belief| Action::Read { replica, message: message.clone(), belief };
            actions.extend(beliefs.iter().copied().map(read));
        }
    }

    pub(crate) fn apply(&self, state: &State, action: &Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Attempt { gateway } => self.attempt(&mut next, *gateway),
            Action::Replay { seq, gateway } => {
                let run = next.run(*gateway);
                next.send(Message::Attach { seq: *seq, run });
            }
            Action::Read { replica, message, belief } => {
                self.read(&mut next, *replica, message, *belief);
            }
            Action::Commit { replica } => {
                let pending = next.replicas[*replica].take()?;
                self.commit(&mut next, &pending);
            }
            Action::Accept { seq: _, run, epoch } => {
                let gateway = next.gateway_of(*run)?;
                if self.has(Defect::LateAnswerActivates) {
                    gateway.tenure = Tenure::default();
                }
                gateway.tenure.accept(Epoch(u64::from(*epoch)));
            }
            Action::Stop { run, epoch } => {
                let acknowledges_first = self.has(Defect::AcknowledgeBeforeStop);
                let gateway = next.gateway_of(*run)?;
                if !acknowledges_first {
                    gateway.tenure.give_up(Epoch(u64::from(*epoch)));
                }
                next.send(Message::Ack { run: *run, epoch: *epoch });
            }
            Action::GiveUp { gateway } => {
                let run = next.run(*gateway);
                let tenure = &mut next.gateways[usize::from(*gateway)].tenure;
                let epoch = tenure.active()?;
                tenure.give_up(epoch);
                next.releases += 1;
                next.send(Message::Release { run, epoch: epoch.0 as u8 });
            }
            Action::Order { to } => {
                next.moves += 1;
                next.send(Message::Move { to: *to });
            }
            Action::Drain { gateway } => {
                next.drains += 1;
                let renews_key = self.has(Defect::DrainRenewsNodeKey);
                let gateway = &mut next.gateways[usize::from(*gateway)];
                gateway.draining = true;
                if renews_key {
                    gateway.key = 0;
                }
            }
            Action::Undrain { gateway } => next.gateways[usize::from(*gateway)].draining = false,
            Action::Tick { gateway } => {
                let gateway = &mut next.gateways[usize::from(*gateway)];
                gateway.lease = gateway.lease.saturating_sub(1);
                gateway.authority = gateway.authority.saturating_sub(1);
            }
            Action::LagTick { gateway } => {
                let gateway = &mut next.gateways[usize::from(*gateway)];
                gateway.lease = gateway.lease.saturating_sub(1);
                gateway.lag += 1;
            }
            Action::Renew { gateway, sent_ago } => {
                self.renew(&mut next.gateways[usize::from(*gateway)], *sent_ago);
            }
            Action::Expire { gateway } | Action::Deregister { gateway } => {
                let gateway = &mut next.gateways[usize::from(*gateway)];
                // The mark goes with the key.
                (gateway.key, gateway.draining) = (0, false);
            }
            Action::Crash { gateway } => {
                let gateway = &mut next.gateways[usize::from(*gateway)];
                let Gateway { key, last, draining, .. } = *gateway;
                *gateway = Gateway { key, last, draining, ..Gateway::default() };
            }
            Action::Restart { gateway } => {
                next.restarts += 1;
                self.register(&mut next.gateways[usize::from(*gateway)]);
            }
        }
        next.replicas.sort_unstable_by(|a, b| b.cmp(a));
        (next != *state).then_some(next)
    }

    fn attempt(&self, state: &mut State, gateway: u8) {
        state.attempts += 1;
        let (seq, run) = (state.attempts, state.run(gateway));
        if self.has(Defect::CommitOnFirstMessage) {
            state.send(Message::Init { seq, run });
        }
        state.send(Message::Attach { seq, run });
    }
}

impl State {
    pub(crate) fn run(&self, gateway: u8) -> Run {
        Run { node: gateway, incarnation: self.gateways[usize::from(gateway)].process }
    }

    /// The living process of that run.
    fn gateway_of(&mut self, run: Run) -> Option<&mut Gateway> {
        let gateway = &mut self.gateways[usize::from(run.node)];
        (gateway.process == run.incarnation).then_some(gateway)
    }

    pub(crate) fn send(&mut self, message: Message) {
        if let Err(at) = self.network.binary_search(&message) {
            self.network.insert(at, message);
        }
    }

    /// Control answers an attempt; G3 is that it never answers it in two ways.
    pub(crate) fn accepted(&mut self, seq: u8, run: Run, epoch: u8) {
        let differs = self.network.iter().any(|message| {
            matches!(message, Message::Accepted { seq: s, run: r, epoch: e }
                if *s == seq && (*r, *e) != (run, epoch))
        });
        if differs || self.refused & (1 << seq) != 0 {
            self.broken = Some(G3);
        }
        self.send(Message::Accepted { seq, run, epoch });
    }
}
