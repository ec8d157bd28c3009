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

impl InnerHeader {
    /// True when the destination is one that routers forward to: no multicast, broadcast, link-local, loopback or
    /// unspecified address.
    #[inline]
    pub(crate) fn destination_is_routed(&self) -> bool {
        match self.destination {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                a != 0 && a != 127 && a < 224 && (a, b) != (169, 254)
            }
            IpAddr::V6(v6) => {
                let [a, b, ..] = v6.octets();
                let link_local = a == 0xfe && b & 0xc0 == 0x80;
                a != 0xff && !link_local && v6.to_bits() > 1
            }
        }
    }
}

/// For an ICMP error, where the packet that it is about was going; `None` for everything else.
#[cold]
pub(crate) fn quoted_destination(packet: &[u8]) -> Option<IpAddr> {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    if packet.first()? >> 4 == 6 {
        // Errors are the types below 128 (RFC 4443).
        let is_error = *packet.get(6)? == ICMPV6 && *packet.get(40)? < 128;
        let quoted = packet.get(48..).filter(|_| is_error)?.first_chunk::<40>()?;
        let (_, destination) = quoted.split_last_chunk::<16>()?;
        return Some(IpAddr::V6(Ipv6Addr::from(*destination)));
    }
    let header_len = usize::from(packet.first()? & 0xf) * 4;
    // Unreachable, time exceeded, parameter problem (RFC 1812); not a later fragment.
    let first = packet.get(6)? & 0x1f == 0 && *packet.get(7)? == 0;
    let is_error = *packet.get(9)? == ICMP && first && matches!(packet.get(header_len)?, 3 | 11 | 12);
    let quoted = packet.get(header_len + 8..).filter(|_| is_error)?.first_chunk::<20>()?;
    Some(IpAddr::V4(Ipv4Addr::new(quoted[16], quoted[17], quoted[18], quoted[19])))
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

    #[test]
    fn only_destinations_that_routers_forward_to_are_routed() {
        let routed = |destination: &str| {
            let destination: IpAddr = destination.parse().unwrap();
            InnerHeader { source: destination, destination }.destination_is_routed()
        };
        for unicast in
            ["1.1.1.1", "10.0.0.1", "169.253.1.1", "223.255.255.255", "2001:db8::1", "fd00::1", "fec0::1"]
        {
            assert!(routed(unicast), "{unicast}");
        }
        for other in
            ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.251", "240.0.0.1", "255.255.255.255"]
        {
            assert!(!routed(other), "{other}");
        }
        for other in ["::", "::1", "fe80::1", "febf::1", "ff02::fb"] {
            assert!(!routed(other), "{other}");
        }
    }

    #[test]
    fn only_an_icmp_error_names_where_the_packet_it_is_about_was_going() {
        for (router, device, target, protocol_at, protocol, error, echo) in [
            ("192.0.2.1", "10.64.0.1", "10.1.0.1", 9, 1, 3, 8),
            ("2001:db8::1", "fd00::1", "fd01::1", 6, 58, 2, 128),
        ] {
            let (router, device): (IpAddr, IpAddr) = (router.parse().unwrap(), device.parse().unwrap());
            let target = target.parse().unwrap();
            let quoted = packet(device, target, b"12345678");
            for (kind, expected) in [(error, Some(target)), (echo, None)] {
                let mut icmp = packet(router, device, &[&[kind, 0, 0, 0, 0, 0, 0, 0], &quoted[..]].concat());
                icmp[protocol_at] = protocol;
                assert_eq!(quoted_destination(&icmp), expected);
                for len in 0..icmp.len() - 8 {
                    assert_eq!(quoted_destination(&icmp[..len]), None, "{len} bytes");
                }
            }
            assert_eq!(quoted_destination(&packet(router, device, &quoted)), None);
        }
    }
}
