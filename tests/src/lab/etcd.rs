//! A real etcd cluster of one or three nodes.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::namespace::run;
use super::network::Host;
use super::process::{Mark, Process};

/// The port clients talk to.
pub const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// How long a cluster may take to elect its first leader.
const START_MAX: Duration = Duration::from_secs(30);

/// The nodes of one cluster, each in its host's namespace.
#[derive(Debug)]
pub struct Etcd {
    /// The running nodes, in the order of the hosts.
    pub nodes: Vec<Process>,
    endpoints: Vec<String>,
    members: String,
}

impl Etcd {
    /// Starts one node per host and waits until all of them serve clients.
    ///
    /// # Errors
    /// When etcd is missing or no leader is elected in time.
    pub fn start(hosts: &[Host], dir: &Path) -> Result<Self> {
        let members: Vec<_> = hosts
            .iter()
            .enumerate()
            .map(|(i, h)| format!("etcd{}=http://{}:{PEER_PORT}", i + 1, h.wan))
            .collect();
        let members = members.join(",");
        let nodes = start_nodes(hosts, &members, dir)?;
        let endpoints = hosts.iter().map(|h| format!("http://{}:{CLIENT_PORT}", h.wan)).collect();
        Ok(Self { nodes, endpoints, members })
    }

    /// Starts node `i` again, with the data it had.
    ///
    /// # Errors
    /// When it does not serve in time.
    pub fn restart(&mut self, i: usize, host: &Host, dir: &Path) -> Result<()> {
        let node = start_node(host, &format!("etcd{}", i + 1), &self.members, dir)?;
        serves(&node)?;
        self.nodes[i] = node;
        Ok(())
    }

    /// Saves what the cluster holds, as the node of `host` has it.
    ///
    /// # Errors
    /// When etcdctl is missing or refuses.
    pub fn save(&self, host: &Host, snapshot: &Path) -> Result<()> {
        let mut command = etcdctl(host);
        command.args(["--endpoints", &format!("http://{}:{CLIENT_PORT}", host.wan), "snapshot", "save"]);
        run(command.arg(snapshot))
    }

    /// Kills every node and starts the cluster anew with what `snapshot` holds; what came after it is forgotten.
    ///
    /// # Errors
    /// When etcdctl is missing or refuses, or no leader is elected in time.
    pub fn restore(&mut self, hosts: &[Host], dir: &Path, snapshot: &Path) -> Result<()> {
        self.nodes.iter_mut().for_each(Process::kill);
        self.nodes.clear();
        for (i, host) in hosts.iter().enumerate() {
            let name = format!("etcd{}", i + 1);
            let data = dir.join(format!("{name}.data"));
            std::fs::remove_dir_all(&data)?;
            let mut command = etcdctl(host);
            command
                .args(["snapshot", "restore"])
                .arg(snapshot)
                .args(["--name", &name, "--data-dir"])
                .arg(data);
            command.args(["--initial-cluster", &self.members, "--initial-cluster-token", "restored"]);
            let peer = format!("http://{}:{PEER_PORT}", host.wan);
            run(command.args(["--initial-advertise-peer-urls", &peer]))?;
        }
        self.nodes = start_nodes(hosts, &self.members, dir)?;
        Ok(())
    }

    /// The number of the node that leads, by its own word.
    ///
    /// # Errors
    /// When none does.
    pub fn leader(&self, hosts: &[Host]) -> Result<usize> {
        let leads = |host: &Host| -> Result<bool> {
            let answer =
                host.namespace.enter(|| http_post(CLIENT_PORT, "/v3/maintenance/status", "{}"))??;
            let body = answer.split_once("\r\n\r\n").context("no body")?.1;
            let status: serde_json::Value =
                serde_json::from_str(body.trim().trim_start_matches(|c: char| c != '{'))?;
            let own = status.pointer("/header/member_id").context("no member_id")?;
            Ok(status.get("leader") == Some(own))
        };
        (0..self.nodes.len())
            .find(|i| leads(&hosts[*i]).unwrap_or(false))
            .context("no store node says that it leads")
    }

    /// Addresses for clients.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }
}

/// Starts one node per host, and waits until all of them serve: none does before there are enough.
fn start_nodes(hosts: &[Host], members: &str, dir: &Path) -> Result<Vec<Process>> {
    let start = |(i, host)| start_node(host, &format!("etcd{}", i + 1), members, dir);
    let nodes: Vec<_> = hosts.iter().enumerate().map(start).collect::<Result<_>>()?;
    nodes.iter().try_for_each(serves)?;
    Ok(nodes)
}

fn serves(node: &Process) -> Result<()> {
    let says = |line: &str| line.contains("serving client traffic");
    node.wait_for("that it serves", Mark::default(), START_MAX, says)?;
    Ok(())
}

fn etcdctl(host: &Host) -> Command {
    let mut command = host.namespace.command(Path::new("etcdctl"));
    command.env("ETCDCTL_API", "3");
    command
}

fn start_node(host: &Host, name: &str, members: &str, dir: &Path) -> Result<Process> {
    let program = find_etcd()?;
    let mut command = host.namespace.command(&program);
    // Argument by argument: etcd's own `/usr/bin/etcd` of Debian reads ETCD_* variables too, so none may leak in.
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("ETCD")) {
        command.env_remove(key);
    }
    let (client, peer) =
        (format!("http://{}:{CLIENT_PORT}", host.wan), format!("http://{}:{PEER_PORT}", host.wan));
    command
        .args(["--name", name, "--data-dir"])
        .arg(dir.join(format!("{name}.data")))
        .args(["--listen-client-urls", &format!("{client},http://127.0.0.1:{CLIENT_PORT}")])
        .args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", members])
        .args(["--initial-cluster-state", "new", "--initial-cluster-token", "lab"])
        .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
        .args(["--max-txn-ops", "1024", "--grpc-keepalive-min-time", "500ms", "--logger", "zap"]);
    Process::spawn(name, command, dir)
}

fn find_etcd() -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .map(|dir| dir.join("etcd"))
        .find(|p| p.is_file())
        .context("etcd is missing: run scripts/install-deps.sh etcd")
}

/// Waits until a condition holds that only polling can see, asking every 10 ms.
///
/// # Errors
/// When it does not hold after `timeout`, naming `what`.
pub fn wait_until(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !holds() {
        if Instant::now() > deadline {
            bail!("{what}: not so after {timeout:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// One plain HTTP POST to the loopback of the current namespace; returns the whole answer.
fn http_post(port: u16, path: &str, body: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
