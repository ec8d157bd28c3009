//! Waiting on several descriptors from one thread, with a wake handle for others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Most descriptors one [`wait`] takes.
pub const DESCRIPTORS_MAX: usize = 31;

/// Wakes the thread that waits in [`wait`]. Cheap to clone; usable from any thread. One thread waits on a waker; any
/// number may wake it, and wakes before the next wait count as one.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: OwnedFd,
    /// Set by the first wake since the last wait, so that later ones cost no system call.
    pending: AtomicBool,
}

impl Waker {
    /// Makes a waker (an eventfd).
    ///
    /// # Errors
    /// The system's error.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { event, pending: AtomicBool::new(false) }) })
    }

    /// Wakes the waiting thread, now or at its next wait.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // An eventfd refuses a write only when its counter is full: then the thread is being woken anyway.
        let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
    }

    /// Forgets wakes so far. What was queued before a forgotten wake is visible to the caller afterwards.
    fn clear(&self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.shared.event, &mut counter);
        // After the read: a wake in between skips its write, but the caller has yet to look at its queues.
        self.shared.pending.swap(false, Ordering::AcqRel);
    }
}

/// Waits until one of `readable` can be read, the waker is woken, or `timeout` passes (`None` waits for ever). Fills
/// `ready` with one flag per descriptor; a descriptor with an error or a hang-up counts as ready, so that the read
/// that follows reports it.
///
/// # Errors
/// The system's error; `Interrupted` is handled (as an empty result). `InvalidInput` for more than
/// [`DESCRIPTORS_MAX`] descriptors.
///
/// # Panics
/// When `ready` is shorter than `readable`.
pub fn wait(
    readable: &[BorrowedFd<'_>],
    waker: &Waker,
    timeout: Option<Duration>,
    ready: &mut [bool],
) -> io::Result<()> {
    assert!(ready.len() >= readable.len(), "one flag for every descriptor");
    ready.fill(false);
    if readable.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one wait"));
    }
    let event = waker.shared.event.as_fd();
    let mut polled: [PollFd<'_>; DESCRIPTORS_MAX + 1] =
        std::array::from_fn(|_| PollFd::from_borrowed_fd(event, PollFlags::IN));
    for (slot, fd) in polled[1..].iter_mut().zip(readable) {
        *slot = PollFd::from_borrowed_fd(*fd, PollFlags::IN);
    }
    let polled = &mut polled[..=readable.len()];
    let timeout = timeout.map(|t| Timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    match poll(polled, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if !polled[0].revents().is_empty() {
        waker.clear();
    }
    for (flag, slot) in ready.iter_mut().zip(&polled[1..]) {
        *flag = !slot.revents().is_empty();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_wake_before_the_wait_is_not_lost() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        wait(&[], &waker, None, &mut []).unwrap();
    }

    #[test]
    fn a_wake_from_another_thread_ends_an_endless_wait() {
        let waker = Waker::new().unwrap();
        let other = waker.clone();
        let thread = std::thread::spawn(move || other.wake());
        wait(&[], &waker, None, &mut []).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_wake_after_a_wait_wakes_again() {
        let waker = Waker::new().unwrap();
        for _ in 0..3 {
            waker.wake();
            wait(&[], &waker, None, &mut []).unwrap();
        }
        let mut counter = [0; 8];
        assert!(rustix::io::read(&waker.shared.event, &mut counter).is_err(), "every wake was consumed");
    }

    #[test]
    fn only_the_readable_descriptor_is_flagged() {
        let waker = Waker::new().unwrap();
        let (quiet, _quiet_peer) = UnixStream::pair().unwrap();
        let (busy, mut busy_peer) = UnixStream::pair().unwrap();
        busy_peer.write_all(b"x").unwrap();
        let mut ready = [true; 2];
        wait(&[quiet.as_fd(), busy.as_fd()], &waker, None, &mut ready).unwrap();
        assert_eq!(ready, [false, true]);
    }

    #[test]
    fn an_expired_timeout_flags_nothing() {
        let waker = Waker::new().unwrap();
        let (quiet, _peer) = UnixStream::pair().unwrap();
        let mut ready = [true];
        wait(&[quiet.as_fd()], &waker, Some(Duration::from_millis(1)), &mut ready).unwrap();
        assert_eq!(ready, [false]);
    }
}
