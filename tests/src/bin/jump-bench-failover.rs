//! `jump-bench-failover`: how long nothing comes through when the owner of a session goes.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use jump_tests::failover::{Ending, Sample, measure, median_and_max};
use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::probe::{EchoServer, INTERVAL, Probe};

/// Measures the gap that a probe every 5 ms sees when the gateway that owns its session is killed, drained or lost, and
/// holds medians and maxima against the promised bounds. Needs root.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where control keeps its records.
    #[arg(long, value_enum, default_value_t = StoreName::Embedded)]
    store: StoreName,
    /// Failovers of each kind.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Only these kinds; all by default. A lost machine is measured a quarter as often.
    #[arg(long, value_enum)]
    ending: Vec<Ending>,
    /// One JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Embedded,
    Etcd,
}

/// The promised bounds of median and maximum, in milliseconds.
fn bounds(ending: Ending) -> (f64, f64) {
    match ending {
        Ending::Killed | Ending::KilledOnTheWayBack => (300.0, 1000.0),
        Ending::Drained => (50.0, 1000.0),
        // The lease's time to live of 3 s, the store's delay in noticing, one attach.
        Ending::MachineLost => (5000.0, 8000.0),
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let store = match arguments.store {
        StoreName::Embedded => Store::Embedded,
        StoreName::Etcd => Store::Etcd,
    };
    let endings = if arguments.ending.is_empty() { Ending::ALL.to_vec() } else { arguments.ending.clone() };
    let plan = Plan {
        // The session moves more often here than an ordinary policy lets it.
        control_settings: "[policy]\nswitches_per_minute_max = 128\n".to_owned(),
        ..Plan::small("bench-failover").with_store(store)
    };
    let mut cluster = Cluster::start(&plan)?;
    let echo = EchoServer::start(&cluster.network.inner, 7)?;
    let session = cluster.up(0)?.session;
    let probe = Probe::start(&cluster.network.devices[0], echo.address())?;
    let mut results = Vec::new();
    for ending in endings {
        let runs = if ending == Ending::MachineLost { arguments.runs.div_ceil(4) } else { arguments.runs };
        let mut samples = Vec::new();
        for run in 1..=runs {
            let sample =
                measure(&mut cluster, &probe, &session, ending).inspect_err(|_| cluster.run.keep())?;
            eprintln!(
                "{} {run}/{runs}: {} -> {} epoch {} gap {} ms",
                ending.text(),
                sample.from,
                sample.to,
                sample.epoch,
                sample.gap_ms
            );
            samples.push(sample);
        }
        results.push((ending, samples));
    }
    let held = results.iter().all(|(ending, samples)| holds(*ending, samples));
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({ "store": format!("{:?}", arguments.store).to_lowercase(), "probe_ms": INTERVAL.as_millis(), "results": results })
        );
    } else {
        table(&results);
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn gaps(samples: &[Sample]) -> impl Iterator<Item = f64> {
    samples.iter().map(|sample| sample.gap_ms)
}

fn holds(ending: Ending, samples: &[Sample]) -> bool {
    let ((median, max), (median_bound, max_bound)) = (median_and_max(gaps(samples)), bounds(ending));
    median <= median_bound && max <= max_bound
}

fn table(results: &[(Ending, Vec<Sample>)]) {
    println!("{:<36} {:>4} {:>10} {:>10}   promised", "how the owner goes", "runs", "median ms", "max ms");
    for (ending, samples) in results {
        let ((median, max), (median_bound, max_bound)) = (median_and_max(gaps(samples)), bounds(*ending));
        let verdict = if holds(*ending, samples) { "held" } else { "BROKEN" };
        println!(
            "{:<36} {:>4} {median:>10.1} {max:>10.1}   {median_bound:.0} / {max_bound:.0} {verdict}",
            ending.text(),
            samples.len(),
        );
    }
}
