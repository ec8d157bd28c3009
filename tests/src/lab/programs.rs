//! The command lines and configuration files of the programs under test; the one place that knows their options.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::network::{Host, LAN_NETWORK, POOL};

/// The port of control's gRPC service.
pub const CONTROL_PORT: u16 = 7443;
/// The port of a gateway's client socket.
pub const GATEWAY_PORT: u16 = 51820;
/// The port of a gateway's mesh socket.
pub const MESH_PORT: u16 = 51821;
/// The port of a program's metrics, on its loopback.
pub const METRICS_PORT: u16 = 9090;

/// Finds a program of the workspace beside the running one (`target/PROFILE`, also from `target/PROFILE/deps`).
///
/// # Errors
/// When it has not been built.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let candidates = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    candidates.into_iter().find(|path| path.is_file()).with_context(|| {
        format!("{name} is not built: run `make build` (or `cargo build --workspace --bins`) first")
    })
}

/// The programs of one build.
#[derive(Debug, Clone, Default)]
pub struct Build(Option<PathBuf>);

impl Build {
    /// The build in this directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self(Some(dir.to_owned()))
    }

    /// A program of this build; by default the one beside the running program.
    fn find(&self, name: &str) -> Result<PathBuf> {
        let Some(dir) = &self.0 else { return find(name) };
        let path = dir.join(name);
        if path.is_file() { Ok(path) } else { bail!("there is no {}", path.display()) }
    }
}

/// Runs a program to its end inside a host and returns its stdout.
///
/// # Errors
/// When it fails; the message is what it printed on stderr.
pub fn output(host: &Host, name: &str, arguments: &[&str]) -> Result<String> {
    let output = host
        .namespace
        .command(&find(name)?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of {name}"))
}

/// Certificates of the lab, made by `jump-control pki`.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
}

/// Files of one certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Pki {
    /// Makes a CA in `dir`.
    ///
    /// # Errors
    /// When `jump-control pki` fails.
    pub fn init(dir: &Path) -> Result<Self> {
        let pki = Self { dir: dir.to_owned() };
        pki.run(&["init"], &[])?;
        Ok(pki)
    }

    /// Issues a certificate.
    ///
    /// # Errors
    /// When `jump-control pki` fails.
    pub fn issue(&self, role: &str, name: &str, hosts: &[String]) -> Result<Identity> {
        self.issue_for(role, name, hosts, None)
    }

    /// Issues a certificate that is valid for a while, for example `1s`.
    ///
    /// # Errors
    /// When `jump-control pki` fails.
    pub fn issue_for(
        &self,
        role: &str,
        name: &str,
        hosts: &[String],
        valid_for: Option<&str>,
    ) -> Result<Identity> {
        let mut arguments = vec!["--role", role, "--name", name];
        arguments.extend(hosts.iter().flat_map(|host| ["--host", host.as_str()]));
        arguments.extend(valid_for.iter().flat_map(|time| ["--validity", time]));
        self.run(&["issue"], &arguments)?;
        Ok(Identity {
            ca: self.dir.join("ca.pem"),
            certificate: self.dir.join(format!("{role}-{name}.pem")),
            key: self.dir.join(format!("{role}-{name}-key.pem")),
        })
    }

    fn run(&self, verb: &[&str], arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(find("jump-control")?);
        command.arg("pki").args(verb).arg("--dir").arg(&self.dir).args(arguments);
        super::namespace::run(&mut command)
    }
}

/// Which store control uses.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// The embedded database in this directory.
    Embedded(PathBuf),
    /// etcd at these addresses.
    Etcd(Vec<String>),
}

/// The command that runs a control replica.
///
/// # Errors
/// When the program is not built or its configuration cannot be written.
pub fn control(
    build: &Build,
    host: &Host,
    name: &str,
    identity: &Identity,
    store: &StoreConfig,
    more: &str,
    dir: &Path,
) -> Result<Command> {
    let address = host.wan_socket(CONTROL_PORT);
    let mut config = String::new();
    writeln!(config, "listen = \"{address}\"\npools = [\"{POOL}\"]\nroutes = [\"{LAN_NETWORK}\"]")?;
    writeln!(config, "metrics_listen = \"127.0.0.1:{METRICS_PORT}\"")?;
    writeln!(
        config,
        "[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
        identity.ca, identity.certificate, identity.key
    )?;
    match store {
        StoreConfig::Embedded(path) => writeln!(config, "[store]\nkind = \"embedded\"\npath = {path:?}")?,
        StoreConfig::Etcd(endpoints) => writeln!(
            config,
            "[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\nkeepalive_interval = \"500ms\""
        )?,
    }
    config.push_str(more);
    with_config(build, host, "jump-control", &["serve"], name, &config, dir)
}

/// The command that runs a gateway.
///
/// # Errors
/// When the program is not built or its configuration cannot be written.
pub fn gateway(
    build: &Build,
    host: &Host,
    name: &str,
    identity: &Identity,
    controls: &[Host],
    more: &str,
    dir: &Path,
) -> Result<Command> {
    let controls: Vec<_> =
        controls.iter().map(|c| format!("https://{}", c.wan_socket(CONTROL_PORT))).collect();
    let mut config = String::new();
    writeln!(config, "node = {name:?}\ncontrol = {controls:?}")?;
    writeln!(config, "listen = \"{}\"", host.wan_socket(GATEWAY_PORT))?;
    writeln!(config, "mesh_listen = \"{}\"", host.wan_socket(MESH_PORT))?;
    writeln!(config, "metrics_listen = \"127.0.0.1:{METRICS_PORT}\"")?;
    writeln!(
        config,
        "[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
        identity.ca, identity.certificate, identity.key
    )?;
    config.push_str(more);
    with_config(build, host, "jump-gateway", &["run"], name, &config, dir)
}

fn with_config(
    build: &Build,
    host: &Host,
    program: &str,
    verb: &[&str],
    name: &str,
    config: &str,
    dir: &Path,
) -> Result<Command> {
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    let mut command = host.namespace.command(&build.find(program)?);
    command.args(verb).arg("--config").arg(&path);
    Ok(command)
}

/// The command that keeps a device's tunnel up in the foreground.
///
/// # Errors
/// When the program is not built.
pub fn device(build: &Build, host: &Host, state: &Path) -> Result<Command> {
    let mut command = host.namespace.command(&build.find("jump")?);
    command.arg("--state-dir").arg(state).args(["--log-format", "json", "--output", "json", "up"]);
    command.arg("--audit-file").arg(state.with_extension("audit.json"));
    let telemetry = state.with_extension("telemetry.toml");
    if telemetry.exists() {
        command.arg("--telemetry").arg(telemetry);
    }
    Ok(command)
}

/// Enrols a device with a one-time token.
///
/// # Errors
/// When control refuses it; the message is what `jump enroll` printed.
pub fn enrol(build: &Build, host: &Host, state: &Path, token: &str) -> Result<()> {
    let mut command = host.namespace.command(&build.find("jump")?);
    command.arg("--state-dir").arg(state).arg("enroll");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("jump has no stdin")?.write_all(token.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("jump enroll: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The operators' CLI against a cluster, run inside one of its hosts.
#[derive(Debug, Clone)]
pub struct Operator {
    controls: Vec<String>,
    identity: Identity,
}

impl Operator {
    /// Talks to these control replicas under this identity.
    pub fn new(controls: &[Host], identity: Identity) -> Self {
        let controls = controls.iter().map(|c| c.wan_socket(CONTROL_PORT).to_string()).collect();
        Self { controls, identity }
    }

    /// The operator's certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The command line of `jumpctl` with `arguments`.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn command(&self, host: &Host, arguments: &[&str]) -> Result<Command> {
        let mut command = host.namespace.command(&find("jumpctl")?);
        for control in &self.controls {
            command.args(["--control", control]);
        }
        command.arg("--ca").arg(&self.identity.ca);
        command.arg("--cert").arg(&self.identity.certificate).arg("--key").arg(&self.identity.key);
        command.args(arguments);
        Ok(command)
    }

    /// Runs `jumpctl` and reads its JSON: one object per line.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, host: &Host, arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let output = self.command(host, &all)?.stdin(Stdio::null()).output().context("running jumpctl")?;
        if !output.status.success() {
            bail!("jumpctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("the output of jumpctl {}", arguments.join(" ")))
    }
}

/// What the metrics endpoint of the program in a host says.
///
/// # Errors
/// When the endpoint does not answer.
pub fn metrics_page(host: &Host) -> Result<String> {
    let answer = host.namespace.enter(|| http_get(METRICS_PORT, "/metrics"))??;
    let (_, page) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
    Ok(page.to_owned())
}

/// Reads a counter or gauge from the metrics endpoint of the program in a host: the sum over all series of that name whose labels
/// contain `label`; 0 when there is none yet.
///
/// # Errors
/// When the endpoint does not answer.
pub fn metric(host: &Host, name: &str, label: &str) -> Result<f64> {
    let page = metrics_page(host)?;
    let lines = page.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
    });
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// One plain HTTP GET to the loopback of the current namespace.
fn http_get(port: u16, path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connecting to port {port}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
