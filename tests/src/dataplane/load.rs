//! The loads: one TCP stream, small and large datagrams at the highest rate that arrives, pings.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as PlainSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jump_transport::udp::{ReceiveBuffers, SendBatch, UdpOptions, UdpSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::line::Line;
use super::tunnel::Tunnel;
use crate::lab::etcd::wait_until;
use crate::lab::network::Host;

/// Share of a trial's datagrams that may be lost.
const LOSS_MAX: f64 = 0.005;
/// How long a trial sends.
const TRIAL: Duration = Duration::from_millis(600);
/// How long its last datagrams may take.
const TRIAL_TAIL: Duration = Duration::from_millis(60);
/// The sender sends what is due and sleeps this long.
const PACE: Duration = Duration::from_micros(200);
/// Most datagrams of one burst, so that a sender that was held up does not send a second's worth at once.
const BURST_MAX: u64 = 512;
/// The search multiplies by this until a trial fails.
const STEP: f64 = 1.5;
/// Then it halves the step so often.
const HALVINGS: usize = 3;
/// Pings and the time between them.
const PINGS: &str = "400";
const PING_INTERVAL: &str = "0.004";

/// Which way the data flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Client to server.
    Up,
    /// Server to client.
    Down,
}

/// A TCP stream that was measured.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// Bits of payload per second.
    pub bits_per_second: f64,
    /// CPU seconds of the gateway's end per gigabyte of payload.
    pub gateway_seconds_per_gb: Option<f64>,
}

/// One TCP stream by iperf3 for `seconds`, after half a second to get up to speed.
///
/// # Errors
/// When iperf3 fails or nothing arrives.
pub fn tcp(line: &Line, tunnel: &Tunnel, direction: Direction, seconds: u32) -> Result<Stream> {
    let target = tunnel.target.to_string();
    let mut server = inside(&line.server, "iperf3")
        .args(["-s", "-1", "-B", &target])
        .stdout(Stdio::null())
        .spawn()
        .context("starting iperf3")?;
    wait_until("iperf3 listens", Duration::from_secs(5), || {
        let sockets = inside(&line.server, "ss").args(["-Hltn"]).output();
        sockets.is_ok_and(|s| String::from_utf8_lossy(&s.stdout).contains(":5201"))
    })?;
    let before = tunnel.cpu_seconds()?;
    let mut client = inside(&line.client, "iperf3");
    client.args(["-c", &target, "-J", "-t", &seconds.to_string(), "--connect-timeout", "5000"]);
    if direction == Direction::Down {
        client.arg("-R");
    }
    let output = client.output();
    let after = tunnel.cpu_seconds()?;
    let _ = server.kill();
    let _ = server.wait();
    let report: Value = serde_json::from_slice(&output?.stdout).context("the report of iperf3")?;
    ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
    let received = &report["end"]["sum_received"];
    let bytes = received["bytes"].as_f64().context("no bytes in the report")?;
    let time = received["seconds"].as_f64().context("no time in the report")?;
    ensure!(bytes > 0.0, "nothing arrived");
    let cost = before.zip(after).map(|(before, after)| (after - before) / bytes * 1e9);
    Ok(Stream { bits_per_second: bytes * 8.0 / time, gateway_seconds_per_gb: cost })
}

/// The highest rate of datagrams of `len` bytes that arrives with less than half a percent of loss, in datagrams per
/// second. The search begins at `start`, which must be a rate that any tunnel carries, or one that this tunnel carried.
///
/// # Errors
/// When a socket cannot be opened.
pub fn datagrams(line: &Line, tunnel: &Tunnel, direction: Direction, len: usize, start: f64) -> Result<f64> {
    let ends = Ends::open(line, tunnel, direction)?;
    let mut carried = 0.0;
    let mut rate = start;
    // Down first, in case that this round is worse than the one that `start` comes from.
    while !ends.carries(rate, len)? {
        rate /= STEP;
        ensure!(rate > 100.0, "not even a hundred datagrams a second arrive");
    }
    let mut failed = rate * STEP;
    loop {
        carried = rate.max(carried);
        failed = failed.max(carried * STEP);
        if !ends.carries(failed, len)? {
            break;
        }
        rate = failed;
    }
    for _ in 0..HALVINGS {
        let middle = (carried * failed).sqrt();
        if ends.carries(middle, len)? {
            carried = middle;
        } else {
            failed = middle;
        }
    }
    Ok(carried)
}

/// Round-trip times through the idle tunnel, sorted, in microseconds.
///
/// # Errors
/// When `ping` fails.
pub fn pings(line: &Line, tunnel: &Tunnel) -> Result<Vec<f64>> {
    let target = tunnel.target.to_string();
    let output =
        inside(&line.client, "ping").args(["-n", "-i", PING_INTERVAL, "-c", PINGS, &target]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split_once(' ')?.0.parse::<f64>().ok())
        .map(|milliseconds| milliseconds * 1000.0)
        .collect();
    ensure!(!times.is_empty(), "nothing answers at {target}");
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn inside(host: &Host, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host.namespace.name(), program]);
    command.stdin(Stdio::null());
    command
}

/// A sender and a sink at the two ends of a tunnel.
struct Ends {
    sender: UdpSocket,
    sink: UdpSocket,
    /// Of the sink.
    address: SocketAddr,
}

impl Ends {
    fn open(line: &Line, tunnel: &Tunnel, direction: Direction) -> Result<Self> {
        let client = line.client.namespace.enter(|| -> std::io::Result<_> {
            // What the route to the target makes the source is the client's address in this tunnel.
            let probe = PlainSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            probe.connect((tunnel.target, 9))?;
            Ok(probe.local_addr()?.ip())
        })??;
        let (from, source, to, destination): (_, IpAddr, _, IpAddr) = match direction {
            Direction::Up => (&line.client, client, &line.server, tunnel.target.into()),
            Direction::Down => (&line.server, tunnel.target.into(), &line.client, client),
        };
        // Applications send datagrams one by one; what makes them larger on the way is the tunnel's doing.
        let options = UdpOptions { buffer_bytes: 16 << 20, unsegmented: true, ..UdpOptions::default() };
        let sink = to.namespace.enter(|| UdpSocket::bind(SocketAddr::new(destination, 0), &options))??;
        let address = sink.local_address()?;
        let sender = from.namespace.enter(|| UdpSocket::bind(SocketAddr::new(source, 0), &options))??;
        Ok(Self { sender, sink, address })
    }

    /// Whether this rate arrives; asked twice before it is called too much, because the machine hiccups.
    fn carries(&self, rate: f64, len: usize) -> Result<bool> {
        Ok(self.trial(rate, len)? || self.trial(rate, len)?)
    }

    fn trial(&self, rate: f64, len: usize) -> Result<bool> {
        let stop = AtomicBool::new(false);
        let (sent, received) = std::thread::scope(|scope| {
            let sink = scope.spawn(|| self.count(&stop));
            let sent = self.send(rate, len);
            std::thread::sleep(TRIAL_TAIL);
            stop.store(true, Ordering::Relaxed);
            let received = sink.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, anyhow::Error>((sent, received?))
        })?;
        let wanted = rate * TRIAL.as_secs_f64();
        Ok(sent as f64 >= wanted * 0.97 && received as f64 >= sent as f64 * (1.0 - LOSS_MAX))
    }

    /// Sends for the time of a trial and returns how many.
    fn send(&self, rate: f64, len: usize) -> u64 {
        let mut batch = SendBatch::new();
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < TRIAL {
            let due = (start.elapsed().as_secs_f64() * rate) as u64;
            let burst_end = due.min(sent + BURST_MAX);
            while sent < burst_end {
                batch.slot(&self.sender, self.address, len).fill(0x5a);
                sent += 1;
            }
            // A full queue on the way is loss: the sink will miss it.
            batch.flush(&self.sender);
            std::thread::sleep(PACE);
        }
        sent
    }

    fn count(&self, stop: &AtomicBool) -> Result<u64> {
        let mut buffers = ReceiveBuffers::new();
        let mut received = 0;
        while !stop.load(Ordering::Relaxed) {
            let wait = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            poll(&mut [PollFd::new(&self.sink, PollFlags::IN)], Some(&wait))?;
            loop {
                match self.sink.receive(&mut buffers, &mut |_| {})? {
                    0 => break,
                    datagrams => received += datagrams as u64,
                }
            }
        }
        Ok(received)
    }
}
