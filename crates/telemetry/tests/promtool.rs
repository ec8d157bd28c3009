//! What Prometheus' own tool says about dashboards and alert rules; `tests/tests/e2e_metrics.rs` shows it the metrics. Debian: `apt-get install prometheus`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

#[test]
#[ignore = "needs promtool; make test-observability installs and runs it"]
fn promtool_parses_every_query_of_the_dashboards() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/dashboards");
    let mut rules = Vec::new();
    for entry in fs::read_dir(directory).expect("the dashboards") {
        let text = fs::read_to_string(entry.expect("readable").path()).expect("readable");
        let board: Value = serde_json::from_str(&text).expect("JSON");
        let panels = board["panels"].as_array().expect("panels");
        for target in panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets")) {
            let query = target["expr"].as_str().expect("a query");
            // What Grafana puts in place of its variables.
            let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
            rules.push(json!({ "record": format!("query:{}", rules.len()), "expr": query }));
        }
    }
    assert!(rules.len() > 40, "only {} queries", rules.len());
    let file = tempfile::NamedTempFile::with_suffix(".json").expect("a file");
    // JSON is YAML.
    let groups = json!({ "groups": [{ "name": "dashboards", "rules": rules }] });
    fs::write(file.path(), groups.to_string()).expect("writable");
    let output = Command::new("promtool").args(["check", "rules"]).arg(file.path()).output();
    let output = output.expect("promtool is missing: install it with apt-get install prometheus");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs promtool; make test-observability installs and runs it"]
fn the_alert_rules_parse_and_fire_when_they_should() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus");
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&directory).output();
        let output = output.expect("promtool is missing: install it with apt-get install prometheus");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}
