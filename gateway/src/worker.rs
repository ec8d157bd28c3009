//! The worker: one registered run of the node. Everything that it knows dies with it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use jump_crypto::certificate::NodeSigner;
use jump_crypto::cookie::Gate;
use jump_crypto::entropy::EntropyError;
use jump_crypto::handshake::Responder;
use jump_crypto::ids::Incarnation;
use jump_crypto::mesh::{MeshEnd, MeshSecret};
use jump_session::ownership::Authority;
use jump_session::path::Transport;
use jump_session::reason::Reason;
use jump_telemetry::entropy::WatchedEntropy;
use jump_telemetry::metrics::{ServeConfig, ServeError, serve};
use jump_transport::clock::boottime_nanos;
use jump_transport::poll::Waker;
use jump_transport::tun::{Tun, add_route};
use jump_transport::udp::{UdpOptions, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::attach::{Claims, release};
use crate::audit::{self, Security};
use crate::bindings::{Directory, follow};
use crate::config::{Config, Doorway};
use crate::conntrack;
use crate::context::{Context, Ending, Orders, Roster};
use crate::control::{ConnectError, Control};
use crate::dataplane::doors::Doors;
use crate::dataplane::engine::{Engine, Shared, Sockets};
use crate::dataplane::{
    COMMANDS_MAX, Carried, DataPlane, EVENTS_MAX, EgressSetup, Event, INITS_MAX, Note, Setup, What,
};
use crate::drain;
use crate::handshake::{RosterSource, answer_inits};
use crate::heartbeat::Heart;
use crate::identity::{self, IdentityErrors};
use crate::lease::{Guard, LeaseLost, renew};
use crate::metrics;
use crate::places::Places;
use crate::readiness::Readiness;
use crate::registration::{LeaseTimes, RegisterError, Registration, RunKeys, deregister, register};
use crate::usage;

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The node's identity is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityErrors),
    /// A connection cannot be prepared.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A socket cannot be opened.
    #[error("cannot listen on {address} (UDP, setting {setting}): {}", listen_advice(.source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The socket of another transport cannot be opened.
    #[error("cannot listen on {address} ({transport}, setting transports.{transport}; \"off\" does without): {}", listen_advice(.source))]
    Door {
        /// The transport.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The metrics endpoint cannot be opened.
    #[error("cannot serve metrics on {address} (setting metrics_listen): {problem}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What is wrong.
        problem: String,
    },
    /// Control does not take this run.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The times do not fit each other.
    #[error("{0}")]
    Times(String),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The lease is gone: the next run starts afresh.
    #[error(transparent)]
    LeaseLost(#[from] LeaseLost),
    /// The data plane ended.
    #[error("the data plane ended")]
    DataPlane(#[source] io::Error),
    /// A thread could not be started, or another system call failed.
    #[error("cannot start the worker's parts")]
    System(#[from] io::Error),
}

impl WorkerError {
    /// True when starting again cannot help before somebody has changed something.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Identity(_)
            | Self::Connect(_)
            | Self::Listen { .. }
            | Self::Door { .. }
            | Self::Metrics { .. }
            | Self::Register(_)
            | Self::Times(_)
            | Self::Entropy(_) => true,
            Self::LeaseLost(_) | Self::DataPlane(_) | Self::System(_) => false,
        }
    }
}

fn listen_advice(error: &io::Error) -> String {
    let advice = [
        (io::ErrorKind::AddrInUse, "the port is in use: stop the other process or choose another port"),
        (io::ErrorKind::AddrNotAvailable, "this machine does not have that address"),
        (io::ErrorKind::PermissionDenied, "no permission: choose a port above 1023 or run as root"),
    ];
    let known = advice.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or_else(|| error.to_string(), |(_, advice)| (*advice).to_owned())
}

/// What a worker gets from whoever starts it.
pub struct Inheritance {
    /// The TUN device.
    pub tun: Tun,
    /// The pipe to the supervisor.
    pub heart: Heart,
    /// The last run, known to be dead; 0 for none.
    pub reaped: Incarnation,
}

/// How long a drain waits for control to hear of it.
const ENDING_PATIENCE: Duration = Duration::from_millis(500);

/// Runs one worker until `stop` completes (then it drains) or it can go on no longer.
///
/// # Errors
/// [`WorkerError`].
pub async fn run(
    config: Config,
    inheritance: Inheritance,
    stop: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let Inheritance { tun, heart, reaped } = inheritance;
    let tls = identity::load(&config.tls, &config.node)?;
    let control = Control::new(&config.control, &tls)?;
    // Held until every other port is taken: what collides is known before control hears of this run.
    let taken = bind(&config, config.listen, "listen")?;
    let mesh = bind(&config, config.mesh_listen, "mesh_listen")?;
    let waker = Waker::new()?;
    let mut doors = Doors::default();
    for doorway in &config.doorways {
        doors.open(doorway, &Handle::current(), waker.clone()).map_err(|source| WorkerError::Door {
            transport: doorway.transport,
            address: doorway.listen,
            source,
        })?;
    }
    let (guard, shared) = (Guard::default(), Arc::new(Shared::default()));
    let (readiness, dataplane_runs) = (Arc::new(Readiness::default()), Arc::new(AtomicBool::new(false)));
    let (orders, commands) = mpsc::channel(COMMANDS_MAX);
    let orders = Orders::new(orders, waker.clone());
    let _metrics = serve_metrics(&config, &guard, &shared, &readiness, &orders).await?;
    // Free until somebody reads it: the kernel says to clients of the last run that nobody is here, and they go on to another
    // gateway at once.
    drop(taken);
    let beating = tokio::spawn(heart.clone().keep_beating(Arc::clone(&shared), Arc::clone(&dataplane_runs)));

    let mut entropy = WatchedEntropy::open()?;
    let signer = NodeSigner::generate(&mut entropy)?;
    let mesh_secret = MeshSecret::generate(&mut entropy)?;
    let keys = RunKeys { mesh: mesh_secret.public(), signing: signer.verifying_key() };
    tokio::pin!(stop);
    let registration = tokio::select! {
        registration = register(&config, &control, keys, reaped) => registration?,
        () = &mut stop => return Ok(()),
    };
    heart.announce(registration.incarnation);
    if reaped != Incarnation(0) {
        audit::worker_restarted(&config.node, reaped);
    }
    let lease = registration.lease;
    check_times(&config, lease)?;
    guard.extend(Authority::renewed(registration.sent, lease.ttl, lease.guard_margin));
    let routed = route_pools(&config, &registration, tun.index()).await;
    readiness.routed.store(routed, Ordering::Release);

    let (events, mut news) = mpsc::channel(EVENTS_MAX);
    metrics::publish_queues(orders.clone(), events.downgrade());
    let own =
        MeshEnd { number: registration.number, incarnation: registration.incarnation, public: keys.mesh };
    let gates = registration.cluster.iter().map(Gate::new).collect();
    let first = registration.certificates[0].clone();
    let mut responder = Responder::new(registration.cluster, first, signer);
    responder.set_certificates(registration.certificates);
    responder.set_key_sets(registration.key_sets);
    let responder = Arc::new(RwLock::new(responder));
    let context = Arc::new(Context {
        node: config.node.clone(),
        incarnation: registration.incarnation,
        control: control.clone(),
        orders: orders.clone(),
        guard: guard.clone(),
        shared: Arc::clone(&shared),
        responder: Arc::clone(&responder),
        claim_places: Places::new(Context::CLAIMS_MAX),
        roster: arc_swap::ArcSwap::from_pointee(Roster { others: vec![], own: config.advertise.clone() }),
        doors: config.doorways.iter().map(Doorway::door).collect(),
        lease_ttl: lease.ttl,
        operator_drain: Arc::clone(&readiness.operator_drain),
        terminating: AtomicBool::new(false),
        drain_changed: Notify::new(),
        renew_now: Notify::new(),
        ending_told: CancellationToken::new(),
        cancel: CancellationToken::new(),
    });
    let inits = start_handshake_threads(&config, &context, &responder)?;
    let plane = DataPlane::new(Setup {
        number: registration.number,
        pools: registration.pools,
        gates,
        limits: config.limits.clone(),
        entropy: Box::new(WatchedEntropy::open()?),
        events,
        inits,
        egress: start_conntrack(&config, &context)?,
    });
    let clients = bind(&config, config.listen, "listen")?;
    let sockets = Sockets { clients, mesh, tun };
    let engine =
        Engine { plane, sockets, doors, commands, waker, guard: guard.clone(), shared: Arc::clone(&shared) };
    let mut ended = start_data_plane(engine)?;
    let ending = Ending::new(guard.clone(), orders.clone());
    dataplane_runs.store(true, Ordering::Release);
    readiness.serving.store(true, Ordering::Release);
    tracing::info!(
        incarnation = registration.incarnation.0,
        number = registration.number.0,
        listen = %config.listen,
        "registered; serving"
    );

    let following = tokio::spawn(follow(Arc::clone(&context), Directory::new(&context, own, mesh_secret)));
    let draining = {
        let context = Arc::clone(&context);
        tokio::spawn(async move { drain::follow_operator(&context).await })
    };
    let listening = {
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let claims = Claims::new(Arc::clone(&context));
            let mut security =
                Security::new(context.node.clone(), Arc::clone(&context.shared), context.guard.clone());
            let mut look = tokio::time::interval(Security::LOOK);
            loop {
                tokio::select! {
                    event = news.recv() => match event {
                        Some(event) => take(&context, &claims, &mut security, event),
                        None => return,
                    },
                    _ = look.tick() => security.look(std::time::Instant::now()),
                }
            }
        })
    };
    let outcome = {
        let renewing = renew(&context, lease);
        tokio::pin!(renewing);
        let leaving = async {
            (&mut stop).await;
            readiness.serving.store(false, Ordering::Release);
            context.set_terminating();
            // Control should know first: the clients' moves are free of charge then, and nobody else is sent here.
            let _ = tokio::time::timeout(ENDING_PATIENCE, context.ending_told.cancelled()).await;
            drain::drain(&context, config.drain, config.egress).await
        };
        tokio::select! {
            lost = &mut renewing => lost.map_err(WorkerError::from),
            result = &mut ended => Err(WorkerError::DataPlane(
                result.unwrap_or_else(|_| Err(io::Error::other("its thread panicked"))).err()
                    .unwrap_or_else(|| io::Error::other("it was told to")),
            )),
            left = leaving => left.map_err(|error| WorkerError::DataPlane(io::Error::other(error))),
        }
    };
    // Nothing is forwarded from here on, whatever the other parts still do.
    drop(ending);
    readiness.serving.store(false, Ordering::Release);
    if !matches!(outcome, Err(WorkerError::DataPlane(_))) {
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    }
    context.cancel.cancel();
    if outcome.is_ok() {
        let patience = Duration::from_secs(2);
        let node = config.node.as_str();
        if !deregister(&control, node, context.incarnation, Reason::NodeDrained, patience).await {
            tracing::warn!("no control replica took the deregistration; the lease will end by itself");
        }
    }
    for task in [following, listening, beating] {
        task.abort();
    }
    draining.abort();
    outcome
}

fn bind(config: &Config, address: SocketAddr, setting: &'static str) -> Result<UdpSocket, WorkerError> {
    let options = UdpOptions { buffer_bytes: config.socket_buffer_bytes, ..UdpOptions::default() };
    UdpSocket::bind(address, &options).map_err(|source| WorkerError::Listen { address, setting, source })
}

async fn serve_metrics(
    config: &Config,
    guard: &Guard,
    shared: &Arc<Shared>,
    readiness: &Arc<Readiness>,
    orders: &Orders,
) -> Result<jump_telemetry::metrics::MetricsServer, WorkerError> {
    let (readiness, lease, orders) = (Arc::clone(readiness), guard.clone(), orders.clone());
    let serving = ServeConfig::new(config.metrics_listen)
        .metrics(metrics::ALL)
        .local_page("/sessions", move |query| usage::page(orders.clone(), query))
        .ready(move || readiness.check(lease.holds(boottime_nanos())).map_err(str::to_owned));
    let server = serve(serving).await.map_err(|error| {
        let problem = match &error {
            ServeError::Listen { source, .. } => listen_advice(source),
            ServeError::Metrics(_) => error.to_string(),
        };
        WorkerError::Metrics { address: config.metrics_listen, problem }
    })?;
    metrics::publish(Arc::clone(shared), guard.clone());
    Ok(server)
}

/// A silent worker must be dead before its authority could be anybody else's.
fn check_times(config: &Config, lease: LeaseTimes) -> Result<(), WorkerError> {
    let LeaseTimes { ttl, renew_interval, guard_margin } = lease;
    let slack = ttl.checked_sub(guard_margin + renew_interval);
    if slack.is_none_or(|slack| config.heartbeat_timeout >= slack) {
        return Err(WorkerError::Times(format!(
            "supervisor.heartbeat_timeout ({:?}) must be less than control's lease ttl ({ttl:?}) minus the guard margin ({guard_margin:?}) minus the renewal interval ({renew_interval:?}): shorten one of them or have control give longer leases",
            config.heartbeat_timeout
        )));
    }
    Ok(())
}

/// Says whether every pool leads to the TUN device, or nobody wants that here.
async fn route_pools(config: &Config, registration: &Registration, interface: u32) -> bool {
    let mut routed = true;
    for pool in registration.pools.iter().filter(|_| config.tun.routes) {
        if let Err(error) = add_route(*pool, interface, None).await {
            tracing::error!(%pool, interface = config.tun.name, %error, "cannot route an inner pool to the TUN device");
            routed = false;
        }
    }
    routed
}

fn start_handshake_threads(
    config: &Config,
    context: &Arc<Context>,
    responder: &Arc<RwLock<Responder>>,
) -> Result<crate::dataplane::InitQueues, WorkerError> {
    let mut queues = Vec::with_capacity(config.handshake_threads);
    for number in 0..config.handshake_threads {
        let (queue, jobs) = std::sync::mpsc::sync_channel(INITS_MAX);
        let (responder, orders) = (Arc::clone(responder), context.orders.clone());
        let entropy = Box::new(WatchedEntropy::open()?);
        let roster: RosterSource = {
            let context = Arc::clone(context);
            Arc::new(move |max| context.roster.load().list(max))
        };
        thread::Builder::new()
            .name(format!("handshake-{number}"))
            .spawn(move || answer_inits(&jobs, &responder, &roster, entropy, &orders))?;
        queues.push(queue);
    }
    Ok(queues)
}

/// Starts the thread that asks the kernel which flows it translates, where somebody wants to know.
fn start_conntrack(config: &Config, context: &Arc<Context>) -> io::Result<Option<EgressSetup>> {
    if !config.egress.anchored {
        return Ok(None);
    }
    let (questions, asked) = std::sync::mpsc::sync_channel(conntrack::QUESTIONS_MAX);
    let orders = context.orders.clone();
    thread::Builder::new().name("conntrack".to_owned()).spawn(move || conntrack::answer(&asked, &orders))?;
    Ok(Some(EgressSetup { incarnation: context.incarnation, questions }))
}

fn start_data_plane(engine: Engine) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (end, ended) = oneshot::channel();
    thread::Builder::new().name("data-plane".to_owned()).spawn(move || {
        let result = engine.run();
        // Nobody waits for it once the worker itself is ending.
        let _ = end.send(result);
    })?;
    Ok(ended)
}

fn take(context: &Arc<Context>, claims: &Claims, security: &mut Security, event: Event) {
    match event {
        Event::Confirmed(confirmed) => claims.decide(*confirmed),
        Event::Ended(carried, reason) => {
            let Carried { session, epoch, correlation } = carried;
            let correlation = Uuid::from_bytes(correlation);
            tracing::info!(%session, %correlation, epoch = epoch.0, %reason, "session ended here");
            let context = Arc::clone(context);
            tokio::spawn(async move { release(&context, carried, &[], reason, true).await });
        }
        Event::Note(note) => {
            log(&note);
            audit::noted(&context.node, &note);
        }
        Event::Suspect(suspect) => security.suspect(suspect),
    }
}

fn log(note: &Note) {
    let (session, epoch, correlation) = (note.session, note.epoch.0, Uuid::from_bytes(note.correlation));
    match &note.what {
        What::Activated => tracing::info!(%session, %correlation, epoch, "session carried here"),
        What::Rekeyed => tracing::info!(%session, %correlation, epoch, "keys renewed"),
        What::Changed(from, to, reason) => {
            tracing::info!(%session, %correlation, epoch, %reason, from = from.name(), to = to.name(), "state changed");
        }
        What::Moved(from, to, binding, reason) => {
            tracing::info!(%session, %correlation, epoch, %reason, %from, %to, binding = binding.0, "endpoint moved");
        }
        What::MoveRefused(to, reason) => {
            tracing::info!(%session, %correlation, epoch, %reason, %to, "endpoint not moved");
        }
    }
}
