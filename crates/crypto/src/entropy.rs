//! Randomness behind one type, health-tested.
//!
//! The operating system's generator is tested as a source of full-entropy bytes (H = 8 bits per sample) with the two
//! continuous tests of NIST SP 800-90B §4.4. The standard suggests a false-alarm rate between 2⁻²⁰ and 2⁻⁴⁰ per
//! sample; a failure here is final for the process, and a gateway in a storm draws 2²⁰ bytes a second, so the rate is
//! set to α = 2⁻⁶⁴. The tests still see a stuck generator within 9 bytes.
//!
//! - Repetition count: C = 1 + ⌈−log₂ α / H⌉ = 1 + 64/8 = 9.
//! - Adaptive proportion: window W = 512, C = 1 + critbinom(512, 2⁻⁸, 1 − 2⁻⁶⁴) = 26.

use core::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroize;

/// A generator refused to produce bytes; no key may be made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntropyError {
    /// The operating system's generator returned an error.
    #[error("the operating system's random generator failed")]
    Source,
    /// The repetition count test failed (SP 800-90B §4.4.1).
    #[error("the random generator repeats itself (repetition count test)")]
    RepetitionCount,
    /// The adaptive proportion test failed (SP 800-90B §4.4.2).
    #[error("the random generator is biased (adaptive proportion test)")]
    AdaptiveProportion,
}

/// A source of unpredictable bytes. Production uses [`OsEntropy`]; the simulation a seeded generator.
pub trait Entropy: Send {
    /// Fills `bytes`, or refuses.
    ///
    /// # Errors
    /// A refusal is final for the generator: the health tests latch.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError>;
}

/// How many bytes the start-up tests read and throw away (SP 800-90B §4.3 asks for at least 1,024).
pub const STARTUP_BYTES: usize = 4096;
/// Equal bytes in a row that fail the repetition count test.
pub const REPETITION_CUTOFF: u32 = 9;
/// Bytes in one window of the adaptive proportion test.
pub const PROPORTION_WINDOW: u32 = 512;
/// Occurrences of a window's first byte in that window that fail the adaptive proportion test.
pub const PROPORTION_CUTOFF: u32 = 26;

/// The continuous tests; every byte of a source passes through [`sample`](Self::sample).
#[derive(Default)]
struct HealthTests {
    last: u8,
    repetitions: u32,
    window_first: u8,
    window_seen: u32,
    window_matches: u32,
}

impl HealthTests {
    fn sample(&mut self, byte: u8) -> Result<(), EntropyError> {
        if self.repetitions > 0 && byte == self.last {
            self.repetitions += 1;
        } else {
            self.last = byte;
            self.repetitions = 1;
        }
        if self.repetitions >= REPETITION_CUTOFF {
            return Err(EntropyError::RepetitionCount);
        }
        if self.window_seen == 0 {
            self.window_first = byte;
            self.window_matches = 0;
        }
        self.window_seen += 1;
        self.window_matches += u32::from(byte == self.window_first);
        if self.window_matches >= PROPORTION_CUTOFF {
            return Err(EntropyError::AdaptiveProportion);
        }
        if self.window_seen == PROPORTION_WINDOW {
            self.window_seen = 0;
        }
        Ok(())
    }
}

/// A source under the continuous health tests. The first failure latches: nothing is produced after it.
pub struct Tested<S> {
    source: S,
    tests: HealthTests,
    failed: Option<EntropyError>,
}

impl<S: Entropy> Tested<S> {
    /// Runs the start-up tests on `source`.
    ///
    /// # Errors
    /// The first failed test.
    pub fn new(source: S) -> Result<Self, EntropyError> {
        let mut tested = Self { source, tests: HealthTests::default(), failed: None };
        let mut discarded = [0; STARTUP_BYTES];
        tested.fill(&mut discarded)?;
        discarded.zeroize();
        Ok(tested)
    }

    /// The latched failure, if any: for health pages and metrics.
    pub fn failure(&self) -> Option<EntropyError> {
        self.failed
    }
}

impl<S: Entropy> Entropy for Tested<S> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        if let Some(error) = self.failed {
            bytes.zeroize();
            return Err(error);
        }
        let outcome =
            self.source.fill(bytes).and_then(|()| bytes.iter().try_for_each(|byte| self.tests.sample(*byte)));
        if let Err(error) = outcome {
            bytes.zeroize();
            self.failed = Some(error);
        }
        outcome
    }
}

/// The operating system's generator as it comes.
struct System(SystemRandom);

impl Entropy for System {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.0.fill(bytes).map_err(|_| EntropyError::Source)
    }
}

/// The operating system's generator with the continuous health tests of SP 800-90B.
pub struct OsEntropy(Tested<System>);

impl OsEntropy {
    /// Opens the generator and runs the start-up tests.
    ///
    /// # Errors
    /// The first failed test.
    pub fn new() -> Result<Self, EntropyError> {
        Tested::new(System(SystemRandom::new())).map(Self)
    }

    /// The latched failure, if any: for health pages and metrics.
    pub fn failure(&self) -> Option<EntropyError> {
        self.0.failure()
    }
}

impl Entropy for OsEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.0.fill(bytes)
    }
}

impl fmt::Debug for OsEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OsEntropy")
    }
}

#[cfg(test)]
mod tests;
