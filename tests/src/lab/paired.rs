//! Two series measured in turn, compared pair by pair.

/// Ratios of neighbours in time.
#[derive(Debug, Clone)]
pub struct Paired {
    /// In ascending order.
    ratios: Vec<f64>,
}

impl Paired {
    /// The ratios of `b` to `a`, pair by pair. Without a pair every answer is `NaN`.
    pub fn new(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> Self {
        let mut ratios: Vec<f64> = a.into_iter().zip(b).map(|(a, b)| b / a).collect();
        ratios.sort_by(f64::total_cmp);
        Self { ratios }
    }

    /// The median of any values; `NaN` of none.
    pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        middle(&values)
    }

    /// The median ratio.
    pub fn ratio(&self) -> f64 {
        middle(&self.ratios)
    }

    /// An interval that holds the true median with a probability of at least 95 %, whatever the distribution: two order
    /// statistics (the sign test turned round). Fewer than six pairs cannot say, and give everything.
    pub fn interval(&self) -> (f64, f64) {
        let n = self.ratios.len();
        let mut outside = 0.0;
        let mut probability = 0.5f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
        let mut cut = 0;
        // The chance that at most `cut` ratios lie on one side of the true median.
        for k in 0..n {
            outside += probability;
            if 2.0 * outside > 0.05 {
                break;
            }
            cut = k + 1;
            probability *= (n - k) as f64 / (k + 1) as f64;
        }
        if cut == 0 {
            return (f64::NEG_INFINITY, f64::INFINITY);
        }
        (self.ratios[cut - 1], self.ratios[n - cut])
    }
}

fn middle(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_tables_and_a_drift_that_both_share_cancels_out() {
        let ones = |n: usize| vec![1.0; n];
        // Table of the sign test's intervals at 95 %: ranks 1 and 6 of 6, 2 and 9 of 10, 6 and 15 of 20, 10 and 21 of 30.
        for (n, low, high) in [(6, 1, 6), (10, 2, 9), (20, 6, 15), (30, 10, 21)] {
            let paired = Paired::new(ones(n), (1..=n).map(|rank| rank as f64));
            assert_eq!(paired.interval(), (f64::from(low), f64::from(high)), "{n}");
        }
        assert_eq!(Paired::new(ones(5), ones(5)).interval(), (f64::NEG_INFINITY, f64::INFINITY));
        let drift = |factor: f64| (1..=20).map(move |i| f64::from(i) * factor);
        let paired = Paired::new(drift(1.0), drift(1.5));
        assert!((paired.ratio() - 1.5).abs() < 1e-9);
        let (low, high) = paired.interval();
        assert!(low > 1.49 && high < 1.51);
        assert!((Paired::median([3.0, 1.0, 2.0, 4.0]) - 2.5).abs() < 1e-9);
    }
}
