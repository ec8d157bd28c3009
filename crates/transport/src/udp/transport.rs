//! UDP behind the interface of every transport. A thin wrapper: the data plane may as well use the socket and the
//! batches directly, on its own thread, and does where only UDP is spoken.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::{DATAGRAM_LEN_MAX, Flushed, ReceiveBuffers, Route, SendBatch, UdpSocket};
use crate::health::{Health, TransportKind};
use crate::path::{CloseReason, PathDatagram, PathEvent, PathId, Transport, TransportCounters};

/// A UDP socket with its batches, as a [`Transport`]. Paths are pairs of addresses; none is ever refused or forgotten,
/// so a peer's validity is for the session to prove.
pub struct UdpTransport {
    socket: UdpSocket,
    buffers: ReceiveBuffers,
    batch: SendBatch,
    events: VecDeque<PathEvent>,
    /// Slots that were refused since the last flush.
    refused: u64,
    counters: TransportCounters,
}

impl UdpTransport {
    /// Wraps a bound socket.
    pub fn new(socket: UdpSocket) -> Self {
        Self {
            socket,
            buffers: ReceiveBuffers::new(),
            batch: SendBatch::new(),
            events: VecDeque::new(),
            refused: 0,
            counters: TransportCounters::default(),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

impl Transport for UdpTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Udp
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_address()
    }

    fn datagram_len_max(&self) -> usize {
        DATAGRAM_LEN_MAX
    }

    fn open(&mut self, peer: SocketAddr) -> io::Result<PathId> {
        let path = PathId { kind: TransportKind::Udp, peer, local: None, connection: 0 };
        self.events.push_back(PathEvent::Opened(path));
        Ok(path)
    }

    fn close(&mut self, path: PathId) {
        self.events.push_back(PathEvent::Closed(path, CloseReason::Requested));
    }

    fn slot(&mut self, path: PathId, len: usize) -> Option<&mut [u8]> {
        if path.kind != TransportKind::Udp || !(1..=DATAGRAM_LEN_MAX).contains(&len) {
            self.refused += 1;
            return None;
        }
        let route = Route { destination: path.peer, local: path.local, ecn: 0 };
        Some(self.batch.slot_from(&self.socket, route, len))
    }

    fn cancel(&mut self) {
        self.batch.cancel();
    }

    fn flush(&mut self) -> Flushed {
        let mut flushed = self.batch.flush(&self.socket);
        flushed.dropped += std::mem::take(&mut self.refused);
        self.counters.sent += flushed.sent;
        self.counters.dropped_outgoing += flushed.dropped;
        flushed
    }

    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(PathDatagram<'_>)) -> io::Result<usize> {
        let mut count = 0;
        while count < budget {
            let got = self.socket.receive(&mut self.buffers, &mut |datagram| {
                let path = PathId {
                    kind: TransportKind::Udp,
                    peer: datagram.source,
                    local: datagram.local,
                    connection: 0,
                };
                each(PathDatagram { bytes: datagram.bytes, path, ecn: datagram.ecn });
            })?;
            if got == 0 {
                break;
            }
            count += got;
        }
        self.counters.received += count as u64;
        Ok(count)
    }

    fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn health(&self, _path: PathId) -> Option<Health> {
        None
    }

    fn counters(&self) -> TransportCounters {
        TransportCounters { dropped_incoming: self.buffers.truncated(), ..self.counters }
    }
}
