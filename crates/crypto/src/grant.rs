//! Grants: control's signed word that one node owns one session in one epoch, for one handshake.

use crate::certificate::VerifyError;
use crate::ids::{DeviceKey, Epoch, Incarnation, NodeId, SessionId};
use crate::keys::{GrantSigner, GrantVerifier};

/// What a grant states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantClaims {
    /// The Noise handshake hash of the attach.
    pub handshake_hash: [u8; 32],
    /// The session.
    pub session: SessionId,
    /// The device whose key made the handshake.
    pub device: DeviceKey,
    /// The epoch that this owner was given.
    pub epoch: Epoch,
    /// The owner.
    pub node: NodeId,
    /// The owner's run.
    pub incarnation: Incarnation,
    /// Not valid at or after this time, in seconds since the Unix epoch.
    pub not_after: u64,
}

/// Encoded claims with control's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    _private: (),
}

impl Grant {
    /// The longest encoding, in bytes.
    pub const LEN_MAX: usize = 320;

    /// Signs `claims`.
    pub fn issue(_claims: &GrantClaims, _signer: &GrantSigner) -> Self {
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

    /// Verifies the signature and that the grant says exactly `expected`, `not_after` excepted, which must lie
    /// after `now`.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(
        &self,
        _verifier: &GrantVerifier,
        _expected: &GrantClaims,
        _now: u64,
    ) -> Result<(), VerifyError> {
        todo!()
    }

    /// Verifies the signature and the time and returns the claims, for callers that learn the epoch from them.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn open(&self, _verifier: &GrantVerifier, _now: u64) -> Result<GrantClaims, VerifyError> {
        todo!()
    }
}
