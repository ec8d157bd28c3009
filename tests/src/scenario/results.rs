//! What documents keep of reports: the criteria, what was measured, and where; and the table that they show of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Criterion;
use super::environment::Environment;
use super::report::{Report, Verdict, number};

/// Before the table in a document.
pub const BEGIN: &str = "<!-- results of jump-lab begin: make results -->";
/// After it.
pub const END: &str = "<!-- results of jump-lab end -->";

/// What is kept of one report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The scenario's name.
    pub scenario: String,
    /// One line about it.
    pub title: String,
    /// True for the large form.
    pub is_full: bool,
    /// Its seed.
    pub seed: u64,
    /// Where and when it ran.
    pub environment: Environment,
    /// One per criterion.
    pub verdicts: Vec<Verdict>,
    /// What went wrong besides, in words.
    pub violations: Vec<String>,
}

impl Kept {
    /// What is kept of `report`: everything that its verdict stands on, without where it was saved.
    pub fn of(report: &Report) -> Self {
        let mut environment = report.environment.clone();
        environment.command = without_out(&environment.command);
        Self {
            scenario: report.scenario.name.clone(),
            title: report.scenario.title.clone(),
            is_full: report.is_full,
            seed: report.scenario.seed,
            environment,
            verdicts: report.verdicts.clone(),
            violations: report.violations.clone(),
        }
    }

    /// Reads a file: a report, or what was kept of several.
    ///
    /// # Errors
    /// When it is neither.
    pub fn load(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        if let Ok(kept) = serde_json::from_str(&text) {
            return Ok(kept);
        }
        Ok(vec![Self::of(&Report::load(path)?)])
    }
}

/// Replaces what `old` has of the same scenarios and sizes, keeps the rest.
pub fn merge(mut old: Vec<Kept>, new: Vec<Kept>) -> Vec<Kept> {
    for kept in new {
        match old.iter_mut().find(|have| (&have.scenario, have.is_full) == (&kept.scenario, kept.is_full)) {
            Some(have) => *have = kept,
            None => old.push(kept),
        }
    }
    old
}

/// The table. What had to be nothing and was nothing is one row of each scenario; bounds that say the same are one row,
/// with the worst value. What did not have to be measured and was not is no row.
pub fn markdown(results: &[Kept]) -> String {
    let mut text =
        String::from("| Scenario | What must hold | Measured | Bound | |\n|---|---|---|---|---|\n");
    for kept in results {
        let mut name = format!("{}{}", kept.scenario, if kept.is_full { ", full" } else { "" });
        let is_nothing = |v: &Verdict| v.holds && v.criterion.max == Some(0.0) && v.value == Some(0.0);
        let nothing: Vec<_> = kept.verdicts.iter().filter(|v| is_nothing(v)).map(says).collect();
        let mut worst: BTreeMap<(usize, String), &Verdict> = BTreeMap::new();
        let mut order: Vec<(String, String)> = Vec::new();
        let is_judged = |v: &Verdict| v.value.is_some() || !v.holds;
        for verdict in kept.verdicts.iter().filter(|v| !is_nothing(v) && is_judged(v)) {
            let row = (says(verdict).to_owned(), bound(&verdict.criterion));
            let place = order.iter().position(|have| *have == row).unwrap_or_else(|| {
                order.push(row.clone());
                order.len() - 1
            });
            let entry = worst.entry((place, row.0)).or_insert(verdict);
            if is_worse(verdict, entry) {
                *entry = verdict;
            }
        }
        for ((_, what), verdict) in worst {
            let unit = unit(&verdict.criterion);
            let value = verdict.value.map_or("not measured".to_owned(), |v| format!("{}{unit}", number(v)));
            let holds = if verdict.holds { "held" } else { "**broken**" };
            let _ = writeln!(text, "| {name} | {what} | {value} | {} | {holds} |", bound(&verdict.criterion));
            name.clear();
        }
        if !nothing.is_empty() {
            let _ = writeln!(text, "| {name} | {} | 0 | 0 each | held |", nothing.join("; "));
            name.clear();
        }
        if !kept.violations.is_empty() {
            let _ = writeln!(text, "| {name} | violations | {} | 0 | **broken** |", kept.violations.len());
        }
    }
    text.push('\n');
    for kept in results {
        let e = &kept.environment;
        let _ = writeln!(
            text,
            "- {}: `{}`, {}, commit {}, {} build, {} × {}, Linux {}.",
            kept.scenario, e.command, e.date, e.commit, e.profile, e.cpus, e.cpu, e.kernel
        );
    }
    text
}

fn says(verdict: &Verdict) -> &str {
    let criterion = &verdict.criterion;
    if criterion.says.is_empty() { &criterion.metric } else { &criterion.says }
}

fn bound(criterion: &Criterion) -> String {
    let unit = unit(criterion);
    let bounds = [("≥ ", criterion.min), ("≤ ", criterion.max)];
    let bounds = bounds.iter().filter_map(|(sign, bound)| Some(format!("{sign}{}{unit}", number((*bound)?))));
    bounds.collect::<Vec<_>>().join(", ")
}

fn unit(criterion: &Criterion) -> &'static str {
    match criterion.over {
        Some(_) => "×",
        None if criterion.metric.ends_with("_ms") => " ms",
        None => "",
    }
}

fn is_worse(one: &Verdict, other: &Verdict) -> bool {
    match (one.value, other.value, one.criterion.max) {
        (None, _, _) => true,
        (Some(_), None, _) => false,
        (Some(one), Some(other), Some(_)) => one > other,
        (Some(one), Some(other), None) => one < other,
    }
}

/// A command line without where its reports went: that is nobody else's affair.
fn without_out(command: &str) -> String {
    let mut words = Vec::new();
    let mut all = command.split(' ');
    while let Some(word) = all.next() {
        match word {
            "--out" => drop(all.next()),
            _ if word.starts_with("--out=") => {}
            _ => words.push(word),
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_kept_without_where_its_reports_went() {
        assert_eq!(without_out("jump-lab run --full --out a/b x.toml"), "jump-lab run --full x.toml");
        assert_eq!(without_out("jump-lab run --out=a/b x.toml"), "jump-lab run x.toml");
    }

    #[test]
    fn bounds_that_say_the_same_are_one_row_with_the_worst_value() {
        let verdict = |value, max, says: &str| {
            let criterion = Criterion {
                metric: "x_ms".into(),
                over: None,
                min: None,
                max: Some(max),
                if_measured: false,
                says: says.into(),
            };
            Verdict { holds: value <= max, criterion, value: Some(value) }
        };
        let verdicts = vec![
            verdict(3.0, 5.0, "gap"),
            verdict(7.0, 5.0, "gap"),
            verdict(4.0, 5.0, "gap"),
            verdict(0.0, 0.0, "lost"),
            Verdict { value: None, ..verdict(0.0, 9.0, "witnessed") },
            Verdict { value: None, holds: false, ..verdict(0.0, 9.0, "answered") },
        ];
        let environment = Environment {
            date: "d".into(),
            command: "c".into(),
            commit: "abc".into(),
            profile: "lab".into(),
            kernel: "k".into(),
            cpu: "p".into(),
            cpus: 2,
            memory_mib: 1,
            versions: Vec::new(),
            load: String::new(),
        };
        let kept = Kept {
            scenario: "s".into(),
            title: String::new(),
            is_full: false,
            seed: 1,
            environment,
            verdicts,
            violations: Vec::new(),
        };
        let table = markdown(&[kept]);
        assert!(table.contains("| s | gap | 7 ms | ≤ 5 ms | **broken** |"), "{table}");
        assert!(table.contains("|  | lost | 0 | 0 each | held |"), "{table}");
        assert_eq!(table.matches("gap").count(), 1, "{table}");
        assert!(!table.contains("witnessed"), "{table}");
        assert!(table.contains("|  | answered | not measured | ≤ 9 ms | **broken** |"), "{table}");
    }
}
