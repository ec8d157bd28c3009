//! What Prometheus' own tool says about the metrics. Debian: `apt-get install prometheus`.

use std::io::Write;
use std::process::{Command, Stdio};

use jump_telemetry::metrics::{Kind, OWN, install};

#[test]
#[ignore = "needs promtool; make test-observability installs and runs it"]
fn promtool_finds_no_fault_with_the_metrics() {
    let registry = install(&[]).expect("the only recorder");
    for definition in OWN.concat() {
        let labels: Vec<_> = definition.labels.iter().map(|label| (*label, "x")).collect();
        match definition.kind {
            Kind::Counter => definition.counter(&labels).increment(1),
            Kind::Gauge => definition.gauge(&labels).set(1.0),
            Kind::Histogram(_) => definition.histogram(&labels).record(0.1),
        }
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: install it with apt-get install prometheus");
    let mut stdin = promtool.stdin.take().expect("piped");
    stdin.write_all(registry.render().as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
