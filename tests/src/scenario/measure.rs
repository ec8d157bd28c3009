//! Numbers from what devices saw: recoveries by cause, totals, rates.

use std::collections::BTreeMap;
use std::time::Duration;

use jump_session::reason::Reason;

use super::report::{GapSeen, Recovery};
use super::stage::{Count, PhaseResult};
use crate::lab::fleet::{Gap, Record};
use crate::lab::histogram::{Histogram, Summary, millis};

/// A fault on the devices' clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is counted under.
    pub cause: String,
    /// When it began.
    pub at: Duration,
    /// When the next one began, or the run ended.
    pub until: Duration,
}

/// A device that sends no probes hears its owner at least this often: it asks after 15 s (the client's keepalive), and again
/// when no answer comes.
const KEEPALIVE_MAX: Duration = Duration::from_secs(18);

/// Devices that probe at this interval or a shorter one are there to time single moves.
const FINE_INTERVAL: Duration = Duration::from_millis(20);

/// Times without an echo above this are gaps, for a device that probes at `interval`. Where probes are coarse, a late one is
/// none yet.
pub fn gap_above(interval: Duration) -> Duration {
    interval * 2 + if interval <= FINE_INTERVAL { Duration::ZERO } else { Duration::from_millis(50) }
}

/// Adds how long each change of owner interrupted the echoes of the devices of each group that probes finely: the longest gap
/// that overlaps the attach and the half second after it. A change without a gap counts as one interval.
pub fn add_interruptions(metrics: &mut BTreeMap<String, f64>, records: &[Record], intervals: &[Duration]) {
    for (group, interval) in intervals.iter().enumerate() {
        if interval.is_zero() || *interval > FINE_INTERVAL {
            continue;
        }
        let members = records.iter().filter(|record| record.group == group);
        let times = members.flat_map(|record| {
            record.attaches.iter().filter(|attach| !attach.born).map(|attach| {
                let until = attach.at + Duration::from_millis(500);
                let gaps = record.gaps.iter().filter(|gap| gap.from < until && gap.to > attach.began);
                gaps.map(Gap::length).max().unwrap_or(*interval)
            })
        });
        let summary = Summary::of(times.collect::<Vec<_>>());
        metrics.insert(format!("interruption.g{group}.count"), summary.count as f64);
        metrics.insert(format!("interruption.g{group}.p50_ms"), summary.p50_ms);
        metrics.insert(format!("interruption.g{group}.p99_ms"), summary.p99_ms);
        metrics.insert(format!("interruption.g{group}.max_ms"), summary.max_ms);
    }
}

/// How even each count was, and the most owners that changed within one second since the count before.
pub fn add_counts(
    metrics: &mut BTreeMap<String, f64>,
    records: &[Record],
    counts: &[Count],
    begin: Duration,
) {
    let mut moves: Vec<Duration> = records
        .iter()
        .flat_map(|record| record.attaches.iter().filter(|attach| !attach.born).map(|attach| attach.at))
        .collect();
    moves.sort_unstable();
    let mut from = begin;
    for Count { name, at, sessions } in counts {
        let total: u64 = sessions.iter().sum();
        let mean = total as f64 / sessions.len().max(1) as f64;
        let most = sessions.iter().max().copied().unwrap_or(0) as f64;
        let since =
            &moves[moves.partition_point(|time| *time < from)..moves.partition_point(|time| time < at)];
        let within = |first: Duration| since.partition_point(|time| *time < first + Duration::from_secs(1));
        let busiest = since.iter().enumerate().map(|(i, first)| within(*first) - i).max().unwrap_or(0);
        metrics.insert(format!("count.{name}.gateways"), sessions.len() as f64);
        metrics.insert(format!("count.{name}.sessions"), total as f64);
        metrics.insert(format!("count.{name}.max_over_mean"), most / mean.max(1.0));
        metrics.insert(format!("count.{name}.moves"), since.len() as f64);
        metrics.insert(format!("count.{name}.moves_per_second_max"), busiest as f64);
        from = *at;
    }
}

/// Samples kept per cause for charts.
const SAMPLES_MAX: usize = 400;

/// Recovery times by cause. What ended a device's echoes did so within an `interval` of its probes after the last of them: a gap
/// counts for the last fault until then, as long as that fault's time lasts, otherwise for the first one that it overlaps.
pub fn recoveries(
    records: &[Record],
    faults: &[Fault],
    intervals: &[Duration],
) -> BTreeMap<String, Recovery> {
    let mut echoes: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut grants: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut attempts: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for record in records {
        for gap in &record.gaps {
            let overlaps = |fault: &&Fault| gap.from < fault.until && gap.to > fault.at;
            let began = gap.from + intervals.get(record.group).copied().unwrap_or_default();
            let last = faults.iter().rfind(|fault| overlaps(fault) && fault.at <= began);
            if let Some(fault) = last.or_else(|| faults.iter().find(overlaps)) {
                let since = fault.at.max(gap.from);
                echoes.entry(&fault.cause).or_default().push(gap.to - since);
            }
        }
        for attach in record.attaches.iter().filter(|attach| !attach.born) {
            let fault = faults.iter().find(|fault| attach.at >= fault.at && attach.at < fault.until);
            if let Some(fault) = fault {
                grants.entry(&fault.cause).or_default().push(attach.at - fault.at);
                attempts.entry(&fault.cause).or_default().push(attach.at.saturating_sub(attach.began));
            }
        }
    }
    let mut all: BTreeMap<String, Recovery> = BTreeMap::new();
    // A cause that nobody noticed is worth a line too.
    for fault in faults {
        all.entry(fault.cause.clone()).or_default();
    }
    for (cause, recovery) in &mut all {
        let mut times = echoes.remove(cause.as_str()).unwrap_or_default();
        times.sort_unstable();
        recovery.samples_ms = thinned(&times);
        recovery.first_echo = Summary::of(times);
        recovery.reattach = Summary::of(grants.remove(cause.as_str()).unwrap_or_default());
        recovery.attach = Summary::of(attempts.remove(cause.as_str()).unwrap_or_default());
    }
    all
}

/// Gaps kept for charts.
const GAPS_MAX: usize = 1000;

/// The longest gaps of all devices, in the order of their beginning, on a clock that begins at `begin`.
pub fn longest_gaps(records: &[Record], begin: Duration) -> Vec<GapSeen> {
    let since = |at: Duration| millis(at) - millis(begin);
    let mut all: Vec<_> =
        records.iter().flat_map(|record| record.gaps.iter().map(|gap| (record.device, *gap))).collect();
    all.sort_by_key(|(device, gap)| (std::cmp::Reverse(gap.length()), *device));
    all.truncate(GAPS_MAX);
    all.sort_by_key(|(device, gap)| (gap.from, *device));
    all.into_iter()
        .map(|(device, gap)| GapSeen { device, from_ms: since(gap.from), to_ms: since(gap.to) })
        .collect()
}

/// Evenly chosen samples of a sorted list, first and last included.
fn thinned(times: &[Duration]) -> Vec<f64> {
    if times.len() <= SAMPLES_MAX {
        return times.iter().map(|time| millis(*time)).collect();
    }
    let last = times.len() - 1;
    (0..SAMPLES_MAX).map(|i| millis(times[i * last / (SAMPLES_MAX - 1)])).collect()
}

/// The metrics that the records alone give. `end` is when the devices were stopped, `interval` the probes' one.
pub fn of_records(records: &[Record], end: Duration, interval: Duration) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    let mut set = |name: &str, value: f64| {
        metrics.insert(name.to_owned(), value);
    };
    let count = |wanted: &dyn Fn(&Record) -> bool| records.iter().filter(|r| wanted(r)).count() as f64;
    let sum = |of: &dyn Fn(&Record) -> u64| records.iter().map(of).sum::<u64>() as f64;
    let patience = (interval * 2).max(Duration::from_secs(3));
    set("sessions.planned", records.len() as f64);
    set("sessions.born", count(&|r| r.born.is_some()));
    set("sessions.lost", count(&|r| r.terminated.is_some_and(|(_, reason)| !is_policy(reason))));
    set("sessions.ended_by_policy", count(&|r| r.terminated.is_some_and(|(_, reason)| is_policy(reason))));
    set("sessions.reset", count(&|r| r.address_changed));
    // Attached, not ended, and still nothing comes back: no echo, and to a device that sends no probes no record of its owner.
    let is_silent = |r: &Record| match r.sent {
        0 => r.last_heard.is_none_or(|heard| heard + KEEPALIVE_MAX < end),
        _ => r.last_echo.is_none() || r.waiting_since.is_some_and(|since| since + patience < end),
    };
    set("sessions.not_back", count(&|r| r.born.is_some() && r.terminated.is_none() && is_silent(r)));
    set("sessions.moved", count(&|r| r.attaches.iter().any(|attach| !attach.born)));
    set("probes.sent", sum(&|r| r.sent));
    set("probes.answered", sum(&|r| r.answered));
    set("probes.lost", sum(&|r| r.sent.saturating_sub(r.answered)));
    set("probes.duplicates", sum(&|r| r.duplicates));
    set("probes.too_late", sum(&|r| r.too_late));
    set("probes.delivery", sum(&|r| r.answered) / sum(&|r| r.sent).max(1.0));
    set("attaches.accepted", sum(&|r| r.attaches.len() as u64));
    set("attaches.attempts", sum(&|r| r.attempts.len() as u64));
    set("attaches.rejected", sum(&|r| r.rejections.len() as u64));
    set("attaches.untrusted", sum(&|r| r.untrusted));
    set("rebinds", sum(&|r| r.rebinds));
    set("switches.max_per_minute", records.iter().map(switches_per_minute).max().unwrap_or(0) as f64);
    let groups = records.iter().map(|record| record.group).max().map_or(0, |last| last + 1);
    for group in 0..groups {
        let members: Vec<_> = records.iter().filter(|record| record.group == group).collect();
        let times: Vec<_> = members.iter().filter_map(|r| Some(r.born?.saturating_sub(r.started?))).collect();
        let started =
            members.iter().filter(|record| record.born.is_some() || !record.attempts.is_empty()).count();
        let soon = times.iter().filter(|time| **time <= Duration::from_secs(5)).count();
        let summary = Summary::of(times);
        set(&format!("attach.g{group}.p50_ms"), summary.p50_ms);
        set(&format!("attach.g{group}.p99_ms"), summary.p99_ms);
        set(&format!("attach.g{group}.max_ms"), summary.max_ms);
        set(&format!("attach.g{group}.within_5s"), soon as f64 / started.max(1) as f64);
    }
    metrics
}

/// Adds the metrics of phases and recoveries.
pub fn add_rest(
    metrics: &mut BTreeMap<String, f64>,
    phases: &[PhaseResult],
    recoveries: &BTreeMap<String, Recovery>,
    groups: usize,
) {
    for phase in phases {
        let name = &phase.name;
        metrics.insert(format!("delivery.{name}"), phase.answered as f64 / phase.sent.max(1) as f64);
        metrics.insert(format!("reattached.{name}"), phase.reattached as f64);
        for (group, histogram) in phase.round_trips.iter().take(groups).enumerate() {
            add_round_trip(metrics, &format!("rtt.{name}.g{group}"), histogram);
        }
    }
    for (cause, recovery) in recoveries {
        let summaries = [
            ("recovery", &recovery.first_echo),
            ("reattach", &recovery.reattach),
            ("reattach_own", &recovery.attach),
        ];
        for (what, summary) in summaries {
            metrics.insert(format!("{what}.{cause}.count"), summary.count as f64);
            metrics.insert(format!("{what}.{cause}.p50_ms"), summary.p50_ms);
            metrics.insert(format!("{what}.{cause}.p99_ms"), summary.p99_ms);
            metrics.insert(format!("{what}.{cause}.max_ms"), summary.max_ms);
        }
    }
    let worst = recoveries.values().map(|recovery| recovery.first_echo.max_ms).fold(0.0, f64::max);
    metrics.insert("recovery.max_ms".into(), worst);
}

fn add_round_trip(metrics: &mut BTreeMap<String, f64>, name: &str, histogram: &Histogram) {
    if histogram.count() > 0 {
        let summary = Summary::of_histogram(histogram);
        metrics.insert(format!("{name}.p50_ms"), summary.p50_ms);
        metrics.insert(format!("{name}.p99_ms"), summary.p99_ms);
    }
}

/// The most changes of owner of one session within any 60 seconds.
fn switches_per_minute(record: &Record) -> usize {
    let times: Vec<_> =
        record.attaches.iter().filter(|attach| !attach.born).map(|attach| attach.at).collect();
    let mut first = 0;
    let mut most = 0;
    for (last, at) in times.iter().enumerate() {
        while times[first] + Duration::from_secs(60) <= *at {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most
}

/// Whether a session that ended for this reason ended as its policy wants.
pub(super) fn is_policy(reason: Reason) -> bool {
    [Reason::LifetimeExceeded, Reason::SwitchRateExceeded, Reason::KeyRevoked, Reason::KeyExpired]
        .contains(&reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::fleet::Attach;

    fn attach(began: u64, at: u64) -> Attach {
        Attach {
            at: Duration::from_millis(at),
            began: Duration::from_millis(began),
            epoch: 2,
            node: "gw1".into(),
            incarnation: 1,
            gateway: ([192, 0, 2, 1], 1).into(),
            path: 1,
            reason: Reason::ClientRequest,
            born: false,
            timings: jump_session::client::Timings::default(),
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_gap_counts_for_the_fault_that_caused_it_from_the_moment_of_the_fault() {
        let faults = [
            Fault { cause: "a".into(), at: s(10), until: s(20) },
            Fault { cause: "b".into(), at: s(20), until: s(30) },
        ];
        let gaps =
            vec![Gap { from: s(9), to: s(12) }, Gap { from: s(21), to: s(22) }, Gap { from: s(5), to: s(6) }];
        let found = recoveries(&[Record { gaps, ..Record::default() }], &faults, &[s(1)]);
        assert_eq!(found["a"].first_echo.max_ms, 2000.0);
        assert_eq!(found["b"].first_echo.max_ms, 1000.0);
        assert_eq!((found["a"].first_echo.count, found["b"].first_echo.count), (1, 1));
    }

    #[test]
    fn a_gap_whose_last_echo_came_just_before_a_fault_is_not_put_on_the_fault_before() {
        let faults = [
            Fault { cause: "a".into(), at: s(10), until: s(20) },
            Fault { cause: "b".into(), at: s(20), until: s(30) },
        ];
        let ms = Duration::from_millis;
        // The first ends by the second fault's doing; the other began while nothing but the first had happened.
        let gaps = vec![Gap { from: ms(19_950), to: ms(20_400) }, Gap { from: ms(18_000), to: ms(21_000) }];
        let found = recoveries(&[Record { gaps, ..Record::default() }], &faults, &[ms(100)]);
        assert_eq!((found["b"].first_echo.count, found["b"].first_echo.max_ms), (1, 400.0));
        assert_eq!((found["a"].first_echo.count, found["a"].first_echo.max_ms), (1, 3000.0));
    }

    #[test]
    fn a_change_of_owner_interrupts_for_the_longest_gap_around_it_and_for_an_interval_without_one() {
        let ms = Duration::from_millis;
        let gap = |from, to| Gap { from: ms(from), to: ms(to) };
        let record = Record {
            attaches: vec![attach(1000, 1010), attach(5000, 5010)],
            gaps: vec![gap(1005, 1035), gap(900, 1001), gap(3000, 3900)],
            ..Record::default()
        };
        let mut metrics = BTreeMap::new();
        add_interruptions(&mut metrics, std::slice::from_ref(&record), &[ms(5)]);
        assert_eq!(metrics["interruption.g0.count"], 2.0);
        assert_eq!(metrics["interruption.g0.max_ms"], 101.0);
        metrics.clear();
        add_interruptions(&mut metrics, &[record], &[ms(100)]);
        assert!(metrics.is_empty(), "coarse probes do not time a move");
    }

    #[test]
    fn a_count_tells_how_even_it_was_and_the_busiest_second_since_the_one_before() {
        let attaches = [1_000, 3_000, 3_400, 3_900, 4_100, 9_000].map(|at| attach(at, at)).to_vec();
        let records = [Record { attaches, ..Record::default() }];
        let count = |name: &str, at, sessions| Count { name: name.into(), at: s(at), sessions };
        let mut metrics = BTreeMap::new();
        let counts = [count("a", 2, vec![3, 1]), count("b", 8, vec![2, 2, 2])];
        add_counts(&mut metrics, &records, &counts, s(0));
        assert_eq!((metrics["count.a.max_over_mean"], metrics["count.b.max_over_mean"]), (1.5, 1.0));
        assert_eq!((metrics["count.a.moves"], metrics["count.b.moves"]), (1.0, 4.0));
        assert_eq!(metrics["count.b.moves_per_second_max"], 3.0);
    }

    #[test]
    fn the_longest_gaps_are_kept_in_the_order_of_their_beginning_and_may_begin_before_the_clock() {
        let gaps = |device, length: u64| Record {
            device,
            gaps: (0..600).map(|i| Gap { from: s(i * 10), to: s(i * 10 + length) }).collect(),
            ..Record::default()
        };
        let kept = longest_gaps(&[gaps(1, 2), gaps(2, 5)], s(15));
        assert_eq!(kept.len(), GAPS_MAX);
        assert_eq!(kept.iter().filter(|gap| gap.device == 2).count(), 600);
        assert!(kept.windows(2).all(|pair| pair[0].from_ms <= pair[1].from_ms));
        assert_eq!((kept[0].from_ms, kept[0].to_ms), (-15_000.0, -13_000.0));
    }

    #[test]
    fn a_device_that_waits_for_an_echo_at_the_end_is_not_back_and_one_that_is_silent_by_choice_is() {
        let born = Record { born: Some(s(1)), sent: 9, last_echo: Some(s(50)), ..Record::default() };
        let gone = Record { waiting_since: Some(s(51)), ..born.clone() };
        let under_way = Record { waiting_since: Some(s(59)), ..born.clone() };
        let never = Record { last_echo: None, ..born.clone() };
        let metrics = of_records(&[gone, under_way, born, never], s(60), s(1));
        assert_eq!(metrics["sessions.not_back"], 2.0);
    }

    #[test]
    fn a_device_without_probes_is_back_when_it_heard_its_owner_within_a_keepalive() {
        let heard = |last_heard| Record {
            born: Some(s(1)),
            attaches: vec![attach(1, 1)],
            last_heard,
            ..Record::default()
        };
        let records = [heard(Some(s(45))), heard(Some(s(41))), heard(None), Record::default()];
        let metrics = of_records(&records, s(60), s(1));
        assert_eq!((metrics["sessions.not_back"], metrics["sessions.moved"]), (2.0, 3.0));
    }

    #[test]
    fn a_session_that_ended_without_policy_is_lost() {
        let ended = |reason| Record { terminated: Some((s(1), reason)), ..Record::default() };
        let metrics = of_records(
            &[ended(Reason::RecoveryWindowExceeded), ended(Reason::LifetimeExceeded)],
            s(60),
            s(1),
        );
        assert_eq!((metrics["sessions.lost"], metrics["sessions.ended_by_policy"]), (1.0, 1.0));
    }
}
