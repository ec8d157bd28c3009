//! Keys of gateway-to-gateway links (`docs/protocol.md` §7).
//!
//! Each worker makes an X25519 mesh key at start, in memory only, and registers the public half with control. A link's
//! two record keys come from HKDF over the static-static secret, bound to both incarnations and the direction, so no
//! handshake is needed and no (key, nonce) pair outlives a worker.

use crate::entropy::{Entropy, EntropyError};
use crate::ids::{Incarnation, NodeNumber};
use crate::record::{OpeningKey, SealingKey};

/// A worker's mesh key. Erased on drop.
pub struct MeshSecret {
    _private: (),
}

/// One end of a link, as registered with control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshEnd {
    /// The node's number: the receiver index of records to it is this number with local part 0.
    pub number: NodeNumber,
    /// The node's run.
    pub incarnation: Incarnation,
    /// The mesh public key of that run.
    pub public: [u8; 32],
}

impl MeshSecret {
    /// Makes a key.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(_entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        todo!()
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        todo!()
    }

    /// Derives the keys of the link between `own` and `peer`. `None` when the peer's key is degenerate.
    pub fn link(&self, _own: &MeshEnd, _peer: &MeshEnd) -> Option<(SealingKey, OpeningKey)> {
        todo!()
    }
}
