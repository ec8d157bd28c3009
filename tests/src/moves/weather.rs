//! A session over a path that loses, delays and comes and goes: UDP passes through an impairing relay and cannot pass it
//! by; TCP is there, unharmed.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jump_session::client::{State, Trigger};
use serde_json::Value;

use crate::lab::cluster::{Cluster, Plan};
use crate::lab::network::{Host, ReturnRoute};
use crate::lab::ownership::Ownership;
use crate::lab::probe::{EchoServer, Probe};
use crate::lab::process::Mark;
use crate::lab::programs::GATEWAY_PORT;
use crate::lab::relay::{Direction, Impairment, Relay};
use crate::support::SOON;

/// Where the relay listens, on the gateway's host.
const RELAY_PORT: u16 = 40_000;

const TRIGGERS: [Trigger; 9] = [
    Trigger::Proven,
    Trigger::Accepted,
    Trigger::Failed,
    Trigger::Unanswered,
    Trigger::Answered,
    Trigger::Lost,
    Trigger::Move,
    Trigger::Returned,
    Trigger::Ended,
];

/// One gateway, one device, and the relay between them.
#[derive(Debug)]
pub struct Weather {
    /// Under way all the time.
    pub probe: Probe,
    /// The echo server.
    pub echo: EchoServer,
    /// The session when the weather was fine.
    pub before: Ownership,
    relay: Relay,
    /// Everything else.
    pub cluster: Cluster,
}

/// What a session went through.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Chronicle {
    /// Changes of state: from, to, reason.
    pub states: Vec<(String, String, String)>,
    /// Changes of transport: to which.
    pub paths: Vec<String>,
    /// Bindings that the gateway gave.
    pub bindings: usize,
    /// Attaches.
    pub attaches: usize,
    /// The most of bindings and attaches together within one minute.
    pub switches_per_minute_max: usize,
}

impl Weather {
    /// Starts everything; the weather is fine.
    ///
    /// # Errors
    /// When something is not ready in time.
    pub fn start(label: &'static str) -> Result<Self> {
        let plan = Plan { gateways: 1, return_route: ReturnRoute::Gateway(0), ..Plan::small(label) };
        let mut cluster = Cluster::start(&plan)?;
        let (gateway, device) = (&cluster.network.gateways[0], &cluster.network.devices[0]);
        cluster.network.wall(gateway, &[&only_by_relay(device)])?;
        let at = gateway.wan_socket(RELAY_PORT);
        let server: SocketAddr = gateway.wan_socket(GATEWAY_PORT);
        let relay = gateway.namespace.enter(|| -> Result<Relay> {
            let listen = UdpSocket::bind(at).context("opening the relay")?;
            Relay::start(listen, server, Impairment::default(), Impairment::default(), 7)
        })??;
        let echo = EchoServer::start(&cluster.network.inner, 7)?;
        let before = cluster.up_with(0, &["--gateway", &at.to_string()])?;
        let probe = Probe::start(&cluster.network.devices[0], echo.address())?;
        probe.wait_for_echoes(40, SOON)?;
        Ok(Self { probe, echo, before, relay, cluster })
    }

    /// Changes the weather in both directions.
    pub fn set(&self, weather: Impairment) {
        self.relay.impair(Direction::Up, weather);
        self.relay.impair(Direction::Down, weather);
    }

    /// Drops TCP to the gateway's door, or lets it pass again.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn block_tcp(&self, blocked: bool) -> Result<()> {
        let network = &self.cluster.network;
        let (udp, tcp) = (only_by_relay(&network.devices[0]), format!("tcp dport {GATEWAY_PORT} drop"));
        let rules: &[&str] = if blocked { &[&udp, &tcp] } else { &[&udp] };
        network.wall(&network.gateways[0], rules)
    }

    /// The end of the device's journal so far.
    ///
    /// # Errors
    /// When the device is down.
    pub fn mark(&self) -> Result<Mark> {
        Ok(self.cluster.devices[0].as_ref().context("the device is down")?.mark())
    }

    /// Clears the weather, waits until the session is `ATTACHED` and answers, and tells what it went through since `mark`.
    ///
    /// # Errors
    /// When it does not come back, or made a step that its table does not have, or is another one.
    pub fn clear(&self, mark: Mark) -> Result<Chronicle> {
        self.set(Impairment::default());
        self.block_tcp(false)?;
        crate::lab::etcd::wait_until("the session is attached", SOON, || {
            self.cluster.status(0).is_ok_and(|status| status["state"] == "ATTACHED")
        })?;
        self.probe.wait_for_echoes(40, SOON)?;
        let chronicle = self.chronicle(mark)?;
        let legal: BTreeSet<(&str, &str)> = State::ALL
            .iter()
            .flat_map(|from| TRIGGERS.map(|trigger| (from, from.after(trigger))))
            .filter_map(|(from, to)| Some((from.code(), to.ok()?.code())))
            .collect();
        for (from, to, reason) in &chronicle.states {
            ensure!(legal.contains(&(from, to)), "{from} -> {to} ({reason}) is not in the table");
            ensure!(!reason.is_empty(), "{from} -> {to} has no reason");
        }
        let now = self.cluster.ownership(&self.before.session)?;
        ensure!(
            (&now.inner, now.phase.as_str()) == (&self.before.inner, "OWNED"),
            "the session was {:?} and is {now:?}",
            self.before
        );
        ensure!(self.cluster.session_of(0)? == self.before.session, "the session was reset");
        Ok(chronicle)
    }

    fn chronicle(&self, mark: Mark) -> Result<Chronicle> {
        let device = self.cluster.devices[0].as_ref().context("the device is down")?;
        let lines: Vec<Value> =
            device.lines_since(mark).iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let about = |event: &'static str| lines.iter().filter(move |line| line["event"] == event);
        let text = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let switches: Vec<f64> =
            about("bound").chain(about("attached")).filter_map(|line| line["at_ms"].as_f64()).collect();
        let minute = |from: f64| switches.iter().filter(|at| (from..from + 60_000.0).contains(*at)).count();
        Ok(Chronicle {
            states: about("state").map(|l| (text(l, "from"), text(l, "to"), text(l, "reason"))).collect(),
            paths: about("path").map(|line| text(line, "to")).collect(),
            bindings: about("bound").count(),
            attaches: about("attached").count(),
            switches_per_minute_max: switches.iter().map(|at| minute(*at)).max().unwrap_or(0),
        })
    }
}

/// Neither the UDP port nor QUIC's is reached but through the relay.
fn only_by_relay(device: &Host) -> String {
    format!("ip saddr {} meta l4proto udp udp dport != {RELAY_PORT} drop", device.wan)
}

/// What the relay does in a run.
#[must_use]
pub fn lossy(loss: f64) -> Impairment {
    Impairment { loss, ..Impairment::default() }
}

/// A long and uneven way.
#[must_use]
pub fn far() -> Impairment {
    let (delay, jitter) = (Duration::from_millis(120), Duration::from_millis(40));
    Impairment { loss: 0.05, delay, jitter, ..Impairment::default() }
}

/// Nothing passes.
#[must_use]
pub fn gone() -> Impairment {
    Impairment { blackhole: true, ..Impairment::default() }
}
