//! Conversions between generated types and domain values.
//!
//! Towards the domain they either yield a valid value or list every bad field; towards the wire they cannot fail.

use core::fmt;
use std::time::{Duration, SystemTime};

use jump_session::ids::{Incarnation, InvalidId};
use jump_session::ownership::{Owner, UnixMillis};
use jump_session::reason::Reason;

mod control;
mod policy;
mod store;

pub use control::{AttachAsk, switch_ages, switch_ages_ms};
pub use policy::{device_policy, stored_policy};

/// One field that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadField {
    /// Its path, for example `claimant.node_id`.
    pub field: String,
    /// What it must hold, one clause.
    pub description: String,
}

/// Every bad field of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BadFields(pub Vec<BadField>);

impl fmt::Display for BadFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, bad) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", bad.field, bad.description)?;
        }
        Ok(())
    }
}

/// Reads fields one after the other and remembers each bad one.
#[derive(Debug, Default)]
pub struct Fields {
    bad: Vec<BadField>,
}

impl Fields {
    /// Notes a bad field.
    pub fn bad(&mut self, field: &str, description: impl fmt::Display) {
        self.bad.push(BadField { field: field.to_owned(), description: description.to_string() });
    }

    /// Unwraps a parsed field, or notes why it is bad.
    pub fn take<T>(&mut self, field: &str, parsed: Result<T, impl fmt::Display>) -> Option<T> {
        parsed.map_err(|error| self.bad(field, error)).ok()
    }

    /// Parses an identifier.
    pub fn id<T: core::str::FromStr<Err = InvalidId>>(&mut self, field: &str, text: &str) -> Option<T> {
        self.take(field, text.parse())
    }

    /// Reads exactly `N` bytes.
    pub fn bytes<const N: usize>(&mut self, field: &str, bytes: &[u8]) -> Option<[u8; N]> {
        let parsed = <[u8; N]>::try_from(bytes)
            .map_err(|_| format!("must have exactly {N} bytes, has {}", bytes.len()));
        self.take(field, parsed)
    }

    /// Parses a reason code.
    pub fn reason(&mut self, field: &str, code: &str) -> Option<Reason> {
        let parsed = Reason::from_code(code).ok_or("is not a known reason code");
        self.take(field, parsed)
    }

    /// Requires an incarnation: a positive store revision.
    pub fn incarnation(&mut self, field: &str, value: u64) -> Option<Incarnation> {
        let parsed = if value > 0 { Ok(Incarnation(value)) } else { Err("must be positive") };
        self.take(field, parsed)
    }

    /// Reads a run of a node from its two fields.
    pub fn owner(&mut self, node_id: &str, incarnation: u64) -> Option<Owner> {
        let node = self.id("node_id", node_id);
        let incarnation = self.incarnation("incarnation", incarnation);
        Some(Owner { node: node?, incarnation: incarnation? })
    }

    /// Closes the message: `build` sees no `None` unless a field was bad.
    ///
    /// # Errors
    /// [`BadFields`] when any field was bad, or when `build` found one missing.
    pub fn finish<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, BadFields> {
        if !self.bad.is_empty() {
            return Err(BadFields(self.bad));
        }
        build().ok_or_else(|| {
            BadFields(vec![BadField { field: String::new(), description: "a field is missing".to_owned() }])
        })
    }
}

/// A timestamp of the wire.
pub fn timestamp(at: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(at / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(at % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// Milliseconds since the Unix epoch; `None` before it.
pub fn unix_millis(at: prost_types::Timestamp) -> Option<UnixMillis> {
    let since = SystemTime::try_from(at).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// A duration of the wire; longer than the wire can say becomes its longest.
pub fn duration(of: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(of)
        .unwrap_or(prost_types::Duration { seconds: 315_576_000_000, nanos: 0 })
}
