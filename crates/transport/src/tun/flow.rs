//! What an inner packet is, as far as coalescing cares.

use super::checksum;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_SYN_RST_URG_CWR: u8 = 0x01 | 0x02 | 0x04 | 0x20 | 0x80;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A flow: addresses as 16 bytes each (IPv4 padded), protocol and ports. A packet without ports has protocol 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowKey {
    pub(super) addresses: [u8; 32],
    /// Source and destination port.
    pub(super) ports: [u8; 4],
    pub(super) protocol: u8,
}

impl FlowKey {
    pub(super) const NONE: Self = Self { addresses: [0; 32], ports: [0; 4], protocol: 0 };

    /// A cheap digest to look flows up by.
    pub(super) fn digest(&self) -> u32 {
        let mut digest = u32::from_ne_bytes(self.ports) ^ u32::from(self.protocol).rotate_left(16);
        for word in self.addresses.chunks_exact(4) {
            let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            digest = (digest.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b1);
        }
        digest
    }
}

/// A packet's place among flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Payload of a flow that may join or start a run.
    Payload(FlowKey, Shape),
    /// Belongs to a flow, but goes alone: no payload, or flags that end a run.
    Single(FlowKey),
    /// Not TCP or UDP, or only a part of it: ordered against all flows between these addresses.
    Other([u8; 32]),
    /// Not an IP packet.
    NotIp,
}

/// Where the parts of a TCP or UDP packet are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) ipv6: bool,
    pub(super) tcp: bool,
    /// Start of the transport header.
    pub(super) transport: usize,
    /// Start of the payload.
    pub(super) headers_len: usize,
}

impl Shape {
    pub(super) const NONE: Self = Self { ipv6: false, tcp: false, transport: 0, headers_len: 0 };

    pub(super) fn protocol(&self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }

    /// Offset of the transport checksum in the transport header.
    pub(super) fn checksum_offset(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// The addresses in the IP header.
    pub(super) fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.ipv6 { &packet[8..40] } else { &packet[12..20] }
    }

    /// True when the transport checksum is right.
    pub(super) fn checksum_holds(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.transport..];
        let pseudo = checksum::pseudo_sum(self.addresses(packet), self.protocol(), transport.len());
        checksum::fold(checksum::sum(transport, pseudo)) == 0xffff
    }
}

/// Classifies a packet. Every length in it is checked, so that the positions of a [`Shape`] are inside.
pub(super) fn classify(packet: &[u8]) -> Class {
    let mut addresses = [0; 32];
    let (protocol, ipv6) = match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= 20 => {
            addresses[..4].copy_from_slice(&packet[12..16]);
            addresses[16..20].copy_from_slice(&packet[16..20]);
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            if packet[0] & 0xf != 5 || total != packet.len() || fragment {
                return Class::Other(addresses);
            }
            (packet[9], false)
        }
        Some(6) if packet.len() >= 40 => {
            addresses.copy_from_slice(&packet[8..40]);
            let payload = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            if payload + 40 != packet.len() {
                return Class::Other(addresses);
            }
            (packet[6], true)
        }
        _ => return Class::NotIp,
    };
    let transport = if ipv6 { 40 } else { 20 };
    let body = &packet[transport..];
    let key = |body: &[u8]| FlowKey { addresses, ports: [body[0], body[1], body[2], body[3]], protocol };
    match protocol {
        TCP if body.len() >= 20 => {
            let header_len = usize::from(body[12] >> 4) * 4;
            let flags = body[13];
            let plain = flags & (FIN_SYN_RST_URG_CWR | ACK) == ACK;
            if header_len < 20 || header_len >= body.len() || !plain {
                return Class::Single(key(body));
            }
            Class::Payload(
                key(body),
                Shape { ipv6, tcp: true, transport, headers_len: transport + header_len },
            )
        }
        UDP if body.len() >= 8 => {
            let len = usize::from(u16::from_be_bytes([body[4], body[5]]));
            let checksum = u16::from_be_bytes([body[6], body[7]]);
            if len != body.len() || len == 8 || checksum == 0 {
                return Class::Single(key(body));
            }
            Class::Payload(key(body), Shape { ipv6, tcp: false, transport, headers_len: transport + 8 })
        }
        _ => Class::Other(addresses),
    }
}

/// True when `next`, a packet of the same flow and shape, may follow the run that `first` started and that has
/// `payload_len` bytes in `segments` packets: splitting the run gives back exactly these headers.
pub(super) fn continues(
    shape: &Shape,
    first: &[u8],
    payload_len: usize,
    segments: usize,
    next: &[u8],
) -> bool {
    let same = |range: std::ops::Range<usize>| first[range.clone()] == next[range];
    let ip = if shape.ipv6 {
        // Version, traffic class and flow label; next header and hop limit.
        same(0..4) && same(6..8)
    } else {
        let dont_fragment = first[6] & 0x40 != 0;
        let id = |p: &[u8]| u16::from_be_bytes([p[4], p[5]]);
        // The identification of a packet that is never fragmented means nothing (RFC 6864); of others it counts up.
        let id_follows = dont_fragment || id(next) == id(first).wrapping_add(segments as u16);
        same(0..2) && same(6..10) && id_follows
    };
    if !ip || !shape.tcp {
        return ip;
    }
    let t = shape.transport;
    let sequence = |p: &[u8]| u32::from_be_bytes([p[t + 4], p[t + 5], p[t + 6], p[t + 7]]);
    // Acknowledgement and data offset; flags but PSH; window; options.
    sequence(next) == sequence(first).wrapping_add(payload_len as u32)
        && same(t + 8..t + 13)
        && (first[t + 13] | PSH) == (next[t + 13] | PSH)
        && same(t + 14..t + 16)
        && same(t + 18..shape.headers_len)
}

/// True for a TCP segment that asks to be delivered at once.
pub(super) fn pushes(shape: &Shape, packet: &[u8]) -> bool {
    shape.tcp && packet[shape.transport + 13] & PSH != 0
}

/// Marks the TCP run of which `packet` is the start as ending in a segment with PSH.
pub(super) fn set_push(shape: &Shape, packet: &mut [u8]) {
    packet[shape.transport + 13] |= PSH;
}
