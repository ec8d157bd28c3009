//! The whole replica: store, domain, services, and their ordered end.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use jump_crypto::entropy::{Entropy, EntropyError};
use jump_proto::client_v1::enrolment_service_server::EnrolmentServiceServer;
use jump_proto::control_v1::device_service_server::DeviceServiceServer;
use jump_proto::control_v1::gateway_service_server::GatewayServiceServer;
use jump_proto::control_v1::key_service_server::KeyServiceServer;
use jump_proto::control_v1::log_service_server::LogServiceServer;
use jump_proto::control_v1::node_service_server::NodeServiceServer;
use jump_proto::control_v1::ownership_service_server::OwnershipServiceServer;
use jump_proto::control_v1::session_service_server::SessionServiceServer;
use jump_telemetry::entropy::WatchedEntropy;
use jump_telemetry::metrics::{MetricsServer, ServeConfig, ServeError as MetricsError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use x509_parser::pem::parse_x509_pem;

use crate::addresses::Pools;
use crate::arbiter::Arbiter;
use crate::bindings::Bindings;
use crate::config::{Config, StoreConfig};
use crate::connections::{Connections, TLS_HANDSHAKE_MAX};
use crate::devices::Devices;
use crate::keyring::{Keeper, KeyChange, KeyRingError, KeyRings, Purpose};
use crate::registry::Registry;
use crate::service::{
    Context, DeviceApi, EnrolmentApi, GatewayApi, KeyApi, LogApi, NodeApi, OwnershipApi, Profile, SessionApi,
};
use crate::store::etcd::{EtcdConfig, EtcdTls};
use crate::store::{EmbeddedStore, EtcdStore, GroupCommit, MeasuredStore, SharedStore, StoreError};
use crate::{audit, clock, metrics, reaper, rebalancer};

/// How long a node certificate is valid.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(3600);

/// Time between pings on client connections, and how long one may stay unanswered.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Between two looks at a key whose time has come: clocks count in different grains.
const KEYS_PAUSE: Duration = Duration::from_millis(200);

/// How long requests may take to finish once the replica stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why the replica did not start or stopped. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file could not be read.
    #[error("cannot read {what} {path}: {error}: make it with `jump-control pki init` and `jump-control pki issue`", path = .path.display())]
    File {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A certificate cannot be used.
    #[error("{what} {path} {problem}", path = .path.display())]
    Certificate {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {error}: stop what uses it, or choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The address of the metrics endpoint is taken or not ours.
    #[error("cannot serve metrics on {address}: {error}: stop what uses it, or change metrics_listen")]
    MetricsListen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// Metrics cannot be collected.
    #[error("cannot collect metrics: {0}")]
    Metrics(String),
    /// The store cannot be used.
    #[error("cannot use the store: {error}: {advice}")]
    Store {
        /// Why.
        error: StoreError,
        /// What to do.
        advice: &'static str,
    },
    /// The keys cannot be used.
    #[error("cannot load the cluster's keys: {0}")]
    Keys(#[from] KeyRingError),
    /// The random generator failed its tests.
    #[error("{0}: this machine must not make keys")]
    Entropy(#[from] EntropyError),
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// A replica that listens.
#[derive(Debug)]
pub struct Replica {
    /// Where it listens; the port is the real one also when 0 was asked for.
    pub address: SocketAddr,
    listener: TcpListener,
    tls: ServerTlsConfig,
    context: Arc<Context>,
    config: Config,
}

/// Serves until `shutdown`.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), ServeError> {
    Replica::bind(config).await?.run(shutdown).await
}

impl Replica {
    /// Opens everything that can fail: files, the store, the socket.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let store = open_store(&config.store).await?;
        Self::bind_with_store(config, store).await
    }

    /// As [`bind`](Self::bind), over a store that is open already.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind_with_store(config: Config, store: SharedStore) -> Result<Self, ServeError> {
        let store: SharedStore = Arc::new(MeasuredStore::new(store));
        let (tls, ca) = tls(&config)?;
        let entropy: Arc<Mutex<Box<dyn Entropy>>> = Arc::new(Mutex::new(Box::new(WatchedEntropy::open()?)));
        let rings = KeyRings::load(&store, config.keys.ring, config.keys.hybrid, &entropy).await?;
        let keys = Arc::new(ArcSwap::from_pointee(rings));
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| ServeError::Listen { address: config.listen, error })?;
        let address =
            listener.local_addr().map_err(|error| ServeError::Listen { address: config.listen, error })?;

        let bindings = Arc::new(Bindings::new(&config.policy));
        let arbiter = Arbiter {
            store: Arc::clone(&store),
            bindings: Arc::clone(&bindings),
            policy: config.policy.clone(),
            pools: Pools::new(config.pools.clone()),
            handover_wait: config.handover_wait,
        };
        let mut routes: Vec<_> = config.pools.iter().map(|pool| pool.trunc()).collect();
        routes.extend(config.routes.iter().copied().filter(|route| !config.pools.contains(route)));
        let context = Arc::new(Context {
            registry: Registry::new(Arc::clone(&store), Arc::clone(&bindings), config.lease_ttl),
            keeper: Keeper {
                store: Arc::clone(&store),
                policy: config.keys.ring,
                hybrid: config.keys.hybrid,
            },
            devices: Devices { store, arbiter: arbiter.clone(), overlap: config.keys.device_overlap },
            arbiter,
            bindings,
            keys,
            entropy,
            profile: Profile {
                advertise: config.advertise.clone(),
                ca,
                routes,
                dns: config.dns.clone(),
                mtu: config.mtu,
                renew_interval: config.renew_interval,
                guard_margin: config.guard_margin,
                certificate_lifetime: CERTIFICATE_LIFETIME,
            },
            stop: CancellationToken::new(),
        });
        Ok(Self { address, listener, tls, context, config })
    }

    /// Serves until `shutdown`, then ends the streams, lets running requests finish, and stops.
    ///
    /// # Errors
    /// [`ServeError::Server`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { address, listener, tls, context, config } = self;
        let stop = context.stop.clone();
        let _end_with_us = stop.clone().drop_guard();
        let follower = tokio::spawn(
            Arc::clone(&context.bindings).follow(Arc::clone(&context.arbiter.store), stop.clone()),
        );
        let keys = tokio::spawn(refresh_keys(Arc::clone(&context)));
        let reaper = tokio::spawn(reaper::run(Arc::new(context.arbiter.clone()), stop.clone()));
        let rebalancer =
            tokio::spawn(rebalancer::run(context.arbiter.clone(), config.rebalance, stop.clone()));

        let probe = StoreProbe::default();
        let probing = tokio::spawn(probe.clone().run(Arc::clone(&context.arbiter.store), stop.clone()));
        let _metrics = match config.metrics_listen {
            Some(address) => Some(serve_metrics(address, &context, probe, shutdown.clone()).await?),
            None => None,
        };
        let (health_reporter, health) = tonic_health::server::health_reporter();
        health_reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        let ready = {
            let (context, reporter) = (Arc::clone(&context), health_reporter.clone());
            tokio::spawn(async move {
                context.bindings.ready().await;
                reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
                tracing::info!(%address, "ready");
            })
        };
        let reflection = config.reflection.then(|| {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(jump_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .build_v1()
                .expect("the descriptor sets were made by the build")
        });
        let router = Server::builder()
            .tls_config(tls)?
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .trace_fn(jump_telemetry::trace::server_span)
            .tcp_nodelay(true)
            .layer(audit::CallLayer)
            .add_service(health)
            .add_optional_service(reflection)
            .add_service(GatewayServiceServer::new(GatewayApi::new(Arc::clone(&context))))
            .add_service(SessionServiceServer::new(SessionApi::new(Arc::clone(&context))))
            .add_service(OwnershipServiceServer::new(OwnershipApi::new(Arc::clone(&context))))
            .add_service(NodeServiceServer::new(NodeApi::new(Arc::clone(&context))))
            .add_service(KeyServiceServer::new(KeyApi::new(Arc::clone(&context))))
            .add_service(LogServiceServer::new(LogApi::new(Arc::clone(&context))))
            .add_service(DeviceServiceServer::new(DeviceApi::new(Arc::clone(&context))))
            .add_service(EnrolmentServiceServer::new(EnrolmentApi::new(Arc::clone(&context))));
        tracing::info!(%address, advertise = config.advertise, "listening");

        let draining = shutdown.clone();
        let signal = {
            let stop = stop.clone();
            async move {
                draining.cancelled().await;
                health_reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
                stop.cancel();
            }
        };
        let incoming = Connections::new(TcpIncoming::from(listener).with_nodelay(Some(true)));
        let served = router.serve_with_incoming_shutdown(incoming, signal);
        let result = tokio::select! {
            result = served => result,
            () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN_MAX).await } => {
                tracing::warn!("connections did not end in time; closing them");
                Ok(())
            }
        };
        stop.cancel();
        ready.abort();
        let _ = tokio::join!(follower, keys, reaper, rebalancer, ready, probing);
        tracing::info!("stopped");
        Ok(result?)
    }
}

/// Whether the store answers, asked every so often by a read that goes through it.
#[derive(Debug, Clone, Default)]
struct StoreProbe {
    /// Reads in a row that failed.
    failures: Arc<AtomicU32>,
}

impl StoreProbe {
    const INTERVAL: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(1);
    /// An election of the store's leader must not make every replica unready: fewer failures are none.
    const FAILURES_MAX: u32 = 3;

    async fn run(self, store: SharedStore, stop: CancellationToken) {
        loop {
            let read = tokio::time::timeout(Self::PATIENCE, store.read(&[]));
            tokio::select! {
                answer = read => self.note(matches!(answer, Ok(Ok(_)))),
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(Self::INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn note(&self, answers: bool) {
        let failures = if answers { 0 } else { self.failures.load(Ordering::Relaxed).saturating_add(1) };
        self.failures.store(failures, Ordering::Relaxed);
    }

    fn answers(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < Self::FAILURES_MAX
    }
}

/// Metrics and the health pages. Ready: the cache is filled, the store answers, and the replica is not about to stop.
async fn serve_metrics(
    address: SocketAddr,
    context: &Arc<Context>,
    probe: StoreProbe,
    shutdown: CancellationToken,
) -> Result<MetricsServer, ServeError> {
    metrics::publish(Arc::clone(&context.bindings));
    let bindings = Arc::clone(&context.bindings);
    let serving = ServeConfig::new(address).metrics(metrics::ALL).ready(move || {
        if shutdown.is_cancelled() {
            return Err("stopping".to_owned());
        }
        if !bindings.is_ready() {
            return Err("the store is not listed yet".to_owned());
        }
        if probe.answers() { Ok(()) } else { Err("the store does not answer".to_owned()) }
    });
    jump_telemetry::metrics::serve(serving).await.map_err(|error| match error {
        MetricsError::Listen { addr, source } => ServeError::MetricsListen { address: addr, error: source },
        MetricsError::Metrics(error) => ServeError::Metrics(error.to_string()),
    })
}

/// Loads the key rings again whenever one changes, and changes them when their time has come. Every replica tries; the
/// first compare-and-swap wins.
async fn refresh_keys(context: Arc<Context>) {
    let changed = context.bindings.keys_changed();
    loop {
        let due = context.keys.load().due;
        let wait = due.map(|due| Duration::from_millis(due.saturating_sub(clock::unix_millis())));
        let advance = tokio::select! {
            () = changed.notified() => false,
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX).max(KEYS_PAUSE)) => true,
            () = context.stop.cancelled() => return,
        };
        if let Err(error) = reload_keys(&context, advance).await {
            tracing::warn!(%error, "cannot load the cluster's keys; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            changed.notify_one();
        }
    }
}

async fn reload_keys(context: &Context, advance: bool) -> Result<(), KeyRingError> {
    if advance {
        for purpose in Purpose::ALL {
            context.keeper.change(purpose, &KeyChange::Advance, &context.entropy, None, "").await?;
        }
    }
    let Context { keeper, entropy, keys, .. } = context;
    keys.store(Arc::new(KeyRings::load(&keeper.store, keeper.policy, keeper.hybrid, entropy).await?));
    Ok(())
}

async fn open_store(config: &StoreConfig) -> Result<SharedStore, ServeError> {
    match config {
        StoreConfig::Embedded { path } => {
            let advice = "check the path, its permissions, and that no other jump-control uses it";
            let store = EmbeddedStore::open(&store_file(path)?)
                .map_err(|error| ServeError::Store { error, advice })?;
            Ok(Arc::new(store))
        }
        StoreConfig::Etcd { endpoints, ca, identity, user, keepalive_interval } => {
            let config =
                etcd_config(endpoints, ca.as_deref(), identity.as_ref(), user.as_ref(), *keepalive_interval)?;
            let advice = "start etcd, or correct store.endpoints, store.ca and the network between";
            let store =
                EtcdStore::connect(config).await.map_err(|error| ServeError::Store { error, advice })?;
            Ok(Arc::new(GroupCommit::new(store)))
        }
    }
}

/// How to reach etcd, with what its files hold.
///
/// # Errors
/// [`ServeError`] for a file that cannot be read.
pub(crate) fn etcd_config(
    endpoints: &[String],
    ca: Option<&Path>,
    identity: Option<&(PathBuf, PathBuf)>,
    user: Option<&(String, PathBuf)>,
    keepalive_interval: Duration,
) -> Result<EtcdConfig, ServeError> {
    let tls = match ca {
        Some(ca) => Some(EtcdTls {
            ca: read("the CA of etcd", ca)?,
            identity: match identity {
                Some((cert, key)) => {
                    Some((read("the certificate for etcd", cert)?, read("the key for etcd", key)?))
                }
                None => None,
            },
        }),
        None => None,
    };
    let user = match user {
        Some((name, file)) => Some((name.clone(), read("the etcd password", file)?.trim_end().to_owned())),
        None => None,
    };
    Ok(EtcdConfig { tls, user, keepalive_interval, ..EtcdConfig::new(endpoints.to_vec()) })
}

/// The store's file; a directory holds it under a fixed name. Its directory is made if it does not exist.
fn store_file(path: &Path) -> Result<PathBuf, ServeError> {
    let path = if path.is_dir() { path.join("control.redb") } else { path.to_owned() };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|error| ServeError::Store {
            error: StoreError::Refused(format!("{}: {error}", dir.display())),
            advice: "make the directory, or choose another store.path",
        })?;
    }
    Ok(path)
}

fn read(what: &'static str, path: &Path) -> Result<String, ServeError> {
    fs::read_to_string(path).map_err(|error| ServeError::File { what, path: path.to_owned(), error })
}

/// The server's TLS settings, and the CA certificate as DER.
fn tls(config: &Config) -> Result<(ServerTlsConfig, Vec<u8>), ServeError> {
    let cert = read("the server certificate", &config.cert)?;
    let key = read("the server key", &config.key)?;
    let ca = read("the CA certificate", &config.ca)?;
    check_certificate("the server certificate", &config.cert, &cert)?;
    let ca_der = check_certificate("the CA certificate", &config.ca, &ca)?;
    let tls = ServerTlsConfig::new()
        .identity(TlsIdentity::from_pem(cert, key))
        .client_ca_root(Certificate::from_pem(ca))
        .client_auth_optional(true)
        .timeout(TLS_HANDSHAKE_MAX);
    Server::builder().tls_config(tls.clone()).map_err(|error| ServeError::Certificate {
        what: "the server certificate",
        path: config.cert.clone(),
        problem: format!(
            "cannot be used with the key {} ({}): give the two files of one `jump-control pki issue`",
            config.key.display(),
            innermost(&error)
        ),
    })?;
    Ok((tls, ca_der))
}

/// What an error chain ends in.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn check_certificate(what: &'static str, path: &Path, pem: &str) -> Result<Vec<u8>, ServeError> {
    let problem = |problem: String| ServeError::Certificate { what, path: path.to_owned(), problem };
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|_| {
        problem("is not a PEM certificate: make one with `jump-control pki issue`".to_owned())
    })?;
    let certificate = pem
        .parse_x509()
        .map_err(|_| problem("is damaged: make a new one with `jump-control pki issue`".to_owned()))?;
    let validity = certificate.validity();
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    if validity.not_after.timestamp() <= now {
        return Err(problem(format!(
            "expired on {}: make a new one with `jump-control pki issue`",
            validity.not_after
        )));
    }
    if validity.not_before.timestamp() > now {
        return Err(problem(format!("is not valid before {}: check the clock", validity.not_before)));
    }
    Ok(pem.contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_fails_once_is_no_reason_to_be_unready_and_one_that_goes_on_failing_is() {
        let probe = StoreProbe::default();
        assert!(probe.answers());
        probe.note(false);
        probe.note(false);
        assert!(probe.answers());
        probe.note(false);
        assert!(!probe.answers());
        probe.note(true);
        assert!(probe.answers());
    }
}
