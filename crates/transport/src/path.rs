//! The one interface of every transport: datagrams to and from paths.
//!
//! A [`Transport`] lives in the thread that seals and opens records. UDP does its system calls right there. Transports
//! that need a runtime (TCP, QUIC) run on tokio and exchange datagrams with that thread through bounded queues
//! ([`crate::exchange`]); the thread sees the same interface.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::health::{Health, TransportKind};
use crate::udp::Flushed;

/// Names a path of one transport. A small value, to be copied, compared and kept with a session, as an address is.
///
/// Where datagrams come from and where answers go. For UDP it is the pair of addresses; for transports with connections
/// it is the connection, and the addresses say where it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathId {
    /// The transport that knows the path.
    pub kind: TransportKind,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Our address, where known.
    pub local: Option<IpAddr>,
    /// Number of the connection, never used twice by one transport; 0 for transports without connections.
    pub connection: u64,
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.peer)?;
        if self.connection != 0 {
            write!(f, "#{}", self.connection)?;
        }
        Ok(())
    }
}

/// One datagram that came over a path, inside the transport's buffers.
#[derive(Debug)]
pub struct PathDatagram<'a> {
    /// Its bytes; records are opened in place.
    pub bytes: &'a mut [u8],
    /// Where it came from; answers go there.
    pub path: PathId,
    /// ECN bits of the outer header (RFC 3168), 0 where the transport hides them.
    pub ecn: u8,
}

/// News of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// The path carries datagrams: an [`Transport::open`] succeeded, or a peer connected.
    Opened(PathId),
    /// Nothing comes or goes over the path any more; its id is not used again.
    Closed(PathId, CloseReason),
}

/// Why a path ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Requested,
    /// The peer closed it.
    #[error("closed by the peer")]
    Peer,
    /// The peer refused the connection.
    #[error("refused by the peer")]
    Refused,
    /// The peer cannot be reached, or the connection broke.
    #[error("peer unreachable")]
    Unreachable,
    /// Nothing came in time.
    #[error("timed out")]
    TimedOut,
    /// The peer broke the transport's protocol, TLS included.
    #[error("transport protocol violated")]
    Protocol,
    /// The limit of connections is reached.
    #[error("too many connections")]
    Limit,
}

/// What a transport counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransportCounters {
    /// Datagrams taken for sending.
    pub sent: u64,
    /// Datagrams handed out by `receive`.
    pub received: u64,
    /// Outgoing datagrams dropped: a full queue or socket (the oldest goes first), a path that is gone, a bad length.
    pub dropped_outgoing: u64,
    /// Incoming datagrams dropped because their queue was full.
    pub dropped_incoming: u64,
    /// Connections turned away at the limit.
    pub refused_connections: u64,
}

/// Moves datagrams over paths. Everything here returns at once; nothing blocks.
///
/// The owner waits for [`Transport::readable`] (or for the waker that the transport was made with), then calls
/// [`Transport::receive`] and takes [`Transport::poll_event`] until it is empty. It writes outgoing datagrams into
/// [`Transport::slot`]s and ends a batch with [`Transport::flush`].
///
/// A transport may lose, duplicate and reorder datagrams; it never cuts, joins or alters one.
pub trait Transport: Send {
    /// What it is.
    fn kind(&self) -> TransportKind;

    /// The address that peers reach it at, or that it sends from.
    ///
    /// # Errors
    /// The system's error, or `Unsupported` for a transport that only opens paths.
    fn local_address(&self) -> io::Result<SocketAddr>;

    /// Longest datagram that fits, in bytes.
    fn datagram_len_max(&self) -> usize;

    /// Starts a path to a peer. Its id is good at once: datagrams written before [`PathEvent::Opened`] wait, within the
    /// path's bound. A path that cannot be made ends in [`PathEvent::Closed`].
    ///
    /// # Errors
    /// `Unsupported` for a transport that only accepts; `QuotaExceeded` at the limit of connections.
    fn open(&mut self, peer: SocketAddr) -> io::Result<PathId>;

    /// Ends a path; datagrams under way may be lost. Unknown paths are ignored.
    fn close(&mut self, path: PathId);

    /// A slot for the next datagram over `path`: write all of it. `None`, counted as dropped, when the path is gone or
    /// `len` is 0 or too long. The datagram is on its way at the next `slot` or `flush`, no later.
    fn slot(&mut self, path: PathId, len: usize) -> Option<&mut [u8]>;

    /// Takes back the last slot.
    fn cancel(&mut self);

    /// Sends everything that was written.
    fn flush(&mut self) -> Flushed;

    /// Hands out what came, at most about `budget` datagrams (a started batch is finished). Returns how many. When more
    /// is left, the next wait returns at once.
    ///
    /// # Errors
    /// The socket's error. The transport stays usable.
    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(PathDatagram<'_>)) -> io::Result<usize>;

    /// The next event, found by earlier calls of `receive`. A path's datagrams may be seen before its `Opened`.
    fn poll_event(&mut self) -> Option<PathEvent>;

    /// A descriptor to wait for; `None` when the waker tells that something came.
    fn readable(&self) -> Option<BorrowedFd<'_>>;

    /// What the transport itself knows of a path's health; `None` where only the peers' probes know.
    fn health(&self, path: PathId) -> Option<Health>;

    /// What was counted so far.
    fn counters(&self) -> TransportCounters;

    /// Copies a datagram into a slot; false when there was none.
    fn send(&mut self, path: PathId, datagram: &[u8]) -> bool {
        match self.slot(path, datagram.len()) {
            Some(slot) => {
                slot.copy_from_slice(datagram);
                true
            }
            None => false,
        }
    }
}
