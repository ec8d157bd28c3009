//! The store: how long its transactions take, fitted to what etcd was measured to take.
//!
//! A store carries out one request after another: each costs its log's sync and a little per key that it writes. Now
//! and then the disk stalls. That is the whole model; [`Figure`] holds it against every figure that it was fitted to, and a
//! test bounds the difference.

use super::{MILLISECOND, Nanos, SECOND};
use crate::lab::rng::Rng;

/// What a store's requests take.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Of a request, whatever it carries.
    pub per_request: Nanos,
    /// Of each key that it writes.
    pub per_write: Nanos,
    /// The share of requests that the disk stalls.
    pub stalls: f64,
    /// For how long.
    pub stall: Nanos,
    /// After a request is done, until its caller hears of it: nobody else waits for that.
    pub answer: Nanos,
    /// A linearizable read.
    pub read: Nanos,
}

/// Three etcd nodes that share one machine and one disk, on loopback.
pub const THREE_NODES: Fit = Fit {
    per_request: 2_650_000,
    per_write: 26_000,
    stalls: 0.012,
    stall: 20 * MILLISECOND,
    answer: 0,
    read: MILLISECOND,
};

/// One etcd node.
pub const ONE_NODE: Fit = Fit {
    per_request: 300_000,
    per_write: 21_500,
    stalls: 0.012,
    stall: 4 * MILLISECOND,
    answer: 600_000,
    read: MILLISECOND,
};

/// What a replica's part of one decision takes, gRPC and reads included: 10,000 reattaches in 1.53 s through one replica,
/// on two cores that it shared with the store and both gateways (docs/ownership.md, `make bench-control`).
pub const REPLICA_DECISION: Nanos = 153_000;

/// What a gateway's part of a handshake takes (docs/crypto.md, `make bench-crypto`).
pub const HANDSHAKE: Nanos = 231_000;

/// The longest that etcd kept a key after its lease had run out; half of the keys went within 270 ms.
pub const EXPIRY_LATE_MAX: Nanos = 820 * MILLISECOND;

/// A change until a watcher hears of it: p99 of ten watchers at 5,000 changes a second.
pub const WATCH: Nanos = 6 * MILLISECOND;

/// A lease's renewal in the store, a thousand of them a second.
pub const KEEP_ALIVE: Nanos = 500_000;

/// The file of etcd per byte of keys and values that it holds: a million records of 300 bytes made 362 MB.
pub const FILE_PER_BYTE: f64 = 362.0 / 300.0;

/// One store: its requests wait for each other.
#[derive(Debug)]
pub struct Store {
    fit: Fit,
    free_at: Nanos,
    rng: Rng,
    /// Requests so far.
    pub requests: u64,
    /// Keys written so far.
    pub writes: u64,
}

impl Store {
    /// An idle store.
    pub fn new(fit: Fit, seed: u64) -> Self {
        Self { fit, free_at: 0, rng: Rng::new(seed), requests: 0, writes: 0 }
    }

    /// Takes a request that writes `writes` keys; returns when its caller hears that it is done.
    pub fn request(&mut self, now: Nanos, writes: u64) -> Nanos {
        self.requests += 1;
        self.writes += writes;
        let stall = if self.rng.chance(self.fit.stalls) { self.fit.stall } else { 0 };
        let takes = self.fit.per_request + self.fit.per_write * writes + stall;
        self.free_at = self.free_at.max(now) + takes;
        self.free_at + self.fit.answer
    }

    /// What a linearizable read takes.
    pub fn read_takes(&self) -> Nanos {
        self.fit.read
    }
}

/// One measured figure that a fit stands on.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// On which store.
    pub fit: Fit,
    /// Writes in one request.
    pub writes: u64,
    /// Requests under way at a time.
    pub at_a_time: u64,
    /// Writes per second, as measured.
    pub rate: f64,
    /// Median of a request, in milliseconds, as measured.
    pub p50_ms: Option<f64>,
    /// 99th percentile of a request, in milliseconds, as measured.
    pub p99_ms: Option<f64>,
}

/// Everything that the fits were made from: compare-and-swaps of 300 bytes, etcd 3.4 syncing to disk.
pub const FIGURES: [Figure; 6] = [
    Figure {
        name: "three nodes, one at a time",
        fit: THREE_NODES,
        writes: 1,
        at_a_time: 1,
        rate: 289.0,
        p50_ms: Some(2.5),
        p99_ms: Some(22.0),
    },
    Figure {
        name: "three nodes, 64 to a request, 4 at a time",
        fit: THREE_NODES,
        writes: 64,
        at_a_time: 4,
        rate: 13_900.0,
        p50_ms: Some(17.0),
        p99_ms: Some(44.0),
    },
    Figure {
        name: "three nodes, 125 to a request, 4 at a time",
        fit: THREE_NODES,
        writes: 125,
        at_a_time: 4,
        rate: 20_400.0,
        p50_ms: None,
        p99_ms: None,
    },
    Figure {
        name: "one node, one at a time",
        fit: ONE_NODE,
        writes: 1,
        at_a_time: 1,
        rate: 872.0,
        p50_ms: Some(0.93),
        p99_ms: Some(4.4),
    },
    Figure {
        name: "one node, 64 to a request, 4 at a time",
        fit: ONE_NODE,
        writes: 64,
        at_a_time: 4,
        rate: 37_600.0,
        p50_ms: Some(5.8),
        p99_ms: Some(23.0),
    },
    Figure {
        name: "one node, 125 to a request, 4 at a time",
        fit: ONE_NODE,
        writes: 125,
        at_a_time: 4,
        rate: 40_700.0,
        p50_ms: None,
        p99_ms: None,
    },
];

impl Figure {
    /// The same load on the model: writes per second, median and 99th percentile of a request in milliseconds.
    pub fn modelled(&self) -> (f64, f64, f64) {
        const REQUESTS: u64 = 20_000;
        let mut store = Store::new(self.fit, 1);
        let mut asked: std::collections::VecDeque<Nanos> = (0..self.at_a_time).map(|_| 0).collect();
        let mut times = Vec::new();
        let mut end = 0;
        for _ in 0..REQUESTS {
            let at = asked.pop_front().unwrap_or(0);
            let heard = store.request(at, self.writes);
            times.push(heard - at);
            asked.push_back(heard);
            end = heard;
        }
        times.sort_unstable();
        let at = |share: f64| {
            let rank = (times.len() as f64 * share) as usize;
            times.get(rank.min(times.len() - 1)).map_or(0.0, |time| *time as f64 / MILLISECOND as f64)
        };
        let rate = (REQUESTS * self.writes) as f64 / (end as f64 / SECOND as f64);
        (rate, at(0.5), at(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_gives_back_every_rate_and_median_that_it_was_made_from() {
        for figure in FIGURES {
            let (rate, p50, p99) = figure.modelled();
            let name = figure.name;
            assert!((0.8..1.25).contains(&(rate / figure.rate)), "{name}: {rate:.0}/s for {}", figure.rate);
            for (modelled, measured, near) in [(p50, figure.p50_ms, 0.7..1.4), (p99, figure.p99_ms, 0.4..1.6)]
            {
                let held = measured.is_none_or(|measured| near.contains(&(modelled / measured)));
                assert!(held, "{name}: {modelled:.2} ms for {measured:?}");
            }
        }
    }
}
