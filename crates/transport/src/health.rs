//! Path health: smoothed round-trip time, jitter and loss, from what the session machines report.

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

/// A snapshot of one path's health.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Health {
    /// Smoothed round-trip time (RFC 6298); zero before the first sample.
    pub rtt: Duration,
    /// Round-trip time variation (RFC 6298).
    pub rtt_var: Duration,
    /// Loss of probes over the last window, 0 to 1.
    pub loss: f32,
}
