//! Randomness behind one type, health-tested.

use core::fmt;

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

/// The operating system's generator with the continuous health tests of SP 800-90B.
pub struct OsEntropy {
    _private: (),
}

impl OsEntropy {
    /// Opens the generator and runs the start-up tests.
    ///
    /// # Errors
    /// The first failed test.
    pub fn new() -> Result<Self, EntropyError> {
        todo!()
    }
}

impl Entropy for OsEntropy {
    fn fill(&mut self, _bytes: &mut [u8]) -> Result<(), EntropyError> {
        todo!()
    }
}

impl fmt::Debug for OsEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OsEntropy")
    }
}
