//! One audit event: what happened, to whom, by whom, why.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use jump_session::ids::{Binding, DeviceKey, Epoch, NodeId, SessionId};
use jump_session::reason::Reason;

use super::action::{
    ActionDef, ApiAction, AttachAction, EntityAction, NodeAction, SecurityAction, SessionAction,
    TrafficAction,
};
use crate::correlation::Correlation;

/// The longest free text in an event, in bytes; the rest is cut off.
pub const TEXT_BYTES_MAX: usize = 256;

/// Who acted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The system itself: a timer, a lease, a supervisor.
    System,
    /// A gateway node.
    Node(NodeId),
    /// A device.
    Device(DeviceKey),
    /// A person or program with an operator's or reader's certificate.
    Operator(String),
    /// Somebody without a usable certificate.
    Unknown,
}

impl Actor {
    /// The kind's stable name.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Node(_) => "node",
            Self::Device(_) => "device",
            Self::Operator(_) => "operator",
            Self::Unknown => "unknown",
        }
    }

    /// The actor's name or key; `None` for the system itself and for strangers.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::System | Self::Unknown => None,
            Self::Node(node) => Some(node.to_string()),
            Self::Device(key) => Some(key.to_string()),
            Self::Operator(name) => Some(name.clone()),
        }
    }
}

/// What an [`EntityAction`] changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// `device`, `enrolment token`, `cluster key`, `grant key`, `policy`.
    pub kind: &'static str,
    /// Its public identifier. Never a secret: for a token, its hash.
    pub uid: String,
    /// Its name, for people; may be empty.
    pub name: String,
}

/// One end of a path, as it was before or is after a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// `udp`, `quic`, `tcp` or `tls`.
    pub transport: &'static str,
    /// The client's outer address; the client itself does not know it.
    pub client: Option<SocketAddr>,
}

/// How long each part of a recovery took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecoveryDurations {
    /// From the last good receipt to the decision.
    pub detect: Duration,
    /// From the decision to verified keys.
    pub handshake: Duration,
    /// From the confirmation to the accepted attach.
    pub commit: Duration,
    /// From there to the first byte received.
    pub first_byte: Duration,
}

impl RecoveryDurations {
    /// The whole time without service.
    pub fn total(&self) -> Duration {
        self.detect + self.handshake + self.commit + self.first_byte
    }
}

/// One event. Build it by the constructor of its kind, add what is known, and emit it.
#[derive(Debug, Clone)]
pub struct Event {
    pub(crate) definition: &'static ActionDef,
    pub(crate) time: SystemTime,
    pub(crate) failed: bool,
    pub(crate) session: Option<SessionId>,
    pub(crate) correlation: Option<Correlation>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) binding: Option<Binding>,
    pub(crate) reason: Option<Reason>,
    pub(crate) actor: Actor,
    pub(crate) device: Option<(DeviceKey, String)>,
    pub(crate) node: Option<NodeId>,
    pub(crate) from_node: Option<NodeId>,
    pub(crate) entity: Option<Entity>,
    pub(crate) method: Option<String>,
    pub(crate) source: Option<SocketAddr>,
    pub(crate) destination: Option<IpAddr>,
    pub(crate) paths: Option<(Option<Path>, Option<Path>)>,
    pub(crate) states: Option<(&'static str, &'static str)>,
    pub(crate) recovery: Option<RecoveryDurations>,
    pub(crate) count: Option<u64>,
    pub(crate) detail: Option<String>,
}

impl Event {
    /// Something happened to a session.
    pub fn session(action: SessionAction, session: SessionId) -> Self {
        Self { session: Some(session), ..Self::of(action.definition()) }
    }

    /// An attach attempt of a device ended. The session is unknown when the client named none that exists.
    pub fn attach(action: AttachAction, device: DeviceKey, session: Option<SessionId>) -> Self {
        Self {
            session,
            device: Some((device, String::new())),
            actor: Actor::Device(device),
            ..Self::of(action.definition())
        }
    }

    /// Something happened to a node.
    pub fn node(action: NodeAction, node: &NodeId) -> Self {
        Self { node: Some(node.clone()), ..Self::of(action.definition()) }
    }

    /// A device, token, key or policy was changed.
    pub fn entity(action: EntityAction, mut entity: Entity) -> Self {
        cut(&mut entity.uid);
        cut(&mut entity.name);
        Self { entity: Some(entity), ..Self::of(action.definition()) }
    }

    /// Someone called the API: who, which method (`package.Service/Method`), from where.
    pub fn api(action: ApiAction, actor: Actor, method: impl Into<String>, source: SocketAddr) -> Self {
        let mut method = method.into();
        cut(&mut method);
        Self { actor, method: Some(method), source: Some(source), ..Self::of(action.definition()) }
    }

    /// A policy refused packets from an outer address to an inner one.
    pub fn traffic(action: TrafficAction, source: SocketAddr, destination: IpAddr) -> Self {
        Self { source: Some(source), destination: Some(destination), ..Self::of(action.definition()) }
    }

    /// Something looks like an attack or a broken part.
    pub fn security(action: SecurityAction) -> Self {
        Self::of(action.definition())
    }

    fn of(definition: &'static ActionDef) -> Self {
        Self {
            definition,
            time: SystemTime::now(),
            failed: definition.failure,
            session: None,
            correlation: None,
            epoch: None,
            binding: None,
            reason: None,
            actor: Actor::System,
            device: None,
            node: None,
            from_node: None,
            entity: None,
            method: None,
            source: None,
            destination: None,
            paths: None,
            states: None,
            recovery: None,
            count: None,
            detail: None,
        }
    }

    /// Returns the action's row in the table.
    pub fn definition(&self) -> &'static ActionDef {
        self.definition
    }

    /// Names the session that a node, security or traffic event is about.
    #[must_use]
    pub fn with_session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Adds the session's correlation id.
    #[must_use]
    pub fn correlation(mut self, correlation: impl Into<Correlation>) -> Self {
        self.correlation = Some(correlation.into());
        self
    }

    /// Adds the epoch.
    #[must_use]
    pub fn epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = Some(epoch);
        self
    }

    /// Adds the binding.
    #[must_use]
    pub fn binding(mut self, binding: Binding) -> Self {
        self.binding = Some(binding);
        self
    }

    /// Adds the reason code.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Says who acted; the default is the system itself, or the device of an attach.
    #[must_use]
    pub fn actor(mut self, actor: Actor) -> Self {
        self.actor = actor;
        self
    }

    /// Adds the device with its name for people.
    #[must_use]
    pub fn device(mut self, key: DeviceKey, name: impl Into<String>) -> Self {
        let mut name = name.into();
        cut(&mut name);
        self.device = Some((key, name));
        self
    }

    /// Adds the node: the owner, the claimant, the one concerned.
    #[must_use]
    pub fn on_node(mut self, node: &NodeId) -> Self {
        self.node = Some(node.clone());
        self
    }

    /// Adds the node that the session comes from.
    #[must_use]
    pub fn previous_node(mut self, node: &NodeId) -> Self {
        self.from_node = Some(node.clone());
        self
    }

    /// Adds the outer address that it came from.
    #[must_use]
    pub fn source(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Adds the old and the new path of a switch.
    #[must_use]
    pub fn paths(mut self, old: Option<Path>, new: Option<Path>) -> Self {
        self.paths = Some((old, new));
        self
    }

    /// Adds the old and the new state of a transition.
    #[must_use]
    pub fn states(mut self, old: &'static str, new: &'static str) -> Self {
        self.states = Some((old, new));
        self
    }

    /// Adds how long a recovery took.
    #[must_use]
    pub fn recovery(mut self, durations: RecoveryDurations) -> Self {
        self.recovery = Some(durations);
        self
    }

    /// Says how many times it happened since the last event of this kind.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// Adds a sentence for people. Never put a secret in it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        cut(&mut detail);
        self.detail = Some(detail);
        self
    }

    /// Marks a failed outcome, for example of an API call.
    #[must_use]
    pub fn failed(mut self) -> Self {
        self.failed = true;
        self
    }

    /// Replaces the time, which is that of the constructor otherwise.
    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        self.time = time;
        self
    }
}

fn cut(text: &mut String) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
