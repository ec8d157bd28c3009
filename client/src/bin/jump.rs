//! `jump`, the device client.

use std::io::{BufRead, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode, Stdio};

use clap::{Parser, Subcommand};
use jump_client::daemon::{self, LogLevels, Request, UpOptions};
use jump_client::enrol;
use jump_client::failure::{Exit, Failure, exit_with};
use jump_client::output::{self, Output};
use jump_client::rotate;
use jump_client::state_dir::{self, StateDir};
use jump_session::path::Transport;
use jump_telemetry::log::{Format, LogConfig, LogGuard};
use jump_telemetry::settings::{Observability, Overrides};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  the device is not enrolled
  4  a privilege is missing (TUN device, state directory)
  5  refused by control or by the cluster (revoked, expired, token used up)
  6  control cannot be reached
  7  jump already runs with this state directory
  8  jump does not run with this state directory";

/// A VPN session that outlives its gateway, its path and its transport
#[derive(Parser)]
#[command(name = "jump", version, after_help = EXIT_CODES)]
struct Arguments {
    /// Where the device's key, profile and session are
    #[arg(long, global = true, env = "JUMP_STATE_DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,

    /// What goes to standard output
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,

    /// How log lines on standard error look: human or json
    #[arg(long, global = true, env = "JUMP_LOG_FORMAT", default_value = "human")]
    log_format: Format,

    /// Which log lines are written, for example info or info,jump_client=debug [default: info]
    #[arg(long, global = true, env = "JUMP_LOG")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enrol this device with a one-time token from the operator
    Enroll {
        /// File with the token; - reads standard input
        #[arg(long, default_value = "-")]
        token_file: PathBuf,

        /// Replace this device's key and forget its session
        #[arg(long)]
        force: bool,
    },
    /// Replace this device's key; the session goes on
    ///
    /// Interrupted at any point, it is finished by running it again. The old key still serves for a while.
    RotateKey,
    /// Keep the session up, in the foreground unless told otherwise
    ///
    /// An interrupt (Ctrl-C) or `jump down` ends the session. SIGTERM ends the process only: started again within the
    /// recovery window, it goes on with the same session.
    Up {
        /// Name of the TUN interface
        #[arg(long, default_value = "jump0")]
        interface: String,

        /// Append events to this file as JSON lines; may be given several times
        #[arg(long, value_name = "FILE")]
        events: Vec<PathBuf>,

        /// Where audit events and traces go, and log levels: a TOML file with the tables [audit], [trace] and [log]
        ///
        /// SIGHUP reads the levels again, unless --log says them.
        #[arg(long, value_name = "FILE", env = "JUMP_TELEMETRY")]
        telemetry: Option<PathBuf>,

        /// Append audit events to this file
        #[arg(long, value_name = "FILE", env = "JUMP_AUDIT_FILE")]
        audit_file: Option<PathBuf>,

        /// Serve Prometheus metrics on this address
        #[arg(long, value_name = "ADDRESS", env = "JUMP_METRICS_LISTEN")]
        metrics_listen: Option<SocketAddr>,

        /// Use this gateway (ip:port) instead of the profile's; may be given several times
        #[arg(long, value_name = "ADDRESS")]
        gateway: Vec<SocketAddr>,

        /// Transports that may be used
        #[arg(
            long,
            env = "JUMP_TRANSPORTS",
            value_name = "LIST",
            value_delimiter = ',',
            default_value = "udp,quic,tcp,tls"
        )]
        transports: Vec<Transport>,

        /// Largest inner packet that path MTU discovery may find, in bytes; 1280 leaves it at that
        ///
        /// The gateway and the path may carry less. Discovery starts from the cluster's MTU (1280 unless the operator says
        /// otherwise).
        #[arg(
            long,
            env = "JUMP_MTU_MAX",
            value_name = "BYTES",
            default_value_t = jump_session::frame::MTU_MAX,
            value_parser = clap::value_parser!(u16).range(1280..=9000)
        )]
        mtu_max: u16,

        /// Go on in the background once attached
        #[arg(long)]
        daemon: bool,

        /// The background process of --daemon
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Check this machine and the enrolment, and say what to do about each finding
    ///
    /// Changes nothing. Exits with 1 when there is a problem.
    Doctor,
    /// End the session and the running client
    Down,
    /// Show the running client's session
    Status {
        /// Show it again on every change
        #[arg(long)]
        watch: bool,
    },
}

fn main() -> ExitCode {
    exit_with("jump", run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let state = StateDir::new(&arguments.state_dir);
    match &arguments.command {
        Command::Enroll { token_file, force } => {
            let token = read_token(token_file)?;
            let profile = block_on(enrol::enrol(&state, &token, *force))?;
            match arguments.output {
                Output::Table => {
                    output::line(&format!("enrolled as {}; bring it up with jump up", profile.device_name))
                }
                Output::Json => output::line(
                    &serde_json::json!({ "device_name": profile.device_name, "gateways": profile.gateways })
                        .to_string(),
                ),
            }
        }
        Command::RotateKey => {
            let rotated = block_on(rotate::rotate(&state))?;
            match arguments.output {
                Output::Table => output::line(&rotated.to_text()),
                Output::Json => output::line(&rotated.to_json()),
            }
        }
        Command::Up { daemon: true, .. } => go_to_background(&state, arguments.output),
        Command::Up {
            interface,
            events,
            gateway,
            transports,
            mtu_max,
            detached,
            telemetry,
            audit_file,
            metrics_listen,
            ..
        } => {
            if *detached {
                // The process leads no group yet, so this cannot fail; if it did, it would only end with its terminal.
                let _ = rustix::process::setsid();
            }
            let observability = read_telemetry(telemetry.as_deref(), audit_file.as_deref())?;
            let levels = LogLevels { flag: arguments.log.clone(), file: telemetry.clone() };
            let log = start_log(&arguments, &levels, &observability)?;
            let name = state.profile()?.device_name;
            let _audit = jump_telemetry::audit::init(daemon::audit::instance(&name), &observability.audit)
                .map_err(|error| Failure::because(Exit::Usage, "cannot start auditing", &error))?;
            let mut events = events.clone();
            if arguments.output == Output::Json || *detached {
                events.push(PathBuf::from("-"));
            }
            let mut transports = transports.clone();
            transports.sort_unstable();
            transports.dedup();
            let options = UpOptions {
                state,
                interface: interface.clone(),
                events,
                gateways: gateway.clone(),
                transports,
                mtu_max: *mtu_max,
                metrics_listen: *metrics_listen,
                log: log.handle(),
                levels,
            };
            daemon::up(&options)
        }
        Command::Doctor => doctor(&state, arguments.output),
        Command::Down => block_on(daemon::ask(&state, Request::Down, |_| Ok(false))),
        Command::Status { watch } => block_on(show_status(&state, *watch, arguments.output)),
    }
}

fn doctor(state: &StateDir, output: Output) -> Result<(), Failure> {
    let report = jump_client::doctor::examine(state);
    match output {
        Output::Table => output::line(report.to_text().trim_end())?,
        Output::Json => output::line(&report.to_json())?,
    }
    match report.exit_code() {
        0 => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "there are problems: see above")),
    }
}

async fn show_status(state: &StateDir, watch: bool, output: Output) -> Result<(), Failure> {
    let show = |line: &str| {
        let report = daemon::parse_report(line)?;
        match output {
            Output::Table => output::line(report.to_text().trim_end())?,
            Output::Json => output::line(line)?,
        }
        Ok(false)
    };
    daemon::ask(state, Request::Status, show).await?;
    if !watch {
        return Ok(());
    }
    // Changes wake us; the report that follows is always the newest.
    let (sender, mut changes) = tokio::sync::mpsc::channel(1);
    let watching = daemon::ask(state, Request::Watch, move |_| {
        let _ = sender.try_send(());
        Ok(true)
    });
    let showing = async {
        while changes.recv().await.is_some() {
            if output == Output::Table {
                output::line("")?;
            }
            daemon::ask(state, Request::Status, show).await?;
        }
        Ok(())
    };
    tokio::try_join!(watching, showing).map(|_| ())
}

fn read_token(path: &Path) -> Result<zeroize::Zeroizing<String>, Failure> {
    let mut token = zeroize::Zeroizing::new(String::new());
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(64 << 10).read_to_string(&mut token)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(64 << 10).read_to_string(&mut token))
    };
    read.map_err(|error| {
        Failure::because(Exit::Usage, format_args!("cannot read the token from {}", path.display()), &error)
    })?;
    Ok(token)
}

/// Starts this program again in a session of its own, and waits until it is attached or has failed.
fn go_to_background(state: &StateDir, output: Output) -> Result<(), Failure> {
    state.profile()?;
    state.create()?;
    drop(state.lock()?);
    let failed =
        |error: std::io::Error| Failure::because(Exit::Failed, "cannot start in the background", &error);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(state.log()).map_err(failed)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--daemon");
    let mut child = Process::new(std::env::current_exe().map_err(failed)?)
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    let lines = child.stdout.take().map(BufReader::new);
    for line in lines.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if event["event"] == "attached" {
            return match output {
                Output::Json => output::line(&line),
                Output::Table => output::line(&format!(
                    "attached to {} as {}, session {}; log in {}",
                    event["node_id"].as_str().unwrap_or_default(),
                    event["inner_addresses"][0].as_str().unwrap_or_default(),
                    event["session_id"].as_str().unwrap_or_default(),
                    state.log().display()
                )),
            };
        }
    }
    let status = child.wait().map_err(failed)?;
    let log = std::fs::read_to_string(state.log()).unwrap_or_default();
    let last = log.lines().last().unwrap_or("it said nothing").trim_start_matches("jump: ").to_owned();
    Err(Failure::new(Exit::from_code(status.code()), last))
}

fn read_telemetry(file: Option<&Path>, audit_file: Option<&Path>) -> Result<Observability, Failure> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file).map_err(|error| {
            Failure::because(Exit::Usage, format_args!("cannot read {}", file.display()), &error)
        })?,
        None => String::new(),
    };
    let overrides = Overrides { audit_file, ..Overrides::default() };
    Observability::parse(&text, overrides).map_err(|problems| Failure::new(Exit::Usage, problems.join("\n")))
}

fn start_log(
    arguments: &Arguments,
    levels: &LogLevels,
    observability: &Observability,
) -> Result<LogGuard, Failure> {
    let config = LogConfig {
        format: arguments.log_format,
        filter: levels.choose(observability),
        component: "client".to_owned(),
        node: String::new(),
    };
    jump_telemetry::log::init_with_traces(config, observability.trace.clone())
        .map_err(|error| Failure::because(Exit::Usage, "cannot start logging", &error))
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(Exit::Failed, "cannot start the runtime", &error))?
        .block_on(future)
}
