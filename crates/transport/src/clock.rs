//! The clock that counts suspended time (`CLOCK_BOOTTIME`); leases and guards use no other.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspended time included.
pub fn boottime_nanos() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the time since boot is not negative");
    let nanos = u64::try_from(now.tv_nsec).expect("the kernel keeps nanoseconds in 0..1e9");
    seconds * 1_000_000_000 + nanos
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
}
