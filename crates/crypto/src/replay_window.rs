//! The anti-replay window of RFC 6479, 8,192 counters wide.
//!
//! The bitmap is a ring of blocks. Advancing the newest counter clears only the blocks that it moves over, so no bit is
//! ever shifted. One block more than the width is kept, so that the whole width is told apart wherever the newest
//! counter stands inside its block.
//!
//! A key that has seen fewer than 64 counters keeps them in one word; the 1 KiB ring is allocated with the first
//! counter past that. Most keys of an idle session never get there.

/// Which counters were accepted. Use: [`check`](Self::check), then open the record, then [`commit`](Self::commit).
#[derive(Clone)]
pub struct ReplayWindow(Window<129, 64>);

/// A counter that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The counter was accepted before.
    #[error("counter was already accepted")]
    Duplicate,
    /// The counter lies behind the window.
    #[error("counter is older than the window")]
    TooOld,
}

impl ReplayWindow {
    /// How many counters behind the newest are still told apart.
    pub const WIDTH: u64 = 8192;

    /// An empty window.
    pub fn new() -> Self {
        Self::starting_at(0)
    }

    /// A window that takes `first` and everything after it.
    pub fn starting_at(first: u64) -> Self {
        Self(Window::starting_at(first))
    }

    /// Says whether `counter` may be accepted. Changes nothing.
    ///
    /// # Errors
    /// [`ReplayError`] when it may not.
    pub fn check(&self, counter: u64) -> Result<(), ReplayError> {
        self.0.check(counter)
    }

    /// Marks an authenticated `counter` as accepted.
    ///
    /// # Errors
    /// [`ReplayError`] when it was accepted meanwhile; nothing changes then.
    pub fn commit(&mut self, counter: u64) -> Result<(), ReplayError> {
        self.0.commit(counter)
    }

    /// The highest accepted counter, if any.
    pub fn newest(&self) -> Option<u64> {
        self.0.newest
    }

    /// Frees the bitmap of an idle key: everything up to the newest counter counts as accepted from now on.
    pub fn shrink(&mut self) {
        self.0.shrink();
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

/// The window with its sizes open, so that tests can be exhaustive at small ones: `BLOCKS` blocks of `BITS` bits each,
/// telling apart `(BLOCKS - 1) * BITS` counters behind the newest.
#[derive(Clone)]
struct Window<const BLOCKS: usize, const BITS: u64> {
    /// Everything below is refused.
    floor: u64,
    newest: Option<u64>,
    /// Accepted counters of `floor..floor + BITS`, until `ring` takes over.
    first: u64,
    ring: Option<Box<[u64; BLOCKS]>>,
}

impl<const BLOCKS: usize, const BITS: u64> Window<BLOCKS, BITS> {
    const WIDTH: u64 = (BLOCKS as u64 - 1) * BITS;

    fn starting_at(first: u64) -> Self {
        Self { floor: first, newest: None, first: 0, ring: None }
    }

    fn check(&self, counter: u64) -> Result<(), ReplayError> {
        if counter < self.floor {
            return Err(ReplayError::TooOld);
        }
        let Some(newest) = self.newest else { return Ok(()) };
        if counter > newest {
            return Ok(());
        }
        if newest - counter > Self::WIDTH {
            return Err(ReplayError::TooOld);
        }
        let (word, mask) = match &self.ring {
            Some(ring) => (ring[Self::slot(counter)], Self::bit(counter)),
            // Without a ring, `newest` is below `floor + BITS`, and so is `counter`.
            None => (self.first, 1 << (counter - self.floor)),
        };
        if word & mask == 0 { Ok(()) } else { Err(ReplayError::Duplicate) }
    }

    fn commit(&mut self, counter: u64) -> Result<(), ReplayError> {
        self.check(counter)?;
        if self.ring.is_none() {
            if counter - self.floor < BITS {
                self.first |= 1 << (counter - self.floor);
                self.newest = self.newest.max(Some(counter));
                return Ok(());
            }
            self.spill();
        }
        let newest = self.newest.unwrap_or(self.floor);
        let ring = self.ring.as_mut().expect("spilled above");
        if counter > newest {
            // Blocks between the newest and this counter hold bits of counters that leave the window.
            let steps = (counter / BITS - newest / BITS).min(BLOCKS as u64);
            for step in 0..steps {
                ring[Self::slot(counter - step * BITS)] = 0;
            }
            self.newest = Some(counter);
        }
        ring[Self::slot(counter)] |= Self::bit(counter);
        Ok(())
    }

    /// Moves the first counters into a ring.
    fn spill(&mut self) {
        let mut ring = Box::new([0; BLOCKS]);
        for offset in (0..BITS).filter(|offset| self.first >> offset & 1 == 1) {
            let counter = self.floor + offset;
            ring[Self::slot(counter)] |= Self::bit(counter);
        }
        self.ring = Some(ring);
    }

    fn shrink(&mut self) {
        let Some(next) = self.newest.and_then(|newest| newest.checked_add(1)) else { return };
        self.floor = next;
        self.first = 0;
        self.ring = None;
    }

    fn slot(counter: u64) -> usize {
        (counter / BITS % BLOCKS as u64) as usize
    }

    fn bit(counter: u64) -> u64 {
        1 << (counter % BITS)
    }
}

#[cfg(test)]
mod tests;
