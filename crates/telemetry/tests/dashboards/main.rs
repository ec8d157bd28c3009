//! The Grafana dashboards, written once here and kept equal to `deploy/dashboards/`, and what dashboards, alert rules and
//! runbooks must agree on. With `JUMP_UPDATE_DOCS=1` the dashboards are written.

mod boards;
mod model;
mod render;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::boards::DASHBOARDS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The words of a text that start with `jump_`, without the suffixes that Prometheus adds to histograms.
fn metric_names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("jump_"))
        .map(|word| {
            ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix))
                .unwrap_or(word)
                .to_owned()
        })
        .collect()
}

/// Every name that a program can export: the string literals of the files that define metrics.
fn defined_names() -> BTreeSet<String> {
    let own = ["log.rs", "audit.rs", "sink.rs", "trace.rs", "recovery.rs", "entropy.rs"]
        .map(|file| format!("crates/telemetry/src/{file}"));
    let mut names: BTreeSet<String> = own.iter().flat_map(|path| metric_names(&read(path))).collect();
    for program in ["control", "gateway", "client"] {
        names.extend(metric_names(&read(&format!("{program}/src/metrics.rs"))));
    }
    names
}

#[test]
fn the_dashboards_are_what_this_file_says() {
    for dashboard in DASHBOARDS {
        let path = root().join(format!("deploy/dashboards/{}.json", dashboard.uid));
        let expected = format!("{:#}\n", dashboard.render());
        if std::env::var_os("JUMP_UPDATE_DOCS").is_some() {
            fs::write(&path, &expected).expect("writable");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == expected, "{} differs; run the tests with JUMP_UPDATE_DOCS=1", path.display());
    }
}

#[test]
fn the_dashboards_are_of_grafanas_model() {
    for dashboard in DASHBOARDS {
        let faults = model::faults(&dashboard.render().to_string());
        assert_eq!(faults, Vec::<String>::new(), "{}", dashboard.uid);
    }
    let text = format!("{:#}", DASHBOARDS[0].render());
    for (good, bad) in [
        ("\"schemaVersion\": 39", "\"schemaversion\": 39"),
        ("\"x\": 18", "\"x\": 19"),
        ("\"type\": \"stat\"", "\"type\": \"statistics\""),
        ("\"refId\": \"B\"", "\"refId\": \"A\""),
        ("\"min\": 0", "\"minimum\": 0"),
    ] {
        assert!(text.contains(good), "the fleet dashboard has no {good}");
        assert!(!model::faults(&text.replacen(good, bad, 1)).is_empty(), "{bad} passed");
    }
}

#[test]
fn dashboards_and_alert_rules_use_only_metrics_that_exist() {
    let defined = defined_names();
    let rules = read("deploy/prometheus/rules.yaml");
    let queries = DASHBOARDS.iter().flat_map(|board| board.panels).flat_map(|panel| panel.queries);
    let used: BTreeSet<String> =
        queries.flat_map(|(query, _)| metric_names(query)).chain(metric_names(&rules)).collect();
    assert!(used.len() > 20, "the scan found only {used:?}");
    let missing: Vec<_> = used.difference(&defined).collect();
    assert!(missing.is_empty(), "not defined in any metrics.rs: {missing:?}");
}

#[test]
fn every_alert_has_a_runbook_a_link_to_it_and_unit_tests() {
    let (rules, tests) = (read("deploy/prometheus/rules.yaml"), read("deploy/prometheus/rules.test.yaml"));
    let operations = read("docs/operations.md");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "the scan found only {alerts:?}");
    for alert in &alerts {
        assert!(operations.contains(&format!("\n### {alert}\n")), "docs/operations.md lacks {alert}");
        let link = format!("docs/operations.md#{}\"", alert.to_ascii_lowercase());
        assert!(rules.contains(&link), "{alert} lacks its link");
        assert!(tests.contains(&format!("name: {alert} fires\n")), "{alert} is never tested to fire");
        assert!(
            tests.contains(&format!("alertname: {alert}, exp_alerts: []")),
            "{alert} is never tested to be quiet"
        );
    }
    let sections = operations.lines().filter(|line| line.starts_with("### Jump")).count();
    assert_eq!(sections, alerts.len(), "a runbook without an alert");
}

#[test]
fn the_chart_carries_the_same_rules() {
    let copy = root().join("helm/jumping-vpn/files/rules.yaml");
    if std::env::var_os("JUMP_UPDATE_DOCS").is_some() {
        fs::copy(root().join("deploy/prometheus/rules.yaml"), &copy).expect("writable");
    }
    assert!(
        read("helm/jumping-vpn/files/rules.yaml") == read("deploy/prometheus/rules.yaml"),
        "run the tests with JUMP_UPDATE_DOCS=1"
    );
}
