//! A histogram of times with a bounded relative error: what percentiles of millions of samples need, in a few kilobytes.

use std::time::Duration;

/// Buckets per doubling; the relative error of a percentile is under one sixteenth.
const PER_DOUBLING: u32 = 16;
/// From one microsecond to over an hour.
const BUCKETS: usize = 32 * PER_DOUBLING as usize;

/// Counts of times by size.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    /// Adds one sample.
    pub fn add(&mut self, sample: Duration) {
        self.counts[bucket(sample)] += 1;
        self.total += 1;
        self.max = self.max.max(sample);
    }

    /// Adds all samples of another one.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many samples.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The largest sample, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The smallest time that at least `share` (0 to 1) of the samples do not exceed, rounded up to a bucket's end; zero
    /// without samples.
    pub fn percentile(&self, share: f64) -> Duration {
        let wanted = (self.total as f64 * share).ceil().max(1.0);
        let mut seen = 0u64;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen as f64 >= wanted {
                return end_of(i).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(sample: Duration) -> usize {
    let micros = (sample.as_secs_f64() * 1e6).max(1.0);
    let place = (micros.log2() * f64::from(PER_DOUBLING)).floor();
    // A float-to-integer cast saturates; the value is not negative.
    (place as usize).min(BUCKETS - 1)
}

fn end_of(bucket: usize) -> Duration {
    Duration::from_secs_f64(2f64.powf((bucket + 1) as f64 / f64::from(PER_DOUBLING)) / 1e6)
}

/// Exact percentiles of a list of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Median, in milliseconds.
    pub p50_ms: f64,
    /// In milliseconds.
    pub p90_ms: f64,
    /// In milliseconds.
    pub p99_ms: f64,
    /// In milliseconds.
    pub max_ms: f64,
}

impl Summary {
    /// Of a list, in any order.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        let at = |share: f64| {
            let rank = (times.len() as f64 * share).ceil() as usize;
            times.get(rank.saturating_sub(1)).map_or(0.0, |t| millis(*t))
        };
        Self { count: times.len(), p50_ms: at(0.5), p90_ms: at(0.9), p99_ms: at(0.99), max_ms: at(1.0) }
    }

    /// Of a histogram: percentiles carry its error, the maximum is exact.
    pub fn of_histogram(histogram: &Histogram) -> Self {
        Self {
            count: usize::try_from(histogram.count()).unwrap_or(usize::MAX),
            p50_ms: millis(histogram.percentile(0.5)),
            p90_ms: millis(histogram.percentile(0.9)),
            p99_ms: millis(histogram.percentile(0.99)),
            max_ms: millis(histogram.max()),
        }
    }
}

/// Milliseconds with three digits behind the point.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_at_most_a_sixteenth_above_the_true_one() {
        let mut histogram = Histogram::default();
        for i in 1..=10_000u64 {
            histogram.add(Duration::from_micros(i * 7));
        }
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let truth = 70_000.0 * share;
            let told = histogram.percentile(share).as_secs_f64() * 1e6;
            assert!(
                told >= truth * 0.999 && told <= truth * (1.0 + 1.0 / 16.0),
                "{share}: {told} for {truth}"
            );
        }
        assert_eq!(histogram.max(), Duration::from_micros(70_000));
    }

    #[test]
    fn a_summary_of_one_sample_is_that_sample() {
        let summary = Summary::of([Duration::from_millis(3)]);
        assert_eq!((summary.count, summary.p50_ms, summary.p99_ms, summary.max_ms), (1, 3.0, 3.0, 3.0));
        assert_eq!(Summary::of([]).count, 0);
    }
}
