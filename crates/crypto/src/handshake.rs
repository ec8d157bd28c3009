//! The attach handshake: Noise `IK`, with commit on confirmation (`docs/protocol.md` §3).
//!
//! ```text
//! client                                             gateway
//! Initiation::start ── AttachInit ───────────────▶ Responder::read_init      (changes no state)
//! Initiation::finish ◀── AttachReply ───────────── PendingReply::write_reply
//!        │ verifies node certificate and proof          │
//!        ▼                                              ▼
//!   Established ── first sealed record (Confirm) ──▶ Established
//! ```

use std::net::SocketAddr;

use crate::certificate::{NodeCertificate, NodeClaims, NodeSigner, VerifyError};
use crate::cookie::HINT_LEN;
use crate::entropy::{Entropy, EntropyError};
use crate::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, ReceiverIndex, SessionId};
use crate::keys::{ClusterKeyId, ClusterPublic, ClusterSecret, DeviceSecret, GrantVerifier};
use crate::record::{Aead, OpeningKey, SealingKey};

/// Every `AttachInit` is padded to this length, in bytes, so that no reply is longer than its trigger.
pub const INIT_LEN: usize = 640;
/// The longest `AttachReply`, in bytes.
pub const REPLY_LEN_MAX: usize = INIT_LEN;
/// How many gateway addresses a reply may carry.
pub const ROSTER_MAX: usize = 8;

/// Noise and record suites in the order of their wire numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Suite {
    /// `Noise_IK_25519_ChaChaPoly_BLAKE2s`.
    ChaChaPolyBlake2s = 1,
    /// `Noise_IK_25519_AESGCM_SHA256`.
    AesGcmSha256 = 2,
}

impl Suite {
    /// The AEAD of the session's records.
    pub fn aead(self) -> Aead {
        match self {
            Self::ChaChaPolyBlake2s => Aead::ChaCha20Poly1305,
            Self::AesGcmSha256 => Aead::Aes256Gcm,
        }
    }

    /// The suite that this CPU does faster (AES-GCM where AES and carry-less multiplication are in hardware).
    pub fn preferred() -> Self {
        todo!()
    }
}

/// What the client asks for; the payload of Noise message 1 (`docs/protocol.md` §3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachIntent {
    /// The session to go on with, or `None` for a new one.
    pub session: Option<SessionId>,
    /// Orders the client's own attempts; persisted before use.
    pub attach_seq: AttachSeq,
    /// Makes a retry idempotent.
    pub attempt: AttemptId,
    /// The last epoch that the client accepted; 0 for none.
    pub last_epoch: Epoch,
    /// Why: a number of the reason table in `jump-session` (opaque here).
    pub reason: u16,
    /// Optional behaviour bits (`docs/protocol.md` §3.2).
    pub capabilities: u32,
    /// True for a rekey inside the current epoch: the same handshake, without a store transaction.
    pub rekey: bool,
}

/// A handshake message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Wrong type, version, length or field.
    #[error("malformed handshake message")]
    Malformed,
    /// Made for a cluster key that this side does not hold.
    #[error("unknown cluster handshake key")]
    UnknownClusterKey,
    /// The suite is not one that this side accepts.
    #[error("unsupported suite")]
    UnsupportedSuite,
    /// A Noise check failed: wrong key, or a forged or damaged message.
    #[error("handshake failed authentication")]
    Authentication,
    /// The node's certificate or its proof was refused.
    #[error("the gateway could not prove that control vouches for it")]
    NodeProof(#[source] VerifyError),
    /// No randomness, no keys.
    #[error("no fresh keys can be made")]
    Entropy(#[from] EntropyError),
}

/// The client's side between `AttachInit` and `AttachReply`.
pub struct Initiation {
    _private: (),
}

/// Everything the client starts a handshake with.
pub struct InitiationInput<'a> {
    /// The device's key.
    pub device: &'a DeviceSecret,
    /// The cluster key to answer.
    pub cluster: &'a ClusterPublic,
    /// The suite to use.
    pub suite: Suite,
    /// What is asked.
    pub intent: &'a AttachIntent,
    /// The client's index: the receiver index of everything sent to it under the new keys. Random.
    pub index: ReceiverIndex,
    /// A cookie from an earlier `CookieReply` of the same cluster, if any.
    pub cookie: Option<[u8; 16]>,
}

impl Initiation {
    /// Writes an `AttachInit` of [`INIT_LEN`] bytes into `out` and returns the waiting side.
    ///
    /// # Errors
    /// [`HandshakeError::Entropy`].
    pub fn start(
        _input: &InitiationInput<'_>,
        _entropy: &mut dyn Entropy,
        _out: &mut [u8; INIT_LEN],
    ) -> Result<Self, HandshakeError> {
        todo!()
    }

    /// The client's index of this handshake; the receiver index of the awaited reply.
    pub fn index(&self) -> ReceiverIndex {
        todo!()
    }

    /// Reads an `AttachReply`, verifies the node's certificate and proof, and returns the established keys.
    /// A refusal leaves the initiation as it was: a forged reply cannot end it.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn finish(
        &mut self,
        _reply: &[u8],
        _verifier: &GrantVerifier,
        _now: u64,
    ) -> Result<(Established, ReplyInfo), HandshakeError> {
        todo!()
    }
}

/// What the gateway told the client in its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyInfo {
    /// The verified claims of the answering node.
    pub node: NodeClaims,
    /// Some gateways of the cluster, best first; addresses of their UDP sockets.
    pub roster: Vec<SocketAddr>,
    /// The token that a reattach hint for [`Established::peer_index`] will carry.
    pub hint: [u8; HINT_LEN],
}

/// A finished handshake: fresh keys for one attach.
pub struct Established {
    /// Seals records to the peer.
    pub sealing: SealingKey,
    /// Opens records from the peer.
    pub opening: OpeningKey,
    /// The Noise handshake hash: the binding of grants and proofs.
    pub handshake_hash: [u8; 32],
    /// The index that the peer's records carry to this side.
    pub own_index: ReceiverIndex,
    /// The index that this side's records carry to the peer.
    pub peer_index: ReceiverIndex,
}

/// The gateways' side: answers first messages under the cluster's keys.
pub struct Responder {
    _private: (),
}

impl Responder {
    /// Answers under any of `cluster` (current, next, retiring), with `certificate` and its `signer`.
    pub fn new(_cluster: Vec<ClusterSecret>, _certificate: NodeCertificate, _signer: NodeSigner) -> Self {
        todo!()
    }

    /// Replaces the node certificate (same signing key), as it is renewed before it ends.
    pub fn set_certificate(&mut self, _certificate: NodeCertificate) {
        todo!()
    }

    /// The cluster keys it answers under.
    pub fn cluster_keys(&self) -> Vec<ClusterKeyId> {
        todo!()
    }

    /// Reads an `AttachInit`. Changes no state; the caller has asked [`crate::cookie::Gate`] first.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn read_init(&self, _datagram: &[u8]) -> Result<PendingReply, HandshakeError> {
        todo!()
    }
}

/// A decrypted `AttachInit` that waits for its answer.
pub struct PendingReply {
    _private: (),
}

impl PendingReply {
    /// The device whose static key made the message.
    pub fn device(&self) -> DeviceKey {
        todo!()
    }

    /// What the client asks for.
    pub fn intent(&self) -> &AttachIntent {
        todo!()
    }

    /// Writes an `AttachReply` into `out` and returns its length with the keys. `index` is this node's index of the
    /// session, `hint` its reattach hint, `roster` at most [`ROSTER_MAX`] addresses (more are left out).
    ///
    /// # Errors
    /// [`HandshakeError::Entropy`].
    pub fn write_reply(
        self,
        _responder: &Responder,
        _index: ReceiverIndex,
        _hint: [u8; HINT_LEN],
        _roster: &[SocketAddr],
        _entropy: &mut dyn Entropy,
        _out: &mut [u8; REPLY_LEN_MAX],
    ) -> Result<(usize, Established), HandshakeError> {
        todo!()
    }
}
