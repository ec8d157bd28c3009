//! The ways in besides UDP: TCP, TLS and QUIC. Their sockets belong to tokio; here are the ends of their bounded queues,
//! which cost the data plane nothing while they are empty.

use std::io;
use std::sync::Arc;

use jump_session::path::{Path, Transport};
use jump_transport::exchange::{Exchange, Frame};
use jump_transport::health::TransportKind;
use jump_transport::path::{PathId, Transport as _, TransportCounters};
use jump_transport::poll::Waker;
use jump_transport::{quic, tcp, tls};
use tokio::runtime::Handle;

use crate::config::Doorway;

/// The longest datagram that a closed path swallows.
const VOID_LEN: usize = 65_536;

/// All doors.
#[derive(Default)]
pub struct Doors {
    open: Vec<(Transport, Exchange)>,
    /// The door that the last slot belongs to; `None` when the path was gone.
    last: Option<usize>,
    void: Box<[u8]>,
}

impl Doors {
    /// Listens at one more doorway; `waker` wakes the data plane.
    ///
    /// # Errors
    /// The system's error, or TLS's as `InvalidInput`.
    pub fn open(&mut self, doorway: &Doorway, runtime: &Handle, waker: Waker) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let address = doorway.listen;
        let exchange = match doorway.transport {
            Transport::Udp => return Err(io::Error::from(io::ErrorKind::Unsupported)),
            Transport::Quic => {
                let tls = tls::throwaway_server().map_err(invalid)?;
                quic::listener(address, tls, quic::QuicLimits::default(), runtime, waker)?
            }
            Transport::Tcp => tcp::listener(address, None, tcp::TcpLimits::default(), runtime, waker)?,
            Transport::Tls => {
                let tls = Arc::new(tls::throwaway_server().map_err(invalid)?);
                tcp::listener(address, Some(tls), tcp::TcpLimits::default(), runtime, waker)?
            }
        };
        if self.void.is_empty() {
            self.void = vec![0; VOID_LEN].into_boxed_slice();
        }
        self.open.push((doorway.transport, exchange));
        Ok(())
    }

    /// How many doors there are.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// The next datagram that came in by door `number`; give its frame back with [`Self::recycle`].
    pub(super) fn receive(&mut self, number: usize) -> Option<(Path, Frame)> {
        let (transport, exchange) = self.open.get_mut(number)?;
        let received = exchange.next_received();
        // The session machines notice by themselves when a path is of no more use.
        while exchange.poll_event().is_some() {}
        let (path, frame) = received?;
        let PathId { peer, local, connection, .. } = path;
        Some((Path { transport: *transport, peer, connection, local }, frame))
    }

    pub(super) fn recycle(&self, number: usize, frame: Frame) {
        if let Some((_, exchange)) = self.open.get(number) {
            exchange.recycle(frame);
        }
    }

    /// A slot of `len` bytes for a datagram over `path`; the void when the path is gone.
    pub(super) fn slot(&mut self, path: Path, len: usize) -> &mut [u8] {
        let door = self.open.iter().position(|(transport, _)| *transport == path.transport);
        self.last = None;
        if let Some(number) = door {
            let id = PathId {
                kind: kind_of(path.transport),
                peer: path.peer,
                local: path.local,
                connection: path.connection,
            };
            let (_, exchange) = &mut self.open[number];
            if let Some(slot) = exchange.slot(id, len) {
                self.last = Some(number);
                return slot;
            }
        }
        if self.void.len() < len {
            self.void = vec![0; len].into_boxed_slice();
        }
        &mut self.void[..len]
    }

    /// Takes back the last slot.
    pub(super) fn cancel(&mut self) {
        if let Some((_, exchange)) = self.last.and_then(|number| self.open.get_mut(number)) {
            exchange.cancel();
        }
    }

    /// Sends everything; returns how many datagrams were dropped.
    pub(super) fn flush(&mut self) -> u64 {
        self.open.iter_mut().map(|(_, exchange)| exchange.flush().dropped).sum()
    }

    /// What each door counted.
    pub(super) fn counters(&self) -> impl Iterator<Item = (Transport, TransportCounters)> {
        self.open.iter().map(|(transport, exchange)| (*transport, exchange.counters()))
    }
}

const fn kind_of(transport: Transport) -> TransportKind {
    match transport {
        Transport::Udp => TransportKind::Udp,
        Transport::Quic => TransportKind::Quic,
        Transport::Tcp | Transport::Tls => TransportKind::Tcp,
    }
}
