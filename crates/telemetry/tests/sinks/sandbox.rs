//! A sink works in the sandboxes of `deploy/`: every system call that it makes is in the gateway's seccomp profile, and
//! the systemd units let it write where the documents say.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// What the file sink and the spool do to files, and the names that it has on the profile's architectures (x86-64 has
/// the old ones too) and in its C libraries.
const OPERATIONS: [(&str, &[&str]); 5] = [
    ("rotate, and finish a batch on disk", &["rename", "renameat", "renameat2"]),
    ("remove what was delivered or is too old", &["unlink", "unlinkat"]),
    ("make the spool's directory", &["mkdir", "mkdirat"]),
    ("cut a torn line off", &["ftruncate"]),
    ("put a batch on disk before it counts", &["fdatasync", "fsync"]),
];

/// A file of the repository.
fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The system calls that the profile allows.
fn allowed() -> BTreeSet<String> {
    let profile: Value = serde_json::from_str(&file("deploy/seccomp/jump-gateway.json")).expect("JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO", "the profile must be a list of what is allowed");
    let rules = profile["syscalls"].as_array().expect("rules");
    let names = rules.iter().flat_map(|rule| {
        assert_eq!(rule["action"], "SCMP_ACT_ALLOW", "{rule}");
        rule["names"].as_array().expect("names")
    });
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_profile_allows_what_the_sinks_do_to_files_on_every_architecture() {
    let allowed = allowed();
    for (operation, names) in OPERATIONS {
        let missing: Vec<_> = names.iter().filter(|name| !allowed.contains(**name)).collect();
        assert!(missing.is_empty(), "to {operation}, the profile must allow {missing:?}");
    }
}

#[test]
fn the_profile_allows_every_system_call_of_a_rotated_file_and_a_spool() {
    let directory = tempfile::tempdir().expect("a directory");
    let trace = directory.path().join("trace");
    let output = Command::new("strace")
        .args(["--follow-forks", "--quiet=all", "--signal=none", "--output"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this program"))
        .args(["files::", "http::a_spool_carries", "http::a_full_spool"])
        .output()
        .expect("strace is missing: install it with apt-get install strace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = std::fs::read_to_string(trace).expect("the trace");
    // `PID name(arguments) = result`, or `PID <... name resumed>…`, whose first half said the name already.
    let made: BTreeSet<_> = trace
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace)?.1.trim_start().split_once('('))
        .map(|(name, _)| name)
        .filter(|name| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        })
        .collect();
    let proof = OPERATIONS[0].1;
    assert!(proof.iter().any(|name| made.contains(name)), "nothing was rotated: {made:?}");
    let allowed = allowed();
    let missing: Vec<_> = made.into_iter().filter(|name| !allowed.contains(*name)).collect();
    assert!(missing.is_empty(), "the profile lacks {missing:?}");
}

#[test]
fn every_unit_has_the_directories_that_the_documents_name_for_files_and_spools() {
    let page = file("docs/audit-events.md");
    for (unit, program) in [("jump-control", "control"), ("jump-gateway", "gateway"), ("jump", "`jump up`")] {
        let unit = file(&format!("deploy/systemd/{unit}.service"));
        let setting = |name: &str| {
            let found = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("{program}'s unit has no {name}"))
        };
        let row = format!(
            "| {program} | `/var/log/{}` | `/var/lib/{}` |",
            setting("LogsDirectory"),
            setting("StateDirectory")
        );
        assert!(page.contains(&row), "docs/audit-events.md has no row {row}");
    }
}
