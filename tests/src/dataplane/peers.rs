//! The tunnels that are compared: this one, and every other that is installed. A new one is a function here.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::line::{Line, target};
use super::tunnel::Tunnel;
use crate::lab::etcd::wait_until;
use crate::lab::network::Host;
use crate::lab::process::{Mark, Process};
use crate::lab::programs::{self, Build, Operator, Pki, StoreConfig};

/// The inner MTU of every tunnel.
const MTU: u16 = 1420;
const READY_MAX: Duration = Duration::from_secs(30);

/// What a tunnel is made with.
pub struct Setup<'a> {
    /// Where it goes.
    pub line: &'a Line,
    /// Where the compared programs are, before `PATH`.
    pub tools: &'a Path,
    /// Where it may write.
    pub dir: &'a Path,
}

type Start = fn(&Setup<'_>, u8) -> Result<Option<Tunnel>>;

/// Every tunnel, in the order of the tables: its name, and how it comes up. `None`: it is not installed.
pub const ALL: [(&str, Start); 7] = [
    ("jump", jump),
    ("wireguard-go", |setup, n| wireguard(setup, n, "wireguard-go", &["-f"])),
    ("gotatun", |setup, n| wireguard(setup, n, "gotatun", &["--foreground", "--disable-drop-privileges"])),
    ("boringtun", |setup, n| {
        wireguard(setup, n, "boringtun-cli", &["--foreground", "--disable-drop-privileges"])
    }),
    ("openvpn", openvpn),
    ("nebula", nebula),
    ("raw", |_, _| Ok(Some(Tunnel::raw()))),
];

/// This project's gateway and client, with control and its embedded store in the gateway's namespace.
fn jump(setup: &Setup<'_>, _: u8) -> Result<Option<Tunnel>> {
    let (Setup { line, dir, .. }, host) = (setup, &setup.line.gateway);
    let pki = Pki::init(&dir.join("pki"))?;
    let addresses = [host.wan.to_string()];
    let identity = pki.issue("control", "ctl", &addresses)?;
    let store = StoreConfig::Embedded(dir.join("control.redb"));
    let mut command = programs::control(&Build::default(), host, "ctl", &identity, &store, "", dir)?;
    command.env("JUMP_CONTROL_MTU", MTU.to_string());
    // It shares the host with the gateway, whose port the other would be.
    command.env("JUMP_CONTROL_METRICS_LISTEN", "127.0.0.1:9091");
    let control = Process::spawn("ctl", command, dir)?;
    control.wait_for("that it serves", Mark::default(), READY_MAX, |l| l.contains(r#""message":"ready""#))?;

    let identity = pki.issue("gateway", "gw", &addresses)?;
    let controls = std::slice::from_ref(host);
    let settings = format!("[tun]\nmtu = {MTU}\n");
    let command = programs::gateway(&Build::default(), host, "gw", &identity, controls, &settings, dir)?;
    let gateway = Process::spawn("gw", command, dir)?;
    gateway
        .wait_for("that it is ready", Mark::default(), READY_MAX, |l| l.contains("registered; serving"))?;

    let operator = Operator::new(controls, pki.issue("operator", "bench", &[])?);
    let answer = operator.json(host, &["devices", "enroll-token", "--no-qr", "bench"])?;
    let token = answer.first().and_then(|a| a.get("token")?.as_str()).context("jumpctl printed no token")?;
    let state = dir.join("device");
    programs::enrol(&Build::default(), &line.client, &state, token)?;
    let device = Process::spawn("device", programs::device(&Build::default(), &line.client, &state)?, dir)?;
    device.wait_for("that it is attached", Mark::default(), READY_MAX, |l| {
        l.contains(r#""event":"attached""#)
    })?;
    let version = first_line(Command::new(programs::find("jump-gateway")?).arg("--version"));
    Ok(Some(Tunnel::new("jump", version, line.server.lan, vec![gateway, device, control])))
}

/// Any program that speaks WireGuard's configuration protocol (`wg` of wireguard-tools).
fn wireguard(setup: &Setup<'_>, n: u8, program: &'static str, arguments: &[&str]) -> Result<Option<Tunnel>> {
    let (Some(path), Some(wg)) = (find(setup, program), find(setup, "wg")) else { return Ok(None) };
    let name = program.strip_suffix("-cli").unwrap_or(program);
    let port = 51_900 + u16::from(n);
    let mut ends = Vec::new();
    // Both ends have their control socket in the same directory, so their interfaces have different names.
    for (host, letter) in [(&setup.line.gateway, 'g'), (&setup.line.client, 'c')] {
        let link = format!("jbw{letter}{n}");
        let key = setup.dir.join(format!("{link}.key"));
        let private = text(Command::new(&wg).arg("genkey"), "")?;
        std::fs::write(&key, &private)?;
        let public = text(Command::new(&wg).arg("pubkey"), &private)?;
        let socket = PathBuf::from(format!("/var/run/wireguard/{link}.sock"));
        // One that an earlier run left behind would look like an answer.
        let _ = std::fs::remove_file(&socket);
        let mut command = host.namespace.command(&path);
        command.args(arguments).arg(&link).env("LOG_LEVEL", "error");
        let process = Process::spawn(&format!("{name}-{letter}"), command, setup.dir)?;
        wait_until(&format!("{name} is up"), READY_MAX, || socket.exists())?;
        ends.push((process, host, link, key, public));
    }
    let [(_, gateway, g_link, g_key, g_public), (_, client, c_link, c_key, c_public)] = &ends[..] else {
        bail!("two ends");
    };
    let configure =
        |host: &Host, arguments: &[&str]| text(host.namespace.command(&wg).args(arguments), "").map(drop);
    let (g_key, c_key) = (g_key.to_string_lossy(), c_key.to_string_lossy());
    let inner = |last: u8| format!("10.93.{n}.{last}/32");
    let listen = port.to_string();
    configure(
        gateway,
        &[
            "set",
            g_link,
            "listen-port",
            &listen,
            "private-key",
            &g_key,
            "peer",
            c_public,
            "allowed-ips",
            &inner(2),
        ],
    )?;
    let endpoint = format!("{}:{port}", gateway.wan);
    configure(
        client,
        &[
            "set",
            c_link,
            "private-key",
            &c_key,
            "peer",
            g_public,
            "endpoint",
            &endpoint,
            "allowed-ips",
            "0.0.0.0/0",
        ],
    )?;
    address(gateway, client, g_link, c_link, n)?;
    expose(setup, n)?;
    let version = first_line(Command::new(&path).arg("--version"));
    let processes = ends.into_iter().map(|end| end.0).collect();
    Ok(Some(Tunnel::new(name, version, target(n), processes)))
}

/// OpenVPN between two peers that know each other's certificate, AES-256-GCM, without the kernel module.
fn openvpn(setup: &Setup<'_>, n: u8) -> Result<Option<Tunnel>> {
    let (Some(path), Some(openssl)) = (find(setup, "openvpn"), find(setup, "openssl")) else {
        return Ok(None);
    };
    let file = |name: &str| setup.dir.join(name).to_string_lossy().into_owned();
    let mut prints = Vec::new();
    for end in ["g", "c"] {
        let (key, certificate) = (file(&format!("openvpn-{end}.key")), file(&format!("openvpn-{end}.pem")));
        let make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let subject = format!("/CN=bench-{end}");
        text(
            Command::new(&openssl).args(make).args(["-days", "2", "-subj", &subject]).args([
                "-keyout",
                &key,
                "-out",
                &certificate,
            ]),
            "",
        )?;
        let fingerprint = text(
            Command::new(&openssl).args(["x509", "-noout", "-fingerprint", "-sha256", "-in", &certificate]),
            "",
        )?;
        prints.push(fingerprint.split_once('=').context("openssl printed no fingerprint")?.1.to_owned());
    }
    let port = (51_900 + u16::from(n)).to_string();
    let mut processes = Vec::new();
    for (end, host, peer) in [("g", &setup.line.gateway, &prints[1]), ("c", &setup.line.client, &prints[0])] {
        let mut command = host.namespace.command(&path);
        let (own, other) = if end == "g" { (1, 2) } else { (2, 1) };
        command.args([
            "--dev",
            &format!("jbo{end}"),
            "--dev-type",
            "tun",
            "--disable-dco",
            "--proto",
            "udp4",
        ]);
        command.args(["--ifconfig", &format!("10.93.{n}.{own}"), &format!("10.93.{n}.{other}")]);
        command.args(["--cert", &file(&format!("openvpn-{end}.pem"))]);
        command.args(["--key", &file(&format!("openvpn-{end}.key")), "--peer-fingerprint", peer]);
        command.args(["--data-ciphers", "AES-256-GCM", "--tun-mtu", &MTU.to_string(), "--verb", "3"]);
        command.args(["--sndbuf", "4194304", "--rcvbuf", "4194304", "--txqueuelen", "1000"]);
        if end == "g" {
            command.args(["--tls-server", "--dh", "none", "--port", &port, "--float"]);
        } else {
            command.args(["--tls-client", "--nobind", "--remote", &host_address(setup), &port]);
        }
        processes.push(Process::spawn(&format!("openvpn-{end}"), command, setup.dir)?);
    }
    for process in &processes {
        process.wait_for("that it is up", Mark::default(), READY_MAX, |line| {
            line.contains("Initialization Sequence Completed")
        })?;
    }
    setup.line.client.namespace.ip(&format!("route add {} dev jboc", target(n)))?;
    expose(setup, n)?;
    let version = first_line(Command::new(&path).arg("--version"));
    Ok(Some(Tunnel::new("openvpn", version, target(n), processes)))
}

/// Nebula with the gateway as lighthouse and as router to the server.
fn nebula(setup: &Setup<'_>, n: u8) -> Result<Option<Tunnel>> {
    let (Some(path), Some(cert)) = (find(setup, "nebula"), find(setup, "nebula-cert")) else {
        return Ok(None);
    };
    let file = |name: &str| setup.dir.join(name).to_string_lossy().into_owned();
    let (ca, ca_key) = (file("nebula-ca.crt"), file("nebula-ca.key"));
    text(Command::new(&cert).args(["ca", "-name", "bench", "-out-crt", &ca, "-out-key", &ca_key]), "")?;
    let port = 51_900 + u16::from(n);
    let mut processes = Vec::new();
    for (end, host, last) in [("g", &setup.line.gateway, 1), ("c", &setup.line.client, 2)] {
        let (crt, key) = (file(&format!("nebula-{end}.crt")), file(&format!("nebula-{end}.key")));
        let mut sign = Command::new(&cert);
        sign.args([
            "sign", "-ca-crt", &ca, "-ca-key", &ca_key, "-name", end, "-out-crt", &crt, "-out-key", &key,
        ]);
        sign.args(["-ip", &format!("10.93.{n}.{last}/24")]);
        if end == "g" {
            sign.args(["-subnets", &format!("{}/32", target(n))]);
        }
        text(&mut sign, "")?;
        let (lighthouse, listen) = if end == "g" { ("am_lighthouse: true", port) } else { ("hosts: []", 0) };
        let routes = match end {
            "c" => format!("\n  unsafe_routes: [{{route: {}/32, via: 10.93.{n}.1}}]", target(n)),
            _ => String::new(),
        };
        let gateway = setup.line.gateway.wan;
        let config = format!(
            "pki: {{ca: {ca}, cert: {crt}, key: {key}}}\n\
             static_host_map: {{\"10.93.{n}.1\": [\"{gateway}:{port}\"]}}\n\
             lighthouse: {{{lighthouse}}}\n\
             listen: {{host: 0.0.0.0, port: {listen}, batch: 64, read_buffer: 10485760, write_buffer: 10485760}}\n\
             cipher: aes\n\
             tun:\n  dev: jbn{end}\n  mtu: {MTU}\n  tx_queue: 1000{routes}\n\
             firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  \
             inbound: [{{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}}]\n"
        );
        let config_path = file(&format!("nebula-{end}.yml"));
        std::fs::write(&config_path, config)?;
        let mut command = host.namespace.command(&path);
        command.args(["-config", &config_path]);
        processes.push(Process::spawn(&format!("nebula-{end}"), command, setup.dir)?);
        let link = format!("jbn{end}");
        wait_until("nebula is up", READY_MAX, || host.namespace.ip(&format!("link show {link}")).is_ok())?;
    }
    expose(setup, n)?;
    let version = first_line(Command::new(&path).arg("-version"));
    Ok(Some(Tunnel::new("nebula", version, target(n), processes)))
}

/// Addresses, MTU and routes of a tunnel whose two links are there.
fn address(gateway: &Host, client: &Host, g_link: &str, c_link: &str, n: u8) -> Result<()> {
    gateway.namespace.ip(&format!(
        "addr add 10.93.{n}.1/24 dev {g_link}\nlink set {g_link} mtu {MTU} txqueuelen 1000 up"
    ))?;
    client.namespace.ip(&format!(
        "addr add 10.93.{n}.2/24 dev {c_link}\nlink set {c_link} mtu {MTU} txqueuelen 1000 up\n\
         route add {} dev {c_link}",
        target(n)
    ))
}

/// Gives the server the address that is reached through tunnel `n`.
fn expose(setup: &Setup<'_>, n: u8) -> Result<()> {
    setup.line.server.namespace.ip(&format!("addr add {}/32 dev lo", target(n)))
}

fn host_address(setup: &Setup<'_>) -> String {
    Ipv4Addr::to_string(&setup.line.gateway.wan)
}

/// A program among the tools, or else in `PATH` and the directories of system programs.
fn find(setup: &Setup<'_>, program: &str) -> Option<PathBuf> {
    let tools = ["bin", "usr/bin", "usr/sbin"].map(|dir| setup.tools.join(dir));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let dirs = tools.into_iter().chain(std::env::split_paths(&path)).chain(system);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Runs a command with this input and returns what it prints, without the line's end.
fn text(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("running {command:?}"))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first line that a program prints about itself, wherever it prints it.
fn first_line(command: &mut Command) -> String {
    let Ok(output) = command.stdin(Stdio::null()).output() else { return String::new() };
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).lines().next().unwrap_or("").trim().to_owned()
}
