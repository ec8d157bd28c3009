//! Notices within a few round trips that a path has gone silent.
//!
//! A path is *asked* by everything sent on it and *answers* with any authenticated record. Asked and silent for a
//! round trip, it is probed; [`Detector::PROBES_MAX`] probes in a row without an answer, and it is dead. A path with
//! nothing to carry is asked by a keepalive.

use std::time::Duration;

/// How many outstanding pings are timed.
const PINGS_TIMED: usize = 4;

/// How patient a [`Detector`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Ping a path on which nothing was sent for this long. Halves, down to [`Patience::keepalive_min`], each time that
    /// the network turns out to have forgotten the path sooner.
    pub keepalive: Duration,
    /// The keepalive gets no shorter than this.
    pub keepalive_min: Duration,
    /// While packets only arrive: ping after this long without sending.
    pub listening: Duration,
    /// Packets that came and then stopped, with nothing sent since: ping after this long.
    pub stopped: Duration,
    /// While packets flow: measure the round trip this often.
    pub measure: Duration,
    /// A probe counts as unanswered no sooner than this.
    pub probe_floor: Duration,
    /// Traffic without an answer is probed no sooner than this.
    pub first_probe_floor: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(15),
            keepalive_min: Duration::from_secs(5),
            listening: Duration::from_secs(3),
            stopped: Duration::from_secs(1),
            measure: Duration::from_secs(5),
            probe_floor: Duration::from_millis(100),
            first_probe_floor: Duration::from_millis(50),
        }
    }
}

/// What a path needs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Quiet,
    /// Send a ping with this id. `unanswered` probes in a row came before it.
    Probe { id: u64, unanswered: u8 },
    /// The last probe was left unanswered too.
    Dead,
}

/// The silence detector of one path.
#[derive(Debug, Clone)]
pub(crate) struct Detector {
    patience: Patience,
    rtt: Option<RoundTrip>,
    /// Send time of the first thing that is still unanswered.
    asked_at: Option<Duration>,
    /// Probes sent since then.
    probes: u8,
    /// When the next probe, or the verdict, is due.
    due: Option<Duration>,
    last_sent: Duration,
    last_received: Duration,
    /// An inner packet arrived since something was last sent.
    listening: bool,
    /// Something flowed since the last ping, and when that was.
    flowing: bool,
    pinged: Duration,
    ping_next: u64,
    pings: [Option<(u64, Duration)>; PINGS_TIMED],
}

/// Round-trip estimate of RFC 6298.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    /// Smoothed.
    pub smoothed: Duration,
    /// Mean deviation.
    pub variation: Duration,
    /// Mean difference of successive round trips (smoothed as in RFC 3550).
    pub jitter: Duration,
    last: Duration,
}

impl RoundTrip {
    /// What one sample says (RFC 6298 §2.2).
    pub(crate) fn first(sample: Duration) -> Self {
        Self { smoothed: sample, variation: sample / 2, jitter: Duration::ZERO, last: sample }
    }

    /// Adds a sample to an estimate that may not exist yet.
    pub(crate) fn add(estimate: &mut Option<Self>, sample: Duration) {
        match estimate {
            Some(estimate) => estimate.sample(sample),
            None => *estimate = Some(Self::first(sample)),
        }
    }

    fn sample(&mut self, sample: Duration) {
        self.variation = (self.variation * 3 + self.smoothed.abs_diff(sample)) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        self.jitter = (self.jitter * 15 + self.last.abs_diff(sample)) / 16;
        self.last = sample;
    }

    /// Longest expected round trip: the RFC's retransmission timeout without its one-second floor.
    pub fn timeout(&self) -> Duration {
        self.smoothed + self.variation * 4
    }
}

impl Detector {
    /// Probes in a row that a path may leave unanswered.
    pub(crate) const PROBES_MAX: u8 = 3;
    /// A probe is never waited for longer than this, whatever the estimate says.
    const PROBE_CEILING: Duration = Duration::from_secs(3);

    pub(crate) fn new(patience: Patience, now: Duration, rtt: Option<RoundTrip>) -> Self {
        Self {
            patience,
            rtt,
            asked_at: None,
            probes: 0,
            due: None,
            last_sent: now,
            last_received: now,
            listening: false,
            flowing: false,
            pinged: now,
            ping_next: 1,
            pings: [None; PINGS_TIMED],
        }
    }

    /// Something that wants an answer was sent.
    pub(crate) fn sent(&mut self, now: Duration) {
        self.last_sent = now;
        self.listening = false;
        self.flowing = true;
        if self.asked_at.is_none() {
            self.asked_at = Some(now);
            self.due = Some(now + self.expected().max(self.patience.first_probe_floor));
        }
    }

    /// An authenticated record arrived.
    pub(crate) fn received(&mut self, now: Duration) {
        self.last_received = now;
        self.asked_at = None;
        self.probes = 0;
        self.due = None;
    }

    /// The record carried an inner packet.
    pub(crate) fn received_packet(&mut self) {
        self.listening = true;
        self.flowing = true;
    }

    /// The path is another one, of which `rtt` is known: nothing is owed on it yet.
    pub(crate) fn moved(&mut self, patience: Patience, now: Duration, rtt: Option<RoundTrip>) {
        let keepalive = self.patience.keepalive;
        let ping_next = self.ping_next;
        *self = Self::new(Patience { keepalive, ..patience }, now, rtt);
        self.ping_next = ping_next;
    }

    /// The network forgot the path while it was idle.
    pub(crate) fn shorten_keepalive(&mut self) {
        self.patience.keepalive = (self.patience.keepalive / 2).max(self.patience.keepalive_min);
    }

    /// Probes that were left unanswered in a row.
    pub(crate) fn unanswered(&self) -> u8 {
        self.probes.saturating_sub(1)
    }

    /// The answer to ping `id` arrived.
    pub(crate) fn ponged(&mut self, now: Duration, id: u64) {
        let Some(slot) = self.pings.iter_mut().find(|slot| slot.is_some_and(|(of, _)| of == id)) else {
            return;
        };
        if let Some((_, sent)) = slot.take() {
            self.sample(now.saturating_sub(sent));
        }
    }

    /// Adds a round trip measured elsewhere (the handshake's).
    pub(crate) fn sample(&mut self, sample: Duration) {
        RoundTrip::add(&mut self.rtt, sample);
    }

    /// Asks for a probe at the next poll.
    pub(crate) fn probe_now(&mut self, now: Duration) {
        self.asked_at.get_or_insert(now);
        self.due = Some(now);
    }

    /// Says what the path needs now. After [`Verdict::Probe`] the caller sends the ping.
    pub(crate) fn poll(&mut self, now: Duration) -> Verdict {
        if self.due.is_none() && now >= self.asks_at() {
            self.probe_now(now);
        }
        if self.due.is_none_or(|due| now < due) {
            return Verdict::Quiet;
        }
        if self.probes >= Self::PROBES_MAX {
            self.due = None;
            return Verdict::Dead;
        }
        let unanswered = self.probes;
        let id = self.ping(now);
        self.probes += 1;
        self.last_sent = now;
        self.listening = false;
        self.due = Some(now + self.probe_timeout());
        Verdict::Probe { id, unanswered }
    }

    /// The id of a ping that is sent now.
    pub(crate) fn ping(&mut self, now: Duration) -> u64 {
        let id = self.ping_next;
        self.ping_next += 1;
        self.pinged = now;
        self.flowing = false;
        self.pings[(id % PINGS_TIMED as u64) as usize] = Some((id, now));
        id
    }

    /// When [`Self::poll`] next has something to say.
    pub(crate) fn timeout(&self) -> Duration {
        self.due.unwrap_or_else(|| self.asks_at())
    }

    /// When a path that owes nothing is asked.
    fn asks_at(&self) -> Duration {
        let Patience { keepalive, listening, stopped, measure, .. } = self.patience;
        let mut at = self.last_sent + keepalive;
        if self.listening {
            at = at.min(self.last_sent + listening).min(self.last_received.max(self.last_sent) + stopped);
        }
        if self.flowing {
            at = at.min(self.pinged + measure);
        }
        at
    }

    /// How long one probe is waited for: as long as a round trip is expected to take, and half a round trip more where little
    /// variation was seen so far. A path's first sudden delay is no death.
    pub(crate) fn probe_timeout(&self) -> Duration {
        let with_margin = self.rtt.map_or(Duration::ZERO, |rtt| rtt.smoothed * 3 / 2);
        self.bounded(self.expected().max(with_margin))
    }

    /// Three times what a round trip is expected to take: how long a probe of the path's MTU is waited for, and how long a
    /// path must keep answering to be steady again. Neither is in a hurry.
    pub(crate) fn settling_time(&self) -> Duration {
        self.bounded(self.expected() * 3)
    }

    fn bounded(&self, wait: Duration) -> Duration {
        wait.clamp(self.patience.probe_floor, Self::PROBE_CEILING.max(self.patience.probe_floor))
    }

    /// Since when the path owes an answer; when it owes none, when it last gave one.
    pub(crate) fn silent_since(&self) -> Duration {
        self.asked_at.unwrap_or(self.last_received)
    }

    /// True while the path owes an answer.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked_at.is_some()
    }

    pub(crate) fn last_received(&self) -> Duration {
        self.last_received
    }

    pub(crate) fn rtt(&self) -> Option<RoundTrip> {
        self.rtt
    }

    fn expected(&self) -> Duration {
        self.rtt.map_or(Duration::ZERO, |rtt| rtt.timeout())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn detector(rtt: Duration) -> Detector {
        let mut detector = Detector::new(Patience::default(), Duration::ZERO, None);
        for _ in 0..64 {
            detector.sample(rtt);
        }
        detector
    }

    /// Lets time pass until the detector declares death; returns when, and the probes sent.
    fn until_dead(detector: &mut Detector, mut now: Duration) -> (Duration, u8) {
        let mut probes = 0;
        loop {
            now = now.max(detector.timeout());
            match detector.poll(now) {
                Verdict::Quiet => {}
                Verdict::Probe { .. } => probes += 1,
                Verdict::Dead => return (now, probes),
            }
        }
    }

    #[test]
    fn a_silent_path_with_a_short_round_trip_is_dead_within_350_ms_and_three_probes() {
        let mut detector = detector(MS);
        detector.sent(MS * 1000);
        assert_eq!(until_dead(&mut detector, MS * 1000), (MS * 1350, 3));
    }

    #[test]
    fn a_long_round_trip_makes_the_detector_patient_and_not_slow() {
        let mut settled = detector(MS * 200);
        settled.sent(MS * 1000);
        let (dead, probes) = until_dead(&mut settled, MS * 1000);
        assert_eq!(probes, 3);
        // One round trip until it is asked, one and a half for each ping.
        assert_eq!(dead, MS * (1000 + 200 + 3 * 300));
        // One sample says little about the next: three round trips each, and no more.
        let mut young = Detector::new(Patience::default(), Duration::ZERO, None);
        young.sample(MS * 300);
        young.sent(MS * 1000);
        assert_eq!(until_dead(&mut young, MS * 1000), (MS * (1000 + 4 * 900), 3));
    }

    #[test]
    fn a_settled_path_that_suddenly_takes_more_than_twice_as_long_owes_nothing() {
        let mut settled = detector(MS * 200);
        settled.sent(MS * 1000);
        assert!(matches!(settled.poll(MS * 1200), Verdict::Probe { unanswered: 0, .. }));
        // The answer to what was sent first is still on its way, and the ping is given as long.
        assert_eq!((settled.poll(MS * 1449), settled.unanswered()), (Verdict::Quiet, 0));
        settled.received(MS * 1450);
        assert_eq!(settled.poll(MS * 1500), Verdict::Quiet);
    }

    #[test]
    fn an_answer_at_the_last_moment_saves_the_path() {
        let mut detector = detector(MS);
        detector.sent(MS * 1000);
        detector.poll(MS * 1050);
        detector.poll(MS * 1150);
        detector.poll(MS * 1250);
        detector.received(MS * 1349);
        assert_eq!(detector.poll(MS * 1350), Verdict::Quiet);
        assert_eq!(detector.silent_since(), MS * 1349);
    }

    #[test]
    fn an_idle_path_is_asked_after_the_keepalive_and_not_before() {
        let mut detector = detector(MS);
        assert_eq!(detector.poll(MS * 14_999), Verdict::Quiet);
        assert!(matches!(detector.poll(MS * 15_000), Verdict::Probe { unanswered: 0, .. }));
    }

    #[test]
    fn a_path_that_only_receives_is_asked_within_seconds_and_soon_after_it_falls_silent() {
        let mut detector = detector(MS);
        for at in (0..2900).step_by(10) {
            detector.received(MS * at);
            detector.received_packet();
            assert_eq!(detector.poll(MS * at), Verdict::Quiet);
        }
        assert_eq!(detector.timeout(), MS * 3000);
        let mut detector = self::detector(MS);
        detector.received(MS * 500);
        detector.received_packet();
        assert_eq!(detector.timeout(), MS * 1500);
        assert!(matches!(detector.poll(MS * 1500), Verdict::Probe { .. }));
        // Asked once, not for ever.
        detector.received(MS * 1501);
        assert_eq!(detector.timeout(), MS * 16_500);
    }

    #[test]
    fn a_keepalive_that_came_too_late_comes_sooner_and_never_too_soon() {
        let mut detector = detector(MS);
        for keepalive in [7500, 5000, 5000] {
            detector.shorten_keepalive();
            assert_eq!(detector.timeout(), MS * keepalive);
        }
    }

    #[test]
    fn a_pong_that_nobody_asked_for_moves_no_estimate() {
        let mut detector = detector(MS * 10);
        let before = detector.rtt();
        detector.ponged(MS * 50_000, 77);
        assert_eq!(detector.rtt(), before);
    }
}
