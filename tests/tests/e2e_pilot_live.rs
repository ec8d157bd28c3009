//! A pilot's criteria held against a running cluster, by its metrics and its audit files alone.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::PathBuf;
use std::time::Duration;

use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::programs::METRICS_PORT;
use jump_tests::scenario::Scenario;
use jump_tests::scenario::live::{Endpoint, Watch};
use jump_tests::support;

const PROFILE: &str = "
name = 'live'
title = 'A worker dies under one device'
[[devices]]
count = 1
[[criteria]]
metric = 'sessions.lost'
max = 0
[[criteria]]
metric = 'switches.max_per_minute'
max = 1
[[criteria]]
metric = 'reattach.worker_killed.count'
min = 1
[[criteria]]
metric = 'recovery.worker_killed.max_ms'
max = 30000
[[criteria]]
metric = 'reattach.worker_killed.max_ms'
max = -1
[[criteria]]
metric = 'probes.delivery'
min = 0.9
";

/// What every metrics endpoint says now; each is on the loopback of its own host.
fn look(cluster: &Cluster) -> Vec<String> {
    let hosts = cluster.network.gateways.iter().chain(&cluster.network.controls);
    let endpoint = Endpoint::at(&format!("127.0.0.1:{METRICS_PORT}"));
    hosts.map(|host| host.namespace.enter(|| endpoint.get()).unwrap().unwrap()).collect()
}

fn audit_files(cluster: &Cluster) -> Vec<PathBuf> {
    let files = std::fs::read_dir(cluster.run.path()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_string_lossy().ends_with(".audit.json")).collect()
}

#[test]
fn a_live_cluster_is_judged_by_what_happened_to_it_and_by_nothing_else() {
    let _turn = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&Plan::small("pilot-live")).unwrap();
    let born = cluster.up(0).unwrap();
    let profile = Scenario::parse(PROFILE, false).unwrap();

    let watch = Watch::begin(&look(&cluster), &audit_files(&cluster)).unwrap();
    cluster.fail_over(&born, support::SOON).unwrap();
    wait_until("the audit files tell of it", support::SOON, || {
        let texts = audit_files(&cluster).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
        texts.collect::<String>().contains("\"session_owner_changed\"")
    })
    .unwrap();
    let judged = watch
        .end(&look(&cluster).into_iter().map(Some).collect::<Vec<_>>(), &profile, Duration::from_secs(3))
        .unwrap();

    let held = |metric: &str| {
        let verdict = judged.verdicts.iter().find(|verdict| verdict.criterion.metric == metric);
        verdict.unwrap_or_else(|| panic!("{metric} was not judged: {}", judged.summary())).holds
    };
    for metric in ["sessions.lost", "switches.max_per_minute", "reattach.worker_killed.count"] {
        assert!(held(metric), "{metric}: {}", judged.summary());
    }
    for metric in ["recovery.worker_killed.max_ms", "audit.events", "audit.missing", "audit.dropped"] {
        assert!(held(metric), "{metric}: {}", judged.summary());
    }
    assert!(!held("reattach.worker_killed.max_ms"), "nothing takes less than no time: {}", judged.summary());
    assert!(!judged.passes(false));
    let not_judged: Vec<_> = judged.not_judged.iter().map(|criterion| criterion.metric.as_str()).collect();
    assert_eq!(not_judged, ["probes.delivery"], "no metric tells of probes that nobody sends");
    assert!(judged.metrics["attaches.accepted"] >= 1.0, "{}", judged.summary());
}
