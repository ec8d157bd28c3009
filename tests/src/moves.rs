//! A session that changes its path: what is done to the network, and what a probe through the tunnel sees of it.

pub mod drain;
pub mod weather;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::demo::report::millis;
use crate::lab::cluster::{Cluster, Plan};
use crate::lab::network::ReturnRoute;
use crate::lab::ownership::Ownership;
use crate::lab::probe::{EchoServer, Probe};
use crate::lab::process::{Mark, Process};
use crate::lab::programs::GATEWAY_PORT;
use crate::lab::stream::Stream;
use crate::lab::uplink::Uplink;
use crate::support::SOON;

/// Where the echo server listens.
const ECHO_PORT: u16 = 7;
/// Where a stream ends.
const SINK_PORT: u16 = 9;
/// Echoes before and after a change.
const CALM_ECHOES: usize = 40;
/// The port of the gateways' TLS door in a scene.
const TLS_PORT: u16 = 443;
/// A stream of a datagram every five milliseconds.
const SLOW_STREAM_BITS: u64 = 1_920_000;

/// A cluster with one device behind two routers of its own, whose session is attached by UDP.
#[derive(Debug)]
pub struct Scene {
    /// Echoes probes on the inner network.
    pub echo: EchoServer,
    /// The device's routers; the first is in use.
    pub uplinks: [Uplink; 2],
    /// The session when the scene was set.
    pub before: Ownership,
    /// The gateway that owns it.
    pub owner: usize,
    /// Everything else.
    pub cluster: Cluster,
    /// Which uplink the device uses.
    used: usize,
}

/// What happens to the device's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The network in use goes; the device has another one, with another address.
    OtherNetwork,
    /// Another network is preferred from now on; the old one still works.
    PreferredNetwork,
    /// The NAT forgets the session and gives it another port.
    NatPort,
    /// The NAT forgets the session and gives it another address.
    NatAddress,
    /// The same while packets flow to the device only.
    NatPortDownlinkOnly,
    /// UDP is dropped without a word, QUIC too.
    UdpDropped,
    /// UDP is refused with ICMP, QUIC too.
    UdpRejected,
    /// UDP to the session's port is dropped; QUIC passes.
    OnlyQuic,
    /// Everything but TLS is dropped.
    OnlyTls,
}

impl Change {
    /// Every change, in the order of the report.
    pub const ALL: [Self; 9] = [
        Self::OtherNetwork,
        Self::PreferredNetwork,
        Self::NatPort,
        Self::NatAddress,
        Self::NatPortDownlinkOnly,
        Self::UdpDropped,
        Self::UdpRejected,
        Self::OnlyQuic,
        Self::OnlyTls,
    ];

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::OtherNetwork => "address changes, old network gone",
            Self::PreferredNetwork => "another network is preferred",
            Self::NatPort => "silent NAT rebinding, another port",
            Self::NatAddress => "silent NAT rebinding, another address",
            Self::NatPortDownlinkOnly => "silent NAT rebinding, downlink only",
            Self::UdpDropped => "UDP dropped: on to TCP",
            Self::UdpRejected => "UDP refused: on to TCP",
            Self::OnlyQuic => "UDP port dropped: on to QUIC",
            Self::OnlyTls => "all but TLS dropped: on to TLS",
        }
    }

    /// What the routers do to what passes, and the transport that is left. None for a change of another kind.
    fn wall(self) -> Option<(Vec<String>, &'static str)> {
        let without = |port: u16, rules: &[&str]| {
            let closed = [format!("tcp dport {port} drop"), format!("tcp sport {port} drop")];
            closed.into_iter().chain(rules.iter().map(|rule| (*rule).to_owned())).collect()
        };
        match self {
            Self::OtherNetwork
            | Self::PreferredNetwork
            | Self::NatPort
            | Self::NatAddress
            | Self::NatPortDownlinkOnly => None,
            // One way is left each time: of several, whichever answers first would win.
            Self::UdpDropped => Some((without(TLS_PORT, &["meta l4proto udp drop"]), "tcp")),
            // What answers the device is refused to the gateway: it must not stop for that.
            Self::UdpRejected => Some((without(TLS_PORT, &["meta l4proto udp reject"]), "tcp")),
            Self::OnlyQuic => Some((
                vec![
                    format!("udp dport {GATEWAY_PORT} drop"),
                    format!("udp sport {GATEWAY_PORT} drop"),
                    "meta l4proto tcp drop".into(),
                ],
                "quic",
            )),
            Self::OnlyTls => Some((
                vec![
                    format!("tcp dport {TLS_PORT} accept"),
                    format!("tcp sport {TLS_PORT} accept"),
                    "drop".into(),
                ],
                "tls",
            )),
        }
    }
}

/// One measured change.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sample {
    /// The longest time without a packet to the device around the change, in milliseconds.
    pub gap_ms: f64,
    /// Probes sent around the change that were never answered.
    pub lost: usize,
    /// Echoes that came twice.
    pub duplicates: usize,
    /// The median round trip of the probe, in milliseconds.
    pub round_trip_ms: f64,
    /// The binding that the change ended in.
    pub binding: u64,
    /// Where the session left UDP: the gap and the probes lost when it came back, and after how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back: Option<Return>,
}

/// The way back to UDP.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Return {
    /// From the end of the blockade to the session's return, in milliseconds.
    pub after_ms: f64,
    /// The longest time without a packet around it, in milliseconds.
    pub gap_ms: f64,
    /// Probes sent around it that were never answered.
    pub lost: usize,
}

impl Scene {
    /// The plan of a scene: gateways with a TLS door.
    pub fn plan(label: &'static str) -> Plan {
        Plan {
            gateway_settings: format!("[transports]\ntls = \"0.0.0.0:{TLS_PORT}\"\n"),
            // The session moves more often here than an ordinary policy lets it.
            control_settings: "[policy]\nswitches_per_minute_max = 128\n".to_owned(),
            ..Plan::small(label)
        }
    }

    /// Starts the cluster, puts the device behind its routers and brings it up.
    ///
    /// # Errors
    /// When something is not ready in time.
    pub fn set(plan: &Plan) -> Result<Self> {
        let mut cluster = Cluster::start(plan)?;
        let echo = EchoServer::start(&cluster.network.inner, ECHO_PORT)?;
        let uplinks =
            [1, 2].map(|number| Uplink::create(&cluster.network, &cluster.network.devices[0], number));
        let [first, second] = uplinks;
        let before = cluster.up(0)?;
        let owner = cluster.gateway_number(before.owner.as_deref().context("the session has no owner")?)?;
        cluster.network.route_back(ReturnRoute::Gateway(owner))?;
        Ok(Self { echo, uplinks: [first?, second?], before, owner, cluster, used: 0 })
    }

    /// Starts a probe and waits for its first echoes.
    ///
    /// # Errors
    /// When they do not come.
    pub fn probe(&self) -> Result<Probe> {
        let probe = Probe::start(&self.cluster.network.devices[0], self.echo.address())?;
        probe.wait_for_echoes(CALM_ECHOES, SOON)?;
        Ok(probe)
    }

    /// The device's client.
    ///
    /// # Errors
    /// When it is down.
    pub fn device(&self) -> Result<&Process> {
        self.cluster.devices[0].as_ref().context("the device is down")
    }

    /// The next line of the device's journal after `mark` about `event` that `wanted` accepts.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn journal(&self, mark: Mark, event: &str, wanted: impl Fn(&Value) -> bool) -> Result<(Value, Mark)> {
        let read = |line: &str| serde_json::from_str(line).ok().filter(|v: &Value| v["event"] == event);
        let wanted = |line: &str| read(line).is_some_and(|value| wanted(&value));
        let (line, mark) = self.device()?.wait_for(&format!("a line about {event}"), mark, SOON, wanted)?;
        Ok((serde_json::from_str(&line)?, mark))
    }

    /// Every line of the device's journal since `mark` about `event`.
    ///
    /// # Errors
    /// When the device is down.
    pub fn journal_since(&self, mark: Mark, event: &str) -> Result<Vec<Value>> {
        let lines = self.device()?.lines_since(mark);
        let values = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(values.filter(|value| value["event"] == event).collect())
    }

    /// Fails unless the session is the one that the scene began with: same owner, epoch and addresses.
    ///
    /// # Errors
    /// What has changed.
    pub fn ensure_same_session(&self) -> Result<()> {
        let now = self.cluster.ownership(&self.before.session)?;
        let key = |o: &Ownership| (o.owner.clone(), o.epoch, o.inner.clone(), o.phase.clone());
        ensure!(key(&now) == key(&self.before), "the session was {:?} and is {now:?}", self.before);
        ensure!(self.cluster.session_of(0)? == self.before.session, "the device has another session");
        Ok(())
    }

    /// Does `change` under a running probe (under a stream to the device where nothing may be sent by it), waits until the
    /// session goes on, and ends what the change did as far as that is a change of its own.
    ///
    /// # Errors
    /// When the session does not go on, or not as it should.
    pub fn measure(&mut self, change: Change) -> Result<Sample> {
        if change == Change::NatPortDownlinkOnly {
            return self.measure_downlink_only();
        }
        let probe = self.probe()?;
        let (mark, at) = (self.device()?.mark(), Instant::now());
        self.begin(change)?;
        let (bound, mark) = self.journal(mark, "bound", |_| true)?;
        probe.wait_for_echoes(CALM_ECHOES, SOON)?;
        let end = Instant::now();
        if let Some((_, transport)) = change.wall() {
            let status = self.cluster.status(0)?;
            ensure!(status["transport"] == transport, "{change:?} ended with {}", status["transport"]);
        }
        let gap = probe.report_since(Some(at)).longest_gap;
        let back = match change.wall() {
            Some(_) => Some(self.come_back(&probe, mark)?),
            None => None,
        };
        // Time enough for the last echo of what counts as sent around the change.
        probe.wait_for_echoes(CALM_ECHOES, SOON)?;
        let lost = probe.lost_between(at, end - Duration::from_millis(50));
        let round_trip_ms = millis(probe.round_trip());
        Ok(Sample {
            gap_ms: millis(gap),
            lost,
            duplicates: probe.stop().duplicates,
            round_trip_ms,
            binding: bound["binding"].as_u64().context("no binding")?,
            back,
        })
    }

    /// Nothing is sent by the device but what its client sends by itself.
    fn measure_downlink_only(&mut self) -> Result<Sample> {
        let stream = self.stream_down(SLOW_STREAM_BITS)?;
        stream.wait_for(CALM_ECHOES as u64, SOON)?;
        let mark = self.device()?.mark();
        self.begin(Change::NatPortDownlinkOnly)?;
        let (bound, _) = self.journal(mark, "bound", |_| true)?;
        stream.wait_for(CALM_ECHOES as u64, SOON)?;
        let report = stream.finish()?;
        Ok(Sample {
            gap_ms: report.longest_gap_ms,
            lost: usize::try_from(report.lost)?,
            duplicates: usize::try_from(report.duplicates)?,
            round_trip_ms: 0.0,
            binding: bound["binding"].as_u64().context("no binding")?,
            back: None,
        })
    }

    fn begin(&mut self, change: Change) -> Result<()> {
        let device = &self.cluster.network.devices[0];
        match change {
            Change::OtherNetwork => {
                let other = 1 - self.used;
                self.uplinks[other].plug(device, true)?;
                self.uplinks[self.used].plug(device, false)?;
                self.used = other;
            }
            Change::PreferredNetwork => {
                let other = 1 - self.used;
                self.uplinks[other].plug(device, true)?;
                self.uplinks[other].prefer(device, true)?;
                self.uplinks[self.used].prefer(device, false).ok();
                self.used = other;
            }
            Change::NatPort | Change::NatPortDownlinkOnly => self.uplinks[self.used].rebind(false)?,
            Change::NatAddress => self.uplinks[self.used].rebind(true)?,
            Change::UdpDropped | Change::UdpRejected | Change::OnlyQuic | Change::OnlyTls => {
                let (rules, _) = change.wall().context("no wall")?;
                let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
                self.uplinks[self.used].filter(&rules)?;
            }
        }
        Ok(())
    }

    /// Lets UDP pass again and waits until the session has come back to it.
    fn come_back(&self, probe: &Probe, mark: Mark) -> Result<Return> {
        self.uplinks[self.used].filter(&[])?;
        let open = Instant::now();
        let (_, mark) = self.journal(mark, "path", |line| line["to"] == "udp")?;
        let returned = Instant::now();
        self.journal(mark, "bound", |_| true)?;
        probe.wait_for_echoes(CALM_ECHOES, SOON)?;
        // The line of the journal is written after the change: the echoes just before it belong to it too.
        let around = returned - Duration::from_millis(100);
        let end = Instant::now() - Duration::from_millis(50);
        let gap = probe.report_since(Some(around)).longest_gap;
        probe.wait_for_echoes(CALM_ECHOES, SOON)?;
        Ok(Return {
            after_ms: millis(returned - open),
            gap_ms: millis(gap),
            lost: probe.lost_between(around, end),
        })
    }

    /// The session's inner IPv4 address.
    ///
    /// # Errors
    /// When it has none.
    pub fn inner(&self) -> Result<IpAddr> {
        self.before.inner.iter().find(|address| address.is_ipv4()).copied().context("no inner IPv4 address")
    }

    /// A stream from the inner network to the device.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn stream_down(&self, rate_bits: u64) -> Result<Stream> {
        let network = &self.cluster.network;
        Stream::start(&network.inner, &network.devices[0], (self.inner()?, SINK_PORT).into(), rate_bits)
    }

    /// A stream from the device to the inner network.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn stream_up(&self, rate_bits: u64) -> Result<Stream> {
        let network = &self.cluster.network;
        Stream::start(&network.devices[0], &network.inner, network.inner.lan_socket(SINK_PORT), rate_bits)
    }
}
