//! TUN devices: creation, addresses and routes, and batched reads and writes with segmentation offload.

mod checksum;
mod coalesce;
mod ecn;
mod flow;
mod mss;
#[doc(hidden)]
pub mod raw;
mod route;
mod split;
mod too_big;
mod vnet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;

use crate::batch::{HEADROOM, TAILROOM};
use crate::sys;

pub use coalesce::{TunSendBatch, Written};
pub use ecn::{apply_outer_ecn, ecn_of};
pub use mss::clamp_mss;
pub use route::{add_address, add_route, delete_address, delete_route};
pub use too_big::{ErrorPace, TOO_BIG_LEN_MAX, fragment_ipv4, packet_too_big};

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

/// Longest vnet header that is understood (the one with the merged-buffers field).
const VNET_HEADER_LEN_MAX: usize = 12;
/// Largest superpacket, in bytes.
const SUPERPACKET_LEN_MAX: usize = 65_536;

const _: () = assert!(VNET_HEADER_LEN_MAX <= HEADROOM, "the vnet header is read into the headroom");

/// A TUN device with its file descriptor. Dropping the last descriptor removes the interface.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    index: u32,
    /// Length of the vnet header, 0 without one.
    header_len: usize,
    udp_offload: bool,
}

impl Tun {
    /// Creates the device, sets addresses and MTU, and brings it up.
    ///
    /// The descriptor is close-on-exec. To hand it to a child process, pass a clone
    /// (`tun.as_fd().try_clone_to_owned()`) as one of the child's standard streams, or clear the flag on it in the
    /// child, and take it over there with [`Tun::from_fd`].
    ///
    /// # Errors
    /// [`TunError`].
    pub fn create(options: &TunOptions) -> Result<Self, TunError> {
        let name = options.name.as_str();
        let failed = |error| TunError::from_io(name, error);
        let mut builder = tun_rs::DeviceBuilder::new().name(name).mtu(options.mtu).enable(false);
        let queue_packets = options.queue_packets;
        let offload = options.offload;
        builder = builder.with(|b| {
            b.offload(offload);
            if queue_packets > 0 {
                b.tx_queue_len(queue_packets);
            }
        });
        let device = match builder.build_sync() {
            // A kernel that lacks the offloads refuses them with EINVAL; anything else is final.
            Err(error) if offload && error.raw_os_error() == Some(libc::EINVAL) => {
                let plain = TunOptions { offload: false, ..options.clone() };
                return Self::create(&plain);
            }
            built => built.map_err(failed)?,
        };
        for network in &options.addresses {
            match network {
                IpNet::V4(v4) => device.add_address_v4(v4.addr(), v4.prefix_len()),
                IpNet::V6(v6) => device.add_address_v6(v6.addr(), v6.prefix_len()),
            }
            .map_err(failed)?;
        }
        device.enabled(true).map_err(failed)?;
        Self::from_fd(device.as_fd().try_clone_to_owned().map_err(failed)?)
    }

    /// Takes over a descriptor made by [`Tun::create`] in another process and inherited from it. Reads the vnet-header
    /// mode from the kernel, and makes the descriptor non-blocking.
    ///
    /// # Errors
    /// When the descriptor is not a TUN device, or its interface is not in this network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TunError> {
        let (name, flags) =
            sys::tun_interface(fd.as_fd()).map_err(|e| TunError::from_io("(inherited)", e))?;
        let failed = |error| TunError::from_io(&name, error);
        let mut header_len = 0;
        let mut udp_offload = false;
        if flags & libc::IFF_VNET_HDR != 0 {
            header_len = sys::tun_header_len(fd.as_fd()).map_err(failed)?;
            if !(vnet::HEADER_LEN..=VNET_HEADER_LEN_MAX).contains(&header_len) {
                sys::set_tun_header_len(fd.as_fd(), vnet::HEADER_LEN as i32).map_err(failed)?;
                header_len = vnet::HEADER_LEN;
            }
            // The kernel does not tell which offloads are on; asking for them again does, and changes nothing.
            let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
            let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
            udp_offload = sys::set_tun_offloads(fd.as_fd(), tcp | udp).is_ok();
            if !udp_offload {
                sys::set_tun_offloads(fd.as_fd(), tcp).map_err(failed)?;
            }
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|e| failed(e.into()))?;
        let index = interface_index(&name).map_err(failed)?;
        Ok(Self { fd, index, header_len, udp_offload, name })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// True when the device passes TCP superpackets (and incomplete checksums) in both directions.
    pub fn has_tcp_offload(&self) -> bool {
        self.header_len > 0
    }

    /// True when the device passes UDP superpackets in both directions (Linux 6.2 and later).
    pub fn has_udp_offload(&self) -> bool {
        self.udp_offload
    }

    /// Reads what waits, without blocking, and calls `each` for every inner packet (TSO and USO runs are split, checksums
    /// completed). Each packet comes as `HEADROOM ‖ packet ‖ TAILROOM` (see [`crate::batch`]), ready for sealing in
    /// place. Reads at most `budget` packets (a started run is finished). Returns how many; 0 when nothing waits.
    ///
    /// # Errors
    /// The device's error.
    pub fn receive(
        &self,
        buffers: &mut TunReceiveBuffers,
        budget: usize,
        each: &mut dyn FnMut(&mut [u8]),
    ) -> io::Result<usize> {
        // The vnet header lands at the end of the headroom, so that the packet follows it directly.
        let start = HEADROOM - self.header_len;
        let end = HEADROOM + SUPERPACKET_LEN_MAX;
        let mut packets = 0;
        while packets < budget {
            let len = match rustix::io::read(&self.fd, &mut buffers.bytes[start..end]) {
                Ok(len) => len,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            };
            match self.split(&mut buffers.bytes, len, each) {
                Ok(count) => packets += count,
                Err(split::Malformed) => {
                    buffers.malformed += 1;
                    packets += 1;
                }
            }
        }
        Ok(packets)
    }

    fn split(
        &self,
        bytes: &mut [u8],
        len: usize,
        each: &mut dyn FnMut(&mut [u8]),
    ) -> Result<usize, split::Malformed> {
        let packet_len = len.checked_sub(self.header_len).ok_or(split::Malformed)?;
        let header = if self.header_len == 0 {
            vnet::VnetHeader::PLAIN
        } else {
            bytes[HEADROOM - self.header_len..]
                .first_chunk()
                .and_then(vnet::VnetHeader::parse)
                .ok_or(split::Malformed)?
        };
        split::split(bytes, packet_len, &header, each)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Buffers for reads, made once per thread.
pub struct TunReceiveBuffers {
    bytes: Box<[u8]>,
    malformed: u64,
}

impl TunReceiveBuffers {
    /// Room for one 64 KiB run; its segments are made inside.
    pub fn new() -> Self {
        Self { bytes: vec![0; HEADROOM + SUPERPACKET_LEN_MAX + TAILROOM].into_boxed_slice(), malformed: 0 }
    }

    /// Reads that were dropped because the packet contradicted its vnet header (none should).
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

impl Default for TunReceiveBuffers {
    fn default() -> Self {
        Self::new()
    }
}

impl TunError {
    fn from_io(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)
                if !std::path::Path::new("/dev/net/tun").exists() =>
            {
                Self::NoDevice
            }
            Some(libc::EPERM | libc::EACCES) => Self::Permission { name },
            Some(libc::EBUSY) => Self::Busy { name },
            _ => Self::Other { name, source },
        }
    }
}

fn interface_index(name: &str) -> io::Result<u32> {
    let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&any, name)?)
}

#[cfg(test)]
mod proptests;
