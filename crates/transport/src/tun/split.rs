//! Cuts a superpacket of the kernel (TSO, USO) into packets, in place.
//!
//! The payload is never moved. Segment `i`'s headers are written right before its payload, over the end of segment
//! `i − 1`, which the caller has consumed by then; the bytes behind it that its tailroom covers belong to segment
//! `i + 1` and are put back afterwards.

use super::checksum;
use super::vnet::{Gso, VnetHeader};
use crate::batch::{HEADROOM, TAILROOM};

/// Longest headers of a superpacket that are understood: IPv6 with extension headers and TCP with options.
const HEADERS_LEN_MAX: usize = 256;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The packet contradicts its vnet header, or is not IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Calls `each` with `HEADROOM ‖ packet ‖ TAILROOM` for every packet of the superpacket, which lies at
/// `buffer[HEADROOM..][..packet_len]`. Returns how many. The buffer is used up.
///
/// # Panics
/// When the buffer has no room behind the packet.
pub(super) fn split(
    buffer: &mut [u8],
    packet_len: usize,
    header: &VnetHeader,
    each: &mut dyn FnMut(&mut [u8]),
) -> Result<usize, Malformed> {
    assert!(buffer.len() >= HEADROOM + packet_len + TAILROOM, "room behind the packet");
    let packet = &mut buffer[HEADROOM..HEADROOM + packet_len];
    if packet.is_empty() {
        return Err(Malformed);
    }
    if header.gso == Gso::None {
        if header.needs_checksum {
            complete_checksum(packet, header.checksum_start.into(), header.checksum_offset.into())?;
        }
        each(&mut buffer[..HEADROOM + packet_len + TAILROOM]);
        return Ok(1);
    }
    let run = Run::parse(packet, header)?;
    let mut template = [0; HEADERS_LEN_MAX];
    let template = &mut template[..run.headers_len];
    template.copy_from_slice(&packet[..run.headers_len]);

    let payload_len = packet_len - run.headers_len;
    let segments = payload_len.div_ceil(run.segment_len).max(1);
    for i in 0..segments {
        let offset = i * run.segment_len;
        let len = run.headers_len + run.segment_len.min(payload_len - offset);
        let frame = &mut buffer[offset..offset + HEADROOM + len + TAILROOM];
        let tail_start = HEADROOM + len;
        let mut saved = [0; TAILROOM];
        saved.copy_from_slice(&frame[tail_start..]);
        let packet = &mut frame[HEADROOM..tail_start];
        packet[..run.headers_len].copy_from_slice(template);
        run.finish(packet, i, offset, i + 1 == segments);
        each(frame);
        buffer[offset + tail_start..offset + HEADROOM + len + TAILROOM].copy_from_slice(&saved);
    }
    Ok(segments)
}

/// A superpacket's shape, checked against its bytes.
struct Run {
    ipv6: bool,
    tcp: bool,
    transport: usize,
    headers_len: usize,
    segment_len: usize,
}

impl Run {
    fn parse(packet: &[u8], header: &VnetHeader) -> Result<Self, Malformed> {
        let transport = usize::from(header.checksum_start);
        let ipv6 = match packet[0] >> 4 {
            4 => {
                let header_len = usize::from(packet[0] & 0xf) * 4;
                if header_len < 20 || header_len != transport {
                    return Err(Malformed);
                }
                false
            }
            6 if transport >= 40 => true,
            _ => return Err(Malformed),
        };
        let tcp = match (header.gso, ipv6) {
            (Gso::Tcp4, false) | (Gso::Tcp6, true) => true,
            (Gso::Udp, _) => false,
            (Gso::None | Gso::Tcp4 | Gso::Tcp6, _) => return Err(Malformed),
        };
        let transport_len = if tcp {
            let offset = packet.get(transport + 12).ok_or(Malformed)?;
            let len = usize::from(offset >> 4) * 4;
            if len < 20 {
                return Err(Malformed);
            }
            len
        } else {
            8
        };
        let headers_len = transport + transport_len;
        if headers_len > packet.len().min(HEADERS_LEN_MAX) || header.segment_len == 0 {
            return Err(Malformed);
        }
        Ok(Self { ipv6, tcp, transport, headers_len, segment_len: header.segment_len.into() })
    }

    /// Makes the headers of segment `i` right; its payload starts `offset` bytes into the run's.
    fn finish(&self, packet: &mut [u8], i: usize, offset: usize, last: bool) {
        let len = packet.len();
        let (ip, transport) = packet.split_at_mut(self.transport);
        let addresses = if self.ipv6 {
            ip[4..6].copy_from_slice(&wire_len(len - 40));
            &ip[8..40]
        } else {
            ip[2..4].copy_from_slice(&wire_len(len));
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(i as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            checksum::write_ipv4_header(ip);
            &ip[12..20]
        };
        let (protocol, field) = if self.tcp {
            let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let offset = u32::try_from(offset).expect("an offset within 64 KiB");
            transport[4..8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
            if !last {
                transport[13] &= !(FIN | PSH);
            }
            if i > 0 {
                transport[13] &= !CWR;
            }
            (TCP, 16)
        } else {
            transport[4..6].copy_from_slice(&wire_len(len - self.transport));
            (UDP, 6)
        };
        let pseudo = checksum::pseudo_sum(addresses, protocol, transport.len());
        transport[field..field + 2].fill(0);
        write_checksum(transport, field, checksum::sum(transport, pseudo), protocol == UDP);
    }
}

/// Completes the checksum of a single packet, whose field holds the sum of the pseudo header.
fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let udp = match packet[0] >> 4 {
        4 => packet.get(9) == Some(&UDP),
        6 => packet.get(6) == Some(&UDP),
        _ => return Err(Malformed),
    };
    let covered = packet.get_mut(start..).ok_or(Malformed)?;
    if covered.len() < offset + 2 {
        return Err(Malformed);
    }
    let total = checksum::sum(covered, 0);
    write_checksum(covered, offset, total, udp);
    Ok(())
}

fn write_checksum(bytes: &mut [u8], field: usize, sum: u64, udp: bool) {
    let checksum = match !checksum::fold(sum) {
        // Zero would mean "no checksum" (RFC 768).
        0 if udp => 0xffff,
        checksum => checksum,
    };
    bytes[field..field + 2].copy_from_slice(&checksum.to_ne_bytes());
}

fn wire_len(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("a segment is not longer than its run, which is below 64 KiB").to_be_bytes()
}
