use std::fs;

use crate::support::{emit, epochs, eventually, start, stats};

#[test]
fn a_file_holds_every_event_in_order_over_rotations_and_a_foreign_rename() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.json");
    fs::write(&path, "half a line of a run that died").expect("writable");
    let (audit, guard) = start(&format!(
        "[[sinks]]\nkind = \"file\"\nname = \"disk\"\npath = {path:?}\nrotate_bytes = 65536\nkeep_files = 100"
    ));
    emit(&audit, 0..300);
    eventually("the first events are written", || stats(&guard, "disk").sent == 300);
    let aside = directory.path().join("moved-by-logrotate.json");
    fs::rename(&path, &aside).expect("writable");
    emit(&audit, 300..600);
    assert!(guard.close(std::time::Duration::from_secs(10)), "not everything was written");

    let mut rotated: Vec<_> = (1..100).map(|n| directory.path().join(format!("audit.json.{n}"))).collect();
    rotated.retain(|path| path.exists());
    assert!(rotated.len() >= 2, "nothing was rotated");
    rotated.reverse();
    // What was rotated before the rename is older than what was moved aside.
    let texts: Vec<String> = rotated
        .iter()
        .chain([&aside, &path])
        .map(|path| fs::read_to_string(path).expect("readable"))
        .collect();
    assert!(texts.iter().all(|text| text.len() <= 65536));
    let mut found =
        epochs(texts.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with("half")));
    found.sort_unstable();
    assert_eq!(found, (0..600).collect::<Vec<_>>());
    let last = epochs(fs::read_to_string(&path).expect("readable").lines());
    assert!(last.is_sorted() && last.ends_with(&[599]));
}

#[test]
fn a_directory_that_does_not_exist_is_an_error_at_the_start() {
    let config: jump_telemetry::sink::SinkConfig =
        toml::from_str("kind = \"file\"\nname = \"disk\"\npath = \"/nonexistent/audit.json\"")
            .expect("valid");
    let identity = jump_telemetry::audit::Identity {
        component: "gateway".into(),
        node: String::new(),
        version: String::new(),
    };
    let config = jump_telemetry::audit::AuditConfig { sinks: vec![config], ..Default::default() };
    let error = jump_telemetry::audit::start(identity, config).expect_err("no such directory");
    assert_eq!(error.to_string(), "audit sink \"disk\" cannot start");
}
