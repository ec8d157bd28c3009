//! `jump-lab`: scenarios against a real cluster on this machine, with a report and a verdict.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use jump_tests::scenario::Scenario;
use jump_tests::scenario::report::Report;
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
        /// Scenario files (TOML)
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
        /// The profile
        file: PathBuf,
        /// Where the report goes
        #[arg(long, default_value = ".run/reports")]
        out: PathBuf,
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
    /// Print a Markdown table of reports' criteria, for the documents
    Table {
        /// Reports (JSON)
        #[arg(required = true)]
        reports: Vec<PathBuf>,
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
        Command::Pilot { file, out } => {
            let held = run_one(&Scenario::load(&file, false)?, false, &out)?;
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
        Command::Table { reports } => {
            let reports = reports.iter().map(|path| Report::load(path)).collect::<Result<Vec<_>>>()?;
            print!("{}", compare::markdown(&reports));
            true
        }
    };
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_one(scenario: &Scenario, full: bool, out: &Path) -> Result<bool> {
    eprintln!("{}: {}", scenario.name, scenario.title);
    let report = run::run(scenario, full).with_context(|| format!("the scenario {}", scenario.name))?;
    let (json, html) = report.save(out)?;
    print!("{}", report.summary());
    println!("  report  {} and {}", json.display(), html.display());
    Ok(report.passes())
}
