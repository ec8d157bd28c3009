//! What a transport itself knows of a path. Loss and jitter are the session's to know: its pings find them on any transport.

use std::fmt;
use std::time::Duration;

/// A transport's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportKind {
    /// UDP datagrams.
    Udp,
    /// Length-prefixed frames over TCP.
    Tcp,
    /// QUIC DATAGRAM frames.
    Quic,
    /// In memory, for tests.
    Memory,
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Quic => "quic",
            Self::Memory => "memory",
        })
    }
}

/// A snapshot of what a transport knows of one path.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Health {
    /// Smoothed round-trip time (RFC 6298); zero before the first sample.
    pub rtt: Duration,
    /// Round-trip time variation (RFC 6298).
    pub rtt_var: Duration,
    /// When something last came, in [`crate::clock::boottime_nanos`]; 0 for never.
    pub received_at_nanos: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
}
