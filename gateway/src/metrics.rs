//! The gateway's metrics: names, and how the data plane's numbers reach them.

use std::sync::Arc;

use jump_session::gateway::State;
use jump_session::path::Transport;
use jump_telemetry::metrics::{Kind, LATENCY_BUCKETS, MetricDef, Unit, before_scrape};
use jump_transport::clock::boottime_nanos;
use tokio::sync::mpsc;

use crate::context::Orders;
use crate::dataplane::engine::Shared;
use crate::dataplane::{Count, DropReason, Event};
use crate::lease::Guard;

/// Sessions carried here.
pub const SESSIONS: MetricDef = gauge("jump_gateway_sessions", Unit::Count, "Sessions carried here.");
/// Sessions by state.
pub const SESSION_STATES: MetricDef = MetricDef {
    name: "jump_gateway_sessions_by_state",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Sessions carried here, by state: ATTACHED, VOLATILE and DEGRADED (not heard for 40 and 75 s), REATTACHING (asked to move).",
    labels: &["state"],
};
/// Receiver indices in use.
pub const INDICES: MetricDef = gauge(
    "jump_gateway_receiver_indices",
    Unit::Count,
    "Receiver indices in use: sessions, handshakes and retired keys.",
);
/// Known ways to inner addresses.
pub const ROUTES: MetricDef =
    gauge("jump_gateway_inner_routes", Unit::Count, "Inner addresses whose owner is known here.");
/// Links to other gateways.
pub const MESH_LINKS: MetricDef = gauge("jump_gateway_mesh_links", Unit::Count, "Links to other gateways.");
/// Authority left.
pub const AUTHORITY: MetricDef = gauge(
    "jump_gateway_authority_seconds",
    Unit::Seconds,
    "Time for which this node may still forward without a renewal; 0 when it may not.",
);
/// The guard.
pub const GUARD: MetricDef = MetricDef {
    name: "jump_gateway_guard_holds",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    help: "Whether this node may forward: 1 while its authority holds.",
    labels: &[],
};
/// The last renewal.
pub const LEASE_RENEWED: MetricDef = gauge(
    "jump_gateway_lease_renewed_timestamp_seconds",
    Unit::Timestamp,
    "When the renewal that the authority rests on was sent; the lease's age is the time since.",
);
/// Queues.
pub const QUEUE: MetricDef = MetricDef {
    name: "jump_gateway_queue_entries",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Entries that wait in a queue: orders to the data plane, events from it.",
    labels: &["queue"],
};
/// Dropped datagrams and packets.
pub const DROPPED: MetricDef = MetricDef {
    name: "jump_gateway_packets_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Datagrams and packets dropped by the data plane.",
    labels: &["reason"],
};
/// Forwarded packets.
pub const PACKETS: MetricDef = MetricDef {
    name: "jump_gateway_packets_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Inner packets forwarded, by where they went.",
    labels: &["direction"],
};
/// Forwarded bytes.
pub const BYTES: MetricDef = MetricDef {
    name: "jump_gateway_packet_bytes_total",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    help: "Bytes of inner packets forwarded.",
    labels: &["direction"],
};
/// Everything else that the data plane does.
pub const EVENTS: MetricDef = MetricDef {
    name: "jump_gateway_events_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "What the data plane did besides forwarding.",
    labels: &["event"],
};
/// Datagrams by TCP, TLS and QUIC.
pub const DOORS: MetricDef = MetricDef {
    name: "jump_gateway_door_datagrams_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Datagrams from and to clients by TCP, TLS and QUIC; dropped ones found a full queue.",
    labels: &["transport", "direction"],
};
/// Connections turned away.
pub const DOORS_REFUSED: MetricDef = MetricDef {
    name: "jump_gateway_door_connections_refused_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Connections of clients turned away because there were too many.",
    labels: &["transport"],
};
/// Outcomes of claims.
pub const ATTACH: MetricDef = MetricDef {
    name: "jump_gateway_attach_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Claims that control decided, by outcome and reason.",
    labels: &["outcome", "reason"],
};
/// Duration of claims.
pub const ATTACH_SECONDS: MetricDef = MetricDef {
    name: "jump_gateway_attach_seconds",
    kind: Kind::Histogram(LATENCY_BUCKETS),
    unit: Unit::Seconds,
    help: "Time from a client's confirmation to control's verdict.",
    labels: &["outcome"],
};
/// Outcomes of renewals.
pub const RENEWALS: MetricDef = MetricDef {
    name: "jump_gateway_lease_renewals_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Renewals of the node's lease.",
    labels: &["outcome"],
};
/// Fences.
pub const FENCES: MetricDef = MetricDef {
    name: "jump_gateway_fences_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Orders to stop a session, by where they came from.",
    labels: &["source"],
};
/// Restarts.
pub const WATCH_RESTARTS: MetricDef = MetricDef {
    name: "jump_gateway_watch_restarts_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Times that the stream of bindings was opened again.",
    labels: &[],
};

/// All of them.
pub const ALL: &[MetricDef] = &[
    SESSIONS,
    SESSION_STATES,
    INDICES,
    ROUTES,
    MESH_LINKS,
    AUTHORITY,
    GUARD,
    LEASE_RENEWED,
    QUEUE,
    DROPPED,
    PACKETS,
    BYTES,
    EVENTS,
    DOORS,
    DOORS_REFUSED,
    ATTACH,
    ATTACH_SECONDS,
    RENEWALS,
    FENCES,
    WATCH_RESTARTS,
];

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> MetricDef {
    MetricDef { name, kind: Kind::Gauge, unit, help, labels: &[] }
}

/// Copies the data plane's published numbers into the registry before every scrape.
pub fn publish(shared: Arc<Shared>, guard: Guard) {
    use std::sync::atomic::Ordering::Relaxed;
    before_scrape(move || {
        SESSIONS.gauge(&[]).set(shared.sessions.load(Relaxed) as f64);
        // The others are not carried: a claim that waits, a session that went or ended.
        for (state, count) in State::ALL.into_iter().zip(&shared.states).filter(|(state, _)| state.forwards())
        {
            SESSION_STATES.gauge(&[("state", state.name())]).set(count.load(Relaxed) as f64);
        }
        INDICES.gauge(&[]).set(shared.entries.load(Relaxed) as f64);
        ROUTES.gauge(&[]).set(shared.routes.load(Relaxed) as f64);
        MESH_LINKS.gauge(&[]).set(shared.links.load(Relaxed) as f64);
        AUTHORITY.gauge(&[]).set(guard.deadline().saturating_sub(boottime_nanos()) as f64 / 1e9);
        GUARD.gauge(&[]).set(f64::from(u8::from(guard.holds(boottime_nanos()))));
        for (transport, door) in Transport::ALL.into_iter().zip(&shared.doors).skip(1) {
            let transport = ("transport", transport.name());
            for (direction, value) in
                [("up", &door.received), ("down", &door.sent), ("dropped", &door.dropped)]
            {
                DOORS.counter(&[transport, ("direction", direction)]).absolute(value.load(Relaxed));
            }
            DOORS_REFUSED.counter(&[transport]).absolute(door.refused.load(Relaxed));
        }
        let counters = &shared.counters;
        for reason in DropReason::ALL {
            DROPPED.counter(&[("reason", reason.label())]).absolute(counters.dropped(*reason));
        }
        for count in Count::ALL {
            let value = counters.count(*count);
            match count {
                Count::PacketsUp => PACKETS.counter(&[("direction", "up")]).absolute(value),
                Count::PacketsDown => PACKETS.counter(&[("direction", "down")]).absolute(value),
                Count::BytesUp => BYTES.counter(&[("direction", "up")]).absolute(value),
                Count::BytesDown => BYTES.counter(&[("direction", "down")]).absolute(value),
                Count::RelayedOut
                | Count::RelayedIn
                | Count::StraysOut
                | Count::StraysIn
                | Count::Parked
                | Count::AttachInits
                | Count::AttachReplies
                | Count::Confirms
                | Count::Accepted
                | Count::Rejected
                | Count::Fenced
                | Count::Rekeys
                | Count::Cookies
                | Count::Hints
                | Count::PathMoves
                | Count::PathMovesRefused
                | Count::Copied
                | Count::AnchoredOut
                | Count::AnchoredIn
                | Count::AnchorsTold
                | Count::AnchorsTaken
                | Count::AnchorsMissed
                | Count::AnchorsUnknown
                | Count::GuardTrips
                | Count::TooBigTold
                | Count::Fragmented => EVENTS.counter(&[("event", count.label())]).absolute(value),
            }
        }
    });
}

/// Says how long the queues to and from the data plane are, before every scrape.
pub fn publish_queues(orders: Orders, events: mpsc::WeakSender<Event>) {
    before_scrape(move || {
        QUEUE.gauge(&[("queue", "orders")]).set(orders.waiting() as f64);
        if let Some(events) = events.upgrade() {
            let waiting = events.max_capacity() - events.capacity();
            QUEUE.gauge(&[("queue", "events")]).set(waiting as f64);
        }
    });
}

/// Notes that a renewal succeeded `age` after it was sent.
pub(crate) fn renewed(age: std::time::Duration) {
    let sent = std::time::SystemTime::now().checked_sub(age).unwrap_or(std::time::UNIX_EPOCH);
    let since = sent.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    LEASE_RENEWED.gauge(&[]).set(since.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_keep_the_conventions_and_the_documentation() {
        assert_eq!(jump_telemetry::metrics::check_conventions(ALL), Vec::<String>::new());
        jump_telemetry::docs::assert_section(
            "docs/metrics.md",
            "gateway",
            &jump_telemetry::metrics::table(ALL),
        );
    }
}
