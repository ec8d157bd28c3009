//! What metrics endpoints say (the Prometheus text format).

use std::collections::BTreeMap;

/// One endpoint's series at one moment.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    series: BTreeMap<String, f64>,
}

impl Scrape {
    pub(super) fn parse(text: &str) -> Self {
        let of = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self { series: text.lines().filter(|line| !line.starts_with('#')).filter_map(of).collect() }
    }

    /// The sum over all series of that name whose labels contain `label`; `None` when there is no such series.
    fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let found = self.series.iter().filter(|(series, _)| {
            series
                .strip_prefix(name)
                .is_some_and(|rest| (rest.is_empty() || rest.starts_with('{')) && rest.contains(label))
        });
        found.map(|(_, value)| *value).reduce(|a, b| a + b)
    }

    /// Cumulative counts of a histogram by upper bound.
    fn buckets(&self, name: &str, label: &str) -> Vec<(f64, f64)> {
        let prefix = format!("{name}_bucket{{");
        let bound = |series: &str| {
            let (_, rest) = series.split_once("le=\"")?;
            let (bound, _) = rest.split_once('"')?;
            if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() }
        };
        let found =
            self.series.iter().filter(|(series, _)| series.starts_with(&prefix) && series.contains(label));
        found.filter_map(|(series, count)| Some((bound(series)?, *count))).collect()
    }
}

/// Adds what the endpoints say of the time between two looks.
pub(super) fn add(metrics: &mut BTreeMap<String, f64>, before: &[Scrape], after: &[Scrape]) {
    let total = |scrapes: &[Scrape], name, label| -> f64 {
        scrapes.iter().filter_map(|scrape| scrape.sum(name, label)).sum()
    };
    // A program that was started again counts from nothing.
    let grown = |name: &str, label: &str| -> f64 {
        let pairs = before.iter().zip(after);
        pairs
            .map(|(before, after)| {
                let (old, new) =
                    (before.sum(name, label).unwrap_or(0.0), after.sum(name, label).unwrap_or(0.0));
                if new >= old { new - old } else { new }
            })
            .sum()
    };
    let mut set = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
    set("attaches.accepted", grown("jump_control_attach_total", "outcome=\"accepted\""));
    set("attaches.rejected", grown("jump_control_attach_total", "outcome=\"rejected\""));
    set(
        "audit.dropped",
        grown("jump_audit_events_dropped_total", "") + grown("jump_audit_sink_events_dropped_total", ""),
    );
    set("gateways.forwarding", total(after, "jump_gateway_guard_holds", ""));
    set("sessions.carried", total(after, "jump_gateway_sessions", ""));
    // Every replica sees all of them.
    let released = |scrape: &Scrape| scrape.sum("jump_control_sessions", "phase=\"released\"");
    let most = |scrapes: &[Scrape]| scrapes.iter().filter_map(released).reduce(f64::max);
    if let Some(now) = most(after) {
        set("sessions.released", (now - most(before).unwrap_or(0.0)).max(0.0));
    }
    for (name, share) in [("attach.live.p50_ms", 0.5), ("attach.live.p99_ms", 0.99)] {
        if let Some(seconds) = percentile(before, after, share) {
            set(name, seconds * 1000.0);
        }
    }
}

/// The upper bound of the bucket that holds this share of the attaches accepted meanwhile; `None` without any.
fn percentile(before: &[Scrape], after: &[Scrape], share: f64) -> Option<f64> {
    let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
    let buckets = |scrape: &Scrape| {
        let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
        for (bound, count) in scrape.buckets("jump_control_attach_seconds", "outcome=\"accepted\"") {
            // Bounds are positive, and so ordered as their bits are.
            *counts.entry(bound.to_bits()).or_default() += count;
        }
        counts
    };
    for (before, after) in before.iter().zip(after) {
        let (old, new) = (buckets(before), buckets(after));
        let was = |bound: &u64| old.get(bound).copied().unwrap_or(0.0);
        // A bucket of a program that was started again may have caught up, while another shows the restart.
        let is_new = new.iter().any(|(bound, count)| *count < was(bound));
        for (bound, count) in &new {
            *counts.entry(*bound).or_default() += if is_new { *count } else { count - was(bound) };
        }
    }
    let all = counts.values().copied().fold(0.0, f64::max);
    let found = counts.into_iter().find(|(_, count)| all > 0.0 && *count >= all * share);
    found.map(|(bound, _)| f64::from_bits(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE jump_control_attach_total counter\n\
        jump_control_attach_total{outcome=\"accepted\",reason=\"BIRTH\"} 5\n\
        jump_control_sessions{phase=\"released\"} 1\n\
        jump_control_attach_seconds_bucket{outcome=\"accepted\",le=\"0.01\"} 5\n\
        jump_control_attach_seconds_bucket{outcome=\"accepted\",le=\"0.1\"} 5\n\
        jump_control_attach_seconds_bucket{outcome=\"accepted\",le=\"+Inf\"} 5\n\
        jump_gateway_sessions 3\njump_gateway_sessions_total 9\n";
    const AFTER: &str = "jump_control_attach_total{outcome=\"accepted\",reason=\"BIRTH\"} 5\n\
        jump_control_attach_total{outcome=\"accepted\",reason=\"PATH_REFUSED\"} 10\n\
        jump_control_attach_total{outcome=\"rejected\",reason=\"CONFLICT\"} 1\n\
        jump_control_sessions{phase=\"released\"} 3\n\
        jump_control_attach_seconds_bucket{outcome=\"accepted\",le=\"0.01\"} 11\n\
        jump_control_attach_seconds_bucket{outcome=\"accepted\",le=\"0.1\"} 15\n\
        jump_control_attach_seconds_bucket{outcome=\"accepted\",le=\"+Inf\"} 15\n\
        jump_gateway_sessions 7\njump_gateway_sessions_total 9\n";

    #[test]
    fn only_what_grew_between_the_looks_counts_and_names_are_not_prefixes() {
        let mut metrics = BTreeMap::new();
        add(&mut metrics, &[Scrape::parse(BEFORE)], &[Scrape::parse(AFTER)]);
        assert_eq!((metrics["attaches.accepted"], metrics["attaches.rejected"]), (10.0, 1.0));
        assert_eq!((metrics["sessions.carried"], metrics["sessions.released"]), (7.0, 2.0));
        assert_eq!((metrics["attach.live.p50_ms"], metrics["attach.live.p99_ms"]), (10.0, 100.0));
    }

    #[test]
    fn a_program_that_was_started_again_counts_from_nothing() {
        let scrape = |count| Scrape::parse(&format!("jump_audit_events_dropped_total {count}\n"));
        let mut metrics = BTreeMap::new();
        add(&mut metrics, &[scrape(50)], &[scrape(2)]);
        assert_eq!(metrics["audit.dropped"], 2.0);
        assert!(!metrics.contains_key("attach.live.p99_ms"));
    }

    #[test]
    fn percentiles_of_a_replica_that_was_started_again_are_those_of_its_new_run() {
        let scrape = |fast: u32, all: u32| {
            let bucket = |le, count| {
                format!("jump_control_attach_seconds_bucket{{outcome=\"accepted\",le=\"{le}\"}} {count}\n")
            };
            Scrape::parse(&(bucket("0.01", fast) + &bucket("0.1", all) + &bucket("+Inf", all)))
        };
        let mut metrics = BTreeMap::new();
        // One replica goes on and sees ten slow ones; the other forgets a thousand and sees thirty fast ones.
        add(&mut metrics, &[scrape(5, 5), scrape(0, 1000)], &[scrape(5, 15), scrape(30, 30)]);
        assert_eq!((metrics["attach.live.p50_ms"], metrics["attach.live.p99_ms"]), (10.0, 100.0));
    }
}
