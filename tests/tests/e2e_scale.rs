//! More gateways, fewer gateways: sessions spread, and none is lost.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::time::Duration;

use jump_tests::lab::cluster::{Cluster, Plan, gateway_name};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::fleet::{self, Crowd};
use jump_tests::lab::network::ReturnRoute;
use jump_tests::support::{self, SOON};
use rustix::process::Signal;

const DEVICES: usize = 30;

/// What `jumpctl nodes rebalance` prints: the sessions of each node before, and after.
fn rebalance(cluster: &Cluster, arguments: &[&str]) -> Vec<(u64, u64)> {
    let mut all = vec!["nodes", "rebalance"];
    all.extend(arguments);
    let nodes = cluster.operator.json(&cluster.network.controls[0], &all).unwrap();
    let count = |node: &serde_json::Value, when: &str| node[when].as_u64().unwrap();
    nodes.iter().map(|node| (count(node, "before"), count(node, "after"))).collect()
}

fn stop(cluster: &mut Cluster, gateway: usize) {
    cluster.gateways[gateway].signal(Signal::TERM).unwrap();
    let status = cluster.gateways[gateway].wait_end(SOON).unwrap();
    assert!(status.success(), "gateway {gateway} ended with {status}");
}

#[test]
fn a_gateway_that_joins_gets_its_share_and_one_that_is_drained_and_ends_loses_no_session() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan { gateways: 3, return_route: ReturnRoute::Gateway(0), ..Plan::small("scale") };
    let mut cluster = Cluster::start(&plan).unwrap();
    stop(&mut cluster, 2);
    let crowd = Crowd::attach(&cluster, DEVICES, 2, Duration::from_millis(100)).unwrap();

    cluster.gateways[2] = cluster.start_gateway(2).unwrap();
    let planned = rebalance(&cluster, &["--dry-run"]);
    assert_eq!(planned.iter().map(|(_, after)| *after).collect::<Vec<_>>(), [10, 10, 10], "{planned:?}");
    assert_eq!(crowd.fleet.counts().reattached, 0, "a dry run moves nobody");
    let done = rebalance(&cluster, &["--yes", "--rate", "50"]);
    assert_eq!(done.iter().map(|(_, after)| *after).collect::<Vec<_>>(), [10, 10, 10], "{done:?}");
    wait_until("the moved devices know it", SOON, || crowd.fleet.counts().reattached >= 10).unwrap();
    assert_eq!(crowd.fleet.counts().reattached, 10, "just the share of the new one moves");

    let name = gateway_name(2);
    let drain = ["nodes", "drain", "--yes", "--wait", "30s", &name];
    cluster.operator.json(&cluster.network.controls[0], &drain).unwrap();
    stop(&mut cluster, 2);
    let left = rebalance(&cluster, &["--dry-run"]);
    assert_eq!(left.iter().map(|(before, _)| before).sum::<u64>(), DEVICES as u64, "{left:?}");
    let drained = fleet::clock();
    crowd.wait_for_echoes(20).unwrap();

    for record in crowd.fleet.stop().unwrap() {
        assert_eq!(record.terminated, None, "device {}", record.device);
        assert!(!record.address_changed, "device {}", record.device);
        assert!(record.last_echo.unwrap() > drained, "device {} was left behind", record.device);
    }
}
