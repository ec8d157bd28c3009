//! Many virtual devices against real gateways.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use jump_session::client::Tuning;
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::enrol::enrol;
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::fleet::{self, Fleet, FleetPlan, Group, Traffic};
use jump_tests::lab::network::ReturnRoute;
use jump_tests::lab::probe::EchoServer;
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::support;
use rustix::process::Signal;

const DEVICES: usize = 60;

#[test]
fn every_device_of_a_killed_gateway_goes_on_elsewhere_with_its_session_and_address() {
    let _one = support::one_at_a_time().unwrap();
    let cluster = Cluster::start(&Plan { return_route: ReturnRoute::Ecmp, ..Plan::small("fleet") }).unwrap();
    let host = &cluster.network.devices[0];
    fleet::route(host, &cluster.network.gateways).unwrap();
    let keys = enrol(&cluster.network.controls[0], cluster.operator.identity(), DEVICES, |_| ()).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let std::net::SocketAddr::V4(to) = echo.address() else { panic!("an IPv4 lab") };
    let fleet = Fleet::start(host, plan(&cluster, keys, to)).unwrap();
    let all = DEVICES as u64;
    wait_until("every device is attached", support::SOON, || fleet.counts().born == all).unwrap();
    let answered = fleet.counts().answered;
    wait_until("probes come back", support::SOON, || fleet.counts().answered > answered + 10 * all).unwrap();

    let killed = fleet::clock();
    cluster.signal_worker(0, Signal::KILL).unwrap();
    // Half of the devices began at each gateway.
    wait_until("half have another owner", support::SOON, || fleet.counts().reattached >= all / 2).unwrap();
    let answered = fleet.counts().answered;
    wait_until("probes come back", support::SOON, || fleet.counts().answered > answered + 20 * all).unwrap();
    fleet.rebind(0, 1.0, true);
    let answered = fleet.counts().answered;
    wait_until("probes come back", support::SOON, || fleet.counts().answered > answered + 20 * all).unwrap();

    let records = fleet.stop().unwrap();
    assert_eq!(records.len(), DEVICES);
    for record in &records {
        assert_eq!(record.terminated, None, "device {}", record.device);
        assert!(!record.address_changed, "device {}", record.device);
        assert_eq!(record.duplicates, 0, "device {}", record.device);
        assert_eq!(record.rebinds, 1, "device {}", record.device);
        assert!(record.last_echo.unwrap() > killed, "device {} was left behind", record.device);
        let before = record.attaches.iter().rfind(|attach| attach.at < killed).unwrap();
        let moved = record.attaches.iter().any(|attach| attach.at > killed && attach.epoch > before.epoch);
        assert!(moved || before.node != "gw1", "device {} did not move: {record:?}", record.device);
    }
}

fn plan(cluster: &Cluster, keys: Vec<jump_crypto::keys::DeviceSecret>, to: SocketAddrV4) -> FleetPlan {
    let every = Some(Duration::from_millis(50));
    let traffic = Traffic { every, length: 100, to, gap_above: Duration::from_millis(200) };
    FleetPlan {
        keys,
        profile: cluster.state_dir(0),
        gateways: cluster.network.gateways.iter().map(|gateway| gateway.wan_socket(GATEWAY_PORT)).collect(),
        via: BTreeMap::new(),
        groups: vec![Group {
            devices: DEVICES,
            starts_per_second: Some(100.0),
            traffic,
            tuning: Tuning::default(),
        }],
        lanes: 2,
        seed: 1,
    }
}
