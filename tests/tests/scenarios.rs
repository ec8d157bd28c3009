//! The shipped scenarios and the format they are in.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};

use serde_json::Value;

use jump_tests::document;
use jump_tests::scenario::Scenario;
use jump_tests::scenario::results::{self, Kept};
use jump_tests::scenario::schedule::{schedule, to_lines};

/// Every scenario and pilot profile that is shipped.
fn shipped() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = [root.join("scenarios"), root.join("../deploy/pilots")];
    let files = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml" || extension == "yaml"));
    files.sort();
    let profiles = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    assert!(files.len() >= 17 && profiles.count() == 3, "{files:?}");
    files
}

#[test]
fn every_shipped_scenario_loads_small_and_full_and_has_one_schedule() {
    for path in shipped() {
        for full in [false, true] {
            let scenario = Scenario::load(&path, full).unwrap();
            assert!(!scenario.criteria.is_empty(), "{} promises nothing", path.display());
            let lines = to_lines(&schedule(&scenario));
            assert_eq!(lines, to_lines(&schedule(&scenario)), "{}", path.display());
        }
    }
}

#[test]
fn every_shipped_scenario_fits_the_schema() {
    let text = include_str!("../scenarios/scenario.schema.json");
    let schema: Value = serde_json::from_str(text).unwrap();
    for path in shipped() {
        let value = serde_json::to_value(Scenario::table(&path).unwrap()).unwrap();
        fits(&schema, &schema, &value, &path.display().to_string());
    }
}

/// The part of JSON Schema that ours uses.
fn fits(root: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(name.trim_start_matches('#')).unwrap();
        return fits(root, target, value, at);
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        assert!(allowed.contains(value), "{at}: {value} is none of {allowed:?}");
    }
    if let (Some(properties), Some(object)) = (schema.get("properties"), value.as_object()) {
        for (key, inner) in object {
            let property = properties.get(key);
            fits(root, property.unwrap_or_else(|| panic!("{at}: {key} is not in the schema")), inner, at);
        }
        for key in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            assert!(object.contains_key(key.as_str().unwrap()), "{at}: {key} is missing");
        }
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        for inner in list {
            fits(root, items, inner, at);
        }
    }
    let kind = schema.get("type").and_then(Value::as_str);
    let right = match kind {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    assert!(right, "{at}: {value} is no {kind:?}");
}

#[test]
fn a_misspelt_setting_is_refused_by_name() {
    let text = "name = 'x'\ntitle = 'x'\nsead = 3\n[[devices]]\ncount = 1\n";
    let error = format!("{:#}", Scenario::parse(text, false).unwrap_err());
    assert!(error.contains("sead"), "{error}");
    let text = "name = 'x'\ntitle = 'x'\n[[devices]]\ncount = 1\n[[events]]\nat = 1\ndo = 'kill_wroker'\n";
    let error = format!("{:#}", Scenario::parse(text, false).unwrap_err());
    assert!(error.contains("kill_wroker"), "{error}");
}

#[test]
fn a_full_run_replaces_only_what_it_names() {
    let text = "name = 'x'\ntitle = 'x'\n[[devices]]\ncount = 1\n[times]\nrun = 5\nsettle = 7\n[full.times]\nrun = 50\n";
    let scenario = Scenario::parse(text, true).unwrap();
    assert_eq!((scenario.times.run, scenario.times.settle), (50.0, 7.0));
    assert_eq!(Scenario::parse(text, false).unwrap().times.run, 5.0);
}

#[test]
fn yaml_and_toml_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let text = "name: x\ntitle: x\nseed: 7\ndevices:\n  - count: 1\n    probe_ms: 200\nrelay:\n  up: {loss: 0.01}\n\
                events:\n  - {at: 2, do: kill_worker, gateway: 1}\ncriteria:\n  - {metric: a, max: 0}\n";
    let toml = "name = 'x'\ntitle = 'x'\nseed = 7\n[[devices]]\ncount = 1\nprobe_ms = 200\n[relay.up]\nloss = 0.01\n\
                [[events]]\nat = 2\ndo = 'kill_worker'\ngateway = 1\n[[criteria]]\nmetric = 'a'\nmax = 0\n";
    let path = dir.path().join("x.yaml");
    std::fs::write(&path, text).unwrap();
    assert_eq!(Scenario::load(&path, false).unwrap(), Scenario::parse(toml, false).unwrap());
    std::fs::write(&path, text.replace("seed", "sead")).unwrap();
    let error = format!("{:#}", Scenario::load(&path, false).unwrap_err());
    assert!(error.contains("sead"), "{error}");
}

#[test]
fn the_table_in_the_readme_is_what_the_kept_results_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = results::markdown(&Kept::load(&root.join("docs/results.json")).unwrap());
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let filled = document::with(&readme, results::BEGIN, results::END, &table).unwrap();
    assert!(
        readme == filled,
        "the table is stale: run `make results` with no reports to fill it from docs/results.json"
    );
}
