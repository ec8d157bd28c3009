//! The demo: a download through the tunnel goes on while the gateway that carries it is killed.

pub mod report;
pub mod terminal;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::lab::cluster::{Cluster, Plan, Store, gateway_name};
use crate::lab::download::{Download, WebServer, expected_digest};
use crate::lab::network::ReturnRoute;
use crate::lab::ownership::Ownership;
use crate::lab::probe::{EchoServer, Probe};
use report::{Report, View};
use rustix::process::Signal;
use terminal::Terminal;

const WEB_PORT: u16 = 80;
const ECHO_PORT: u16 = 7;
const MIB: u64 = 1 << 20;
/// How long any single step may take before the demo gives up.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How long the probe runs before the kill and after the recovery.
const CALM_ECHOES: usize = 40;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kill {
    /// The gateway's worker: the process that forwards. Its supervisor gives the lease back at once.
    Worker,
    /// Supervisor and worker together, as if the machine were lost: only the lease's end frees the session.
    Node,
}

impl Kill {
    /// The longest gap that counts as a success: the first by the promise of a second, the second by the lease's time
    /// to live, the store's delay in noticing and one attach.
    pub fn gap_max(self) -> Duration {
        match self {
            Self::Worker => Duration::from_secs(1),
            Self::Node => Duration::from_secs(8),
        }
    }
}

/// How a run goes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The store; with etcd one control replica is killed as well.
    pub store: Store,
    /// What is killed.
    pub kill: Kill,
    /// Size of the download, in MiB.
    pub size_mib: u64,
    /// Pace of the download, in MiB per second.
    pub rate_mib: u64,
    /// Content of the download.
    pub seed: u64,
}

/// Runs the demo once.
///
/// # Errors
/// When a step fails before there is anything to judge; otherwise the report tells what is false.
pub fn run(options: &Options, terminal: &Terminal) -> Result<Report> {
    let label = if options.store == Store::Etcd { "demo-etcd" } else { "demo" };
    let plan = Plan { return_route: ReturnRoute::Ecmp, ..Plan::small(label).with_store(options.store) };
    terminal.event(
        "network",
        "a device, two gateways, control and an inner web server, each in its own namespace",
    );
    let mut cluster = Cluster::start(&plan)?;
    let outcome = play(options, terminal, &mut cluster);
    let failed = outcome.as_ref().map_or(true, |report| !report.passed());
    if failed {
        cluster.run.keep();
    }
    outcome
}

fn play(options: &Options, terminal: &Terminal, cluster: &mut Cluster) -> Result<Report> {
    terminal.event("cluster", &describe(cluster));
    let mut web = WebServer::start(&cluster.network.inner, WEB_PORT, options.rate_mib * MIB)?;
    let echo = EchoServer::start(&cluster.network.inner, ECHO_PORT)?;
    let before = cluster.up(0)?;
    terminal.event("device", &format!("attached as {}, session {}", before.inner_text(), before.session));
    terminal.owner(&before);
    let before = View { status_session: cluster.session_of(0)?, ownership: before };
    let session = before.ownership.session.clone();
    let mut watch = cluster.watch_ownership(&session)?;
    watch.wait_for("the current owner", STEP_MAX, |_| {}, |_| true)?;

    let probe = Probe::start(&cluster.network.devices[0], echo.address())?;
    probe.wait_for_echoes(CALM_ECHOES, STEP_MAX)?;
    let length = options.size_mib * MIB;
    let download = Download::start(&cluster.network.devices[0], web.address(), options.seed, length)?;
    terminal.event(
        "download",
        &format!("{} MiB from http://{}/ over one TCP connection", options.size_mib, web.address()),
    );
    terminal.follow(&download, length * 2 / 5, STEP_MAX)?;

    // The session may have moved since it was first seen.
    let victim_view = cluster.ownership(&session)?;
    let victim = cluster.gateway_number(victim_view.owner.as_deref().context("the session has no owner")?)?;
    let mut killed_control = None;
    if options.store == Store::Etcd {
        cluster.kill_control(0)?;
        killed_control = Some("ctl1".to_owned());
        terminal.event("kill", "SIGKILL to control replica ctl1");
    }
    let killed_at = kill(options.kill, terminal, cluster, victim)?;
    let after = watch.wait_for(
        "another owner",
        STEP_MAX,
        |seen| terminal.owner(seen),
        |seen| seen.phase == "OWNED" && seen.epoch > victim_view.epoch,
    )?;
    let committed_after = killed_at.elapsed();
    terminal.follow(&download, length, STEP_MAX)?;
    let downloaded = download.finish(STEP_MAX);
    let calm = probe.wait_for_echoes(CALM_ECHOES, STEP_MAX);
    let seen = probe.report_since(Some(killed_at));
    probe.stop();
    web.stop();
    let after =
        View { status_session: cluster.session_of(0)?, ownership: cluster.ownership(&after.session)? };
    Ok(Report::judge(&report::Evidence {
        options: *options,
        victim: gateway_name(victim),
        killed_control,
        before: View {
            ownership: Ownership { inner: before.ownership.inner.clone(), ..victim_view },
            ..before
        },
        after,
        committed_after,
        probe: seen,
        probe_recovered: calm.is_ok(),
        downloaded: downloaded.map_err(|error| format!("{error:#}")),
        expected_digest: expected_digest(options.seed, length),
    }))
}

fn describe(cluster: &Cluster) -> String {
    let names: Vec<_> = (0..cluster.gateways.len()).map(gateway_name).collect();
    let store = match &cluster.etcd {
        None => "the embedded store".to_owned(),
        Some(etcd) => format!("{} etcd nodes", etcd.nodes.len()),
    };
    format!(
        "{} control replica(s) over {store}; gateways {} registered",
        cluster.controls.len(),
        names.join(", ")
    )
}

/// Kills the victim and returns when.
fn kill(what: Kill, terminal: &Terminal, cluster: &mut Cluster, victim: usize) -> Result<Instant> {
    let name = gateway_name(victim);
    let worker = cluster.worker(victim)?;
    match what {
        Kill::Worker => {
            let at = Instant::now();
            cluster.signal_worker(victim, Signal::KILL)?;
            terminal.event("kill", &format!("SIGKILL to the worker of {name}, the owner (pid {worker})"));
            Ok(at)
        }
        Kill::Node => {
            // What a routing protocol of the inner network would do when a machine is lost.
            let survivor = (0..cluster.gateways.len()).find(|i| *i != victim).context("no other gateway")?;
            cluster.network.route_back(ReturnRoute::Gateway(survivor))?;
            let at = Instant::now();
            cluster.kill_gateway(victim)?;
            terminal.event("kill", &format!("SIGKILL to supervisor and worker of {name}, the owner"));
            Ok(at)
        }
    }
}
