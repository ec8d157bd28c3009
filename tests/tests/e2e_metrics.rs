//! What the running programs expose is documented, complete, and clean to Prometheus' own tool.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use jump_telemetry::metrics::{Kind, OWN, install};
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::network::ReturnRoute;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::programs::{METRICS_PORT, metric, metrics_page};
use jump_tests::support;

/// The pages of control, the gateway and the client while a session carries packets.
fn pages(label: &'static str) -> [(&'static str, String); 3] {
    let plan = Plan { gateways: 1, return_route: ReturnRoute::Gateway(0), ..Plan::small(label) };
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    cluster.up_with(0, &["--metrics-listen", &format!("127.0.0.1:{METRICS_PORT}")]).unwrap();
    let device = &cluster.network.devices[0];
    let probe = Probe::start(device, echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    wait_until("the round trip is known", support::SOON, || {
        metric(device, "jump_client_path_rtt_seconds", "").is_ok_and(|rtt| rtt > 0.0)
    })
    .unwrap();
    let page = |host| metrics_page(host).unwrap();
    let network = &cluster.network;
    [
        ("control", page(&network.controls[0])),
        ("gateway", page(&network.gateways[0])),
        ("client", page(device)),
    ]
}

/// The metrics that `docs/metrics.md` promises of every program and of this one, with their types.
fn documented(program: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"));
    let text = text.unwrap();
    let section = |name: &str| {
        let (_, rest) = text.split_once(&format!("<!-- begin: {name} -->")).unwrap();
        rest.split_once("<!-- end").unwrap().0.to_owned()
    };
    let rows = section("telemetry") + &section(program);
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.to_owned()))
    };
    rows.lines().filter_map(row).collect()
}

#[test]
fn running_programs_expose_what_is_documented_and_show_sessions_paths_and_generators() {
    let _one = support::one_at_a_time().unwrap();
    let pages = pages("metrics");
    for (program, page) in &pages {
        let documented = documented(program);
        let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let families: BTreeMap<_, _> = families.collect();
        assert!(families.len() > 10, "{program} exposes {families:?}");
        for (name, kind) in families {
            assert_eq!(documented.get(name).map(String::as_str), Some(kind), "{program}: {name}");
        }
    }
    let [(_, control), (_, gateway), (_, client)] = &pages;
    for (page, line) in [
        (control, "jump_entropy_healthy 1"),
        (gateway, "jump_entropy_healthy 1"),
        (client, "jump_entropy_healthy 1"),
        (control, "jump_entropy_failures_total{test=\"repetition_count\"} 0"),
        (gateway, "jump_gateway_sessions_by_state{state=\"ATTACHED\"} 1"),
        (gateway, "jump_gateway_sessions_by_state{state=\"DEGRADED\"} 0"),
        (client, "jump_client_state{state=\"ATTACHED\"} 1"),
        (client, "jump_client_state{state=\"VOLATILE\"} 0"),
        (client, "jump_client_path_transport{transport=\"udp\"} 1"),
        (client, "jump_client_attach_total{outcome=\"accepted\",reason=\"BIRTH\"} 1"),
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    let loss = client.lines().find(|line| line.starts_with("jump_client_path_loss_ratio{direction=\"up\"}"));
    let loss: f64 = loss.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap();
    assert!((0.0..1.0).contains(&loss), "{loss}");
}

/// What Prometheus' own tool says of a page must be nothing.
fn promtool_finds_no_fault_with(page: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: install it with apt-get install prometheus");
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{page}");
}

#[test]
#[ignore = "needs promtool; make test-observability installs and runs it"]
fn promtool_finds_no_fault_with_what_running_programs_expose() {
    let _one = support::one_at_a_time().unwrap();
    for (_, page) in pages("promtool") {
        promtool_finds_no_fault_with(&page);
    }
}

/// The metrics that every program has of its own telemetry, those too that no running program shows for want of trouble.
#[test]
#[ignore = "needs promtool; make test-observability installs and runs it"]
fn promtool_finds_no_fault_with_the_metrics_of_telemetry_itself() {
    let registry = install(&[]).expect("the only recorder");
    for definition in OWN.concat() {
        let labels: Vec<_> = definition.labels.iter().map(|label| (*label, "x")).collect();
        match definition.kind {
            Kind::Counter => definition.counter(&labels).increment(1),
            Kind::Gauge => definition.gauge(&labels).set(1.0),
            Kind::Histogram(_) => definition.histogram(&labels).record(0.1),
        }
    }
    promtool_finds_no_fault_with(&registry.render());
}
