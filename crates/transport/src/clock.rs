//! The clock that counts suspended time (`CLOCK_BOOTTIME`); leases and guards use no other.

/// Nanoseconds since boot, suspended time included.
pub fn boottime_nanos() -> u64 {
    todo!()
}
