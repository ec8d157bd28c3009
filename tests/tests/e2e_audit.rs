//! What happened to a session reads back from exported events alone, and receivers that fail reach nobody.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jump_control::keyring::KeyRings;
use jump_control::store::{EmbeddedStore, SharedStore};
use jump_crypto::entropy::{Entropy, OsEntropy};
use jump_crypto::key_ring::RingPolicy;
use jump_session::client::Tuning;
use jump_session::ids::SessionId;
use jump_telemetry::Correlation;
use jump_telemetry::timeline::{Entry, Timeline};
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::enrol::enrol;
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::fleet::{self, Fleet, FleetPlan, Group, Traffic};
use jump_tests::lab::network::{Host, ReturnRoute, WAN_LINK};
use jump_tests::lab::ownership::Ownership;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::process::{Mark, resident_bytes};
use jump_tests::lab::programs::{GATEWAY_PORT, metric};
use jump_tests::lab::receivers::{self, Receivers};
use jump_tests::lab::uplink::flush_connections;
use jump_tests::support;
use rustix::process::Signal;
use serde_json::Value;

/// What the test did, as far as a session's record must show it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Deed {
    Owned { epoch: u64, by: String, reason: String },
    Moved { epoch: u64, binding: u64, from: String, to: String, reason: String },
    Ended { reason: String },
}

#[test]
fn the_story_of_a_session_reads_back_exactly_from_the_exported_events_and_no_log_holds_a_key() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster =
        Cluster::start(&Plan { return_route: ReturnRoute::Ecmp, ..Plan::small("audit") }).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    // From the beginning: a flow that the kernel saw before its NAT would never be mapped.
    map_to(&cluster.network.devices[0], "41000-41999");
    let born = cluster.up(0).unwrap();
    let session = born.session.clone();
    let mut deeds = vec![owned(&born, "BIRTH")];
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();

    let owner = cluster.gateway_number(born.owner.as_deref().unwrap()).unwrap();
    let moves = |n: f64| {
        wait_until("the new path is validated", support::SOON, || {
            let host = &cluster.network.gateways[owner];
            metric(host, "jump_gateway_events_total", "path_moves\"").is_ok_and(|moves| moves == n)
        })
        .unwrap();
    };
    let moved = |binding, from: &str, to: &str, reason: &str| Deed::Moved {
        epoch: born.epoch,
        binding,
        from: from.to_owned(),
        to: to.to_owned(),
        reason: reason.to_owned(),
    };
    rebind(&cluster.network.devices[0]);
    moves(1.0);
    deeds.push(moved(1, "udp", "udp", "NAT_REBIND"));
    probe.wait_for_echoes(40, support::SOON).unwrap();

    block_udp(&cluster);
    moves(2.0);
    deeds.push(moved(2, "udp", "tcp", "TRANSPORT_CHANGED"));
    probe.wait_for_echoes(40, support::SOON).unwrap();

    cluster.signal_worker(owner, Signal::KILL).unwrap();
    // How the client noticed is its own affair; the store and the events must agree on it.
    let next = cluster.wait_owned_after(&born, support::SOON).unwrap();
    deeds.push(owned(&next, &next.reason));
    cluster.wait_registered(owner, support::SOON).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();

    let before = cluster.ownership(&session).unwrap();
    let node = before.owner.clone().unwrap();
    let control = &cluster.network.controls[0];
    cluster.operator.json(control, &["nodes", "drain", "--yes", &node]).unwrap();
    deeds.push(owned(&cluster.wait_owned_after(&before, support::SOON).unwrap(), "OPERATOR_MOVE"));
    probe.wait_for_echoes(40, support::SOON).unwrap();

    let devices = cluster.operator.json(control, &["devices", "list"]).unwrap();
    let key = devices[0]["device_key"].as_str().unwrap().to_owned();
    cluster.operator.json(control, &["devices", "revoke", "--yes", &key]).unwrap();
    deeds.push(Deed::Ended { reason: "KEY_REVOKED".to_owned() });
    cluster.devices[0].as_mut().unwrap().wait_end(support::SOON).unwrap();
    drop(probe);
    for process in cluster.gateways.iter_mut().chain(&mut cluster.controls) {
        process.signal(Signal::TERM).unwrap();
        process.wait_end(Duration::from_secs(30)).unwrap();
    }

    let lines = exported(cluster.run.path());
    let timeline = Timeline::build(session.parse().unwrap(), lines.iter().map(String::as_str));
    assert_eq!(read_back(&timeline), deeds, "{}", timeline.to_text());
    assert_eq!(timeline.missing, [], "{}", timeline.to_text());
    assert_eq!(timeline.unreadable, 0);
    only_the_transport_moved(&timeline, &lines, &session);
    let recovered = with_action(&timeline, "session_recovered");
    assert_eq!(recovered.len(), 2, "{}", timeline.to_text());
    assert!(recovered.iter().all(|entry| entry.without_service_micros.is_some_and(|micros| micros > 0)));
    for component in ["control", "gateway", "client"] {
        assert!(
            timeline.entries.iter().any(|entry| entry.component == component),
            "nothing from {component}"
        );
    }
    let events: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let correlation = Correlation::from(session.parse::<SessionId>().unwrap().correlation()).to_string();
    assert_eq!(timeline.correlation.as_deref(), Some(correlation.as_str()));
    for event in events.iter().filter(|event| event["unmapped"]["session"] == session.as_str()) {
        assert_eq!(event["metadata"]["correlation_uid"], correlation.as_str(), "{event}");
    }
    every_line_about_a_session_bears_its_correlation_id(cluster.run.path(), &session, &correlation);
    let attached: Vec<_> =
        events.iter().filter(|event| event["unmapped"]["action"] == "attach_accepted").collect();
    assert_eq!(attached.len(), 3);
    let device = cluster.network.devices[0].wan.to_string();
    assert!(attached.iter().all(|event| event["src_endpoint"]["ip"] == device.as_str()), "{attached:?}");
    let asked = events.iter().filter(|event| {
        event["api"]["operation"].as_str().is_some_and(|operation| operation.ends_with("/GetOwnership"))
    });
    let asked: Vec<_> = asked.map(|event| &event["metadata"]["correlation_uid"]).collect();
    assert!(!asked.is_empty() && asked.iter().all(|id| **id == correlation.as_str()), "{asked:?}");
    for (method, action) in [("DrainNode", "api_update"), ("RevokeDevice", "api_delete")] {
        let call = events.iter().find(|event| {
            event["unmapped"]["action"] == action
                && event["api"]["operation"].as_str().is_some_and(|operation| operation.ends_with(method))
        });
        let call = call.unwrap_or_else(|| panic!("no event tells of {method}"));
        assert_eq!(call["unmapped"]["actor"], "lab");
        assert_eq!(call["src_endpoint"]["ip"], control.wan.to_string().as_str());
    }
    the_cli_tells_the_same(&cluster, &session, &timeline);
    no_log_holds_a_key(cluster.run.path());
}

/// `jumpctl sessions timeline` as JSON, as text and as a picture, from the exported files.
fn the_cli_tells_the_same(cluster: &Cluster, session: &str, timeline: &Timeline) {
    let picture = cluster.run.path().join("timeline.svg");
    let mut arguments = vec!["sessions".to_owned(), "timeline".to_owned(), session.to_owned()];
    for file in event_files(cluster.run.path()) {
        arguments.extend(["--events".to_owned(), file.display().to_string()]);
    }
    let run = |more: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut command = cluster.operator.command(&cluster.network.controls[0], &arguments).unwrap();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json: Value = serde_json::from_str(&run(&["--output", "json"])).unwrap();
    assert_eq!(json, serde_json::to_value(timeline).unwrap());
    assert_eq!(run(&[]).trim_end(), timeline.to_text().trim_end());
    run(&["--svg", picture.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&picture).unwrap(), timeline.to_svg());
}

fn owned(ownership: &Ownership, reason: &str) -> Deed {
    let by = ownership.owner.clone().unwrap_or_default();
    Deed::Owned { epoch: ownership.epoch, by, reason: reason.to_owned() }
}

/// Maps the device's datagrams to these ports, as a NAT on the way does. Flows that it knows keep theirs until it forgets
/// them.
fn map_to(device: &Host, ports: &str) {
    let rules = format!(
        "table ip lab\ndelete table ip lab\ntable ip lab {{\nchain out {{\ntype nat hook postrouting priority srcnat\n\
         udp dport {GATEWAY_PORT} snat to {}:{ports}\n}}\n}}\n",
        device.wan
    );
    let status = device.namespace.command(Path::new("nft")).arg(rules).status().unwrap();
    assert!(status.success(), "nft: {status}");
}

/// The NAT forgets its flows and maps them anew.
fn rebind(device: &Host) {
    map_to(device, "42000-42999");
    device.namespace.enter(flush_connections).unwrap().unwrap();
}

/// From now on no UDP passes between the device and the gateways, in silence: a firewall in the way.
fn block_udp(cluster: &Cluster) {
    let drop = |host: &Host, direction: &str| {
        let rules = format!(
            "table ip lab_block {{\nchain {direction} {{\ntype filter hook {direction} priority 0\n\
             iifname \"{WAN_LINK}\" meta l4proto udp udp {} drop\n}}\n}}\n",
            if host.lan.is_unspecified() { "sport 51820-51822" } else { "dport { 51820, 51822 }" },
        );
        let status = host.namespace.command(Path::new("nft")).arg(rules).status().unwrap();
        assert!(status.success(), "nft: {status}");
    };
    // Where they arrive: a sender that is told so at once would know that nothing was sent.
    for host in cluster.network.gateways.iter().chain(&cluster.network.devices) {
        drop(host, "input");
    }
}

/// The gateway's word and the client's on the switch to TCP: the same transports, and the outer address of the client on
/// both paths is told by the gateway.
fn only_the_transport_moved(timeline: &Timeline, lines: &[String], session: &str) {
    let switches: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["unmapped"].clone())
        .filter(|ours| {
            ours["session"] == session
                && ours["action"] == "session_path_switched"
                && ours["new_path"]["transport"] == "tcp"
        })
        .collect();
    assert_eq!(switches.len(), 2, "{}", timeline.to_text());
    for switch in &switches {
        assert_eq!(switch["old_path"]["transport"], "udp");
        assert_eq!(switch["reason"], "TRANSPORT_CHANGED");
        if switch["component"] == "gateway" {
            let (old, new) = (&switch["old_path"]["client"], &switch["new_path"]["client"]);
            assert!(old.is_string() && new.is_string() && old != new, "{switch}");
        }
    }
}

/// Of control, both gateways and the client: no line that names the session lacks the id by which it is found.
fn every_line_about_a_session_bears_its_correlation_id(run: &Path, session: &str, correlation: &str) {
    let mut spoke = BTreeMap::new();
    for path in files_below(run).into_iter().filter(|path| path.extension().is_some_and(|end| end == "log")) {
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            if line["session"] == session {
                assert_eq!(line["correlation"], correlation, "{}: {line}", path.display());
                *spoke.entry(line["component"].to_string()).or_insert(0) += 1;
            } else if line["session_id"] == session {
                assert_eq!(line["correlation_id"], correlation, "{}: {line}", path.display());
            }
        }
    }
    assert_eq!(spoke.len(), 3, "control, gateway and client name the session: {spoke:?}");
}

/// The files to which programs exported events.
fn event_files(run: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_string_lossy().ends_with(".audit.json")).collect()
}

/// Every event that any program exported.
fn exported(run: &Path) -> Vec<String> {
    event_files(run)
        .into_iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

fn with_action<'a>(timeline: &'a Timeline, action: &str) -> Vec<&'a Entry> {
    timeline.entries.iter().filter(|entry| entry.action == action).collect()
}

/// The deeds that a timeline tells of.
fn read_back(timeline: &Timeline) -> Vec<Deed> {
    let deed = |entry: &Entry| match entry.action.as_str() {
        "session_born" | "session_owner_changed" => {
            Some(Deed::Owned { epoch: entry.epoch?, by: entry.node.clone()?, reason: entry.reason.clone()? })
        }
        // The client tells of the switches that it made, the owner of all.
        "session_path_switched" if entry.component == "gateway" => {
            let transport = |path: &str| path.split(' ').next().unwrap_or_default().to_owned();
            let (from, to) = entry.change.as_deref()?.split_once(" → ")?;
            Some(Deed::Moved {
                epoch: entry.epoch?,
                binding: entry.binding?,
                from: transport(from),
                to: transport(to),
                reason: entry.reason.clone()?,
            })
        }
        "session_terminated" => Some(Deed::Ended { reason: entry.reason.clone()? }),
        _ => None,
    };
    timeline.entries.iter().filter_map(deed).collect()
}

/// Every private key of the run, in the forms in which one could slip out, against everything that was written.
fn no_log_holds_a_key(run: &Path) {
    let mut secrets = Vec::new();
    let mut written = Vec::new();
    for path in files_below(run) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = || std::fs::read_to_string(&path).unwrap();
        if name.ends_with("-key.pem") {
            secrets.extend(text().lines().filter(|line| line.len() > 40).map(str::to_owned));
        } else if name == "device.key" {
            let hex = text().trim().to_owned();
            let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
            secrets.extend(forms(&std::array::from_fn(byte)));
        } else if name == "control.redb" {
            secrets.extend(keys_in(&path).iter().flat_map(forms));
        } else if name.ends_with(".log") || name.ends_with(".json") {
            written.push((name, text()));
        }
    }
    assert!(secrets.len() >= 14 && written.len() >= 5, "{} secrets, {} files", secrets.len(), written.len());
    for (name, text) in &written {
        for secret in &secrets {
            assert!(!text.contains(secret), "{name} holds a private key");
        }
        for word in ["PRIVATE KEY", "BEGIN RSA"] {
            assert!(!text.contains(word), "{name} holds {word}");
        }
    }
}

/// How a key looks when it slips out: as hexadecimal digits of either case, as base64, and as Rust prints bytes.
fn forms(key: &[u8; 32]) -> [String; 4] {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let printed = format!("{key:?}").trim_matches(['[', ']']).to_owned();
    // Without the end, where padding is a matter of taste.
    let base64 = BASE64.encode(key)[..42].to_owned();
    [hex.to_uppercase(), hex, printed, base64]
}

/// The cluster's handshake and grant keys.
fn keys_in(store: &Path) -> Vec<[u8; 32]> {
    let store: SharedStore = Arc::new(EmbeddedStore::open(store).unwrap());
    let entropy: Mutex<Box<dyn Entropy>> = Mutex::new(Box::new(OsEntropy::new().unwrap()));
    let policy = RingPolicy { announce_seconds: 60, overlap_seconds: 3600 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rings = runtime.block_on(KeyRings::load(&store, policy, false, &entropy)).unwrap();
    let cluster = rings.cluster.iter().map(|key| *key.expose());
    cluster.chain(rings.signers.iter().map(|key| *key.expose_seed())).collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn levels_of_single_targets_change_while_every_program_runs() {
    const LEVELS: &str = "h2=debug,info";
    let _one = support::one_at_a_time().unwrap();
    let mut cluster =
        Cluster::start(&Plan { gateways: 1, return_route: ReturnRoute::Gateway(0), ..Plan::small("levels") })
            .unwrap();
    let telemetry = cluster.state_dir(0).with_extension("telemetry.toml");
    std::fs::write(&telemetry, "[log]\nlevel = 'info'\n").unwrap();
    cluster.up(0).unwrap();
    let host = &cluster.network.controls[0];
    let levels = |arguments: &[&str]| cluster.operator.json(host, &[&["log-levels"], arguments].concat());
    let control = &cluster.controls[0];
    let is_debug = |line: &str| line.contains(r#""level":"debug""#);
    let of_h2 = |line: &str| is_debug(line) && line.contains(r#""target":"h2"#);

    // Over gRPC: renewals come every second, so frames do.
    assert_eq!(levels(&["get"]).unwrap()[0]["levels"], "info");
    assert_eq!(levels(&["set", LEVELS]).unwrap()[0]["levels"], LEVELS);
    control.wait_for("lines of h2", Mark::default(), support::SOON, of_h2).unwrap();
    assert!(levels(&["set", "h2=loud"]).unwrap_err().to_string().contains("h2=loud"));
    assert_eq!(levels(&["get"]).unwrap()[0]["levels"], LEVELS);
    assert_eq!(levels(&["reset"]).unwrap()[0]["levels"], "info");

    // From the settings, read again.
    cluster.set_log_levels(LEVELS).unwrap();
    std::fs::write(&telemetry, format!("[log]\nlevel = '{LEVELS}'\n")).unwrap();
    let device = cluster.devices[0].as_ref().unwrap();
    device.signal(Signal::HUP).unwrap();
    for process in [control, &cluster.gateways[0]] {
        process.wait_for("lines of h2", Mark::default(), support::SOON, of_h2).unwrap();
    }
    for process in [control, &cluster.gateways[0], device] {
        let changed = |line: &str| line.contains("changed by a signal") && line.contains(LEVELS);
        process.wait_for("the new levels", Mark::default(), support::SOON, changed).unwrap();
        let lines = process.lines_since(Mark::default());
        let unwanted: Vec<_> = lines.iter().filter(|line| is_debug(line) && !of_h2(line)).collect();
        assert!(unwanted.is_empty(), "{unwanted:?}");
    }
    std::fs::write(&telemetry, "[log]\nlevel = 'h2=loud'\n").unwrap();
    device.signal(Signal::HUP).unwrap();
    let refused = |line: &str| line.contains("log levels stay as they are") && line.contains("h2=loud");
    device.wait_for("what is wrong", Mark::default(), support::SOON, refused).unwrap();
    assert!(cluster.session_of(0).is_ok(), "the client has ended");
    let told = exported(cluster.run.path()).into_iter().any(|line| line.contains("LogService/SetLogLevels"));
    assert!(told, "no event tells who changed the levels");
}

/// Devices of the tests with broken receivers.
const DEVICES: usize = 40;

#[test]
fn receivers_that_stand_still_refuse_or_die_reach_no_session_and_every_drop_is_counted() {
    let _one = support::one_at_a_time().unwrap();
    let plan = Plan {
        return_route: ReturnRoute::Ecmp,
        control_settings: receivers::broken(),
        gateway_settings: receivers::broken(),
        ..Plan::small("sinks")
    };
    let cluster = Cluster::start(&plan).unwrap();
    let hosts = cluster.network.gateways.iter().chain(&cluster.network.controls);
    let _receivers: Vec<Receivers> = hosts.map(|host| Receivers::start(host).unwrap()).collect();
    let host = &cluster.network.devices[0];
    fleet::route(host, &cluster.network.gateways).unwrap();
    let keys = enrol(&cluster.network.controls[0], cluster.operator.identity(), DEVICES, |_| ()).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let std::net::SocketAddr::V4(to) = echo.address() else { panic!("an IPv4 lab") };
    let traffic = Traffic {
        every: Some(Duration::from_millis(50)),
        burst: None,
        length: 100,
        to,
        gap_above: Duration::from_millis(500),
    };
    let tuning = Tuning::default();
    let fleet = Fleet::start(
        host,
        FleetPlan {
            keys,
            profile: cluster.state_dir(0),
            gateways: cluster.network.gateways.iter().map(|g| g.wan_socket(GATEWAY_PORT)).collect(),
            via: BTreeMap::new(),
            groups: vec![Group {
                devices: DEVICES,
                starts_per_second: Some(50.0),
                traffic,
                tuning,
                aside: false,
            }],
            lanes: 1,
            seed: 3,
        },
    )
    .unwrap();
    let all = DEVICES as u64;
    wait_until("every device is attached", support::SOON, || fleet.counts().born == all).unwrap();
    cluster.signal_worker(0, Signal::KILL).unwrap();
    wait_until("half have another owner", support::SOON, || fleet.counts().reattached >= all / 2).unwrap();
    let answered = fleet.counts().answered;
    wait_until("probes come back", support::SOON, || fleet.counts().answered > answered + 20 * all).unwrap();

    let survivor = &cluster.network.gateways[1];
    let dropped = |sink: &str| metric(survivor, "jump_audit_sink_events_dropped_total", sink).unwrap_or(0.0);
    for sink in ["stalled-syslog", "refused-otlp", "killed-syslog"] {
        let waiting = metric(survivor, "jump_audit_sink_queue_events", sink).unwrap();
        assert!(waiting <= 16.0 + 512.0, "{sink}: {waiting} events wait");
    }
    for sink in ["refused-otlp", "killed-syslog"] {
        let failures = metric(survivor, "jump_audit_sink_failures_total", sink).unwrap();
        assert!(failures > 0.0, "{sink} looks healthy");
    }
    assert!(dropped("refused-otlp") > 0.0, "no drop was counted");
    assert!(resident_bytes(cluster.worker(1).unwrap()).unwrap() < 256 << 20);
    for record in fleet.stop().unwrap() {
        assert_eq!(record.terminated, None, "device {}", record.device);
        assert!(!record.address_changed, "device {}", record.device);
    }
}
