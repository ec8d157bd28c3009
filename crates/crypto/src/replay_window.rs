//! The anti-replay window of RFC 6479, 8,192 counters wide.

/// Which counters were accepted. Use: [`check`](Self::check), then open the record, then [`commit`](Self::commit).
#[derive(Clone)]
pub struct ReplayWindow {
    _private: (),
}

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
        todo!()
    }

    /// Says whether `counter` may be accepted. Changes nothing.
    ///
    /// # Errors
    /// [`ReplayError`] when it may not.
    pub fn check(&self, _counter: u64) -> Result<(), ReplayError> {
        todo!()
    }

    /// Marks an authenticated `counter` as accepted.
    ///
    /// # Errors
    /// [`ReplayError`] when it was accepted meanwhile; nothing changes then.
    pub fn commit(&mut self, _counter: u64) -> Result<(), ReplayError> {
        todo!()
    }

    /// The highest accepted counter, if any.
    pub fn newest(&self) -> Option<u64> {
        todo!()
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}
