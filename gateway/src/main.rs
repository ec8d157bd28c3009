//! `jump-gateway`: carries sessions of devices over a TUN device, with the authority of a lease.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use jump_crypto::ids::Incarnation;
use jump_gateway::config::{Config, Flags};
use jump_gateway::heartbeat::Heart;
use jump_gateway::supervisor::{ENVIRONMENT, EXIT_LASTING, SupervisorError, WorkerCommand, supervise};
use jump_gateway::worker::{self, Inheritance};
use jump_telemetry::log::{LogConfig, LogGuard};
use jump_telemetry::trace::TraceConfig;
use jump_transport::tun::Tun;
use tokio::signal::unix::{SignalKind, signal};

/// The gateway of Jumping VPN
#[derive(Debug, Parser)]
#[command(name = "jump-gateway", version)]
enum Cli {
    /// Runs the gateway: a supervisor and its worker
    ///
    /// SIGTERM and SIGINT drain it: clients are asked to move, sessions that stay are given up at the deadline.
    /// Exit codes: 0 after a drain; 78 when something must be changed first (the message says what); 1 otherwise.
    Run(Flags),
    /// Checks this machine and the settings, and says what to do about each finding
    ///
    /// Changes nothing. Exit codes: 0 when there is no problem (warnings included), 1 otherwise.
    Doctor {
        #[command(flatten)]
        flags: Flags,
        /// Prints one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Runs a worker under a supervisor
    #[command(hide = true)]
    Worker(Flags),
}

/// How long the audit sinks may take to deliver what is queued, after a drain.
const AUDIT_PATIENCE: Duration = Duration::from_secs(2);

/// An error for a person, one line each, and the exit code.
struct Failure(String, u8);

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Run(flags) => run(&flags),
        Cli::Doctor { flags, json } => return doctor(&flags, json),
        Cli::Worker(flags) => work(&flags),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message, code)) => {
            for line in message.lines() {
                eprintln!("jump-gateway: {line}");
            }
            ExitCode::from(code)
        }
    }
}

fn doctor(flags: &Flags, json: bool) -> ExitCode {
    let report = jump_gateway::doctor::examine(flags);
    let text = if json { report.to_json() + "\n" } else { report.to_text() };
    // A reader that is gone needs no report; the exit code says the rest.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    ExitCode::from(report.exit_code())
}

fn load(flags: &Flags) -> Result<Config, Failure> {
    Config::load(flags).map_err(|errors| Failure(errors.to_string(), EXIT_LASTING))
}

fn start_log(config: &Config, traces: Option<TraceConfig>) -> Result<LogGuard, Failure> {
    let log = LogConfig {
        format: config.log.format,
        filter: config.log.filter.clone(),
        component: "gateway".to_owned(),
        node: config.node.to_string(),
    };
    jump_telemetry::log::init_with_traces(log, traces)
        .map_err(|error| Failure(error.to_string(), EXIT_LASTING))
}

/// The log levels that the settings name now.
fn levels(flags: &Flags) -> impl Fn() -> Result<String, String> + Send + 'static {
    let flags = flags.clone();
    move || Config::load(&flags).map(|config| config.log.filter).map_err(|errors| errors.to_string())
}

fn internal(error: std::io::Error) -> Failure {
    Failure(error.to_string(), 1)
}

fn run(flags: &Flags) -> Result<(), Failure> {
    let config = load(flags)?;
    let log = start_log(&config, None)?;
    warn_of_forwarding();
    let program = std::env::current_exe().map_err(internal)?;
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(verb) = arguments.iter_mut().find(|argument| *argument == "run") {
        *verb = "worker".into();
    }
    // One thread, the main one: the worker is told to die with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
    let result = runtime.block_on(async {
        tokio::spawn(jump_telemetry::log::follow_signals(log.handle(), Some(levels(flags))));
        supervise(&config, &WorkerCommand { program, arguments }).await
    });
    result.map_err(|error| match error {
        // The worker has said why.
        SupervisorError::WorkerFailed => Failure(String::new(), EXIT_LASTING),
        SupervisorError::Tun(_) | SupervisorError::Identity(_) | SupervisorError::Connect(_) => {
            Failure(error.to_string(), EXIT_LASTING)
        }
        SupervisorError::DiedDraining | SupervisorError::System(_) => Failure(error.to_string(), 1),
    })
}

fn work(flags: &Flags) -> Result<(), Failure> {
    let parentage = std::env::var(ENVIRONMENT).unwrap_or_default();
    let Some((supervisor, reaped)) = parentage
        .split_once(':')
        .and_then(|(pid, reaped)| Some((pid.parse::<i32>().ok()?, reaped.parse::<u64>().ok()?)))
    else {
        return Err(Failure(
            "a worker is started by `jump-gateway run`, not by hand".to_owned(),
            EXIT_LASTING,
        ));
    };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| internal(error.into()))?;
    if rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(supervisor) {
        return Err(Failure("the supervisor is gone".to_owned(), 1));
    }
    let config = load(flags)?;
    let log = start_log(&config, config.observability.trace.clone())?;
    let instance = jump_gateway::audit::instance(&config.node);
    let audit = jump_telemetry::audit::init(instance, &config.observability.audit)
        .map_err(|error| Failure(chain(&error), EXIT_LASTING))?;
    let tun = std::io::stdin().as_fd().try_clone_to_owned().map_err(internal)?;
    let tun = Tun::from_fd(tun).map_err(|error| Failure(error.to_string(), 1))?;
    let pipe = std::io::stdout().as_fd().try_clone_to_owned().map_err(internal)?;
    let heart = Heart::new(pipe).map_err(internal)?;
    let inheritance = Inheritance { tun, heart, reaped: Incarnation(reaped) };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(internal)?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(internal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(internal)?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::spawn(jump_telemetry::log::follow_signals(log.handle(), Some(levels(flags))));
        worker::run(config, inheritance, stop).await.map_err(|error| {
            let code = if error.is_lasting() { EXIT_LASTING } else { 1 };
            Failure(chain(&error), code)
        })
    });
    // Blocked calls must not hold up the end: whatever they would answer, nobody waits for it.
    runtime.shutdown_background();
    if let Some(audit) = audit {
        // After a failure another worker waits to be started: a sink that stands still must not hold it up.
        audit.close(if result.is_ok() { AUDIT_PATIENCE } else { AUDIT_PATIENCE / 20 });
    }
    result
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = cause.source();
    }
    text
}

/// A gateway that does not forward is a common slip; the setting belongs to the machine, so it is only named.
fn warn_of_forwarding() {
    if std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|value| value.trim() == "0") {
        tracing::warn!(
            "IPv4 forwarding is off, so nothing reaches the inner network: sysctl -w net.ipv4.ip_forward=1"
        );
    }
}
