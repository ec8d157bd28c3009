//! What control tells auditors: one function per kind of event. Events follow what is already decided and written; they
//! never delay or change it.

use std::net::SocketAddr;
use std::time::Duration;

use jump_proto::convert::AttachAsk;
use jump_session::ids::{DeviceKey, NodeId};
use jump_session::ownership::{Owner, Phase, SessionRecord};
use jump_session::policy::DevicePolicy;
use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use jump_telemetry::audit::{
    Actor, AttachAction, Entity, EntityAction, Event, Identity as Instance, NodeAction, SessionAction, emit,
};

use crate::arbiter::ArbiterError;
use crate::devices::StoredDevice;
use crate::identity::Identity;
use crate::layout::StoredSession;
use crate::metrics;

mod calls;

pub(crate) use calls::CallLayer;

/// Who emits: this replica.
pub fn instance(advertise: &str) -> Instance {
    Instance {
        component: "control".to_owned(),
        node: advertise.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A session's record was written: tells what that means for the session, if anything.
pub(crate) fn session_written(before: Option<&SessionRecord>, after: &SessionRecord) {
    if matches!(after.phase, Phase::Owned { .. }) && before.is_none_or(|before| before.epoch != after.epoch) {
        metrics::count_owner_change(after.reason);
    }
    if let Some(event) = transition(before, after) {
        emit(event);
    }
}

/// A write whose outcome was unknown turned out to have landed: tells what the record says now.
pub(crate) fn session_settled(record: &SessionRecord) {
    let action = match &record.phase {
        Phase::Owned { .. } if record.history.len() <= 1 => SessionAction::Born,
        Phase::Owned { .. } => SessionAction::OwnerChanged,
        Phase::Handover { .. } => SessionAction::HandoverStarted,
        Phase::Released { .. } => SessionAction::Released,
        Phase::Terminated { .. } => SessionAction::Terminated,
    };
    let event = about(action, record);
    let event = match record.owner() {
        Some(owner) => event.on_node(&owner.node),
        None => event,
    };
    emit(match record.history.get(1) {
        Some(previous) => event.previous_node(&previous.owner.node),
        None => event,
    });
}

/// An attach was answered.
pub(crate) fn attach_answered(
    ask: &AttachAsk,
    outcome: &Result<StoredSession, ArbiterError>,
    correlation: Correlation,
) {
    let event = match outcome {
        Ok(StoredSession { record, .. }) => {
            Event::attach(AttachAction::Accepted, record.device, Some(record.id))
                .epoch(record.epoch)
                .reason(ask.request.reason)
                .device(record.device, record.device_name.clone())
        }
        Err(error) => {
            let event = Event::attach(AttachAction::Rejected, ask.request.device, ask.session);
            match error {
                ArbiterError::Refused(refusal) => event.epoch(refusal.current_epoch).reason(refusal.reason),
                ArbiterError::Store(_) | ArbiterError::Value(_) => {
                    event.reason(Reason::StoreUnavailable).detail(error.to_string())
                }
            }
        }
    };
    let event = event.on_node(&ask.request.claimant.node).correlation(correlation);
    emit(match ask.client_address.parse() {
        Ok(address) => event.source(address),
        Err(_) => event,
    });
}

/// A node registered a new run.
pub(crate) fn node_registered(run: &Owner) {
    emit(of_node(NodeAction::Started, run));
}

/// A run was ended by its node or its supervisor.
pub(crate) fn node_deregistered(run: &Owner, reason: Reason) {
    let action = if reason == Reason::NodeLost { NodeAction::Lost } else { NodeAction::Stopped };
    emit(of_node(action, run).reason(reason));
}

/// A node's registration is gone from the store.
pub(crate) fn node_gone(node: &NodeId) {
    emit(Event::node(NodeAction::Gone, node));
}

/// An operator drained a node, or took that back.
pub(crate) fn node_drained(node: &NodeId, drained: bool, operator: &Identity) {
    let action = if drained { NodeAction::Draining } else { NodeAction::Undrained };
    emit(Event::node(action, node).actor(by(operator)).reason(Reason::OperatorMove));
}

/// An enrolment token was made. Its secret is named by its hash.
pub(crate) fn token_issued(hash: &str, name: &str, operator: &Identity) {
    let entity = Entity { kind: "enrolment token", uid: hash.to_owned(), name: name.to_owned() };
    emit(Event::entity(EntityAction::TokenIssued, entity).actor(by(operator)));
}

/// A device was enrolled: by an operator, or by itself with a token.
pub(crate) fn device_enrolled(
    key: DeviceKey,
    name: &str,
    operator: Option<&Identity>,
    from: Option<SocketAddr>,
) {
    let actor = operator.map_or(Actor::Device(key), by);
    emit(seen_at(of_device(EntityAction::DeviceEnrolled, key, name).actor(actor), from));
}

/// An enrolment was refused.
pub(crate) fn enrolment_refused(key: DeviceKey, why: &dyn std::fmt::Display, from: Option<SocketAddr>) {
    let event = of_device(EntityAction::EnrolmentRefused, key, "").actor(Actor::Device(key));
    calls::limited(|| seen_at(event, from).detail(why.to_string()));
}

/// A device was revoked and `sessions` of it ended.
pub(crate) fn device_revoked(key: DeviceKey, name: &str, sessions: u32, operator: &Identity) {
    let event = of_device(EntityAction::DeviceRevoked, key, name).actor(by(operator));
    emit(event.reason(Reason::KeyRevoked).detail(format!("sessions ended: {sessions}")));
}

/// A cluster or grant key changed its state: by an operator, or because its time had come. Told by the replica that wrote
/// it.
pub(crate) fn key_changed(kind: &'static str, id: String, change: &str, operator: Option<&Identity>) {
    let entity = Entity { kind, uid: id, name: String::new() };
    let actor = operator.map_or(Actor::System, by);
    emit(Event::entity(EntityAction::KeyRotated, entity).actor(actor).detail(change.to_owned()));
}

/// A device replaced its key by itself.
pub(crate) fn device_rotated(
    device: &StoredDevice,
    old: DeviceKey,
    new: DeviceKey,
    from: Option<SocketAddr>,
) {
    let event = of_device(EntityAction::DeviceRotated, device.key, &device.record.name);
    emit(seen_at(event.actor(Actor::Device(old)).detail(format!("its key is now {new}")), from));
}

/// An operator set a time by which a device must have replaced its key.
pub(crate) fn rotation_required(device: &StoredDevice, within: Duration, operator: &Identity) {
    let event = of_device(EntityAction::DeviceRotated, device.key, &device.record.name).actor(by(operator));
    emit(event.detail(format!("its present key ends in {} s unless it rotates", within.as_secs())));
}

/// A device is bounded by another policy.
pub(crate) fn device_bounded(
    device: &StoredDevice,
    policy: &DevicePolicy,
    sessions: u32,
    operator: &Identity,
) {
    let networks: Vec<String> = policy.allowed_destinations.iter().map(ToString::to_string).collect();
    let to = if networks.is_empty() { "everything".to_owned() } else { networks.join(" ") };
    let rate = match policy.bytes_per_second {
        0 => "no bound on its rate".to_owned(),
        rate => format!("{rate} bytes/s"),
    };
    let event = of_device(EntityAction::PolicyChanged, device.key, &device.record.name).actor(by(operator));
    emit(event.detail(format!("may reach {to}; {rate}; live sessions: {sessions}")));
}

fn transition(before: Option<&SessionRecord>, after: &SessionRecord) -> Option<Event> {
    // A session that nobody owns comes from its last owner.
    let previous = before.and_then(|before| {
        before.owner().or_else(|| before.history.first().map(|entry| &entry.owner)).map(|owner| &owner.node)
    });
    let from = |event: Event| match previous {
        Some(node) => event.previous_node(node),
        None => event,
    };
    match (before.map(|before| &before.phase), &after.phase) {
        (None, Phase::Owned { owner }) => Some(about(SessionAction::Born, after).on_node(&owner.node)),
        (Some(_), Phase::Owned { owner }) if before.is_some_and(|before| before.epoch != after.epoch) => {
            Some(from(about(SessionAction::OwnerChanged, after).on_node(&owner.node)))
        }
        (Some(Phase::Handover { to: old, .. }), Phase::Handover { to, .. }) if old.attempt == to.attempt => {
            None
        }
        (_, Phase::Handover { to, .. }) => {
            let event = about(SessionAction::HandoverStarted, after).on_node(&to.owner.node);
            Some(from(event.reason(to.reason)))
        }
        (Some(Phase::Released { .. }), Phase::Released { .. })
        | (Some(Phase::Terminated { .. }), Phase::Terminated { .. })
        | (Some(_), Phase::Owned { .. }) => None,
        (_, Phase::Released { .. }) => Some(from(about(SessionAction::Released, after))),
        (_, Phase::Terminated { .. }) => Some(from(about(SessionAction::Terminated, after))),
    }
}

fn about(action: SessionAction, record: &SessionRecord) -> Event {
    Event::session(action, record.id)
        .correlation(record.correlation)
        .epoch(record.epoch)
        .reason(record.reason)
        .device(record.device, record.device_name.clone())
}

fn of_node(action: NodeAction, run: &Owner) -> Event {
    let actor = Actor::Node(run.node.clone());
    Event::node(action, &run.node).actor(actor).detail(format!("run {}", run.incarnation.0))
}

fn of_device(action: EntityAction, key: DeviceKey, name: &str) -> Event {
    Event::entity(action, Entity { kind: "device", uid: key.to_string(), name: name.to_owned() })
        .device(key, name)
}

fn by(operator: &Identity) -> Actor {
    Actor::Operator(operator.name().to_owned())
}

fn seen_at(event: Event, from: Option<SocketAddr>) -> Event {
    match from {
        Some(from) => event.source(from),
        None => event,
    }
}
