//! The shipped scenarios and the format they are in.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};

use serde_json::Value;

use jump_tests::scenario::Scenario;
use jump_tests::scenario::schedule::{schedule, to_lines};

/// Every scenario and pilot profile that is shipped.
fn shipped() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = [root.join("scenarios"), root.join("../deploy/pilots")];
    let files = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() >= 14, "{files:?}");
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
        let table: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let value = serde_json::to_value(table).unwrap();
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
