//! The header of an inner packet: just what forwarding needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source and destination of one whole IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InnerHeader {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

impl InnerHeader {
    /// Reads the header; `None` unless `packet` is exactly one IPv4 or IPv6 packet.
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk::<20>()?;
                let header_len = usize::from(header[0] & 0xf) * 4;
                let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header_len < 20 || header_len > total_len || total_len != packet.len() {
                    return None;
                }
                Some(Self {
                    source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
                    destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
                })
            }
            6 => {
                let header = packet.first_chunk::<40>()?;
                if usize::from(u16::from_be_bytes([header[4], header[5]])) + 40 != packet.len() {
                    return None;
                }
                let (_, source) = header[..24].split_last_chunk::<16>()?;
                let (_, destination) = header.split_last_chunk::<16>()?;
                Some(Self {
                    source: IpAddr::V6(Ipv6Addr::from(*source)),
                    destination: IpAddr::V6(Ipv6Addr::from(*destination)),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An IPv4 or IPv6 packet of protocol 253 (experiments) with this payload.
    pub(crate) fn packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0];
                let len = 20 + payload.len() as u16;
                header[2..4].copy_from_slice(&len.to_be_bytes());
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, 253, 64];
                header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
        };
        packet.extend(payload);
        packet
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let header = InnerHeader::parse(&packet(source, destination, b"x"));
            assert_eq!(header, Some(InnerHeader { source, destination }));
        }
    }

    #[test]
    fn a_packet_with_missing_or_extra_bytes_is_refused() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let whole = packet(source.parse().unwrap(), destination.parse().unwrap(), b"payload");
            for len in 0..whole.len() {
                assert_eq!(InnerHeader::parse(&whole[..len]), None, "{len} bytes");
            }
            let mut longer = whole.clone();
            longer.push(0);
            assert_eq!(InnerHeader::parse(&longer), None);
        }
        assert_eq!(InnerHeader::parse(&[0x10; 40]), None);
    }
}
