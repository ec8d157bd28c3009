//! TUN devices: creation, addresses and routes, and batched reads and writes with segmentation offload.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;

/// How a TUN device is made.
#[derive(Debug, Clone)]
pub struct TunOptions {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// Ask for the vnet header with TSO and USO. Falls back where the kernel lacks it.
    pub offload: bool,
    /// Transmit queue length, in packets; 0 leaves the kernel's default.
    pub queue_packets: u32,
}

/// Why a TUN device could not be made; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` is missing.
    #[error(
        "/dev/net/tun does not exist: load the tun module (modprobe tun) or pass the device to the container"
    )]
    NoDevice,
    /// `CAP_NET_ADMIN` is missing.
    #[error("no permission to create TUN device {name}: run as root or grant CAP_NET_ADMIN")]
    Permission {
        /// The interface.
        name: String,
    },
    /// The interface is already in use by another process.
    #[error("TUN device {name} is in use: stop the other process or choose another name")]
    Busy {
        /// The interface.
        name: String,
    },
    /// Anything else.
    #[error("cannot set up TUN device {name}")]
    Other {
        /// The interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A TUN device with its file descriptor. Dropping the last descriptor removes the interface.
pub struct Tun {
    _private: (),
}

impl Tun {
    /// Creates the device, sets addresses and MTU, and brings it up.
    ///
    /// # Errors
    /// [`TunError`].
    pub fn create(_options: &TunOptions) -> Result<Self, TunError> {
        todo!()
    }

    /// Takes over a descriptor made by [`Tun::create`] in another process and inherited from it. Reads the vnet-header
    /// mode from the kernel.
    ///
    /// # Errors
    /// When the descriptor is not a TUN device.
    pub fn from_fd(_fd: OwnedFd) -> Result<Self, TunError> {
        todo!()
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        todo!()
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        todo!()
    }

    /// Reads what waits, without blocking, and calls `each` for every inner packet (TSO and USO runs are split, checksums
    /// completed). Each packet comes as `HEADROOM ‖ packet ‖ TAILROOM` (see [`crate::batch`]), ready for sealing in
    /// place. Reads at most `budget` packets (a started run is finished). Returns how many; 0 when nothing waits.
    ///
    /// # Errors
    /// The device's error.
    pub fn receive(
        &self,
        _buffers: &mut TunReceiveBuffers,
        _budget: usize,
        _each: &mut dyn FnMut(&mut [u8]),
    ) -> io::Result<usize> {
        todo!()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}

/// Buffers for reads, made once per thread.
pub struct TunReceiveBuffers {
    _private: (),
}

impl TunReceiveBuffers {
    /// Room for one 64 KiB run and its segments.
    pub fn new() -> Self {
        todo!()
    }
}

impl Default for TunReceiveBuffers {
    fn default() -> Self {
        Self::new()
    }
}

/// Collects inner packets for the device and writes runs of one TCP or UDP flow as one superpacket (GRO). Packets of one
/// flow keep their order. Made once; pushing allocates nothing. A packet is copied in.
pub struct TunSendBatch {
    _private: (),
}

/// What a flush of inner packets did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Packets handed to the kernel.
    pub packets: u64,
    /// Packets that the device refused.
    pub dropped: u64,
}

impl TunSendBatch {
    /// Room for a full batch.
    pub fn new() -> Self {
        todo!()
    }

    /// Adds a packet; writes to `tun` by itself when full.
    pub fn push(&mut self, _tun: &Tun, _packet: &[u8]) {
        todo!()
    }

    /// Writes everything.
    pub fn flush(&mut self, _tun: &Tun) -> Written {
        todo!()
    }
}

impl Default for TunSendBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds a route for `destination` through interface `index`; replaces an equal one.
///
/// # Errors
/// The kernel's answer.
pub async fn add_route(_destination: IpNet, _index: u32, _metric: Option<u32>) -> io::Result<()> {
    todo!()
}
