//! The one place where control reads the time of day.

use std::time::{SystemTime, UNIX_EPOCH};

use jump_session::ownership::UnixMillis;

/// Milliseconds since the Unix epoch. Bounds lifetimes and windows; never decides who owns a session.
pub(crate) fn unix_millis() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_seconds() -> u64 {
    unix_millis() / 1000
}
