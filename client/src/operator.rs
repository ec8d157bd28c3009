//! `jumpctl`: what operators ask of control.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jump_session::ids::SessionId;
use jump_telemetry::trace::set_correlation;
use tonic::transport::Channel;

use crate::channel::{self, IdentityFiles};
use crate::failure::{Exit, Failure};
use crate::output::Output;

mod devices;
mod keys;
mod logs;
mod nodes;
mod ownership;
mod policy;
mod rebalance;
mod sessions;
mod steering;
mod timeline;
mod view;
mod watch;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  5  refused by control (certificate, role, state)
  6  control cannot be reached or its store is not available
  9  what was asked for does not exist";

/// See and steer a Jumping VPN cluster
#[derive(Debug, Parser)]
#[command(name = "jumpctl", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,

    /// What goes to standard output
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

/// Where control is, and who asks.
#[derive(Debug, Args)]
struct Connection {
    /// Control's host:port; several are tried in order
    #[arg(
        long,
        global = true,
        env = "JUMPCTL_CONTROL",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7443"
    )]
    control: Vec<String>,

    /// CA certificate of the cluster, PEM
    #[arg(long, global = true, env = "JUMPCTL_CA", value_name = "FILE", default_value = "ca.pem")]
    ca: PathBuf,

    /// Certificate with the operator or reader role, PEM
    #[arg(long, global = true, env = "JUMPCTL_CERT", value_name = "FILE", default_value = "operator.pem")]
    cert: PathBuf,

    /// Its private key, PEM
    #[arg(long, global = true, env = "JUMPCTL_KEY", value_name = "FILE", default_value = "operator-key.pem")]
    key: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sessions: who is connected, and since when
    #[command(subcommand, alias = "session")]
    Sessions(sessions::Command),
    /// Ownership: which gateway owns a session, in which epoch, and why
    #[command(subcommand)]
    Ownership(ownership::Command),
    /// Gateway nodes
    #[command(subcommand, alias = "node")]
    Nodes(nodes::Command),
    /// Devices: enrol, list, rotate, revoke
    #[command(subcommand, alias = "device")]
    Devices(devices::Command),
    /// The cluster's own keys: list, rotate, retire
    #[command(subcommand, alias = "key")]
    Keys(keys::Command),
    /// Log levels of the control replicas named by --control
    #[command(subcommand)]
    LogLevels(logs::Command),
}

/// A connected operator.
struct Operator {
    controls: Vec<String>,
    files: IdentityFiles,
    output: Output,
}

impl Operator {
    async fn channel(&self) -> Result<Channel, Failure> {
        channel::connect_as(&self.controls, &self.files).await
    }

    /// A channel to one replica, the `n`th that was named.
    async fn channel_to(&self, n: usize) -> Result<Channel, Failure> {
        channel::connect_as(&self.controls[n..=n], &self.files).await
    }

    /// A channel for the `n`th attempt of a watch: each starts with another replica.
    async fn channel_in_turn(&self, attempt: usize) -> Result<Channel, Failure> {
        let mut controls = self.controls.clone();
        let turn = attempt % controls.len().max(1);
        controls.rotate_left(turn);
        channel::connect_as(&controls, &self.files).await
    }
}

/// Runs one command.
///
/// # Errors
/// A line that says what to do.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Connection { control, ca, cert, key } = arguments.connection;
    let operator =
        Operator { controls: control, files: IdentityFiles { ca, cert, key }, output: arguments.output };
    match arguments.command {
        Command::Sessions(command) => sessions::run(&operator, command).await,
        Command::Ownership(command) => ownership::run(&operator, command).await,
        Command::Nodes(command) => nodes::run(&operator, command).await,
        Command::Devices(command) => devices::run(&operator, command).await,
        Command::Keys(command) => keys::run(&operator, command).await,
        Command::LogLevels(command) => logs::run(&operator, command).await,
    }
}

/// A request about a session, if it is about one: its metadata names the session's correlation id.
fn about<T>(session: impl Into<Option<SessionId>>, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(session) = session.into() {
        set_correlation(request.metadata_mut(), session.correlation().into());
    }
    request
}

/// Asks before something that cannot be taken back. Without a terminal, `--yes` is the only way.
fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, format!("{question} Give --yes to do it without being asked")));
    }
    eprint!("{question} [y/N] ");
    // A prompt that cannot be shown is answered as it stands.
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::other("nothing was done"))
    }
}

/// A request id for creates: a retry inside the call is recognised.
fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
