//! Where the data-plane thread and tokio exchange datagrams: the way to make a [`Transport`] of anything that needs a
//! runtime.
//!
//! ```text
//! data-plane thread                        tokio
//!   Exchange ── outgoing (drop oldest) ──▶ Link ──▶ socket
//!            ◀─ incoming (bounded) ─────── Link ◀── socket
//!            ◀─ ready list + Waker
//! ```
//!
//! Each connection has one queue each way, so one peer's flood costs only that peer. Queues and buffers are bounded and
//! reused; in the steady state nothing is allocated and no lock is taken. `docs/transports.md` shows a transport made
//! from this in one file.

mod link;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::AbortHandle;

use crate::health::{Health, TransportKind};
use crate::path::{CloseReason, PathDatagram, PathEvent, PathId, Transport, TransportCounters};
use crate::poll::Waker;
use crate::udp::Flushed;

use link::{Connection, Shared};
pub use link::{Frame, Link};

/// Longest datagram through an exchange, in bytes.
pub const FRAME_LEN_MAX: usize = 4096;

/// Datagrams of one connection in a row, before the next one gets its turn.
const TURN_DATAGRAMS: usize = 64;

/// Bounds of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct ExchangeLimits {
    /// Connections at the same time; more are turned away.
    pub connections_max: usize,
    /// Datagrams that wait per connection and direction.
    pub queue_datagrams_max: usize,
}

impl Default for ExchangeLimits {
    fn default() -> Self {
        Self { connections_max: 1024, queue_datagrams_max: 256 }
    }
}

/// Starts the tokio side of a path that the data-plane thread opens.
pub type Dial = Box<dyn FnMut(Link) + Send>;

/// The data-plane thread's side; a [`Transport`].
pub struct Exchange {
    kind: TransportKind,
    local: Option<SocketAddr>,
    shared: Arc<Shared>,
    dial: Option<Dial>,
    connections: HashMap<u64, Arc<Connection>>,
    /// The slot that was handed out last.
    pending: Option<(Arc<Connection>, Frame)>,
    /// The connection that [`Exchange::next_received`] is at, and how many more it may have.
    turn: Option<(Arc<Connection>, usize)>,
    /// Connections with new datagrams since the last flush.
    dirty: Vec<Arc<Connection>>,
    events: VecDeque<PathEvent>,
    flushed: Flushed,
    counters: TransportCounters,
    tasks: Vec<AbortHandle>,
}

/// Makes links for connections that peers start. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    kind: TransportKind,
    shared: Arc<Shared>,
}

impl Acceptor {
    /// A link for a new connection; `None`, counted, at the limit of connections.
    pub fn accept(&self, peer: SocketAddr, local: Option<IpAddr>) -> Option<Link> {
        let connection = self.shared.connect(self.kind, peer, local)?;
        let link = Link::new(connection, Arc::clone(&self.shared));
        link.opened();
        Some(link)
    }
}

impl Exchange {
    /// An exchange without tasks: give it some with [`Exchange::own`], and links by [`Exchange::acceptor`] or `dial`
    /// (`None` for a transport that only accepts). `waker` wakes the thread that will own the exchange.
    pub fn new(
        kind: TransportKind,
        local: Option<SocketAddr>,
        limits: ExchangeLimits,
        waker: Waker,
        dial: Option<Dial>,
    ) -> Self {
        Self {
            kind,
            local,
            shared: Arc::new(Shared::new(limits, waker)),
            dial,
            connections: HashMap::new(),
            pending: None,
            turn: None,
            dirty: Vec::with_capacity(limits.connections_max),
            events: VecDeque::new(),
            flushed: Flushed::default(),
            counters: TransportCounters::default(),
            tasks: Vec::new(),
        }
    }

    /// Where connections from peers come in.
    pub fn acceptor(&self) -> Acceptor {
        Acceptor { kind: self.kind, shared: Arc::clone(&self.shared) }
    }

    /// Aborts the task when the exchange is dropped.
    pub fn own(&mut self, task: AbortHandle) {
        self.tasks.push(task);
    }

    /// Queues the slot handed out last; a full queue loses its oldest datagram.
    fn commit(&mut self) {
        let Some((connection, frame)) = self.pending.take() else { return };
        self.flushed.sent += 1;
        self.counters.sent += 1;
        if let Some(oldest) = connection.outgoing.force_push(frame) {
            self.shared.recycle(oldest);
            self.flushed.dropped += 1;
            self.counters.dropped_outgoing += 1;
        }
        if !connection.dirty.swap(true, Ordering::AcqRel) {
            self.dirty.push(connection);
        }
    }

    /// As [`Transport::receive`], one datagram at a time, so that the owner can send in between. Give the frame back with
    /// [`Exchange::recycle`]. `None` when nothing waits; a caller that stops before comes back without waiting.
    pub fn next_received(&mut self) -> Option<(PathId, Frame)> {
        loop {
            let (connection, left) = match self.turn.take() {
                Some(turn) => turn,
                None => {
                    let connection = self.shared.ready.pop()?;
                    // Before looking: what comes from here on puts the connection on the list again.
                    connection.scheduled.store(false, Ordering::SeqCst);
                    self.announce(&connection);
                    (connection, TURN_DATAGRAMS)
                }
            };
            if left > 0
                && let Some(frame) = connection.incoming.pop()
            {
                connection.incoming_room.notify_one();
                self.counters.received += 1;
                let path = connection.path;
                self.turn = Some((connection, left - 1));
                return Some((path, frame));
            }
            let ended = connection.closed();
            // Asked after the reason: what came before the end is handed out first.
            if !connection.incoming.is_empty() {
                self.shared.schedule(&connection);
            } else if let Some(reason) = ended {
                self.forget(connection.path, reason);
            }
        }
    }

    /// Gives a frame back for reuse.
    pub fn recycle(&self, frame: Frame) {
        self.shared.recycle(frame);
    }

    /// Notices that a connection has opened.
    fn announce(&mut self, connection: &Arc<Connection>) {
        let path = connection.path;
        if connection.is_open() && !connection.announced.swap(true, Ordering::Relaxed) {
            self.connections.insert(path.connection, Arc::clone(connection));
            self.events.push_back(PathEvent::Opened(path));
        }
    }

    /// Hands out what waits at one connection and notices its opening and its end. Returns how many, and whether it
    /// must be looked at again.
    fn drain(
        &mut self,
        connection: &Arc<Connection>,
        budget: usize,
        each: &mut dyn FnMut(PathDatagram<'_>),
    ) -> (usize, bool) {
        let path = connection.path;
        self.announce(connection);
        let mut count = 0;
        while count < budget {
            let Some(mut frame) = connection.incoming.pop() else { break };
            each(PathDatagram { bytes: frame.bytes_mut(), path, ecn: 0 });
            self.shared.recycle(frame);
            count += 1;
        }
        if count > 0 {
            connection.incoming_room.notify_one();
        }
        if !connection.incoming.is_empty() {
            return (count, true);
        }
        if let Some(reason) = connection.closed() {
            // Asked again after the reason: what came before the end has been handed out.
            if !connection.incoming.is_empty() {
                return (count, true);
            }
            self.forget(path, reason);
        }
        (count, false)
    }

    fn forget(&mut self, path: PathId, reason: CloseReason) {
        // The connection may be on the ready list twice in a row; it ends once.
        if self.connections.remove(&path.connection).is_some() {
            self.events.push_back(PathEvent::Closed(path, reason));
            self.shared.disconnect();
        }
    }
}

impl Transport for Exchange {
    fn kind(&self) -> TransportKind {
        self.kind
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        self.local.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    fn datagram_len_max(&self) -> usize {
        FRAME_LEN_MAX
    }

    fn open(&mut self, peer: SocketAddr) -> io::Result<PathId> {
        let Some(dial) = &mut self.dial else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        let Some(connection) = self.shared.connect(self.kind, peer, None) else {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        };
        let path = connection.path;
        self.connections.insert(path.connection, Arc::clone(&connection));
        dial(Link::new(connection, Arc::clone(&self.shared)));
        Ok(path)
    }

    fn close(&mut self, path: PathId) {
        if let Some(connection) = self.connections.get(&path.connection) {
            connection.request_close();
        }
    }

    fn slot(&mut self, path: PathId, len: usize) -> Option<&mut [u8]> {
        self.commit();
        let connection = self.connections.get(&path.connection).filter(|c| c.path == path && c.accepts());
        let (Some(connection), true) = (connection, (1..=FRAME_LEN_MAX).contains(&len)) else {
            self.flushed.dropped += 1;
            self.counters.dropped_outgoing += 1;
            return None;
        };
        let frame = self.shared.frame(len);
        let (_, frame) = self.pending.insert((Arc::clone(connection), frame));
        Some(frame.bytes_mut())
    }

    fn cancel(&mut self) {
        if let Some((_, frame)) = self.pending.take() {
            self.shared.recycle(frame);
        }
    }

    fn flush(&mut self) -> Flushed {
        self.commit();
        for connection in self.dirty.drain(..) {
            connection.dirty.store(false, Ordering::Release);
            connection.outgoing_ready.notify_one();
        }
        std::mem::take(&mut self.flushed)
    }

    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(PathDatagram<'_>)) -> io::Result<usize> {
        let mut count = 0;
        // Once around the list at most: a connection that is put back waits for the next call.
        for _ in 0..self.shared.ready.len() {
            if count >= budget {
                break;
            }
            let Some(connection) = self.shared.ready.pop() else { break };
            // Before looking: what comes from here on puts the connection on the list again.
            connection.scheduled.store(false, Ordering::SeqCst);
            let (got, again) = self.drain(&connection, budget - count, each);
            count += got;
            if again {
                self.shared.schedule(&connection);
            }
        }
        if !self.shared.ready.is_empty() {
            self.shared.waker.wake();
        }
        self.counters.received += count as u64;
        Ok(count)
    }

    fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn health(&self, path: PathId) -> Option<Health> {
        self.connections.get(&path.connection).map(|c| c.health())
    }

    fn counters(&self) -> TransportCounters {
        let lost = self.shared.lost_outgoing.load(Ordering::Relaxed);
        TransportCounters {
            dropped_outgoing: self.counters.dropped_outgoing + lost,
            dropped_incoming: self.shared.dropped_incoming.load(Ordering::Relaxed),
            refused_connections: self.shared.refused.load(Ordering::Relaxed),
            ..self.counters
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for connection in self.connections.values() {
            connection.request_close();
        }
        self.shared.end();
        while let Some(connection) = self.shared.ready.pop() {
            connection.request_close();
        }
    }
}
