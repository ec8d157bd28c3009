//! `jump-demo`: a download outlives the gateway that carries it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use jump_tests::demo::report::Report;
use jump_tests::demo::terminal::Terminal;
use jump_tests::demo::{Kill, Options, run};
use jump_tests::lab::cluster::Store;

/// Lays out a network in namespaces, starts a cluster and a download through the tunnel, kills the gateway that owns
/// the session, and checks that the session went on. Needs root. Exit code 0 when every check is true, 1 otherwise.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where control keeps its records. With etcd: three nodes, two control replicas, one of which is killed too.
    #[arg(long, value_enum, default_value_t = StoreName::Embedded)]
    store: StoreName,
    /// What is killed.
    #[arg(long, value_enum, default_value_t = Kill::Worker)]
    kill: Kill,
    /// How many times, each with a fresh cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Size of the download, in MiB.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    size: u64,
    /// Pace of the download, in MiB per second.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=1024))]
    rate: u64,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Embedded,
    Etcd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// The story, then a short report.
    Text,
    /// One object per run on stdout, nothing else.
    Json,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let store = match arguments.store {
        StoreName::Embedded => Store::Embedded,
        StoreName::Etcd => Store::Etcd,
    };
    let mut gaps = Vec::new();
    let mut failures = 0u32;
    for round in 1..=arguments.repeat {
        let terminal = Terminal::new(arguments.output == Output::Json);
        if arguments.repeat > 1 {
            terminal.line(&format!("--- run {round} of {}", arguments.repeat));
        }
        let options = Options {
            store,
            kill: arguments.kill,
            size_mib: arguments.size,
            rate_mib: arguments.rate,
            seed: round.into(),
        };
        match run(&options, &terminal) {
            Ok(report) => {
                show(&report, arguments.output, &terminal)?;
                failures += u32::from(!report.passed());
                gaps.push(report.gap_ms);
            }
            Err(error) => {
                eprintln!("the demo could not go on: {error:#}");
                failures += 1;
            }
        }
    }
    if arguments.repeat > 1 {
        summary(arguments.repeat, failures, &mut gaps);
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(report: &Report, output: Output, terminal: &Terminal) -> Result<()> {
    match output {
        Output::Text => terminal.report(report),
        Output::Json => println!("{}", serde_json::to_string(report)?),
    }
    Ok(())
}

fn summary(runs: u32, failures: u32, gaps: &mut [f64]) {
    gaps.sort_by(f64::total_cmp);
    let (Some(median), Some(max)) = (gaps.get(gaps.len() / 2), gaps.last()) else { return };
    eprintln!("{} of {runs} runs succeeded; gap: median {median:.0} ms, max {max:.0} ms", runs - failures);
}
