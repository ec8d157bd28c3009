//! Generators for this crate's tests.

use ring::digest::{SHA256, digest};

use crate::entropy::{Entropy, EntropyError};

/// Deterministic bytes: SHA-256 of the seed and a block counter.
pub(crate) struct SeededEntropy {
    seed: u64,
    block: u64,
}

impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, block: 0 }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for chunk in bytes.chunks_mut(32) {
            let hash = digest(&SHA256, &[self.seed.to_be_bytes(), self.block.to_be_bytes()].concat());
            chunk.copy_from_slice(&hash.as_ref()[..chunk.len()]);
            self.block += 1;
        }
        Ok(())
    }
}

/// A generator that always refuses.
pub(crate) struct RefusingEntropy;

impl Entropy for RefusingEntropy {
    fn fill(&mut self, _: &mut [u8]) -> Result<(), EntropyError> {
        Err(EntropyError::Source)
    }
}
