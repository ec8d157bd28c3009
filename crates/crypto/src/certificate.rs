//! Short-lived node certificates: control vouches that a node, in one incarnation, may answer handshakes.

use core::fmt;

use crate::codec::Reader;
use crate::entropy::{Entropy, EntropyError};
use crate::ids::{Incarnation, NodeId};
use crate::keys::{GrantKeyId, GrantSigner, GrantVerifier, SigningPair, signature_is_good};
use crate::statement::{self, Kind};

const PROOF_DOMAIN: &[u8; 26] = b"jumping-vpn node proof v1\0";

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

impl NodeClaims {
    /// Says whether `signature` is this node's proof for the handshake with that hash.
    pub fn proves(&self, handshake_hash: &[u8; 32], signature: &[u8; 64]) -> bool {
        signature_is_good(&self.verifying_key, &proof_message(handshake_hash), signature)
    }
}

/// Encoded claims with control's signature. At most [`NodeCertificate::LEN_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    bytes: Vec<u8>,
    signed_by: GrantKeyId,
    claims: NodeClaims,
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
    pub const LEN_MAX: usize = 6 + 8 + 32 + 8 + 1 + NodeId::LEN_MAX + 64;

    /// Signs `claims`.
    pub fn issue(claims: &NodeClaims, signer: &GrantSigner) -> Self {
        let mut fields = Vec::with_capacity(128);
        fields.extend_from_slice(&claims.incarnation.0.to_be_bytes());
        fields.extend_from_slice(&claims.verifying_key);
        fields.extend_from_slice(&claims.not_after.to_be_bytes());
        statement::write_node(&mut fields, &claims.node);
        let bytes = statement::sign(Kind::NodeCertificate, &fields, signer);
        Self { bytes, signed_by: signer.id(), claims: claims.clone() }
    }

    /// Parses an encoding without verifying it.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let (signed_by, fields) = statement::split(Kind::NodeCertificate, bytes, Self::LEN_MAX)?;
        let mut reader = Reader::new(fields);
        let incarnation = Incarnation(reader.u64()?);
        let verifying_key = reader.array()?;
        let not_after = reader.u64()?;
        let node = statement::read_node(&mut reader)?;
        reader.end()?;
        Ok(Self {
            bytes: bytes.to_vec(),
            signed_by,
            claims: NodeClaims { node, incarnation, verifying_key, not_after },
        })
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The id of the key that signed it.
    pub fn signed_by(&self) -> GrantKeyId {
        self.signed_by
    }

    /// Verifies the signature and the time, and returns the claims.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(&self, verifier: &GrantVerifier, now: u64) -> Result<NodeClaims, VerifyError> {
        statement::verify_again(self.signed_by, &self.bytes, verifier)?;
        if now >= self.claims.not_after {
            return Err(VerifyError::Expired);
        }
        Ok(self.claims.clone())
    }
}

fn proof_message(handshake_hash: &[u8; 32]) -> [u8; 58] {
    let mut message = [0; 58];
    message[..26].copy_from_slice(PROOF_DOMAIN);
    message[26..].copy_from_slice(handshake_hash);
    message
}

/// A node's own signing key: signs handshake hashes. Lives in the worker's memory only.
pub struct NodeSigner(SigningPair);

impl NodeSigner {
    /// Makes a key.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        SigningPair::generate(entropy).map(Self)
    }

    /// The public half.
    pub fn verifying_key(&self) -> [u8; 32] {
        self.0.public()
    }

    /// Signs a handshake hash (domain-separated).
    pub fn sign_handshake(&self, handshake_hash: &[u8; 32]) -> [u8; 64] {
        self.0.sign(&proof_message(handshake_hash))
    }
}

impl fmt::Debug for NodeSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSigner")
    }
}
