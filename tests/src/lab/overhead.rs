//! What the relay itself costs: added latency and packets per second, each way, on loopback and without impairment.
//!
//! One thread sends a datagram and waits for it at the other end, with and without the relay between; the difference of the
//! percentiles is what the relay adds. Then one end sends as fast as it can for a while, and what arrives is counted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::histogram::Summary;
use super::relay::{Impairment, Relay};

/// Datagrams that latency is measured with, each way.
const SINGLE: usize = 2000;
/// How long each way is filled.
const FILLED: Duration = Duration::from_millis(400);
/// How long a datagram may take before it counts as lost.
const LOST: Duration = Duration::from_millis(100);
/// A probe's length on the wire, about.
const LENGTH: usize = 200;

/// What the relay costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Towards gateways.
    pub up: Way,
    /// Towards devices.
    pub down: Way,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// Median of what the relay adds, in milliseconds.
    pub added_p50_ms: f64,
    /// What it adds to the 99th percentile, in milliseconds.
    pub added_p99_ms: f64,
    /// Datagrams per second that pass it.
    pub packets_per_second: f64,
    /// The same without it: what the machine gives.
    pub direct_packets_per_second: f64,
}

impl Overhead {
    /// Measures it, in about two seconds, on the loopback of the current namespace.
    ///
    /// # Errors
    /// When sockets cannot be made, or nothing passes.
    pub fn measure() -> Result<Self> {
        let (client, server) = (socket()?, socket()?);
        let listen = UdpSocket::bind("127.0.0.1:0")?;
        let whole = Impairment::default();
        let relay = Relay::start(listen, server.local_addr()?, whole, whole, 1)?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        client.send_to(b"hello", relay.address())?;
        let (_, seen) = server.recv_from(&mut [0; 16]).context("nothing passes the relay")?;
        server.set_read_timeout(Some(LOST))?;
        let (to_client, to_server) = (client.local_addr()?, server.local_addr()?);
        Ok(Self {
            up: Way::measure(&client, &server, relay.address(), to_server)?,
            down: Way::measure(&server, &client, seen, to_client)?,
        })
    }

    /// One line.
    pub fn text(&self) -> String {
        let way = |name: &str, way: &Way| {
            format!(
                "{name} +{:.3} ms p50, +{:.3} ms p99, {:.0} of {:.0} packets/s",
                way.added_p50_ms, way.added_p99_ms, way.packets_per_second, way.direct_packets_per_second
            )
        };
        format!("the relay itself: {}; {}", way("up", &self.up), way("down", &self.down))
    }
}

impl Way {
    fn measure(from: &UdpSocket, at: &UdpSocket, through: SocketAddr, direct: SocketAddr) -> Result<Self> {
        let (bare, relayed) = (latency(from, at, direct)?, latency(from, at, through)?);
        Ok(Self {
            added_p50_ms: relayed.p50_ms - bare.p50_ms,
            added_p99_ms: relayed.p99_ms - bare.p99_ms,
            packets_per_second: rate(from, at, through)?,
            direct_packets_per_second: rate(from, at, direct)?,
        })
    }
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket)
}

fn latency(from: &UdpSocket, at: &UdpSocket, to: SocketAddr) -> Result<Summary> {
    let mut times = Vec::with_capacity(SINGLE);
    let mut buffer = [0; LENGTH];
    for number in 0..SINGLE as u64 {
        let mut datagram = [0; LENGTH];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        from.send_to(&datagram, to)?;
        // A late one of before is not this one.
        while at.recv(&mut buffer).is_ok() {
            if buffer[..8] == datagram[..8] {
                times.push(sent.elapsed());
                break;
            }
        }
    }
    anyhow::ensure!(!times.is_empty(), "nothing arrived");
    Ok(Summary::of(times))
}

fn rate(from: &UdpSocket, at: &UdpSocket, to: SocketAddr) -> Result<f64> {
    let full = AtomicBool::new(true);
    let mut buffer = [0; LENGTH];
    let counted = std::thread::scope(|scope| {
        let filling = scope.spawn(|| {
            while full.load(Ordering::Relaxed) {
                let _ = from.send_to(&[0; LENGTH], to);
            }
        });
        let (began, mut count) = (Instant::now(), 0u64);
        while began.elapsed() < FILLED {
            count += u64::from(at.recv(&mut buffer).is_ok());
        }
        full.store(false, Ordering::Relaxed);
        let seconds = began.elapsed().as_secs_f64();
        let _ = filling.join();
        count as f64 / seconds
    });
    // What is still under way belongs to no measurement.
    while at.recv(&mut buffer).is_ok() {}
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_measured_of_the_relay_has_passed_it() {
        let overhead = Overhead::measure().unwrap();
        for way in [overhead.up, overhead.down] {
            assert!(way.packets_per_second > 0.0 && way.direct_packets_per_second > 0.0, "{overhead:?}");
            assert!(way.added_p50_ms.is_finite() && way.added_p99_ms.is_finite(), "{overhead:?}");
        }
    }
}
