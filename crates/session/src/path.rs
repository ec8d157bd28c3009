//! Paths: the ways between a client and its gateway, which of them is best, and how often a session may change them.
//!
//! Pure: both the client machine and the gateway machine decide with these values.

mod choice;
mod rate;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use choice::{Challenger, Choice, Incumbent, Pace, ReturnPolicy};
pub use rate::{KEPT_FOR_ATTACH, SwitchRate};

/// What carries datagrams, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP datagrams.
    Udp,
    /// QUIC DATAGRAM frames.
    Quic,
    /// Frames over TCP.
    Tcp,
    /// Frames over TCP in TLS.
    Tls,
}

impl Transport {
    /// Every transport, best first.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Quic, Self::Tcp, Self::Tls];

    /// The stable name, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// The longest datagram that it takes, in bytes; a path may carry less.
    pub const fn datagram_len_max(self) -> u16 {
        match self {
            Self::Udp => 65_507,
            Self::Quic | Self::Tcp | Self::Tls => 4096,
        }
    }

    /// The stable number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Udp => 1,
            Self::Quic => 2,
            Self::Tcp => 3,
            Self::Tls => 4,
        }
    }

    /// Reads a number; `None` for one that this version does not know.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Udp),
            2 => Some(Self::Quic),
            3 => Some(Self::Tcp),
            4 => Some(Self::Tls),
            _ => None,
        }
    }

    /// True when the transport makes a connection first, and keeps or loses it as a whole.
    pub const fn connects(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Quic | Self::Tcp | Self::Tls => true,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A transport's name was not one of [`Transport::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a transport: use udp, quic, tcp or tls")]
pub struct UnknownTransport;

impl std::str::FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(name: &str) -> Result<Self, UnknownTransport> {
        Self::ALL.into_iter().find(|transport| transport.name() == name).ok_or(UnknownTransport)
    }
}

/// Where else a gateway listens: the same host, another transport and port. The same on every gateway of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Door {
    /// The transport.
    pub transport: Transport,
    /// Its port.
    pub port: u16,
}

/// A way to a client, as its gateway knows it. Kept and compared, never looked into by the machines.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// The transport.
    pub transport: Transport,
    /// The client's address.
    pub peer: SocketAddr,
    /// Number of the connection; 0 for UDP.
    pub connection: u64,
    /// The gateway's address that the client used: answers leave from it. `None` leaves it to the system. No part of
    /// the path's identity.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Path {
    fn from(peer: SocketAddr) -> Self {
        Self { transport: Transport::Udp, peer, connection: 0, local: None }
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.peer == other.peer && self.connection == other.connection && self.transport == other.transport
    }
}

impl Eq for Path {}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.transport, self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transport_is_found_by_its_name_and_by_its_number() {
        for transport in Transport::ALL {
            assert_eq!(transport.name().parse(), Ok(transport));
            assert_eq!(Transport::from_number(transport.number()), Some(transport));
        }
        assert_eq!("carrier-pigeon".parse::<Transport>(), Err(UnknownTransport));
        assert_eq!(Transport::from_number(0), None);
    }

    #[test]
    fn two_connections_from_one_address_are_two_paths_and_the_answering_address_makes_no_difference() {
        let udp = Path::from(SocketAddr::from(([192, 0, 2, 1], 7)));
        let tcp = Path { transport: Transport::Tcp, connection: 1, ..udp };
        assert_ne!(udp, tcp);
        assert_ne!(tcp, Path { connection: 2, ..tcp });
        assert_eq!(udp, Path { local: Some(IpAddr::from([192, 0, 2, 9])), ..udp });
    }
}
