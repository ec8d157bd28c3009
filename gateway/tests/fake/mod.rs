//! A control of one replica in this process: answers as told, remembers what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use jump_crypto::certificate::{NodeCertificate, NodeClaims};
use jump_crypto::entropy::OsEntropy;
use jump_crypto::grant::{Grant, GrantClaims};
use jump_crypto::ids::{DeviceKey, Epoch, Incarnation, SessionId};
use jump_crypto::keys::{ClusterSecret, GrantSigner};
use jump_proto::control_v1::attach_response::{Accepted, Outcome};
use jump_proto::control_v1::gateway_service_server::{GatewayService, GatewayServiceServer};
use jump_proto::control_v1::*;
use jump_telemetry::Correlation;
use jump_telemetry::trace::correlation;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// How the fake answers renewals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewals {
    Granted,
    /// No answer at all.
    Silent,
    /// The run is over.
    Gone,
}

/// What the fake was told and how it answers.
pub(crate) struct State {
    pub(crate) renewals: Renewals,
    pub(crate) incarnation: u64,
    pub(crate) registrations: Vec<RegisterRequest>,
    /// Whether somebody listened at a gateway's endpoint before its registration was answered.
    pub(crate) listened_early: bool,
    pub(crate) renewals_seen: Vec<RenewRequest>,
    pub(crate) fences: Vec<FenceOrder>,
    pub(crate) fence_acks: Vec<(String, u64)>,
    pub(crate) releases: Vec<ReleaseRequest>,
    pub(crate) deregistered: Vec<DeregisterRequest>,
    pub(crate) attached: Vec<AttachRequest>,
    /// What the metadata of requests about one session said, by method.
    pub(crate) correlations: Vec<(&'static str, Option<Correlation>)>,
    pub(crate) epochs: HashMap<String, u64>,
    pub(crate) watchers: Vec<mpsc::Sender<Result<WatchBindingsResponse, Status>>>,
    pub(crate) watches: u32,
    pub(crate) nodes: Vec<Node>,
    pub(crate) bindings: Vec<Binding>,
    verifying_key: [u8; 32],
}

/// The fake and everything that its clients need.
pub(crate) struct FakeControl {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) address: SocketAddr,
    pub(crate) cluster: [u8; 32],
    pub(crate) grants: Arc<GrantSigner>,
    pub(crate) files: tempfile::TempDir,
}

pub(crate) const TTL: Duration = Duration::from_millis(3000);

impl FakeControl {
    pub(crate) async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let (ca, issuer) = authority();
        std::fs::write(files.path().join("ca.pem"), &ca).unwrap();
        let (certificate, key) = issue(&issuer, "spiffe://jumping-vpn/gateway/gw-1", "gw-1");
        std::fs::write(files.path().join("gw.pem"), certificate).unwrap();
        std::fs::write(files.path().join("gw-key.pem"), key).unwrap();
        let (certificate, key) = issue(&issuer, "spiffe://jumping-vpn/control/c1", "127.0.0.1");
        let mut entropy = OsEntropy::new().unwrap();
        let grants = Arc::new(GrantSigner::generate(&mut entropy).unwrap());
        let cluster = *ClusterSecret::generate(&mut entropy).unwrap().expose();
        let state = Arc::new(Mutex::new(State {
            renewals: Renewals::Granted,
            incarnation: 100,
            registrations: vec![],
            listened_early: false,
            renewals_seen: vec![],
            fences: vec![],
            fence_acks: vec![],
            releases: vec![],
            deregistered: vec![],
            attached: vec![],
            correlations: vec![],
            epochs: HashMap::new(),
            watchers: vec![],
            watches: 0,
            nodes: vec![],
            bindings: vec![],
            verifying_key: [0; 32],
        }));
        let service = Service { state: Arc::clone(&state), cluster, grants: Arc::clone(&grants) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(&ca));
        tokio::spawn(async move {
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(GatewayServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { state, address, cluster, grants, files }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Waits until `look` finds something.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        for _ in 0..2000 {
            if let Some(found) = self.with(&mut look) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what} did not happen within ten seconds");
    }

    /// Sends news to every watcher.
    pub(crate) async fn publish(&self, news: WatchBindingsResponse) {
        let watchers = self.with(|state| state.watchers.clone());
        for watcher in watchers {
            let _ = watcher.send(Ok(news.clone())).await;
        }
    }
}

fn authority() -> (String, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, rcgen::Issuer::new(params, key))
}

fn issue(issuer: &rcgen::Issuer<'static, rcgen::KeyPair>, role: &str, host: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(role.try_into().unwrap()));
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

struct Service {
    state: Arc<Mutex<State>>,
    cluster: [u8; 32],
    grants: Arc<GrantSigner>,
}

impl Service {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The state, with the request's correlation id noted.
    fn asked<T>(&self, method: &'static str, request: &Request<T>) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state();
        state.correlations.push((method, correlation(request.metadata())));
        state
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap()
}

#[tonic::async_trait]
impl GatewayService for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        state.incarnation += 1;
        state.verifying_key = request.node_verifying_key.as_slice().try_into().unwrap();
        let claims = NodeClaims {
            node: request.node_id.parse().unwrap(),
            incarnation: Incarnation(state.incarnation),
            verifying_key: state.verifying_key,
            not_after: u64::MAX,
        };
        state.listened_early |=
            request.endpoints.iter().any(|endpoint| std::net::UdpSocket::bind(endpoint).is_err());
        state.registrations.push(request);
        Ok(Response::new(RegisterResponse {
            incarnation: state.incarnation,
            number: 1,
            lease_ttl: Some(duration(TTL)),
            node_certificates: vec![NodeCertificate::issue(&claims, &self.grants).as_bytes().to_vec()],
            cluster_keys: vec![self.cluster.to_vec()],
            grant_keys: vec![self.grants.public().to_vec()],
            pools: vec!["10.213.0.0/24".to_owned()],
            ..RegisterResponse::default()
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let request = request.into_inner();
        let renewals = self.state().renewals;
        match renewals {
            Renewals::Silent => std::future::pending().await,
            Renewals::Gone => Err(Status::not_found("node gw-1 is not registered in this run")),
            Renewals::Granted => {
                let mut state = self.state();
                for ack in &request.acks {
                    state.fence_acks.push((ack.session_id.clone(), ack.epoch));
                }
                state.renewals_seen.push(request);
                let fences = std::mem::take(&mut state.fences);
                Ok(Response::new(RenewResponse { fences, ..RenewResponse::default() }))
            }
        }
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        self.state().deregistered.push(request.into_inner());
        Ok(Response::new(DeregisterResponse {}))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let mut state = self.asked("Attach", &request);
        let request = request.into_inner();
        let session = if request.session_id.is_empty() {
            SessionId::from_bytes([7; 16]).to_string()
        } else {
            request.session_id.clone()
        };
        let epoch = state.epochs.entry(session.clone()).or_insert(0);
        *epoch += 1;
        let epoch = *epoch;
        let claims = GrantClaims {
            handshake_hash: request.handshake_hash.as_slice().try_into().unwrap(),
            session: session.parse().unwrap(),
            device: DeviceKey::from_bytes(request.device_key.as_slice().try_into().unwrap()),
            epoch: Epoch(epoch),
            node: request.node_id.parse().unwrap(),
            incarnation: Incarnation(request.incarnation),
            not_after: u64::MAX,
        };
        state.attached.push(request);
        let expire = SystemTime::now() + Duration::from_secs(3600);
        Ok(Response::new(AttachResponse {
            outcome: Some(Outcome::Accepted(Accepted {
                session_id: session,
                epoch,
                inner_addresses: vec!["10.213.0.2".to_owned()],
                grant: Grant::issue(&claims, &self.grants).as_bytes().to_vec(),
                expire_time: Some(expire.into()),
                policy: Some(SessionPolicy {
                    idle_transport_max: Some(duration(Duration::from_secs(120))),
                    switches_per_minute_max: 20,
                    ..SessionPolicy::default()
                }),
                routes: vec![],
                dns_servers: vec![],
                mtu: 1280,
                correlation_id: SessionId::from_bytes([9; 16]).to_string(),
                switch_ages_ms: Vec::new(),
            })),
        }))
    }

    async fn ack_fence(
        &self,
        request: Request<AckFenceRequest>,
    ) -> Result<Response<AckFenceResponse>, Status> {
        let mut state = self.asked("AckFence", &request);
        let request = request.into_inner();
        state.fence_acks.push((request.session_id, request.epoch));
        Ok(Response::new(AckFenceResponse { epoch: request.epoch + 1 }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.asked("Release", &request).releases.push(request.into_inner());
        Ok(Response::new(ReleaseResponse {}))
    }

    type WatchBindingsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchBindingsResponse, Status>> + Send>>;

    async fn watch_bindings(
        &self,
        _request: Request<WatchBindingsRequest>,
    ) -> Result<Response<Self::WatchBindingsStream>, Status> {
        let (news, stream) = mpsc::channel(64);
        let snapshot = {
            let mut state = self.state();
            state.watches += 1;
            state.watchers.push(news.clone());
            WatchBindingsResponse {
                revision: 1,
                snapshot_start: true,
                snapshot_complete: true,
                nodes: state.nodes.clone(),
                bindings: state.bindings.clone(),
                gone_nodes: vec![],
            }
        };
        let _ = news.send(Ok(snapshot)).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
