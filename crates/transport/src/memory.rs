//! A transport in memory, for tests: addresses on a network that is a value.
//!
//! Connectionless like UDP, with the same promises and losses: a full receive queue drops its oldest datagram. A lock
//! guards the network, which is why it is for tests only.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::health::{Health, TransportKind};
use crate::path::{CloseReason, PathDatagram, PathEvent, PathId, Transport, TransportCounters};
use crate::poll::Waker;
use crate::udp::{DATAGRAM_LEN_MAX, Flushed};

/// Datagrams that wait at one address.
pub const QUEUE_DATAGRAMS_MAX: usize = 1024;

/// A network that addresses join. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    ends: Arc<Mutex<BTreeMap<SocketAddr, End>>>,
}

struct End {
    waker: Waker,
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    dropped: u64,
}

impl MemoryNetwork {
    /// A network without addresses.
    pub fn new() -> Self {
        Self::default()
    }

    /// A transport at `address`; `waker` wakes the thread that owns it.
    ///
    /// # Errors
    /// `AddrInUse`.
    pub fn bind(&self, address: SocketAddr, waker: Waker) -> io::Result<MemoryTransport> {
        let mut ends = self.lock();
        if ends.contains_key(&address) {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        ends.insert(address, End { waker, queue: VecDeque::new(), dropped: 0 });
        drop(ends);
        Ok(MemoryTransport {
            network: self.clone(),
            address,
            written: Vec::new(),
            incoming: VecDeque::new(),
            events: VecDeque::new(),
            flushed: Flushed::default(),
            counters: TransportCounters::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, End>> {
        // A test that panicked elsewhere leaves the queues whole.
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One address on a [`MemoryNetwork`].
pub struct MemoryTransport {
    network: MemoryNetwork,
    address: SocketAddr,
    written: Vec<(SocketAddr, Vec<u8>)>,
    incoming: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<PathEvent>,
    flushed: Flushed,
    counters: TransportCounters,
}

impl MemoryTransport {
    fn path(&self, peer: SocketAddr) -> PathId {
        PathId { kind: TransportKind::Memory, peer, local: Some(self.address.ip()), connection: 0 }
    }
}

impl Transport for MemoryTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Memory
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn datagram_len_max(&self) -> usize {
        DATAGRAM_LEN_MAX
    }

    fn open(&mut self, peer: SocketAddr) -> io::Result<PathId> {
        let path = self.path(peer);
        self.events.push_back(PathEvent::Opened(path));
        Ok(path)
    }

    fn close(&mut self, path: PathId) {
        self.events.push_back(PathEvent::Closed(path, CloseReason::Requested));
    }

    fn slot(&mut self, path: PathId, len: usize) -> Option<&mut [u8]> {
        if path.kind != TransportKind::Memory || !(1..=DATAGRAM_LEN_MAX).contains(&len) {
            self.flushed.dropped += 1;
            self.counters.dropped_outgoing += 1;
            return None;
        }
        self.written.push((path.peer, vec![0; len]));
        self.written.last_mut().map(|(_, bytes)| &mut bytes[..])
    }

    fn cancel(&mut self) {
        self.written.pop();
    }

    fn flush(&mut self) -> Flushed {
        let mut ends = self.network.lock();
        for (peer, bytes) in self.written.drain(..) {
            self.flushed.sent += 1;
            self.counters.sent += 1;
            // As on a real network, nobody says that nobody is there.
            let Some(end) = ends.get_mut(&peer) else { continue };
            if end.queue.len() == QUEUE_DATAGRAMS_MAX {
                end.queue.pop_front();
                end.dropped += 1;
            }
            end.queue.push_back((self.address, bytes));
            end.waker.wake();
        }
        std::mem::take(&mut self.flushed)
    }

    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(PathDatagram<'_>)) -> io::Result<usize> {
        let mut ends = self.network.lock();
        if let Some(end) = ends.get_mut(&self.address) {
            let count = end.queue.len().min(budget);
            self.incoming.extend(end.queue.drain(..count));
            if !end.queue.is_empty() {
                end.waker.wake();
            }
            self.counters.dropped_incoming = end.dropped;
        }
        drop(ends);
        let mut count = 0;
        while let Some((peer, mut bytes)) = self.incoming.pop_front() {
            each(PathDatagram { bytes: &mut bytes, path: self.path(peer), ecn: 0 });
            count += 1;
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

    fn health(&self, _path: PathId) -> Option<Health> {
        None
    }

    fn counters(&self) -> TransportCounters {
        self.counters
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.network.lock().remove(&self.address);
    }
}
