//! The UDP adapter: non-blocking sockets with GSO, GRO and batched system calls where the kernel has them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::batch::Datagram;

/// How a UDP socket is opened.
#[derive(Debug, Clone, Default)]
pub struct UdpOptions {
    /// Lets several sockets share the address; the kernel spreads flows over them.
    pub reuse_port: bool,
    /// Receive and send buffer sizes to ask for, in bytes; 0 leaves the kernel's default.
    pub buffer_bytes: usize,
    /// Marks outgoing packets (`SO_MARK`), so that a policy route can keep them out of the tunnel.
    pub mark: Option<u32>,
    /// Binds to a network interface by name.
    pub interface: Option<String>,
}

/// A non-blocking UDP socket.
pub struct UdpSocket {
    _private: (),
}

/// Receive buffers of one thread, made once.
pub struct ReceiveBuffers {
    _private: (),
}

impl ReceiveBuffers {
    /// Room for one batched receive call.
    pub fn new() -> Self {
        todo!()
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
    pub fn bind(_address: SocketAddr, _options: &UdpOptions) -> io::Result<Self> {
        todo!()
    }

    /// Connects to the peer so that ICMP errors arrive as `ConnectionRefused` or `HostUnreachable`.
    ///
    /// # Errors
    /// The system's error.
    pub fn connect(&self, _peer: SocketAddr) -> io::Result<()> {
        todo!()
    }

    /// The bound address.
    ///
    /// # Errors
    /// The system's error.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        todo!()
    }

    /// A second handle to the same socket, for another thread.
    ///
    /// # Errors
    /// The system's error.
    pub fn try_clone(&self) -> io::Result<Self> {
        todo!()
    }

    /// Receives what is there, without blocking, in one batch, and calls `each` for every datagram (GRO runs are split).
    /// Returns how many; 0 when nothing waits.
    ///
    /// # Errors
    /// The socket's error, for example `ConnectionRefused` after an ICMP port unreachable on a connected socket.
    pub fn receive(
        &self,
        _buffers: &mut ReceiveBuffers,
        _each: &mut dyn FnMut(Datagram<'_>),
    ) -> io::Result<usize> {
        todo!()
    }

    /// Sends one datagram without blocking.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full; the caller counts and drops.
    pub fn send(&self, _destination: SocketAddr, _datagram: &[u8]) -> io::Result<()> {
        todo!()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}

/// Collects outgoing datagrams of one thread and sends them with as few system calls as the kernel allows: consecutive
/// datagrams of equal size to one destination leave as one GSO send. Made once; pushing allocates nothing.
pub struct SendBatch {
    _private: (),
}

/// What a flush did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Datagrams dropped because the socket was full or refused them.
    pub dropped: u64,
    /// Set when the kernel reported that the peer refuses (ICMP unreachable on a connected socket).
    pub refused: bool,
}

impl SendBatch {
    /// Room for a full batch.
    pub fn new() -> Self {
        todo!()
    }

    /// A slot of `len` bytes for the next datagram to `destination`: write the datagram there. Flushes by itself into
    /// `socket` when full.
    pub fn slot(&mut self, _socket: &UdpSocket, _destination: SocketAddr, _len: usize) -> &mut [u8] {
        todo!()
    }

    /// Takes back the last slot (the datagram could not be sealed).
    pub fn cancel(&mut self) {
        todo!()
    }

    /// Sends everything.
    pub fn flush(&mut self, _socket: &UdpSocket) -> Flushed {
        todo!()
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}
