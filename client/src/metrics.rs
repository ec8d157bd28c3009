//! The client's metrics: names, and how the tunnel's thread sets them.

use jump_session::client::{Drops, Health, PathHealth, State};
use jump_session::path::Transport;
use jump_session::reason::Reason;
use jump_telemetry::metrics::{Kind, MetricDef, Unit};
use metrics::{Counter, Gauge};

use crate::daemon::Traffic;

/// The session's state.
pub const STATE: MetricDef = MetricDef {
    name: "jump_client_state",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    help: "1 for the state that the session is in, 0 for the others; VOLATILE and DEGRADED are a path that does not answer.",
    labels: &["state"],
};

/// What carries the session.
pub const TRANSPORT: MetricDef = MetricDef {
    name: "jump_client_path_transport",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    help: "1 for the transport that carries the session, 0 for the others.",
    labels: &["transport"],
};

/// The smoothed round trip.
pub const RTT: MetricDef = MetricDef {
    name: "jump_client_path_rtt_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    help: "Round trip to the owner, smoothed; NaN while there is none.",
    labels: &[],
};

/// Its variation.
pub const RTT_VARIATION: MetricDef = MetricDef {
    name: "jump_client_path_rtt_variation_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    help: "Mean deviation of the round trip to the owner (RFC 6298), smoothed; NaN while there is none.",
    labels: &[],
};

/// Its jitter.
pub const JITTER: MetricDef = MetricDef {
    name: "jump_client_path_jitter_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    help: "Mean difference of successive round trips, smoothed; NaN while there is none.",
    labels: &[],
};

/// Loss on the path.
pub const LOSS: MetricDef = MetricDef {
    name: "jump_client_path_loss_ratio",
    kind: Kind::Gauge,
    unit: Unit::Ratio,
    help: "Share of records lost on the path to the owner, up and down, smoothed; NaN while there is no path.",
    labels: &["direction"],
};

/// Changes of path.
pub const PATH_CHANGES: MetricDef = MetricDef {
    name: "jump_client_path_changes_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Changes of path or transport under one owner, by reason.",
    labels: &["reason"],
};

/// Outcomes of attaches.
pub const ATTACH: MetricDef = MetricDef {
    name: "jump_client_attach_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Attaches that were answered: accepted, by why the client attached, and rejected, by why they were.",
    labels: &["outcome", "reason"],
};

/// Carried packets.
pub const PACKETS: MetricDef = MetricDef {
    name: "jump_client_packets_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Inner packets carried, by direction.",
    labels: &["direction"],
};

/// Carried bytes.
pub const BYTES: MetricDef = MetricDef {
    name: "jump_client_packet_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    help: "Bytes of inner packets carried, by direction.",
    labels: &["direction"],
};

/// Dropped datagrams and packets.
pub const DROPPED: MetricDef = MetricDef {
    name: "jump_client_packets_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Datagrams and packets dropped, by reason.",
    labels: &["reason"],
};

/// All of them.
pub const ALL: &[MetricDef] =
    &[STATE, TRANSPORT, RTT, RTT_VARIATION, JITTER, LOSS, PATH_CHANGES, ATTACH, PACKETS, BYTES, DROPPED];

/// Handles of what the tunnel's thread sets after every turn: an atomic store each.
pub(crate) struct Gauges {
    states: [Gauge; State::ALL.len()],
    transports: [Gauge; Transport::ALL.len()],
    rtt: Gauge,
    rtt_variation: Gauge,
    jitter: Gauge,
    loss_up: Gauge,
    loss_down: Gauge,
    carried: [Counter; 4],
    dropped: [(Counter, u64); DROPS],
}

const DROPS: usize = 16;

impl Gauges {
    /// Nothing has happened yet.
    pub(crate) fn new() -> Self {
        let up = [("direction", "up")];
        let down = [("direction", "down")];
        let dropped = drops(&Drops::default(), &Traffic::default());
        Self {
            states: State::ALL.map(|state| STATE.gauge(&[("state", state.code())])),
            transports: Transport::ALL.map(|transport| TRANSPORT.gauge(&[("transport", transport.name())])),
            rtt: RTT.gauge(&[]),
            rtt_variation: RTT_VARIATION.gauge(&[]),
            jitter: JITTER.gauge(&[]),
            loss_up: LOSS.gauge(&up),
            loss_down: LOSS.gauge(&down),
            carried: [PACKETS.counter(&up), BYTES.counter(&up), PACKETS.counter(&down), BYTES.counter(&down)],
            dropped: dropped.map(|(reason, _)| (DROPPED.counter(&[("reason", reason)]), 0)),
        }
    }

    /// Shows how things are.
    pub(crate) fn set(&mut self, health: &Health, traffic: &Traffic) {
        for (state, gauge) in State::ALL.into_iter().zip(&self.states) {
            gauge.set(flag(state == health.state));
        }
        let transport = health.path.map(|path| path.transport);
        for (candidate, gauge) in Transport::ALL.into_iter().zip(&self.transports) {
            gauge.set(flag(Some(candidate) == transport));
        }
        let rtt = health.path.and_then(|path| path.rtt);
        self.rtt.set(rtt.map_or(f64::NAN, |rtt| rtt.smoothed.as_secs_f64()));
        self.rtt_variation.set(rtt.map_or(f64::NAN, |rtt| rtt.variation.as_secs_f64()));
        self.jitter.set(rtt.map_or(f64::NAN, |rtt| rtt.jitter.as_secs_f64()));
        let loss =
            |loss: fn(&PathHealth) -> f32| health.path.as_ref().map_or(f64::NAN, |path| loss(path).into());
        self.loss_up.set(loss(|path| path.loss_up));
        self.loss_down.set(loss(|path| path.loss_down));
        let Traffic { sent_packets, sent_bytes, received_packets, received_bytes, .. } = *traffic;
        let carried = [sent_packets, sent_bytes, received_packets, received_bytes];
        self.carried.iter().zip(carried).for_each(|(counter, value)| counter.absolute(value));
        for ((counter, told), (_, now)) in self.dropped.iter_mut().zip(drops(&health.drops, traffic)) {
            // Another session counts its drops from 0.
            counter.increment(now.checked_sub(*told).unwrap_or(now));
            *told = now;
        }
    }
}

/// Every reason for a drop, with its count.
fn drops(drops: &Drops, traffic: &Traffic) -> [(&'static str, u64); DROPS] {
    [
        ("malformed", drops.malformed),
        ("unknown_index", drops.unknown_index),
        ("replayed", drops.replayed),
        ("unauthenticated", drops.unauthenticated),
        ("unexpected", drops.unexpected),
        ("foreign", drops.foreign),
        ("bad_hint", drops.bad_hint),
        ("bad_cookie", drops.bad_cookie),
        ("bad_grant", drops.bad_grant),
        ("bad_key_set", drops.bad_key_set),
        ("queue_full", drops.queue_full),
        ("socket_full", traffic.send_dropped),
        ("congestion", traffic.congestion_dropped),
        ("too_big", traffic.too_big_dropped),
        ("interface", traffic.interface_dropped),
        ("held_full", traffic.held_dropped),
    ]
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Counts a change of path.
pub(crate) fn count_path_change(reason: Reason) {
    PATH_CHANGES.counter(&[("reason", reason.code())]).increment(1);
}

/// Counts an attach that was answered.
pub(crate) fn count_attach(outcome: &'static str, reason: Reason) {
    ATTACH.counter(&[("outcome", outcome), ("reason", reason.code())]).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_keep_the_conventions_and_the_documentation() {
        assert_eq!(jump_telemetry::metrics::check_conventions(ALL), Vec::<String>::new());
        jump_telemetry::docs::assert_section(
            "docs/metrics.md",
            "client",
            &jump_telemetry::metrics::table(ALL),
        );
    }

    #[test]
    fn a_path_is_shown_while_there_is_one_and_drops_of_every_session_add_up() {
        let registry = jump_telemetry::metrics::install(&[ALL]).unwrap();
        let mut gauges = Gauges::new();
        let path = PathHealth { transport: Transport::Tcp, rtt: None, loss_up: 0.5, loss_down: 0.0 };
        let drops = |replayed| Drops { replayed, ..Drops::default() };
        let attached = Health { state: State::Attached, path: Some(path), drops: drops(3) };
        gauges.set(&attached, &Traffic { sent_packets: 7, ..Traffic::default() });
        let page = registry.render();
        for line in [
            "jump_client_state{state=\"ATTACHED\"} 1",
            "jump_client_state{state=\"DEGRADED\"} 0",
            "jump_client_path_transport{transport=\"tcp\"} 1",
            "jump_client_path_rtt_seconds NaN",
            "jump_client_path_loss_ratio{direction=\"up\"} 0.5",
            "jump_client_packets_total{direction=\"up\"} 7",
            "jump_client_packets_dropped_total{reason=\"replayed\"} 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        let next = Health { state: State::Birth, path: None, drops: drops(1) };
        gauges.set(&next, &Traffic::default());
        let page = registry.render();
        for line in [
            "jump_client_state{state=\"ATTACHED\"} 0",
            "jump_client_state{state=\"BIRTH\"} 1",
            "jump_client_path_transport{transport=\"tcp\"} 0",
            "jump_client_path_loss_ratio{direction=\"up\"} NaN",
            "jump_client_packets_dropped_total{reason=\"replayed\"} 4",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
