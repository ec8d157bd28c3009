//! What node certificates, grants and key sets share: a versioned body, the signer's key id and an Ed25519 signature.
//!
//! `version (1) ‖ kind (1) ‖ key id (4) ‖ fields ‖ signature (64)`; the signature covers a domain label and
//! everything before it (`docs/protocol.md` §6.5).

use crate::certificate::VerifyError;
use crate::codec::{Malformed, Reader};
use crate::ids::NodeId;
use crate::keys::{GrantKeyId, GrantSigner, GrantVerifier};

const VERSION: u8 = 1;
const SIGNATURE_LEN: usize = 64;
const DOMAIN: &[u8] = b"jumping-vpn statement v1\0";

/// What a signed statement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    NodeCertificate = 1,
    Grant = 2,
    KeySet = 3,
}

fn message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Encodes and signs `fields`.
pub(crate) fn sign(kind: Kind, fields: &[u8], signer: &GrantSigner) -> Vec<u8> {
    let mut bytes = vec![VERSION, kind as u8];
    bytes.extend_from_slice(&signer.id().0);
    bytes.extend_from_slice(fields);
    let signature = signer.sign(&message(&bytes));
    bytes.extend_from_slice(&signature);
    bytes
}

/// Splits a statement of `kind` into the signer's id and the fields.
pub(crate) fn split(kind: Kind, bytes: &[u8], len_max: usize) -> Result<(GrantKeyId, &[u8]), Malformed> {
    if bytes.len() > len_max {
        return Err(Malformed);
    }
    let (body, _) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(Malformed)?;
    let mut reader = Reader::new(body);
    reader.expect(VERSION)?;
    reader.expect(kind as u8)?;
    let id = GrantKeyId(reader.array()?);
    Ok((id, &body[6..]))
}

/// Verifies the signature of a statement that [`split`] accepted.
pub(crate) fn verify(id: GrantKeyId, bytes: &[u8], verifier: &GrantVerifier) -> Result<(), VerifyError> {
    let (body, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(VerifyError::Malformed)?;
    verifier.verify(id, &message(body), signature)
}

/// [`verify`] for a statement that is shown again and again.
pub(crate) fn verify_again(
    id: GrantKeyId,
    bytes: &[u8],
    verifier: &GrantVerifier,
) -> Result<(), VerifyError> {
    let (body, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(VerifyError::Malformed)?;
    verifier.verify_again(id, &message(body), signature)
}

/// Writes a node's name: length, then the name.
pub(crate) fn write_node(out: &mut Vec<u8>, node: &NodeId) {
    let name = node.as_str().as_bytes();
    out.push(u8::try_from(name.len()).expect("a node id has at most 63 bytes"));
    out.extend_from_slice(name);
}

/// Reads a node's name.
pub(crate) fn read_node(reader: &mut Reader<'_>) -> Result<NodeId, Malformed> {
    let len = usize::from(reader.u8()?);
    let name = core::str::from_utf8(reader.bytes(len)?).map_err(|_| Malformed)?;
    name.parse().map_err(|_| Malformed)
}

impl From<Malformed> for VerifyError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

#[cfg(test)]
mod tests;
