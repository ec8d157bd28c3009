//! Grants: control's signed word that one node owns one session in one epoch, for one handshake.

use subtle::ConstantTimeEq;

use crate::certificate::VerifyError;
use crate::codec::Reader;
use crate::ids::{DeviceKey, Epoch, Incarnation, NodeId, SessionId};
use crate::keys::{GrantKeyId, GrantSigner, GrantVerifier};
use crate::statement::{self, Kind};

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
    bytes: Vec<u8>,
    signed_by: GrantKeyId,
    claims: GrantClaims,
}

impl Grant {
    /// The longest encoding, in bytes.
    pub const LEN_MAX: usize = 320;

    /// Signs `claims`.
    pub fn issue(claims: &GrantClaims, signer: &GrantSigner) -> Self {
        let mut fields = Vec::with_capacity(192);
        fields.extend_from_slice(&claims.handshake_hash);
        fields.extend_from_slice(&claims.session.to_bytes());
        fields.extend_from_slice(claims.device.as_bytes());
        fields.extend_from_slice(&claims.epoch.0.to_be_bytes());
        fields.extend_from_slice(&claims.incarnation.0.to_be_bytes());
        fields.extend_from_slice(&claims.not_after.to_be_bytes());
        statement::write_node(&mut fields, &claims.node);
        let bytes = statement::sign(Kind::Grant, &fields, signer);
        Self { bytes, signed_by: signer.id(), claims: claims.clone() }
    }

    /// Parses an encoding without verifying it.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let (signed_by, fields) = statement::split(Kind::Grant, bytes, Self::LEN_MAX)?;
        let mut reader = Reader::new(fields);
        let handshake_hash = reader.array()?;
        let session = SessionId::from_bytes(reader.array()?);
        let device = DeviceKey::from_bytes(reader.array()?);
        let epoch = Epoch(reader.u64()?);
        let incarnation = Incarnation(reader.u64()?);
        let not_after = reader.u64()?;
        let node = statement::read_node(&mut reader)?;
        reader.end()?;
        let claims = GrantClaims { handshake_hash, session, device, epoch, node, incarnation, not_after };
        Ok(Self { bytes: bytes.to_vec(), signed_by, claims })
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Verifies the signature and that the grant says exactly `expected`, `not_after` excepted, which must lie
    /// after `now`.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(
        &self,
        verifier: &GrantVerifier,
        expected: &GrantClaims,
        now: u64,
    ) -> Result<(), VerifyError> {
        let claims = self.open(verifier, now)?;
        let same_handshake: bool = claims.handshake_hash.ct_eq(&expected.handshake_hash).into();
        let fields = [
            (same_handshake, "handshake"),
            (claims.session == expected.session, "session"),
            (claims.device == expected.device, "device"),
            (claims.epoch == expected.epoch, "epoch"),
            (claims.node == expected.node, "node"),
            (claims.incarnation == expected.incarnation, "incarnation"),
        ];
        match fields.iter().find(|(same, _)| !same) {
            Some((_, name)) => Err(VerifyError::Mismatch(name)),
            None => Ok(()),
        }
    }

    /// Verifies the signature and the time and returns the claims, for callers that learn the epoch from them.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn open(&self, verifier: &GrantVerifier, now: u64) -> Result<GrantClaims, VerifyError> {
        statement::verify(self.signed_by, &self.bytes, verifier)?;
        if now >= self.claims.not_after {
            return Err(VerifyError::Expired);
        }
        Ok(self.claims.clone())
    }
}
