//! The lab itself: what the other end-to-end tests take for granted.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use jump_tests::lab::capture::Capture;
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::lab::etcd::{CLIENT_PORT, Etcd};
use jump_tests::lab::network::{LAN_LINK, LAN_NETWORK, Network, Shape};
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::process::{Mark, Process};
use jump_tests::lab::run_dir::RunDir;

fn plain_network(run: &RunDir, stores: usize) -> Network {
    Network::create(&run.prefix(), Shape { devices: 1, gateways: 2, controls: 0, stores }).unwrap()
}

/// Lets the device reach the inner network without a tunnel, by its own outer address.
fn route_without_tunnel(network: &Network) {
    let (device, gateway) = (&network.devices[0], &network.gateways[0]);
    device.namespace.ip(&format!("route add {LAN_NETWORK} via {}", gateway.wan)).unwrap();
    network.inner.namespace.ip(&format!("route add {}/32 via {}", device.wan, gateway.lan)).unwrap();
}

#[test]
fn a_network_leaves_nothing_behind() {
    let run = RunDir::create("lab-cleanup").unwrap();
    let prefix = run.prefix();
    let listed = || {
        let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().filter(|l| l.starts_with(&prefix)).count()
    };
    let network = plain_network(&run, 0);
    assert_eq!(listed(), 5, "switch, device, two gateways and the inner server");
    drop(network);
    assert_eq!(listed(), 0);
}

#[test]
fn probe_download_and_capture_see_the_same_traffic() {
    let run = RunDir::create("lab-traffic").unwrap();
    let network = plain_network(&run, 0);
    route_without_tunnel(&network);
    let device = &network.devices[0];
    let capture = Capture::start(&network.gateways[0], LAN_LINK, "udp").unwrap();
    let echo = EchoServer::start(&network.inner, 7).unwrap();
    let web = WebServer::start(&network.inner, 80, 64 << 20).unwrap();

    let probe = Probe::start(device, echo.address()).unwrap();
    let download = Download::start(device, web.address(), 42, 4 << 20).unwrap();
    download.wait_for(1 << 20, Duration::from_secs(30)).unwrap();
    let done = download.finish(Duration::from_secs(30)).unwrap();
    assert_eq!(done.digest, expected_digest(42, 4 << 20));
    assert_eq!(done.local.ip(), device.wan);
    probe.wait_for_echoes(20, Duration::from_secs(10)).unwrap();
    let report = probe.stop();
    assert!(report.answered > 0 && report.sent >= report.answered, "{report:?}");
    assert_eq!((report.duplicates, report.send_errors), (0, 0));

    let up = |(source, _): (Ipv4Addr, Ipv4Addr)| source == device.wan;
    let seen = capture.stop().iter().filter_map(|p| p.ipv4()).filter(|p| up(*p)).count();
    assert!(seen >= report.answered, "captured {seen} of at least {} datagrams", report.answered);
}

#[test]
fn a_pulled_cable_is_a_gap_that_the_probe_measures() {
    let run = RunDir::create("lab-cable").unwrap();
    let network = plain_network(&run, 0);
    route_without_tunnel(&network);
    let echo = EchoServer::start(&network.inner, 7).unwrap();
    let probe = Probe::start(&network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(20, Duration::from_secs(10)).unwrap();
    network.set_lan_cable(&network.gateways[0], false).unwrap();
    let pulled = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    network.set_lan_cable(&network.gateways[0], true).unwrap();
    let unplugged_for = pulled.elapsed();
    probe.wait_for_echoes(20, Duration::from_secs(10)).unwrap();
    let report = probe.stop();
    assert!(report.longest_gap >= unplugged_for, "{:?} in {unplugged_for:?}", report.longest_gap);
}

#[test]
fn a_process_that_ends_is_noticed_while_waiting_for_its_output() {
    let run = RunDir::create("lab-process").unwrap();
    let network =
        Network::create(&run.prefix(), Shape { devices: 1, gateways: 0, controls: 0, stores: 0 }).unwrap();
    let mut command = network.devices[0].namespace.command("sh".as_ref());
    command.args(["-c", "echo hello; echo world >&2"]);
    let mut process = Process::spawn("short", command, run.path()).unwrap();
    process.wait_for("hello", Mark::default(), Duration::from_secs(10), |l| l == "hello").unwrap();
    process.wait_for("world", Mark::default(), Duration::from_secs(10), |l| l == "world").unwrap();
    let refused = process.wait_for("more", Mark::default(), Duration::from_secs(10), |l| l == "more");
    assert!(refused.unwrap_err().to_string().contains("it ended"));
    assert!(process.wait_end(Duration::from_secs(10)).unwrap().success());
}

#[test]
fn three_etcd_nodes_agree_on_a_value() {
    let run = RunDir::create("lab-etcd").unwrap();
    let network = plain_network(&run, 3);
    let etcd = Etcd::start(&network.stores, run.path()).unwrap();
    assert_eq!(etcd.nodes.len(), 3);
    let ctl = |host: usize, arguments: &[&str]| {
        let endpoint = format!("http://{}:{CLIENT_PORT}", network.stores[host].wan);
        let output = network.stores[host]
            .namespace
            .command("etcdctl".as_ref())
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoint])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    ctl(0, &["put", "k", "v"]);
    assert_eq!(ctl(2, &["get", "k", "--print-value-only"]).trim(), "v");
}
