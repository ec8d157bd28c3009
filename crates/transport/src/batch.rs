//! Batches of packets in one buffer, with room before and behind each packet for in-place sealing.

use std::net::SocketAddr;

/// Room before every packet of a [`PacketBatch`]: a record header fits.
pub const HEADROOM: usize = 16;
/// Room behind every packet: a record tag fits.
pub const TAILROOM: usize = 16;

/// Inner packets, each with [`HEADROOM`] bytes before and [`TAILROOM`] behind it. Owns one buffer made at start; filling
/// it allocates nothing.
pub struct PacketBatch {
    _private: (),
}

impl PacketBatch {
    /// Room for `packets_max` packets of at most `packet_len_max` bytes.
    pub fn new(_packets_max: usize, _packet_len_max: usize) -> Self {
        todo!()
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// True when no packet is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when no further packet fits.
    pub fn is_full(&self) -> bool {
        todo!()
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        todo!()
    }

    /// Copies a packet in; false when it does not fit.
    pub fn push(&mut self, _packet: &[u8]) -> bool {
        todo!()
    }

    /// The packet's bytes.
    pub fn packet(&self, _i: usize) -> &[u8] {
        todo!()
    }

    /// The packet with its room: `HEADROOM ‖ packet ‖ TAILROOM`, ready for sealing in place.
    pub fn frame_mut(&mut self, _i: usize) -> &mut [u8] {
        todo!()
    }
}

/// One received datagram, inside the receive buffers.
pub struct Datagram<'a> {
    /// Its bytes; records are opened in place.
    pub bytes: &'a mut [u8],
    /// Who sent it.
    pub source: SocketAddr,
    /// ECN bits of the outer header (RFC 3168).
    pub ecn: u8,
}
