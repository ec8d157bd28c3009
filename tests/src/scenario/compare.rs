//! Two reports side by side.

use std::fmt::Write as _;

use super::report::{Report, number};

/// A table of every metric that both or either have; differences above a tenth are marked.
pub fn table(a: &Report, b: &Report) -> String {
    let mut text = String::new();
    let head = |report: &Report| format!("{} {}", report.environment.date, report.environment.commit);
    let _ = writeln!(text, "A  {}  seed {}  {}", a.scenario.name, a.scenario.seed, head(a));
    let _ = writeln!(text, "B  {}  seed {}  {}", b.scenario.name, b.scenario.seed, head(b));
    if a.environment.cpu != b.environment.cpu || a.environment.profile != b.environment.profile {
        let _ = writeln!(text, "   not the same machine or build: differences may mean nothing");
    }
    let same = super::schedule::to_lines(&a.schedule) == super::schedule::to_lines(&b.schedule);
    let _ = writeln!(text, "   {} schedule", if same { "the same" } else { "another" });
    let _ = writeln!(text, "{:<40} {:>14} {:>14} {:>9}", "metric", "A", "B", "B/A");
    let names: std::collections::BTreeSet<_> = a.metrics.keys().chain(b.metrics.keys()).collect();
    for name in names {
        let (left, right) = (a.metrics.get(name), b.metrics.get(name));
        let show = |value: Option<&f64>| value.map_or("-".to_owned(), |value| number(*value));
        let ratio = left.zip(right).filter(|(left, _)| **left != 0.0).map(|(left, right)| right / left);
        let mark = if ratio.is_some_and(|ratio| !(0.9..=1.1).contains(&ratio)) { " *" } else { "" };
        let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(text, "{name:<40} {:>14} {:>14} {ratio:>9}{mark}", show(left), show(right));
    }
    text
}
