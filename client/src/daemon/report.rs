//! What `jump status` shows.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jump_session::client::Status;
use serde::{Deserialize, Serialize};

use crate::output::age;

/// A running client, as its control socket reports it. Field names are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// UPPER_SNAKE_CASE state.
    pub state: String,
    /// Why it got there.
    pub reason: String,
    /// The device's name.
    pub device_name: String,
    /// The session; `null` before birth.
    pub session_id: Option<String>,
    /// Its correlation id in logs and audit events; `null` before the first attempt at its birth.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// The session's epoch.
    pub epoch: u64,
    /// Path switches inside the epoch, as the owner last told.
    pub binding: u64,
    /// The owner.
    pub node_id: Option<String>,
    /// Its address.
    pub gateway: Option<SocketAddr>,
    /// How the session's keys were agreed, and what seals its records.
    #[serde(default)]
    pub suite: Option<String>,
    /// Inner addresses.
    pub inner_addresses: Vec<IpAddr>,
    /// The interface.
    pub interface: String,
    /// Networks routed into the tunnel.
    pub routes: Vec<String>,
    /// DNS servers that the owner named; not applied.
    pub dns_servers: Vec<IpAddr>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// How far its discovery is on this path: confirming, searching, complete, raising, unconfirmed (the path carries not
    /// even this much) or off (the gateway does not take part).
    #[serde(default)]
    pub mtu_discovery: Option<String>,
    /// Smoothed round trip to the owner, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Mean deviation of it, in milliseconds.
    pub rtt_var_ms: Option<f64>,
    /// What carries the session: udp, quic, tcp or tls.
    #[serde(default)]
    pub transport: Option<String>,
    /// Paths and transports changed since start, under one owner.
    #[serde(default)]
    pub path_changes: u64,
    /// Mean difference of successive round trips, in milliseconds.
    #[serde(default)]
    pub jitter_ms: Option<f64>,
    /// Share of records lost on the way to the owner and from it, 0 to 1, as both ends' counters tell.
    #[serde(default)]
    pub loss_up: f32,
    #[serde(default)]
    #[expect(missing_docs, reason = "documented with loss_up")]
    pub loss_down: f32,
    /// Bytes of sealed records sent to this owner and received from it.
    #[serde(default)]
    pub path_bytes_sent: u64,
    #[serde(default)]
    #[expect(missing_docs, reason = "documented with path_bytes_sent")]
    pub path_bytes_received: u64,
    /// Other ways that are being tried now.
    #[serde(default)]
    pub tried: Vec<Tried>,
    /// Time since the owner was last heard, in milliseconds.
    pub last_received_ms: Option<f64>,
    /// Time since the current owner was accepted, in milliseconds.
    pub attached_ms: Option<f64>,
    /// Owners accepted since start.
    pub attaches: u64,
    /// Gateways to reattach to.
    pub roster: Vec<SocketAddr>,
    /// What went through.
    pub traffic: Traffic,
    /// Datagrams dropped, by cause.
    pub drops: DropReport,
}

/// A way to the owner that is being tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// What carries it.
    pub transport: String,
    /// Challenges answered in a row.
    pub answers: u8,
    /// Its round trip, in milliseconds, once known.
    pub rtt_ms: Option<f64>,
}

/// Packets and bytes of inner traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Inner packets sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Inner packets received.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Datagrams that the socket did not take.
    pub send_dropped: u64,
    /// Inner packets dropped because the way here marked their datagram as congested and they are not ECN-capable.
    #[serde(default)]
    pub congestion_dropped: u64,
    /// Inner packets dropped because they were larger than the path carries; their senders were told.
    #[serde(default)]
    pub too_big_dropped: u64,
    /// Inner packets that the interface refused.
    #[serde(default)]
    pub interface_dropped: u64,
    /// Inner packets read while the machine took no more, beyond those that are kept for it.
    #[serde(default)]
    pub held_dropped: u64,
}

/// The machine's drop counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named and documented in jump-session's Drops")]
pub struct DropReport {
    pub malformed: u64,
    pub unknown_index: u64,
    pub replayed: u64,
    pub unauthenticated: u64,
    pub unexpected: u64,
    pub foreign: u64,
    pub bad_hint: u64,
    pub bad_cookie: u64,
    pub bad_grant: u64,
    /// Key sets that control did not sign.
    #[serde(default)]
    pub bad_key_set: u64,
    pub queue_full: u64,
}

/// What the tunnel adds to the machine's status.
pub(super) struct Surroundings<'a> {
    pub(super) now: Duration,
    pub(super) device_name: &'a str,
    pub(super) interface: &'a str,
    pub(super) routes: Vec<String>,
    pub(super) dns_servers: Vec<IpAddr>,
    pub(super) mtu: u16,
    pub(super) attached_at: Option<Duration>,
    pub(super) traffic: Traffic,
    pub(super) correlation: Option<String>,
}

impl Report {
    pub(super) fn new(status: Status, around: Surroundings<'_>) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let since = |at: Duration| ms(around.now.saturating_sub(at));
        let drops = status.drops;
        Self {
            state: status.state.code().to_owned(),
            reason: status.reason.code().to_owned(),
            device_name: around.device_name.to_owned(),
            session_id: status.session.map(|session| session.to_string()),
            correlation_id: around.correlation,
            epoch: status.epoch.0,
            binding: status.binding,
            node_id: status.owner.as_ref().map(|(node, _)| node.to_string()),
            gateway: status.owner.as_ref().map(|(_, gateway)| *gateway),
            suite: status.suite.map(|suite| suite.describe().to_owned()),
            inner_addresses: status.inner,
            interface: around.interface.to_owned(),
            routes: around.routes,
            dns_servers: around.dns_servers,
            mtu: around.mtu,
            mtu_discovery: status.mtu.map(|(_, phase)| phase.name().to_owned()),
            rtt_ms: status.rtt.map(|rtt| ms(rtt.smoothed)),
            rtt_var_ms: status.rtt.map(|rtt| ms(rtt.variation)),
            transport: status.transport.map(|transport| transport.to_string()),
            path_changes: status.path_changes,
            jitter_ms: status.rtt.map(|rtt| ms(rtt.jitter)),
            loss_up: status.meter.loss_up,
            loss_down: status.meter.loss_down,
            path_bytes_sent: status.meter.bytes_sent,
            path_bytes_received: status.meter.bytes_received,
            tried: status
                .tried
                .iter()
                .map(|way| Tried {
                    transport: way.transport.to_string(),
                    answers: way.answers,
                    rtt_ms: way.rtt.map(|rtt| ms(rtt.smoothed)),
                })
                .collect(),
            last_received_ms: status.last_received.map(since),
            attached_ms: around.attached_at.map(since),
            attaches: status.attaches,
            roster: status.roster,
            traffic: around.traffic,
            drops: DropReport {
                malformed: drops.malformed,
                unknown_index: drops.unknown_index,
                replayed: drops.replayed,
                unauthenticated: drops.unauthenticated,
                unexpected: drops.unexpected,
                foreign: drops.foreign,
                bad_hint: drops.bad_hint,
                bad_cookie: drops.bad_cookie,
                bad_grant: drops.bad_grant,
                bad_key_set: drops.bad_key_set,
                queue_full: drops.queue_full,
            },
        }
    }

    fn path_text(&self) -> String {
        let Some(transport) = &self.transport else { return "-".to_owned() };
        let round_trip = self.rtt_ms.map_or("round trip unknown".to_owned(), |rtt| {
            let (var, jitter) = (self.rtt_var_ms.unwrap_or_default(), self.jitter_ms.unwrap_or_default());
            format!("round trip {rtt:.1} ms (± {var:.1}, jitter {jitter:.1})")
        });
        let percent = |loss: f32| loss * 100.0;
        let tried: Vec<_> = self.tried.iter().map(|way| way.transport.as_str()).collect();
        let tried = if tried.is_empty() { String::new() } else { format!("; trying {}", tried.join(", ")) };
        format!(
            "{transport}, {round_trip}, loss {:.1} % up, {:.1} % down, binding {}{tried}",
            percent(self.loss_up),
            percent(self.loss_down),
            self.binding
        )
    }

    /// The report for people.
    pub fn to_text(&self) -> String {
        let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(", ") };
        let discovery = self.mtu_discovery.as_ref().map_or(String::new(), |phase| format!(" ({phase})"));
        let heard = self.last_received_ms.map_or("-".to_owned(), |ms| format!("{} ago", age(ms)));
        let rows = [
            ("state", format!("{} ({})", self.state, self.reason)),
            ("device", self.device_name.clone()),
            ("session", self.session_id.clone().unwrap_or_else(|| "-".to_owned())),
            ("correlation", self.correlation_id.clone().unwrap_or_else(|| "-".to_owned())),
            ("epoch", self.epoch.to_string()),
            (
                "gateway",
                match (&self.node_id, &self.gateway) {
                    (Some(node), Some(gateway)) => format!("{node} at {gateway}"),
                    _ => "-".to_owned(),
                },
            ),
            ("attached for", self.attached_ms.map_or("-".to_owned(), age)),
            ("inner address", list(self.inner_addresses.iter().map(ToString::to_string).collect())),
            ("interface", format!("{}, MTU {}{discovery}", self.interface, self.mtu)),
            ("routes", list(self.routes.clone())),
            ("path", self.path_text()),
            ("keys", self.suite.clone().unwrap_or_else(|| "-".to_owned())),
            ("last heard", heard),
            (
                "traffic",
                format!(
                    "{} packets ({} bytes) sent, {} packets ({} bytes) received",
                    self.traffic.sent_packets,
                    self.traffic.sent_bytes,
                    self.traffic.received_packets,
                    self.traffic.received_bytes
                ),
            ),
        ];
        rows.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect()
    }
}
