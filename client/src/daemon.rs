//! `jump up`: the tunnel's thread around the pure client machine, with its helpers: disk, journal, control socket.
//!
//! The main thread carries packets and decides; it waits on the TUN device, the UDP sockets, netlink and a waker, and
//! blocks on nothing else while a session lives. Signals and the control socket are served by a small runtime beside it,
//! disk and journal by a thread each; they reach it through one mailbox.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jump_crypto::handshake::Suite;
use jump_session::client::{Client, ClientConfig, Stored, Tuning};
use jump_session::path::Transport;
use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use jump_telemetry::entropy::WatchedEntropy;
use jump_telemetry::log::LogHandle;
use jump_telemetry::metrics::{MetricsServer, ServeConfig};
use jump_telemetry::settings::{Observability, Overrides};
use jump_transport::poll::Waker;
use jump_transport::tun::{Tun, TunOptions};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::failure::{Exit, Failure};
use crate::metrics;
use crate::state_dir::{Profile, StateDir};

pub mod audit;
mod control_socket;
mod disk;
mod journal;
mod mailbox;
mod paths;
mod report;
mod routes;
mod tunnel;

pub use control_socket::{Request, ask, parse_report};
pub use report::{DropReport, Report, Traffic};
pub use routes::MARK;

use disk::Disk;
use journal::Journal;
use mailbox::{Command, Mailbox};
use tunnel::{Ended, Tunnel};

/// How `jump up` runs.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Where the device's state is.
    pub state: StateDir,
    /// The interface's name.
    pub interface: String,
    /// Journal files; `-` is standard output.
    pub events: Vec<PathBuf>,
    /// Gateways to use instead of the profile's.
    pub gateways: Vec<SocketAddr>,
    /// Where metrics are served, if at all.
    pub metrics_listen: Option<SocketAddr>,
    /// Changes log levels.
    pub log: LogHandle,
    /// Where they are configured.
    pub levels: LogLevels,
    /// Transports that may be used, best first. At least one.
    pub transports: Vec<Transport>,
    /// The largest inner packet that path MTU discovery may find, in bytes.
    pub mtu_max: u16,
}

/// Where log levels are configured; the flag outweighs the file.
#[derive(Debug, Clone)]
pub struct LogLevels {
    /// `--log` or `JUMP_LOG`.
    pub flag: Option<String>,
    /// The file of `--telemetry`.
    pub file: Option<PathBuf>,
}

impl LogLevels {
    /// The levels, `file` being what the file says.
    pub fn choose(&self, file: &Observability) -> String {
        self.flag.clone().or_else(|| file.log_level.clone()).unwrap_or_else(|| "info".to_owned())
    }

    /// Reads the file again; `None` when there is none.
    fn reread(self) -> Option<impl Fn() -> Result<String, String> + Send + 'static> {
        let file = self.file.clone()?;
        Some(move || {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            let settings = Observability::parse(&text, Overrides::default());
            settings.map(|settings| self.choose(&settings)).map_err(|problems| problems.join("; "))
        })
    }
}

/// The TUN device's MTU before an owner has told one: the IPv6 minimum.
const FIRST_MTU: u16 = 1280;
/// Packets that wait in the interface while no gateway can take them.
const TUN_QUEUE: u32 = 1000;
/// A new session follows an ended one no sooner than this.
const NEW_SESSION_AFTER: Duration = Duration::from_secs(1);

/// Keeps the device's session up until told to stop.
///
/// # Errors
/// A line that says what to do.
pub fn up(options: &UpOptions) -> Result<(), Failure> {
    let state = &options.state;
    let profile = state.profile()?;
    state.create()?;
    let _lock = state.lock()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("jump-side")
        .enable_all()
        .build()
        .map_err(|error| Failure::because(Exit::Failed, "cannot start the runtime", &error))?;
    runtime.spawn(jump_telemetry::log::follow_signals(options.log.clone(), options.levels.clone().reread()));
    let _metrics = serve_metrics(&runtime, options.metrics_listen)?;
    let tun = create_tun(&options.interface)?;
    let waker =
        Waker::new().map_err(|error| Failure::because(Exit::Failed, "cannot make a waker", &error))?;
    let (mailbox, commands) = Mailbox::new(waker.clone());
    let mut journal = Journal::new();
    for path in &options.events {
        journal.add_file(path)?;
    }
    serve_side(&runtime, state, &mailbox)?;
    let disk = Disk::start(state.clone(), mailbox)?;

    if state.is_rotating() {
        warn!("a key rotation was interrupted: finish it with jump rotate-key before the old key ends");
    }
    let mut stored = state.session()?;
    let teller =
        audit::Teller::new(state.device_key()?.public(), profile.device_name.clone(), stored.session);
    let mut tunnel =
        Tunnel::new(tun, waker, commands, disk, journal, teller, runtime, profile.device_name.clone())?;
    if let Some(session) = stored.session {
        let correlation = Correlation::from(session.correlation());
        info!(session = %session, %correlation, epoch = stored.epoch.0, "going on with the stored session");
    }
    let result = loop {
        // Keys may have been rotated while the last session lived.
        let client = client(options, &state.profile()?, stored)?;
        match tunnel.run(client)? {
            Ended::Stopped => break Ok(()),
            Ended::Terminated { reason: Reason::ClientClosed, .. } => break Ok(()),
            Ended::Terminated { reason, .. } if ends_device(reason) => break Err(device_refused(reason)),
            Ended::Terminated { reason, stored: left } => {
                warn!(reason = reason.code(), "the session has ended; a new session begins");
                tunnel.note_new_session(reason);
                if !tunnel.rest(NEW_SESSION_AFTER) {
                    break Ok(());
                }
                stored = left;
            }
        }
    };
    tunnel.finish();
    let _ = std::fs::remove_file(state.socket());
    result
}

fn client(options: &UpOptions, profile: &Profile, stored: Stored) -> Result<Client, Failure> {
    let UpOptions { state, gateways, transports, .. } = options;
    let gateways = if gateways.is_empty() { profile.gateways.clone() } else { gateways.to_vec() };
    if gateways.is_empty() && stored.roster.is_empty() {
        return Err(Failure::new(
            Exit::NotEnrolled,
            "the profile names no gateway: enrol the device again once a gateway runs, or give --gateway",
        ));
    }
    let config = ClientConfig {
        device: state.device_key()?,
        cluster_keys: profile.cluster()?,
        verifier: profile.verifier()?,
        key_set: profile.key_set_serial,
        gateways,
        suite: Suite::preferred().with_hybrid(profile.hybrid),
        transports: transports.clone(),
        tuning: Tuning { mtu_max: options.mtu_max, ..Tuning::default() },
    };
    let entropy = WatchedEntropy::open()
        .map_err(|error| Failure::because(Exit::Failed, "no session can be made", &error))?;
    Ok(Client::new(config, stored, Box::new(entropy)))
}

fn create_tun(name: &str) -> Result<Tun, Failure> {
    let options = TunOptions {
        name: name.to_owned(),
        addresses: Vec::new(),
        mtu: FIRST_MTU,
        offload: true,
        queue_packets: TUN_QUEUE,
    };
    Tun::create(&options).map_err(|error| {
        let exit = match error {
            jump_transport::tun::TunError::Permission { .. } | jump_transport::tun::TunError::NoDevice => {
                Exit::Permission
            }
            jump_transport::tun::TunError::Busy { .. } | jump_transport::tun::TunError::Other { .. } => {
                Exit::Failed
            }
        };
        Failure::new(exit, crate::failure::chain(&error))
    })
}

/// Metrics and the health pages; ready as soon as it runs.
fn serve_metrics(runtime: &Runtime, address: Option<SocketAddr>) -> Result<Option<MetricsServer>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let serving = jump_telemetry::metrics::serve(ServeConfig::new(address).metrics(metrics::ALL));
    runtime.block_on(serving).map(Some).map_err(|error| {
        Failure::because(Exit::Failed, format_args!("cannot serve metrics on {address}"), &error)
    })
}

/// Signals and the control socket.
fn serve_side(runtime: &Runtime, state: &StateDir, mailbox: &Mailbox) -> Result<(), Failure> {
    let _inside = runtime.enter();
    let socket = control_socket::listen(&state.socket()).map_err(|error| {
        Failure::because(Exit::Failed, format_args!("cannot listen on {}", state.socket().display()), &error)
    })?;
    runtime.spawn(control_socket::serve(socket, state.clone(), mailbox.clone()));
    let interrupt = signal(SignalKind::interrupt());
    let terminate = signal(SignalKind::terminate());
    let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
        return Err(Failure::other("cannot listen for signals"));
    };
    let mailbox = mailbox.clone();
    runtime.spawn(async move {
        // The second interrupt does not wait for the owner's word.
        let mut interrupts = 0;
        loop {
            tokio::select! {
                _ = interrupt.recv() => interrupts += 1,
                _ = terminate.recv() => interrupts = 2,
            }
            mailbox.send(if interrupts == 1 { Command::Down(None) } else { Command::Stop });
        }
    });
    Ok(())
}

/// True for reasons that a new session would meet again.
const fn ends_device(reason: Reason) -> bool {
    matches!(reason, Reason::KeyRevoked | Reason::KeyExpired | Reason::UnknownDevice)
}

fn device_refused(reason: Reason) -> Failure {
    let what = if reason == Reason::KeyRevoked {
        "this device has been revoked"
    } else if reason == Reason::KeyExpired {
        "this device's enrolment has expired"
    } else {
        "the cluster does not know this device"
    };
    Failure::new(
        Exit::Refused,
        format!("{what} [{}]: get a new token from the operator and run jump enroll --force", reason.code()),
    )
}
