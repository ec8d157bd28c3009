//! Links to the other gateways.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use jump_crypto::ids::{Incarnation, NodeNumber};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, OpeningKey, SealingKey};

use super::counters::{Counters, DropReason};
use super::route::NodeRef;
use super::wire::Wire;

/// What a mesh record carries: the first byte of its plaintext (`docs/protocol.md` §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// An inner packet for the client, fresh from the sender's inner network.
    InnerPacket = 1,
    /// A client's record that reached the sender, with its outer source address.
    StrayRecord = 2,
    /// An inner packet from the client, opened by its old owner.
    UplinkPacket = 3,
    /// An inner packet for the client, handed on by its old owner: never relayed again.
    ForwardedPacket = 4,
    /// An inner packet from a client of the sender's, whose flow the receiver translates.
    AnchoredPacket = 5,
    /// Part of the list of a session's flows that leave by other gateways than its new owner, the receiver.
    Anchors = 6,
}

impl Kind {
    pub(crate) fn of(byte: u8) -> Option<Self> {
        [
            Self::InnerPacket,
            Self::StrayRecord,
            Self::UplinkPacket,
            Self::ForwardedPacket,
            Self::AnchoredPacket,
            Self::Anchors,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// A link to one run of another gateway.
pub struct Link {
    /// That run.
    pub node: NodeRef,
    /// Its steering number.
    pub number: NodeNumber,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its mesh socket.
    pub address: SocketAddr,
    /// Seals to it.
    pub sealing: SealingKey,
    /// Opens what it sends.
    pub opening: OpeningKey,
}

impl Link {
    /// Seals `kind ‖ head ‖ body` to the peer. False when it could not be sent.
    pub(crate) fn send<W: Wire>(
        &mut self,
        kind: Kind,
        head: &[u8],
        body: &[u8],
        wire: &mut W,
        counters: &mut Counters,
    ) -> bool {
        let plaintext_len = 1 + head.len() + body.len();
        if plaintext_len + OVERHEAD > super::DATAGRAM_LEN_MAX {
            counters.drop(DropReason::TooLong);
            return false;
        }
        let slot = wire.to_mesh(self.address, plaintext_len + OVERHEAD);
        slot[HEADER_LEN] = kind as u8;
        let text = &mut slot[HEADER_LEN + 1..];
        text[..head.len()].copy_from_slice(head);
        text[head.len()..head.len() + body.len()].copy_from_slice(body);
        if self.sealing.seal(Content::Packet, slot, plaintext_len).is_err() {
            wire.cancel_mesh();
            counters.drop(DropReason::SealLimit);
            return false;
        }
        true
    }
}

/// All links.
#[derive(Default)]
pub(crate) struct Links {
    by_node: HashMap<NodeRef, Box<Link>>,
    by_number: HashMap<u16, NodeRef>,
}

impl Links {
    pub(crate) fn add(&mut self, link: Link) {
        self.by_number.insert(link.number.0, link.node);
        self.by_node.insert(link.node, Box::new(link));
    }

    pub(crate) fn remove(&mut self, node: NodeRef) {
        if let Some(link) = self.by_node.remove(&node)
            && self.by_number.get(&link.number.0) == Some(&node)
        {
            self.by_number.remove(&link.number.0);
        }
    }

    pub(crate) fn get_mut(&mut self, node: NodeRef) -> Option<&mut Link> {
        self.by_node.get_mut(&node).map(Box::as_mut)
    }

    pub(crate) fn get(&self, node: NodeRef) -> Option<&Link> {
        self.by_node.get(&node).map(Box::as_ref)
    }

    /// The link to the gateway of that number, if it is this run of it.
    pub(crate) fn of_run(&self, number: NodeNumber, incarnation: Incarnation) -> Option<NodeRef> {
        let node = *self.by_number.get(&number.0)?;
        self.get(node).filter(|link| link.incarnation == incarnation).map(|link| link.node)
    }

    pub(crate) fn by_number_mut(&mut self, number: NodeNumber) -> Option<&mut Link> {
        let node = self.by_number.get(&number.0)?;
        self.by_node.get_mut(node).map(Box::as_mut)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_node.len()
    }
}

/// Bytes of a socket address in a stray record: family, address, port.
pub(crate) const SOURCE_LEN: usize = 19;

/// Encodes the outer source of a stray record: `4 or 6 ‖ address, IPv4 mapped ‖ port` (`docs/protocol.md` §3.6).
pub(crate) fn encode_source(source: SocketAddr) -> [u8; SOURCE_LEN] {
    let (family, ip) = match source.ip() {
        IpAddr::V4(v4) => (4, v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => (6, v6),
    };
    let mut bytes = [0; SOURCE_LEN];
    bytes[0] = family;
    bytes[1..17].copy_from_slice(&ip.octets());
    bytes[17..].copy_from_slice(&source.port().to_be_bytes());
    bytes
}

/// Reads [`encode_source`]'s bytes.
pub(crate) fn decode_source(bytes: &[u8; SOURCE_LEN]) -> Option<SocketAddr> {
    let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[1..17]).ok()?);
    let ip = match bytes[0] {
        4 => IpAddr::V4(ip.to_ipv4_mapped()?),
        6 => IpAddr::V6(ip),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([bytes[17], bytes[18]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_its_bytes() {
        for source in ["192.0.2.7:4242", "[2001:db8::7]:65535"] {
            let source: SocketAddr = source.parse().unwrap();
            assert_eq!(decode_source(&encode_source(source)), Some(source));
        }
        assert_eq!(decode_source(&[0; SOURCE_LEN]), None);
    }
}
