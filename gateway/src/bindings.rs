//! The stream of bindings: who owns which session, which gateways there are, and what this one must stop.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jump_crypto::ids::{Epoch, Incarnation, NodeNumber, SessionId};
use jump_crypto::mesh::{MeshEnd, MeshSecret};
use jump_proto::control_v1::{
    AckFenceRequest, Binding, Node, Owner, SessionPhase, WatchBindingsRequest, WatchBindingsResponse,
};
use jump_proto::convert::switch_ages_ms;
use jump_session::ownership::MOVE_WINDOW;
use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::attach::read_policy;
use crate::context::{Context, DataPlaneEnded, Roster};
use crate::control::{about, explain};
use crate::dataplane::{BindingPhase, BindingUpdate, Command, Link, NodeRef, Policy, StopCause};
use crate::drain::{ASK_AGAIN, TARGETS_MAX};
use crate::metrics;

/// Bindings in one order to the data plane.
const CHUNK: usize = 512;
/// Pause before the stream is opened again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a replica may take to open the stream.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);

/// Follows the stream until the task is cancelled or the data plane ends. Resumes where it was cut.
pub async fn follow(context: Arc<Context>, mut directory: Directory) {
    let mut revision = 0;
    while !context.cancel.is_cancelled() {
        let (at, endpoint, mut client) = context.control.replica();
        let request = WatchBindingsRequest {
            node_id: context.node.to_string(),
            incarnation: context.incarnation.0,
            after_revision: revision,
        };
        let opened = tokio::time::timeout(OPEN_PATIENCE, client.watch_bindings(request)).await;
        let problem = match opened {
            Ok(Ok(response)) => {
                let mut stream = response.into_inner();
                loop {
                    let message = tokio::select! {
                        message = stream.message() => message,
                        () = context.cancel.cancelled() => return,
                    };
                    match message {
                        Ok(Some(news)) => {
                            revision = revision.max(news.revision);
                            if directory.take(&context, news).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break "the stream ended".to_owned(),
                        Err(status) => break explain(&status),
                    }
                }
            }
            Ok(Err(status)) => explain(&status),
            Err(_) => format!("no answer within {OPEN_PATIENCE:?}"),
        };
        tracing::warn!(endpoint, error = problem, "the stream of bindings broke; opening it again");
        metrics::WATCH_RESTARTS.counter(&[]).increment(1);
        context.control.next_after(at);
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = context.cancel.cancelled() => return,
        }
    }
}

/// Tells control that a session has stopped here. Tries for as long as somebody may wait for it; the next renewal says
/// it as well.
pub async fn acknowledge_fence(
    context: Arc<Context>,
    session: SessionId,
    epoch: Epoch,
    switch_ages_ms: Vec<u32>,
    correlation: String,
) {
    let correlation: Option<Correlation> = correlation.parse().ok();
    let request = AckFenceRequest {
        node_id: context.node.to_string(),
        incarnation: context.incarnation.0,
        session_id: session.to_string(),
        epoch: epoch.0,
        switch_ages_ms,
    };
    for _ in 0..3 {
        let answer = context
            .control
            .call(Duration::from_secs(1), |mut client| {
                let request = about(request.clone(), correlation);
                async move { client.ack_fence(request).await }
            })
            .await;
        match answer {
            Ok(_) => return,
            Err(status) => {
                let correlation = correlation.map(tracing::field::display);
                tracing::warn!(%session, correlation, epoch = epoch.0, error = %explain(&status), "cannot acknowledge a fence");
                if !crate::control::moves_on(&status) {
                    return;
                }
            }
        }
    }
}

/// Asks a client to move until it has left or the order lapses: a single message may be lost.
async fn ask_to_move(
    context: Arc<Context>,
    session: SessionId,
    epoch: Epoch,
    targets: Vec<SocketAddr>,
    stands: Duration,
) {
    let deadline = Instant::now() + stands;
    while Instant::now() < deadline {
        let (carried, answer) = oneshot::channel();
        let order = Command::Move { session, epoch, targets: targets.clone(), carried };
        if context.orders.give(order).await.is_err() || answer.await != Ok(true) {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = context.cancel.cancelled() => return,
        }
    }
}

/// How long ago it was; zero for the future, and for no time at all.
fn age(since: Option<&prost_types::Timestamp>) -> Duration {
    let since = since.and_then(|time| SystemTime::try_from(*time).ok());
    since.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or_default()
}

/// A live run of another gateway.
#[derive(Debug)]
struct Peer {
    reference: NodeRef,
    incarnation: u64,
    endpoints: Vec<SocketAddr>,
    draining: bool,
    linked: bool,
}

/// What is known of the other gateways, and the names under which the data plane knows them.
pub struct Directory {
    own: MeshEnd,
    secret: MeshSecret,
    references: HashMap<(String, u64), NodeRef>,
    /// Names are never given twice.
    next_reference: u32,
    peers: HashMap<String, Peer>,
    /// Nodes of the snapshot under way.
    snapshot: Option<HashSet<String>>,
    /// Clients that an operator wants elsewhere.
    moves: HashMap<SessionId, AbortHandle>,
}

impl Directory {
    /// Knows only this run.
    pub fn new(context: &Context, own: MeshEnd, secret: MeshSecret) -> Self {
        let references = HashMap::from([((context.node.to_string(), context.incarnation.0), NodeRef::OWN)]);
        Self {
            own,
            secret,
            references,
            next_reference: 1,
            peers: HashMap::new(),
            snapshot: None,
            moves: HashMap::new(),
        }
    }

    /// Passes one message of the stream on.
    async fn take(
        &mut self,
        context: &Arc<Context>,
        news: WatchBindingsResponse,
    ) -> Result<(), DataPlaneEnded> {
        if news.snapshot_start {
            self.snapshot = Some(HashSet::new());
            self.forget_runs();
            context.orders.give(Command::SnapshotBegins).await?;
        }
        for node in news.nodes {
            self.node(context, node).await?;
        }
        for gone in news.gone_nodes {
            self.forget(context, &gone).await?;
        }
        let mut fences = Vec::new();
        for chunk in news.bindings.chunks(CHUNK) {
            let mut updates = Vec::with_capacity(chunk.len());
            for binding in chunk {
                let Some(update) = self.read_binding(binding) else {
                    tracing::error!(
                        session = binding.session_id,
                        correlation = binding.correlation_id,
                        "control sent an unusable binding"
                    );
                    continue;
                };
                if let BindingPhase::Handover { from: NodeRef::OWN } = update.phase {
                    fences.push((update.session, update.epoch, binding.correlation_id.clone()));
                }
                if let BindingPhase::Owned(NodeRef::OWN) = update.phase {
                    self.obey_move(context, &update, binding);
                }
                updates.push(update);
            }
            context.orders.give(Command::Bindings(updates)).await?;
        }
        for (session, epoch, correlation) in fences {
            metrics::FENCES.counter(&[("source", "stream")]).increment(1);
            let ages = switch_ages_ms(&context.orders.stop(session, epoch, StopCause::Moved).await?);
            tokio::spawn(acknowledge_fence(Arc::clone(context), session, epoch, ages, correlation));
        }
        if news.snapshot_complete {
            if let Some(seen) = self.snapshot.take() {
                let unseen: Vec<String> =
                    self.peers.keys().filter(|node| !seen.contains(*node)).cloned().collect();
                for node in unseen {
                    self.forget(context, &node).await?;
                }
            }
            context.orders.give(Command::SnapshotComplete).await?;
        }
        self.publish_roster(context);
        Ok(())
    }

    /// Follows an operator's order to move a session of this run, or forgets one that no longer stands.
    fn obey_move(&mut self, context: &Arc<Context>, update: &BindingUpdate, binding: &Binding) {
        if let Some(earlier) = self.moves.remove(&update.session) {
            earlier.abort();
        }
        let Some(order) = &binding.r#move else { return };
        let correlation = &binding.correlation_id;
        let Some(stands) = MOVE_WINDOW.checked_sub(age(order.since_time.as_ref())) else { return };
        let others = context.roster.load();
        let targets: Vec<SocketAddr> = match self.peers.get(&order.node_id) {
            Some(peer) => peer.endpoints.clone(),
            None if order.node_id.is_empty() => others.others.iter().take(TARGETS_MAX).copied().collect(),
            None => Vec::new(),
        };
        if targets.is_empty() {
            tracing::warn!(session = %update.session, correlation, to = order.node_id, "no gateway to move a session to");
            return;
        }
        tracing::info!(session = %update.session, correlation, epoch = update.epoch.0, reason = %Reason::OperatorMove, to = order.node_id, "an operator moves a session");
        let asking =
            tokio::spawn(ask_to_move(Arc::clone(context), update.session, update.epoch, targets, stands));
        self.moves.retain(|_, asking| !asking.is_finished());
        self.moves.insert(update.session, asking.abort_handle());
    }

    fn reference(&mut self, node: &str, incarnation: u64) -> NodeRef {
        let next = NodeRef(self.next_reference);
        let reference = *self.references.entry((node.to_owned(), incarnation)).or_insert(next);
        self.next_reference += u32::from(reference == next);
        reference
    }

    /// Forgets the names of runs that are neither this one nor linked: a snapshot names again what it is about.
    fn forget_runs(&mut self) {
        let live: HashSet<NodeRef> =
            self.peers.values().map(|peer| peer.reference).chain([NodeRef::OWN]).collect();
        self.references.retain(|_, reference| live.contains(reference));
    }

    async fn node(&mut self, context: &Context, node: Node) -> Result<(), DataPlaneEnded> {
        if let Some(seen) = &mut self.snapshot {
            seen.insert(node.node_id.clone());
        }
        if node.node_id == context.node.as_str() {
            return Ok(());
        }
        let reference = self.reference(&node.node_id, node.incarnation);
        let endpoints = node.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect();
        let known = self.peers.get_mut(&node.node_id);
        if let Some(peer) = known
            && peer.incarnation == node.incarnation
        {
            peer.endpoints = endpoints;
            peer.draining = node.draining;
            return Ok(());
        }
        self.forget(context, &node.node_id).await?;
        let link = self.link(&node, reference);
        let linked = link.is_some();
        if let Some(link) = link {
            context.orders.give(Command::Link(Box::new(link))).await?;
            tracing::info!(node = node.node_id, incarnation = node.incarnation, "linked to another gateway");
        }
        self.peers.insert(
            node.node_id,
            Peer { reference, incarnation: node.incarnation, endpoints, draining: node.draining, linked },
        );
        Ok(())
    }

    fn link(&mut self, node: &Node, reference: NodeRef) -> Option<Link> {
        let number =
            u16::try_from(node.number).ok().filter(|number| (1..=NodeNumber::MAX.0).contains(number))?;
        let peer = MeshEnd {
            number: NodeNumber(number),
            incarnation: Incarnation(node.incarnation),
            public: node.mesh_public_key.as_slice().try_into().ok()?,
        };
        let address = node.mesh_endpoint.parse().ok()?;
        match self.secret.link(&self.own, &peer) {
            Ok((sealing, opening)) => Some(Link {
                node: reference,
                number: peer.number,
                incarnation: peer.incarnation,
                address,
                sealing,
                opening,
            }),
            Err(error) => {
                tracing::error!(node = node.node_id, %error, "cannot link to another gateway");
                None
            }
        }
    }

    async fn forget(&mut self, context: &Context, node: &str) -> Result<(), DataPlaneEnded> {
        if let Some(peer) = self.peers.remove(node)
            && peer.linked
        {
            context.orders.give(Command::Unlink(peer.reference)).await?;
            tracing::info!(node, incarnation = peer.incarnation, "another gateway is gone");
        }
        Ok(())
    }

    fn read_binding(&mut self, binding: &Binding) -> Option<BindingUpdate> {
        let session = binding.session_id.parse().ok()?;
        let inner =
            binding.inner_addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()).collect();
        let reason = Reason::from_code(&binding.reason).unwrap_or(Reason::SessionTerminated);
        let mut owner = |owner: &Option<Owner>| {
            owner.as_ref().map(|owner| self.reference(&owner.node_id, owner.incarnation))
        };
        let phase = match SessionPhase::try_from(binding.phase).ok()? {
            SessionPhase::Owned => BindingPhase::Owned(owner(&binding.owner)?),
            SessionPhase::Handover => BindingPhase::Handover { from: owner(&binding.owner)? },
            SessionPhase::Released => BindingPhase::Released(reason),
            SessionPhase::Terminated => BindingPhase::Terminated(reason),
            SessionPhase::Unspecified => return None,
        };
        let policy = binding.policy.as_ref().map_or_else(Policy::default, |policy| {
            read_policy(&policy.allowed_destinations, policy.bytes_per_second)
        });
        Some(BindingUpdate { session, epoch: Epoch(binding.epoch), inner, phase, policy })
    }

    /// Clients are spread: each gateway names the others in an order that begins behind itself.
    fn publish_roster(&self, context: &Context) {
        let mut names: Vec<&String> = self.peers.keys().collect();
        names.sort();
        let behind = names.partition_point(|name| name.as_str() < context.node.as_str());
        names.rotate_left(behind);
        let others = names
            .into_iter()
            .filter_map(|name| self.peers.get(name))
            .filter(|peer| !peer.draining)
            .flat_map(|peer| peer.endpoints.iter().copied())
            .collect();
        let roster = Roster { others, own: context.roster.load().own.clone() };
        if **context.roster.load() != roster {
            context.roster.store(Arc::new(roster));
        }
    }
}

#[cfg(test)]
mod tests {
    use jump_crypto::entropy::OsEntropy;

    use super::*;

    #[test]
    fn runs_that_are_over_are_forgotten_with_the_next_snapshot_and_no_name_is_given_twice() {
        let secret = MeshSecret::generate(&mut OsEntropy::new().unwrap()).unwrap();
        let own = MeshEnd { number: NodeNumber(1), incarnation: Incarnation(7), public: secret.public() };
        let mut directory = Directory {
            own,
            secret,
            references: HashMap::from([(("gw1".to_owned(), 7), NodeRef::OWN)]),
            next_reference: 1,
            peers: HashMap::new(),
            snapshot: None,
            moves: HashMap::new(),
        };
        let mut last = NodeRef::OWN;
        for run in 10..1010 {
            last = directory.reference("gw2", run);
            assert_eq!(directory.reference("gw2", run), last);
        }
        let live =
            Peer { reference: last, incarnation: 1009, endpoints: vec![], draining: false, linked: true };
        directory.peers.insert("gw2".to_owned(), live);
        directory.forget_runs();
        assert_eq!(directory.references.len(), 2);
        assert_eq!(directory.reference("gw1", 7), NodeRef::OWN);
        assert_eq!(directory.reference("gw2", 1009), last);
        let again = directory.reference("gw2", 10);
        assert!(again.0 > last.0, "{again:?} named another run before");
    }
}
