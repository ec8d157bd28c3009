//! A store restored from a snapshot is in the past: what sessions make of it (docs/operations.md, "Back up and restore etcd").

use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::support;

/// Changes of owner that the snapshot knows nothing of.
const FORGOTTEN: usize = 3;

#[test]
fn after_a_restore_known_sessions_go_on_in_later_epochs_and_a_forgotten_one_ends_with_a_reason() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan { devices: 3, ..Plan::small("restore") }.with_store(Store::Etcd);
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let (moved, kept) = (cluster.up(0).unwrap(), cluster.up(1).unwrap());
    let probes: Vec<_> = cluster.network.devices[..2]
        .iter()
        .map(|device| Probe::start(device, echo.address()).unwrap())
        .collect();
    for probe in &probes {
        probe.wait_for_echoes(20, support::SOON).unwrap();
    }
    let snapshot = cluster.run.path().join("snapshot.db");
    cluster.etcd.as_ref().unwrap().save(&cluster.network.stores[0], &snapshot).unwrap();

    // What the snapshot does not know: three changes of owner, and a birth.
    let mut last = moved.clone();
    for _ in 0..FORGOTTEN {
        last = cluster.fail_over(&last, support::SOON).unwrap();
    }
    let forgotten = cluster.up(2).unwrap();
    // Its owner may have been among those that were killed.
    let kept = cluster.ownership(&kept.session).unwrap();

    // Every gateway first, then control, then the store; back in the opposite order.
    for gateway in 0..cluster.gateways.len() {
        cluster.kill_gateway(gateway).unwrap();
    }
    for replica in 0..cluster.controls.len() {
        cluster.kill_control(replica).unwrap();
    }
    let marks: Vec<_> = cluster.devices.iter().map(|device| device.as_ref().unwrap().mark()).collect();
    let etcd = cluster.etcd.as_mut().unwrap();
    etcd.restore(&cluster.network.stores, cluster.run.path(), &snapshot).unwrap();
    for replica in 0..cluster.controls.len() {
        cluster.controls[replica] = cluster.start_control(replica).unwrap();
    }
    wait_until("the leases of the snapshot have ended", support::SOON, || {
        cluster
            .operator
            .json(&cluster.network.controls[0], &["nodes", "list"])
            .is_ok_and(|nodes| nodes.iter().all(|node| node.get("node_id").is_none()))
    })
    .unwrap();
    for gateway in 0..cluster.gateways.len() {
        cluster.gateways[gateway] = cluster.start_gateway(gateway).unwrap();
    }

    // The epochs that clients have seen do not come back; the sessions do.
    for (device, (before, mark)) in [&last, &kept].into_iter().zip(&marks).enumerate() {
        let after = cluster.wait_owned_after(before, support::SOON).unwrap();
        assert_eq!(after.inner_text(), before.inner_text());
        probes[device].wait_for_echoes(20, support::SOON).unwrap();
        assert_eq!(cluster.session_of(device).unwrap(), before.session);
        wait_until("client and store name one epoch", support::SOON, || {
            let epoch = cluster.status(device).ok().and_then(|status| status.get("epoch")?.as_u64());
            epoch.is_some() && epoch == cluster.ownership(&before.session).ok().map(|now| now.epoch)
        })
        .unwrap();
        let told = cluster.devices[device].as_ref().unwrap().lines_since(*mark);
        assert!(!told.iter().any(|line| line.contains(r#""event":"terminated""#)), "{told:#?}");
    }
    // The session that the snapshot does not know ends, and its client says so before it begins another.
    let device = cluster.devices[2].as_ref().unwrap();
    let (end, at) = device
        .wait_for("that its session has ended", marks[2], support::SOON, |line| {
            line.contains(r#""event":"terminated""#)
        })
        .unwrap();
    let end: serde_json::Value = serde_json::from_str(&end).unwrap();
    assert_eq!(end["session_id"], forgotten.session.as_str(), "{end}");
    assert_eq!(end["reason"], "UNKNOWN_SESSION", "{end}");
    device
        .wait_for("that it is attached again", at, support::SOON, |line| {
            line.contains(r#""event":"attached""#) && !line.contains(&forgotten.session)
        })
        .unwrap();
    let next = cluster.ownership(&cluster.session_of(2).unwrap()).unwrap();
    assert_eq!(next.phase, "OWNED");
    for probe in probes {
        assert_eq!(probe.stop().duplicates, 0);
    }
}
