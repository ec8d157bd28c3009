//! The sockets and connections of the machine's paths.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use jump_session::client::{PathError, PathId};
use jump_session::path::Transport;
use jump_transport::exchange::{Exchange, Frame};
use jump_transport::path::{self, CloseReason, PathEvent, Transport as _};
use jump_transport::poll::Waker;
use jump_transport::udp::{Route, SendBatch, UdpOptions, UdpSocket};
use jump_transport::{quic, tcp, tls};
use rustls_pki_types::ServerName;
use tokio::runtime::Handle;

use super::routes::MARK;

/// Asked of the kernel for each socket.
const BUFFER_BYTES: usize = 4 << 20;

/// One path, connected to its gateway.
pub(super) struct Path {
    pub(super) gateway: SocketAddr,
    carrier: Carrier,
}

enum Carrier {
    Udp {
        socket: UdpSocket,
        address: SocketAddr,
    },
    /// The exchange by its place, and its name for the connection.
    Connection {
        at: usize,
        id: path::PathId,
    },
}

impl Path {
    /// The socket to wait for; `None` when the waker tells.
    pub(super) fn socket(&self) -> Option<&UdpSocket> {
        match &self.carrier {
            Carrier::Udp { socket, .. } => Some(socket),
            Carrier::Connection { .. } => None,
        }
    }
}

/// All open paths.
pub(super) struct Paths {
    open: BTreeMap<PathId, Path>,
    /// The transports that make connections, each from its first use on.
    exchanges: Vec<(Transport, Exchange)>,
    /// By exchange and number of the connection.
    by_connection: HashMap<(usize, u64), PathId>,
    runtime: Handle,
    waker: Waker,
}

/// What came by a connection.
pub(super) enum News {
    Datagram(PathId, Frame, usize),
    Failed(PathId, PathError),
}

/// Sealed records on their way out over UDP, all for one path at a time.
pub(super) struct Outgoing {
    batch: SendBatch,
    path: Option<PathId>,
}

impl Paths {
    /// No path. Connections run on `runtime`, and `waker` wakes the thread that owns the paths.
    pub(super) fn new(runtime: Handle, waker: Waker) -> Self {
        Self { open: BTreeMap::new(), exchanges: Vec::new(), by_connection: HashMap::new(), runtime, waker }
    }

    /// Opens `id` to `address`, which belongs to `gateway`.
    pub(super) fn open(
        &mut self,
        id: PathId,
        gateway: SocketAddr,
        transport: Transport,
        address: SocketAddr,
    ) -> io::Result<()> {
        let carrier = if transport == Transport::Udp {
            Carrier::Udp { socket: connected(address)?, address }
        } else {
            let at = self.exchange(transport)?;
            let connection = self.exchanges[at].1.open(address)?;
            self.by_connection.insert((at, connection.connection), id);
            Carrier::Connection { at, id: connection }
        };
        self.open.insert(id, Path { gateway, carrier });
        Ok(())
    }

    fn exchange(&mut self, transport: Transport) -> io::Result<usize> {
        if let Some(at) = self.exchanges.iter().position(|(kind, _)| *kind == transport) {
            return Ok(at);
        }
        let exchange = connector(transport, &self.runtime, &self.waker)?;
        self.exchanges.push((transport, exchange));
        Ok(self.exchanges.len() - 1)
    }

    pub(super) fn close(&mut self, id: PathId) {
        if let Some(Path { carrier: Carrier::Connection { at, id }, .. }) = self.open.remove(&id) {
            self.by_connection.remove(&(at, id.connection));
            self.exchanges[at].1.close(id);
        }
    }

    pub(super) fn get(&self, id: PathId) -> Option<&Path> {
        self.open.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PathId, &Path)> {
        self.open.iter().map(|(id, path)| (*id, path))
    }

    pub(super) fn clear(&mut self) {
        let all: Vec<PathId> = self.open.keys().copied().collect();
        all.into_iter().for_each(|id| self.close(id));
    }

    /// Sends one datagram at once.
    pub(super) fn send(&mut self, id: PathId, datagram: &[u8]) -> io::Result<()> {
        match self.open.get(&id).map(|path| &path.carrier) {
            Some(Carrier::Udp { socket, address }) => socket.send(*address, datagram),
            Some(Carrier::Connection { at, id }) => {
                let exchange = &mut self.exchanges[*at].1;
                exchange.send(*id, datagram);
                exchange.flush();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Wakes the connections that have something to send; returns how many datagrams were dropped.
    fn flush_connections(&mut self) -> u64 {
        self.exchanges.iter_mut().map(|(_, exchange)| exchange.flush().dropped).sum()
    }

    /// What came by a connection; give a frame back with [`Self::recycle`].
    pub(super) fn next_news(&mut self) -> Option<News> {
        for (at, (_, exchange)) in self.exchanges.iter_mut().enumerate() {
            while let Some((path, frame)) = exchange.next_received() {
                match self.by_connection.get(&(at, path.connection)) {
                    Some(id) => return Some(News::Datagram(*id, frame, at)),
                    None => exchange.recycle(frame),
                }
            }
            while let Some(event) = exchange.poll_event() {
                let PathEvent::Closed(path, reason) = event else { continue };
                if let Some(id) = self.by_connection.remove(&(at, path.connection)) {
                    return Some(News::Failed(id, failure(reason)));
                }
            }
        }
        None
    }

    pub(super) fn recycle(&self, frame: Frame, at: usize) {
        if let Some((_, exchange)) = self.exchanges.get(at) {
            exchange.recycle(frame);
        }
    }

    /// Our address towards `gateway` by the routes of now; `None` when there is no way.
    pub(super) fn source_towards(gateway: SocketAddr) -> Option<IpAddr> {
        connected(gateway).ok()?.local_address().ok().map(|address| address.ip())
    }
}

fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let options = UdpOptions { buffer_bytes: BUFFER_BYTES, mark: Some(MARK), ..UdpOptions::default() };
    let any = match address.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0), &options)?;
    socket.connect(address)?;
    Ok(socket)
}

fn connector(transport: Transport, runtime: &Handle, waker: &Waker) -> io::Result<Exchange> {
    let tls =
        || tls::indifferent_client().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error));
    let (runtime, waker) = (runtime.clone(), waker.clone());
    match transport {
        Transport::Udp => Err(io::Error::from(io::ErrorKind::Unsupported)),
        Transport::Quic => {
            let any = |ip: IpAddr| SocketAddr::new(ip, 0);
            let make = |local| {
                let limits = quic::QuicLimits::default();
                let name = tls::SERVER_NAME.to_owned();
                quic::connector(local, Some(MARK), tls()?, name, limits, runtime.clone(), waker.clone())
            };
            // Dual stack where the system has it.
            let (exchange, _) = make(any(Ipv6Addr::UNSPECIFIED.into()))
                .or_else(|_| make(any(Ipv4Addr::UNSPECIFIED.into())))?;
            Ok(exchange)
        }
        Transport::Tcp | Transport::Tls => {
            let wrapped = transport == Transport::Tls;
            let name = ServerName::try_from(tls::SERVER_NAME).map_err(io::Error::other)?;
            let tls = if wrapped { Some((Arc::new(tls()?), name)) } else { None };
            let options = tcp::TcpConnectOptions { tls, mark: Some(MARK), ..Default::default() };
            Ok(tcp::connector(options, runtime, waker))
        }
    }
}

/// What the end of a connection means for its path.
const fn failure(reason: CloseReason) -> PathError {
    match reason {
        CloseReason::Refused | CloseReason::Peer => PathError::Refused,
        CloseReason::Requested
        | CloseReason::Unreachable
        | CloseReason::TimedOut
        | CloseReason::Protocol
        | CloseReason::Limit => PathError::Unreachable,
    }
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { batch: SendBatch::new(), path: None }
    }

    /// Queues a datagram with these ECN bits. Returns how many were dropped by a flush that this caused.
    pub(super) fn push(&mut self, paths: &mut Paths, id: PathId, ecn: u8, datagram: &[u8]) -> Sent {
        let mut sent = Sent::default();
        if self.path.is_some_and(|path| path != id) {
            sent = self.flush(paths);
        }
        match paths.open.get(&id).map(|path| &path.carrier) {
            Some(Carrier::Udp { socket, address }) => {
                let route = Route { ecn, ..Route::from(*address) };
                self.batch.slot_from(socket, route, datagram.len()).copy_from_slice(datagram);
                self.path = Some(id);
            }
            Some(Carrier::Connection { at, id }) => {
                paths.exchanges[*at].1.send(*id, datagram);
            }
            None => {}
        }
        sent
    }

    /// Sends what is queued.
    pub(super) fn flush(&mut self, paths: &mut Paths) -> Sent {
        let dropped = paths.flush_connections();
        let Some(id) = self.path.take() else { return Sent { dropped, ..Sent::default() } };
        let Some(socket) = paths.get(id).and_then(Path::socket) else {
            self.batch = SendBatch::new();
            return Sent { dropped, ..Sent::default() };
        };
        let flushed = self.batch.flush(socket);
        Sent {
            dropped: dropped + flushed.dropped,
            refused: flushed.refused.then_some(id),
            too_long: flushed.too_long.then_some(id),
        }
    }
}

/// What a flush did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) dropped: u64,
    pub(super) refused: Option<PathId>,
    /// The device's own network took no datagram that long.
    pub(super) too_long: Option<PathId>,
}

/// True when the socket says that a datagram was longer than the network takes.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// What a socket's error means for its path; `None` when it means nothing.
pub(super) fn path_error(error: &io::Error) -> Option<PathError> {
    use io::ErrorKind as Kind;
    let unreachable =
        [Kind::HostUnreachable, Kind::NetworkUnreachable, Kind::NetworkDown, Kind::AddrNotAvailable];
    if error.kind() == Kind::ConnectionRefused {
        Some(PathError::Refused)
    } else {
        unreachable.contains(&error.kind()).then_some(PathError::Unreachable)
    }
}
