//! Batches of packets in one buffer, with room before and behind each packet for in-place sealing.

use std::net::{IpAddr, SocketAddr};

/// Room before every packet of a [`PacketBatch`]: a record header fits.
pub const HEADROOM: usize = 16;
/// Room behind every packet: a record tag fits.
pub const TAILROOM: usize = 16;

/// Inner packets, each with [`HEADROOM`] bytes before and [`TAILROOM`] behind it. Owns one buffer made at start; filling
/// it allocates nothing.
pub struct PacketBatch {
    bytes: Box<[u8]>,
    lens: Box<[usize]>,
    count: usize,
    packet_len_max: usize,
}

impl PacketBatch {
    /// Room for `packets_max` packets of at most `packet_len_max` bytes.
    pub fn new(packets_max: usize, packet_len_max: usize) -> Self {
        let stride = HEADROOM + packet_len_max + TAILROOM;
        Self {
            bytes: vec![0; packets_max * stride].into_boxed_slice(),
            lens: vec![0; packets_max].into_boxed_slice(),
            count: 0,
            packet_len_max,
        }
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when no packet is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when no further packet fits.
    pub fn is_full(&self) -> bool {
        self.count == self.lens.len()
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Copies a packet in; false when it does not fit.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        if self.is_full() || packet.len() > self.packet_len_max {
            return false;
        }
        let start = self.start(self.count) + HEADROOM;
        self.bytes[start..start + packet.len()].copy_from_slice(packet);
        self.lens[self.count] = packet.len();
        self.count += 1;
        true
    }

    /// The packet's bytes.
    ///
    /// # Panics
    /// When `i` is not below [`PacketBatch::len`].
    pub fn packet(&self, i: usize) -> &[u8] {
        assert!(i < self.count, "packet {i} of {}", self.count);
        let start = self.start(i) + HEADROOM;
        &self.bytes[start..start + self.lens[i]]
    }

    /// The packet with its room: `HEADROOM ‖ packet ‖ TAILROOM`, ready for sealing in place.
    ///
    /// # Panics
    /// When `i` is not below [`PacketBatch::len`].
    pub fn frame_mut(&mut self, i: usize) -> &mut [u8] {
        assert!(i < self.count, "packet {i} of {}", self.count);
        let start = self.start(i);
        &mut self.bytes[start..start + HEADROOM + self.lens[i] + TAILROOM]
    }

    fn start(&self, i: usize) -> usize {
        i * (HEADROOM + self.packet_len_max + TAILROOM)
    }
}

/// One received datagram, inside the receive buffers.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Its bytes; records are opened in place.
    pub bytes: &'a mut [u8],
    /// Who sent it. IPv4 senders have an IPv4 address also on a dual-stack socket.
    pub source: SocketAddr,
    /// The address of ours that it was sent to, where the kernel says it. Answers leave from there
    /// ([`crate::udp::Route::local`]), which matters to a host with several addresses.
    pub local: Option<IpAddr>,
    /// ECN bits of the outer header (RFC 3168).
    pub ecn: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_batch_refuses_a_packet_and_keeps_the_others() {
        let mut batch = PacketBatch::new(2, 4);
        assert!(batch.push(b"abcd"));
        assert!(!batch.push(b"abcde"), "longer than a slot");
        assert!(batch.push(b"x"));
        assert!(batch.is_full());
        assert!(!batch.push(b"y"));
        assert_eq!(batch.packet(0), b"abcd");
        assert_eq!(batch.packet(1), b"x");
        batch.clear();
        assert!(batch.is_empty());
    }

    #[test]
    fn sealing_one_frame_leaves_its_neighbours_alone() {
        let mut batch = PacketBatch::new(3, 4);
        for packet in [b"aaaa", b"bbbb", b"cccc"] {
            assert!(batch.push(packet));
        }
        let frame = batch.frame_mut(1);
        assert_eq!(frame.len(), HEADROOM + 4 + TAILROOM);
        frame.fill(0xff);
        assert_eq!(batch.packet(0), b"aaaa");
        assert_eq!(batch.packet(2), b"cccc");
    }
}
