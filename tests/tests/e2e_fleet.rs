//! Many virtual devices against real gateways.

use std::time::Duration;

use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::fleet::{self, Crowd};
use jump_tests::lab::network::ReturnRoute;
use jump_tests::support;
use rustix::process::Signal;

const DEVICES: usize = 60;

#[test]
fn every_device_of_a_killed_gateway_goes_on_elsewhere_with_its_session_and_address() {
    let _one = support::one_at_a_time().unwrap();
    let cluster = Cluster::start(&Plan { return_route: ReturnRoute::Ecmp, ..Plan::small("fleet") }).unwrap();
    let crowd = Crowd::attach(&cluster, DEVICES, 2, Duration::from_millis(50)).unwrap();
    crowd.wait_for_echoes(10).unwrap();

    let killed = fleet::clock();
    cluster.signal_worker(0, Signal::KILL).unwrap();
    // Half of the devices began at each gateway.
    let half = DEVICES as u64 / 2;
    wait_until("half have another owner", support::SOON, || crowd.fleet.counts().reattached >= half).unwrap();
    crowd.wait_for_echoes(20).unwrap();
    crowd.fleet.rebind(0, 1.0, true);
    crowd.wait_for_echoes(20).unwrap();

    let records = crowd.fleet.stop().unwrap();
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
