//! A flood of first messages from sources that are nobody's.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jump_crypto::entropy::OsEntropy;
use jump_crypto::handshake::INIT_LEN;
use jump_crypto::keys::DeviceSecret;
use jump_session::reason::Reason;

use super::bare_device::{BareDevice, ClusterKeys};
use super::network::Host;
use super::probe::Worker;
use super::rng::Rng;
use crate::scenario::FloodKind;

/// The network that floods come from.
pub const NETWORK: &str = "10.68.0.0/16";
/// Sources, each in another /24 as far as there are any.
const SOURCES: u32 = 512;
/// Messages made beforehand; a flood repeats them, as an attacker who has no time to make new ones does.
const MESSAGES: usize = 512;
/// Datagrams between two looks at the clock.
const BURST: u32 = 32;

/// A running flood; stops when dropped.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    _worker: Worker,
}

/// What a flood's own network saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FloodBytes {
    /// Bytes sent, headers included.
    pub out: u64,
    /// Bytes that came back, headers included.
    pub back: u64,
}

/// Gives `host` the flood's addresses, the gateways a way there, and counts what passes; answers go no further.
///
/// # Errors
/// When `ip` or `nft` fails.
pub fn route(host: &Host, gateways: &[Host]) -> Result<()> {
    host.namespace.ip(&format!("route replace local {NETWORK} dev lo"))?;
    for gateway in gateways {
        gateway.namespace.ip(&format!("route replace {NETWORK} via {}", host.wan))?;
    }
    super::network::nft(
        &host.namespace,
        &format!(
            "table ip flood {{ counter out {{ }}; counter back {{ }}; \
             chain in {{ type filter hook input priority 0; ip daddr {NETWORK} counter name back drop; }}; \
             chain out {{ type filter hook output priority 0; ip saddr {NETWORK} counter name out; }}; }}\n"
        ),
    )
}

/// What has passed since [`route`].
///
/// # Errors
/// When `nft` fails.
pub fn bytes(host: &Host) -> Result<FloodBytes> {
    let output = host
        .namespace
        .command("nft".as_ref())
        .args(["-j", "list", "counters", "table", "ip", "flood"])
        .output()
        .context("running nft")?;
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let find = |name: &str| {
        let all = listing.get("nftables")?.as_array()?;
        let one = all.iter().filter_map(|entry| entry.get("counter"));
        one.filter(|counter| counter.get("name").is_some_and(|n| n == name))
            .find_map(|counter| counter.get("bytes")?.as_u64())
    };
    Ok(FloodBytes { out: find("out").context("no counter")?, back: find("back").context("no counter")? })
}

impl Flood {
    /// Sends `per_second` first messages in all, to the gateways in turn, until dropped. `known` are keys of enrolled
    /// devices.
    ///
    /// # Errors
    /// When sockets cannot be made.
    pub fn start(
        host: &Host,
        profile: &Path,
        gateways: &[SocketAddr],
        known: &[DeviceSecret],
        kind: FloodKind,
        per_second: u32,
        seed: u64,
    ) -> Result<Self> {
        let messages = messages(host, profile, known, kind, seed)?;
        let sockets = host.namespace.enter(|| {
            (0..SOURCES)
                .map(|i| {
                    let low = u8::try_from(1 + i / 256).unwrap_or(1);
                    let address = Ipv4Addr::new(10, 68, u8::try_from(i % 256).unwrap_or(0), low);
                    let socket = UdpSocket::bind((address, 0))?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                })
                .collect::<std::io::Result<Vec<_>>>()
        })??;
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let gateways = gateways.to_vec();
        let worker = Worker::start("flood", move |stop| {
            let start = Instant::now();
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    let at = |count: usize| usize::try_from(number % count.max(1) as u64).unwrap_or(0);
                    // Lengths without a common divisor: every source sends every message to every gateway in time.
                    let (socket, message) = (&sockets[at(509)], &messages[at(messages.len())]);
                    // A full queue is no concern of ours.
                    if socket.send_to(message, gateways[at(gateways.len())]).is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    number += 1;
                }
                let due = Duration::from_secs_f64(number as f64 / f64::from(per_second.max(1)));
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        })?;
        Ok(Self { sent, _worker: worker })
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn messages(
    host: &Host,
    profile: &Path,
    known: &[DeviceSecret],
    kind: FloodKind,
    seed: u64,
) -> Result<Vec<[u8; INIT_LEN]>> {
    let mut entropy = OsEntropy::new().context("randomness")?;
    let mut rng = Rng::new(seed);
    let socket = host.namespace.enter(|| UdpSocket::bind("127.0.0.1:0"))??;
    let stranger = DeviceSecret::generate(&mut entropy).context("a key")?;
    let mut device = BareDevice::new(stranger, ClusterKeys::of_profile(profile)?, socket)?;
    let mut made = Vec::with_capacity(MESSAGES);
    for i in 0..MESSAGES {
        let kind = match (kind, i % 3) {
            (FloodKind::Garbage, _) | (FloodKind::Mixed, 0) => FloodKind::Garbage,
            (FloodKind::UnknownDevices, _) | (FloodKind::Mixed, 1) => FloodKind::UnknownDevices,
            (FloodKind::Replays, _) | (FloodKind::Mixed, _) => FloodKind::Replays,
        };
        if kind == FloodKind::Garbage {
            let mut bytes = [0; INIT_LEN];
            rng.fill(&mut bytes);
            bytes[..4].copy_from_slice(&[1, 1, 0, 0]);
            made.push(bytes);
            continue;
        }
        let enrolled = known.get(i % known.len().max(1)).filter(|_| kind == FloodKind::Replays);
        device.set_key(match enrolled {
            Some(key) => DeviceSecret::from_bytes(*key.expose()),
            None => DeviceSecret::generate(&mut entropy).context("a key")?,
        });
        let intent = device.intent(None, 1, Reason::Birth)?;
        made.push(device.start(&intent)?.datagram);
    }
    Ok(made)
}
