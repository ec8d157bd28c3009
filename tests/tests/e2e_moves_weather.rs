//! A bad path changes a session's state, as the table says, and never the session.

use std::time::Duration;

use jump_session::policy::SessionPolicy;
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::moves::weather::{Chronicle, Weather, far, gone, lossy};
use jump_tests::support;

fn within_policy(chronicle: &Chronicle) {
    eprintln!("{chronicle:?}");
    let most = SessionPolicy::default().switches_per_minute_max as usize;
    assert!(chronicle.switches_per_minute_max <= most, "{chronicle:#?}");
}

#[test]
fn three_seconds_of_heavy_loss_and_a_far_uneven_way_change_no_session() {
    let _one = support::one_at_a_time().unwrap();
    let weather = Weather::start("weather-loss").unwrap();
    let (seed, length) = (3, 4 << 20);
    let web = WebServer::start(&weather.cluster.network.inner, 80, 512 << 10).unwrap();
    let device = &weather.cluster.network.devices[0];
    let download = Download::start(device, web.address(), seed, length).unwrap();

    let mark = weather.mark().unwrap();
    weather.set(lossy(0.3));
    std::thread::sleep(Duration::from_secs(3));
    within_policy(&weather.clear(mark).unwrap());

    let mark = weather.mark().unwrap();
    weather.set(far());
    std::thread::sleep(Duration::from_secs(support::scaled(5, 30) as u64));
    within_policy(&weather.clear(mark).unwrap());
    let done = download.finish(support::SOON * 3).unwrap();
    assert_eq!(done.digest, expected_digest(seed, length), "the connection inside lost something");
    assert_eq!(weather.probe.stop().duplicates, 0);
}

#[test]
fn a_path_that_comes_and_goes_every_second_is_left_without_flapping() {
    let _one = support::one_at_a_time().unwrap();
    let weather = Weather::start("weather-alternating").unwrap();
    let mark = weather.mark().unwrap();
    for second in 0..support::scaled(8, 60) {
        weather.set(if second % 2 == 0 { gone() } else { lossy(0.0) });
        std::thread::sleep(Duration::from_secs(1));
    }
    let chronicle = weather.clear(mark).unwrap();
    within_policy(&chronicle);
    let to_volatile =
        |(_, to, reason): &&(String, String, String)| to == "VOLATILE" && reason == "PATH_DEGRADED";
    assert!(chronicle.states.iter().any(|state| to_volatile(&state)), "{chronicle:#?}");
    // The way down, and the way back up, step by step.
    for (from, to) in [("VOLATILE", "DEGRADED"), ("DEGRADED", "VOLATILE"), ("VOLATILE", "ATTACHED")] {
        assert!(
            chronicle.states.iter().any(|(a, b, _)| (a.as_str(), b.as_str()) == (from, to)),
            "{chronicle:#?}"
        );
    }
    assert_eq!(chronicle.paths.first().map(String::as_str), Some("tcp"), "{chronicle:#?}");
    assert_eq!(weather.probe.stop().duplicates, 0);
}

#[test]
fn two_paths_of_which_one_at_a_time_is_good_for_a_second_stay_within_the_policy() {
    let _one = support::one_at_a_time().unwrap();
    let weather = Weather::start("weather-antiphase").unwrap();
    let mark = weather.mark().unwrap();
    for second in 0..support::scaled(8, 60) {
        let udp_is_good = second % 2 == 1;
        weather.set(if udp_is_good { lossy(0.0) } else { gone() });
        weather.block_tcp(udp_is_good).unwrap();
        std::thread::sleep(Duration::from_secs(1));
    }
    let chronicle = weather.clear(mark).unwrap();
    within_policy(&chronicle);
    assert!(!chronicle.paths.is_empty() || chronicle.attaches > 0, "nothing was left: {chronicle:#?}");
    assert_eq!(weather.probe.stop().duplicates, 0);
}
