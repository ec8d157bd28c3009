//! What goes in and out of the client machine.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jump_crypto::certificate::VerifyError;
use jump_crypto::entropy::EntropyError;
use jump_crypto::handshake::Suite;
use jump_crypto::key_set::KeySetClaims;

use super::detection::RoundTrip;
use super::path_mtu::Phase as MtuPhase;
use super::state::State;
use crate::frame::Accepted;
use crate::ids::{AttachSeq, AttemptId, Epoch, Incarnation, NodeId, SessionId};
use crate::path::{Door, Transport};
use crate::reason::Reason;

/// The time of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since an arbitrary origin, on a clock that counts suspended time and never goes back.
    pub at: Duration,
    /// Seconds since the Unix epoch; only certificates and grants are held against it.
    pub unix_seconds: u64,
}

/// Names one way to one gateway: a local socket on its own port, connected to a gateway's address. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u32);

/// What the socket of a path reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// The peer's host answers that nobody listens (ICMP port unreachable).
    Refused,
    /// The peer cannot be reached from here, or the socket could not be opened.
    Unreachable,
}

/// News of the device's own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkChange {
    /// Addresses, routes or links changed.
    Changed,
    /// The device was suspended and runs again.
    Resumed,
}

/// A datagram to send on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The path.
    pub path: PathId,
    /// Its bytes.
    pub datagram: Vec<u8>,
}

/// What must survive a restart of the process. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// The session to go on with, if any.
    pub session: Option<SessionId>,
    /// The last accepted epoch.
    pub epoch: Epoch,
    /// No attempt has used a higher number.
    pub attach_seq: AttachSeq,
    /// The session's inner addresses; empty when not known.
    pub inner: Vec<IpAddr>,
    /// The gateways that the last owner named, best first.
    pub roster: Vec<SocketAddr>,
    /// Where else those gateways listen; empty when no owner has told.
    pub doors: Vec<Door>,
}

/// Orders writes of [`Stored`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How long the parts of an attach took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From the first unanswered traffic on the old path to the decision to leave it.
    pub detect: Duration,
    /// From the decision to the proven handshake.
    pub handshake: Duration,
    /// From the confirmation to the acceptance.
    pub commit: Duration,
}

/// An accepted attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The owner.
    pub node: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its address.
    pub gateway: SocketAddr,
    /// The path in use.
    pub path: PathId,
    /// What carries it.
    pub transport: Transport,
    /// Why the client attached.
    pub reason: Reason,
    /// The attempt that was accepted: the same id names it at the gateway and in control.
    pub attempt: AttemptId,
    /// True for the first acceptance of a new session.
    pub born: bool,
    /// How long it took.
    pub timings: Timings,
    /// What the owner gave.
    pub accepted: Accepted,
}

/// What the caller must do, or may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Open a socket on a new local port, connected to `address`. Failure is a path error.
    OpenPath {
        /// The new path.
        path: PathId,
        /// The gateway that it leads to, by its UDP address.
        gateway: SocketAddr,
        /// What carries it.
        transport: Transport,
        /// Where to connect to.
        address: SocketAddr,
    },
    /// Close the socket.
    ClosePath {
        /// The path.
        path: PathId,
    },
    /// Write this durably, then call [`persisted`](super::Client::persisted). Later tickets replace earlier ones.
    Persist {
        /// Names the write.
        ticket: Ticket,
        /// What to write.
        stored: Stored,
    },
    /// The state changed.
    StateChanged {
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Why.
        reason: Reason,
    },
    /// An attempt was sent to a gateway.
    Attempted {
        /// The gateway.
        gateway: SocketAddr,
        /// By what it was sent.
        transport: Transport,
        /// Its place in the client's order.
        attach_seq: AttachSeq,
        /// Its id, the same at the gateway and in control.
        attempt: AttemptId,
        /// Why the client attaches.
        reason: Reason,
    },
    /// A gateway owns the session. Addresses and routes of the first one stay in place through all later ones.
    Attached(Box<Attached>),
    /// The session goes on over another path to the same owner.
    PathChanged {
        /// The path now in use.
        path: PathId,
        /// The transport before.
        from: Transport,
        /// The transport now.
        to: Transport,
        /// Why.
        reason: Reason,
    },
    /// The owner sends to another path now: the one that this side took, or a new address that the network gave it.
    Bound {
        /// The number of the path inside the epoch.
        binding: u64,
        /// True when this side changed nothing.
        implicit: bool,
    },
    /// The path carries larger inner packets now, or only smaller ones. [`Attached`] begins with what
    /// [`mtu`](super::Client::mtu) says then.
    MtuChanged {
        /// The largest inner packet before, in bytes.
        from: u16,
        /// The largest inner packet from now on.
        to: u16,
    },
    /// The first inner packet after an acceptance arrived.
    FirstByte {
        /// The epoch.
        epoch: Epoch,
        /// Time since the acceptance.
        after: Duration,
    },
    /// Fresh keys are in use, in the same epoch.
    Rekeyed {
        /// The epoch.
        epoch: Epoch,
    },
    /// An attempt was rejected; another follows unless a `Terminated` does.
    Rejected {
        /// Who said so.
        gateway: SocketAddr,
        /// Why.
        reason: Reason,
        /// The session's epoch, as the rejection tells it.
        current_epoch: Epoch,
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// A gateway said that it owns the session and could not prove it. Nothing of it was used.
    Untrusted {
        /// The gateway.
        gateway: SocketAddr,
        /// What is wrong with the grant.
        error: VerifyError,
    },
    /// Control has changed the cluster's public keys. The machine uses them already; keep them for the next start.
    KeysChanged(KeySetClaims),
    /// The session has ended for good; the machine does nothing more.
    Terminated {
        /// Why.
        reason: Reason,
    },
    /// The generator refused to make randomness; the session has ended, because no further keys can be made.
    NoEntropy(EntropyError),
}

/// What the machine did with a datagram that it did not want, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops {
    /// No datagram of this protocol, or not one that a client receives.
    pub malformed: u64,
    /// A record for keys that are not held (any more).
    pub unknown_index: u64,
    /// A record seen before.
    pub replayed: u64,
    /// A record or reply that failed authentication.
    pub unauthenticated: u64,
    /// Authentic, but out of place: a stale result, data before its acceptance.
    pub unexpected: u64,
    /// An inner packet that is not for this session's addresses.
    pub foreign: u64,
    /// A reattach hint with a wrong token.
    pub bad_hint: u64,
    /// A cookie that is no answer to the client's own message.
    pub bad_cookie: u64,
    /// An acceptance whose grant was refused.
    pub bad_grant: u64,
    /// A key set that control did not sign.
    pub bad_key_set: u64,
    /// Control datagrams left out because the outgoing queue was full.
    pub queue_full: u64,
}

/// Traffic and loss under the present keys. Loss is measured by counters: what the other side has seen of what was
/// sent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Meter {
    /// Share of records lost on the way to the gateway, 0 to 1, smoothed.
    pub loss_up: f32,
    /// The same on the way from it.
    pub loss_down: f32,
    /// Bytes of records sent to this owner.
    pub bytes_sent: u64,
    /// Bytes of records received from this owner.
    pub bytes_received: u64,
    /// Records received under these keys, and the highest counter among them.
    pub(super) received: u64,
    pub(super) newest: u64,
    /// Probes of the path's MTU that were too long: lost by intention.
    excused: u64,
    /// Where the last measurement ended, in each direction: records seen, and the highest counter.
    up_base: Option<(u64, u64)>,
    down_base: (u64, u64),
}

impl Eq for Meter {}

impl Meter {
    /// Fewer records than this say nothing about loss.
    const SAMPLE_MIN: u64 = 20;

    pub(super) fn opened(&mut self, counter: u64, newest: bool, len: usize) {
        self.bytes_received += len as u64;
        self.received += 1;
        if newest {
            self.newest = counter;
        }
    }

    /// So many records more were lost because they were meant to find out whether they would be.
    pub(super) fn excuse(&mut self, lost: u8) {
        self.excused += u64::from(lost);
    }

    /// The gateway has seen `received` records up to `newest`.
    pub(super) fn told(&mut self, received: u64, newest: u64) {
        let received = received + self.excused;
        let base = *self.up_base.get_or_insert((received, newest));
        if newest >= base.1.saturating_add(Self::SAMPLE_MIN) {
            smooth(&mut self.loss_up, base, (received, newest));
            self.up_base = Some((received, newest));
        }
        let seen = (self.received, self.newest);
        if seen.1 >= self.down_base.1.saturating_add(Self::SAMPLE_MIN) {
            smooth(&mut self.loss_down, self.down_base, seen);
            self.down_base = seen;
        }
    }

    /// Fresh keys count from the start.
    pub(super) fn rekeyed(&mut self) {
        *self = Self {
            loss_up: self.loss_up,
            loss_down: self.loss_down,
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            ..Self::default()
        };
    }
}

fn smooth(loss: &mut f32, base: (u64, u64), now: (u64, u64)) {
    let sent = now.1.saturating_sub(base.1) as f32;
    let seen = now.0.saturating_sub(base.0) as f32;
    let sample = (1.0 - seen / sent).clamp(0.0, 1.0);
    *loss = *loss * 0.5 + sample * 0.5;
}

/// A way to the owner that is being tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TriedWay {
    /// What carries it.
    pub transport: Transport,
    /// Challenges answered in a row.
    pub answers: u8,
    /// Its round trip, once known.
    pub rtt: Option<RoundTrip>,
}

/// A snapshot for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where the session stands.
    pub state: State,
    /// Why it got there.
    pub reason: Reason,
    /// The session, once born.
    pub session: Option<SessionId>,
    /// The last accepted epoch.
    pub epoch: Epoch,
    /// The switch count inside the epoch, as the owner last told it.
    pub binding: u64,
    /// The owner, while there is one.
    pub owner: Option<(NodeId, SocketAddr)>,
    /// How the present keys were agreed; `None` without an owner.
    pub suite: Option<Suite>,
    /// Inner addresses.
    pub inner: Vec<IpAddr>,
    /// What carries the session; `None` without an owner.
    pub transport: Option<Transport>,
    /// Paths and transports changed by this process under one owner.
    pub path_changes: u64,
    /// Round trip to the owner.
    pub rtt: Option<RoundTrip>,
    /// Traffic and loss on the way to the owner.
    pub meter: Meter,
    /// The largest inner packet that the path carries, and how far its discovery is; `None` without an owner.
    pub mtu: Option<(u16, MtuPhase)>,
    /// Other ways that are being tried.
    pub tried: Vec<TriedWay>,
    /// Since when the owner was last heard, on the machine's clock.
    pub last_received: Option<Duration>,
    /// Gateways to reattach to.
    pub roster: Vec<SocketAddr>,
    /// Owners accepted by this process.
    pub attaches: u64,
    /// What was dropped.
    pub drops: Drops,
}

/// How a session and its path are, for metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    /// Where the session stands.
    pub state: State,
    /// The path to the owner; `None` without one.
    pub path: Option<PathHealth>,
    /// What was dropped.
    pub drops: Drops,
}

/// How a path is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathHealth {
    /// What carries it.
    pub transport: Transport,
    /// Round trip, once measured.
    pub rtt: Option<RoundTrip>,
    /// Share of records lost on the way to the gateway, 0 to 1, smoothed.
    pub loss_up: f32,
    /// The same on the way from it.
    pub loss_down: f32,
}
