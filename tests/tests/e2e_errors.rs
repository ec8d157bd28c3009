//! What goes wrong for people is said in one line that tells what to do.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::network::{Host, Network, Shape};
use jump_tests::lab::process::{Mark, Process};
use jump_tests::lab::programs::{self, Build, CONTROL_PORT, GATEWAY_PORT, Pki, StoreConfig};
use jump_tests::lab::run_dir::RunDir;
use jump_tests::support;

/// Runs a command to its end, however it ends, with a bound.
fn finish(mut command: Command, run: &RunDir) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(support::SOON).is_err() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut stderr, &mut text).map(|_| text)
    });
    let status = child.wait().unwrap();
    drop(done);
    watchdog.join().unwrap();
    let stderr = reader.join().unwrap().unwrap();
    let _ = fs::write(run.path().join("last-error"), &stderr);
    Output { status, stdout: Vec::new(), stderr }
}

/// Checks that a command fails by itself and that one line of its errors contains all of `words`.
#[track_caller]
fn fails_saying(command: Command, run: &RunDir, words: &[&str]) {
    let output = finish(command, run);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}: {text}", output.status);
    let says = |line: &str| words.iter().all(|word| line.to_lowercase().contains(&word.to_lowercase()));
    // The programs' own line, without the log lines (JSON) that may come before it.
    let own: Vec<_> = text.lines().filter(|line| !line.starts_with('{')).collect();
    assert!(own.iter().any(|line| says(line)), "no line says {words:?}:\n{text}");
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{text}");
}

fn lone_network(run: &RunDir) -> Network {
    Network::create(&run.prefix(), Shape { devices: 1, gateways: 1, controls: 1, stores: 0 }).unwrap()
}

/// The command line of a gateway whose control does not exist.
fn gateway_command(network: &Network, pki: &Pki, run: &RunDir) -> Command {
    let host = &network.gateways[0];
    let identity = pki.issue("gateway", "gw1", &[host.wan.to_string()]).unwrap();
    programs::gateway(&Build::default(), host, "gw1", &identity, &network.controls, "", run.path()).unwrap()
}

#[test]
fn an_unreachable_control_is_named_by_every_program() {
    let _one = support::one_at_a_time().unwrap();
    let run = RunDir::create("no-control").unwrap();
    let network = lone_network(&run);
    let pki = Pki::init(&run.path().join("pki")).unwrap();
    let operator = programs::Operator::new(&network.controls, pki.issue("operator", "lab", &[]).unwrap());
    let address = network.controls[0].wan_socket(CONTROL_PORT).to_string();
    let list = operator.command(&network.devices[0], &["sessions", "list"]).unwrap();
    fails_saying(list, &run, &["control", &address]);
    // A gateway waits for control, and says so.
    let gateway = Process::spawn("gw1", gateway_command(&network, &pki, &run), run.path()).unwrap();
    let says = |line: &str| line.contains("cannot reach control") && line.contains(&address);
    gateway.wait_for("that it cannot reach control", Mark::default(), support::SOON, says).unwrap();
}

#[test]
fn an_unreachable_etcd_is_named_with_its_addresses() {
    let _one = support::one_at_a_time().unwrap();
    let run = RunDir::create("no-etcd").unwrap();
    let network = lone_network(&run);
    let pki = Pki::init(&run.path().join("pki")).unwrap();
    let host = &network.controls[0];
    let identity = pki.issue("control", "ctl1", &[host.wan.to_string()]).unwrap();
    let store = StoreConfig::Etcd(vec![format!("http://{}:2379", host.wan)]);
    let command =
        programs::control(&Build::default(), host, "ctl1", &identity, &store, "", run.path()).unwrap();
    let control = Process::spawn("ctl1", command, run.path()).unwrap();
    let says = |line: &str| line.contains("etcd") && line.contains(&host.wan.to_string());
    control.wait_for("that etcd cannot be reached", Mark::default(), support::SOON, says).unwrap();
}

#[test]
fn a_port_in_use_is_named() {
    let _one = support::one_at_a_time().unwrap();
    let run = RunDir::create("port").unwrap();
    let network = lone_network(&run);
    let pki = Pki::init(&run.path().join("pki")).unwrap();
    let host = &network.gateways[0];
    let address = host.wan_socket(GATEWAY_PORT);
    let _taken = host.namespace.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    fails_saying(gateway_command(&network, &pki, &run), &run, &[&address.to_string(), "in use"]);
}

/// The same command without the right to administer networks.
fn without_net_admin(host: &Host, command: &Command) -> Command {
    let mut stripped = host.namespace.command("setpriv".as_ref());
    stripped.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]);
    // Behind `ip netns exec NAME setpriv --pdeathsig KILL --` comes the program.
    stripped.args(command.get_args().skip_while(|argument| *argument != "--").skip(1));
    stripped
}

#[test]
fn a_missing_permission_for_tun_is_named_by_gateway_and_client() {
    let _one = support::one_at_a_time().unwrap();
    let cluster = Cluster::start(&Plan::small("permission")).unwrap();
    let run = &cluster.run;
    let host = &cluster.network.gateways[0];
    let identity = cluster.pki.issue("gateway", "gw9", &[host.wan.to_string()]).unwrap();
    let gateway = programs::gateway(
        &Build::default(),
        host,
        "gw9",
        &identity,
        &cluster.network.controls,
        "[tun]\nname = \"jump9\"\n",
        run.path(),
    )
    .unwrap();
    fails_saying(without_net_admin(host, &gateway), run, &["tun", "CAP_NET_ADMIN"]);
    let device = &cluster.network.devices[0];
    let client = programs::device(&Build::default(), device, &cluster.state_dir(0)).unwrap();
    fails_saying(without_net_admin(device, &client), run, &["tun", "CAP_NET_ADMIN"]);
}

#[test]
fn an_expired_certificate_is_named_with_the_command_that_issues_another() {
    let _one = support::one_at_a_time().unwrap();
    let run = RunDir::create("expired").unwrap();
    let network = lone_network(&run);
    let pki = Pki::init(&run.path().join("pki")).unwrap();
    let host = &network.gateways[0];
    let identity = pki.issue_for("gateway", "gw1", &[host.wan.to_string()], Some("1s")).unwrap();
    // Certificates count in whole seconds.
    std::thread::sleep(Duration::from_millis(2100));
    let gateway =
        programs::gateway(&Build::default(), host, "gw1", &identity, &network.controls, "", run.path())
            .unwrap();
    fails_saying(gateway, &run, &["expired", "jump-control pki issue"]);
}

#[test]
fn a_device_that_may_not_attach_is_told_why() {
    let _one = support::one_at_a_time().unwrap();
    let cluster =
        Cluster::start(&Plan { devices: 3, ..Plan::small("refused") }.with_store(Store::Embedded)).unwrap();
    let (run, network) = (&cluster.run, &cluster.network);
    let up =
        |i: usize| programs::device(&Build::default(), &network.devices[i], &cluster.state_dir(i)).unwrap();

    // A key that nobody enrolled.
    let other = "07".repeat(32);
    fs::write(cluster.state_dir(0).join("device.key"), format!("{other}\n")).unwrap();
    fails_saying(up(0), run, &["unknown", "enrol"]);

    // A revoked one.
    let devices = cluster.operator.json(&network.controls[0], &["devices", "list"]).unwrap();
    let key =
        devices.iter().find(|d| d["name"] == "device-2").unwrap()["device_key"].as_str().unwrap().to_owned();
    cluster.operator.json(&network.controls[0], &["devices", "revoke", "--yes", &key]).unwrap();
    fails_saying(up(1), run, &["revoked"]);

    // A session that control does not know: the client says so and starts another, explicitly.
    let state = cluster.state_dir(2).join("session.json");
    let session = "00000000-0000-4000-8000-000000000001";
    fs::write(
        &state,
        format!(
            r#"{{"session_id":"{session}","epoch":3,"attach_seq":9,"inner_addresses":["10.77.0.9"],"roster":[]}}"#
        ),
    )
    .unwrap();
    let device = Process::spawn("dev3", up(2), run.path()).unwrap();
    let (_, mark) = device
        .wait_for("that the session is unknown", Mark::default(), support::SOON, |line| {
            line.contains("UNKNOWN_SESSION")
        })
        .unwrap();
    let (line, _) = device
        .wait_for("a new session", mark, support::SOON, |line| line.contains(r#""event":"attached""#))
        .unwrap();
    assert!(!line.contains(session), "{line}");

    // And an operator who asks for it.
    let get = cluster.operator.command(&network.controls[0], &["ownership", "get", session]).unwrap();
    fails_saying(get, run, &[session, "not found"]);
}
