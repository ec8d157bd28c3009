//! Runs a scenario: builds, attaches, breaks, heals, measures, judges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jump_crypto::keys::DeviceSecret;
use jump_session::client::Tuning;
use rustix::process::Signal;

use super::audited;
use super::environment::Environment;
use super::measure::{self, Fault};
use super::report::{Done, Moment, Report, Verdict};
use super::schedule::{Act, Step, schedule};
use super::stage::{Stage, addresses, relay_address};
use super::{Scenario, StoreKind};
use crate::lab::cluster::{Builds, Cluster, Plan, Store};
use crate::lab::enrol::enrol;
use crate::lab::etcd::wait_until;
use crate::lab::fleet::{self, Fleet, FleetPlan, Group, Record, Traffic};
use crate::lab::flood;
use crate::lab::histogram::millis;
use crate::lab::history::{Violation, check_forwards, check_register};
use crate::lab::network::ReturnRoute;
use crate::lab::overhead::Overhead;
use crate::lab::probe::EchoServer;
use crate::lab::process::Process;
use crate::lab::reader::{Readers, sessions};
use crate::lab::relay::Relay;
use crate::lab::witness::{Witness, clock_offset, operations};

/// How long the last probes have to come back.
const LAST_ECHO_MAX: Duration = Duration::from_secs(5);
/// Time between two moments of the timeline.
const MOMENT_EVERY: Duration = Duration::from_millis(100);
/// Time between two lines of progress.
const PROGRESS_EVERY: u32 = 20;
/// Threads that carry the devices.
const LANES: u32 = 2;
const ECHO_PORT: u16 = 7;
/// How much later than it left a capture may have seen a packet: the kernel's queues under load.
const CAPTURE_SLACK: Duration = Duration::from_millis(2);
/// Violations that are spelled out.
const TOLD_MAX: usize = 20;

/// Runs `scenario` and returns its report; progress goes to stderr.
///
/// # Errors
/// When the lab cannot be built or fails; what the system under test does wrong is in the report.
pub fn run(scenario: &Scenario, is_full: bool) -> Result<Report> {
    let environment = Environment::capture();
    let steps = schedule(scenario);
    let mut cluster = Cluster::start(&plan(scenario)?)?;
    if scenario.topology.control_aside {
        let stores = cluster.etcd.iter().flat_map(|etcd| &etcd.nodes);
        stores.chain(&cluster.controls).try_for_each(Process::give_way)?;
    }
    let result = run_on(scenario, is_full, environment, steps, &mut cluster);
    if result.as_ref().map_or(true, |report| !report.passes()) {
        cluster.run.keep();
    }
    result
}

fn run_on(
    scenario: &Scenario,
    is_full: bool,
    environment: Environment,
    steps: Vec<Step>,
    cluster: &mut Cluster,
) -> Result<Report> {
    for gateway in started(scenario)..cluster.gateways.len() {
        cluster.gateways[gateway].signal(Signal::TERM)?;
        cluster.gateways[gateway].wait_end(Duration::from_secs(30))?;
    }
    let routed: Vec<_> = (0..cluster.gateways.len()).map(|gateway| gateway < started(scenario)).collect();
    cluster.network.route_back_among(&routed)?;
    let count: usize = scenario.devices.iter().map(|group| group.count).sum();
    fleet::route(&cluster.network.devices[0], &cluster.network.gateways)?;
    let identity = cluster.operator.identity().clone();
    let enrolling = Instant::now();
    let keys = enrol(&cluster.network.controls[0], &identity, count, |done| {
        if done % 1000 == 0 {
            eprintln!("  enrolled {done} of {count} after {:.1} s", enrolling.elapsed().as_secs_f64());
        }
    })?;
    let known: Vec<_> = keys.iter().take(64).map(|key| DeviceSecret::from_bytes(*key.expose())).collect();
    if steps.iter().any(|step| matches!(step.act, Act::Flood { .. })) {
        flood::route(&cluster.network.devices[0], &cluster.network.gateways)?;
    }
    let echo = EchoServer::start(&cluster.network.inner, ECHO_PORT)?;
    // Before anything else is at work.
    let overhead = match scenario.relay {
        Some(_) => Some(cluster.network.devices[0].namespace.enter(Overhead::measure)??),
        None => None,
    };
    let relays = relays(scenario, cluster)?;
    let witness = match scenario.witness {
        true => {
            let lengths: BTreeSet<_> = scenario.devices.iter().map(|group| group.probe_bytes).collect();
            let lengths: Vec<_> = lengths.into_iter().collect();
            Some(Witness::start(&cluster.network, &cluster.network.devices[0], &lengths, ECHO_PORT)?)
        }
        false => None,
    };
    let fleet = Fleet::start(
        &cluster.network.devices[0],
        fleet_plan(scenario, cluster, keys, &relays, echo.address())?,
    )?;
    attach_all(scenario, &fleet)?;
    std::thread::sleep(Duration::from_secs_f64(scenario.times.warm_up));
    let readers = match scenario.witness {
        true => {
            let sessions = sessions(&cluster.network.controls[0], &identity)?;
            Some(Readers::start(&cluster.network.controls, &identity, sessions, scenario.seed)?)
        }
        false => None,
    };

    let begin = fleet::clock();
    let mut stage = stage(cluster, &fleet, &relays, &known, scenario)?;
    let (timeline, done) = with_timeline(&fleet, begin, || perform(scenario, &mut stage, &steps, begin));
    let done = done?;
    let end = fleet::clock();
    // What is under way at the end is not lost: once this phase has ended nobody sends any more.
    for group in 0..scenario.devices.len() {
        fleet.pace(group, None);
    }
    stage.end_phase()?;
    let back = || fleet.counts().answered >= fleet.counts().sent;
    let _ = wait_until("every echo is back", LAST_ECHO_MAX, back);
    stage.answer_late(fleet.phase()?.late);
    let counts = std::mem::take(&mut stage.counts);
    let (phases, flood_memory, flooded) = (stage.phases, stage.flood_memory, stage.flooded);
    let reads = readers.map(Readers::stop);
    let records = fleet.stop()?;
    drop(relays);

    let faults = faults(&done, begin, end);
    let intervals: Vec<_> = scenario.devices.iter().map(|d| Duration::from_millis(d.probe_ms)).collect();
    let recoveries = measure::recoveries(&records, &faults, &intervals);
    let mut metrics = measure::of_records(&records, end, scenario.probe_interval());
    measure::add_rest(&mut metrics, &phases, &recoveries, scenario.devices.len());
    measure::add_counts(&mut metrics, &records, &counts, begin);
    measure::add_interruptions(&mut metrics, &records, &intervals);
    if !flood_memory.is_empty() {
        let growth = flood_memory.iter().map(|(before, after)| after.saturating_sub(*before)).max();
        metrics.insert("flood.memory_growth_mib".into(), growth.unwrap_or(0) as f64 / f64::from(1 << 20));
        let bytes = flood::bytes(&cluster.network.devices[0])?;
        metrics.insert("flood.sent".into(), flooded as f64);
        metrics.insert("flood.amplification".into(), bytes.back as f64 / bytes.out.max(1) as f64);
    }
    // Telemetry has told by now: what waits for company waits for milliseconds.
    let trail = cluster.audit_trail()?;
    audited::add(&mut metrics, &records, trail.lines());
    let mut violations = of_sessions(&records);
    if let Some(witness) = witness {
        violations.extend(check_histories(witness, &records, &reads.unwrap_or_default(), &mut metrics));
    }
    let verdicts = scenario.criteria.iter().map(|criterion| Verdict::of(criterion, &metrics)).collect();
    Ok(Report {
        scenario: scenario.clone(),
        is_full,
        environment,
        schedule: steps,
        done,
        metrics,
        verdicts,
        recoveries,
        relay: overhead,
        timeline,
        gaps: measure::longest_gaps(&records, begin),
        violations,
    })
}

/// How many gateways run from the beginning.
fn started(scenario: &Scenario) -> usize {
    scenario.topology.gateways_started.unwrap_or(scenario.topology.gateways)
}

fn plan(scenario: &Scenario) -> Result<Plan> {
    let topology = &scenario.topology;
    Ok(Plan {
        label: "scenario",
        store: match topology.store {
            StoreKind::Embedded => Store::Embedded,
            StoreKind::Etcd => Store::Etcd,
        },
        gateways: topology.gateways,
        devices: 1,
        return_route: ReturnRoute::Ecmp,
        control_settings: toml::to_string(&topology.control)?,
        gateway_settings: toml::to_string(&topology.gateway)?,
        audit: true,
        dual_stack: false,
        builds: Builds::default(),
    })
}

fn fleet_plan(
    scenario: &Scenario,
    cluster: &Cluster,
    keys: Vec<DeviceSecret>,
    relays: &[Relay],
    echo: SocketAddr,
) -> Result<FleetPlan> {
    let SocketAddr::V4(to) = echo else { anyhow::bail!("the lab's inner network is IPv4") };
    let mut gateways = addresses(cluster);
    gateways.truncate(started(scenario));
    let group = |group: &super::Devices| {
        let every = (group.probe_ms > 0).then(|| Duration::from_millis(group.probe_ms));
        let gap_above = every.map_or(Duration::MAX, measure::gap_above);
        Group {
            devices: group.count,
            starts_per_second: (!group.wait).then_some(group.starts_per_second),
            traffic: Traffic {
                every,
                burst: group.traffic_burst(),
                length: group.probe_bytes,
                to,
                gap_above,
            },
            tuning: Tuning::default(),
            aside: group.aside,
        }
    };
    Ok(FleetPlan {
        keys,
        profile: cluster.state_dir(0),
        via: gateways.iter().copied().zip(relays.iter().map(Relay::address)).collect(),
        gateways,
        groups: scenario.devices.iter().map(group).collect(),
        lanes: LANES,
        seed: scenario.seed,
    })
}

fn relays(scenario: &Scenario, cluster: &Cluster) -> Result<Vec<Relay>> {
    let Some(plan) = scenario.relay else { return Ok(Vec::new()) };
    let host = &cluster.network.devices[0];
    let start = |(i, gateway): (usize, SocketAddr)| {
        host.namespace.enter(|| {
            let socket = std::net::UdpSocket::bind(relay_address(i)).context("the relay's socket")?;
            Relay::start(socket, gateway, plan.up, plan.down, scenario.seed.wrapping_add(i as u64))
        })?
    };
    addresses(cluster).into_iter().enumerate().map(start).collect()
}

fn stage<'a>(
    cluster: &'a mut Cluster,
    fleet: &'a Fleet,
    relays: &'a [Relay],
    known: &'a [DeviceSecret],
    scenario: &Scenario,
) -> Result<Stage<'a>> {
    let gateways = cluster.gateways.len();
    // What came before belongs to no phase.
    fleet.phase()?;
    Ok(Stage {
        cluster,
        fleet,
        relays,
        known,
        seed: scenario.seed,
        routed: (0..gateways).map(|gateway| gateway < started(scenario)).collect(),
        paused: vec![Vec::new(); gateways],
        store_down: Vec::new(),
        store_paused: Vec::new(),
        flood: None,
        flooded: 0,
        flood_memory: Vec::new(),
        counts: Vec::new(),
        phases: Vec::new(),
        phase: "all".to_owned(),
    })
}

/// Waits until every device that starts by itself is attached, and says how it goes.
fn attach_all(scenario: &Scenario, fleet: &Fleet) -> Result<()> {
    let wanted: usize = scenario.devices.iter().filter(|group| !group.wait).map(|group| group.count).sum();
    let start = Instant::now();
    let mut last = Instant::now();
    while (fleet.counts().born as usize) < wanted {
        let counts = fleet.counts();
        if start.elapsed().as_secs_f64() > scenario.times.ramp_max {
            eprintln!("  only {} of {wanted} are attached; going on", counts.born);
            return Ok(());
        }
        if last.elapsed() > MOMENT_EVERY * PROGRESS_EVERY {
            last = Instant::now();
            eprintln!(
                "  {:6.1} s  attached {} of {wanted}; {} attempts, {} rejected",
                start.elapsed().as_secs_f64(),
                counts.born,
                counts.attempts,
                counts.rejected
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("  {wanted} attached after {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Carries out the schedule in time, then lets everybody settle.
fn perform(scenario: &Scenario, stage: &mut Stage<'_>, steps: &[Step], begin: Duration) -> Result<Vec<Done>> {
    let mut done = Vec::new();
    for step in steps {
        let due = begin + Duration::from_millis(step.at_ms);
        std::thread::sleep(due.saturating_sub(fleet::clock()));
        let at = fleet::clock();
        let text = stage.act(step).with_context(|| format!("{step:?}"))?;
        let one = Done {
            at_ms: millis(at - begin),
            took_ms: millis(fleet::clock() - at),
            cause: step.cause.clone(),
            ends: step.ends,
            text,
        };
        let mark = if one.ends { "over" } else { "" };
        eprintln!("  {:8.1} s  {} {} {mark}", one.at_ms / 1000.0, one.cause, one.text);
        done.push(one);
    }
    let end = begin + Duration::from_secs_f64(scenario.times.run + scenario.times.settle);
    std::thread::sleep(end.saturating_sub(fleet::clock()));
    Ok(done)
}

/// Runs `body` while a thread notes the totals.
fn with_timeline<T>(fleet: &Fleet, begin: Duration, body: impl FnOnce() -> T) -> (Vec<Moment>, T) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let noting = scope.spawn(|| {
            let mut moments: Vec<Moment> = Vec::new();
            let mut ticks = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let counts = fleet.counts();
                moments.push(Moment {
                    at_ms: millis(fleet::clock().saturating_sub(begin)),
                    born: counts.born,
                    reattached: counts.reattached,
                    sent: counts.sent,
                    answered: counts.answered,
                    terminated: counts.terminated,
                });
                if ticks.is_multiple_of(5 * PROGRESS_EVERY) {
                    eprintln!(
                        "  {:8.1} s  {} sessions, {} ended, {} reattached, {} of {} probes answered",
                        millis(fleet::clock().saturating_sub(begin)) / 1000.0,
                        counts.born - counts.terminated,
                        counts.terminated,
                        counts.reattached,
                        counts.answered,
                        counts.sent
                    );
                }
                ticks += 1;
                std::thread::sleep(MOMENT_EVERY);
            }
            moments
        });
        let result = body();
        stop.store(true, Ordering::Relaxed);
        (noting.join().unwrap_or_default(), result)
    })
}

/// Steps after which devices may have to recover, with the time that belongs to each.
fn faults(done: &[Done], begin: Duration, end: Duration) -> Vec<Fault> {
    let quiet = ["phase", "paced", "released", "impaired", "moved", "flood"];
    let starts: Vec<_> =
        done.iter().filter(|step| !step.ends && !quiet.contains(&step.cause.as_str())).collect();
    let at = |step: &Done| begin + Duration::from_secs_f64(step.at_ms / 1000.0);
    starts
        .iter()
        .enumerate()
        .map(|(i, step)| Fault {
            cause: step.cause.clone(),
            at: at(step),
            until: starts.get(i + 1).map_or(end, |next| at(next)),
        })
        .collect()
}

fn of_sessions(records: &[Record]) -> Vec<String> {
    let reset = records.iter().filter(|record| record.address_changed);
    reset.map(|record| format!("device {}: session id or inner address changed", record.device)).collect()
}

/// Checks what the witness saw and what control answered; returns violations in words.
fn check_histories(
    witness: Witness,
    records: &[Record],
    reads: &BTreeMap<String, Vec<crate::lab::history::Operation>>,
    metrics: &mut BTreeMap<String, f64>,
) -> Vec<String> {
    let offset = witness.offset();
    let drift = clock_offset().abs_diff(offset);
    let testimony = witness.stop(records);
    let slack = u64::try_from(CAPTURE_SLACK.as_nanos()).unwrap_or(0) + drift;
    let sessions = testimony.forwards.values().filter(|seen| !seen.is_empty()).count();
    let (mut forwards, mut attaches, mut read, mut overlaps, mut register) = (0, 0, 0, 0, 0);
    let mut largest = 0;
    let mut told = Vec::new();
    for record in records {
        let mut operations = operations(record, offset);
        attaches += operations.len();
        let session = record.session.map(|session| session.to_string()).unwrap_or_default();
        let own_reads = reads.get(&session).map(Vec::as_slice).unwrap_or_default();
        read += own_reads.len();
        operations.extend_from_slice(own_reads);
        let seen = testimony.forwards.get(&record.device).map(Vec::as_slice).unwrap_or_default();
        forwards += seen.len();
        // Without slack, for the figure; with it, for the verdict.
        for violation in check_forwards(seen, &operations, 0) {
            if let Violation::Overlap { by, .. } = violation {
                largest = largest.max(by);
            }
        }
        let late = check_forwards(seen, &operations, slack);
        let wrong = check_register(&operations);
        overlaps += late.len();
        register += wrong.len();
        told.extend(late.into_iter().chain(wrong).map(|v| format!("session {session}: {v:?}")));
    }
    let mut set = |name: &str, value: f64| {
        metrics.insert(name.to_owned(), value);
    };
    set("history.sessions", sessions as f64);
    set("history.forwards", forwards as f64);
    set("history.unattributed", testimony.unattributed as f64);
    set("history.capture_dropped", testimony.dropped as f64);
    set("history.attaches", attaches as f64);
    set("history.reads", read as f64);
    set("history.overlaps", overlaps as f64);
    set("history.largest_overlap_us", largest as f64 / 1000.0);
    set("history.register_violations", register as f64);
    told.truncate(TOLD_MAX);
    told
}
