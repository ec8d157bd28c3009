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

use core::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use snow::HandshakeState;
use zeroize::Zeroizing;

use crate::certificate::{NodeCertificate, NodeClaims, NodeSigner, VerifyError};
use crate::codec::Reader;
use crate::cookie::{HINT_LEN, MACS_LEN, write_macs};
use crate::entropy::{Entropy, EntropyError};
use crate::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, ReceiverIndex, SessionId};
use crate::kem::{self, CIPHERTEXT_LEN, EncapsulateError, KemPublic, KemSecret};
use crate::key_set::KeySet;
use crate::keys::{
    ClusterKeyId, ClusterPublic, ClusterSecret, DeviceSecret, GrantKeyId, GrantVerifier, StaticKey,
};
use crate::noise::{self, EphemeralSlot};
use crate::record::{Aead, OpeningKey, RecordKey, SealingKey, TAG_LEN};
use crate::wire::DatagramType;

mod message;
#[cfg(test)]
mod tests;

pub use message::is_init_len;
use message::{
    INIT_HEADER_LEN, INIT_PAYLOAD_LEN_MAX, InitHeader, REPLY_HEADER_LEN, REPLY_PAYLOAD_LEN_MAX, ReplyHeader,
    ReplyPayload, init_payload_len, reply_payload_len,
};

/// An `AttachInit` of a classical suite is padded to this length, in bytes, so that no reply is longer than its trigger.
pub const INIT_LEN: usize = 640;
/// Length of an `AttachInit` of a hybrid suite, in bytes: one datagram on a path of 1,500 bytes, also under IPv6.
pub const HYBRID_INIT_LEN: usize = 1440;
/// The longest `AttachReply`, in bytes.
pub const REPLY_LEN_MAX: usize = HYBRID_INIT_LEN;
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
    /// `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` with a secret of ML-KEM-768.
    HybridChaChaPolyBlake2s = 3,
    /// `Noise_IKpsk2_25519_AESGCM_SHA256` with a secret of ML-KEM-768.
    HybridAesGcmSha256 = 4,
}

impl Suite {
    /// Every suite, in the order of the wire numbers.
    pub const ALL: [Self; 4] = [
        Self::ChaChaPolyBlake2s,
        Self::AesGcmSha256,
        Self::HybridChaChaPolyBlake2s,
        Self::HybridAesGcmSha256,
    ];

    /// The AEAD of the session's records.
    pub fn aead(self) -> Aead {
        match self {
            Self::ChaChaPolyBlake2s | Self::HybridChaChaPolyBlake2s => Aead::ChaCha20Poly1305,
            Self::AesGcmSha256 | Self::HybridAesGcmSha256 => Aead::Aes256Gcm,
        }
    }

    /// True when the keys also depend on a secret of ML-KEM-768.
    pub fn is_hybrid(self) -> bool {
        match self {
            Self::ChaChaPolyBlake2s | Self::AesGcmSha256 => false,
            Self::HybridChaChaPolyBlake2s | Self::HybridAesGcmSha256 => true,
        }
    }

    /// The suite with the same ciphers that is hybrid, or is not.
    #[must_use]
    pub fn with_hybrid(self, hybrid: bool) -> Self {
        match (self.aead(), hybrid) {
            (Aead::ChaCha20Poly1305, false) => Self::ChaChaPolyBlake2s,
            (Aead::Aes256Gcm, false) => Self::AesGcmSha256,
            (Aead::ChaCha20Poly1305, true) => Self::HybridChaChaPolyBlake2s,
            (Aead::Aes256Gcm, true) => Self::HybridAesGcmSha256,
        }
    }

    /// Length of its `AttachInit`, and so the greatest of its `AttachReply`, in bytes.
    pub const fn init_len(self) -> usize {
        match self {
            Self::ChaChaPolyBlake2s | Self::AesGcmSha256 => INIT_LEN,
            Self::HybridChaChaPolyBlake2s | Self::HybridAesGcmSha256 => HYBRID_INIT_LEN,
        }
    }

    /// What protects the session, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::ChaChaPolyBlake2s => "X25519, ChaCha20-Poly1305",
            Self::AesGcmSha256 => "X25519, AES-256-GCM",
            Self::HybridChaChaPolyBlake2s => "X25519 and ML-KEM-768, ChaCha20-Poly1305",
            Self::HybridAesGcmSha256 => "X25519 and ML-KEM-768, AES-256-GCM",
        }
    }

    /// The suite that this CPU does faster (AES-GCM where AES and carry-less multiplication are in hardware).
    pub fn preferred() -> Self {
        if has_aes_hardware() { Self::AesGcmSha256 } else { Self::ChaChaPolyBlake2s }
    }

    /// The suite of a wire number, if this side knows it.
    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| *suite as u8 == number)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes_hardware() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes_hardware() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes_hardware() -> bool {
    false
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
    /// What the device can verify already.
    pub holding: Holding,
}

impl AttachIntent {
    /// The session that `device` goes on with, or the one that this attempt gives birth to.
    pub fn session_of(&self, device: &DeviceKey) -> SessionId {
        self.session.unwrap_or_else(|| SessionId::born_of(device, self.attempt))
    }
}

/// What a device holds of the cluster's public keys, so that it is answered under keys that it can verify and told of
/// those that it does not know yet (`docs/protocol.md` §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// The serial of its newest key set; 0 for none.
    pub key_set: u64,
    /// Grant keys that it accepts; zero where there are fewer. All zero: it does not say.
    pub grant_keys: [GrantKeyId; Self::GRANT_KEYS_MAX],
}

impl Holding {
    /// How many grant keys a device names.
    pub const GRANT_KEYS_MAX: usize = 4;

    /// What a device holds with this verifier and key set; keys beyond the bound are left out.
    pub fn new(key_set: u64, verifier: &GrantVerifier) -> Self {
        let mut holding = Self { key_set, ..Self::default() };
        for (slot, id) in holding.grant_keys.iter_mut().zip(verifier.ids()) {
            *slot = id;
        }
        holding
    }

    /// The place, in `offered`, of the first statement whose signer the device accepts; 0 where there is none or it does
    /// not say.
    pub fn choose(&self, mut offered: impl Iterator<Item = GrantKeyId>) -> usize {
        offered.position(|signer| self.grant_keys.contains(&signer)).unwrap_or(0)
    }
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
    noise: HandshakeState,
    recipe: Recipe,
    header: InitHeader,
    finished: bool,
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

/// What message 1 was made of, so that the state after it can be made again.
struct Recipe {
    device: StaticKey,
    cluster: ClusterPublic,
    ephemeral: EphemeralSlot,
    intent: AttachIntent,
    /// The key pair of a hybrid suite.
    kem: Option<KemSecret>,
}

impl Recipe {
    /// Writes Noise message 1 into `message`; returns the state that waits for message 2.
    fn write(&self, header: &InitHeader, message: &mut [u8]) -> Result<HandshakeState, HandshakeError> {
        let inputs = noise::Inputs {
            suite: header.suite,
            local: &self.device,
            prologue: &header.prologue(),
            ephemeral: Arc::clone(&self.ephemeral),
        };
        let mut noise = noise::initiator(&inputs, &self.cluster.0).map_err(refused)?;
        let kem = self.kem.as_ref().map(KemSecret::public);
        let mut payload = [0; INIT_PAYLOAD_LEN_MAX];
        let payload = &mut payload[..init_payload_len(header.suite)];
        message::encode_init_payload(&self.intent, kem.as_ref(), payload);
        let len = noise.write_message(payload, message).map_err(refused)?;
        debug_assert_eq!(len, message.len());
        Ok(noise)
    }
}

/// Whatever Noise refuses, the message is not from the expected peer.
fn refused(_: snow::Error) -> HandshakeError {
    HandshakeError::Authentication
}

impl From<EncapsulateError> for HandshakeError {
    fn from(error: EncapsulateError) -> Self {
        match error {
            EncapsulateError::Key => Self::Malformed,
            EncapsulateError::Entropy(error) => Self::Entropy(error),
        }
    }
}

impl Initiation {
    /// Writes an `AttachInit` into `out`, which has [`Suite::init_len`] bytes, and returns the waiting side.
    ///
    /// # Errors
    /// [`HandshakeError::Entropy`]; [`HandshakeError::Authentication`] when the cluster key is a point of small order;
    /// [`HandshakeError::Malformed`] when `out` has another length.
    pub fn start(
        input: &InitiationInput<'_>,
        entropy: &mut dyn Entropy,
        out: &mut [u8],
    ) -> Result<Self, HandshakeError> {
        if out.len() != input.suite.init_len() {
            return Err(HandshakeError::Malformed);
        }
        let header = InitHeader { suite: input.suite, cluster: input.cluster.id(), index: input.index };
        let recipe = Recipe {
            device: input.device.key_for(input.cluster).ok_or(HandshakeError::Authentication)?,
            cluster: *input.cluster,
            ephemeral: fresh_ephemeral(entropy)?,
            intent: input.intent.clone(),
            kem: if input.suite.is_hybrid() { Some(KemSecret::generate(entropy)?) } else { None },
        };
        let macs_at = out.len() - MACS_LEN;
        out[..INIT_HEADER_LEN].copy_from_slice(&header.encode());
        let noise = recipe.write(&header, &mut out[INIT_HEADER_LEN..macs_at])?;
        write_macs(input.cluster, input.cookie.as_ref(), out);
        Ok(Self { noise, recipe, header, finished: false })
    }

    /// The client's index of this handshake; the receiver index of the awaited reply.
    pub fn index(&self) -> ReceiverIndex {
        self.header.index
    }

    /// Reads an `AttachReply`, verifies the node's certificate and proof, and returns the established keys.
    /// A refusal leaves the initiation as it was: a forged reply cannot end it. Success ends it: a second reply finds
    /// no keys, so no key pair is ever made twice.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn finish(
        &mut self,
        reply: &[u8],
        verifier: &GrantVerifier,
        now: u64,
    ) -> Result<(Established, ReplyInfo), HandshakeError> {
        if reply.len() > self.header.suite.init_len() {
            return Err(HandshakeError::Malformed);
        }
        let header = ReplyHeader::decode(reply)?;
        if header.suite != self.header.suite || header.receiver != self.header.index {
            return Err(HandshakeError::Malformed);
        }
        if self.finished {
            return Err(HandshakeError::Authentication);
        }
        let (clear, mut rest) = reply.split_at_checked(REPLY_HEADER_LEN).ok_or(HandshakeError::Malformed)?;
        if let Some(kem) = &self.recipe.kem {
            let (ciphertext, noise) =
                rest.split_first_chunk::<CIPHERTEXT_LEN>().ok_or(HandshakeError::Malformed)?;
            self.noise.set_psk(2, &kem.open(ciphertext)[..]).map_err(refused)?;
            rest = noise;
        }
        let (message, proof) =
            rest.split_at_checked(header.noise_len.into()).ok_or(HandshakeError::Malformed)?;
        let mut payload = [0; REPLY_PAYLOAD_LEN_MAX];
        let len = self.noise.read_message(message, &mut payload).map_err(refused)?;
        // From here on the Noise state has moved: whoever answered knows the cluster key, which alone proves nothing.
        let outcome = self.read_proof(&header, clear, &payload[..len], proof, verifier, now);
        match outcome {
            Ok(_) => self.finished = true,
            Err(_) => {
                let mut again = [0; HYBRID_INIT_LEN];
                let len = self.header.suite.init_len() - MACS_LEN - INIT_HEADER_LEN;
                self.noise = self.recipe.write(&self.header, &mut again[..len])?;
            }
        }
        outcome
    }

    fn read_proof(
        &mut self,
        header: &ReplyHeader,
        clear: &[u8],
        payload: &[u8],
        proof: &[u8],
        verifier: &GrantVerifier,
        now: u64,
    ) -> Result<(Established, ReplyInfo), HandshakeError> {
        let ReplyPayload { hint, roster } = ReplyPayload::decode(payload)?;
        let mut established =
            establish(&mut self.noise, header.suite, self.header.index, header.sender, Role::Client);
        let mut text = [0; PROOF_LEN_MAX];
        let text = text.get_mut(..proof.len()).ok_or(HandshakeError::Malformed)?;
        text.copy_from_slice(proof);
        let text = established
            .opening
            .open_detached(PROOF_COUNTER, clear, text)
            .ok_or(HandshakeError::Authentication)?;
        let mut reader = Reader::new(text);
        let certificate_len = usize::from(reader.u16()?);
        let certificate =
            NodeCertificate::parse(reader.bytes(certificate_len)?).map_err(HandshakeError::NodeProof)?;
        let signature = reader.array()?;
        reader.end()?;
        let node = certificate.verify(verifier, now).map_err(HandshakeError::NodeProof)?;
        if !node.proves(&established.handshake_hash, &signature) {
            return Err(HandshakeError::NodeProof(VerifyError::Signature));
        }
        Ok((established, ReplyInfo { node, roster, hint }))
    }
}

impl fmt::Debug for Initiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initiation({:?})", self.header)
    }
}

fn fresh_ephemeral(entropy: &mut dyn Entropy) -> Result<EphemeralSlot, EntropyError> {
    let slot = EphemeralSlot::default();
    fill_ephemeral(&slot, entropy)?;
    Ok(slot)
}

fn fill_ephemeral(slot: &EphemeralSlot, entropy: &mut dyn Entropy) -> Result<(), EntropyError> {
    let mut key = Zeroizing::new([0; 32]);
    entropy.fill(&mut key[..])?;
    // A slot that is full already keeps its key; the caller passes a fresh one.
    let _ = slot.set(key);
    Ok(())
}

/// The counter of the responder's key that seals its node proof; its records go on from the next one.
const PROOF_COUNTER: u64 = 0;
/// The longest sealed node proof: length, certificate, signature, tag.
const PROOF_LEN_MAX: usize = 2 + NodeCertificate::LEN_MAX + 64 + TAG_LEN;

const _: () =
    assert!(reply_len(ROSTER_MAX, NodeCertificate::LEN_MAX) <= INIT_LEN, "the longest reply must fit");
const _: () = assert!(
    CIPHERTEXT_LEN + reply_len(0, NodeCertificate::LEN_MAX) <= HYBRID_INIT_LEN,
    "a hybrid reply without a roster must fit"
);

/// Length of a classical reply with this many addresses and a certificate of this length, in bytes.
const fn reply_len(roster: usize, certificate: usize) -> usize {
    REPLY_HEADER_LEN + 32 + reply_payload_len(roster) + 16 + 2 + certificate + 64 + TAG_LEN
}

/// How many addresses a reply of `suite` has room for beside a certificate of this length.
fn roster_room(suite: Suite, certificate: usize) -> usize {
    let ciphertext = if suite.is_hybrid() { CIPHERTEXT_LEN } else { 0 };
    let room = suite.init_len().saturating_sub(ciphertext + reply_len(0, certificate));
    (room / (reply_payload_len(1) - reply_payload_len(0))).min(ROSTER_MAX)
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
#[derive(Debug)]
pub struct Established {
    /// Seals records to the peer.
    pub sealing: SealingKey,
    /// Opens records from the peer.
    pub opening: OpeningKey,
    /// The Noise handshake hash: the binding of grants and proofs.
    pub handshake_hash: [u8; 32],
    /// How the keys were agreed.
    pub suite: Suite,
    /// The index that the peer's records carry to this side.
    pub own_index: ReceiverIndex,
    /// The index that this side's records carry to the peer.
    pub peer_index: ReceiverIndex,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Gateway,
}

/// Splits a finished Noise state into record keys.
fn establish(
    noise: &mut HandshakeState,
    suite: Suite,
    own_index: ReceiverIndex,
    peer_index: ReceiverIndex,
    role: Role,
) -> Established {
    let split = Zeroizing::new(noise.dangerously_get_raw_split());
    let (to_gateway, to_client) = &*split;
    let key = |raw: &[u8; 32]| RecordKey::new(suite.aead(), Zeroizing::new(*raw));
    let (sealing, opening, first) = match role {
        // The gateway's first counter went into the node proof: a client takes no record with it.
        Role::Client => (key(to_gateway), key(to_client), PROOF_COUNTER + 1),
        Role::Gateway => (key(to_client), key(to_gateway), 0),
    };
    let mut handshake_hash = [0; 32];
    handshake_hash.copy_from_slice(noise.get_handshake_hash());
    Established {
        sealing: SealingKey::new(sealing, DatagramType::Record, peer_index),
        opening: OpeningKey::new(opening, DatagramType::Record, own_index, first),
        handshake_hash,
        suite,
        own_index,
        peer_index,
    }
}

/// The gateways' side: answers first messages under the cluster's keys.
pub struct Responder {
    cluster: Vec<(ClusterKeyId, ClusterSecret)>,
    /// The same claims, signed by each grant key in use: the preferred one first. Not empty.
    certificates: Vec<NodeCertificate>,
    /// The newest key set, signed by each grant key in use.
    key_sets: Vec<KeySet>,
    signer: NodeSigner,
}

impl Responder {
    /// Answers under any of `cluster` (current, next, retiring), with `certificate` and its `signer`.
    pub fn new(cluster: Vec<ClusterSecret>, certificate: NodeCertificate, signer: NodeSigner) -> Self {
        let cluster = cluster.into_iter().map(|secret| (secret.public().id(), secret)).collect();
        Self { cluster, certificates: vec![certificate], key_sets: Vec::new(), signer }
    }

    /// Replaces the node certificate (same signing key), as it is renewed before it ends: one for each grant key that
    /// devices may know, the preferred one first. None changes nothing.
    pub fn set_certificates(&mut self, certificates: Vec<NodeCertificate>) {
        if !certificates.is_empty() {
            self.certificates = certificates;
        }
    }

    /// Answers under other cluster keys from now on, after a rotation.
    pub fn set_cluster_keys(&mut self, cluster: Vec<ClusterSecret>) {
        self.cluster = cluster.into_iter().map(|secret| (secret.public().id(), secret)).collect();
    }

    /// Hands on another key set from now on: one for each grant key that devices may know, the preferred one first.
    pub fn set_key_sets(&mut self, key_sets: Vec<KeySet>) {
        self.key_sets = key_sets;
    }

    /// The encoded key set for a device that holds an older one than this side.
    pub fn key_set_for(&self, holding: &Holding) -> Option<&[u8]> {
        let signers = self.key_sets.iter().map(KeySet::signed_by);
        let key_set = self.key_sets.get(holding.choose(signers))?;
        (key_set.serial() > holding.key_set).then(|| key_set.as_bytes())
    }

    /// The cluster keys it answers under.
    pub fn cluster_keys(&self) -> Vec<ClusterKeyId> {
        self.cluster.iter().map(|(id, _)| *id).collect()
    }

    /// Reads an `AttachInit`. Changes no state; the caller has asked [`crate::cookie::Gate`] first.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn read_init(&self, datagram: &[u8]) -> Result<PendingReply, HandshakeError> {
        let header = InitHeader::decode(datagram)?;
        let (_, secret) = self
            .cluster
            .iter()
            .find(|(id, _)| *id == header.cluster)
            .ok_or(HandshakeError::UnknownClusterKey)?;
        let ephemeral = EphemeralSlot::default();
        let inputs = noise::Inputs {
            suite: header.suite,
            local: secret.key(),
            prologue: &header.prologue(),
            ephemeral: Arc::clone(&ephemeral),
        };
        let mut noise = noise::responder(&inputs).map_err(refused)?;
        let mut payload = [0; INIT_PAYLOAD_LEN_MAX];
        let payload = &mut payload[..init_payload_len(header.suite)];
        noise
            .read_message(&datagram[INIT_HEADER_LEN..datagram.len() - MACS_LEN], payload)
            .map_err(refused)?;
        let (intent, kem) = message::decode_init_payload(header.suite, payload)?;
        let device = noise.get_remote_static().and_then(|key| key.try_into().ok()).map(DeviceKey::from_bytes);
        Ok(PendingReply {
            device: device.ok_or(HandshakeError::Authentication)?,
            intent,
            kem: kem.map(Box::new),
            noise,
            ephemeral,
            header,
        })
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Responder({:?})", self.cluster_keys())
    }
}

/// A decrypted `AttachInit` that waits for its answer.
pub struct PendingReply {
    noise: HandshakeState,
    ephemeral: EphemeralSlot,
    header: InitHeader,
    device: DeviceKey,
    intent: AttachIntent,
    /// The client's encapsulation key in a hybrid suite.
    kem: Option<Box<KemPublic>>,
}

impl PendingReply {
    /// The device whose static key made the message.
    pub fn device(&self) -> DeviceKey {
        self.device
    }

    /// What the client asks for.
    pub fn intent(&self) -> &AttachIntent {
        &self.intent
    }

    /// The suite that the client chose.
    pub fn suite(&self) -> Suite {
        self.header.suite
    }

    /// Writes an `AttachReply` into `out` and returns its length with the keys. `index` is this node's index of the
    /// session, `hint` its reattach hint, `roster` at most [`ROSTER_MAX`] addresses (more, and in a hybrid suite those that
    /// the datagram has no room for, are left out).
    ///
    /// # Errors
    /// [`HandshakeError::Entropy`]; [`HandshakeError::Authentication`] when the client's ephemeral key is a point of
    /// small order; [`HandshakeError::Malformed`] when its encapsulation key is none.
    pub fn write_reply(
        mut self,
        responder: &Responder,
        index: ReceiverIndex,
        hint: [u8; HINT_LEN],
        roster: &[SocketAddr],
        entropy: &mut dyn Entropy,
        out: &mut [u8; REPLY_LEN_MAX],
    ) -> Result<(usize, Established), HandshakeError> {
        fill_ephemeral(&self.ephemeral, entropy)?;
        let signers = responder.certificates.iter().map(NodeCertificate::signed_by);
        let certificate = responder.certificates[self.intent.holding.choose(signers)].as_bytes();
        let room = roster_room(self.header.suite, certificate.len());
        let payload = ReplyPayload { hint, roster: roster.to_vec() }.encode(room);
        let mut noise_at = REPLY_HEADER_LEN;
        if let Some(public) = &self.kem {
            let (ciphertext, secret) = kem::encapsulate(public, entropy)?;
            self.noise.set_psk(2, &secret[..]).map_err(refused)?;
            noise_at += CIPHERTEXT_LEN;
            out[REPLY_HEADER_LEN..noise_at].copy_from_slice(&ciphertext);
        }
        let body = &mut out[noise_at..];
        let noise_len = self.noise.write_message(&payload, body).map_err(refused)?;
        let (suite, client) = (self.header.suite, self.header.index);
        let header = ReplyHeader {
            suite,
            receiver: client,
            sender: index,
            noise_len: u16::try_from(noise_len).expect("a reply is shorter than 64 KiB"),
        }
        .encode();

        let mut established = establish(&mut self.noise, suite, index, client, Role::Gateway);
        let signature = responder.signer.sign_handshake(&established.handshake_hash);
        let proof_len = 2 + certificate.len() + signature.len();
        let (text, rest) = body[noise_len..].split_at_mut(proof_len);
        text[..2].copy_from_slice(
            &u16::try_from(certificate.len()).expect("a certificate has at most 256 bytes").to_be_bytes(),
        );
        text[2..2 + certificate.len()].copy_from_slice(certificate);
        text[2 + certificate.len()..].copy_from_slice(&signature);
        let tag = established.sealing.seal_detached(&header, text).expect("a new key is far from its limit");
        rest[..TAG_LEN].copy_from_slice(&tag);
        out[..REPLY_HEADER_LEN].copy_from_slice(&header);
        Ok((noise_at + noise_len + proof_len + TAG_LEN, established))
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingReply({:?}, {:?})", self.device, self.intent)
    }
}
