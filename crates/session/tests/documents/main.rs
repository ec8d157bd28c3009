//! The documents that speak of tests and state machines say what the tree has: abuse cases, audit guide, state machines.
//!
//! `JUMP_WRITE_DOCS=1 cargo test -p jump-session --test documents` writes the generated parts anew.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod abuse;
mod machines;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The root of the tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document(name: &str) -> String {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all functions in the tree's Rust files, and the targets of its Makefiles.
fn names_in_the_tree() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    open.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                names.extend(text.match_indices("fn ").map(|(at, _)| word(&text[at + 3..])));
                // The suites over both stores, and properties, name their tests alone on a line.
                names.extend(text.lines().filter_map(|line| line.trim().strip_suffix(';')).map(word));
            } else if name == "Makefile" || name.ends_with(".mk") {
                let text = fs::read_to_string(&path).unwrap();
                names.extend(
                    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_owned()),
                );
            }
        }
    }
    names
}

/// The identifier that `text` begins with.
fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// What stands between backticks in `text`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// A sentence that can be false: what this tree calls its tests.
fn is_test_name(quoted: &str) -> bool {
    quoted.split('_').count() >= 4
        && quoted.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[test]
fn every_test_that_a_document_names_is_in_the_tree() {
    let names = names_in_the_tree();
    let mut missing = Vec::new();
    for name in [
        "abuse-cases.md",
        "audit-guide.md",
        "state-machines.md",
        "threat-model.md",
        "replay.md",
        "fuzzing.md",
    ] {
        let path = root().join("docs").join(name);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for quoted in quoted(&text) {
            if is_test_name(quoted) && !names.contains(quoted) {
                missing.push(format!("{name}: {quoted}"));
            }
            if let Some(target) = quoted.strip_prefix("make ") {
                let target = target.split(' ').next().unwrap_or_default();
                if !names.contains(target) {
                    missing.push(format!("{name}: make {target}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "documents name what is not there:\n{}", missing.join("\n"));
}
