//! The random generator under watch: its health as metrics, its failure as a log line and an audit event.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use jump_crypto::entropy::{Entropy, EntropyError, OsEntropy};

use crate::audit::{Event, SecurityAction, emit};
use crate::metrics::{Kind, MetricDef, Unit, before_scrape};

/// Whether keys can be made.
pub const HEALTHY: MetricDef = MetricDef {
    name: "jump_entropy_healthy",
    kind: Kind::Gauge,
    unit: Unit::Flag,
    help: "Whether every random generator in use passes its health tests; 0 when one has failed and makes no keys.",
    labels: &[],
};

/// Failures, by test.
pub const FAILURES: MetricDef = MetricDef {
    name: "jump_entropy_failures_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Random generators that failed, by test: source, repetition_count, adaptive_proportion.",
    labels: &["test"],
};

/// The metrics of this module.
pub const METRICS: &[MetricDef] = &[HEALTHY, FAILURES];

/// The tests that a generator can fail, with their labels.
const TESTS: [(EntropyError, &str); 3] = [
    (EntropyError::Source, "source"),
    (EntropyError::RepetitionCount, "repetition_count"),
    (EntropyError::AdaptiveProportion, "adaptive_proportion"),
];

/// Failures so far, in the order of [`TESTS`].
static FAILED: [AtomicU64; TESTS.len()] = [const { AtomicU64::new(0) }; TESTS.len()];
/// Failed generators that are still in use.
static FAILING: AtomicU64 = AtomicU64::new(0);

/// A health-tested generator whose first failure is counted, logged and told to auditors, once. Every further use fails
/// in silence: the generator's tests latch.
#[derive(Debug)]
pub struct WatchedEntropy<S = OsEntropy> {
    source: S,
    failed: bool,
}

impl WatchedEntropy {
    /// Opens the operating system's generator and runs its start-up tests.
    ///
    /// # Errors
    /// The first failed test; it has been told already.
    pub fn open() -> Result<Self, EntropyError> {
        publish();
        OsEntropy::new().map(Self::watch).inspect_err(|error| tell(*error))
    }
}

impl<S: Entropy> WatchedEntropy<S> {
    /// Watches `source`, which tests itself.
    pub fn watch(source: S) -> Self {
        publish();
        Self { source, failed: false }
    }
}

impl<S: Entropy> Entropy for WatchedEntropy<S> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        let outcome = self.source.fill(bytes);
        if let Err(error) = outcome
            && !self.failed
        {
            self.failed = true;
            tell(error);
        }
        outcome
    }
}

impl<S> Drop for WatchedEntropy<S> {
    fn drop(&mut self) {
        if self.failed {
            FAILING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cold]
fn tell(error: EntropyError) {
    FAILING.fetch_add(1, Ordering::Relaxed);
    for ((test, _), failed) in TESTS.iter().zip(&FAILED) {
        failed.fetch_add(u64::from(*test == error), Ordering::Relaxed);
    }
    tracing::error!(%error, "no keys are made with this generator any more");
    emit(Event::security(SecurityAction::EntropyFailed).detail(error.to_string()));
}

/// From the first generator on, every scrape says how they are.
fn publish() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        before_scrape(|| {
            HEALTHY.gauge(&[]).set(f64::from(u8::from(FAILING.load(Ordering::Relaxed) == 0)));
            for ((_, test), failed) in TESTS.iter().zip(&FAILED) {
                FAILURES.counter(&[("test", test)]).absolute(failed.load(Ordering::Relaxed));
            }
        });
    });
}
