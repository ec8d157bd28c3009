//! `jump-bench-endurance`: full load for minutes while the session moves every second.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use jump_tests::dataplane::endurance::endure;

/// One TCP stream as fast as it goes through a session that moves between two gateways every second. Fails when memory
/// grows, or when the stream pauses for more than 50 ms other than for a move. Needs root.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

fn main() -> Result<ExitCode> {
    let Arguments { minutes } = Arguments::parse();
    let endured = endure(Duration::from_secs_f64(minutes * 60.0))?;
    println!("{:#}", endured.json());
    Ok(if endured.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
