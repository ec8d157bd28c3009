//! `jump-bench-observability`: what logs, metrics and audit events cost, and what receivers that fail cost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use jump_session::client::Tuning;
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::download::{Download, WebServer};
use jump_tests::lab::enrol::enrol;
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::fleet::{self, Fleet, FleetPlan, Group, Traffic};
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::lab::receivers::{BROKEN, Receivers};

/// Runs the same cluster silent, with logs and audit as by default, and with receivers that stand still, refuse and
/// die, in turn; compares the download through one device and the attaches of many. Needs root.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds; each runs every variant once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Virtual devices that attach.
    #[arg(long, default_value_t = 100)]
    devices: usize,
    /// Size of the download, in MiB.
    #[arg(long, default_value_t = 64)]
    size_mib: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// No log lines, no audit events.
    Silent,
    /// Log lines as by default, metrics scraped by nobody, no audit.
    Logs,
    /// The same, and audit events to three receivers that fail.
    Broken,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Silent, Self::Logs, Self::Broken];

    fn settings(self) -> String {
        match self {
            Self::Silent => {
                "\n[log]\nlevel = \"off,jump_control::serve=info,jump_gateway::worker=info\"\n".to_owned()
            }
            Self::Logs => String::new(),
            Self::Broken => BROKEN.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    mib_per_second: f64,
    attach_ms: f64,
}

const MIB: u64 = 1 << 20;
const STEP_MAX: Duration = Duration::from_secs(60);

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for round in 1..=arguments.rounds {
        for (variant, samples) in Variant::ALL.into_iter().zip(&mut samples) {
            let sample = measure(&arguments, variant)?;
            eprintln!("round {round} {variant:?}: {sample:?}");
            samples.push(sample);
        }
    }
    let [silent, logs, broken] = samples.map(|samples| median(&samples));
    println!("{:<10} {:>10} {:>12}", "", "MiB/s", "attach ms");
    for (name, sample) in [("silent", silent), ("logs", logs), ("broken", broken)] {
        println!("{name:<10} {:>10.1} {:>12.2}", sample.mib_per_second, sample.attach_ms);
    }
    let throughput = |a: Sample, b: Sample| b.mib_per_second / a.mib_per_second;
    let attaches = |a: Sample, b: Sample| b.attach_ms / a.attach_ms;
    let bars = [
        ("logs and metrics: throughput", throughput(silent, logs), 0.98..f64::MAX),
        ("logs and metrics: attach time", attaches(silent, logs), 0.0..1.05),
        ("failing receivers: throughput", throughput(logs, broken), 0.95..f64::MAX),
        ("failing receivers: attach time", attaches(logs, broken), 0.0..1.05),
    ];
    let mut held = true;
    for (what, ratio, promised) in bars {
        let verdict = if promised.contains(&ratio) { "held" } else { "BROKEN" };
        held &= promised.contains(&ratio);
        println!("{what:<32} {ratio:>6.3}  {verdict}");
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn median(samples: &[Sample]) -> Sample {
    let middle = |of: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample { mib_per_second: middle(|s| s.mib_per_second), attach_ms: middle(|s| s.attach_ms) }
}

fn measure(arguments: &Arguments, variant: Variant) -> Result<Sample> {
    let settings = variant.settings();
    let plan = Plan {
        control_settings: settings.clone(),
        gateway_settings: settings,
        audit: false,
        ..Plan::small("bench-events")
    };
    let mut cluster = Cluster::start(&plan)?;
    let hosts = cluster.network.gateways.iter().chain(&cluster.network.controls);
    let _receivers = match variant {
        Variant::Broken => hosts.map(Receivers::start).collect::<Result<Vec<_>>>()?,
        Variant::Silent | Variant::Logs => Vec::new(),
    };
    let host = &cluster.network.devices[0];
    fleet::route(host, &cluster.network.gateways)?;
    let control = &cluster.network.controls[0];
    let keys = enrol(control, cluster.operator.identity(), arguments.devices, |_| ())?;
    let SocketAddr::V4(to) = cluster.network.inner.lan_socket(7) else { bail!("an IPv4 lab") };
    let traffic = Traffic { every: None, length: 100, to, gap_above: Duration::from_secs(1) };
    let fleet = Fleet::start(
        host,
        FleetPlan {
            keys,
            profile: cluster.state_dir(0),
            gateways: cluster.network.gateways.iter().map(|g| g.wan_socket(GATEWAY_PORT)).collect(),
            via: BTreeMap::new(),
            groups: vec![Group {
                devices: arguments.devices,
                starts_per_second: Some(40.0),
                traffic,
                tuning: Tuning::default(),
            }],
            lanes: 1,
            seed: 5,
        },
    )?;
    let all = arguments.devices as u64;
    wait_until("every device is attached", STEP_MAX, || fleet.counts().born == all)?;
    let mut attaches: Vec<f64> = fleet
        .stop()?
        .iter()
        .filter_map(|record| record.attaches.first())
        .map(|attach| (attach.timings.handshake + attach.timings.commit).as_secs_f64() * 1000.0)
        .collect();
    attaches.sort_by(f64::total_cmp);
    let web = WebServer::start(&cluster.network.inner, 80, u64::MAX)?;
    cluster.up(0)?;
    let length = arguments.size_mib * MIB;
    let download =
        Download::start(&cluster.network.devices[0], web.address(), 9, length)?.finish(STEP_MAX)?;
    let mib_per_second = arguments.size_mib as f64 / download.took.as_secs_f64();
    Ok(Sample { mib_per_second, attach_ms: attaches[attaches.len() / 2] })
}
