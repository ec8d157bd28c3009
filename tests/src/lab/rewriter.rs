//! Somebody on the way of a session: passes datagrams on, and can send each of them under another source first.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::network::Host;
use super::probe::Worker;

const STOP_CHECK: Duration = Duration::from_millis(50);
const DATAGRAM_MAX: usize = 2048;
/// Where clients send.
const PORT: u16 = 40_000;

/// A running rewriter for one client.
#[derive(Debug)]
pub struct Rewriter {
    address: SocketAddr,
    shared: Arc<Shared>,
    _workers: [Worker; 3],
}

#[derive(Debug, Default)]
struct Shared {
    rewrites: AtomicBool,
    client: Mutex<Option<SocketAddr>>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Rewriter {
    /// Starts on `host`, towards `server`; passes everything on unchanged at first.
    ///
    /// # Errors
    /// When a socket or a thread cannot be made.
    pub fn start(host: &Host, server: SocketAddr) -> Result<Self> {
        let open = |port: u16, peer: Option<SocketAddr>| -> Result<UdpSocket> {
            let socket = host.namespace.enter(|| UdpSocket::bind(host.wan_socket(port)))??;
            if let Some(peer) = peer {
                socket.connect(peer)?;
            }
            socket.set_read_timeout(Some(STOP_CHECK))?;
            Ok(socket)
        };
        let clients = open(PORT, None).context("opening the rewriter")?;
        let (honest, rewritten) = (open(0, Some(server))?, open(0, Some(server))?);
        let address = clients.local_addr()?;
        let shared = Arc::new(Shared::default());
        let up = {
            let (shared, clients) = (Arc::clone(&shared), clients.try_clone()?);
            let (honest, rewritten) = (honest.try_clone()?, rewritten.try_clone()?);
            move |stop: &AtomicBool| {
                let mut bytes = [0; DATAGRAM_MAX];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = clients.recv_from(&mut bytes) else { continue };
                    *shared.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
                    if shared.rewrites.load(Ordering::Relaxed) && rewritten.send(&bytes[..length]).is_ok() {
                        shared.sent.fetch_add(length as u64, Ordering::Relaxed);
                    }
                    let _ = honest.send(&bytes[..length]);
                }
            }
        };
        let down = {
            let shared = Arc::clone(&shared);
            move |stop: &AtomicBool| {
                let mut bytes = [0; DATAGRAM_MAX];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = honest.recv(&mut bytes) else { continue };
                    let client = *shared.client.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(client) = client {
                        let _ = clients.send_to(&bytes[..length], client);
                    }
                }
            }
        };
        let lured = {
            let shared = Arc::clone(&shared);
            move |stop: &AtomicBool| {
                let mut bytes = [0; DATAGRAM_MAX];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = rewritten.recv(&mut bytes) else { continue };
                    shared.received.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        };
        let workers = [
            Worker::start("rewriter-up", up)?,
            Worker::start("rewriter-down", down)?,
            Worker::start("rewriter-lured", lured)?,
        ];
        Ok(Self { address, shared, _workers: workers })
    }

    /// Where the client sends.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether each datagram is first sent under another source.
    pub fn rewrite(&self, rewrites: bool) {
        self.shared.rewrites.store(rewrites, Ordering::Relaxed);
    }

    /// Bytes sent under the other source, and bytes that were sent there in answer.
    pub fn rewritten_bytes(&self) -> (u64, u64) {
        (self.shared.sent.load(Ordering::Relaxed), self.shared.received.load(Ordering::Relaxed))
    }
}
