//! `jump-bench-moves`: what changes of path and planned moves cost a session, against what is promised.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use jump_tests::failover::median_and_max;
use jump_tests::lab::probe::INTERVAL;
use jump_tests::moves::drain::{Drains, Way};
use jump_tests::moves::{Change, Sample, Scene};
use serde_json::json;

/// Measures the gap that a probe every 5 ms sees when the way of a session changes, and what planned moves do to a
/// numbered stream; holds both against the promised bounds. Needs root.
#[derive(Debug, Parser)]
struct Arguments {
    /// Changes of each kind.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Only these kinds; all by default.
    #[arg(long, value_enum)]
    change: Vec<Change>,
    /// Drains in a row, under a stream each way; 0 for none.
    #[arg(long, default_value_t = 50)]
    drains: u64,
    /// The stream, in Mbit/s of UDP payload.
    #[arg(long, default_value_t = 100)]
    rate_mbit: u64,
    /// Where moves.json and moves.md go; nowhere by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A line of the report.
#[derive(Debug, serde::Serialize)]
struct Line {
    what: String,
    runs: usize,
    figures: String,
    promised: String,
    held: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let changes = if arguments.change.is_empty() { Change::ALL.to_vec() } else { arguments.change.clone() };
    let (mut samples, mut lines) = (Vec::new(), Vec::new());
    for change in changes {
        let of_change = measure(change, arguments.runs)?;
        lines.extend(judge(change, &of_change));
        samples.push((change, of_change));
    }
    let mut drains = Vec::new();
    if arguments.drains > 0 {
        for way in Way::ALL {
            let mut scene = Scene::set(&Scene::plan("bench-drains"))?;
            let done = scene.drains(way, arguments.rate_mbit * 1_000_000, arguments.drains);
            let done = done.inspect_err(|_| scene.cluster.run.keep())?;
            eprintln!("{done:?}");
            lines.push(judge_drains(&done));
            drains.push(done);
        }
    }
    let text = table(&lines);
    print!("{text}");
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
        let report =
            json!({ "probe_ms": INTERVAL.as_millis(), "lines": lines, "changes": samples, "drains": drains });
        std::fs::write(out.join("moves.json"), serde_json::to_vec_pretty(&report)?)?;
        std::fs::write(out.join("moves.md"), text)?;
    }
    Ok(if lines.iter().all(|line| line.held) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs of one change over the same session; those that leave UDP begin in a fresh network each, so that none waits longer
/// for its return because of the one before.
fn measure(change: Change, runs: u32) -> Result<Vec<Sample>> {
    let mut scene = Scene::set(&Scene::plan("bench-moves"))?;
    let mut samples = Vec::new();
    for run in 1..=runs {
        let sample = scene.measure(change).inspect_err(|_| scene.cluster.run.keep())?;
        eprintln!("{} {run}/{runs}: {sample:?}", change.text());
        if sample.back.is_some() {
            scene.measure(Change::OtherNetwork).inspect_err(|_| scene.cluster.run.keep())?;
        }
        samples.push(sample);
    }
    scene.ensure_same_session()?;
    Ok(samples)
}

fn judge(change: Change, samples: &[Sample]) -> Vec<Line> {
    let (median, max) = median_and_max(samples.iter().map(|sample| sample.gap_ms));
    let (round_trip, _) = median_and_max(samples.iter().map(|sample| sample.round_trip_ms));
    let lost = samples.iter().map(|sample| sample.lost).max().unwrap_or(0);
    let twice = samples.iter().map(|sample| sample.duplicates).sum::<usize>();
    let figures = format!("gap {median:.1} / {max:.1} ms, at most {lost} probes lost, {twice} twice");
    let line =
        |what: String, figures, promised, held| Line { what, runs: samples.len(), figures, promised, held };
    let (promised, held) = match change {
        Change::OtherNetwork | Change::NatPort | Change::NatAddress => {
            let bound = round_trip + 20.0;
            (format!("median of the gap at most a round trip and 20 ms: {bound:.1} ms"), median <= bound)
        }
        Change::PreferredNetwork => ("at most 1 probe lost".to_owned(), lost <= 1),
        Change::NatPortDownlinkOnly => ("gap at most 5 s".to_owned(), max <= 5000.0),
        Change::UdpDropped | Change::UdpRejected | Change::OnlyQuic | Change::OnlyTls => {
            ("gap at most 1 s".to_owned(), max <= 1000.0)
        }
    };
    let mut lines = vec![line(change.text().to_owned(), figures, promised, held && twice == 0)];
    let back: Vec<_> = samples.iter().filter_map(|sample| sample.back.as_ref()).collect();
    if !back.is_empty() {
        let (after, latest) = median_and_max(back.iter().map(|back| back.after_ms));
        let (median, max) = median_and_max(back.iter().map(|back| back.gap_ms));
        let lost = back.iter().map(|back| back.lost).max().unwrap_or(0);
        lines.push(line(
            "    and back to UDP".to_owned(),
            format!(
                "after {after:.0} / {latest:.0} ms, gap {median:.1} / {max:.1} ms, at most {lost} probes lost"
            ),
            "at most 1 probe lost".to_owned(),
            lost <= 1,
        ));
    }
    lines
}

fn judge_drains(drains: &Drains) -> Line {
    let (stream, (median, max)) = (&drains.stream, median_and_max(drains.took_ms.iter().copied()));
    let dropped: String =
        drains.dropped.iter().map(|(reason, count)| format!(", {count} dropped as {reason}")).collect();
    let way = match drains.way {
        Way::Down => "to the device",
        Way::Up => "from the device",
    };
    Line {
        what: format!("drains under {} Mbit/s {way}", drains.rate_bits / 1_000_000),
        runs: drains.took_ms.len(),
        figures: format!(
            "{} lost, {} twice of {}; {} overtaken by up to {}; longest gap {} ms; each took {median:.0} / {max:.0} ms; \
             {} waited{dropped}",
            stream.lost,
            stream.duplicates,
            stream.sent,
            stream.overtaken,
            stream.farthest,
            stream.longest_gap_ms,
            drains.parked,
        ),
        promised: "none lost, none twice".to_owned(),
        held: stream.lost == 0 && stream.duplicates == 0,
    }
}

/// As Markdown: medians before maxima.
fn table(lines: &[Line]) -> String {
    let mut text =
        String::from("| what happens | runs | median / maximum | promised | |\n|---|---|---|---|---|\n");
    for Line { what, runs, figures, promised, held } in lines {
        let verdict = if *held { "held" } else { "BROKEN" };
        let _ = writeln!(text, "| {what} | {runs} | {figures} | {promised} | {verdict} |");
    }
    text
}
