//! Long-lived keys and their lifecycle.

use core::fmt;

use crate::entropy::{Entropy, EntropyError};
use crate::ids::DeviceKey;

/// Names a cluster handshake key on the wire: the first 4 bytes of SHA-256 of its public half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKeyId(pub [u8; 4]);

/// Names a grant key: the first 4 bytes of SHA-256 of its public half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantKeyId(pub [u8; 4]);

/// A device's X25519 key pair. Erased on drop; never printed.
pub struct DeviceSecret {
    _private: (),
}

impl DeviceSecret {
    /// Makes a key pair.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(_entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        todo!()
    }

    /// Restores a key pair from its private half.
    pub fn from_bytes(_bytes: [u8; 32]) -> Self {
        todo!()
    }

    /// The private half, for the device's own key file.
    pub fn expose(&self) -> &[u8; 32] {
        todo!()
    }

    /// The public half.
    pub fn public(&self) -> DeviceKey {
        todo!()
    }
}

impl fmt::Debug for DeviceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSecret(public {})", self.public())
    }
}

/// The cluster handshake key with everything derived from it: cookie secrets, hint tokens and the MAC of first messages.
/// Gateways hold it in memory only.
pub struct ClusterSecret {
    _private: (),
}

/// The public half of a cluster handshake key, as clients hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterPublic(pub [u8; 32]);

impl ClusterPublic {
    /// Its name on the wire.
    pub fn id(&self) -> ClusterKeyId {
        todo!()
    }
}

impl ClusterSecret {
    /// Makes a key.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(_entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        todo!()
    }

    /// Restores it from its private half.
    pub fn from_bytes(_bytes: [u8; 32]) -> Self {
        todo!()
    }

    /// The private half: control stores it, and hands it to gateways over mTLS.
    pub fn expose(&self) -> &[u8; 32] {
        todo!()
    }

    /// The public half.
    pub fn public(&self) -> ClusterPublic {
        todo!()
    }
}

impl Clone for ClusterSecret {
    fn clone(&self) -> Self {
        Self::from_bytes(*self.expose())
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterSecret({:?})", self.public().id())
    }
}

/// Control's Ed25519 key for grants and node certificates.
pub struct GrantSigner {
    _private: (),
}

impl GrantSigner {
    /// Makes a key from a fresh 32-byte seed.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(_entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        todo!()
    }

    /// Restores it from its seed.
    pub fn from_seed(_seed: &[u8; 32]) -> Self {
        todo!()
    }

    /// The seed, for control's key store.
    pub fn expose_seed(&self) -> &[u8; 32] {
        todo!()
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        todo!()
    }
}

impl fmt::Debug for GrantSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrantSigner")
    }
}

/// The grant keys that a client or gateway accepts (current, next and retiring).
#[derive(Debug, Clone, Default)]
pub struct GrantVerifier {
    _private: (),
}

impl GrantVerifier {
    /// Accepts signatures by any of `keys` (Ed25519 public keys).
    pub fn new(_keys: &[[u8; 32]]) -> Self {
        todo!()
    }
}
