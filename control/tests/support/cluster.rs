//! A control plane in this process, reached as its callers reach it: gRPC over mTLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jump_control::config::{Config, Layers};
use jump_control::identity::{Identity, Role};
use jump_control::pki::{Pair, Subject, make_ca, make_certificate};
use jump_control::store::SharedStore;
use jump_control::{Replica, ServeError};
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::device_service_client::DeviceServiceClient;
use jump_proto::control_v1::gateway_service_client::GatewayServiceClient;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};
use uuid::Uuid;

pub(crate) struct Pki {
    pub(crate) dir: TempDir,
    ca: Pair,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), ca: make_ca().unwrap() };
        std::fs::write(this.file("ca.pem"), &this.ca.certificate).unwrap();
        this.issue(Role::Control, "c1");
        this.issue(Role::Operator, "op");
        this.issue(Role::Reader, "eye");
        this
    }

    pub(crate) fn issue(&self, role: Role, name: &str) {
        let identity = Identity::new(role, name).unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let validity = Duration::from_secs(3600);
        let subject = Subject { identity: Some(&identity), name, hosts: &hosts, validity };
        let pair = make_certificate(&self.ca, &subject).unwrap();
        self.write(&format!("{role}-{name}"), &pair.certificate, &pair.key);
    }

    /// A certificate that our CA vouches for and that names no role.
    pub(crate) fn issue_without_identity(&self, name: &str) {
        let validity = Duration::from_secs(3600);
        let subject = Subject { identity: None, name, hosts: &[], validity };
        let pair = make_certificate(&self.ca, &subject).unwrap();
        self.write(name, &pair.certificate, &pair.key);
    }

    /// A certificate that ended yesterday.
    pub(crate) fn issue_expired(&self, role: Role, name: &str) {
        let issuer = rcgen::Issuer::from_ca_cert_pem(
            &self.ca.certificate,
            rcgen::KeyPair::from_pem(&self.ca.key).unwrap(),
        )
        .unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = Identity::new(role, name).unwrap().uri();
        params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now - time::Duration::days(2), now - time::Duration::days(1));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        self.write(&format!("{role}-{name}"), &certificate.pem(), &key.serialize_pem());
    }

    fn write(&self, stem: &str, certificate: &str, key: &str) {
        std::fs::write(self.file(&format!("{stem}.pem")), certificate).unwrap();
        std::fs::write(self.file(&format!("{stem}-key.pem")), key).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    pub(crate) fn tls(&self, who: Option<&str>) -> ClientTlsConfig {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.read("ca.pem")));
        match who {
            Some(who) => tls.identity(self.identity(who)),
            None => tls,
        }
    }

    pub(crate) fn identity(&self, who: &str) -> TlsIdentity {
        TlsIdentity::from_pem(self.read(&format!("{who}.pem")), self.read(&format!("{who}-key.pem")))
    }

    pub(crate) fn config(&self, settings: &[(&str, &str)]) -> Config {
        let file = |name: &str| self.file(name).display().to_string();
        let mut flags: std::collections::BTreeMap<String, String> = [
            ("listen", "127.0.0.1:0".to_owned()),
            ("advertise", "127.0.0.1:7443".to_owned()),
            ("tls.certificate", file("control-c1.pem")),
            ("tls.key", file("control-c1-key.pem")),
            ("tls.ca", file("ca.pem")),
            ("store.kind", "embedded".to_owned()),
            ("store.path", file("unused.redb")),
            ("pools", "10.77.0.0/16,fd00:77::/64".to_owned()),
            // A loaded machine must not lose its leases.
            ("lease.ttl", "30s".to_owned()),
            ("policy.switch_cooldown", "0s".to_owned()),
            ("policy.switches_per_minute_max", "100000".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        flags.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::from_layers(Layers { flags, ..Layers::default() }).unwrap()
    }
}

/// A running replica.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(crate) async fn start(pki: &Pki, store: SharedStore, settings: &[(&str, &str)]) -> Self {
        let replica = Replica::bind_with_store(pki.config(settings), store).await.unwrap();
        let address = replica.address;
        let stop = CancellationToken::new();
        let task = tokio::spawn(replica.run(stop.clone()));
        Self { address, stop, task }
    }

    pub(crate) async fn channel(&self, pki: &Pki, who: Option<&str>) -> Channel {
        let uri = format!("https://{}", self.address);
        Endpoint::from_shared(uri).unwrap().tls_config(pki.tls(who)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A registered gateway, without a data plane.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) number: u32,
    pub(crate) client: GatewayServiceClient<Channel>,
}

pub(crate) fn registration(name: &str) -> wire::RegisterRequest {
    wire::RegisterRequest {
        node_id: name.to_owned(),
        endpoints: vec!["192.0.2.1:51820".to_owned()],
        mesh_endpoint: "192.0.2.1:51821".to_owned(),
        mesh_public_key: vec![1; 32],
        node_verifying_key: vec![2; 32],
        request_id: Uuid::new_v4().to_string(),
        ..wire::RegisterRequest::default()
    }
}

impl Gateway {
    pub(crate) async fn register(pki: &Pki, server: &Server, name: &str) -> Self {
        pki.issue(Role::Gateway, name);
        let channel = server.channel(pki, Some(&format!("gateway-{name}"))).await;
        let mut client = GatewayServiceClient::new(channel);
        let answer = client.register(registration(name)).await.unwrap().into_inner();
        Self { name: name.to_owned(), incarnation: answer.incarnation, number: answer.number, client }
    }

    /// Renews in the background, acknowledging nothing.
    pub(crate) fn keep_alive(&self) -> JoinHandle<()> {
        let mut this = self.clone();
        tokio::spawn(async move {
            loop {
                let request = wire::RenewRequest {
                    node_id: this.name.clone(),
                    incarnation: this.incarnation,
                    ..wire::RenewRequest::default()
                };
                if this.client.renew(request).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        })
    }

    pub(crate) fn attach_request(&self, device: [u8; 32], session: &str, seq: u64) -> wire::AttachRequest {
        wire::AttachRequest {
            node_id: self.name.clone(),
            incarnation: self.incarnation,
            device_key: device.to_vec(),
            session_id: session.to_owned(),
            attach_seq: seq,
            attempt_id: Uuid::new_v4().to_string(),
            last_epoch: 0,
            reason: if session.is_empty() { "BIRTH" } else { "GATEWAY_UNRESPONSIVE" }.to_owned(),
            handshake_hash: vec![7; 32],
            client_address: "198.51.100.1:4000".to_owned(),
            grant_key_ids: Vec::new(),
            switch_ages_ms: Vec::new(),
        }
    }

    pub(crate) async fn attach(&self, request: wire::AttachRequest) -> wire::attach_response::Outcome {
        // As a gateway does: where the store did not answer, the same attempt is asked again.
        for _ in 0..10 {
            match self.client.clone().attach(request.clone()).await {
                Ok(answer) => return answer.into_inner().outcome.unwrap(),
                Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
            }
        }
        panic!("the store stays unavailable")
    }

    pub(crate) async fn accepted(&self, request: wire::AttachRequest) -> wire::attach_response::Accepted {
        match self.attach(request).await {
            wire::attach_response::Outcome::Accepted(accepted) => accepted,
            wire::attach_response::Outcome::Rejected(rejected) => panic!("rejected: {rejected:?}"),
        }
    }

    pub(crate) async fn rejected(&self, request: wire::AttachRequest) -> wire::attach_response::Rejected {
        match self.attach(request).await {
            wire::attach_response::Outcome::Rejected(rejected) => rejected,
            wire::attach_response::Outcome::Accepted(accepted) => panic!("accepted: {accepted:?}"),
        }
    }

    /// Acknowledges every fence as soon as the stream orders it.
    pub(crate) async fn obey_fences(&self) -> JoinHandle<()> {
        let mut client = self.client.clone();
        let (node_id, incarnation) = (self.name.clone(), self.incarnation);
        let request = wire::WatchBindingsRequest { node_id: node_id.clone(), incarnation, after_revision: 0 };
        let mut stream = client.watch_bindings(request).await.unwrap().into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                for binding in message.bindings {
                    let mine = binding
                        .owner
                        .as_ref()
                        .is_some_and(|owner| owner.node_id == node_id && owner.incarnation == incarnation);
                    if mine && binding.phase() == wire::SessionPhase::Handover {
                        let ack = wire::AckFenceRequest {
                            node_id: node_id.clone(),
                            incarnation,
                            session_id: binding.session_id,
                            epoch: binding.epoch,
                            switch_ages_ms: Vec::new(),
                        };
                        // A handover that was resolved otherwise needs no acknowledgement.
                        let _ = client.ack_fence(ack).await;
                    }
                }
            }
        })
    }
}

/// Enrols a device with this key.
pub(crate) async fn enrol(pki: &Pki, server: &Server, key: [u8; 32]) {
    let mut client = DeviceServiceClient::new(server.channel(pki, Some("operator-op")).await);
    let device_key = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let request = wire::EnrolDeviceRequest {
        device_key,
        name: format!("device {}", key[0]),
        ..wire::EnrolDeviceRequest::default()
    };
    client.enrol_device(request).await.unwrap();
}
