//! What the data plane keeps per receiver index.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jump_crypto::handshake::{AttachIntent, Established};
use jump_crypto::ids::{DeviceKey, SessionId};
use jump_crypto::record::{OpeningKey, SealingKey};
use jump_session::gateway::{GatewaySession, Nanos, Timing};
use jump_session::path::Path;
use jump_transport::tun::ErrorPace;

use super::anchors::Anchors;
use super::fair::Share;
use super::policy::{Bounds, Policy, Way};
use super::timers::Armed;
use super::{DropReason, Suspect};

/// The entry of one local index.
pub(crate) enum Entry {
    /// Set aside for an `AttachInit` that a handshake thread is answering.
    Reserved,
    /// Answered; waits for the client's confirmation or control's verdict.
    Handshake(Box<Handshake>),
    /// A session that this gateway owns.
    Session(Box<Session>),
    /// Receive-only keys: of a session whose keys were replaced, or of one that was fenced.
    Retired(Box<Retired>),
}

/// Where a handshake stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Answered; the client has not confirmed.
    Answered,
    /// Confirmed; control is being asked.
    Claiming,
    /// Rejected; the encoded result is repeated for every `Confirm`.
    Rejected(Box<[u8]>),
}

/// An answered `AttachInit`.
pub(crate) struct Handshake {
    pub(crate) keys: Established,
    pub(crate) device: DeviceKey,
    pub(crate) intent: AttachIntent,
    /// Where the reply went: whoever confirms has received there.
    pub(crate) path: Path,
    pub(crate) stage: Stage,
    /// The `AttachReply`, for the same first message again.
    pub(crate) reply: Box<[u8]>,
    /// Goes out behind the result of an accepted attach or rekey.
    pub(crate) key_set: Option<Box<[u8]>>,
}

/// Inner addresses: at most one of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inner {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Inner {
    /// Keeps the first address of each family.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut inner = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => inner.v4 = inner.v4.or(Some(v4)),
                IpAddr::V6(v6) => inner.v6 = inner.v6.or(Some(v6)),
            }
        }
        inner
    }

    /// True when `address` is exactly one of them.
    #[inline]
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4 == Some(v4),
            IpAddr::V6(v6) => self.v6 == Some(v6),
        }
    }

    /// The addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A session that this gateway owns.
pub(crate) struct Session {
    pub(crate) opening: OpeningKey,
    pub(crate) sealing: SealingKey,
    pub(crate) machine: GatewaySession,
    pub(crate) inner: Inner,
    pub(crate) id: SessionId,
    pub(crate) device: DeviceKey,
    pub(crate) correlation: [u8; 16],
    /// What bounds it by its device's policy; `None` for nothing.
    pub(super) bounds: Option<Box<Bounds>>,
    /// The encoded outcome of the attach or rekey, repeated for every `Confirm` for a while.
    pub(crate) outcome: Option<Box<Outcome>>,
    pub(crate) armed: Armed,
    /// What it had of the current pass.
    pub(super) share: Share,
    /// What was forwarded for it here.
    pub(crate) traffic: Traffic,
    /// Packets forwarded when it was last looked at as possibly idle.
    pub(super) swept: u64,
    /// Of the ICMP errors that its owner sends to those who send it too much.
    pub(super) errors: ErrorPace,
    /// Its flows that leave by other gateways; `None` for none.
    pub(super) anchors: Option<Box<Anchors>>,
}

/// What was forwarded for one session by this gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Inner packets from the client.
    pub packets_up: u64,
    /// Their bytes.
    pub bytes_up: u64,
    /// Inner packets to the client.
    pub packets_down: u64,
    /// Their bytes.
    pub bytes_down: u64,
}

/// An encoded frame that answers `Confirm` until its time is over.
pub(crate) struct Outcome {
    pub(crate) frame: Box<[u8]>,
    pub(crate) until: Nanos,
}

impl Session {
    /// Who is to be told about when a datagram of this session is refused.
    #[cold]
    pub(crate) fn suspect(&self, reason: DropReason, source: Path, destination: Option<IpAddr>) -> Suspect {
        let session = Some((self.id, self.correlation, self.machine.epoch(), self.device));
        Suspect { reason, session, source: source.peer, destination }
    }

    /// When something is due.
    pub(crate) fn due(&self, timing: &Timing) -> Nanos {
        let outcome = self.outcome.as_ref().map_or(Nanos::MAX, |outcome| outcome.until);
        self.machine.poll_timeout(timing).unwrap_or(Nanos::MAX).min(outcome)
    }

    /// True when the device may send to `destination`.
    #[inline]
    pub(crate) fn may_reach(&self, destination: IpAddr) -> bool {
        self.bounds.as_ref().is_none_or(|bounds| bounds.reaches(destination))
    }

    /// Obeys a policy from now on. One that has not changed leaves the buckets as they are.
    pub(super) fn rebound(&mut self, policy: &Policy) {
        if !self.bounds.as_ref().map_or(*policy == Policy::default(), |bounds| bounds.is(policy)) {
            self.bounds = Bounds::of(policy.clone());
        }
    }

    /// Takes `bytes` out of what may go this way now; false when there is not enough left.
    #[inline]
    pub(super) fn takes(&mut self, way: Way, bytes: usize, now: Nanos) -> bool {
        self.bounds.as_mut().is_none_or(|bounds| bounds.takes(way, bytes, now))
    }
}

/// Keys that only open, for records under way.
pub(crate) struct Retired {
    pub(crate) opening: OpeningKey,
    pub(crate) inner: Inner,
    pub(crate) session: SessionId,
    /// Why the keys retired.
    pub(crate) cause: Retirement,
}

/// Why keys retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retirement {
    /// Newer keys of the same session are in use here: of a rekey, or of another attach to this gateway.
    Replaced,
    /// The session went to another owner: its packets are relayed there.
    Fenced,
}
