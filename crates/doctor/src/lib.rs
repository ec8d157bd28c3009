//! Self-checks of the programs: what was looked at, what was found, and what to do about it.
//!
//! A check returns a [`Finding`]; a program collects its own into a [`Report`] and prints it. Formatting is pure; only
//! [`host`] and [`file`] look at the machine, and they change nothing on it.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde::Serialize;

pub mod file;
pub mod host;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Fine,
    /// It works, but not as well or not for long.
    Warning,
    /// The program cannot do its work with this.
    Problem,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's stable name.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen, one clause.
    pub seen: String,
    /// What to do; empty when nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

impl Finding {
    /// Nothing is to be done.
    pub fn fine(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, level: Level::Fine, seen: seen.into(), fix: String::new() }
    }

    /// It works, but `fix` makes it better.
    pub fn warning(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, seen: seen.into(), fix: fix.into() }
    }

    /// It does not work before `fix`.
    pub fn problem(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Problem, seen: seen.into(), fix: fix.into() }
    }
}

/// What a program found, in the order in which it looked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds a finding.
    pub fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The worst level.
    pub fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Fine)
    }

    /// The exit code: 0 when there is no problem (warnings included), 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.level() == Level::Problem)
    }

    /// For people: one line per finding, with its fix below it.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { check, level, seen, fix } in &self.findings {
            let word = match level {
                Level::Fine => "ok",
                Level::Warning => "warning",
                Level::Problem => "PROBLEM",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{word:<8} {check:<width$}  {}", plain(seen));
            if !fix.is_empty() {
                let _ = writeln!(out, "{:<8} {:<width$}  → {}", "", "", plain(fix));
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let _ = writeln!(
            out,
            "{} checked, {} problems, {} warnings",
            self.findings.len(),
            count(Level::Problem),
            count(Level::Warning)
        );
        out
    }

    /// For scripts: one JSON object.
    ///
    /// # Panics
    /// Never: every field has a form in JSON.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Shown<'a> {
            level: Level,
            findings: &'a [Finding],
        }
        let shown = Shown { level: self.level(), findings: &self.findings };
        serde_json::to_string(&shown).expect("strings and names have a form in JSON")
    }
}

/// One line without control characters: file names and certificates may hold anything.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            findings: vec![
                Finding::fine("entropy", "passes its tests"),
                Finding::warning("udp-offload", "the kernel sends one datagram at a time", "use Linux 4.18"),
                Finding::problem("tun", "no permission\n\u{1b}[2Jfor /dev/net/tun", "run as root"),
            ],
        }
    }

    #[test]
    fn only_a_problem_makes_the_exit_code_a_failure() {
        let mut report = report();
        assert_eq!((report.level(), report.exit_code()), (Level::Problem, 1));
        report.findings.pop();
        assert_eq!((report.level(), report.exit_code()), (Level::Warning, 0));
        assert_eq!(Report::default().exit_code(), 0);
    }

    #[test]
    fn the_text_names_each_finding_with_its_fix_and_carries_no_control_character() {
        assert_eq!(
            report().to_text(),
            "ok       entropy      passes its tests\n\
             warning  udp-offload  the kernel sends one datagram at a time\n\
             \x20                     → use Linux 4.18\n\
             PROBLEM  tun          no permission  [2Jfor /dev/net/tun\n\
             \x20                     → run as root\n\
             3 checked, 1 problems, 1 warnings\n"
        );
    }

    #[test]
    fn the_json_keeps_its_names() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        assert_eq!(json["level"], "problem");
        assert_eq!(json["findings"][0]["check"], "entropy");
        assert_eq!(json["findings"][0].get("fix"), None);
        assert_eq!(json["findings"][1]["fix"], "use Linux 4.18");
    }
}
