//! The vnet header before every packet of a TUN device with offloads (`struct virtio_net_hdr`, machine byte order).

/// Length of the header in bytes.
pub(super) const HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The first segment carries CWR (RFC 3168).
const GSO_ECN: u8 = 0x80;

/// What a superpacket is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gso {
    /// One packet.
    None,
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over either.
    Udp,
}

/// A vnet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VnetHeader {
    /// The transport checksum holds the pseudo header's sum and wants completing.
    pub(super) needs_checksum: bool,
    pub(super) gso: Gso,
    /// Length of all headers, in bytes; the kernel's value is a hint.
    pub(super) headers_len: u16,
    /// Payload bytes of every segment but the last.
    pub(super) segment_len: u16,
    /// Where the transport header starts.
    pub(super) checksum_start: u16,
    /// Where the checksum is, from there.
    pub(super) checksum_offset: u16,
}

impl VnetHeader {
    /// The header of one complete packet.
    pub(super) const PLAIN: Self = Self {
        needs_checksum: false,
        gso: Gso::None,
        headers_len: 0,
        segment_len: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads a header; `None` for a kind of superpacket that we did not ask for.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 => Gso::Tcp4,
            GSO_TCP6 => Gso::Tcp6,
            GSO_UDP => Gso::Udp,
            _ => return None,
        };
        let field = |at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            gso,
            headers_len: field(2),
            segment_len: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
        })
    }

    /// The header's bytes.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP,
        };
        bytes[2..4].copy_from_slice(&self.headers_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment_len.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes_and_an_unknown_kind_is_refused() {
        let header = VnetHeader {
            needs_checksum: true,
            gso: Gso::Tcp6,
            headers_len: 60,
            segment_len: 1360,
            checksum_start: 40,
            checksum_offset: 16,
        };
        assert_eq!(VnetHeader::parse(&header.to_bytes()), Some(header));
        assert_eq!(VnetHeader::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UFO was never asked for");
    }
}
