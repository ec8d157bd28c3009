//! Path health: smoothed round-trip time, jitter and loss, from what the session machines and transports report.

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

/// A snapshot of one path's health.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Health {
    /// Smoothed round-trip time (RFC 6298); zero before the first sample.
    pub rtt: Duration,
    /// Round-trip time variation (RFC 6298).
    pub rtt_var: Duration,
    /// Mean difference of successive round-trip times (RFC 3550 style smoothing).
    pub jitter: Duration,
    /// Loss of probes over the last window, 0 to 1.
    pub loss: f32,
    /// When something last came, in [`crate::clock::boottime_nanos`]; 0 for never.
    pub received_at_nanos: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
}

/// Probes that the loss of a [`HealthMeter`] looks back on.
pub const LOSS_WINDOW: u32 = 64;

/// Keeps one path's health from samples. Pure: time comes in as argument.
#[derive(Debug, Clone, Default)]
pub struct HealthMeter {
    health: Health,
    last_rtt: Option<Duration>,
    /// Outcome of the last [`LOSS_WINDOW`] probes, newest in the lowest bit; set for lost.
    lost: u64,
    probes: u32,
}

impl HealthMeter {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a datagram that left.
    pub fn sent(&mut self, bytes: usize) {
        self.health.bytes_sent += bytes as u64;
    }

    /// Notes a datagram that came, at `now` in nanoseconds.
    pub fn received(&mut self, bytes: usize, now_nanos: u64) {
        self.health.bytes_received += bytes as u64;
        self.health.received_at_nanos = now_nanos;
    }

    /// Notes an answered probe and its round-trip time.
    pub fn answered(&mut self, rtt: Duration) {
        self.outcome(false);
        let Some(last) = self.last_rtt.replace(rtt) else {
            self.health.rtt = rtt;
            self.health.rtt_var = rtt / 2;
            return;
        };
        let health = &mut self.health;
        // RFC 6298 §2.3: the variation first, with the old mean.
        health.rtt_var = (health.rtt_var * 3 + health.rtt.abs_diff(rtt)) / 4;
        health.rtt = (health.rtt * 7 + rtt) / 8;
        // RFC 3550 §6.4.1, with round trips in place of transit times.
        health.jitter = (health.jitter * 15 + last.abs_diff(rtt)) / 16;
    }

    /// Notes a probe without answer.
    pub fn unanswered(&mut self) {
        self.outcome(true);
    }

    /// The state now.
    pub fn health(&self) -> Health {
        self.health
    }

    fn outcome(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u64::from(lost);
        self.probes = (self.probes + 1).min(LOSS_WINDOW);
        self.health.loss = self.lost.count_ones() as f32 / self.probes as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_sample_is_the_mean_and_half_of_it_the_variation() {
        let mut meter = HealthMeter::new();
        meter.answered(40 * MS);
        assert_eq!(meter.health().rtt, 40 * MS);
        assert_eq!(meter.health().rtt_var, 20 * MS);
        assert_eq!(meter.health().jitter, Duration::ZERO);
    }

    #[test]
    fn a_steady_path_converges_and_a_jump_shows_in_variation_and_jitter() {
        let mut meter = HealthMeter::new();
        for _ in 0..50 {
            meter.answered(40 * MS);
        }
        assert!(meter.health().rtt_var < MS);
        meter.answered(140 * MS);
        let health = meter.health();
        assert_eq!(health.rtt, 40 * MS + 100 * MS / 8);
        assert!(health.rtt_var >= 25 * MS && health.jitter > 6 * MS);
    }

    #[test]
    fn loss_covers_the_last_window_only() {
        let mut meter = HealthMeter::new();
        meter.unanswered();
        assert_eq!(meter.health().loss, 1.0);
        meter.answered(MS);
        assert_eq!(meter.health().loss, 0.5);
        for _ in 0..LOSS_WINDOW {
            meter.answered(MS);
        }
        assert_eq!(meter.health().loss, 0.0);
    }

    #[test]
    fn bytes_and_the_last_receipt_are_kept() {
        let mut meter = HealthMeter::new();
        meter.sent(10);
        meter.received(7, 99);
        meter.received(7, 100);
        let health = meter.health();
        assert_eq!((health.bytes_sent, health.bytes_received, health.received_at_nanos), (10, 14, 100));
    }
}
