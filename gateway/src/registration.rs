//! Registration: how a run becomes known to control.

use std::time::Duration;

use jump_crypto::certificate::NodeCertificate;
use jump_crypto::ids::{Incarnation, NodeNumber};
use jump_crypto::key_set::KeySet;
use jump_crypto::keys::ClusterSecret;
use jump_proto::control_v1::{DeregisterRequest, RegisterRequest, RegisterResponse};
use jump_session::gateway::Nanos;
use jump_session::reason::Reason;
use jump_transport::clock::boottime_nanos;
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::config::Config;
use crate::control::{Control, explain, moves_on};
use crate::lease::{cluster_secrets, read_certificates, read_key_sets};

/// How long one replica may take to register a run.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two attempts.
const AGAIN: Duration = Duration::from_millis(100);
/// Time between two lines that say that registration still waits.
const SAY_EVERY: Duration = Duration::from_secs(3);

/// The public keys of a run.
#[derive(Debug, Clone, Copy)]
pub struct RunKeys {
    /// X25519 key of its mesh links.
    pub mesh: [u8; 32],
    /// Ed25519 key that signs its handshakes.
    pub signing: [u8; 32],
}

/// The times of a lease, in force for one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Time to live.
    pub ttl: Duration,
    /// Time between renewals.
    pub renew_interval: Duration,
    /// How long before the lease's end the authority ends.
    pub guard_margin: Duration,
}

impl LeaseTimes {
    /// Where neither the configuration nor control says anything.
    const RENEW_INTERVAL: Duration = Duration::from_secs(1);
    const GUARD_MARGIN: Duration = Duration::from_millis(300);

    fn read(response: &RegisterResponse, config: &Config) -> Self {
        let given = |time: &Option<prost_types::Duration>| {
            time.and_then(|time| Duration::try_from(time).ok()).filter(|time| !time.is_zero())
        };
        let (interval, margin) = (given(&response.renew_interval), given(&response.guard_margin));
        Self {
            ttl: given(&response.lease_ttl).unwrap_or_default(),
            renew_interval: config.lease.renew_interval.or(interval).unwrap_or(Self::RENEW_INTERVAL),
            guard_margin: config.lease.guard_margin.or(margin).unwrap_or(Self::GUARD_MARGIN),
        }
    }
}

/// What control gave to a run.
#[derive(Debug)]
pub struct Registration {
    /// The run.
    pub incarnation: Incarnation,
    /// Its steering number.
    pub number: NodeNumber,
    /// When the accepted request was sent: the authority counts from here.
    pub sent: Nanos,
    /// The lease's times.
    pub lease: LeaseTimes,
    /// The certificates for `AttachReply`, one by each grant key in use; not empty.
    pub certificates: Vec<NodeCertificate>,
    /// Key sets for devices, one by each grant key in use.
    pub key_sets: Vec<KeySet>,
    /// Cluster keys, current first.
    pub cluster: Vec<ClusterSecret>,
    /// Inner address pools.
    pub pools: Vec<ipnet::IpNet>,
}

/// Registration cannot succeed without somebody's help; the text says whose.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Control does not take this node's certificate.
    #[error(
        "control refuses this node's certificate ({problem}): issue one with `jump-control pki issue --role gateway --name {node}` from the CA that control uses"
    )]
    Refused {
        /// The node.
        node: String,
        /// Control's words.
        problem: String,
    },
    /// The TLS connection cannot be trusted.
    #[error(
        "cannot trust control at {endpoints} ({problem}): check that tls.ca is the CA of control's certificate, that the certificate names this address, and that it has not expired"
    )]
    Untrusted {
        /// The replicas.
        endpoints: String,
        /// What TLS said.
        problem: String,
    },
    /// Control does not accept what this node says of itself.
    #[error("control refuses the registration: {0}")]
    Invalid(String),
    /// Control's answer cannot be used.
    #[error(
        "control answered the registration with an unusable {0}: run the same version of control and gateway"
    )]
    Answer(&'static str),
}

/// Registers a run. Waits for control, and for an earlier run's lease to end, for as long as it takes.
///
/// # Errors
/// [`RegisterError`] when waiting cannot help.
pub async fn register(
    config: &Config,
    control: &Control,
    keys: RunKeys,
    reaped: Incarnation,
) -> Result<Registration, RegisterError> {
    let request = RegisterRequest {
        node_id: config.node.to_string(),
        endpoints: config.advertise.iter().map(ToString::to_string).collect(),
        mesh_endpoint: config.mesh_advertise.to_string(),
        mesh_public_key: keys.mesh.to_vec(),
        node_verifying_key: keys.signing.to_vec(),
        reaped_incarnation: reaped.0,
        request_id: Uuid::new_v4().to_string(),
        tcp_endpoints: Vec::new(),
        quic_endpoints: Vec::new(),
    };
    let mut say_at = Instant::now();
    loop {
        let sent = boottime_nanos();
        let answer = control
            .call(PATIENCE, |mut client| {
                let request = request.clone();
                async move { client.register(request).await }
            })
            .await;
        let status = match answer {
            Ok(response) => return read(response, config, sent),
            Err(status) => status,
        };
        if let Some(error) = hopeless(config, control, &status) {
            return Err(error);
        }
        if Instant::now() >= say_at {
            say_at = Instant::now() + SAY_EVERY;
            let error = explain(&status);
            if status.code() == Code::AlreadyExists {
                tracing::warn!(
                    error,
                    "an earlier run of this node is still registered; waiting for its lease to end"
                );
            } else {
                tracing::warn!(
                    error,
                    control = control.endpoints(),
                    "cannot reach control; retrying (check that it runs, and the control setting)"
                );
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn hopeless(config: &Config, control: &Control, status: &Status) -> Option<RegisterError> {
    let problem = explain(status);
    let node = config.node.to_string();
    let code = status.code();
    if matches!(code, Code::Unauthenticated | Code::PermissionDenied)
        || problem.contains("received fatal alert")
    {
        return Some(RegisterError::Refused { node, problem });
    }
    if problem.contains("invalid peer certificate") {
        return Some(RegisterError::Untrusted { endpoints: control.endpoints(), problem });
    }
    matches!(code, Code::InvalidArgument | Code::Unimplemented).then_some(RegisterError::Invalid(problem))
}

fn read(response: RegisterResponse, config: &Config, sent: Nanos) -> Result<Registration, RegisterError> {
    let number = u16::try_from(response.number).ok().filter(|n| (1..=NodeNumber::MAX.0).contains(n));
    let lease = LeaseTimes::read(&response, config);
    let pools = response.pools.iter().map(|pool| pool.parse()).collect::<Result<_, _>>();
    let cluster = cluster_secrets(&response.cluster_keys).filter(|keys| !keys.is_empty());
    Ok(Registration {
        incarnation: Incarnation(response.incarnation),
        number: NodeNumber(number.ok_or(RegisterError::Answer("node number"))?),
        sent,
        lease,
        certificates: read_certificates(&response.node_certificates)
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or(RegisterError::Answer("node certificate"))?,
        key_sets: read_key_sets(&response.key_sets).map_err(|_| RegisterError::Answer("key set"))?,
        cluster: cluster.ok_or(RegisterError::Answer("cluster key"))?,
        pools: pools.map_err(|_| RegisterError::Answer("address pool"))?,
    })
}

/// Says that a run has ended: to every replica at once, because the first that hears it frees the node's sessions.
/// Returns false when none has answered within `patience`.
pub async fn deregister(
    control: &Control,
    node: &str,
    incarnation: Incarnation,
    reason: Reason,
    patience: Duration,
) -> bool {
    let request = DeregisterRequest {
        node_id: node.to_owned(),
        incarnation: incarnation.0,
        reason: reason.code().to_owned(),
    };
    let mut calls = tokio::task::JoinSet::new();
    for (_, mut client) in control.all() {
        let request = request.clone();
        calls.spawn(async move { client.deregister(request).await });
    }
    let answered = async {
        while let Some(answer) = calls.join_next().await {
            match answer {
                Ok(Ok(_)) => return true,
                Ok(Err(status)) if !moves_on(&status) => {
                    tracing::error!(error = explain(&status), "control refused the deregistration");
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
        false
    };
    tokio::time::timeout(patience, answered).await.unwrap_or(false)
}
