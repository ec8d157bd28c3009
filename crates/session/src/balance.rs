//! How many sessions move between which gateways, so that each carries about as many as any other.
//!
//! Sessions stay where they are well. Only a gateway that joins, or comes back, leaves a cluster uneven; this says what it
//! takes to even it out again, in the fewest moves. Who orders them, and how fast, is decided elsewhere.

use std::collections::BTreeMap;

use crate::ids::NodeId;

/// So many sessions from one gateway to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// The fuller one.
    pub from: NodeId,
    /// The emptier one.
    pub to: NodeId,
    /// How many, at least one.
    pub sessions: u64,
}

/// The fewest moves that bring every gateway to the mean, rounded up or down; none while each is within `tolerance_percent`
/// of the mean, or within one session of it. `loads` has the sessions of every gateway that takes sessions, 0 included.
pub fn shifts(loads: &BTreeMap<NodeId, u64>, tolerance_percent: u32) -> Vec<Shift> {
    let gateways = loads.len() as u64;
    let total: u64 = loads.values().sum();
    if gateways == 0 || is_even(loads, total, tolerance_percent) {
        return Vec::new();
    }
    let (mean, rest) = (total / gateways, total % gateways);
    let mut by_load: Vec<_> = loads.iter().collect();
    by_load.sort_by_key(|(node, load)| (std::cmp::Reverse(**load), *node));
    // The fullest keep the remainder: each of them has one less to give.
    let wanted = |place: usize| mean + u64::from((place as u64) < rest);
    let apart =
        |place: usize, load: u64| (load.saturating_sub(wanted(place)), wanted(place).saturating_sub(load));
    let mut takers: Vec<_> = by_load
        .iter()
        .enumerate()
        .map(|(place, (node, load))| (*node, apart(place, **load).1))
        .filter(|(_, room)| *room > 0)
        .collect();
    let mut shifts = Vec::new();
    for (place, (from, load)) in by_load.iter().enumerate() {
        let mut surplus = apart(place, **load).0;
        while let Some((to, room)) = takers.last_mut().filter(|_| surplus > 0) {
            let sessions = surplus.min(*room);
            shifts.push(Shift { from: (*from).clone(), to: (*to).clone(), sessions });
            surplus -= sessions;
            *room -= sessions;
            if *room == 0 {
                takers.pop();
            }
        }
    }
    shifts
}

/// The single moves, one of each shift in turn, so that no gateway gives or takes all at once.
pub fn turns(shifts: &[Shift]) -> impl Iterator<Item = (&NodeId, &NodeId)> {
    let rounds = shifts.iter().map(|shift| shift.sessions).max().unwrap_or(0);
    (0..rounds).flat_map(move |round| {
        shifts.iter().filter(move |shift| shift.sessions > round).map(|shift| (&shift.from, &shift.to))
    })
}

fn is_even(loads: &BTreeMap<NodeId, u64>, total: u64, tolerance_percent: u32) -> bool {
    let gateways = loads.len() as u128;
    let (total, tolerance) = (u128::from(total), u128::from(tolerance_percent));
    // In hundredths of a session times gateways, so that nothing is rounded.
    let mean = total * 100;
    let slack = (total * tolerance).max(gateways * 100 - 1);
    loads.values().all(|load| (u128::from(*load) * gateways * 100).abs_diff(mean) <= slack)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(counts: &[u64]) -> BTreeMap<NodeId, u64> {
        let named = |(i, count): (usize, &u64)| (format!("gw{i}").parse().unwrap(), *count);
        counts.iter().enumerate().map(named).collect()
    }

    fn after(loads: &BTreeMap<NodeId, u64>, shifts: &[Shift]) -> Vec<u64> {
        let mut after = loads.clone();
        for shift in shifts {
            *after.get_mut(&shift.from).unwrap() -= shift.sessions;
            *after.get_mut(&shift.to).unwrap() += shift.sessions;
        }
        after.into_values().collect()
    }

    #[test]
    fn three_new_gateways_get_their_share_from_the_two_full_ones() {
        let before = loads(&[520, 480, 0, 0, 0]);
        let shifts = shifts(&before, 10);
        assert_eq!(after(&before, &shifts), [200; 5]);
        assert_eq!(shifts.iter().map(|shift| shift.sessions).sum::<u64>(), 600);
    }

    #[test]
    fn what_is_within_the_tolerance_or_one_session_is_left_alone() {
        for even in [&[109, 91][..], &[1, 0], &[2, 1, 1], &[0, 0], &[5]] {
            assert_eq!(shifts(&loads(even), 10), [], "{even:?}");
        }
        assert_ne!(shifts(&loads(&[111, 89]), 10), []);
        // One empty gateway among many full ones barely changes the largest share, but is not even.
        assert_ne!(shifts(&loads(&[100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 0]), 10), []);
    }

    proptest! {
        #[test]
        fn shifts_lose_nobody_end_at_the_mean_and_move_no_session_twice(
            counts in proptest::collection::vec(0u64..1000, 1..12), tolerance in 0u32..50
        ) {
            let before = loads(&counts);
            let shifts = shifts(&before, tolerance);
            let end = after(&before, &shifts);
            prop_assert_eq!(end.iter().sum::<u64>(), counts.iter().sum::<u64>());
            let givers: Vec<_> = shifts.iter().map(|shift| &shift.from).collect();
            prop_assert!(shifts.iter().all(|shift| shift.sessions > 0 && !givers.contains(&&shift.to)));
            if !shifts.is_empty() {
                prop_assert!(end.iter().max().unwrap() - end.iter().min().unwrap() <= 1);
            }
            prop_assert_eq!(super::shifts(&loads(&end), tolerance), []);
        }
    }
}
