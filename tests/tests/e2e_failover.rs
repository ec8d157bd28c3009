//! A session outlives its gateway: the demo's promises, and the ones about drains and lost machines.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use jump_tests::demo::terminal::Terminal;
use jump_tests::demo::{Kill, Options, run};
use jump_tests::failover::{Ending, measure};
use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::support;

/// Runs the demo small and fails with every promise that did not hold.
fn demo(store: Store, kill: Kill) {
    let _one = support::one_at_a_time().unwrap();
    let options = Options { store, kill, size_mib: 24, rate_mib: 6, seed: 7 };
    let report = run(&options, &Terminal::new(true)).unwrap();
    let broken: Vec<_> = report.checks.iter().filter(|check| !check.holds).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_download_outlives_its_gateway() {
    demo(Store::Embedded, Kill::Worker);
}

#[test]
fn a_download_outlives_its_gateway_and_a_control_replica_over_etcd() {
    demo(Store::Etcd, Kill::Worker);
}

#[test]
fn a_download_outlives_the_loss_of_its_gateways_machine() {
    demo(Store::Embedded, Kill::Node);
}

#[test]
fn a_session_goes_on_after_every_kind_of_end_of_its_owner() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&Plan::small("endings")).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let session = cluster.up(0).unwrap().session;
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    for (round, ending) in Ending::ALL.into_iter().enumerate() {
        let sample = measure(&mut cluster, &probe, &session, ending).unwrap();
        assert_eq!(sample.epoch, round as u64 + 2, "one change of owner is one epoch: {ending:?}");
        assert_ne!(sample.from, sample.to, "{ending:?}");
    }
}
