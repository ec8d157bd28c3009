//! Flows: what tells one connection of a session from another, read from packets and from mesh datagrams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::inner::InnerHeader;

/// TCP's protocol number.
pub(crate) const TCP: u8 = 6;
/// UDP, DCCP, SCTP and UDP-Lite: the others whose header begins with two ports.
const WITH_PORTS: [u8; 4] = [17, 33, 132, 136];

/// One flow as its packets leave the device. Its source address is not part of it: a session has one of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The protocol's number: one whose header begins with two ports.
    pub protocol: u8,
    /// The device's port.
    pub source_port: u16,
    /// Where it goes.
    pub destination: IpAddr,
    /// The port there.
    pub destination_port: u16,
}

/// What a packet says of its flow's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Nothing: it goes on.
    Continues,
    /// It begins (TCP: SYN without ACK).
    Opens,
    /// It is about to end (TCP: FIN or RST).
    Ends,
}

impl Flow {
    /// A flow of that protocol; `None` when its header does not begin with two ports.
    pub fn new(protocol: u8, source_port: u16, destination: IpAddr, destination_port: u16) -> Option<Self> {
        let has_ports = protocol == TCP || WITH_PORTS.contains(&protocol);
        has_ports.then_some(Self { protocol, source_port, destination, destination_port })
    }

    /// The flow of a whole inner packet with this header. `None` for fragments, for IPv6 packets with extension headers, and
    /// for protocols without ports.
    pub(crate) fn of(packet: &[u8], header: &InnerHeader) -> Option<(Self, Signal)> {
        let (protocol, transport) = match header.destination {
            IpAddr::V4(_) => {
                let fixed = packet.first_chunk::<20>()?;
                // More fragments follow, or this is a later one.
                if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
                    return None;
                }
                (fixed[9], packet.get(usize::from(fixed[0] & 0xf) * 4..)?)
            }
            IpAddr::V6(_) => (*packet.get(6)?, packet.get(40..)?),
        };
        let ports = transport.first_chunk::<4>()?;
        let (source, destination) =
            (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
        let flow = Self::new(protocol, source, header.destination, destination)?;
        let signal = match transport.get(13) {
            Some(flags) if protocol == TCP => {
                let (fin, syn, rst, ack) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
                if fin || rst {
                    Signal::Ends
                } else if syn && !ack {
                    Signal::Opens
                } else {
                    Signal::Continues
                }
            }
            Some(_) | None => Signal::Continues,
        };
        Some((flow, signal))
    }

    /// For an ICMP error, the flow that it is about: the one whose answer it quotes. `None` for everything else.
    pub(crate) fn quoted(packet: &[u8], header: &InnerHeader) -> Option<Self> {
        const ICMP: u8 = 1;
        const ICMPV6: u8 = 58;
        let (protocol, source, transport) = match header.destination {
            IpAddr::V4(_) => {
                let fixed = packet.first_chunk::<20>()?;
                let icmp = packet.get(usize::from(fixed[0] & 0xf) * 4..)?;
                let is_whole = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff == 0;
                // Unreachable, time exceeded, parameter problem (RFC 1812).
                if fixed[9] != ICMP || !is_whole || !matches!(icmp.first()?, 3 | 11 | 12) {
                    return None;
                }
                let quoted = icmp.get(8..)?;
                let inner = quoted.first_chunk::<20>()?;
                if u16::from_be_bytes([inner[6], inner[7]]) & 0x1fff != 0 {
                    return None;
                }
                let source = IpAddr::V4(Ipv4Addr::new(inner[12], inner[13], inner[14], inner[15]));
                (inner[9], source, quoted.get(usize::from(inner[0] & 0xf) * 4..)?)
            }
            IpAddr::V6(_) => {
                // Errors are the types below 128 (RFC 4443).
                if *packet.get(6)? != ICMPV6 || *packet.get(40)? >= 128 {
                    return None;
                }
                let quoted = packet.get(48..)?;
                let source = quoted.get(8..24)?.first_chunk::<16>()?;
                (*quoted.get(6)?, IpAddr::V6(Ipv6Addr::from(*source)), quoted.get(40..)?)
            }
        };
        let ports = transport.first_chunk::<4>()?;
        let (theirs, own) =
            (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
        Self::new(protocol, own, source, theirs)
    }

    /// Appends `family: 4 or 6 ‖ protocol ‖ source port ‖ destination port ‖ destination` (`docs/protocol.md` §7.5).
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(if self.destination.is_ipv4() { 4 } else { 6 });
        bytes.push(self.protocol);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        match self.destination {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }

    /// Reads one flow from the front of `bytes`; the rest is left over.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<6>()?;
        let (destination, rest) = match head[0] {
            4 => {
                let (address, rest) = rest.split_first_chunk::<4>()?;
                (IpAddr::V4(Ipv4Addr::from(*address)), rest)
            }
            6 => {
                let (address, rest) = rest.split_first_chunk::<16>()?;
                (IpAddr::V6(Ipv6Addr::from(*address)), rest)
            }
            _ => return None,
        };
        let (source, port) = (u16::from_be_bytes([head[2], head[3]]), u16::from_be_bytes([head[4], head[5]]));
        Some((Self::new(head[1], source, destination, port)?, rest))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::inner::tests::packet;
    use super::*;

    /// A packet of `protocol` with these ports; TCP with these flags.
    pub(crate) fn with_ports(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        ports: (u16, u16),
        flags: u8,
    ) -> Vec<u8> {
        let mut transport = [0; 20];
        transport[..2].copy_from_slice(&ports.0.to_be_bytes());
        transport[2..4].copy_from_slice(&ports.1.to_be_bytes());
        transport[12] = 0x50;
        transport[13] = flags;
        let mut packet = packet(source, destination, &transport);
        packet[if source.is_ipv4() { 9 } else { 6 }] = protocol;
        packet
    }

    fn read(packet: &[u8]) -> Option<(Flow, Signal)> {
        Flow::of(packet, &InnerHeader::parse(packet).unwrap())
    }

    #[test]
    fn the_flow_of_a_packet_is_its_protocol_ports_and_destination() {
        for (source, destination) in [("10.64.0.1", "192.0.2.1"), ("fd00::1", "2001:db8::1")] {
            let (source, destination): (IpAddr, IpAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            let flow = |protocol| Flow { protocol, source_port: 4000, destination, destination_port: 443 };
            let packet = |protocol, flags| with_ports(source, destination, protocol, (4000, 443), flags);
            assert_eq!(read(&packet(17, 2)), Some((flow(17), Signal::Continues)));
            for (flags, signal) in [
                (0x10, Signal::Continues),
                (0x02, Signal::Opens),
                (0x12, Signal::Continues),
                (0x11, Signal::Ends),
                (0x04, Signal::Ends),
            ] {
                assert_eq!(read(&packet(TCP, flags)), Some((flow(TCP), signal)), "{flags:#x}");
            }
            assert_eq!(read(&packet(1, 0)), None, "ICMP has no ports");
        }
    }

    #[test]
    fn fragments_have_no_flow_and_neither_has_a_packet_without_its_ports() {
        let (source, destination) = ("10.64.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        for (at, bits) in [(6, 0x20), (6, 0x01), (7, 0x01)] {
            let mut fragment = with_ports(source, destination, 17, (1, 2), 0);
            fragment[at] |= bits;
            assert_eq!(read(&fragment), None);
        }
        let mut whole = with_ports(source, destination, 17, (1, 2), 0);
        whole[6] |= 0x40;
        assert!(read(&whole).is_some(), "\"don't fragment\" is no fragment");
        let mut short = packet(source, destination, &[0, 1, 0]);
        short[9] = 17;
        assert_eq!(read(&short), None);
        // Options that reach to the packet's end.
        let mut options = packet(source, destination, &[0; 8]);
        options[0] = 0x47;
        options[9] = 17;
        assert_eq!(read(&options), None);
    }

    #[test]
    fn an_icmp_error_is_about_the_flow_whose_answer_it_quotes() {
        for (device, server, at, protocol, error, echo) in
            [("10.64.0.1", "192.0.2.1", 9, 1, 3, 8), ("fd00::1", "2001:db8::1", 6, 58, 2, 128)]
        {
            let (device, server): (IpAddr, IpAddr) = (device.parse().unwrap(), server.parse().unwrap());
            let answer = with_ports(server, device, TCP, (443, 4000), 0x10);
            let flow = Flow::new(TCP, 4000, server, 443);
            for (kind, expected) in [(error, flow), (echo, None)] {
                let mut icmp = packet(device, server, &[&[kind, 0, 0, 0, 0, 0, 0, 0], &answer[..]].concat());
                icmp[at] = protocol;
                let header = InnerHeader::parse(&icmp).unwrap();
                assert_eq!(Flow::quoted(&icmp, &header), expected);
                assert_eq!(Flow::of(&icmp, &header), None);
                for len in 0..icmp.len() - 16 {
                    assert_eq!(Flow::quoted(&icmp[..len], &header), None, "{len} bytes");
                }
            }
            let header = InnerHeader::parse(&answer).unwrap();
            assert_eq!(Flow::quoted(&answer, &header), None);
        }
    }

    #[test]
    fn a_flow_survives_its_bytes_and_no_prefix_of_them_is_one() {
        for destination in ["192.0.2.1", "2001:db8::1"] {
            let flow = Flow::new(TCP, 4000, destination.parse().unwrap(), 443).unwrap();
            let mut bytes = Vec::new();
            flow.encode(&mut bytes);
            bytes.push(7);
            assert_eq!(Flow::decode(&bytes), Some((flow, &[7][..])));
            for len in 0..bytes.len() - 1 {
                assert_eq!(Flow::decode(&bytes[..len]), None);
            }
            bytes[1] = 1;
            assert_eq!(Flow::decode(&bytes), None, "a protocol without ports");
            bytes[0] = 5;
            assert_eq!(Flow::decode(&bytes), None);
        }
    }
}
