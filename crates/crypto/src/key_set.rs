//! Key sets: control's signed list of the cluster keys and grant keys in use, by which a device keeps up with rotations
//! (`docs/protocol.md` §6.7).
//!
//! A device takes a set only when a grant key that it accepts already signed it, and only when its serial is higher
//! than that of the set it has: a gateway that is stale or lying can neither add a key nor bring one back.

use crate::certificate::VerifyError;
use crate::codec::{Malformed, Reader};
use crate::keys::{ClusterPublic, GrantKeyId, GrantSigner, GrantVerifier};
use crate::statement::{self, Kind};

/// How many keys of a kind a set may name: current, next and a few that retire.
pub const KEYS_MAX: usize = 8;

const FLAG_HYBRID: u8 = 1;

/// What a key set states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySetClaims {
    /// Grows with every change; a device never goes back to a lower one.
    pub serial: u64,
    /// True when devices must use the hybrid suites.
    pub hybrid: bool,
    /// Cluster handshake keys, the one to use first. At least one.
    pub cluster: Vec<ClusterPublic>,
    /// Ed25519 public keys whose signatures are accepted. At least one.
    pub grant: Vec<[u8; 32]>,
}

/// Encoded claims with control's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    bytes: Vec<u8>,
    signed_by: GrantKeyId,
    claims: KeySetClaims,
}

impl KeySet {
    /// The longest encoding, in bytes.
    pub const LEN_MAX: usize = 6 + 8 + 1 + 2 * (1 + KEYS_MAX * 32) + 64;

    /// Signs `claims`; keys beyond [`KEYS_MAX`] of a kind are left out.
    pub fn issue(claims: &KeySetClaims, signer: &GrantSigner) -> Self {
        let mut claims = claims.clone();
        claims.cluster.truncate(KEYS_MAX);
        claims.grant.truncate(KEYS_MAX);
        let mut fields = Vec::with_capacity(Self::LEN_MAX);
        fields.extend_from_slice(&claims.serial.to_be_bytes());
        fields.push(if claims.hybrid { FLAG_HYBRID } else { 0 });
        write_keys(&mut fields, claims.cluster.iter().map(|key| &key.0));
        write_keys(&mut fields, claims.grant.iter());
        let bytes = statement::sign(Kind::KeySet, &fields, signer);
        Self { bytes, signed_by: signer.id(), claims }
    }

    /// Parses an encoding without verifying it.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let (signed_by, fields) = statement::split(Kind::KeySet, bytes, Self::LEN_MAX)?;
        let mut reader = Reader::new(fields);
        let serial = reader.u64()?;
        let hybrid = match reader.u8()? {
            0 => false,
            FLAG_HYBRID => true,
            _ => return Err(VerifyError::Malformed),
        };
        let cluster = read_keys(&mut reader)?.into_iter().map(ClusterPublic).collect();
        let grant = read_keys(&mut reader)?;
        reader.end()?;
        let claims = KeySetClaims { serial, hybrid, cluster, grant };
        Ok(Self { bytes: bytes.to_vec(), signed_by, claims })
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The grant key that signed it.
    pub fn signed_by(&self) -> GrantKeyId {
        self.signed_by
    }

    /// The serial, not verified: for whoever only passes the set on.
    pub fn serial(&self) -> u64 {
        self.claims.serial
    }

    /// Verifies the signature and that the set is newer than the one with serial `held`.
    ///
    /// # Errors
    /// [`VerifyError::Expired`] for a set that is not newer, and the signature's.
    pub fn open(&self, verifier: &GrantVerifier, held: u64) -> Result<KeySetClaims, VerifyError> {
        statement::verify(self.signed_by, &self.bytes, verifier)?;
        if self.claims.serial <= held {
            return Err(VerifyError::Expired);
        }
        Ok(self.claims.clone())
    }
}

fn write_keys<'a>(out: &mut Vec<u8>, keys: impl ExactSizeIterator<Item = &'a [u8; 32]>) {
    out.push(u8::try_from(keys.len()).expect("at most 8 keys"));
    keys.for_each(|key| out.extend_from_slice(key));
}

/// One key or more, none twice.
fn read_keys(reader: &mut Reader<'_>) -> Result<Vec<[u8; 32]>, Malformed> {
    let count = usize::from(reader.u8()?);
    if count == 0 || count > KEYS_MAX {
        return Err(Malformed);
    }
    let mut keys: Vec<[u8; 32]> = Vec::with_capacity(count);
    for _ in 0..count {
        let key = reader.array()?;
        if keys.contains(&key) {
            return Err(Malformed);
        }
        keys.push(key);
    }
    Ok(keys)
}
