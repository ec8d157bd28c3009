//! What gateways ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jump_crypto::certificate::{NodeCertificate, NodeClaims};
use jump_crypto::grant::{Grant, GrantClaims};
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::gateway_service_server::GatewayService;
use jump_proto::convert::{AttachAsk, Fields, duration, switch_ages, switch_ages_ms, timestamp};
use jump_session::ids::{Epoch, Revision, SessionId};
use jump_session::ownership::{Change, Owner, Phase};
use jump_telemetry::Correlation;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::feed::{self, Feed, ITEMS_PER_MESSAGE, Messages};
use super::{Context, ServiceError, about, caller, node_message};
use crate::arbiter::ArbiterError;
use crate::bindings::{Delta, Everything};
use crate::layout::StoredSession;
use crate::registry::{RUNS_REMEMBERED_MAX, Registration, claims_each};
use crate::{audit, clock, metrics};

/// How many endpoints of a kind a node may have.
const ENDPOINTS_MAX: usize = 16;
/// How many acknowledgements one renewal may carry.
const ACKS_MAX: usize = 4096;
/// How many fences one renewal's answer carries.
const FENCES_MAX: usize = 4096;

/// `GatewayService`.
#[derive(Debug)]
pub struct GatewayApi {
    context: Arc<Context>,
    /// What each run was given last, by this replica. A run unknown here is given everything once more.
    given: Mutex<HashMap<Owner, Given>>,
}

#[derive(Debug)]
struct Given {
    verifying_key: [u8; 32],
    certified: Instant,
    keys_version: u64,
}

impl GatewayApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, given: Mutex::default() }
    }

    fn certificates(&self, owner: &Owner, verifying_key: [u8; 32]) -> Vec<Vec<u8>> {
        let keys = self.context.keys.load();
        let lifetime = self.context.profile.certificate_lifetime.as_secs();
        let claims = NodeClaims {
            node: owner.node.clone(),
            incarnation: owner.incarnation,
            verifying_key,
            not_after: clock::unix_seconds() + lifetime,
        };
        let issue = |signer| NodeCertificate::issue(&claims, signer).as_bytes().to_vec();
        let certificates = keys.signers.iter().map(issue).collect();
        let given = Given { verifying_key, certified: Instant::now(), keys_version: keys.version };
        let mut known = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|run, _| run.node != owner.node);
        if known.len() >= RUNS_REMEMBERED_MAX {
            known.retain(|run, _| self.context.bindings.is_registered(run));
        }
        known.insert(owner.clone(), given);
        certificates
    }

    /// The fresh certificates, and whether the keys changed, for a renewal's answer.
    fn refreshed(&self, owner: &Owner) -> (Vec<Vec<u8>>, bool) {
        let keys = self.context.keys.load();
        let (due, keys_due, key) = {
            let known = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(owner) {
                Some(given) => {
                    let half = self.context.profile.certificate_lifetime / 2;
                    let changed = given.keys_version != keys.version;
                    (changed || given.certified.elapsed() >= half, changed, Some(given.verifying_key))
                }
                None => (true, true, None),
            }
        };
        let key = key.or_else(|| {
            let (node, _) = self.context.bindings.node(&owner.node)?;
            let key = node.record.node_verifying_key.as_slice().try_into().ok()?;
            (node.incarnation == owner.incarnation).then_some(key)
        });
        let certificates = match (due, key) {
            (true, Some(key)) => self.certificates(owner, key),
            (true, None) | (false, _) => Vec::new(),
        };
        // Without certificates nothing was remembered, so that the keys are due again next time.
        (certificates, keys_due)
    }

    fn cluster_keys(&self) -> Vec<Vec<u8>> {
        self.context.keys.load().cluster.iter().map(|key| key.expose().to_vec()).collect()
    }

    fn key_sets(&self) -> Vec<Vec<u8>> {
        self.context.keys.load().key_sets.iter().map(|key_set| key_set.as_bytes().to_vec()).collect()
    }

    async fn acknowledge(&self, by: &Owner, ack: &Ack) -> Result<StoredSession, ArbiterError> {
        let Ack { session, epoch, ref switch_ages } = *ack;
        let change = Change::FenceAcknowledged { by: by.clone(), epoch, switch_ages: switch_ages.clone() };
        let stored = self.context.arbiter.change(session, &change).await?;
        log_session(&stored, "fence acknowledged");
        Ok(stored)
    }

    fn accepted(&self, ask: &AttachAsk, stored: &StoredSession) -> wire::attach_response::Accepted {
        let Context { arbiter, profile, keys, .. } = &*self.context;
        let record = &stored.record;
        let claims = GrantClaims {
            handshake_hash: ask.handshake_hash,
            session: record.id,
            device: ask.request.device,
            epoch: record.epoch,
            node: ask.request.claimant.node.clone(),
            incarnation: ask.request.claimant.incarnation,
            not_after: record.expires / 1000 + 1,
        };
        let grant = Grant::issue(&claims, keys.load().signer_for(&ask.grant_keys));
        wire::attach_response::Accepted {
            session_id: record.id.to_string(),
            epoch: record.epoch.0,
            inner_addresses: record.inner.iter().map(ToString::to_string).collect(),
            grant: grant.as_bytes().to_vec(),
            expire_time: Some(timestamp(record.expires)),
            policy: Some(wire::SessionPolicy::of(&arbiter.policy, record)),
            routes: profile.routes.iter().map(ToString::to_string).collect(),
            dns_servers: profile.dns.iter().map(ToString::to_string).collect(),
            mtu: u32::from(profile.mtu),
            correlation_id: correlation(stored),
            switch_ages_ms: switch_ages_ms(&record.switch_ages(clock::unix_millis())),
        }
    }
}

/// An owner's word that a session has stopped.
struct Ack {
    session: SessionId,
    epoch: Epoch,
    switch_ages: Vec<Duration>,
}

fn correlation(stored: &StoredSession) -> String {
    uuid::Uuid::from_bytes(stored.record.correlation).to_string()
}

fn log_session(stored: &StoredSession, what: &'static str) {
    let record = &stored.record;
    tracing::info!(
        session = %record.id,
        correlation = correlation(stored),
        epoch = record.epoch.0,
        reason = record.reason.code(),
        node = record.owner().map_or("", |owner| owner.node.as_str()),
        "{what}"
    );
}

#[tonic::async_trait]
impl GatewayService for GatewayApi {
    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let registration = parse_registration(request.into_inner())?;
        let (node, lease_ttl) =
            self.context.registry.register(&registration).await.map_err(ServiceError::from)?;
        tracing::info!(node = %node.id, incarnation = node.incarnation.0, number = node.number.0, "node registered");
        metrics::count_registration();
        audit::node_registered(&node.owner());
        let Context { arbiter, profile, keys, .. } = &*self.context;
        Ok(Response::new(wire::RegisterResponse {
            incarnation: node.incarnation.0,
            number: u32::from(node.number.0),
            lease_ttl: Some(duration(lease_ttl)),
            node_certificates: self.certificates(&node.owner(), registration.node_verifying_key),
            cluster_keys: self.cluster_keys(),
            grant_keys: keys.load().claims.grant.iter().map(|key| key.to_vec()).collect(),
            key_sets: self.key_sets(),
            pools: arbiter.pools.iter().map(|pool| pool.to_string()).collect(),
            renew_interval: Some(duration(profile.renew_interval)),
            guard_margin: Some(duration(profile.guard_margin)),
        }))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let request = request.into_inner();
        let (owner, acks) = parse_renewal(&request)?;
        self.context.registry.renew(&owner, request.draining).await.map_err(ServiceError::from)?;
        let acknowledged = futures::future::join_all(acks.iter().map(|ack| self.acknowledge(&owner, ack)));
        for result in acknowledged.await {
            if let Err(error) = result {
                // The session is still listed, or was resolved without this acknowledgement.
                tracing::debug!(node = %owner.node, %error, "an acknowledged fence was not needed");
            }
        }
        let bindings = &self.context.bindings;
        let done = |stored: &StoredSession| {
            acks.iter().any(|ack| (ack.session, ack.epoch) == (stored.record.id, stored.record.epoch))
        };
        let fences = bindings
            .handovers_from(&owner)
            .into_iter()
            .filter(|session| !done(session))
            .take(FENCES_MAX)
            .filter_map(|session| match &session.record.phase {
                Phase::Handover { to, .. } => Some(wire::FenceOrder {
                    session_id: session.record.id.to_string(),
                    epoch: session.record.epoch.0,
                    to: Some((&to.owner).into()),
                    correlation_id: correlation(&session),
                }),
                Phase::Released { .. } | Phase::Owned { .. } | Phase::Terminated { .. } => None,
            })
            .collect();
        let (node_certificates, keys_changed) = self.refreshed(&owner);
        Ok(Response::new(wire::RenewResponse {
            fences,
            node_certificates,
            drain: bindings.is_drained(&owner.node),
            cluster_keys: if keys_changed { self.cluster_keys() } else { Vec::new() },
            key_sets: if keys_changed { self.key_sets() } else { Vec::new() },
            claims_max: u32::try_from(claims_each(bindings.gateways())).unwrap_or(u32::MAX),
        }))
    }

    async fn deregister(
        &self,
        request: Request<wire::DeregisterRequest>,
    ) -> Result<Response<wire::DeregisterResponse>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let owner = fields.owner(&request.node_id, request.incarnation);
        let reason = fields.reason("reason", &request.reason);
        let (owner, reason) = fields.finish(|| Some((owner?, reason?))).map_err(ServiceError::from)?;
        self.context.registry.deregister(&owner).await.map_err(ServiceError::from)?;
        tracing::info!(node = %owner.node, incarnation = owner.incarnation.0, reason = reason.code(), "node deregistered");
        audit::node_deregistered(&owner, reason);
        Ok(Response::new(wire::DeregisterResponse {}))
    }

    async fn attach(
        &self,
        request: Request<wire::AttachRequest>,
    ) -> Result<Response<wire::AttachResponse>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let traced = request.metadata().contains_key("traceparent");
        let ask = AttachAsk::try_from(request.into_inner()).map_err(ServiceError::from)?;
        let started = Instant::now();
        let asked_for = Correlation::from(ask.session_id().correlation());
        let span = tracing::info_span!("attach", node = %ask.request.claimant.node, correlation = %asked_for);
        if !traced {
            // The gateway does not trace: the attempt's trace has this span all the same.
            jump_telemetry::trace::join_attempt(&span, ask.request.attempt);
        }
        let outcome = self.context.arbiter.attach(&ask).instrument(span).await;
        metrics::count_attach(&outcome, started.elapsed());
        // The record has the last word: of a session that was asked for and refused, too.
        let recorded = outcome.as_ref().ok().map(|stored| stored.record.correlation).or_else(|| {
            ask.session.and_then(|id| self.context.arbiter.bindings.session(id)).map(|s| s.record.correlation)
        });
        let correlation = recorded.map_or(asked_for, Correlation::from);
        audit::attach_answered(&ask, &outcome, correlation);
        let outcome = match outcome {
            Ok(stored) => {
                tracing::info!(
                    session = %stored.record.id,
                    %correlation,
                    epoch = stored.record.epoch.0,
                    reason = ask.request.reason.code(),
                    node = %ask.request.claimant.node,
                    client = ask.client_address,
                    elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                    "attach accepted"
                );
                wire::attach_response::Outcome::Accepted(self.accepted(&ask, &stored))
            }
            Err(ArbiterError::Refused(refusal)) => {
                tracing::info!(
                    session = ask.session.map(tracing::field::display),
                    %correlation,
                    epoch = refusal.current_epoch.0,
                    reason = refusal.reason.code(),
                    node = %ask.request.claimant.node,
                    client = ask.client_address,
                    "attach rejected"
                );
                wire::attach_response::Outcome::Rejected((&refusal).into())
            }
            Err(error) => {
                tracing::warn!(
                    session = ask.session.map(tracing::field::display),
                    %correlation,
                    node = %ask.request.claimant.node,
                    %error,
                    "attach failed"
                );
                return Err(ServiceError::from(error).into());
            }
        };
        Ok(about(wire::AttachResponse { outcome: Some(outcome) }, correlation))
    }

    async fn ack_fence(
        &self,
        request: Request<wire::AckFenceRequest>,
    ) -> Result<Response<wire::AckFenceResponse>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let owner = fields.owner(&request.node_id, request.incarnation);
        let session = fields.id("session_id", &request.session_id);
        let (owner, session) = fields.finish(|| Some((owner?, session?))).map_err(ServiceError::from)?;
        let switch_ages = switch_ages(&request.switch_ages_ms);
        let ack = Ack { session, epoch: Epoch(request.epoch), switch_ages };
        let record = self.acknowledge(&owner, &ack).await.map_err(ServiceError::from)?.record;
        Ok(about(wire::AckFenceResponse { epoch: record.epoch.0 }, record.correlation.into()))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let owner = fields.owner(&request.node_id, request.incarnation);
        let session = fields.id("session_id", &request.session_id);
        let reason = fields.reason("reason", &request.reason);
        let (by, session, reason) =
            fields.finish(|| Some((owner?, session?, reason?))).map_err(ServiceError::from)?;
        let epoch = Epoch(request.epoch);
        let change = match request.terminate {
            true => Change::Terminate { by: Some((by, epoch)), reason },
            false => {
                let switch_ages = switch_ages(&request.switch_ages_ms);
                Change::Release { by, epoch, reason, switch_ages }
            }
        };
        let stored = self.context.arbiter.change(session, &change).await.map_err(ServiceError::from)?;
        log_session(&stored, if request.terminate { "session ended" } else { "session released" });
        Ok(about(wire::ReleaseResponse {}, stored.record.correlation.into()))
    }

    type WatchBindingsStream = Messages<wire::WatchBindingsResponse>;

    async fn watch_bindings(
        &self,
        request: Request<wire::WatchBindingsRequest>,
    ) -> Result<Response<Self::WatchBindingsStream>, Status> {
        caller::gateway(&request, &request.get_ref().node_id)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let _owner = fields.owner(&request.node_id, request.incarnation);
        fields.finish(|| Some(())).map_err(ServiceError::from)?;
        let after = Revision(request.after_revision);
        Ok(Response::new(feed::start(&self.context, after, BindingFeed).await?))
    }
}

fn parse_registration(request: wire::RegisterRequest) -> Result<Registration, ServiceError> {
    let mut fields = Fields::default();
    let node = fields.id("node_id", &request.node_id);
    for (name, endpoints) in [
        ("endpoints", &request.endpoints),
        ("tcp_endpoints", &request.tcp_endpoints),
        ("quic_endpoints", &request.quic_endpoints),
    ] {
        if endpoints.len() > ENDPOINTS_MAX {
            fields.bad(name, format_args!("must have at most {ENDPOINTS_MAX} entries"));
        }
        for endpoint in endpoints.iter().filter(|text| text.parse::<std::net::SocketAddr>().is_err()) {
            fields.bad(name, format_args!("{endpoint:?} is no ip:port"));
        }
    }
    if request.endpoints.is_empty() {
        fields.bad("endpoints", "must name at least one ip:port");
    }
    if request.mesh_endpoint.parse::<std::net::SocketAddr>().is_err() {
        fields.bad("mesh_endpoint", "must be an ip:port");
    }
    let mesh_public_key = fields.bytes("mesh_public_key", &request.mesh_public_key);
    let node_verifying_key = fields.bytes("node_verifying_key", &request.node_verifying_key);
    let request_id =
        fields.take("request_id", request.request_id.parse::<uuid::Uuid>().map_err(|_| "must be a UUID"));
    let reaped = (request.reaped_incarnation > 0)
        .then_some(jump_session::ids::Incarnation(request.reaped_incarnation));
    let registration = fields.finish(|| {
        Some(Registration {
            node: node?,
            endpoints: request.endpoints,
            tcp_endpoints: request.tcp_endpoints,
            quic_endpoints: request.quic_endpoints,
            mesh_endpoint: request.mesh_endpoint,
            mesh_public_key: mesh_public_key?,
            node_verifying_key: node_verifying_key?,
            reaped,
            request_id: request_id?.to_string(),
        })
    })?;
    Ok(registration)
}

type Renewal = (Owner, Vec<Ack>);

fn parse_renewal(request: &wire::RenewRequest) -> Result<Renewal, ServiceError> {
    let mut fields = Fields::default();
    let owner = fields.owner(&request.node_id, request.incarnation);
    if request.acks.len() > ACKS_MAX {
        fields.bad("acks", format_args!("must have at most {ACKS_MAX} entries"));
    }
    let acks: Vec<Ack> = request
        .acks
        .iter()
        .take(ACKS_MAX)
        .filter_map(|ack| {
            let session = fields.id("acks.session_id", &ack.session_id)?;
            let switch_ages = switch_ages(&ack.switch_ages_ms);
            Some(Ack { session, epoch: Epoch(ack.epoch), switch_ages })
        })
        .collect();
    Ok(fields.finish(|| Some((owner?, acks)))?)
}

/// Bindings and nodes for gateways. Ended sessions are told as they end, and left out of snapshots.
struct BindingFeed;

impl Feed for BindingFeed {
    type Message = wire::WatchBindingsResponse;

    fn snapshot(&self, everything: Everything) -> Vec<Self::Message> {
        let Everything { revision, sessions, nodes } = everything;
        let live = |session: &&Arc<StoredSession>| !matches!(session.record.phase, Phase::Terminated { .. });
        let bindings: Vec<wire::Binding> =
            sessions.iter().filter(live).map(|session| (&session.record).into()).collect();
        let mut messages = vec![wire::WatchBindingsResponse {
            revision: revision.0,
            nodes: nodes.iter().map(|(node, drained)| node_message(node, *drained)).collect(),
            snapshot_start: true,
            ..wire::WatchBindingsResponse::default()
        }];
        messages.extend(bindings.chunks(ITEMS_PER_MESSAGE).map(|chunk| wire::WatchBindingsResponse {
            revision: revision.0,
            bindings: chunk.to_vec(),
            ..wire::WatchBindingsResponse::default()
        }));
        messages.last_mut().expect("the first message is there").snapshot_complete = true;
        messages
    }

    fn deltas(&self, revision: Revision, deltas: Vec<Delta>) -> Vec<Self::Message> {
        let mut messages: Vec<Self::Message> = deltas
            .chunks(ITEMS_PER_MESSAGE)
            .map(|chunk| {
                let mut message = wire::WatchBindingsResponse::default();
                for delta in chunk {
                    match delta {
                        Delta::Session(session) => message.bindings.push((&session.record).into()),
                        Delta::Node(node, drained) => {
                            message.gone_nodes.retain(|gone| gone != node.id.as_str());
                            message.nodes.push(node_message(node, *drained));
                        }
                        Delta::NodeGone(id) => {
                            message.nodes.retain(|node| node.node_id != id.as_str());
                            message.gone_nodes.push(id.to_string());
                        }
                    }
                }
                message
            })
            .collect();
        // Only the last message may be resumed from: the others end in the middle.
        if let Some(last) = messages.last_mut() {
            last.revision = revision.0;
        }
        messages
    }
}
