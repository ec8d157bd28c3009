//! Record sealing on the split keys of a handshake (`docs/protocol.md` §4).
//!
//! A record is `header (16) ‖ ciphertext ‖ tag (16)`. The header is the additional data. Both operations work in
//! place on the caller's buffer and allocate nothing.

use core::fmt;

use ring::aead::{Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroizing;

use crate::ids::ReceiverIndex;
use crate::replay_window::{ReplayError, ReplayWindow};
use crate::wire::DatagramType;

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

impl Aead {
    /// How many records one key may seal (`docs/protocol.md` §4.4).
    pub const fn sealed_records_max(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => 1 << 48,
            Self::Aes256Gcm => 1 << 26,
        }
    }

    /// How many forgeries one key may refuse before it opens nothing more (`docs/protocol.md` §4.4).
    pub const fn refused_records_max(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => 1 << 36,
            Self::Aes256Gcm => 1 << 52,
        }
    }

    pub(crate) fn algorithm(self) -> &'static ring::aead::Algorithm {
        match self {
            Self::ChaCha20Poly1305 => &ring::aead::CHACHA20_POLY1305,
            Self::Aes256Gcm => &ring::aead::AES_256_GCM,
        }
    }

    /// The nonce of `counter`, as Noise defines it for each cipher.
    pub(crate) fn nonce(self, counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self {
            Self::ChaCha20Poly1305 => counter.to_le_bytes(),
            Self::Aes256Gcm => counter.to_be_bytes(),
        });
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What a record carries; the low bits of the header's flags byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// One inner IP packet.
    Packet = 0,
    /// One control frame of the session (`docs/protocol.md` §5).
    Control = 1,
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
    /// The key refused as many forgeries as it may and opens nothing more. Rekey or attach again.
    #[error("the opening key reached its forgery limit")]
    LimitReached,
}

/// The key's limit is reached; it seals nothing more. Rekey or attach again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealing key reached its record limit")]
pub struct SealLimitReached;

/// A 32-byte AEAD key. The expanded form (about half a KiB) is made on first use and can be dropped while idle.
pub(crate) struct RecordKey {
    aead: Aead,
    raw: Zeroizing<[u8; 32]>,
    expanded: Option<Box<Expanded>>,
}

/// ring's form of a key, overwritten on drop.
struct Expanded(LessSafeKey);

impl Expanded {
    fn new(aead: Aead, raw: &[u8; 32]) -> Self {
        let key = UnboundKey::new(aead.algorithm(), raw).expect("both AEADs take 32-byte keys");
        Self(LessSafeKey::new(key))
    }
}

impl Drop for Expanded {
    fn drop(&mut self) {
        // ring offers no erasure: write another key over this one, and keep the optimiser from dropping the write.
        let other = UnboundKey::new(self.0.algorithm(), &[0; 32]).expect("both AEADs take 32-byte keys");
        self.0 = LessSafeKey::new(other);
        core::hint::black_box(&self.0);
    }
}

impl RecordKey {
    pub(crate) fn new(aead: Aead, raw: Zeroizing<[u8; 32]>) -> Self {
        Self { aead, raw, expanded: None }
    }

    fn expanded(&mut self) -> &LessSafeKey {
        &self.expanded.get_or_insert_with(|| Box::new(Expanded::new(self.aead, &self.raw))).0
    }

    /// Encrypts `text` in place; returns the tag.
    fn seal(&mut self, counter: u64, header: &[u8], text: &mut [u8]) -> Tag {
        let nonce = self.aead.nonce(counter);
        self.expanded()
            .seal_in_place_separate_tag(nonce, Aad::from(header), text)
            .expect("no datagram comes near an AEAD's length limit")
    }

    /// Decrypts `text ‖ tag` in place; on refusal the bytes are of no use.
    fn open<'a>(&mut self, counter: u64, header: &[u8], text: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let nonce = self.aead.nonce(counter);
        self.expanded().open_in_place(nonce, Aad::from(header), text).ok()
    }
}

/// The sending half of a session's keys. Not cloneable; owns its counter; stops at its limit.
///
/// ```compile_fail
/// fn duplicate(key: &jump_crypto::record::SealingKey) -> jump_crypto::record::SealingKey {
///     key.clone()
/// }
/// ```
pub struct SealingKey {
    key: RecordKey,
    datagram: DatagramType,
    receiver: ReceiverIndex,
    next: u64,
    limit: u64,
}

/// The receiving half of a session's keys, with its replay window.
pub struct OpeningKey {
    key: RecordKey,
    datagram: DatagramType,
    receiver: ReceiverIndex,
    window: ReplayWindow,
    refused: u64,
    limit: u64,
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
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        Self::parse_as(DatagramType::Record, datagram)
    }

    /// Parses the header of a mesh `datagram`; `None` when it is not a well-formed mesh record.
    pub fn parse_mesh(datagram: &[u8]) -> Option<Self> {
        Self::parse_as(DatagramType::Mesh, datagram)
    }

    fn parse_as(datagram_type: DatagramType, datagram: &[u8]) -> Option<Self> {
        if datagram.len() < OVERHEAD {
            return None;
        }
        // protocol.md §4.1: type, flags, two zero bytes, receiver index, counter.
        let [kind, flags, 0, 0, r0, r1, r2, r3, counter @ ..] = datagram.first_chunk::<HEADER_LEN>()? else {
            return None;
        };
        let content = match flags {
            0 => Content::Packet,
            1 => Content::Control,
            _ => return None,
        };
        (*kind == datagram_type as u8).then_some(Self {
            receiver: ReceiverIndex(u32::from_be_bytes([*r0, *r1, *r2, *r3])),
            counter: u64::from_be_bytes(*counter),
            content,
        })
    }

    fn write(&self, datagram_type: DatagramType, out: &mut [u8; HEADER_LEN]) {
        out[..4].copy_from_slice(&[datagram_type as u8, self.content as u8, 0, 0]);
        out[4..8].copy_from_slice(&self.receiver.0.to_be_bytes());
        out[8..].copy_from_slice(&self.counter.to_be_bytes());
    }
}

impl SealingKey {
    pub(crate) fn new(key: RecordKey, datagram: DatagramType, receiver: ReceiverIndex) -> Self {
        let limit = key.aead.sealed_records_max();
        Self { key, datagram, receiver, next: 0, limit }
    }

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
        content: Content,
        buffer: &mut [u8],
        plaintext_len: usize,
    ) -> Result<usize, SealLimitReached> {
        let counter = self.take_counter()?;
        let record = &mut buffer[..plaintext_len + OVERHEAD];
        let (header, rest) = record.split_first_chunk_mut::<HEADER_LEN>().expect("longer than OVERHEAD");
        let (text, tag) = rest.split_at_mut(plaintext_len);
        RecordHeader { receiver: self.receiver, counter, content }.write(self.datagram, header);
        tag.copy_from_slice(self.key.seal(counter, header, text).as_ref());
        Ok(plaintext_len + OVERHEAD)
    }

    /// Seals `text` under additional data of the caller's own, for handshake messages.
    pub(crate) fn seal_detached(
        &mut self,
        header: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_LEN], SealLimitReached> {
        let counter = self.take_counter()?;
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(self.key.seal(counter, header, text).as_ref());
        Ok(tag)
    }

    /// Every counter leaves here once, before it is used.
    fn take_counter(&mut self) -> Result<u64, SealLimitReached> {
        if self.next >= self.limit {
            return Err(SealLimitReached);
        }
        let counter = self.next;
        self.next += 1;
        Ok(counter)
    }

    /// How many records this key has sealed.
    pub fn sealed(&self) -> u64 {
        self.next
    }

    /// True when the key should be replaced by a rekey (well before its limit).
    pub fn wants_rekey(&self) -> bool {
        self.next >= self.limit / 2
    }

    /// Gives up every counter below `counter` without using it; never goes back. For tests of what happens late in the life
    /// of a key.
    pub fn skip_to(&mut self, counter: u64) {
        self.next = self.next.max(counter);
    }

    /// The index that sealed records carry.
    pub fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// Frees what an idle key can do without (its expanded form); the next [`seal`](Self::seal) makes it again.
    pub fn shrink(&mut self) {
        self.key.expanded = None;
    }
}

impl OpeningKey {
    pub(crate) fn new(key: RecordKey, datagram: DatagramType, receiver: ReceiverIndex, first: u64) -> Self {
        let limit = key.aead.refused_records_max();
        Self { key, datagram, receiver, window: ReplayWindow::starting_at(first), refused: 0, limit }
    }

    /// Opens `record` in place: window check, AEAD, window commit.
    ///
    /// # Errors
    /// [`OpenError`]; no state changed (a failed authentication is counted). The record's bytes are of no use then.
    pub fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let header = RecordHeader::parse_as(self.datagram, record).ok_or(OpenError::Malformed)?;
        if header.receiver != self.receiver {
            return Err(OpenError::Malformed);
        }
        if self.refused >= self.limit {
            return Err(OpenError::LimitReached);
        }
        let RecordHeader { counter, content, .. } = header;
        self.window.check(counter)?;
        let (header, text) = record.split_first_chunk_mut::<HEADER_LEN>().ok_or(OpenError::Malformed)?;
        let Some(plaintext) = self.key.open(counter, header, text) else {
            self.refused += 1;
            return Err(OpenError::Authentication);
        };
        let newest = self.window.newest().is_none_or(|newest| counter > newest);
        self.window.commit(counter)?;
        Ok(Opened { content, counter, newest, plaintext })
    }

    /// True when the peer has sealed so much under this key that it should be replaced by a rekey.
    pub fn wants_rekey(&self) -> bool {
        self.window.newest().is_some_and(|newest| newest >= self.key.aead.sealed_records_max() / 2)
    }

    /// Opens `text ‖ tag` under additional data of the caller's own, for handshake messages. Outside the window.
    pub(crate) fn open_detached<'a>(
        &mut self,
        counter: u64,
        header: &[u8],
        text: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key.open(counter, header, text)
    }

    /// The index that records to this key carry.
    pub fn receiver(&self) -> ReceiverIndex {
        self.receiver
    }

    /// How many records failed authentication.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Frees what an idle key can do without: its expanded form and the replay bitmap. Records up to the newest counter
    /// are refused from now on, so call it only when nothing can be in flight (seconds of silence).
    pub fn shrink(&mut self) {
        self.key.expanded = None;
        self.window.shrink();
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({:?} to {:?}, {} sealed)", self.key.aead, self.receiver, self.next)
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpeningKey({:?} at {:?}, newest {:?})", self.key.aead, self.receiver, self.window.newest())
    }
}

#[cfg(test)]
mod tests;
