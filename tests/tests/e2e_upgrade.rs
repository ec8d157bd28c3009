//! Two builds side by side, as during an upgrade: any part of one with the others of the other.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::PathBuf;
use std::time::Duration;

use jump_tests::lab::cluster::{Builds, Cluster, Plan, Store, gateway_name};
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::programs::Build;
use jump_tests::support::{self, SOON};
use rustix::process::Signal;

/// The other build: a directory with its programs. `make test-upgrade BASE=revision` makes it and names it here.
const BASE_VARIABLE: &str = "JUMP_TEST_BASE";

/// Attaches, kills the owner, drains the next one, restarts control: the session must stay the same throughout, and what is
/// planned must lose nothing.
fn live_through_it(case: &str, builds: Builds) {
    let plan = Plan { builds, ..Plan::small("upgrade").with_store(Store::Etcd) };
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let born = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(50, SOON).unwrap();

    let first = cluster.gateway_number(born.owner.as_ref().unwrap()).unwrap();
    cluster.signal_worker(first, Signal::KILL).unwrap();
    probe.wait_for_echoes(50, SOON).unwrap();
    let killed = cluster.ownership(&born.session).unwrap();
    assert!(killed.epoch > born.epoch, "{case}: {killed:?}");
    cluster.wait_registered(first, SOON).unwrap();

    // Round both gateways, so that each build hands a session to the other.
    let mut before = killed;
    for _ in 0..2 {
        let owner = before.owner.clone().unwrap();
        let start = std::time::Instant::now();
        let operator = |arguments: &[&str]| {
            cluster.operator.json(&cluster.network.controls[0], arguments).unwrap();
        };
        operator(&["nodes", "drain", "--yes", "--wait", "30s", &owner]);
        operator(&["nodes", "undrain", &owner]);
        probe.wait_for_echoes(50, SOON).unwrap();
        let after = cluster.ownership(&born.session).unwrap();
        assert_eq!(after.epoch, before.epoch + 1, "{case}: {before:?}, then {after:?}");
        assert_ne!(after.owner, before.owner, "{case}");
        let until = std::time::Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(probe.lost_between(start, until), 0, "{case}: a planned move loses nothing");
        before = after;
    }

    for i in 0..cluster.controls.len() {
        cluster.controls[i].signal(Signal::TERM).unwrap();
        cluster.controls[i].wait_end(SOON).unwrap();
        cluster.controls[i] = cluster.start_control(i).unwrap();
        probe.wait_for_echoes(50, SOON).unwrap();
    }
    let after = cluster.ownership(&born.session).unwrap();
    assert_eq!((after.epoch, after.inner_text()), (before.epoch, born.inner_text()), "{case}");
    assert_eq!(cluster.session_of(0).unwrap(), born.session, "{case}");
    for i in 0..cluster.gateways.len() {
        cluster.wait_registered(i, SOON).unwrap();
    }
    let seen = probe.stop();
    eprintln!("{case}: {} to {}, longest gap {:?}", gateway_name(first), after.epoch, seen.longest_gap);
}

#[test]
#[ignore = "needs the programs of another build: make test-upgrade BASE=revision"]
fn a_session_lives_through_every_mix_of_two_builds() {
    let _one = support::one_at_a_time().unwrap();
    let base = std::env::var_os(BASE_VARIABLE).map(PathBuf::from);
    let base =
        base.unwrap_or_else(|| panic!("{BASE_VARIABLE} names no directory of another build's programs"));
    let old = || Build::in_dir(&base);
    let new = Build::default;
    let mixes = [
        ("old gateways, new control", [new(), old(), old(), old()]),
        ("new gateways, old control", [old(), new(), new(), new()]),
        ("old device", [new(), new(), new(), old()]),
        ("new device", [old(), old(), old(), new()]),
        ("one gateway of each, old device", [new(), old(), new(), old()]),
        ("one gateway of each, new device", [new(), new(), old(), new()]),
    ];
    for (case, [control, first, second, device]) in mixes {
        live_through_it(case, Builds { control, gateways: vec![first, second], device });
    }
}
