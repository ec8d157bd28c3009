//! A run's report: everything measured, as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::schedule::Step;
use super::{Criterion, Scenario};
use crate::lab::histogram::Summary;
use crate::lab::overhead::Overhead;

/// A run's report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The scenario as it ran.
    pub scenario: Scenario,
    /// True for a full run.
    pub is_full: bool,
    /// What it ran on.
    pub environment: Environment,
    /// The schedule.
    pub schedule: Vec<Step>,
    /// What was done, with the times at which it was.
    pub done: Vec<Done>,
    /// Named numbers: what criteria speak of.
    pub metrics: BTreeMap<String, f64>,
    /// One per criterion.
    pub verdicts: Vec<Verdict>,
    /// Recovery times by cause.
    pub recoveries: BTreeMap<String, Recovery>,
    /// What the relay of the run costs by itself, measured before it; none without a relay.
    #[serde(default)]
    pub relay: Option<Overhead>,
    /// Totals every so often.
    pub timeline: Vec<Moment>,
    /// The longest gaps of all devices, in the order of their beginning.
    #[serde(default)]
    pub gaps: Vec<GapSeen>,
    /// What went wrong, in words; empty when nothing did.
    pub violations: Vec<String>,
}

/// A step that was carried out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// Milliseconds after the warm-up.
    pub at_ms: f64,
    /// How long it took.
    pub took_ms: f64,
    /// Its cause.
    pub cause: String,
    /// True when it ended what another began.
    pub ends: bool,
    /// In words.
    pub text: String,
}

/// Recovery times of one cause.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Recovery {
    /// From the fault to the first echo after it, over all interrupted devices.
    pub first_echo: Summary,
    /// From the fault to the verified grant, over all devices that changed owner.
    pub reattach: Summary,
    /// From a device's first attempt to the verified grant, over the same devices: without the time to notice.
    #[serde(default)]
    pub attach: Summary,
    /// Sorted samples of `first_echo`, at most 400, for charts.
    pub samples_ms: Vec<f64>,
}

/// A time in which one device waited for an echo.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GapSeen {
    /// The device's number.
    pub device: u32,
    /// Milliseconds after the warm-up; negative before.
    pub from_ms: f64,
    /// The first echo after it.
    pub to_ms: f64,
}

/// Totals at one moment.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds after the warm-up.
    pub at_ms: f64,
    /// Sessions born so far.
    pub born: u64,
    /// Attaches after the first so far.
    pub reattached: u64,
    /// Probes sent so far.
    pub sent: u64,
    /// Probes answered so far.
    pub answered: u64,
    /// Sessions ended so far.
    pub terminated: u64,
}

/// Whether a criterion held.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The criterion.
    pub criterion: Criterion,
    /// The number it was held against; `None` when it was not measured.
    pub value: Option<f64>,
    /// Whether it held.
    pub holds: bool,
}

impl Verdict {
    /// Judges one criterion. What was not measured does not hold.
    pub fn of(criterion: &Criterion, metrics: &BTreeMap<String, f64>) -> Self {
        let measured = metrics.get(&criterion.metric).copied();
        let value = match &criterion.over {
            None => measured,
            Some(base) => measured.zip(metrics.get(base)).map(|(value, base)| value / base),
        };
        let holds = value.map_or(criterion.if_measured, |value| {
            criterion.min.is_none_or(|min| value >= min) && criterion.max.is_none_or(|max| value <= max)
        });
        Self { criterion: criterion.clone(), value, holds }
    }

    /// One line.
    pub fn text(&self) -> String {
        let criterion = &self.criterion;
        let mut line = match (self.holds, self.value) {
            (true, Some(_)) => "held    ",
            (true, None) => "-       ",
            (false, _) => "BROKEN  ",
        }
        .to_owned();
        line += &criterion.metric;
        if let Some(over) = &criterion.over {
            let _ = write!(line, " / {over}");
        }
        let _ = match self.value {
            Some(value) => write!(line, " = {}", number(value)),
            None if self.holds => write!(line, " is not measured in this form"),
            None => write!(line, " was not measured"),
        };
        if let Some(min) = criterion.min {
            let _ = write!(line, ", at least {}", number(min));
        }
        if let Some(max) = criterion.max {
            let _ = write!(line, ", at most {}", number(max));
        }
        if !criterion.says.is_empty() {
            let _ = write!(line, "   ({})", criterion.says);
        }
        line
    }
}

impl Report {
    /// Whether every criterion held and nothing went wrong.
    pub fn passes(&self) -> bool {
        self.violations.is_empty() && self.verdicts.iter().all(|verdict| verdict.holds)
    }

    /// Writes `NAME.json` and `NAME.html`; returns their paths.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(PathBuf, PathBuf)> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let json = dir.join(format!("{}.json", self.scenario.name));
        let html = dir.join(format!("{}.html", self.scenario.name));
        std::fs::write(&json, serde_json::to_string_pretty(self)?)?;
        std::fs::write(&html, super::html::page(self))?;
        Ok((json, html))
    }

    /// Reads a report.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    /// For a terminal.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{}: {}", self.scenario.name, self.scenario.title);
        if !self.recoveries.is_empty() {
            let _ = writeln!(
                text,
                "  {:<22} {:>6} {:>9} {:>9} {:>9}   (to the first echo)  {:>6} {:>9} {:>9} {:>9}   (to the grant)",
                "cause", "gaps", "p50 ms", "p99 ms", "max ms", "moved", "p50 ms", "p99 ms", "max ms"
            );
        }
        for (cause, recovery) in &self.recoveries {
            let (echo, grant) = (&recovery.first_echo, &recovery.reattach);
            let _ = writeln!(
                text,
                "  {cause:<22} {:>6} {:>9.1} {:>9.1} {:>9.1} {:>27} {:>9.1} {:>9.1} {:>9.1}",
                echo.count,
                echo.p50_ms,
                echo.p99_ms,
                echo.max_ms,
                grant.count,
                grant.p50_ms,
                grant.p99_ms,
                grant.max_ms
            );
        }
        for verdict in &self.verdicts {
            let _ = writeln!(text, "  {}", verdict.text());
        }
        if let Some(relay) = &self.relay {
            let _ = writeln!(text, "  {}", relay.text());
        }
        for violation in &self.violations {
            let _ = writeln!(text, "  WRONG   {violation}");
        }
        text
    }
}

/// A number as people write it.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(min: Option<f64>, max: Option<f64>, over: Option<&str>, value: f64) -> bool {
        let metrics = BTreeMap::from([("a".to_owned(), value), ("b".to_owned(), 2.0)]);
        let over = over.map(str::to_owned);
        let criterion =
            Criterion { metric: "a".into(), over, min, max, if_measured: false, says: String::new() };
        Verdict::of(&criterion, &metrics).holds
    }

    #[test]
    fn a_criterion_holds_between_its_bounds_and_breaks_outside() {
        assert!(judge(Some(1.0), Some(3.0), None, 3.0));
        assert!(!judge(Some(1.0), Some(3.0), None, 3.1));
        assert!(!judge(Some(1.0), None, None, 0.9));
        assert!(judge(None, Some(1.5), Some("b"), 3.0));
        assert!(!judge(None, Some(1.4), Some("b"), 3.0));
    }

    #[test]
    fn what_was_not_measured_does_not_hold_unless_it_need_not_be() {
        let criterion = |if_measured| Criterion {
            metric: "missing".into(),
            over: None,
            min: None,
            max: Some(1.0),
            if_measured,
            says: String::new(),
        };
        assert!(Verdict::of(&criterion(true), &BTreeMap::new()).holds);
        assert!(!Verdict::of(&criterion(false), &BTreeMap::new()).holds);
        let measured = BTreeMap::from([("missing".to_owned(), 2.0)]);
        assert!(!Verdict::of(&criterion(true), &measured).holds);
        assert!(!judge(None, Some(1.0), Some("missing"), 0.0));
        assert!(!judge(None, Some(f64::MAX), None, f64::NAN));
    }
}
