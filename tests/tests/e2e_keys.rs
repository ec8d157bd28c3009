//! Keys change under live sessions: revocation ends them at once, rotation does not touch them.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use jump_session::frame::AttachResult;
use jump_session::reason::Reason;
use jump_tests::lab::bare_device::{BareDevice, ClusterKeys, device_key};
use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::process::Mark;
use jump_tests::lab::programs::{self, GATEWAY_PORT};
use jump_tests::support;

/// A revoked session is gone within a second: of several revocations, the median must be. The machine may stop for longer once.
const REVOKED: Duration = Duration::from_secs(1);
/// No revocation may take longer, whatever else the machine does.
const REVOKED_MAX: Duration = Duration::from_secs(5);

fn bare(cluster: &Cluster, host: usize, keys: ClusterKeys, device: usize) -> BareDevice {
    let host = &cluster.network.devices[host];
    let socket = host.namespace.enter(|| UdpSocket::bind(host.wan_socket(0))).unwrap().unwrap();
    BareDevice::new(device_key(&cluster.state_dir(device)).unwrap(), keys, socket).unwrap()
}

fn jumpctl(cluster: &Cluster, arguments: &[&str]) -> Vec<serde_json::Value> {
    cluster.operator.json(&cluster.network.controls[0], arguments).unwrap()
}

/// The ids of the keys of a purpose in a state.
fn keys_in(cluster: &Cluster, purpose: &str, state: &str) -> Vec<String> {
    let keys = jumpctl(cluster, &["keys", "list"]);
    let wanted = keys.iter().filter(|key| key["purpose"] == purpose && key["state"] == state);
    wanted.map(|key| key["key_id"].as_str().unwrap().to_owned()).collect()
}

/// Brings a device up, revokes it under traffic, and returns how long its session outlived the command.
fn revoke(cluster: &mut Cluster, echo: &EchoServer, number: usize) -> Duration {
    let session = cluster.up(number).unwrap();
    let probe = Probe::start(&cluster.network.devices[number], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let key = device_key(&cluster.state_dir(number)).unwrap().public().to_string();
    let asked = Instant::now();
    let answer = jumpctl(cluster, &["devices", "revoke", &key, "--yes"]);
    let answered = asked.elapsed();
    assert_eq!(answer[0]["terminated_sessions"], 1);
    let device = cluster.devices[number].as_mut().unwrap();
    device
        .wait_for("that it was revoked", Mark::default(), support::SOON, |line| {
            line.contains(r#""event":"terminated""#) && line.contains("KEY_REVOKED")
        })
        .unwrap();
    let told = asked.elapsed();
    assert_eq!(device.wait_end(support::SOON).unwrap().code(), Some(5), "the client says that it is refused");
    probe.stop();
    let last = echo.arrivals().last().map_or(Duration::ZERO, |at| at.saturating_duration_since(asked));
    println!(
        "revoked: jumpctl answered after {} ms, the client was told after {} ms, the last packet came through after {} ms",
        answered.as_millis(),
        told.as_millis(),
        last.as_millis()
    );
    let ended = cluster.ownership(&session.session).unwrap();
    assert_eq!((ended.phase.as_str(), ended.reason.as_str()), ("TERMINATED", "KEY_REVOKED"));
    told.max(last)
}

#[test]
fn a_revoked_device_is_cut_off_with_key_revoked_across_the_cluster() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan { devices: 4, ..Plan::small("revoke") }.with_store(Store::Etcd);
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let other = cluster.up(3).unwrap();
    let mut took: Vec<Duration> = (0..3).map(|device| revoke(&mut cluster, &echo, device)).collect();
    took.sort();
    assert!(took[1] < REVOKED && took[2] < REVOKED_MAX, "{took:?}");
    // No gateway takes the device any more, and nobody else noticed.
    let mut hand = bare(&cluster, 0, ClusterKeys::of_profile(&cluster.state_dir(0)).unwrap(), 0);
    for gateway in &cluster.network.gateways {
        let intent = hand.intent(None, 1_000_000, Reason::Birth).unwrap();
        let (result, _) = hand.attach(&intent, gateway.wan_socket(GATEWAY_PORT), support::SOON).unwrap();
        assert!(matches!(result, AttachResult::Rejected { reason: Reason::KeyRevoked, .. }), "{result:?}");
    }
    let untouched = cluster.ownership(&other.session).unwrap();
    assert_eq!((untouched.epoch, untouched.phase.as_str()), (other.epoch, "OWNED"));
}

#[test]
fn a_rotation_of_cluster_and_grant_key_strands_no_device_and_the_old_keys_are_refused_afterwards() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan {
        devices: 3,
        control_settings: "[keys]\nannounce = \"3s\"\noverlap = \"10m\"\n".to_owned(),
        ..Plan::small("rotate")
    };
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let live = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    // Devices 1 and 2 are enrolled and away for the whole announcement: they know the old keys only.
    let away = ClusterKeys::of_profile(&cluster.state_dir(2)).unwrap();
    let old: Vec<String> =
        ["cluster", "grant"].map(|purpose| keys_in(&cluster, purpose, "CURRENT").remove(0)).to_vec();
    for purpose in ["cluster", "grant"] {
        jumpctl(&cluster, &["keys", "rotate", purpose]);
    }
    for (purpose, old) in ["cluster", "grant"].iter().zip(&old) {
        wait_until("the new key is in use", support::SOON, || {
            keys_in(&cluster, purpose, "RETIRING") == std::slice::from_ref(old)
                && keys_in(&cluster, purpose, "CURRENT").len() == 1
        })
        .unwrap();
    }
    // A live device reattaches within the overlap, is told of the new keys, and keeps them.
    let moved = cluster.fail_over(&live, support::SOON).unwrap();
    let profile = cluster.state_dir(0).join("profile.toml");
    let knows = |profile: &std::path::Path, text: &str| {
        std::fs::read_to_string(profile).is_ok_and(|profile| profile.contains(text))
    };
    let current: Vec<String> = jumpctl(&cluster, &["keys", "list"])
        .iter()
        .filter(|key| key["state"] == "CURRENT")
        .map(|key| key["public_key"].as_str().unwrap().to_owned())
        .collect();
    wait_until("the device has the new keys", support::SOON, || {
        current.iter().all(|key| knows(&profile, key))
    })
    .unwrap();
    // So does a device that knows the old keys alone.
    cluster.up(1).unwrap();
    let profile = cluster.state_dir(1).join("profile.toml");
    wait_until("the late device has the new keys", support::SOON, || {
        current.iter().all(|key| knows(&profile, key))
    })
    .unwrap();
    // The old keys retire early. Who kept up goes on; who did not is refused.
    for (purpose, old) in ["cluster", "grant"].iter().zip(&old) {
        jumpctl(&cluster, &["keys", "retire", purpose, old, "--yes"]);
    }
    let again = cluster.fail_over(&moved, support::SOON).unwrap();
    let last = cluster.fail_over(&again, support::SOON).unwrap();
    assert_eq!(last.inner, live.inner);
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let mut stranded = bare(&cluster, 2, away, 2);
    let intent = stranded.intent(None, 1, Reason::Birth).unwrap();
    for gateway in &cluster.network.gateways {
        let answered = stranded.handshake(&intent, gateway.wan_socket(GATEWAY_PORT), Duration::from_secs(2));
        assert!(answered.is_err(), "a gateway answered under a retired key");
    }
    let report = probe.stop();
    println!("rotation with three failovers: longest gap {} ms", report.longest_gap.as_millis());
}

#[test]
fn where_control_asks_for_it_every_attach_is_hybrid_and_a_device_that_knows_nothing_of_it_attaches_too() {
    let _one = support::one_at_a_time().unwrap();
    let plan =
        Plan { devices: 2, control_settings: "[keys]\nhybrid = true\n".to_owned(), ..Plan::small("hybrid") };
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let born = cluster.up(0).unwrap();
    let suite = |cluster: &Cluster| {
        let state = cluster.state_dir(0);
        let arguments = ["--state-dir", &state.to_string_lossy(), "--output", "json", "status"];
        let answer = programs::output(&cluster.network.devices[0], "jump", &arguments).unwrap();
        let status: serde_json::Value = serde_json::from_str(&answer).unwrap();
        status["suite"].as_str().unwrap_or_default().to_owned()
    };
    assert!(suite(&cluster).contains("ML-KEM-768"), "{}", suite(&cluster));
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    cluster.fail_over(&born, support::SOON).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    assert!(suite(&cluster).contains("ML-KEM-768"), "{}", suite(&cluster));
    probe.stop();
    // An older device says nothing of hybrid suites, and is answered in its own.
    let mut older = bare(&cluster, 1, ClusterKeys::of_profile(&cluster.state_dir(1)).unwrap(), 1);
    let intent = older.intent(None, 1, Reason::Birth).unwrap();
    let gateway = cluster.network.gateways[0].wan_socket(GATEWAY_PORT);
    let (result, _) = older.attach(&intent, gateway, support::SOON).unwrap();
    assert!(matches!(result, AttachResult::Accepted { .. }), "{result:?}");
}

#[test]
fn a_device_rotates_its_key_and_its_session_goes_on() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan {
        control_settings: "[keys]\ndevice_overlap = \"2s\"\n".to_owned(),
        ..Plan::small("rotate-device")
    };
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let before = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let state = cluster.state_dir(0);
    let old = std::fs::read(state.join("device.key")).unwrap();
    let mut stale = bare(&cluster, 0, ClusterKeys::of_profile(&state).unwrap(), 0);
    let rotate = || {
        let arguments = ["--state-dir", &state.to_string_lossy(), "--output", "json", "rotate-key"];
        let answer = programs::output(&cluster.network.devices[0], "jump", &arguments).unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let answer = rotate();
    assert_eq!(answer["reloaded"], true);
    let moved = |epoch: u64| {
        wait_until("the session goes on under the new key", support::SOON, || {
            cluster.ownership(&before.session).is_ok_and(|now| now.epoch > epoch && now.phase == "OWNED")
        })
    };
    moved(before.epoch).unwrap();
    let key = device_key(&state).unwrap().public().to_string();
    assert_eq!(answer["device_key"], key.as_str());
    // As if it had been interrupted after control had taken the key: asked again, the same answer.
    let new = std::fs::read(state.join("device.key")).unwrap();
    std::fs::write(state.join("device.key.rotated"), &new).unwrap();
    std::fs::write(state.join("device.key"), &old).unwrap();
    for file in ["device.key", "device.key.rotated"] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(state.join(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(rotate()["device_key"], key.as_str());
    assert_eq!(std::fs::read(state.join("device.key")).unwrap(), new);
    assert!(!state.join("device.key.rotated").exists());
    // The old key ends with its overlap.
    let refused = wait_until("the old key is refused", support::SOON, || {
        let intent = stale.intent(None, 1_000_000, Reason::Birth).unwrap();
        let gateway = cluster.network.gateways[0].wan_socket(GATEWAY_PORT);
        let (result, _) = stale.attach(&intent, gateway, support::SOON).unwrap();
        matches!(result, AttachResult::Rejected { reason: Reason::KeyExpired, .. })
    });
    refused.unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let report = probe.stop();
    println!("device key rotated: longest gap {} ms", report.longest_gap.as_millis());
    assert_eq!(cluster.session_of(0).unwrap(), before.session);
}
