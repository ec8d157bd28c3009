//! What this crate alone moves between a TUN device and UDP: two bare tunnel ends, three namespaces, iperf3.
//!
//! ```text
//! client (TUN, iperf3) ──veth── gateway (TUN, routes) ──veth── server (iperf3)
//! ```
//!
//! The ends are as simple as ends can be: one session, one thread, 16 bytes of header, AES-256-GCM or nothing. So the
//! result is the ceiling for the gateway and the client, and tells a change here from a change there. Needs root,
//! iproute2, ethtool and iperf3.
//!
//! `cargo bench -p jump-transport --bench forwarding -- [--seconds n] [--repeat n] [--only part of a name]`

#[path = "../tests/namespace/mod.rs"]
mod namespace;

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use jump_transport::batch::{HEADROOM, TAILROOM};
use jump_transport::poll::{Waker, wait};
use jump_transport::tun::{Tun, TunOptions, TunReceiveBuffers, TunSendBatch};
use jump_transport::udp::{ReceiveBuffers, SendBatch, UdpOptions, UdpSocket};
use namespace::Namespace;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

const RAW_TARGET: &str = "192.168.2.2";
const TUNNEL_TARGET: &str = "10.88.0.1";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["node", address, local, peer, sealing] => node(address, local, peer, sealing == "sealed"),
        _ if words.contains(&"--bench") => measure_all(&words),
        _ => {
            println!("run by `cargo bench`");
            Ok(())
        }
    }
}

// One tunnel end.

/// Forwards for ever. A peer of `-` is learned from what arrives.
fn node(address: &str, local: &str, peer: &str, sealed: bool) -> Result<()> {
    let tun = Tun::create(&TunOptions {
        name: "jump0".to_owned(),
        addresses: vec![address.parse()?],
        mtu: 1420,
        offload: true,
        queue_packets: 1000,
    })?;
    let options = UdpOptions { buffer_bytes: 4 << 20, ..UdpOptions::default() };
    let socket = UdpSocket::bind(local.parse()?, &options)?;
    let mut peer: Option<SocketAddr> = peer.parse().ok();
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("a key of 32 bytes");
    let mut key = Key { key: LessSafeKey::new(key), counter: 0, sealed };
    let waker = Waker::new()?;
    let (mut tun_buffers, mut tun_batch) = (TunReceiveBuffers::new(), TunSendBatch::new());
    let (mut buffers, mut batch) = (ReceiveBuffers::new(), SendBatch::new());
    loop {
        let mut ready = [false; 2];
        wait(&[tun.as_fd(), socket.as_fd()], &waker, None, &mut ready)?;
        if ready[1] {
            let received = socket.receive(&mut buffers, &mut |datagram| {
                if let Some(packet) = key.open(datagram.bytes) {
                    peer = Some(datagram.source);
                    tun_batch.push(&tun, packet);
                }
            });
            tun_batch.flush(&tun);
            if let Err(error) = received {
                eprintln!("receive: {error}");
            }
        }
        if ready[0] {
            tun.receive(&mut tun_buffers, 256, &mut |frame| {
                if let Some(peer) = peer {
                    let slot = batch.slot(&socket, peer, frame.len());
                    slot.copy_from_slice(frame);
                    key.seal(slot);
                }
            })?;
            batch.flush(&socket);
        }
    }
}

/// A fixed key: this measures, it protects nothing.
struct Key {
    key: LessSafeKey,
    counter: u64,
    sealed: bool,
}

impl Key {
    fn seal(&mut self, frame: &mut [u8]) {
        self.counter += 1;
        frame[..8].fill(4);
        frame[8..16].copy_from_slice(&self.counter.to_be_bytes());
        if self.sealed {
            let (header, rest) = frame.split_at_mut(HEADROOM);
            let (packet, tag) = rest.split_at_mut(rest.len() - TAILROOM);
            let made = self
                .key
                .seal_in_place_separate_tag(nonce(header), Aad::from(&*header), packet)
                .expect("a short packet");
            tag.copy_from_slice(made.as_ref());
        }
    }

    fn open<'a>(&self, datagram: &'a mut [u8]) -> Option<&'a [u8]> {
        if datagram.len() < HEADROOM + TAILROOM {
            return None;
        }
        let (header, rest) = datagram.split_at_mut(HEADROOM);
        if !self.sealed {
            return rest.get(..rest.len() - TAILROOM);
        }
        self.key.open_in_place(nonce(header), Aad::from(&*header), rest).ok().map(|p| &*p)
    }
}

fn nonce(header: &[u8]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&header[8..16]);
    Nonce::assume_unique_for_key(nonce)
}

// The measurement.

struct Lab {
    client: Namespace,
    gateway: Namespace,
    server: Namespace,
}

impl Lab {
    fn new(offloads: bool) -> Result<Self> {
        let lab = Self { client: Namespace::new(), gateway: Namespace::new(), server: Namespace::new() };
        let (client, gateway, server) = (&lab.client, &lab.gateway, &lab.server);
        for (end, name, address) in [(client, "c0", "192.168.1"), (server, "s0", "192.168.2")] {
            gateway.ip(&["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", end.name()]);
            gateway.ip(&["addr", "add", &format!("{address}.1/24"), "dev", name]);
            end.ip(&["addr", "add", &format!("{address}.2/24"), "dev", "eth0"]);
            gateway.ip(&["link", "set", name, "up"]);
            end.ip(&["link", "set", "eth0", "up"]);
            end.ip(&["route", "add", "default", "via", &format!("{address}.1")]);
            if !offloads {
                let off = ["tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off"];
                end.exec(&[&["ethtool", "-K", "eth0"][..], &off].concat());
                gateway.exec(&[&["ethtool", "-K", name][..], &off].concat());
            }
        }
        server.ip(&["addr", "add", "10.88.0.1/32", "dev", "eth0"]);
        gateway.ip(&["route", "add", "10.88.0.1", "via", "192.168.2.2"]);
        gateway.exec(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        Ok(lab)
    }

    /// Starts both ends; the gateway's comes first.
    fn start_nodes(&self, sealed: bool) -> Result<[Running; 2]> {
        let sealing = if sealed { "sealed" } else { "plain" };
        let me = std::env::current_exe()?;
        let me = me.to_str().context("a path in UTF-8")?;
        let start = |namespace: &Namespace, arguments: &[&str]| {
            let command = [&["netns", "exec", namespace.name(), me, "node"], arguments].concat();
            Command::new("ip").args(command).spawn().map(Running)
        };
        let gateway = start(&self.gateway, &["10.77.0.1/24", "0.0.0.0:5000", "-", sealing])?;
        let client = start(&self.client, &["10.77.0.2/24", "0.0.0.0:0", "192.168.1.1:5000", sealing])?;
        for namespace in [&self.gateway, &self.client] {
            poll_until("a TUN device", || namespace.ip(&["link"]).contains("jump0"))?;
        }
        self.client.ip(&["route", "add", "10.88.0.1", "dev", "jump0"]);
        self.client.exec(&["ping", "-c", "1", "-W", "5", TUNNEL_TARGET]);
        Ok([gateway, client])
    }

    fn iperf(&self, target: &str, arguments: &[&str]) -> Result<serde_json::Value> {
        let command = [&["iperf3", "-J", "-c", target], arguments].concat();
        let report: serde_json::Value = serde_json::from_str(&self.client.exec(&command))?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        Ok(report)
    }
}

/// A child that ends with its owner.
struct Running(Child);

impl Running {
    /// CPU seconds so far, in user and kernel.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        ensure!(fields.len() > 12, "/proc/…/stat has fewer fields than expected");
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(ticks as f64 / 100.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure_all(words: &[&str]) -> Result<()> {
    let option = |name| words.iter().position(|w| *w == name).and_then(|i| words.get(i + 1)).copied();
    let seconds = option("--seconds").unwrap_or("3");
    let repeat: usize = option("--repeat").unwrap_or("3").parse()?;
    let only = option("--only").unwrap_or("");

    println!(
        "{repeat} runs of {seconds} s each, medians; kernel {}",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    println!("| underlay | path | traffic | result | gateway CPU |");
    println!("|---|---|---|---|---|");
    for (underlay, offloads) in [("offloads on", true), ("offloads off", false)] {
        for (path, nodes) in [("raw veth", None), ("plain", Some(false)), ("sealed", Some(true))] {
            for (traffic, arguments) in TRAFFIC {
                let name = format!("{underlay} {path} {traffic}");
                if !name.contains(only) || (nodes.is_none() && traffic.starts_with("udp")) {
                    continue;
                }
                let mut rates = Vec::new();
                let mut costs = Vec::new();
                for _ in 0..repeat {
                    let run = measure(offloads, nodes, &[&["-t", seconds], *arguments].concat())
                        .with_context(|| name.clone())?;
                    rates.push(run.rate);
                    costs.extend(run.cost);
                }
                let udp = traffic.starts_with("udp");
                let rate = median(&mut rates);
                let rate =
                    if udp { format!("{:.0} kpps", rate / 1e3) } else { format!("{:.2} Gbit/s", rate / 1e9) };
                let cost = match costs.is_empty() {
                    true => String::new(),
                    false if udp => format!("{:.2} µs/packet", median(&mut costs) * 1e6),
                    false => format!("{:.2} s/GB", median(&mut costs) * 8e9),
                };
                println!("| {underlay} | {path} | {traffic} | {rate} | {cost} |");
            }
        }
    }
    Ok(())
}

const TRAFFIC: &[(&str, &[&str])] = &[
    ("tcp up", &[]),
    ("tcp down", &["-R"]),
    ("tcp up, 4 streams", &["-P", "4"]),
    ("tcp down, 4 streams", &["-R", "-P", "4"]),
    ("udp 64 B up", &["-u", "-b", "0", "-l", "64"]),
    ("udp 64 B down", &["-u", "-b", "0", "-l", "64", "-R"]),
    ("udp 1200 B up", &["-u", "-b", "0", "-l", "1200"]),
];

struct Run {
    /// Bits per second of TCP payload, or delivered datagrams per second.
    rate: f64,
    /// CPU seconds of the gateway's end per bit or per datagram.
    cost: Option<f64>,
}

fn measure(offloads: bool, nodes: Option<bool>, arguments: &[&str]) -> Result<Run> {
    let lab = Lab::new(offloads)?;
    let target = if nodes.is_some() { TUNNEL_TARGET } else { RAW_TARGET };
    let server = Command::new("ip")
        .args(["netns", "exec", lab.server.name(), "iperf3", "-s", "-1", "-B", target])
        .stdout(Stdio::null())
        .spawn()
        .map(Running)?;
    let nodes = nodes.map(|sealed| lab.start_nodes(sealed)).transpose()?;
    poll_until("iperf3", || lab.server.exec(&["ss", "-ltn"]).contains(":5201"))?;
    let gateway = nodes.as_ref().map(|n| &n[0]);
    let before = gateway.map_or(Ok(0.0), Running::cpu_seconds)?;
    let report = lab.iperf(target, arguments)?;
    let after = gateway.map_or(Ok(0.0), Running::cpu_seconds)?;
    drop(server);

    let number = |path: &str| report.pointer(path).and_then(serde_json::Value::as_f64);
    let (amount, seconds) = if arguments.contains(&"-u") {
        let sum = "/end/sum_received";
        let packets = number(&format!("{sum}/packets")).context("no packets in the report")?;
        let lost = number(&format!("{sum}/lost_packets")).unwrap_or(0.0);
        (packets - lost, number(&format!("{sum}/seconds")).context("no duration in the report")?)
    } else {
        let bytes = number("/end/sum_received/bytes").context("no bytes in the report")?;
        (bytes * 8.0, number("/end/sum_received/seconds").context("no duration in the report")?)
    };
    ensure!(amount > 0.0, "nothing arrived");
    Ok(Run { rate: amount / seconds, cost: gateway.map(|_| (after - before) / amount) })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn poll_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..200 {
        if holds() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    bail!("{what} did not come up within five seconds")
}
