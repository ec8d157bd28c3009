//! The sockets of the machine's paths.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jump_session::client::{PathError, PathId};
use jump_transport::udp::{Route, SendBatch, UdpOptions, UdpSocket};

use super::routes::MARK;

/// Asked of the kernel for each socket.
const BUFFER_BYTES: usize = 4 << 20;

/// One path's socket, connected to its gateway.
pub(super) struct Path {
    pub(super) socket: UdpSocket,
    pub(super) gateway: SocketAddr,
}

/// All open paths.
#[derive(Default)]
pub(super) struct Paths {
    open: BTreeMap<PathId, Path>,
}

/// Sealed records on their way out, all for one path at a time.
pub(super) struct Outgoing {
    batch: SendBatch,
    path: Option<PathId>,
}

impl Paths {
    pub(super) fn open(&mut self, id: PathId, gateway: SocketAddr) -> io::Result<()> {
        let options = UdpOptions { buffer_bytes: BUFFER_BYTES, mark: Some(MARK), ..UdpOptions::default() };
        let any = match gateway.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0), &options)?;
        socket.connect(gateway)?;
        self.open.insert(id, Path { socket, gateway });
        Ok(())
    }

    pub(super) fn close(&mut self, id: PathId) {
        self.open.remove(&id);
    }

    pub(super) fn get(&self, id: PathId) -> Option<&Path> {
        self.open.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PathId, &Path)> {
        self.open.iter().map(|(id, path)| (*id, path))
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Our address towards `gateway` by the routes of now; `None` when there is no way.
    pub(super) fn source_towards(gateway: SocketAddr) -> Option<IpAddr> {
        let mut probe = Self::default();
        probe.open(PathId(0), gateway).ok()?;
        probe.get(PathId(0))?.socket.local_address().ok().map(|address| address.ip())
    }
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { batch: SendBatch::new(), path: None }
    }

    /// Queues a datagram with these ECN bits. Returns how many were dropped by a flush that this caused.
    pub(super) fn push(&mut self, paths: &Paths, id: PathId, ecn: u8, datagram: &[u8]) -> Sent {
        let mut sent = Sent::default();
        if self.path != Some(id) {
            sent = self.flush(paths);
        }
        let Some(path) = paths.get(id) else { return sent };
        let route = Route { ecn, ..Route::from(path.gateway) };
        self.batch.slot_from(&path.socket, route, datagram.len()).copy_from_slice(datagram);
        self.path = Some(id);
        sent
    }

    /// Sends what is queued.
    pub(super) fn flush(&mut self, paths: &Paths) -> Sent {
        let Some(id) = self.path.take() else { return Sent::default() };
        let Some(path) = paths.get(id) else {
            self.batch = SendBatch::new();
            return Sent::default();
        };
        let flushed = self.batch.flush(&path.socket);
        Sent { dropped: flushed.dropped, refused: flushed.refused.then_some(id) }
    }
}

/// What a flush did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) dropped: u64,
    pub(super) refused: Option<PathId>,
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
