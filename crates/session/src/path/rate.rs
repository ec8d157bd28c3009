//! How often a session may change its path.

use std::collections::VecDeque;
use std::time::Duration;

/// Switches of one minute that are remembered; a policy that allows more is held to this.
const REMEMBERED_MAX: usize = 1024;

const MINUTE: Duration = Duration::from_secs(60);

/// Counts switches over the last minute and holds two of them apart. Time is a duration since any fixed origin. Takes
/// memory only with the first switch.
#[derive(Debug, Clone)]
pub struct SwitchRate {
    per_minute_max: usize,
    cooldown: Duration,
    /// The last minute's switches, oldest first.
    switches: VecDeque<Duration>,
}

impl SwitchRate {
    /// At most `per_minute_max` switches in any minute, no two of them closer than `cooldown`. 0 allows none.
    pub fn new(per_minute_max: u32, cooldown: Duration) -> Self {
        let mut rate = Self { per_minute_max: 0, cooldown, switches: VecDeque::new() };
        rate.set(per_minute_max, cooldown);
        rate
    }

    /// Takes another policy over; the switches that were made still count.
    pub fn set(&mut self, per_minute_max: u32, cooldown: Duration) {
        self.per_minute_max = usize::try_from(per_minute_max).unwrap_or(usize::MAX).min(REMEMBERED_MAX);
        self.cooldown = cooldown;
    }

    /// True when a switch is allowed now.
    pub fn allows(&self, now: Duration) -> bool {
        let rested = self.switches.back().is_none_or(|last| now >= last.saturating_add(self.cooldown));
        // The oldest of as many switches as the policy allows must be a minute ago.
        let oldest =
            self.switches.len().checked_sub(self.per_minute_max).and_then(|at| self.switches.get(at));
        rested && self.per_minute_max > 0 && oldest.is_none_or(|oldest| now >= oldest.saturating_add(MINUTE))
    }

    /// Notes a switch.
    pub fn spend(&mut self, now: Duration) {
        while self.switches.len() >= REMEMBERED_MAX
            || self.switches.front().is_some_and(|oldest| now >= oldest.saturating_add(MINUTE))
        {
            self.switches.pop_front();
        }
        self.switches.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_minute_sees_more_than_the_allowance_and_no_two_switches_are_closer_than_the_cooldown(
            gaps in proptest::collection::vec(0u64..4_000, 1..400),
            per_minute in 0u32..30,
        ) {
            let cooldown = Duration::from_millis(100);
            let mut rate = SwitchRate::new(per_minute, cooldown);
            let mut now = Duration::from_secs(1000);
            let mut switches: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if rate.allows(now) {
                    rate.spend(now);
                    switches.push(now);
                }
            }
            for pair in switches.windows(2) {
                proptest::prop_assert!(pair[1] - pair[0] >= cooldown);
            }
            for (at, start) in switches.iter().enumerate() {
                let within = switches[at..].iter().take_while(|end| **end < *start + MINUTE).count();
                proptest::prop_assert!(within <= per_minute as usize);
            }
        }
    }

    #[test]
    fn a_policy_of_none_allows_none() {
        assert!(!SwitchRate::new(0, Duration::ZERO).allows(Duration::from_secs(5)));
    }

    #[test]
    fn a_minute_after_a_full_allowance_the_next_switch_is_allowed() {
        let mut rate = SwitchRate::new(2, Duration::ZERO);
        let second = Duration::from_secs(1);
        rate.spend(second);
        rate.spend(second * 2);
        assert!(!rate.allows(second * 60));
        assert!(rate.allows(second * 61));
    }
}
