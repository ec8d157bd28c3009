//! What passes between the data-plane thread and the rest of the worker: bounded queues of these values.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use jump_crypto::cookie::Gate;
use jump_crypto::handshake::{AttachIntent, Established};
use jump_crypto::ids::{Binding, DeviceKey, Epoch, ReceiverIndex, SessionId};
use jump_session::frame::AttachResult;
use jump_session::gateway::{Nanos, State};
use jump_session::path::Path;
use jump_session::reason::Reason;
use tokio::sync::oneshot;

use super::counters::DropReason;
use super::egress::FlowAnswer;
use super::links::Link;
use super::policy::Policy;
use super::route::NodeRef;
use super::session::Inner;
use super::usage::UsagePage;

/// Commands waiting for the data plane; senders wait beyond it.
pub const COMMANDS_MAX: usize = 4096;
/// Events waiting for the worker; beyond it, notes are dropped and the rest is kept and tried again.
pub const EVENTS_MAX: usize = 4096;
/// First messages waiting for one handshake thread; beyond it they are dropped and counted.
pub const INITS_MAX: usize = 256;
/// A first message that has waited longer for a handshake thread, in nanoseconds, is not answered any more: its client has
/// asked elsewhere, and the answer would only keep others waiting.
pub const INIT_STALE: Nanos = 1_000_000_000;

/// An order to the data plane.
pub enum Command {
    /// An `AttachInit` was answered: keep the keys and send the reply.
    Answered(Box<Answered>),
    /// An `AttachInit` was refused: give its index back.
    Refused {
        /// The reserved index.
        index: ReceiverIndex,
        /// Why.
        reason: DropReason,
    },
    /// Control has decided a claim.
    Decide {
        /// The handshake's index.
        index: ReceiverIndex,
        /// The verdict.
        verdict: Box<Verdict>,
    },
    /// Stop forwarding for a session, in this and every earlier epoch.
    Stop {
        /// The session.
        session: SessionId,
        /// The last epoch that is over.
        epoch: Epoch,
        /// Why.
        cause: StopCause,
        /// Told once nothing is forwarded any more: the ages of the session's path switches here within the last minute.
        done: Option<oneshot::Sender<Vec<Duration>>>,
    },
    /// News of the bindings, in their order.
    Bindings(Vec<BindingUpdate>),
    /// A snapshot of the bindings begins.
    SnapshotBegins,
    /// The snapshot is whole.
    SnapshotComplete,
    /// Another gateway is there.
    Link(Box<Link>),
    /// Another gateway's run is over.
    Unlink(NodeRef),
    /// The gates of the cluster keys, current first.
    Gates(Vec<Gate>),
    /// Tell every client to move to one of these gateways.
    Drain {
        /// Why.
        reason: Reason,
        /// Where to, best first.
        targets: Vec<SocketAddr>,
    },
    /// Tell one session's client to move to one of these gateways; answers whether it is carried here in that epoch.
    Move {
        /// The session.
        session: SessionId,
        /// The epoch in which it is to leave.
        epoch: Epoch,
        /// Where to, best first.
        targets: Vec<SocketAddr>,
        /// Hears whether there was anybody to tell.
        carried: oneshot::Sender<bool>,
    },
    /// The drain is over: clients are no longer asked to move.
    Undrain,
    /// What the kernel said of the flows of sessions that have left.
    Flows(Vec<FlowAnswer>),
    /// Inner addresses of the sessions that were given up here and may have flows that this gateway translates.
    Anchored(oneshot::Sender<Vec<IpAddr>>),
    /// Which sessions are active here.
    List(oneshot::Sender<Vec<Carried>>),
    /// What the sessions from this slot on carried, a page of them.
    Usage {
        /// The slot.
        from: usize,
        /// Hears it.
        answer: oneshot::Sender<UsagePage>,
    },
    /// End the thread.
    Shutdown,
}

/// An answered `AttachInit`.
pub struct Answered {
    /// The new keys; their own index is the reserved one.
    pub keys: Established,
    /// The device that made the message.
    pub device: DeviceKey,
    /// What it asks for.
    pub intent: AttachIntent,
    /// Where the message came from and the reply goes to.
    pub path: Path,
    /// The `AttachReply`.
    pub reply: Box<[u8]>,
    /// A key set that the device does not have yet; it gets it with the result.
    pub key_set: Option<Box<[u8]>>,
}

/// Control's verdict on a claim.
pub enum Verdict {
    /// The session is owned here.
    Accepted(Activation),
    /// It is not.
    Rejected(AttachResult),
}

/// An accepted claim.
pub struct Activation {
    /// The session.
    pub session: SessionId,
    /// The epoch that this gateway owns.
    pub epoch: Epoch,
    /// Its inner addresses.
    pub inner: Inner,
    /// The correlation id of its logs.
    pub correlation: [u8; 16],
    /// When it ends at the latest.
    pub expires: Nanos,
    /// Longest silence before the owner ends it.
    pub idle_transport_max: Duration,
    /// Path switches per minute.
    pub switches_per_minute_max: u32,
    /// Shortest time between two of them.
    pub switch_cooldown: Duration,
    /// Ages of the switches that control has counted within the last minute.
    pub switch_ages: Vec<Duration>,
    /// What bounds it.
    pub policy: Policy,
    /// What the client is told.
    pub result: AttachResult,
}

/// Why a session stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// Another gateway owns it or is about to.
    Moved,
    /// It has ended; the client is told.
    Terminated(Reason),
    /// It was given up; the client is told to go to one of these gateways.
    Released(Vec<SocketAddr>),
}

/// Who carries a session, by control's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingUpdate {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its inner addresses.
    pub inner: Vec<IpAddr>,
    /// Its phase.
    pub phase: BindingPhase,
    /// What bounds it, for its owner.
    pub policy: Policy,
}

/// The phase of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindingPhase {
    /// Owned by this run of a node.
    Owned(NodeRef),
    /// This run stops so that another can take over.
    Handover {
        /// The owner that stops.
        from: NodeRef,
    },
    /// Owned by nobody.
    Released(Reason),
    /// Ended.
    Terminated(Reason),
}

/// A session that this gateway carries, or carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// The session.
    pub session: SessionId,
    /// The epoch that this gateway owns.
    pub epoch: Epoch,
    /// Its correlation id.
    pub correlation: [u8; 16],
}

/// News from the data plane.
#[derive(Debug)]
pub enum Event {
    /// A client confirmed its handshake: ask control.
    Confirmed(Box<Confirmed>),
    /// A session ended by its owner's or client's decision: have control end it.
    Ended(Carried, Reason),
    /// Something to log. May be lost.
    Note(Note),
    /// Somebody whose datagrams were refused; one of each kind and second. May be lost.
    Suspect(super::Suspect),
}

/// A confirmed handshake.
#[derive(Debug, Clone)]
pub struct Confirmed {
    /// The handshake's index.
    pub index: ReceiverIndex,
    /// The device.
    pub device: DeviceKey,
    /// What it asks for.
    pub intent: AttachIntent,
    /// The binding of the grant.
    pub handshake_hash: [u8; 32],
    /// Where the client is.
    pub path: Path,
    /// Ages of the path switches that this gateway, as the session's present owner, made within the last minute.
    pub switch_ages: Vec<Duration>,
}

/// A change of state worth a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The session.
    pub session: SessionId,
    /// Its correlation id.
    pub correlation: [u8; 16],
    /// The epoch.
    pub epoch: Epoch,
    /// What happened.
    pub what: What,
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The session is carried here.
    Activated,
    /// Its keys were renewed inside the epoch.
    Rekeyed,
    /// The state changed.
    Changed(State, State, Reason),
    /// The endpoint moved.
    Moved(Path, Path, Binding, Reason),
    /// A move of the endpoint was refused.
    MoveRefused(Path, Reason),
}

/// An admitted `AttachInit` for a handshake thread.
pub struct InitJob {
    /// The datagram.
    pub datagram: Box<[u8]>,
    /// Where it came from.
    pub source: Path,
    /// The reserved index.
    pub index: ReceiverIndex,
    /// Its reattach hint.
    pub hint: [u8; jump_crypto::cookie::HINT_LEN],
    /// When it came.
    pub at: Nanos,
}

/// The queues to the handshake threads.
pub type InitQueues = Vec<SyncSender<InitJob>>;
