//! Planned moves: the gateway that owns a session is drained while a numbered stream passes through it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Scene;
use crate::demo::report::millis;
use crate::lab::cluster::gateway_name;
use crate::lab::programs::metric;
use crate::lab::stream::{Stream, StreamReport};
use crate::support::SOON;

/// Which way the stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the inner network to the device.
    Down,
    /// From the device to the inner network.
    Up,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Down, Self::Up];
}

/// What planned moves did to a stream.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Drains {
    /// Which way the stream went.
    pub way: Way,
    /// Bits of UDP payload per second.
    pub rate_bits: u64,
    /// Owners in a row.
    pub moves: u64,
    /// How long each took, from the order until control named the other owner, in milliseconds.
    pub took_ms: Vec<f64>,
    /// What became of the stream.
    pub stream: StreamReport,
    /// What the gateways dropped meanwhile, by reason; only what is not zero.
    pub dropped: Vec<(String, f64)>,
    /// Packets that waited for an owner.
    pub parked: f64,
}

/// Reasons for which a packet of the stream could have been dropped.
const REASONS: [&str; 10] = [
    "parking_full",
    "parking_expired",
    "not_owner",
    "not_active",
    "no_route",
    "unknown_index",
    "socket_full",
    "tun_refused",
    "replay",
    "guard",
];

impl Scene {
    /// Drains the owner `moves` times in a row under a stream; each drained gateway is taken back once it is empty.
    ///
    /// # Errors
    /// When a move does not happen or the session becomes another.
    pub fn drains(&mut self, way: Way, rate_bits: u64, moves: u64) -> Result<Drains> {
        let before = self.cluster.ownership(&self.before.session)?;
        let dropped_before = self.dropped()?;
        let parked_before = self.total("jump_gateway_events_total", r#"event="parked""#)?;
        let stream: Stream = match way {
            Way::Down => self.stream_down(rate_bits)?,
            Way::Up => self.stream_up(rate_bits)?,
        };
        stream.wait_for(100, SOON)?;
        let mut took_ms = Vec::new();
        for _ in 0..moves {
            took_ms.push(millis(self.drain_owner()?));
            stream.wait_for(rate_bits / 100_000, SOON)?;
        }
        let stream = stream.finish()?;
        let after = self.cluster.ownership(&self.before.session)?;
        ensure!(after.epoch == before.epoch + moves, "{moves} moves led from {before:?} to {after:?}");
        ensure!(after.inner == before.inner, "the inner addresses changed");
        let dropped = self.dropped()?.into_iter().zip(dropped_before);
        let dropped = dropped.map(|((reason, now), (_, then))| (reason, now - then));
        Ok(Drains {
            way,
            rate_bits,
            moves,
            took_ms,
            stream,
            dropped: dropped.filter(|(_, count)| *count > 0.0).collect(),
            parked: self.total("jump_gateway_events_total", r#"event="parked""#)? - parked_before,
        })
    }

    /// Drains the owner, waits for the next one, and takes the drained gateway back.
    fn drain_owner(&self) -> Result<Duration> {
        let operator = |arguments: &[&str]| {
            self.cluster.operator.json(&self.cluster.network.controls[0], arguments).map(|_| ())
        };
        let before = self.cluster.ownership(&self.before.session)?;
        let owner = before.owner.clone().context("no owner")?;
        let start = Instant::now();
        operator(&["nodes", "drain", "--yes", "--wait", "0s", &owner])?;
        self.cluster.wait_owned_after(&before, SOON)?;
        let took = start.elapsed();
        operator(&["nodes", "undrain", &owner])?;
        Ok(took)
    }

    fn dropped(&self) -> Result<Vec<(String, f64)>> {
        REASONS
            .iter()
            .map(|reason| {
                let label = format!("reason=\"{reason}\"");
                Ok(((*reason).to_owned(), self.total("jump_gateway_packets_dropped_total", &label)?))
            })
            .collect()
    }

    /// A counter's sum over all gateways.
    ///
    /// # Errors
    /// When a gateway does not answer.
    pub fn total(&self, name: &str, label: &str) -> Result<f64> {
        let of = |(i, host)| metric(host, name, label).with_context(|| gateway_name(i));
        self.cluster.network.gateways.iter().enumerate().map(of).sum()
    }
}
