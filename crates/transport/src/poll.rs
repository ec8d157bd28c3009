//! Waiting on several descriptors from one thread, with a wake handle for others.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Wakes the thread that waits in [`wait`]. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Waker {
    _private: (),
}

impl Waker {
    /// Makes a waker (an eventfd).
    ///
    /// # Errors
    /// The system's error.
    pub fn new() -> io::Result<Self> {
        todo!()
    }

    /// Wakes the waiting thread, now or at its next wait.
    pub fn wake(&self) {
        todo!()
    }
}

/// Waits until one of `readable` can be read, the waker is woken, or `timeout` passes. Fills `ready` with one flag per
/// descriptor.
///
/// # Errors
/// The system's error; `Interrupted` is handled.
pub fn wait(
    _readable: &[BorrowedFd<'_>],
    _waker: &Waker,
    _timeout: Option<Duration>,
    _ready: &mut [bool],
) -> io::Result<()> {
    todo!()
}
