//! A rolling restart of everything under a stream: no reset, no packet lost.

use std::time::{Duration, Instant};

use jump_tests::lab::cluster::{Cluster, Plan, Store};
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::network::ReturnRoute;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::support;
use rustix::process::Signal;

/// 50 Mbit/s.
const BYTES_PER_SECOND: u64 = 50_000_000 / 8;
/// A drain, a registration, or a download's rest on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until every probe that was sent has had a second to come back, and says how many did not.
fn lost_until_now(probe: &Probe, since: Instant) -> usize {
    let sent = probe.report_since(Some(since)).sent;
    // Those that are not back by then are lost.
    let _ = wait_until("every echo is back", Duration::from_secs(1), || {
        probe.report_since(Some(since)).answered >= sent
    });
    sent.saturating_sub(probe.report_since(Some(since)).answered)
}

#[test]
fn a_rolling_restart_of_all_gateways_and_control_replicas_resets_nothing_and_loses_no_packet() {
    let _one = support::one_at_a_time().unwrap();
    let mut plan = Plan::small("rolling").with_store(Store::Etcd);
    plan.return_route = ReturnRoute::Gateway(0);
    let mut cluster = Cluster::start(&plan).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let web = WebServer::start(&cluster.network.inner, 8080, BYTES_PER_SECOND).unwrap();
    let before = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(20, PATIENCE).unwrap();
    let start = Instant::now();
    // One connection after the other, so that there is always one whatever the machine's pace.
    let length = BYTES_PER_SECOND * support::scaled(15, 60) as u64;
    let mut downloads = Vec::new();
    let mut download = Download::start(&cluster.network.devices[0], web.address(), 9, length).unwrap();
    download.wait_for(BYTES_PER_SECOND, PATIENCE).unwrap();

    for i in 0..cluster.gateways.len() {
        if download.has_ended() {
            downloads.push(download.finish(PATIENCE).unwrap());
            download = Download::start(&cluster.network.devices[0], web.address(), 9, length).unwrap();
        }
        // What a routing daemon does before a gateway is told to end: its way back is withdrawn.
        let other = (i + 1) % cluster.gateways.len();
        cluster.network.route_back(ReturnRoute::Gateway(other)).unwrap();
        cluster.gateways[i].signal(Signal::TERM).unwrap();
        let status = cluster.gateways[i].wait_end(PATIENCE).unwrap();
        assert!(status.success(), "gateway {i} ended with {status}");
        cluster.gateways[i] = cluster.start_gateway(i).unwrap();
        cluster.wait_registered(i, PATIENCE).unwrap();
        probe.wait_for_echoes(100, PATIENCE).unwrap();
        eprintln!("gateway {i} restarted: {} probes unanswered so far", lost_until_now(&probe, start));
    }
    for i in 0..cluster.controls.len() {
        if download.has_ended() {
            downloads.push(download.finish(PATIENCE).unwrap());
            download = Download::start(&cluster.network.devices[0], web.address(), 9, length).unwrap();
        }
        cluster.controls[i].signal(Signal::TERM).unwrap();
        let status = cluster.controls[i].wait_end(PATIENCE).unwrap();
        assert!(status.success(), "control replica {i} ended with {status}");
        cluster.controls[i] = cluster.start_control(i).unwrap();
        probe.wait_for_echoes(100, PATIENCE).unwrap();
        eprintln!("control {i} restarted: {} probes unanswered so far", lost_until_now(&probe, start));
    }

    let lost = lost_until_now(&probe, start);
    let seen = probe.report_since(Some(start));
    downloads.push(download.finish(PATIENCE * 2).unwrap());
    let after = cluster.ownership(&before.session).unwrap();
    eprintln!(
        "{} probes, {lost} lost, longest gap {:?}; {} streams of {} MB, longest gap {:?}; epoch {} to {}",
        seen.sent,
        seen.longest_gap,
        downloads.len(),
        length / 1_000_000,
        downloads.iter().map(|one| one.longest_stall).max(),
        before.epoch,
        after.epoch
    );
    for one in &downloads {
        assert_eq!(one.digest, expected_digest(9, length), "a stream came through changed");
    }
    assert_eq!(after.inner_text(), before.inner_text(), "the inner addresses changed");
    assert_eq!(seen.send_errors, 0);
    assert_eq!(lost, 0, "of {} probes", seen.sent);
}
