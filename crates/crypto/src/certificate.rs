//! Short-lived node certificates: control vouches that a node, in one incarnation, may answer handshakes.

use crate::ids::{Incarnation, NodeId};
use crate::keys::{GrantKeyId, GrantSigner, GrantVerifier};

/// The signed content of a node certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeClaims {
    /// The node.
    pub node: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
    /// The node's Ed25519 public key, made by the worker at start and never stored.
    pub verifying_key: [u8; 32],
    /// Not valid at or after this time, in seconds since the Unix epoch.
    pub not_after: u64,
}

/// Encoded claims with control's signature. At most [`NodeCertificate::LEN_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    _private: (),
}

/// A certificate or grant was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The bytes are not of this version's form.
    #[error("malformed signed statement")]
    Malformed,
    /// Signed by a key that the verifier does not hold.
    #[error("signed by an unknown key")]
    UnknownKey,
    /// The signature does not verify.
    #[error("bad signature")]
    Signature,
    /// Past its end.
    #[error("expired")]
    Expired,
    /// Valid, but for another handshake, session, epoch, node or device.
    #[error("made for another {0}")]
    Mismatch(&'static str),
}

impl NodeCertificate {
    /// The longest encoding, in bytes.
    pub const LEN_MAX: usize = 256;

    /// Signs `claims`.
    pub fn issue(_claims: &NodeClaims, _signer: &GrantSigner) -> Self {
        todo!()
    }

    /// Parses an encoding without verifying it.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`].
    pub fn parse(_bytes: &[u8]) -> Result<Self, VerifyError> {
        todo!()
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8] {
        todo!()
    }

    /// The id of the key that signed it.
    pub fn signed_by(&self) -> GrantKeyId {
        todo!()
    }

    /// Verifies the signature and the time, and returns the claims.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(&self, _verifier: &GrantVerifier, _now: u64) -> Result<NodeClaims, VerifyError> {
        todo!()
    }
}

/// A node's own signing key: signs handshake hashes. Lives in the worker's memory only.
pub struct NodeSigner {
    _private: (),
}

impl NodeSigner {
    /// Makes a key.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(
        _entropy: &mut dyn crate::entropy::Entropy,
    ) -> Result<Self, crate::entropy::EntropyError> {
        todo!()
    }

    /// The public half.
    pub fn verifying_key(&self) -> [u8; 32] {
        todo!()
    }

    /// Signs a handshake hash (domain-separated).
    pub fn sign_handshake(&self, _handshake_hash: &[u8; 32]) -> [u8; 64] {
        todo!()
    }
}
