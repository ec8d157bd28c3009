//! Carries out a schedule's steps on a running cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jump_crypto::keys::DeviceSecret;
use rustix::process::{Pid, Signal, kill_process};

use super::schedule::{Act, Step};
use crate::lab::cluster::{Cluster, gateway_name};
use crate::lab::etcd::wait_until;
use crate::lab::fleet::{self, Fleet};
use crate::lab::flood::Flood;
use crate::lab::histogram::Histogram;
use crate::lab::process::resident_bytes;
use crate::lab::programs::GATEWAY_PORT;
use crate::lab::relay::{Direction, Relay};

/// How long a drained gateway may take to end.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// The cluster, its devices, and what the steps so far have left open.
pub struct Stage<'a> {
    /// The cluster.
    pub cluster: &'a mut Cluster,
    /// The devices.
    pub fleet: &'a Fleet,
    /// Relays, one per gateway, when there are any.
    pub relays: &'a [Relay],
    /// Keys of some enrolled devices, for replays.
    pub known: &'a [DeviceSecret],
    /// The scenario's seed.
    pub seed: u64,
    /// Which gateways the inner network uses.
    pub routed: Vec<bool>,
    /// Paused processes of each gateway.
    pub paused: Vec<Vec<Pid>>,
    /// Store nodes that are down, and those that are paused.
    pub store_down: Vec<usize>,
    /// Store nodes that are paused.
    pub store_paused: Vec<usize>,
    /// A running flood.
    pub flood: Option<Flood>,
    /// Datagrams that floods have sent.
    pub flooded: u64,
    /// Resident memory of the workers when a flood had filled its tables, and at its end.
    pub flood_memory: Vec<(u64, u64)>,
    /// What was counted.
    pub counts: Vec<Count>,
    /// Finished phases.
    pub phases: Vec<PhaseResult>,
    /// The phase under way.
    pub phase: String,
}

/// How the sessions were spread at one moment.
#[derive(Debug, Clone)]
pub struct Count {
    /// Its name.
    pub name: String,
    /// When, on the devices' clock.
    pub at: Duration,
    /// The sessions of each gateway that takes sessions.
    pub sessions: Vec<u64>,
}

/// What was measured in a phase.
#[derive(Debug, Clone)]
pub struct PhaseResult {
    /// Its name.
    pub name: String,
    /// Round trips by group.
    pub round_trips: Vec<Histogram>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub answered: u64,
    /// Changes of owner.
    pub reattached: u64,
}

impl Stage<'_> {
    /// Does one step; returns a word on what it hit, for the log.
    ///
    /// # Errors
    /// When the lab itself fails; a fault that finds its target gone already is none.
    pub fn act(&mut self, step: &Step) -> Result<String> {
        match &step.act {
            Act::KillWorker { gateway } => {
                let pid = self.cluster.worker(*gateway)?;
                kill_process(pid, Signal::KILL).context("killing a worker")?;
                Ok(format!("gw{} pid {pid}", gateway + 1))
            }
            Act::KillNode { gateway } => {
                self.cluster.kill_gateway(*gateway)?;
                Ok(format!("gw{}", gateway + 1))
            }
            Act::StartNode { gateway } => {
                self.cluster.gateways[*gateway] = self.cluster.start_gateway(*gateway)?;
                Ok(format!("gw{}", gateway + 1))
            }
            Act::PauseWorker { gateway } => {
                let pid = self.cluster.worker(*gateway)?;
                kill_process(pid, Signal::STOP).context("pausing a worker")?;
                self.paused[*gateway].push(pid);
                Ok(format!("gw{} pid {pid}", gateway + 1))
            }
            Act::PauseNode { gateway } => {
                let (node, worker) = (self.cluster.gateways[*gateway].pid(), self.cluster.worker(*gateway)?);
                for pid in [node, worker] {
                    kill_process(pid, Signal::STOP).context("pausing a node")?;
                    self.paused[*gateway].push(pid);
                }
                Ok(format!("gw{}", gateway + 1))
            }
            Act::ResumeNode { gateway } => {
                for pid in self.paused[*gateway].drain(..) {
                    // The supervisor may have replaced its worker meanwhile.
                    let _ = kill_process(pid, Signal::CONT);
                }
                Ok(format!("gw{}", gateway + 1))
            }
            Act::StopNode { gateway } => {
                let status = self.stop_node(*gateway)?;
                Ok(format!("gw{} {status}", gateway + 1))
            }
            Act::Drain { gateway } => {
                let name = gateway_name(*gateway);
                self.operator(&["nodes", "drain", "--yes", "--wait", "0s", &name])?;
                Ok(name)
            }
            Act::RestartNode { gateway } => {
                let status = self.stop_node(*gateway)?;
                self.cluster.gateways[*gateway] = self.cluster.start_gateway(*gateway)?;
                Ok(format!("gw{} {status}", gateway + 1))
            }
            Act::CutFromControl { gateway } => {
                let network = &self.cluster.network;
                let controls: Vec<_> = network.controls.iter().map(|control| control.wan).collect();
                network.cut_off(&network.gateways[*gateway], &controls)?;
                Ok(format!("gw{}", gateway + 1))
            }
            Act::Mend { gateway } => {
                self.cluster.network.mend(&self.cluster.network.gateways[*gateway])?;
                Ok(format!("gw{}", gateway + 1))
            }
            Act::Unplug { gateway } | Act::Plug { gateway } => {
                let network = &self.cluster.network;
                let plugged = matches!(step.act, Act::Plug { .. });
                network.set_wan_cable(&network.gateways[*gateway], plugged)?;
                Ok(format!("gw{}", gateway + 1))
            }
            Act::Route { gateway, used } => {
                self.routed[*gateway] = *used;
                self.cluster.network.route_back_among(&self.routed)?;
                Ok(format!("gw{}", gateway + 1))
            }
            Act::KillControl { replica } => {
                self.cluster.kill_control(*replica)?;
                Ok(format!("ctl{}", replica + 1))
            }
            Act::StartControl { replica } => {
                self.cluster.controls[*replica] = self.cluster.start_control(*replica)?;
                Ok(format!("ctl{}", replica + 1))
            }
            Act::KillStoreLeader => self.fell_leader(Signal::KILL),
            Act::PauseStoreLeader => self.fell_leader(Signal::STOP),
            Act::HealStore => self.heal_store(),
            Act::Rebind { group, share, address } => {
                self.fleet.rebind(*group, *share, *address);
                Ok(format!("{:.0} % of group {group}", share * 100.0))
            }
            Act::Impair { up, down } => {
                for relay in self.relays {
                    relay.impair(Direction::Up, *up);
                    relay.impair(Direction::Down, *down);
                }
                Ok(String::new())
            }
            Act::Move { group, gateway } => {
                self.fleet.request_move(*group, &self.gateways()[*gateway..=*gateway]);
                Ok(format!("group {group} to gw{}", gateway + 1))
            }
            Act::Spread { group, turn } => {
                self.fleet.spread(*group, &self.gateways(), *turn);
                Ok(format!("group {group} by {turn}"))
            }
            Act::Pace { group, probe_ms } => {
                let every = (*probe_ms > 0).then(|| Duration::from_millis(*probe_ms));
                self.fleet.pace(*group, every);
                Ok(format!("group {group}: {probe_ms} ms"))
            }
            Act::Release { group, starts_per_second } => {
                self.fleet.release(*group, *starts_per_second);
                Ok(format!("group {group}: {starts_per_second}/s"))
            }
            Act::Flood { kind, per_second } => {
                let host = &self.cluster.network.devices[0];
                let flood = Flood::start(
                    host,
                    &self.cluster.state_dir(0),
                    &self.gateways(),
                    self.known,
                    *kind,
                    *per_second,
                    self.seed,
                )?;
                self.flood = Some(flood);
                // Tables of fixed size fill up first; from then on nothing may grow.
                std::thread::sleep(Duration::from_secs(2));
                self.flood_memory = self.workers_memory()?.into_iter().map(|bytes| (bytes, bytes)).collect();
                Ok(format!("{per_second}/s"))
            }
            Act::EndFlood => {
                let now = self.workers_memory()?;
                for (memory, bytes) in self.flood_memory.iter_mut().zip(now) {
                    memory.1 = bytes;
                }
                let sent = self.flood.take().map_or(0, |flood| flood.sent());
                self.flooded += sent;
                Ok(format!("{sent} sent"))
            }
            Act::Count { name } => {
                let nodes = self.operator(&["nodes", "rebalance", "--dry-run"])?;
                let of = |node: &serde_json::Value| node.get("before").and_then(serde_json::Value::as_u64);
                let sessions: Vec<_> = nodes.iter().filter_map(of).collect();
                let text = format!("{name}: {sessions:?}");
                self.counts.push(Count { name: name.clone(), at: fleet::clock(), sessions });
                Ok(text)
            }
            Act::Phase { name } => {
                self.end_phase()?;
                self.phase.clone_from(name);
                Ok(name.clone())
            }
        }
    }

    /// Ends the phase under way.
    ///
    /// # Errors
    /// When the devices' threads have stopped.
    pub fn end_phase(&mut self) -> Result<()> {
        let seen = self.fleet.phase()?;
        self.answer_late(seen.late);
        self.phases.push(PhaseResult {
            name: self.phase.clone(),
            round_trips: seen.round_trips.to_vec(),
            sent: seen.counts.sent,
            answered: seen.counts.answered - seen.late,
            reattached: seen.counts.reattached,
        });
        Ok(())
    }

    /// So many probes of the last finished phase came back after its end.
    pub fn answer_late(&mut self, answers: u64) {
        if let Some(last) = self.phases.last_mut() {
            last.answered += answers;
        }
    }

    /// Ends a gateway as an update does: SIGTERM, and its drain.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop_node(&mut self, gateway: usize) -> Result<std::process::ExitStatus> {
        self.cluster.gateways[gateway].signal(Signal::TERM)?;
        self.cluster.gateways[gateway].wait_end(DRAIN_MAX)
    }

    fn operator(&self, arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
        self.cluster.operator.json(&self.cluster.network.controls[0], arguments)
    }

    fn fell_leader(&mut self, signal: Signal) -> Result<String> {
        let stores = &self.cluster.network.stores;
        let etcd = self.cluster.etcd.as_mut().context("the store is not etcd")?;
        let mut leader = None;
        wait_until("the store has a leader", Duration::from_secs(10), || {
            leader = etcd.leader(stores).ok();
            leader.is_some()
        })?;
        let leader = leader.context("no leader")?;
        if signal == Signal::KILL {
            etcd.nodes[leader].kill();
            self.store_down.push(leader);
        } else {
            etcd.nodes[leader].signal(signal)?;
            self.store_paused.push(leader);
        }
        Ok(format!("etcd{}", leader + 1))
    }

    fn heal_store(&mut self) -> Result<String> {
        let etcd = self.cluster.etcd.as_mut().context("the store is not etcd")?;
        for node in self.store_paused.drain(..) {
            etcd.nodes[node].signal(Signal::CONT)?;
        }
        for node in self.store_down.drain(..) {
            etcd.restart(node, &self.cluster.network.stores[node], self.cluster.run.path())?;
        }
        Ok(String::new())
    }

    fn workers_memory(&self) -> Result<Vec<u64>> {
        (0..self.cluster.gateways.len()).map(|i| resident_bytes(self.cluster.worker(i)?)).collect()
    }

    fn gateways(&self) -> Vec<SocketAddr> {
        addresses(self.cluster)
    }
}

/// The gateways' addresses for devices.
pub fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.network.gateways.iter().map(|gateway| gateway.wan_socket(GATEWAY_PORT)).collect()
}

/// The address that relay `i` listens on, inside the devices' namespace.
pub fn relay_address(i: usize) -> SocketAddr {
    let port = 30_000 + u16::try_from(i).unwrap_or(0);
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 255, 254)), port)
}
