//! One failover, measured: the owner of a session goes, and a probe through the tunnel tells how long nothing came
//! through.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::lab::cluster::Cluster;
use crate::lab::network::ReturnRoute;
use crate::lab::ownership::Ownership;
use crate::lab::probe::Probe;

/// How long a session may take to come back before the measurement fails.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// Echoes before the end and after the recovery.
const CALM_ECHOES: usize = 40;

/// How the owner goes, and where the inner network's way back points meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// SIGKILL to the worker; the way back is through the other gateway.
    Killed,
    /// SIGKILL to the worker; the way back stays through the killed gateway, whose next worker must relay.
    KilledOnTheWayBack,
    /// SIGTERM to the supervisor: a drain; the way back is through the other gateway.
    Drained,
    /// SIGKILL to supervisor and worker: only the lease's end frees the session.
    MachineLost,
}

impl Ending {
    /// Every way, in the order of the benchmark's table.
    pub const ALL: [Self; 4] = [Self::Killed, Self::KilledOnTheWayBack, Self::Drained, Self::MachineLost];

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Killed => "SIGKILL of the owner's worker",
            Self::KilledOnTheWayBack => "the same, return route through it",
            Self::Drained => "SIGTERM of the owner (drain)",
            Self::MachineLost => "SIGKILL of supervisor and worker",
        }
    }
}

/// One measured failover.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sample {
    /// The longest time between two echoes around the end of the owner, in milliseconds.
    pub gap_ms: f64,
    /// The owner before.
    pub from: String,
    /// The owner after.
    pub to: String,
    /// The epoch after.
    pub epoch: u64,
}

/// Ends the owner of `session` and waits until the probe is answered again and the ended gateway is back.
///
/// # Errors
/// When the session does not come back, or comes back as something else.
pub fn measure(cluster: &mut Cluster, probe: &Probe, session: &str, ending: Ending) -> Result<Sample> {
    let before = cluster.ownership(session)?;
    let from = before.owner.clone().context("the session has no owner")?;
    let victim = cluster.gateway_number(&from)?;
    let other = (0..cluster.gateways.len()).find(|i| *i != victim).context("no other gateway")?;
    let way_back = if ending == Ending::KilledOnTheWayBack { victim } else { other };
    cluster.network.route_back(ReturnRoute::Gateway(way_back))?;
    probe.wait_for_echoes(CALM_ECHOES, RECOVERY_MAX)?;

    let at = Instant::now();
    match ending {
        Ending::Killed | Ending::KilledOnTheWayBack => cluster.signal_worker(victim, Signal::KILL)?,
        Ending::Drained => cluster.gateways[victim].signal(Signal::TERM)?,
        Ending::MachineLost => cluster.kill_gateway(victim)?,
    }
    let after = moved(cluster, &before)?;
    probe.wait_for_echoes(CALM_ECHOES, RECOVERY_MAX)?;
    if ending == Ending::Drained {
        let status = cluster.gateways[victim].wait_end(RECOVERY_MAX)?;
        ensure!(status.success(), "the drained gateway ended with {status}");
        probe.wait_for_echoes(CALM_ECHOES, RECOVERY_MAX)?;
    }
    let report = probe.report_since(Some(at));
    match ending {
        Ending::Killed | Ending::KilledOnTheWayBack => cluster.wait_registered(victim, RECOVERY_MAX)?,
        Ending::Drained | Ending::MachineLost => cluster.gateways[victim] = cluster.start_gateway(victim)?,
    }
    ensure!(after.inner == before.inner, "the inner address changed: {before:?} {after:?}");
    Ok(Sample {
        gap_ms: crate::demo::report::millis(report.longest_gap),
        from,
        to: after.owner.unwrap_or_default(),
        epoch: after.epoch,
    })
}

/// Waits until another gateway owns the session, with a greater epoch.
fn moved(cluster: &Cluster, before: &Ownership) -> Result<Ownership> {
    let after = cluster.wait_owned_after(before, RECOVERY_MAX)?;
    ensure!(after.owner != before.owner, "the ended gateway owns it again: {after:?}");
    Ok(after)
}

/// Median and largest of some figures.
pub fn median_and_max(figures: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let mut sorted: Vec<_> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 0 && middle > 0 {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted.get(middle).copied().unwrap_or(f64::NAN)
    };
    (median, sorted.last().copied().unwrap_or(f64::NAN))
}
