//! How often a session may change its path.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ownership::{RECENT_SWITCHES_MAX, SWITCH_WINDOW};

/// Of a minute's switches, this many are kept for a change of owner, which control allows without having heard of the
/// owner's latest path switches. So both kinds together stay within the policy.
pub const KEPT_FOR_ATTACH: usize = 1;

/// Counts the switches of one session over the last minute, and holds two of them apart. Time is a duration since any
/// fixed origin. Takes memory only with the first switch.
///
/// A session has one budget for both kinds of switches: its owner makes those of its path and notes them by
/// [`spend`](Self::spend); control decides those of its owner, and [`tell`](Self::tell) brings in what it has counted.
/// More than [`RECENT_SWITCHES_MAX`] are never allowed.
#[derive(Debug, Clone)]
pub struct SwitchRate {
    per_minute_max: usize,
    cooldown: Duration,
    /// The last minute's switches, oldest first.
    switches: VecDeque<Switch>,
}

#[derive(Debug, Clone, Copy)]
struct Switch {
    at: Duration,
    /// Whether it was counted elsewhere.
    told: bool,
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
        self.per_minute_max = usize::try_from(per_minute_max).unwrap_or(usize::MAX).min(RECENT_SWITCHES_MAX);
        self.cooldown = cooldown;
    }

    /// True when a switch is allowed now and `kept` more would be.
    pub fn allows(&self, now: Duration, kept: usize) -> bool {
        let rested = self.switches.back().is_none_or(|last| now >= last.at.saturating_add(self.cooldown));
        let allowed = self.per_minute_max.saturating_sub(kept);
        // The oldest of as many switches as are allowed must be a minute ago.
        let oldest = self.switches.len().checked_sub(allowed).and_then(|at| self.switches.get(at));
        rested && allowed > 0 && oldest.is_none_or(|oldest| now >= oldest.at.saturating_add(SWITCH_WINDOW))
    }

    /// Notes a switch.
    pub fn spend(&mut self, now: Duration) {
        self.forget(now);
        self.note(Switch { at: now, told: false });
    }

    /// Notes a switch of this `age` that was counted elsewhere.
    pub fn tell(&mut self, now: Duration, age: Duration) {
        self.forget(now);
        self.note(Switch { at: now.saturating_sub(age), told: true });
    }

    /// Takes the switches over that `before` has noted by itself.
    pub fn go_on_from(&mut self, before: &Self) {
        before.switches.iter().filter(|switch| !switch.told).for_each(|switch| self.note(*switch));
    }

    /// The ages of the last minute's switches that were noted here, oldest first.
    pub fn ages(&self, now: Duration) -> Vec<Duration> {
        let own = self.switches.iter().filter(|switch| !switch.told);
        own.map(|switch| now.saturating_sub(switch.at)).filter(|age| *age < SWITCH_WINDOW).collect()
    }

    fn note(&mut self, switch: Switch) {
        let at = self.switches.partition_point(|earlier| earlier.at <= switch.at);
        self.switches.insert(at, switch);
        if self.switches.len() > RECENT_SWITCHES_MAX {
            self.switches.pop_front();
        }
    }

    fn forget(&mut self, now: Duration) {
        while self.switches.front().is_some_and(|oldest| now >= oldest.at.saturating_add(SWITCH_WINDOW)) {
            self.switches.pop_front();
        }
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
                if rate.allows(now, 0) {
                    rate.spend(now);
                    switches.push(now);
                }
            }
            for pair in switches.windows(2) {
                proptest::prop_assert!(pair[1] - pair[0] >= cooldown);
            }
            for (at, start) in switches.iter().enumerate() {
                let within = switches[at..].iter().take_while(|end| **end < *start + SWITCH_WINDOW).count();
                proptest::prop_assert!(within <= per_minute as usize);
            }
        }
    }

    #[test]
    fn a_policy_of_none_allows_none() {
        assert!(!SwitchRate::new(0, Duration::ZERO).allows(Duration::from_secs(5), 0));
    }

    #[test]
    fn a_minute_after_a_full_allowance_the_next_switch_is_allowed() {
        let mut rate = SwitchRate::new(2, Duration::ZERO);
        let second = Duration::from_secs(1);
        rate.spend(second);
        rate.spend(second * 2);
        assert!(!rate.allows(second + SWITCH_WINDOW - Duration::from_millis(1), 0));
        assert!(rate.allows(second + SWITCH_WINDOW, 0));
    }

    #[test]
    fn what_was_counted_elsewhere_counts_here_and_is_not_told_back() {
        let second = Duration::from_secs(1);
        let mut rate = SwitchRate::new(3, Duration::ZERO);
        rate.spend(second * 70);
        rate.tell(second * 100, second * 50);
        assert!(rate.allows(second * 100, 0));
        assert!(!rate.allows(second * 100, 1), "the one that is kept back was given away");
        rate.tell(second * 100, second);
        assert!(!rate.allows(second * 100, 0));
        assert_eq!(rate.ages(second * 100), [second * 30]);
        assert!(rate.allows(second * 50 + SWITCH_WINDOW, 0), "the told one of second 50 still counts");
        let mut next = SwitchRate::new(3, Duration::ZERO);
        next.go_on_from(&rate);
        assert_eq!(next.ages(second * 100), [second * 30]);
        assert!(next.allows(second * 100, 1), "what was told came along");
    }
}
