//! Where the data plane's output goes: sockets and TUN in production, plain vectors in tests.

use std::net::SocketAddr;

use jump_session::path::Path;

/// Output of one batch. Nothing blocks; what the kernel refuses is counted and forgotten.
pub trait Wire {
    /// A slot of `len` bytes for a datagram to a client over `path`. A path that is gone takes it and loses it.
    fn to_client(&mut self, path: Path, len: usize) -> &mut [u8];

    /// Gives the next slot of [`Self::to_client`] these ECN bits in its outer header; those after it have none again.
    fn mark_next(&mut self, _ecn: u8) {}

    /// Takes back the last slot of [`Self::to_client`].
    fn cancel_client(&mut self);

    /// A slot of `len` bytes for a datagram to another gateway.
    fn to_mesh(&mut self, destination: SocketAddr, len: usize) -> &mut [u8];

    /// Takes back the last slot of [`Self::to_mesh`].
    fn cancel_mesh(&mut self);

    /// Hands an inner packet to the inner network.
    fn to_inner(&mut self, packet: &[u8]);
}
