//! Samples on disk, and the tables made of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::promises;

/// One measured value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// The tunnel.
    pub tunnel: String,
    /// Whether the underlay's links had segmentation and aggregation.
    pub offloads: bool,
    /// What was measured, for example `tcp_up`.
    pub measure: String,
    /// The round, from 1 on: all tunnels are measured in each.
    pub round: u32,
    /// In the measure's unit.
    pub value: f64,
}

/// Around the tables in a document.
const BEGIN: &str = "<!-- results of make bench-dataplane begin -->";
const END: &str = "<!-- results of make bench-dataplane end -->";

/// A line of the tables.
struct Row {
    measure: &'static str,
    title: &'static str,
    /// Multiplies the stored value for people.
    scale: f64,
    digits: usize,
}

const fn row(measure: &'static str, title: &'static str, scale: f64, digits: usize) -> Row {
    Row { measure, title, scale, digits }
}

const ROWS: [Row; 10] = [
    row("tcp_up", "TCP up, Gbit/s", 1e-9, 2),
    row("tcp_down", "TCP down, Gbit/s", 1e-9, 2),
    row("cpu_up", "gateway CPU up, s/GB", 1.0, 2),
    row("cpu_down", "gateway CPU down, s/GB", 1.0, 2),
    row("udp_64_up", "UDP 64 B up, kpps", 1e-3, 1),
    row("udp_64_down", "UDP 64 B down, kpps", 1e-3, 1),
    row("udp_1200_up", "UDP 1,200 B up, kpps", 1e-3, 1),
    row("udp_1200_down", "UDP 1,200 B down, kpps", 1e-3, 1),
    row("ping_p50", "ping p50, µs", 1.0, 0),
    row("ping_p99", "ping p99, µs", 1.0, 0),
];

/// The samples of a run and what is known of the tunnels, in a directory.
#[derive(Debug)]
pub struct Results {
    dir: PathBuf,
    samples: Vec<Sample>,
    versions: BTreeMap<String, String>,
}

impl Results {
    /// Goes on with what `dir` has, so that a run can be made in pieces.
    ///
    /// # Errors
    /// When the directory cannot be made or its files not be read.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let samples = read("samples.jsonl").lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let versions = serde_json::from_str(&read("versions.json")).unwrap_or_default();
        Ok(Self { dir: dir.to_owned(), samples, versions })
    }

    /// Notes which tunnel was measured.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_version(&mut self, tunnel: &str, version: &str) -> Result<()> {
        self.versions.insert(tunnel.to_owned(), version.to_owned());
        let text = serde_json::to_string_pretty(&self.versions)?;
        fs::write(self.dir.join("versions.json"), text).context("writing versions.json")
    }

    /// Keeps a sample, on disk at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, tunnel: &str, offloads: bool, measure: &str, round: u32, value: f64) -> Result<()> {
        self.note(tunnel, offloads, measure, round, value);
        let path = self.dir.join("samples.jsonl");
        let mut file = File::options().create(true).append(true).open(path)?;
        writeln!(file, "{}", serde_json::to_string(&self.samples.last())?)?;
        Ok(())
    }

    /// Keeps a sample in memory alone.
    pub(super) fn note(&mut self, tunnel: &str, offloads: bool, measure: &str, round: u32, value: f64) {
        let (tunnel, measure) = (tunnel.to_owned(), measure.to_owned());
        self.samples.push(Sample { tunnel, offloads, measure, round, value });
    }

    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self { dir: PathBuf::new(), samples: Vec::new(), versions: BTreeMap::new() }
    }

    /// True when an earlier piece of the run has this sample.
    pub fn has(&self, tunnel: &str, offloads: bool, measure: &str, round: u32) -> bool {
        self.of(tunnel, offloads, measure).any(|sample| sample.round == round)
    }

    fn of<'a>(
        &'a self,
        tunnel: &'a str,
        offloads: bool,
        measure: &'a str,
    ) -> impl Iterator<Item = &'a Sample> {
        let wanted = move |s: &&Sample| s.tunnel == tunnel && s.offloads == offloads && s.measure == measure;
        self.samples.iter().filter(wanted)
    }

    fn values(&self, tunnel: &str, offloads: bool, measure: &str) -> Vec<f64> {
        self.of(tunnel, offloads, measure).map(|sample| sample.value).collect()
    }

    /// How many times as much the tunnel `of` had as `than`: the median over the rounds of the ratio within a round. The
    /// machine's mood changes from round to round, and both met the same.
    pub(super) fn ratio(&self, of: &str, than: &str, offloads: bool, measure: &str) -> Option<f64> {
        let ratios = self.of(of, offloads, measure).filter_map(|own| {
            let mut others = self.of(than, offloads, measure);
            others.find(|other| other.round == own.round).map(|other| own.value / other.value)
        });
        median(ratios.collect())
    }

    /// The median of a measure, if there is a sample.
    pub fn median(&self, tunnel: &str, offloads: bool, measure: &str) -> Option<f64> {
        median(self.values(tunnel, offloads, measure))
    }

    /// Writes `results.json` and `results.md`; returns the latter's text. `tunnels` orders the columns; the first is
    /// the one that the others are compared with.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, tunnels: &[&str]) -> Result<String> {
        let measured: Vec<&str> =
            tunnels.iter().copied().filter(|t| self.samples.iter().any(|s| s.tunnel == *t)).collect();
        let machine = machine();
        let mut text = format!("{machine}\n");
        let mut medians = Vec::new();
        for (offloads, title) in [(true, "Underlay offloads on"), (false, "Underlay offloads off")] {
            if !self.samples.iter().any(|s| s.offloads == offloads) {
                continue;
            }
            let table = self.table(&measured, offloads, &mut medians);
            write!(text, "\n**{title}**\n\n{table}")?;
        }
        write!(text, "\n**What the promises say to that**\n\n{}", promises::table(self))?;
        writeln!(text, "\nVersions: {}", self.versions_line())?;
        fs::write(self.dir.join("results.md"), &text).context("writing results.md")?;
        let all = json!({ "machine": machine, "versions": self.versions, "medians": medians, "samples": self.samples });
        fs::write(self.dir.join("results.json"), serde_json::to_string_pretty(&all)?)
            .context("writing results.json")?;
        Ok(text)
    }

    /// Puts `text` between the marks of `document`.
    ///
    /// # Errors
    /// When the document cannot be read or written, or has no marks.
    pub fn publish(text: &str, document: &Path) -> Result<()> {
        crate::document::publish(document, BEGIN, END, text)
    }

    fn table(&self, tunnels: &[&str], offloads: bool, medians: &mut Vec<serde_json::Value>) -> String {
        let mut table =
            format!("| | {} | runs |\n|---|{}---|\n", tunnels.join(" | "), "---|".repeat(tunnels.len()));
        for Row { measure, title, scale, digits } in ROWS {
            let mut cells = Vec::new();
            for tunnel in tunnels {
                let ratio = self.ratio(tunnels[0], tunnel, offloads, measure);
                let Some(value) = self.median(tunnel, offloads, measure) else {
                    cells.push("–".to_owned());
                    continue;
                };
                let beside = match ratio {
                    Some(ratio) if *tunnel != tunnels[0] => format!(" ({ratio:.2}×)"),
                    Some(_) | None => String::new(),
                };
                cells.push(format!("{:.digits$}{beside}", value * scale));
                let runs = self.values(tunnel, offloads, measure).len();
                medians.push(json!({ "tunnel": tunnel, "offloads": offloads, "measure": measure,
                    "median": value, "runs": runs, "ratio_of_first": ratio }));
            }
            if cells.iter().any(|cell| cell != "–") {
                let runs = tunnels.iter().map(|t| self.values(t, offloads, measure).len());
                let runs = runs.filter(|n| *n > 0).min().unwrap_or(0);
                table.push_str(&format!("| {title} | {} | {runs} |\n", cells.join(" | ")));
            }
        }
        table
    }

    fn versions_line(&self) -> String {
        let known = self.versions.iter().filter(|(_, version)| !version.is_empty());
        known.map(|(tunnel, version)| format!("{tunnel}: {version}")).collect::<Vec<_>>().join("; ")
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.get((values.len().max(1) - 1) / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*lower, *upper))
}

/// The machine in a line.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|m| m.1.trim()));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{count} × {}, Linux {}.",
        model.unwrap_or("unknown CPU"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_the_same_round_and_not_of_the_medians() {
        let mut results = Results::empty();
        // A slow round for both, then two fast ones in which only one of them was lucky; in the third piece the peer came
        // first.
        let samples = [
            ("own", 1, 2.0),
            ("peer", 1, 1.0),
            ("own", 2, 6.0),
            ("peer", 3, 4.0),
            ("peer", 2, 3.0),
            ("own", 3, 6.0),
        ];
        for (tunnel, round, value) in samples {
            results.note(tunnel, true, "tcp_up", round, value);
        }
        assert_eq!(results.median("own", true, "tcp_up"), Some(6.0));
        assert_eq!(results.ratio("own", "peer", true, "tcp_up"), Some(2.0));
        assert_eq!(results.ratio("own", "nobody", true, "tcp_up"), None);
    }
}
