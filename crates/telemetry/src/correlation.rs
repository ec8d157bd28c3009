//! The one id that a session carries through logs, spans, audit events and gRPC calls.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

tokio::task_local! {
    static CURRENT: Correlation;
}

/// The gRPC metadata key that carries a correlation id.
pub const CORRELATION_KEY: &str = "jump-correlation";

/// A correlation id: 16 bytes, written as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Correlation([u8; 16]);

/// Says that a text is not a correlation id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a correlation id: expected a UUID")]
pub struct InvalidCorrelation;

impl Correlation {
    /// Wraps the 16 bytes of the store and wire form.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Runs `work` for the session that the id stands for: [`Self::current`] knows it meanwhile.
    ///
    /// # Cancel safety
    /// As `work`.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// The session that the current task works for, if it works for one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|current| *current).ok()
    }
}

impl From<[u8; 16]> for Correlation {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Correlation({self})")
    }
}

impl FromStr for Correlation {
    type Err = InvalidCorrelation;

    fn from_str(text: &str) -> Result<Self, InvalidCorrelation> {
        uuid::Uuid::try_parse(text).map(|uuid| Self(uuid.into_bytes())).map_err(|_| InvalidCorrelation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correlation_id_survives_its_text_form_and_nothing_else_parses() {
        let id = Correlation::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(id.to_string(), "00010203-0405-0607-0809-0a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "+0000000000000000000000000000001", &"g".repeat(32), &"0".repeat(33)] {
            assert!(bad.parse::<Correlation>().is_err(), "{bad:?}");
        }
    }
}
