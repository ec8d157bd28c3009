//! The UDP adapter: non-blocking sockets with GSO, GRO and batched system calls where the kernel has them.

mod send;
mod transport;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use crate::batch::Datagram;
use crate::sys;

pub use send::{DATAGRAM_LEN_MAX, Flushed, SendBatch};
pub use transport::UdpTransport;

/// Messages of one batched receive; each can be a GRO run of up to 64 datagrams.
const RECEIVE_MESSAGES: usize = 32;
/// Room per message: the largest GRO run.
const RECEIVE_STRIDE: usize = 65_536;
/// Entries of the error queue taken per empty receive, so that a flood of ICMP cannot hold the thread.
const QUEUED_ERRORS_BUDGET: usize = 16;

/// How a UDP socket is opened.
#[derive(Debug, Clone, Default)]
pub struct UdpOptions {
    /// Lets several sockets share the address; the kernel spreads flows over them.
    pub reuse_port: bool,
    /// Receive and send buffer sizes to ask for, in bytes; 0 leaves the kernel's default. A privileged process gets
    /// them also past the system's limit; others get the limit, silently.
    pub buffer_bytes: usize,
    /// Marks outgoing packets (`SO_MARK`), so that a policy route can keep them out of the tunnel.
    pub mark: Option<u32>,
    /// Binds to a network interface by name.
    pub interface: Option<String>,
    /// Hands datagrams to the kernel one by one, never as a run for it to cut, whatever it can do.
    pub unsegmented: bool,
}

/// Where a datagram goes, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The peer.
    pub destination: SocketAddr,
    /// Which of our addresses to send from; `None` leaves it to the kernel. Take it from [`Datagram::local`] to answer
    /// from the address that was asked.
    pub local: Option<IpAddr>,
    /// ECN bits for the outer header (RFC 3168).
    pub ecn: u8,
}

impl From<SocketAddr> for Route {
    fn from(destination: SocketAddr) -> Self {
        Self { destination, local: None, ecn: 0 }
    }
}

/// A non-blocking UDP socket. A socket bound to `[::]` is dual-stack: IPv4 peers appear, and are addressed, as IPv4.
///
/// Datagrams carry "don't fragment" and the kernel's path MTU is ignored, so that path MTU discovery (RFC 8899) is the
/// caller's and no forged ICMP changes it.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    ipv6: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Cleared when the kernel or the interface refuses segmented sends.
    segmentation: AtomicBool,
    /// Set by `connect`: the error queue is then in use.
    connected: AtomicBool,
}

/// Receive buffers of one thread, made once.
pub struct ReceiveBuffers {
    bytes: Box<[u8]>,
    received: [sys::Received; RECEIVE_MESSAGES],
    filled: bool,
    truncated: u64,
}

impl ReceiveBuffers {
    /// Room for one batched receive call: 2 MiB of address space, of which only what is used becomes resident.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; RECEIVE_MESSAGES * RECEIVE_STRIDE].into_boxed_slice(),
            received: [sys::Received::NONE; RECEIVE_MESSAGES],
            filled: false,
            truncated: 0,
        }
    }

    /// True when the last receive took as much as one call can: more may wait. Otherwise the socket was found empty, and
    /// asking again at once costs a system call for nothing.
    pub fn filled(&self) -> bool {
        self.filled
    }

    /// Messages dropped because they did not fit (none should).
    pub fn truncated(&self) -> u64 {
        self.truncated
    }
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self::new()
    }
}

impl UdpSocket {
    /// Opens and binds a socket; port 0 takes a free one.
    ///
    /// # Errors
    /// The system's error; the caller names the address in its message.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> io::Result<Self> {
        let ipv6 = address.is_ipv6();
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if ipv6 {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if let Some(mark) = options.mark {
            socket.set_mark(mark)?;
        }
        if let Some(interface) = &options.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if options.buffer_bytes > 0 {
            set_buffers(&socket, options.buffer_bytes);
        }
        let fd = socket.as_fd();
        // Best effort from here on: each of these is an optimisation or information that an old kernel may lack.
        let dual_stack = ipv6 && address.ip().is_unspecified();
        if ipv6 {
            let _ = sys::set_option(fd, libc::SOL_IPV6, libc::IPV6_RECVTCLASS, 1);
            let _ = sys::set_option(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1);
            let _ = sys::set_option(fd, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE);
        }
        if !ipv6 || dual_stack {
            let _ = sys::set_option(fd, libc::SOL_IP, libc::IP_RECVTOS, 1);
            let _ = sys::set_option(fd, libc::SOL_IP, libc::IP_PKTINFO, 1);
            let _ = sys::set_option(fd, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
        }
        let _ = sys::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        let segmentation = !options.unsegmented && sys::option(fd, libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();
        socket.bind(&address.into())?;
        Ok(Self {
            fd: socket.into(),
            ipv6,
            shared: Arc::new(Shared {
                segmentation: AtomicBool::new(segmentation),
                connected: AtomicBool::new(false),
            }),
        })
    }

    /// Connects to the peer so that ICMP errors arrive as `ConnectionRefused`, `HostUnreachable` or
    /// `NetworkUnreachable`. Only its datagrams arrive from then on.
    ///
    /// # Errors
    /// The system's error.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        // Without this option unreachable hosts and networks are not reported.
        if self.ipv6 {
            let _ = sys::set_option(self.as_fd(), libc::SOL_IPV6, libc::IPV6_RECVERR, 1);
        }
        let _ = sys::set_option(self.as_fd(), libc::SOL_IP, libc::IP_RECVERR, 1);
        rustix::net::connect(&self.fd, &self.in_family(peer))?;
        self.shared.connected.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The bound address.
    ///
    /// # Errors
    /// The system's error.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getsockname(&self.fd)?;
        SocketAddr::try_from(address).map_err(io::Error::from)
    }

    /// A second handle to the same socket, for another thread.
    ///
    /// # Errors
    /// The system's error.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, ipv6: self.ipv6, shared: Arc::clone(&self.shared) })
    }

    /// Receives what is there, without blocking, in one batch, and calls `each` for every datagram (GRO runs are split).
    /// Returns how many; 0 when nothing waits. One call takes a bounded number, so a caller with other work looks
    /// there between calls.
    ///
    /// # Errors
    /// The socket's error, for example `ConnectionRefused` after an ICMP port unreachable on a connected socket. The
    /// socket stays usable.
    pub fn receive(
        &self,
        buffers: &mut ReceiveBuffers,
        each: &mut dyn FnMut(Datagram<'_>),
    ) -> io::Result<usize> {
        buffers.filled = false;
        let count = loop {
            match sys::receive_messages(
                self.as_fd(),
                &mut buffers.bytes,
                RECEIVE_STRIDE,
                &mut buffers.received,
            ) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.receive_error(error),
            }
        };
        buffers.filled = count == RECEIVE_MESSAGES;
        let mut datagrams = 0;
        let messages = buffers.bytes.chunks_exact_mut(RECEIVE_STRIDE);
        for (received, buffer) in buffers.received[..count].iter().zip(messages) {
            if received.truncated {
                buffers.truncated += 1;
                continue;
            }
            datagrams += split_run(received, buffer, each);
        }
        Ok(datagrams)
    }

    /// Sends one datagram without blocking.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full; the caller counts and drops.
    pub fn send(&self, destination: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send_from(Route::from(destination), datagram)
    }

    /// As [`UdpSocket::send`], with a choice of source address and ECN bits.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full; the caller counts and drops.
    pub fn send_from(&self, route: Route, datagram: &[u8]) -> io::Result<()> {
        let message = sys::Outgoing {
            start: 0,
            len: datagram.len(),
            segment_len: 0,
            destination: self.in_family(route.destination),
            local: route.local,
            ecn: route.ecn,
        };
        loop {
            match sys::send_messages(self.as_fd(), datagram, &[message]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The address as this socket's family writes it: a dual-stack socket knows IPv4 peers as mapped addresses.
    fn in_family(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.ipv6 => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => address,
        }
    }

    /// Decides what an error of a receive call means, and empties the error queue (which would otherwise keep the
    /// descriptor ready for ever).
    fn receive_error(&self, error: io::Error) -> io::Result<usize> {
        let mut queued = None;
        if self.shared.connected.load(Ordering::Relaxed) {
            for _ in 0..QUEUED_ERRORS_BUDGET {
                match sys::take_queued_error(self.as_fd()) {
                    Some(0) => {}
                    Some(errno) => queued = queued.or(Some(errno)),
                    None => break,
                }
            }
        }
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        match queued {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(0),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Hands out the datagrams of one received message.
fn split_run(received: &sys::Received, buffer: &mut [u8], each: &mut dyn FnMut(Datagram<'_>)) -> usize {
    let bytes = &mut buffer[..received.len];
    let mut datagram = |bytes| {
        each(Datagram { bytes, source: received.source, local: received.local, ecn: received.ecn });
    };
    if bytes.is_empty() {
        datagram(bytes);
        return 1;
    }
    let mut count = 0;
    for segment in bytes.chunks_mut(received.segment_len) {
        datagram(segment);
        count += 1;
    }
    count
}

/// Asks for buffer sizes: past the system's limit where we may, up to it otherwise.
fn set_buffers(socket: &Socket, bytes: usize) {
    let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
    if sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted).is_err() {
        let _ = socket.set_recv_buffer_size(bytes);
    }
    if sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
        let _ = socket.set_send_buffer_size(bytes);
    }
}

#[cfg(test)]
mod tests;
