//! Scenarios: what to build, who attaches to it, what happens to it when, and what must hold; read from TOML or YAML files.
//!
//! The format's schema is `tests/scenarios/scenario.schema.json`. Everything that is left to chance is drawn from the
//! scenario's seed before anything starts ([`schedule`]), so one seed gives one schedule, byte for byte.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::lab::fleet::Burst;
use crate::lab::relay::Impairment;

mod audited;
pub mod compare;
pub mod environment;
pub mod html;
pub mod live;
pub mod measure;
pub mod report;
pub mod results;
pub mod run;
pub mod schedule;
pub mod stage;

/// A scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Short and unique; names the report's files.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// What it is for, and what to know when reading its numbers.
    #[serde(default)]
    pub about: String,
    /// Everything left to chance comes from it.
    #[serde(default = "one")]
    pub seed: u64,
    /// What to build.
    #[serde(default)]
    pub topology: Topology,
    /// Who attaches.
    pub devices: Vec<Devices>,
    /// A relay between devices and gateways; without it there is none.
    #[serde(default)]
    pub relay: Option<Relay>,
    /// How long everything takes.
    #[serde(default)]
    pub times: Times,
    /// What happens when.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Faults drawn from the seed, in addition.
    #[serde(default)]
    pub faults: Option<Faults>,
    /// Whether every forwarded packet is captured and the histories are checked.
    #[serde(default)]
    pub witness: bool,
    /// What must hold.
    #[serde(default)]
    pub criteria: Vec<Criterion>,
    /// Values that replace the ones above in a full run.
    #[serde(default)]
    pub full: toml::Table,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// `embedded`: one control replica; `etcd`: two over three store nodes.
    pub store: StoreKind,
    /// How many gateways.
    pub gateways: usize,
    /// How many of them run from the beginning, when not all: `start` events bring in the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateways_started: Option<usize>,
    /// Whether control and its stores give way to everybody else's work, as if they were on machines of their own.
    pub control_aside: bool,
    /// Settings of control.
    pub control: toml::Table,
    /// Settings of the gateways.
    pub gateway: toml::Table,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            store: StoreKind::Etcd,
            gateways: 3,
            gateways_started: None,
            control_aside: false,
            control: toml::Table::new(),
            gateway: toml::Table::new(),
        }
    }
}

/// Where control keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A file.
    Embedded,
    /// Three etcd nodes.
    Etcd,
}

/// A group of devices that behave alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// How many.
    pub count: usize,
    /// How many start per second.
    #[serde(default = "starts")]
    pub starts_per_second: f64,
    /// Whether they wait for a `release` event.
    #[serde(default)]
    pub wait: bool,
    /// Time between two probes of one device, in milliseconds; 0 for none.
    #[serde(default = "probe_ms")]
    pub probe_ms: u64,
    /// Length of a probe's inner packet.
    #[serde(default = "probe_bytes")]
    pub probe_bytes: usize,
    /// Probes that come together, `probe_ms` apart, before the device thinks; 0 for probes without a pause.
    #[serde(default)]
    pub burst: u32,
    /// How long a device thinks between two bursts on average, in milliseconds; drawn anew each time
    /// ([`Burst`](crate::lab::fleet::Burst)).
    #[serde(default)]
    pub think_ms: u64,
    /// Whether they are there for what they do to the others: their own work gives way to everybody else's.
    #[serde(default)]
    pub aside: bool,
}

/// What a relay between devices and gateways does from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relay {
    /// Towards gateways.
    pub up: Impairment,
    /// Towards devices.
    pub down: Impairment,
}

/// How long everything takes, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Times {
    /// At most, from the first start until all devices are attached.
    pub ramp_max: f64,
    /// Steady time before the clock of the events starts.
    pub warm_up: f64,
    /// The events' time.
    pub run: f64,
    /// Steady time after it, for everybody to come back.
    pub settle: f64,
}

impl Default for Times {
    fn default() -> Self {
        Self { ramp_max: 120.0, warm_up: 3.0, run: 30.0, settle: 10.0 }
    }
}

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds after the warm-up.
    pub at: f64,
    /// Repeats so many times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Seconds between repetitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<f64>,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
}

/// What can happen. Gateways and replicas count from 1; without a number the seed chooses. `seconds` is how long it
/// lasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant says what its fields are")]
pub enum Action {
    /// SIGKILL to a gateway's worker.
    KillWorker { gateway: Option<usize> },
    /// SIGKILL to supervisor and worker; started again afterwards.
    KillNode { gateway: Option<usize>, seconds: f64 },
    /// SIGSTOP to a worker.
    PauseWorker { gateway: Option<usize>, seconds: f64 },
    /// SIGSTOP to supervisor and worker.
    PauseNode { gateway: Option<usize>, seconds: f64 },
    /// SIGTERM to the supervisor, then a new start.
    Restart { gateway: Option<usize> },
    /// A start of a gateway that did not run.
    Start { gateway: usize },
    /// SIGTERM to the supervisor.
    Stop { gateway: usize },
    /// An operator's drain.
    Drain { gateway: usize },
    /// A packet filter between a gateway and control, while its devices reach it.
    CutFromControl { gateway: Option<usize>, seconds: f64 },
    /// The gateway's outer cable.
    CutOff { gateway: Option<usize>, seconds: f64 },
    /// SIGKILL to a control replica; started again afterwards.
    KillControl { replica: Option<usize>, seconds: f64 },
    /// SIGKILL to every control replica.
    KillAllControls { seconds: f64 },
    /// SIGKILL to the store node that leads; started again afterwards.
    KillStoreLeader { seconds: f64 },
    /// SIGSTOP to the store node that leads.
    PauseStoreLeader { seconds: f64 },
    /// New outer ports (and addresses) for a share of a group, as a NAT that forgets gives.
    Rebind { group: usize, share: f64, address: bool },
    /// What the relay does from now on.
    Impair { up: Impairment, down: Impairment },
    /// Devices of a group ask for a gateway.
    Move { group: usize, gateway: Option<usize> },
    /// Another pace of a group's probes.
    Pace { group: usize, probe_ms: u64 },
    /// Waiting devices of a group start.
    Release { group: usize, starts_per_second: f64 },
    /// First messages from sources that are nobody's: at each gateway, so many per second in all.
    Flood { kind: FloodKind, per_second: u32, seconds: f64 },
    /// Nothing; how the sessions are spread over the gateways that take sessions, and how many moved in one second since
    /// the last count.
    Count { name: String },
    /// Nothing; from here on, measurements count under this name.
    Phase { name: String },
}

/// What a flood is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloodKind {
    /// Random bytes in the form of a first message.
    Garbage,
    /// First messages of devices that nobody has enrolled.
    UnknownDevices,
    /// First messages of enrolled devices, sent again and again from elsewhere.
    Replays,
    /// A third of each.
    Mixed,
}

/// Faults drawn from the seed: one at a time, each over before the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Faults {
    /// Which kinds.
    pub kinds: Vec<FaultKind>,
    /// Seconds between the end of one and the next, at least.
    pub pause: f64,
    /// Up to so many more.
    pub spread: f64,
}

/// A kind of fault; the schedule draws target and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the action of the same name")]
pub enum FaultKind {
    KillWorker,
    KillNode,
    PauseWorker,
    PauseNode,
    Restart,
    CutFromControl,
    CutOff,
    KillControl,
    KillStoreLeader,
    PauseStoreLeader,
    Rebind,
}

/// What must hold of one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    /// The metric's name in the report.
    pub metric: String,
    /// Divided by this metric first, when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// At least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// At most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Holds also when nothing was measured: of a fault that a short run need not draw.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_measured: bool,
    /// In words.
    #[serde(default)]
    pub says: String,
}

impl Scenario {
    /// Reads a file, YAML when it is named so and TOML otherwise; with `full`, its `full` values replace the others.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub fn load(path: &Path, full: bool) -> Result<Self> {
        let read = || Self::of(Self::table(path)?, full);
        read().with_context(|| format!("the scenario {}", path.display()))
    }

    /// What a file says, before it is checked.
    ///
    /// # Errors
    /// When it cannot be read, or is neither format.
    pub fn table(path: &Path) -> Result<toml::Table> {
        let text = std::fs::read_to_string(path)?;
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        Ok(if is_yaml { serde_saphyr::from_str(&text)? } else { text.parse()? })
    }

    /// Reads a text in TOML; with `full`, its `full` values replace the others.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str, full: bool) -> Result<Self> {
        Self::of(text.parse()?, full)
    }

    fn of(mut table: toml::Table, full: bool) -> Result<Self> {
        if full && let Some(toml::Value::Table(larger)) = table.get("full").cloned() {
            merge(&mut table, larger);
        }
        let scenario: Self = toml::Value::Table(table).try_into()?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.devices.is_empty(), "devices: at least one group");
        ensure!(self.devices.len() < crate::lab::fleet::GROUPS_MAX, "devices: too many groups");
        ensure!(
            self.devices
                .iter()
                .all(|group| (group.burst > 0) == (group.think_ms > 0)
                    && (group.burst == 0 || group.probe_ms > 0)),
            "devices: burst and think_ms go together, and need probe_ms"
        );
        ensure!((1..=9).contains(&self.topology.gateways), "topology.gateways: 1 to 9");
        ensure!(
            self.topology.gateways_started.is_none_or(|n| (1..=self.topology.gateways).contains(&n)),
            "topology.gateways_started: 1 to topology.gateways"
        );
        let gateway =
            |number: Option<usize>| number.is_none_or(|n| (1..=self.topology.gateways).contains(&n));
        for event in &self.events {
            ensure!(event.at >= 0.0, "an event at {} s", event.at);
            ensure!(event.action.gateway().is_none_or(gateway), "an event names a gateway that is not there");
            ensure!(
                event.action.group().is_none_or(|group| group < self.devices.len()),
                "an event names a group that is not there"
            );
            let relayed = !matches!(event.action, Action::Impair { .. }) || self.relay.is_some();
            ensure!(relayed, "impair needs a relay");
        }
        let windows = [self.times.ramp_max, self.times.warm_up, self.times.run, self.times.settle];
        ensure!(windows.iter().all(|time| (0.0..=86_400.0).contains(time)), "times: 0 to 86400 seconds");
        Ok(())
    }

    /// The probes' interval of the group that probes most often; one second when none does.
    pub fn probe_interval(&self) -> Duration {
        let least = self.devices.iter().map(|group| group.probe_ms).filter(|ms| *ms > 0).min();
        Duration::from_millis(least.unwrap_or(1000))
    }
}

impl Devices {
    /// Its bursts, when it thinks between them.
    pub fn traffic_burst(&self) -> Option<Burst> {
        (self.burst > 0).then(|| Burst { probes: self.burst, think: Duration::from_millis(self.think_ms) })
    }
}

impl Action {
    /// The gateway that it names: `None` when it is of a kind that names none.
    pub fn gateway(&self) -> Option<Option<usize>> {
        match self {
            Self::KillWorker { gateway }
            | Self::KillNode { gateway, .. }
            | Self::PauseWorker { gateway, .. }
            | Self::PauseNode { gateway, .. }
            | Self::Restart { gateway }
            | Self::CutFromControl { gateway, .. }
            | Self::CutOff { gateway, .. }
            | Self::Move { gateway, .. } => Some(*gateway),
            Self::Start { gateway } | Self::Stop { gateway } | Self::Drain { gateway } => {
                Some(Some(*gateway))
            }
            Self::KillControl { .. }
            | Self::KillAllControls { .. }
            | Self::KillStoreLeader { .. }
            | Self::PauseStoreLeader { .. }
            | Self::Rebind { .. }
            | Self::Impair { .. }
            | Self::Pace { .. }
            | Self::Release { .. }
            | Self::Flood { .. }
            | Self::Count { .. }
            | Self::Phase { .. } => None,
        }
    }

    fn group(&self) -> Option<usize> {
        match self {
            Self::Rebind { group, .. }
            | Self::Move { group, .. }
            | Self::Pace { group, .. }
            | Self::Release { group, .. } => Some(*group),
            Self::KillWorker { .. }
            | Self::KillNode { .. }
            | Self::PauseWorker { .. }
            | Self::PauseNode { .. }
            | Self::Restart { .. }
            | Self::Start { .. }
            | Self::Stop { .. }
            | Self::Drain { .. }
            | Self::CutFromControl { .. }
            | Self::CutOff { .. }
            | Self::KillControl { .. }
            | Self::KillAllControls { .. }
            | Self::KillStoreLeader { .. }
            | Self::PauseStoreLeader { .. }
            | Self::Impair { .. }
            | Self::Flood { .. }
            | Self::Count { .. }
            | Self::Phase { .. } => None,
        }
    }
}

/// Puts the values of `larger` in place of those of `table`, table by table.
fn merge(table: &mut toml::Table, larger: toml::Table) {
    for (key, value) in larger {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(mine)), toml::Value::Table(theirs)) => merge(mine, theirs),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

fn one() -> u64 {
    1
}

fn starts() -> f64 {
    200.0
}

fn probe_ms() -> u64 {
    1000
}

fn probe_bytes() -> usize {
    128
}
