//! `jump-bench-observability`: what logs, metrics and audit events cost, and what receivers that fail cost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use jump_crypto::keys::DeviceSecret;
use jump_session::client::Tuning;
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::download::{Download, WebServer};
use jump_tests::lab::enrol::enrol;
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::fleet::{self, Fleet, FleetPlan, Group, Traffic};
use jump_tests::lab::paired::Paired;
use jump_tests::lab::process::cpu_time;
use jump_tests::lab::programs::{GATEWAY_PORT, metric};
use jump_tests::lab::receivers::{Receivers, broken, broken_sinks};

/// Runs three clusters side by side: silent, with logs and metrics as by default, and with receivers of audit events that
/// stand still, refuse and die. Short rounds in turn compare a download through one device and the attaches of many. Needs
/// root.
///
/// Each figure is the ratio of two neighbours in time; the median of all rounds counts, with the interval that holds the
/// true median with a probability of 95 %. CPU time is that of control and the gateway, kernel included: other load on the
/// machine slows a round down, and hardly changes what it costs. Exit codes: 0 when every bar was held, 1 when one was
/// broken, 3 when the rounds were too few or too noisy to tell.
#[derive(Debug, Parser)]
struct Arguments {
    /// Fresh sets of clusters, one after the other
    #[arg(long, default_value_t = 12)]
    sets: usize,
    /// Rounds with each set
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Virtual devices that attach in a round
    #[arg(long, default_value_t = 60)]
    devices: usize,
    /// Size of a round's download, in MiB
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    /// No log lines, no audit events, metrics counted and read by nobody.
    Silent,
    /// Log lines as by default, metrics read every second, no audit.
    Logs,
    /// The same, and audit events to receivers that fail.
    Broken,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Silent, Self::Logs, Self::Broken];

    fn settings(self) -> String {
        match self {
            Self::Silent | Self::Logs => String::new(),
            Self::Broken => broken(),
        }
    }
}

/// What one round cost.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Seconds of the download.
    download: f64,
    /// CPU seconds of it.
    download_cpu: f64,
    /// Seconds until every device was attached.
    attaches: f64,
    /// CPU seconds of that.
    attaches_cpu: f64,
    /// The median attach, handshake and commit, in seconds.
    attach: f64,
}

type Figure = (&'static str, fn(&Sample) -> f64);

const DOWNLOAD: Figure = ("download, time", |sample| sample.download);
const DOWNLOAD_CPU: Figure = ("download, CPU time", |sample| sample.download_cpu);
const ATTACHES: Figure = ("attaches, time for all", |sample| sample.attaches);
const ATTACHES_CPU: Figure = ("attaches, CPU time", |sample| sample.attaches_cpu);
const ATTACH: Figure = ("attach, median latency", |sample| sample.attach);

const MIB: u64 = 1 << 20;
const STEP_MAX: Duration = Duration::from_secs(60);
/// Faster than the programs can serve them.
const STARTS_PER_SECOND: f64 = 5000.0;
/// Seconds of measured time between two scrapes of a cluster: the pauses between rounds do not count, or every round would
/// pay for a scrape as if it had taken a second.
const SCRAPE_EVERY: f64 = 1.0;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut samples: BTreeMap<Variant, Vec<Sample>> = BTreeMap::new();
    for set in 0..arguments.sets {
        let mut sites =
            Variant::ALL.into_iter().map(|v| Site::start(&arguments, v)).collect::<Result<Vec<_>>>()?;
        for round in 0..arguments.rounds {
            // Nobody is always first, and every two are neighbours equally often.
            let turn = set + round;
            sites.rotate_left(turn % 3);
            if turn % 2 == 1 {
                sites.reverse();
            }
            for site in &mut sites {
                let sample = site.round(&arguments)?;
                eprintln!("set {set} round {round} {:?}: {sample:?}", site.variant);
                samples.entry(site.variant).or_default().push(sample);
            }
        }
        for site in &sites {
            site.check()?;
        }
    }
    report(&arguments, &samples)
}

fn report(arguments: &Arguments, samples: &BTreeMap<Variant, Vec<Sample>>) -> Result<ExitCode> {
    for (variant, samples) in samples {
        let median = |(_, of): Figure| Paired::median(samples.iter().map(of));
        let gigabytes = (arguments.size_mib * MIB) as f64 / 1e9;
        println!(
            "{variant:<8?} {:>7.2} Gbit/s  {:>6.3} CPU s/GB  {:>6.0} attaches/s  {:>6.3} CPU ms/attach  {:>6.2} ms an attach",
            gigabytes * 8.0 / median(DOWNLOAD),
            median(DOWNLOAD_CPU) / gigabytes,
            arguments.devices as f64 / median(ATTACHES),
            median(ATTACHES_CPU) * 1000.0 / arguments.devices as f64,
            median(ATTACH) * 1000.0,
        );
    }
    println!("\n{:<48} {:>7} {:>17} {:>7}", "cost, ratio", "median", "95 % interval", "bar");
    let bars = [
        ("logs and metrics", Variant::Silent, Variant::Logs, 0.02, 0.05),
        ("failing receivers", Variant::Logs, Variant::Broken, 0.05, 0.05),
    ];
    let (mut held, mut broken) = (true, false);
    for (what, without, with, data, attach) in bars {
        let figures = [
            (DOWNLOAD, data),
            (DOWNLOAD_CPU, data),
            (ATTACHES, attach),
            (ATTACHES_CPU, attach),
            (ATTACH, attach),
        ];
        for ((name, of), loss) in figures {
            // A throughput that falls by a share `loss` is a time that grows by its inverse.
            let bar = 1.0 / (1.0 - loss);
            let values = |variant| samples.get(&variant).context("no sample").map(|all| all.iter().map(of));
            let paired = Paired::new(values(without)?, values(with)?);
            let verdict = match paired.interval() {
                (_, high) if high <= bar => "held",
                (low, _) if low > bar => "BROKEN",
                _ => "not decided",
            };
            held &= verdict == "held";
            broken |= verdict == "BROKEN";
            let (low, high) = paired.interval();
            println!(
                "{:<48} {:>7.3} {:>8.3} {:>8.3} {bar:>7.3}  {verdict}",
                format!("{what}: {name}"),
                paired.ratio(),
                low,
                high
            );
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::from(if held { 0 } else { 3 }) })
}

/// One cluster of one variant.
struct Site {
    variant: Variant,
    keys: Vec<DeviceSecret>,
    web: WebServer,
    _receivers: Vec<Receivers>,
    cluster: Cluster,
    /// Seconds that were measured since the last scrape.
    unscraped: f64,
}

impl Site {
    fn start(arguments: &Arguments, variant: Variant) -> Result<Self> {
        let settings = variant.settings();
        let label = match variant {
            Variant::Silent => "bench-a",
            Variant::Logs => "bench-b",
            Variant::Broken => "bench-c",
        };
        let plan = Plan {
            gateways: 1,
            return_route: jump_tests::lab::network::ReturnRoute::Gateway(0),
            control_settings: settings.clone(),
            gateway_settings: settings,
            audit: false,
            ..Plan::small(label)
        };
        let mut cluster = Cluster::start(&plan)?;
        let hosts = cluster.network.gateways.iter().chain(&cluster.network.controls);
        let receivers = match variant {
            Variant::Broken => hosts.map(Receivers::start).collect::<Result<Vec<_>>>()?,
            Variant::Silent | Variant::Logs => Vec::new(),
        };
        fleet::route(&cluster.network.devices[0], &cluster.network.gateways)?;
        let devices = arguments.devices * arguments.rounds;
        let keys = enrol(&cluster.network.controls[0], cluster.operator.identity(), devices, |_| ())?;
        let web = WebServer::start(&cluster.network.inner, 80, u64::MAX)?;
        cluster.up(0)?;
        if variant == Variant::Silent {
            // All but the line that says so.
            cluster.set_log_levels("off,jump_telemetry::log=info")?;
        }
        Ok(Self { variant, keys, web, _receivers: receivers, cluster, unscraped: 0.0 })
    }

    fn round(&mut self, arguments: &Arguments) -> Result<Sample> {
        let (attaches, attaches_cpu, attach) = self.attach(arguments)?;
        let before = self.cpu()?;
        let length = arguments.size_mib * MIB;
        let download = Download::start(&self.cluster.network.devices[0], self.web.address(), 9, length)?;
        let download = download.finish(STEP_MAX)?.took.as_secs_f64();
        self.scrape(download)?;
        let download_cpu = self.cpu()? - before;
        Ok(Sample { download, download_cpu, attaches, attaches_cpu, attach })
    }

    /// Attaches fresh devices, all at once; the time it took, its CPU time, and the median attach.
    fn attach(&mut self, arguments: &Arguments) -> Result<(f64, f64, f64)> {
        let network = &self.cluster.network;
        let SocketAddr::V4(to) = network.inner.lan_socket(7) else { bail!("an IPv4 lab") };
        let traffic =
            Traffic { every: None, burst: None, length: 100, to, gap_above: Duration::from_secs(1) };
        // Nobody asks twice: what is measured is the work for one attach each.
        let tuning = Tuning { reply_timeout: Duration::from_secs(5), ..Tuning::default() };
        let devices = arguments.devices;
        let keys = self.keys.split_off(self.keys.len().saturating_sub(devices));
        let starts_per_second = Some(STARTS_PER_SECOND);
        let before = self.cpu()?;
        let begun = fleet::clock();
        let fleet = Fleet::start(
            &network.devices[0],
            FleetPlan {
                keys,
                profile: self.cluster.state_dir(0),
                gateways: network.gateways.iter().map(|g| g.wan_socket(GATEWAY_PORT)).collect(),
                via: BTreeMap::new(),
                groups: vec![Group { devices, starts_per_second, traffic, tuning, aside: false }],
                lanes: 1,
                seed: 5,
            },
        )?;
        let all = devices as u64;
        wait_until("every device is attached", STEP_MAX, || fleet.counts().born == all)?;
        self.scrape(fleet::clock().saturating_sub(begun).as_secs_f64())?;
        let cpu = self.cpu()? - before;
        let records = fleet.stop()?;
        let attaches = || records.iter().filter_map(|record| record.attaches.first());
        let last = attaches().map(|attach| attach.at).max().context("nobody attached")?;
        let latency = Paired::median(
            attaches().map(|attach| (attach.timings.handshake + attach.timings.commit).as_secs_f64()),
        );
        Ok((last.saturating_sub(begun).as_secs_f64(), cpu, latency))
    }

    /// CPU time of control and the gateway so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let Cluster { controls, gateways, .. } = &self.cluster;
        let workers = (0..gateways.len()).map(|i| self.cluster.worker(i)).collect::<Result<Vec<_>>>()?;
        let pids = controls.iter().chain(gateways).map(|process| process.pid()).chain(workers);
        pids.map(|pid| cpu_time(pid).map(|time| time.as_secs_f64())).sum()
    }

    /// Reads the metrics as Prometheus would, only more often, after another `measured` seconds.
    fn scrape(&mut self, measured: f64) -> Result<()> {
        self.unscraped += measured;
        if self.variant != Variant::Silent && self.unscraped >= SCRAPE_EVERY {
            self.unscraped = 0.0;
            for host in self.cluster.network.gateways.iter().chain(&self.cluster.network.controls) {
                metric(host, "jump_log_lines_queued_total", "")?;
            }
        }
        Ok(())
    }

    /// That the receivers were really asked, and that what they did not take was counted.
    fn check(&self) -> Result<()> {
        if self.variant != Variant::Broken {
            return Ok(());
        }
        for host in self.cluster.network.gateways.iter().chain(&self.cluster.network.controls) {
            for name in broken_sinks() {
                let dropped =
                    metric(host, "jump_audit_sink_events_dropped_total", &format!("sink=\"{name}\""))?;
                ensure!(dropped > 0.0, "sink {name} dropped nothing: it was not held up");
            }
        }
        Ok(())
    }
}
