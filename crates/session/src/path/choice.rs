//! Which path to use: scores with a bonus for the incumbent, a dwell before a better transport is taken back, and the
//! policy's pace.
//!
//! A path costs milliseconds. An incumbent that leaves probes unanswered or loses packets gets dearer until a
//! challenger that has answered is worth the switch. A challenger of a better transport takes over only after it has
//! answered several times in a row and the incumbent has had its dwell; each return that did not last doubles the next
//! dwell.

use std::time::Duration;

use super::{KEPT_FOR_ATTACH, SwitchRate, Transport};

/// The path in use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Incumbent {
    /// Its transport.
    pub transport: Transport,
    /// Its smoothed round trip; zero when not known.
    pub rtt: Duration,
    /// Probes in a row that it has left unanswered.
    pub unanswered: u8,
    /// Share of packets lost, the worse direction, 0 to 1.
    pub loss: f32,
    /// True when it was given up.
    pub lost: bool,
}

/// A path that was probed and may take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenger {
    /// Its transport.
    pub transport: Transport,
    /// Its smoothed round trip.
    pub rtt: Duration,
    /// Challenges that it has answered in a row.
    pub answers: u8,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Stay with the incumbent.
    Stay,
    /// Take the challenger with this place in the list.
    Take(usize),
    /// A challenger is better, and the policy's pace does not allow the switch now.
    Held,
}

/// When a better transport is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnPolicy {
    /// The incumbent is used at least this long.
    pub dwell: Duration,
    /// The dwell after returns that did not last grows up to this.
    pub dwell_max: Duration,
    /// Answers in a row that the challenger must have given.
    pub answers: u8,
    /// A return lasted when it held for this long.
    pub lasting: Duration,
}

impl Default for ReturnPolicy {
    fn default() -> Self {
        Self {
            dwell: Duration::from_secs(5),
            dwell_max: Duration::from_secs(300),
            answers: 5,
            lasting: Duration::from_secs(60),
        }
    }
}

/// A challenger must be cheaper than the incumbent by this factor.
const INCUMBENT_BONUS: f32 = 1.25;
/// What an unanswered probe costs, in milliseconds.
const UNANSWERED_COST: f32 = 150.0;
/// What the loss of everything costs, in milliseconds.
const LOSS_COST: f32 = 400.0;

/// What the transport itself costs, in milliseconds: how much worse another must be before this one is better.
const fn transport_cost(transport: Transport) -> f32 {
    match transport {
        Transport::Udp => 0.0,
        Transport::Quic => 150.0,
        Transport::Tcp => 180.0,
        Transport::Tls => 200.0,
    }
}

fn millis(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1000.0
}

impl Incumbent {
    fn cost(&self) -> f32 {
        if self.lost {
            return f32::INFINITY;
        }
        transport_cost(self.transport)
            + millis(self.rtt)
            + f32::from(self.unanswered) * UNANSWERED_COST
            + self.loss.clamp(0.0, 1.0) * LOSS_COST
    }
}

impl Challenger {
    fn cost(&self) -> f32 {
        transport_cost(self.transport) + millis(self.rtt)
    }
}

/// Holds switches to the policy's pace and returns to their dwell.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: SwitchRate,
    policy: ReturnPolicy,
    dwell: Duration,
    switched_at: Duration,
    returned_at: Option<Duration>,
}

impl Pace {
    /// Nothing was switched yet.
    pub fn new(rate: SwitchRate, policy: ReturnPolicy) -> Self {
        Self { rate, policy, dwell: policy.dwell, switched_at: Duration::ZERO, returned_at: None }
    }

    /// Takes the owner's policy over.
    pub fn set_rate(&mut self, per_minute_max: u32, cooldown: Duration) {
        self.rate.set(per_minute_max, cooldown);
    }

    /// The path that is to be used at `now`.
    pub fn choose(&self, now: Duration, incumbent: &Incumbent, challengers: &[Challenger]) -> Choice {
        let best = challengers
            .iter()
            .enumerate()
            .filter(|(_, challenger)| challenger.answers > 0)
            .min_by(|(_, a), (_, b)| a.cost().total_cmp(&b.cost()));
        let Some((at, best)) = best else { return Choice::Stay };
        let silent = incumbent.lost || incumbent.unanswered > 0;
        let worth = if silent {
            best.cost() * INCUMBENT_BONUS < incumbent.cost()
        } else {
            best.transport < incumbent.transport
                && best.answers >= self.policy.answers
                && now >= self.returns_at()
        };
        if !worth {
            Choice::Stay
        } else if self.rate.allows(now, KEPT_FOR_ATTACH) {
            Choice::Take(at)
        } else {
            Choice::Held
        }
    }

    /// Notes that `to` took the place of `from`.
    pub fn switched(&mut self, now: Duration, from: Transport, to: Transport) {
        self.rate.spend(now);
        self.switched_at = now;
        if to < from {
            self.returned_at = Some(now);
            return;
        }
        match self.returned_at.take() {
            Some(at) if to != from && now < at.saturating_add(self.policy.lasting) => {
                self.dwell = (self.dwell * 2).min(self.policy.dwell_max);
            }
            Some(_) if to != from => self.dwell = self.policy.dwell,
            kept => self.returned_at = kept,
        }
    }

    /// Notes a change of gateway, or of keys at the same one, which the gateways' budget counts as well.
    pub fn attached(&mut self, now: Duration) {
        self.rate.spend(now);
    }

    /// The network is another one, and the path with it: what was learned of its transports is void.
    pub fn network_changed(&mut self, now: Duration) {
        self.rate.spend(now);
        self.dwell = self.policy.dwell;
        self.returned_at = None;
        self.switched_at = self.switched_at.min(now);
    }

    /// From when on a better transport may be taken back.
    pub fn returns_at(&self) -> Duration {
        self.switched_at.saturating_add(self.dwell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace::new(SwitchRate::new(20, 100 * MS), ReturnPolicy::default())
    }

    fn udp(unanswered: u8) -> Incumbent {
        Incumbent { transport: Transport::Udp, rtt: 20 * MS, unanswered, loss: 0.0, lost: false }
    }

    fn challenger(transport: Transport, answers: u8) -> Challenger {
        Challenger { transport, rtt: 20 * MS, answers }
    }

    #[test]
    fn one_unanswered_probe_moves_nothing_and_a_second_one_does() {
        let others = [challenger(Transport::Tcp, 1), challenger(Transport::Quic, 1)];
        assert_eq!(pace().choose(SECOND, &udp(1), &others), Choice::Stay);
        assert_eq!(pace().choose(SECOND, &udp(2), &others), Choice::Take(1));
    }

    #[test]
    fn a_challenger_that_has_not_answered_is_never_taken() {
        let lost = Incumbent { lost: true, ..udp(3) };
        assert_eq!(pace().choose(SECOND, &lost, &[challenger(Transport::Tcp, 0)]), Choice::Stay);
        assert_eq!(pace().choose(SECOND, &lost, &[challenger(Transport::Tcp, 1)]), Choice::Take(0));
    }

    #[test]
    fn a_healthy_path_is_not_left_for_a_worse_transport_however_fast() {
        let fast = Challenger { transport: Transport::Tcp, rtt: MS, answers: 200 };
        assert_eq!(pace().choose(100 * SECOND, &udp(0), &[fast]), Choice::Stay);
    }

    #[test]
    fn udp_is_taken_back_only_after_the_dwell_and_enough_answers() {
        let mut pace = pace();
        pace.switched(10 * SECOND, Transport::Udp, Transport::Tcp);
        let tcp = Incumbent { transport: Transport::Tcp, ..udp(0) };
        let choose = |at, answers| pace.choose(at, &tcp, &[challenger(Transport::Udp, answers)]);
        assert_eq!(choose(14 * SECOND, 9), Choice::Stay);
        assert_eq!(choose(15 * SECOND, 4), Choice::Stay);
        assert_eq!(choose(15 * SECOND, 5), Choice::Take(0));
    }

    #[test]
    fn a_return_that_does_not_last_doubles_the_next_dwell_and_a_new_network_forgets_it() {
        let mut pace = pace();
        let mut now = SECOND;
        for dwell in [5, 10, 20, 40, 80, 160, 300, 300] {
            pace.switched(now, Transport::Udp, Transport::Tcp);
            assert_eq!(pace.returns_at(), now + dwell * SECOND);
            now = pace.returns_at();
            pace.switched(now, Transport::Tcp, Transport::Udp);
            now += SECOND;
        }
        pace.network_changed(now);
        pace.switched(now, Transport::Udp, Transport::Tcp);
        assert_eq!(pace.returns_at(), now + 5 * SECOND);
    }

    #[test]
    fn a_switch_beyond_the_pace_is_held() {
        let mut pace = Pace::new(SwitchRate::new(1, Duration::ZERO), ReturnPolicy::default());
        pace.switched(SECOND, Transport::Udp, Transport::Tcp);
        let lost = Incumbent { lost: true, ..udp(3) };
        assert_eq!(pace.choose(2 * SECOND, &lost, &[challenger(Transport::Udp, 1)]), Choice::Held);
    }

    proptest::proptest! {
        /// Whatever the paths do, the machine that obeys `choose` stays within the policy.
        #[test]
        fn paths_that_come_and_go_never_cause_more_switches_than_the_policy_allows(
            steps in proptest::collection::vec((0u64..500, 0u8..4, 0u8..8, proptest::bool::ANY), 1..600),
        ) {
            let mut pace = Pace::new(SwitchRate::new(6, 100 * MS), ReturnPolicy::default());
            let (mut now, mut transport) = (SECOND, Transport::Udp);
            let mut switches = Vec::new();
            for (gap, unanswered, answers, lost) in steps {
                now += Duration::from_millis(gap);
                let other = if transport == Transport::Udp { Transport::Tcp } else { Transport::Udp };
                let incumbent = Incumbent { transport, rtt: MS, unanswered, loss: 0.3, lost };
                let found = [Challenger { transport: other, rtt: MS, answers }];
                if pace.choose(now, &incumbent, &found) == Choice::Take(0) {
                    pace.switched(now, transport, other);
                    transport = other;
                    switches.push(now);
                }
            }
            for (at, start) in switches.iter().enumerate() {
                let minute = switches[at..].iter().take_while(|end| **end < *start + 60 * SECOND).count();
                proptest::prop_assert!(minute <= 6);
            }
        }
    }
}
