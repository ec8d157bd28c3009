//! The clock that counts suspended time (`CLOCK_BOOTTIME`); leases and guards use no other. And the news that it jumped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// Nanoseconds since boot, suspended time included.
pub fn boottime_nanos() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the time since boot is not negative");
    let nanos = u64::try_from(now.tv_nsec).expect("the kernel keeps nanoseconds in 0..1e9");
    seconds * 1_000_000_000 + nanos
}

/// Becomes readable as soon as the machine runs again after it was suspended (and when its wall clock is set): a wait with a
/// timeout does not count suspended time and would sleep on.
#[derive(Debug)]
pub struct ClockJumps {
    fd: OwnedFd,
}

impl ClockJumps {
    /// In seconds since the epoch: a time that never comes.
    const NEVER: i64 = 9_000_000_000;

    /// Watches from now on.
    ///
    /// # Errors
    /// The system's error.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let jumps = Self { fd };
        jumps.arm()?;
        Ok(jumps)
    }

    /// Forgets the jumps so far.
    ///
    /// # Errors
    /// The system's error.
    pub fn clear(&self) -> io::Result<()> {
        // A jump is the error ECANCELED.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        self.arm()
    }

    fn arm(&self) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let never = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: Self::NEVER, ..zero } };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&self.fd, flags, &never)?;
        Ok(())
    }
}

impl AsFd for ClockJumps {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_never_goes_back() {
        let first = boottime_nanos();
        assert!(first > 0);
        assert!(boottime_nanos() >= first);
    }

    #[test]
    fn a_clock_that_does_not_jump_wakes_nobody_also_after_it_was_cleared() {
        let jumps = ClockJumps::new().unwrap();
        let waker = crate::poll::Waker::new().unwrap();
        for _ in 0..2 {
            let mut ready = [true];
            crate::poll::wait(&[jumps.as_fd()], &waker, Some(std::time::Duration::ZERO), &mut ready).unwrap();
            assert_eq!(ready, [false]);
            jumps.clear().unwrap();
        }
    }
}
