//! `jump-lab`: scenarios against a real cluster on this machine, with a report and a verdict.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use jump_tests::dataplane::survival;
use jump_tests::document;
use jump_tests::lab::overhead::Overhead;
use jump_tests::scale;
use jump_tests::scenario::Scenario;
use jump_tests::scenario::live::{Endpoint, Judgement, Watch};
use jump_tests::scenario::report::Report;
use jump_tests::scenario::results::{self, Kept};
use jump_tests::scenario::{compare, run, schedule};

/// Runs scenarios: builds a cluster in network namespaces, attaches virtual devices, breaks things on a timeline, and
/// judges what happened. Needs root. Exits with 1 when a criterion breaks.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenario files one after another
    Run {
        /// Scenario files (TOML or YAML)
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The large form of each
        #[arg(long)]
        full: bool,
        /// Another seed
        #[arg(long)]
        seed: Option<u64>,
        /// Another length of the events' time, in minutes
        #[arg(long)]
        minutes: Option<f64>,
        /// Where reports go
        #[arg(long, default_value = ".run/reports")]
        out: PathBuf,
    },
    /// Judge a pilot profile: the same as run, with the verdict first
    Pilot {
        /// The profile (YAML or TOML)
        file: PathBuf,
        /// Where the report goes
        #[arg(long, default_value = ".run/reports")]
        out: PathBuf,
        /// Judge a live cluster by the profile's criteria instead; breaks nothing
        #[arg(long, requires_all = ["metrics", "audit"])]
        live: bool,
        /// A metrics endpoint of the live cluster, http://HOST:PORT; name every gateway's and every control replica's
        #[arg(long, value_name = "URL", requires = "live")]
        metrics: Vec<Endpoint>,
        /// An audit file of the live cluster, of control, gateways or devices; name each
        #[arg(long, value_name = "FILE", requires = "live")]
        audit: Vec<PathBuf>,
        /// How long to watch, in seconds; the profile's own time without it
        #[arg(long, requires = "live")]
        seconds: Option<f64>,
        /// The node lease of the live cluster, in seconds (`lease.ttl` of control)
        #[arg(long, default_value_t = 3.0)]
        lease: f64,
        /// What a live cluster does not tell counts as broken
        #[arg(long, requires = "live")]
        strict: bool,
    },
    /// Show two reports side by side
    Compare {
        /// One report (JSON)
        a: PathBuf,
        /// The other
        b: PathBuf,
    },
    /// Print a scenario's schedule without running it, one JSON object per line
    Schedule {
        /// The scenario
        file: PathBuf,
        /// The large form
        #[arg(long)]
        full: bool,
        /// Another seed
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Simulate clusters that no machine here holds, up to a million sessions on a thousand gateways, and print the sizing table
    Scale {
        /// Small clusters, in a second
        #[arg(long)]
        short: bool,
        /// One seed, one table
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Also puts the table between the marks of this document
        #[arg(long)]
        document: Option<PathBuf>,
    },
    /// Take this tunnel and others through loss, a new address and the death of the gateway's process
    Peers {
        /// Where programs to compare with are installed, before PATH (scripts/install-peers.sh)
        #[arg(long, default_value = ".run/peers")]
        tools: PathBuf,
        /// Only these tunnels; all that are installed by default
        #[arg(long, value_delimiter = ',')]
        tunnels: Vec<String>,
    },
    /// Measure what the impairment relay costs by itself, each way
    Relay,
    /// Print a Markdown table of reports' criteria, for the documents
    Table {
        /// Reports (JSON), or what was kept of some
        #[arg(required = true)]
        reports: Vec<PathBuf>,
        /// Also keeps what documents need of them in this file, beside what it has of other scenarios
        #[arg(long)]
        keep: Option<PathBuf>,
        /// Also puts the table between the marks of this document
        #[arg(long)]
        document: Option<PathBuf>,
    },
}

fn main() -> Result<ExitCode> {
    let held = match Arguments::parse().command {
        Command::Run { files, full, seed, minutes, out } => {
            let mut held = true;
            for file in &files {
                let mut scenario = Scenario::load(file, full)?;
                scenario.seed = seed.unwrap_or(scenario.seed);
                scenario.times.run = minutes.map_or(scenario.times.run, |minutes| minutes * 60.0);
                held &= run_one(&scenario, full, &out)?;
            }
            held
        }
        Command::Pilot { file, out, live, metrics, audit, seconds, lease, strict } => {
            let profile = Scenario::load(&file, false)?;
            let held = if live {
                let time = seconds.unwrap_or(profile.times.run + profile.times.settle);
                let lease = Duration::try_from_secs_f64(lease).context("--lease")?;
                let time = Duration::try_from_secs_f64(time).context("--seconds")?;
                let judged = watch(&profile, &metrics, &audit, time, lease)?;
                print!("{}", judged.summary());
                println!("  report  {}", judged.save(&out)?.display());
                judged.passes(strict)
            } else {
                run_one(&profile, false, &out)?
            };
            println!("{}", if held { "PASS" } else { "FAIL" });
            held
        }
        Command::Compare { a, b } => {
            print!("{}", compare::table(&Report::load(&a)?, &Report::load(&b)?));
            true
        }
        Command::Schedule { file, full, seed } => {
            let mut scenario = Scenario::load(&file, full)?;
            scenario.seed = seed.unwrap_or(scenario.seed);
            print!("{}", schedule::to_lines(&schedule::schedule(&scenario)));
            true
        }
        Command::Scale { short, seed, document } => {
            let sizes: &[scale::Size] = if short { &scale::SIZES_SHORT } else { &scale::SIZES };
            let table = scale::markdown(&scale::run(sizes, seed, |line| eprintln!("{line}")), seed);
            if let Some(document) = document {
                document::publish(&document, scale::BEGIN, scale::END, &table)?;
            }
            print!("{table}");
            true
        }
        Command::Peers { tools, tunnels } => {
            let tools = std::path::absolute(&tools)?;
            print!("{}", survival::markdown(&survival::measure(&tools, &tunnels)?));
            true
        }
        Command::Relay => {
            println!("{}", Overhead::measure()?.text());
            true
        }
        Command::Table { reports, keep, document } => {
            let mut results = Vec::new();
            for path in keep.iter().filter(|path| path.exists()).chain(&reports) {
                results = results::merge(results, Kept::load(path)?);
            }
            if let Some(keep) = keep {
                std::fs::write(&keep, serde_json::to_string_pretty(&results)? + "\n")
                    .with_context(|| format!("writing {}", keep.display()))?;
            }
            let table = results::markdown(&results);
            if let Some(document) = document {
                document::publish(&document, results::BEGIN, results::END, &table)?;
            }
            print!("{table}");
            true
        }
    };
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at a live cluster twice, `time` apart.
fn watch(
    profile: &Scenario,
    metrics: &[Endpoint],
    audit: &[PathBuf],
    time: Duration,
    lease: Duration,
) -> Result<Judgement> {
    let texts = metrics.iter().map(Endpoint::get).collect::<Result<Vec<_>>>()?;
    let watch = Watch::begin(&texts, audit)?;
    eprintln!("watching {} endpoints and {} audit files for {time:?}", metrics.len(), audit.len());
    std::thread::sleep(time);
    // What happened meanwhile may be what silenced an endpoint, and what was seen counts nevertheless.
    let last = |endpoint: &Endpoint| {
        let text = endpoint.get();
        text.inspect_err(|error| eprintln!("at the end: {error:#}")).ok()
    };
    watch.end(&metrics.iter().map(last).collect::<Vec<_>>(), profile, lease)
}

fn run_one(scenario: &Scenario, full: bool, out: &Path) -> Result<bool> {
    eprintln!("{}: {}", scenario.name, scenario.title);
    let report = run::run(scenario, full).with_context(|| format!("the scenario {}", scenario.name))?;
    let (json, html) = report.save(out)?;
    print!("{}", report.summary());
    println!("  report  {} and {}", json.display(), html.display());
    Ok(report.passes())
}
