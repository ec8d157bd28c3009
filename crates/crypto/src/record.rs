//! Record sealing on the split keys of a handshake (`docs/protocol.md` §4).
//!
//! A record is `header (16) ‖ ciphertext ‖ tag (16)`. The header is the additional data. Both operations work in
//! place on the caller's buffer and allocate nothing.

use crate::ids::ReceiverIndex;
use crate::replay_window::ReplayError;

/// Bytes before the ciphertext.
pub const HEADER_LEN: usize = 16;
/// Bytes after the ciphertext.
pub const TAG_LEN: usize = 16;
/// Bytes that a record adds to its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// The AEAD of an established session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aead {
    /// ChaCha20-Poly1305 (RFC 8439); nonce: 4 zero bytes, then the counter little-endian.
    ChaCha20Poly1305,
    /// AES-256-GCM; nonce: 4 zero bytes, then the counter big-endian.
    Aes256Gcm,
}

/// What a record carries; the low bits of the header's flags byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// One inner IP packet.
    Packet,
    /// One control frame of the session (`docs/protocol.md` §5).
    Control,
}

/// A record was refused; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than a record, or not of this type or version.
    #[error("malformed record")]
    Malformed,
    /// The counter was accepted before or is too old.
    #[error("replayed record")]
    Replay(#[from] ReplayError),
    /// The tag did not verify.
    #[error("record failed authentication")]
    Authentication,
}

/// The key's limit is reached; it seals nothing more. Rekey or attach again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealing key reached its record limit")]
pub struct SealLimitReached;

/// The sending half of a session's keys. Not cloneable; owns its counter; stops at its limit.
pub struct SealingKey {
    _private: (),
}

/// The receiving half of a session's keys, with its replay window.
pub struct OpeningKey {
    _private: (),
}

/// An opened record.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// What it carries.
    pub content: Content,
    /// The sender's counter.
    pub counter: u64,
    /// True when no higher counter was accepted before: the record may move the session's path.
    pub newest: bool,
    /// The plaintext, inside the caller's buffer.
    pub plaintext: &'a mut [u8],
}

/// The parsed header of a record, before any authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// The receiver's index.
    pub receiver: ReceiverIndex,
    /// The sender's counter.
    pub counter: u64,
    /// What it claims to carry.
    pub content: Content,
}

impl RecordHeader {
    /// Parses the header of `datagram`; `None` when it is not a well-formed record.
    pub fn parse(_datagram: &[u8]) -> Option<Self> {
        todo!()
    }
}

impl SealingKey {
    /// Seals the plaintext at `buffer[HEADER_LEN..HEADER_LEN + plaintext_len]` in place; writes the header before it and
    /// the tag behind it. Returns the record's length: `plaintext_len + OVERHEAD`.
    ///
    /// # Errors
    /// [`SealLimitReached`] at the limit; the buffer is unchanged.
    ///
    /// # Panics
    /// When `buffer` is shorter than `plaintext_len + OVERHEAD`.
    pub fn seal(
        &mut self,
        _content: Content,
        _buffer: &mut [u8],
        _plaintext_len: usize,
    ) -> Result<usize, SealLimitReached> {
        todo!()
    }

    /// How many records this key has sealed.
    pub fn sealed(&self) -> u64 {
        todo!()
    }

    /// True when the key should be replaced by a rekey (well before its limit).
    pub fn wants_rekey(&self) -> bool {
        todo!()
    }
}

impl OpeningKey {
    /// Opens `record` in place: window check, AEAD, window commit.
    ///
    /// # Errors
    /// [`OpenError`]; no state changed.
    pub fn open<'a>(&mut self, _record: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        todo!()
    }
}
