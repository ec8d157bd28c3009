use super::*;
use crate::testing::SeededEntropy;

/// Gives good bytes up to `bad_from`, then what `bad` says.
struct Failing<F> {
    good: SeededEntropy,
    given: usize,
    bad_from: usize,
    bad: F,
}

impl<F: FnMut(usize) -> Option<u8> + Send> Entropy for Failing<F> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.good.fill(bytes)?;
        for byte in bytes {
            if self.given >= self.bad_from {
                *byte = (self.bad)(self.given).ok_or(EntropyError::Source)?;
            }
            self.given += 1;
        }
        Ok(())
    }
}

fn failing<F: FnMut(usize) -> Option<u8> + Send>(bad_from: usize, bad: F) -> Failing<F> {
    Failing { good: SeededEntropy::new(3), given: 0, bad_from, bad }
}

#[test]
fn the_operating_systems_generator_passes() {
    let mut entropy = OsEntropy::new().unwrap();
    let (mut a, mut b) = ([0; 32], [0; 32]);
    entropy.fill(&mut a).unwrap();
    entropy.fill(&mut b).unwrap();
    assert_ne!(a, b);
    assert_eq!(entropy.failure(), None);
}

#[test]
fn a_generator_that_is_stuck_or_biased_or_gone_does_not_start() {
    assert_eq!(Tested::new(failing(0, |_| Some(0))).err(), Some(EntropyError::RepetitionCount));
    // One value in eight: never nine in a row, far too often in a window.
    let biased = Tested::new(failing(0, |at| Some(if at % 8 == 0 { 7 } else { (at % 251) as u8 })));
    assert_eq!(biased.err(), Some(EntropyError::AdaptiveProportion));
    assert_eq!(Tested::new(failing(100, |_| None)).err(), Some(EntropyError::Source));
}

#[test]
fn a_failure_while_running_latches_and_gives_out_no_byte() {
    let broken_once = |at: usize| Some(if at < STARTUP_BYTES + 64 { 7 } else { at as u8 });
    let mut entropy = Tested::new(failing(STARTUP_BYTES, broken_once)).unwrap();
    let mut key = [1; 32];
    assert_eq!(entropy.fill(&mut key), Err(EntropyError::RepetitionCount));
    assert_eq!(key, [0; 32]);
    let mut key = [1; 32];
    assert_eq!(
        entropy.fill(&mut key),
        Err(EntropyError::RepetitionCount),
        "the source is well again, too late"
    );
    assert_eq!((key, entropy.failure()), ([0; 32], Some(EntropyError::RepetitionCount)));
}

#[test]
fn the_repetition_cutoff_is_exact() {
    let run = |len: u32| {
        let mut tests = HealthTests::default();
        tests.sample(1)?;
        (0..len).try_for_each(|_| tests.sample(0))
    };
    assert_eq!(run(REPETITION_CUTOFF - 1), Ok(()));
    assert_eq!(run(REPETITION_CUTOFF), Err(EntropyError::RepetitionCount));
}

#[test]
fn the_proportion_cutoff_is_exact_and_counts_per_window() {
    // `matches` of one window's 512 bytes equal its first; the rest never repeats a neighbour.
    let window = |matches: u32| {
        (0..PROPORTION_WINDOW)
            .map(move |at| if at % 8 == 0 && at / 8 < matches { 0 } else { 1 + (at % 200) as u8 })
    };
    let mut tests = HealthTests::default();
    for _ in 0..4 {
        assert_eq!(window(PROPORTION_CUTOFF - 1).try_for_each(|byte| tests.sample(byte)), Ok(()));
    }
    let outcome = window(PROPORTION_CUTOFF).try_for_each(|byte| tests.sample(byte));
    assert_eq!(outcome, Err(EntropyError::AdaptiveProportion));
}

#[test]
fn the_cutoffs_are_those_of_the_standard_at_the_stated_false_alarm_rate() {
    assert_eq!(REPETITION_CUTOFF, 1 + 64 / 8);
    // 1 + critbinom(512, 1/256, 1 - 2^-64): the tail beyond the critical value is at most 2^-64, one earlier it is not.
    let (n, p) = (f64::from(PROPORTION_WINDOW), 1.0 / 256.0);
    let mut term = (n * (1.0f64 - p).ln()).exp();
    let mut probabilities = Vec::new();
    for k in 0..=PROPORTION_WINDOW {
        probabilities.push(term);
        let k = f64::from(k);
        term *= (n - k) / (k + 1.0) * p / (1.0 - p);
    }
    let tail_above = |k: usize| probabilities[k + 1..].iter().rev().sum::<f64>();
    let critical = (PROPORTION_CUTOFF - 1) as usize;
    let alpha = 2f64.powi(-64);
    assert!(tail_above(critical) <= alpha && tail_above(critical - 1) > alpha);
}
