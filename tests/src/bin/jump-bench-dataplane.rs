//! `jump-bench-dataplane`: this tunnel and others, side by side on one line of three namespaces.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use jump_tests::dataplane::line::Line;
use jump_tests::dataplane::load::{self, Direction};
use jump_tests::dataplane::peers::{self, Setup};
use jump_tests::dataplane::report::Results;
use jump_tests::dataplane::tunnel::Tunnel;
use jump_tests::lab::run_dir::RunDir;

/// Brings every installed tunnel up over the same three namespaces and measures them in turn, round by round. Samples are
/// kept in the output directory as they are taken, and a later run adds to them. Needs root.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds: every tunnel is measured once in each.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each TCP stream.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only these tunnels; all that are installed by default.
    #[arg(long, value_delimiter = ',')]
    tunnels: Vec<String>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tcp,udp,ping")]
    loads: Vec<Load>,
    /// Segmentation and aggregation of the underlay's links.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "on,off")]
    offloads: Vec<Offloads>,
    /// Where samples and tables go.
    #[arg(long, default_value = ".run/bench-dataplane")]
    out: PathBuf,
    /// Where programs to compare with are installed, before PATH.
    #[arg(long, default_value = ".run/peers")]
    tools: PathBuf,
    /// Measures nothing and writes the tables of the samples that are there.
    #[arg(long)]
    report: bool,
    /// Stops after so many minutes, between two loads; the next run goes on where this one stopped.
    #[arg(long)]
    minutes: Option<f64>,
    /// Also puts the tables into this document, between its marks.
    #[arg(long)]
    document: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// One TCP stream each way, with the gateway's CPU time.
    Tcp,
    /// The highest rate of 64-byte and 1,200-byte datagrams each way.
    Udp,
    /// Round-trip times through the idle tunnel.
    Ping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Offloads {
    On,
    Off,
}

/// A rate of datagrams that any tunnel carries: where the first search begins.
const START: f64 = 10_000.0;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut results = Results::open(&arguments.out)?;
    let names = peers::ALL.map(|(name, _)| name);
    if !arguments.report {
        measure(&arguments, &mut results)?;
    }
    let text = results.write(&names)?;
    println!("{text}");
    arguments.document.as_deref().map_or(Ok(()), |document| Results::publish(&text, document))
}

fn measure(arguments: &Arguments, results: &mut Results) -> Result<()> {
    let run = RunDir::create("bench-dataplane")?;
    let line = Line::create(&run.prefix())?;
    let tools = std::path::absolute(&arguments.tools)?;
    let setup = Setup { line: &line, tools: &tools, dir: run.path() };
    let mut tunnels = Vec::new();
    for (n, (name, start)) in (1..).zip(peers::ALL) {
        if arguments.tunnels.is_empty() || arguments.tunnels.iter().any(|wanted| wanted == name) {
            match start(&setup, n).with_context(|| format!("bringing {name} up"))? {
                Some(tunnel) => {
                    results.note_version(name, &tunnel.version)?;
                    tunnels.push(tunnel);
                }
                None => eprintln!("{name} is not installed and left out"),
            }
        }
    }
    ensure!(!tunnels.is_empty(), "no such tunnel; there are: {:?}", peers::ALL.map(|(name, _)| name));
    let deadline = arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    for round in 1..=arguments.rounds {
        for (load, offloads) in groups(arguments) {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                eprintln!("the time is over in round {round} of {}: run it again to go on", arguments.rounds);
                return Ok(());
            }
            let on = offloads == Offloads::On;
            line.set_offloads(on)?;
            for tunnel in &tunnels {
                let at = At { line: &line, tunnel, offloads: on, round };
                measure_one(arguments, &at, load, results)
                    .with_context(|| format!("{} {load:?}", tunnel.name))?;
            }
        }
        eprintln!("round {round} of {} is done", arguments.rounds);
    }
    Ok(())
}

/// What is measured in a round, each for every tunnel before the next. Without offloads only streams are promised
/// anything.
fn groups(arguments: &Arguments) -> impl Iterator<Item = (Load, Offloads)> {
    let pairs =
        arguments.offloads.iter().flat_map(|offloads| arguments.loads.iter().map(|load| (*load, *offloads)));
    pairs.filter(|(load, offloads)| *offloads == Offloads::On || *load == Load::Tcp)
}

/// Where and when a load is measured.
struct At<'a> {
    line: &'a Line,
    tunnel: &'a Tunnel,
    offloads: bool,
    round: u32,
}

fn measure_one(arguments: &Arguments, at: &At<'_>, load: Load, results: &mut Results) -> Result<()> {
    let At { line, tunnel, offloads, round } = *at;
    let keep = |results: &mut Results, measure: &str, value: f64| {
        eprintln!("{:<13} offloads {offloads:<5} {measure:<14} {value:.3e}", tunnel.name);
        results.add(tunnel.name, offloads, measure, round, value)
    };
    let has = |results: &Results, measure: &str| results.has(tunnel.name, offloads, measure, round);
    let directions = [(Direction::Up, "up"), (Direction::Down, "down")];
    match load {
        Load::Tcp => {
            for (direction, name) in directions {
                if has(results, &format!("tcp_{name}")) {
                    continue;
                }
                let stream = load::tcp(line, tunnel, direction, arguments.seconds)?;
                keep(results, &format!("tcp_{name}"), stream.bits_per_second)?;
                if let Some(cost) = stream.gateway_seconds_per_gb {
                    keep(results, &format!("cpu_{name}"), cost)?;
                }
            }
        }
        Load::Udp => {
            for len in [64, 1200] {
                for (direction, name) in directions {
                    let measure = format!("udp_{len}_{name}");
                    if has(results, &measure) {
                        continue;
                    }
                    let start = results.median(tunnel.name, offloads, &measure).unwrap_or(START);
                    let rate = load::datagrams(line, tunnel, direction, len, start * 0.9)?;
                    keep(results, &measure, rate)?;
                }
            }
        }
        Load::Ping => {
            if has(results, "ping_p99") {
                return Ok(());
            }
            let times = load::pings(line, tunnel)?;
            keep(results, "ping_p50", times[times.len() / 2])?;
            keep(results, "ping_p99", times[times.len() * 99 / 100])?;
        }
    }
    Ok(())
}
