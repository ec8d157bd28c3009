//! What an idle session costs a gateway.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jump_crypto::entropy::OsEntropy;
use jump_crypto::keys::DeviceSecret;
use jump_session::frame::AttachResult;
use jump_session::reason::Reason;
use jump_tests::lab::bare_device::{BareDevice, ClusterKeys, device_key};
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::process::resident_bytes;
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::support;

/// Resident memory per idle session, promised.
const PER_SESSION_MAX: u64 = 4096;
/// Devices that attach side by side.
const LANES: usize = 4;

/// Sessions of one device, so that a session's birth costs control what it costs in practice.
const PER_DEVICE: usize = 50;

/// Enrols devices that are nothing but a key.
fn enrolled(cluster: &Cluster, count: usize) -> Vec<DeviceSecret> {
    let mut entropy = OsEntropy::new().unwrap();
    let enrol = |i: usize| {
        let key = DeviceSecret::generate(&mut entropy).unwrap();
        let (public, name) = (key.public().to_string(), format!("idle-{i}"));
        cluster.operator.json(&cluster.network.controls[0], &["devices", "enroll", &public, &name]).unwrap();
        key
    };
    (0..count).map(enrol).collect()
}

#[test]
fn an_idle_session_stays_under_four_kibibytes_of_resident_memory() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan {
        gateways: 1,
        return_route: jump_tests::lab::network::ReturnRoute::Gateway(0),
        control_settings: "[policy]\nsessions_per_device_max = 1000\n".to_owned(),
        gateway_settings: "[limits]\nattach_per_second = 100000\nattach_burst = 100000\n\
                           cookie_above_per_second = 100000\n"
            .to_owned(),
        ..Plan::small("idle")
    };
    let cluster = Cluster::start(&plan).unwrap();
    let (host, state) = (&cluster.network.devices[0], cluster.state_dir(0));
    let gateway = cluster.network.gateways[0].wan_socket(GATEWAY_PORT);
    let worker = cluster.worker(0).unwrap();
    let before = resident_bytes(worker).unwrap();
    let sessions = support::scaled(1_000, 10_000);
    let devices = enrolled(&cluster, sessions.div_ceil(PER_DEVICE));
    let left = AtomicUsize::new(sessions);
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                let socket = host.namespace.enter(|| UdpSocket::bind(host.wan_socket(0))).unwrap().unwrap();
                let keys = ClusterKeys::of_profile(&state).unwrap();
                let mut device = BareDevice::new(device_key(&state).unwrap(), keys, socket).unwrap();
                while let Ok(n) =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                {
                    device.set_key(DeviceSecret::from_bytes(*devices[n % devices.len()].expose()));
                    let intent = device.intent(None, 1, Reason::Birth).unwrap();
                    let (result, _) = device.attach(&intent, gateway, support::SOON).unwrap();
                    assert!(matches!(result, AttachResult::Accepted(_)), "{result:?}");
                }
            });
        }
    });
    let cost = || resident_bytes(worker).unwrap().saturating_sub(before) / sessions as u64;
    // Idle means that keys and buffers made for the attach are given back in time.
    let settled = wait_until("idle sessions are small", Duration::from_secs(90), || cost() < PER_SESSION_MAX);
    println!("{sessions} idle sessions: {} bytes of resident memory each", cost());
    settled.unwrap();
}
