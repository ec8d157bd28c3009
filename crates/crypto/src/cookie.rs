//! Denial-of-service gates of first messages: `mac1`, the stateless cookie, and the reattach hint
//! (`docs/protocol.md` §3.4, §6). All derive from the cluster key, so any replica can check what another issued.

use std::net::SocketAddr;

use crate::ids::ReceiverIndex;
use crate::keys::{ClusterPublic, ClusterSecret};

/// Seconds for which one cookie secret is in use; the previous bucket is accepted too.
pub const COOKIE_BUCKET_SECONDS: u64 = 120;

/// Length of a reattach hint token, in bytes.
pub const HINT_LEN: usize = 16;

/// Checks first messages; held by every gateway. Constant work, no allocation.
pub struct Gate {
    _private: (),
}

/// What the gate says of a first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Not a first message for this cluster key: drop it.
    BadMac,
    /// `mac1` is right and no valid cookie is shown.
    NoCookie,
    /// `mac1` is right and the cookie proves the source address.
    Cookie,
}

impl Gate {
    /// Derives the gate's keys.
    pub fn new(_cluster: &ClusterSecret) -> Self {
        todo!()
    }

    /// Judges an `AttachInit` datagram from `source` at `now` (seconds since the Unix epoch).
    pub fn admit(&self, _datagram: &[u8], _source: SocketAddr, _now: u64) -> Admission {
        todo!()
    }

    /// Writes a `CookieReply` to `init` into `out`; returns its length. Never longer than `init`.
    /// `nonce` must be fresh random bytes.
    pub fn cookie_reply(
        &self,
        _init: &[u8],
        _source: SocketAddr,
        _now: u64,
        _nonce: [u8; 16],
        _out: &mut [u8],
    ) -> Option<usize> {
        todo!()
    }

    /// The reattach hint token of `index`.
    pub fn hint(&self, _index: ReceiverIndex) -> [u8; HINT_LEN] {
        todo!()
    }
}

/// Opens a `CookieReply` to the client's own `init`; `None` when it is not a reply to it.
pub fn open_cookie_reply(_cluster: &ClusterPublic, _init: &[u8], _reply: &[u8]) -> Option<[u8; 16]> {
    todo!()
}
