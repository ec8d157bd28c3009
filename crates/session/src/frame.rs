//! Control frames: the plaintext of records with [`Content::Control`](jump_crypto::record::Content) (`docs/protocol.md` §5).
//!
//! A frame is `type (1) ‖ body`. Integers are big-endian. One frame per record.

mod codec;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::ids::{AttachSeq, Epoch, SessionId};
use crate::path::Door;
use crate::reason::Reason;

/// The longest encoded frame other than an [`MtuProbe`](Frame::MtuProbe) or its answer, in bytes.
pub const FRAME_LEN_MAX: usize = 1200;
/// The shortest `MtuProbe`, in bytes.
pub const MTU_PROBE_LEN_MIN: u16 = 9;
/// The shortest `MtuAnswer`, and the shortest `MtuProbe` that tells an MTU, in bytes.
pub const MTU_ANSWER_LEN_MIN: u16 = 11;
/// The smallest inner MTU that an `AttachResult` may carry, in bytes: what every IPv4 host accepts.
pub const MTU_MIN: u16 = 576;
/// The largest inner MTU that is probed, in bytes.
pub const MTU_MAX: u16 = 9000;
/// Capability of a client (a bit of [`capabilities`](jump_crypto::handshake::AttachIntent::capabilities)): it tells its
/// inner MTU by `MtuProbe`, and takes whatever the gateway's inner network carries until then.
pub const CAPABILITY_MTU: u32 = 1;
/// How many inner addresses a session has at most: one of each family.
pub const INNER_MAX: usize = 2;
/// How many gateway addresses a frame may carry.
pub const ROSTER_MAX: usize = 16;
/// How many other transports an `AttachResult` may name.
pub const DOORS_MAX: usize = 4;
/// How many routes an `AttachResult` may carry.
pub const ROUTES_MAX: usize = 32;
/// How many DNS servers an `AttachResult` may carry.
pub const DNS_MAX: usize = 4;

/// One control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: proves liveness of the handshake and asks for the commit. Repeated until a result arrives.
    Confirm,
    /// Gateway: the outcome of the attach. Repeated for every `Confirm`.
    AttachResult(Box<AttachResult>),
    /// Gateway: the answer to a `Confirm` whose outcome is not known yet. It is being worked on: go on asking here.
    Pending,
    /// Either side: asks for a `Pong`. `id` is echoed.
    Ping {
        /// Chosen by the sender; unique among its outstanding pings.
        id: u64,
    },
    /// The answer to a `Ping` or `MtuProbe`.
    Pong {
        /// The ping's id.
        id: u64,
        /// Records that the sender has accepted under these keys.
        received: u64,
        /// The highest counter among them. What is missing between two pongs was lost on the way to the sender.
        newest: u64,
    },
    /// Asks the peer to prove that it receives on this path. Not answered by a replay.
    PathChallenge {
        /// Unpredictable bytes.
        token: [u8; 8],
    },
    /// The answer to a `PathChallenge`, on the path it came by.
    PathResponse {
        /// The challenge's bytes.
        token: [u8; 8],
    },
    /// Gateway: attach to one of these gateways now; this one still forwards until the new one is accepted.
    Migrate {
        /// Why.
        reason: Reason,
        /// Where to go, best first. At most [`ROSTER_MAX`].
        targets: Vec<SocketAddr>,
    },
    /// Gateway: the session has ended for good.
    Terminated {
        /// Why.
        reason: Reason,
    },
    /// Client: ends the session for good.
    Close {
        /// Why.
        reason: Reason,
    },
    /// Either side: padding for path MTU discovery. Answered with `MtuAnswer` when it tells an MTU, otherwise with `Pong`.
    MtuProbe {
        /// Echoed in the answer.
        id: u64,
        /// The largest inner packet that the sender takes and sends from now on; 0 when it does not say.
        mtu: u16,
        /// Encoded length of this frame, in bytes.
        len: u16,
    },
    /// Gateway: the answer to an `MtuProbe` that tells an MTU, as long as the probe.
    MtuAnswer {
        /// The probe's id.
        id: u64,
        /// The largest inner packet that the gateway takes.
        mtu_max: u16,
        /// Encoded length of this frame, in bytes: the probe's, or less when that is more than `mtu_max`.
        len: u16,
    },
    /// Gateway: this side now carries the session's binding with this number.
    Bound {
        /// Switches of path or transport in this epoch.
        binding: u64,
    },
    /// Gateway: the cluster's public keys have changed. Worth nothing before its signature and serial are checked.
    Keys {
        /// An encoded [`jump_crypto::key_set::KeySet`].
        key_set: Vec<u8>,
    },
}

/// The outcome of an attach.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "frames box it")]
pub enum AttachResult {
    /// This gateway owns the session.
    Accepted(Accepted),
    /// It does not, and will not by this attempt.
    Rejected {
        /// Why.
        reason: Reason,
        /// The session's epoch in the store; 0 when the caller may not know it.
        current_epoch: Epoch,
        /// The stored attach sequence number; the client goes past it.
        current_attach_seq: AttachSeq,
        /// When asking again makes sense; zero for never.
        retry_after: Duration,
    },
}

/// What an accepted client is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The session.
    pub session: SessionId,
    /// The epoch that this gateway owns.
    pub epoch: Epoch,
    /// Inner addresses: one IPv4, and one IPv6 where the pool has one.
    pub inner: Vec<IpAddr>,
    /// Grant signed by control: encoded [`jump_crypto::grant::Grant`].
    pub grant: Vec<u8>,
    /// Networks to route into the tunnel: address and prefix length. At most [`ROUTES_MAX`].
    pub routes: Vec<(IpAddr, u8)>,
    /// At most [`DNS_MAX`].
    pub dns: Vec<IpAddr>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// Time to the end of the session's life.
    pub expires_in: Duration,
    /// The node lease's time to live: how long a silent owner may stay owner.
    pub lease: Duration,
    /// Gateways to reattach to, best first. At most [`ROSTER_MAX`].
    pub roster: Vec<SocketAddr>,
    /// Where else every gateway of the cluster listens, besides the roster's UDP addresses. At most [`DOORS_MAX`].
    pub doors: Vec<Door>,
    /// Correlation id of the session in logs.
    pub correlation: [u8; 16],
    /// Switches per minute that the policy allows.
    pub switches_per_minute_max: u16,
    /// Shortest time between switches.
    pub switch_cooldown: Duration,
    /// How long the session survives without a transport.
    pub recovery_window: Duration,
}

/// The bytes are not a frame of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed control frame")]
pub struct MalformedFrame;
