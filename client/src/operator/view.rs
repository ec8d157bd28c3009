//! Wire messages as JSON with stable names, and as cells of a table.

use jump_proto::control_v1 as wire;
use prost_types::Timestamp;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339; `None` for an unset or impossible time.
pub(super) fn time(stamp: Option<&Timestamp>) -> Option<String> {
    let stamp = stamp?;
    let at = OffsetDateTime::from_unix_timestamp(stamp.seconds).ok()?;
    (at + time::Duration::nanoseconds(i64::from(stamp.nanos))).format(&Rfc3339).ok()
}

/// Time since `stamp`, for people.
pub(super) fn since(stamp: Option<&Timestamp>) -> String {
    let Some(stamp) = stamp else { return "-".to_owned() };
    let now = OffsetDateTime::now_utc();
    let seconds = now.unix_timestamp().saturating_sub(stamp.seconds).max(0);
    crate::output::age(seconds as f64 * 1000.0)
}

fn owner(owner: Option<&wire::Owner>) -> Value {
    owner.map_or(Value::Null, |owner| json!({ "node_id": owner.node_id, "incarnation": owner.incarnation }))
}

pub(super) fn owner_cell(owner: Option<&wire::Owner>) -> String {
    owner.map_or("-".to_owned(), |owner| owner.node_id.clone())
}

/// Newest first. An owner's time ends when its successor's begins; of the last one only the record knows.
fn history(entries: &[wire::OwnershipEntry]) -> Value {
    let successors = std::iter::once(None).chain(entries.iter().map(Some));
    let entry = |(entry, successor): (&wire::OwnershipEntry, Option<&wire::OwnershipEntry>)| {
        json!({ "epoch": entry.epoch, "owner": owner(entry.owner.as_ref()),
                "since_time": time(entry.since_time.as_ref()),
                "successor_time": time(successor.and_then(|next| next.since_time.as_ref())),
                "reason": entry.reason })
    };
    entries.iter().zip(successors).map(entry).collect()
}

pub(super) fn phase(phase: wire::SessionPhase) -> String {
    phase.as_str_name().trim_start_matches("SESSION_PHASE_").to_owned()
}

pub(super) fn lease(lease: wire::LeaseState) -> String {
    lease.as_str_name().trim_start_matches("LEASE_STATE_").to_owned()
}

pub(super) fn session(session: &wire::Session) -> Value {
    json!({
        "session_id": session.session_id,
        "device_key": session.device_key,
        "device_name": session.device_name,
        "phase": phase(session.phase()),
        "epoch": session.epoch,
        "attach_seq": session.attach_seq,
        "owner": owner(session.owner.as_ref()),
        "handover_to": owner(session.handover_to.as_ref()),
        "inner_addresses": session.inner_addresses,
        "create_time": time(session.create_time.as_ref()),
        "owner_since": time(session.owner_since.as_ref()),
        "expire_time": time(session.expire_time.as_ref()),
        "last_reason": session.last_reason,
        "history": history(&session.history),
        "etag": session.etag,
        "correlation_id": session.correlation_id,
        "move": session.r#move.as_ref().map(|order| {
            json!({ "node_id": order.node_id, "since_time": time(order.since_time.as_ref()) })
        }),
    })
}

pub(super) const SESSION_HEADINGS: [&str; 9] =
    ["SESSION", "DEVICE", "PHASE", "EPOCH", "OWNER", "INNER ADDRESS", "SINCE", "LAST REASON", "CORRELATION"];

pub(super) fn session_row(session: &wire::Session) -> Vec<String> {
    vec![
        session.session_id.clone(),
        session.device_name.clone(),
        phase(session.phase()),
        session.epoch.to_string(),
        owner_cell(session.owner.as_ref()),
        session.inner_addresses.join(","),
        since(session.owner_since.as_ref()),
        session.last_reason.clone(),
        session.correlation_id.clone(),
    ]
}

pub(super) fn ownership(ownership: &wire::Ownership) -> Value {
    json!({
        "session_id": ownership.session_id,
        "phase": phase(ownership.phase()),
        "epoch": ownership.epoch,
        "owner": owner(ownership.owner.as_ref()),
        "handover_to": owner(ownership.handover_to.as_ref()),
        "owner_since": time(ownership.owner_since.as_ref()),
        "lease_state": lease(ownership.lease_state()),
        "last_reason": ownership.last_reason,
        "history": history(&ownership.history),
        "revision": ownership.revision,
        "inner_addresses": ownership.inner_addresses,
        "correlation_id": ownership.correlation_id,
    })
}

pub(super) fn node(node: &wire::Node) -> Value {
    json!({
        "node_id": node.node_id,
        "incarnation": node.incarnation,
        "number": node.number,
        "endpoints": node.endpoints,
        "mesh_endpoint": node.mesh_endpoint,
        "draining": node.draining,
        "register_time": time(node.register_time.as_ref()),
        "tcp_endpoints": node.tcp_endpoints,
        "quic_endpoints": node.quic_endpoints,
    })
}

pub(super) fn device_state(device: &wire::Device) -> String {
    device.state().as_str_name().trim_start_matches("STATE_").to_owned()
}

pub(super) fn device(device: &wire::Device) -> Value {
    json!({
        "device_key": device.device_key,
        "name": device.name,
        "state": device_state(device),
        "enrol_time": time(device.enrol_time.as_ref()),
        "not_before": time(device.not_before.as_ref()),
        "not_after": time(device.not_after.as_ref()),
        "revoke_time": time(device.revoke_time.as_ref()),
        "policy": device.policy.as_ref().map(|policy| {
            json!({ "allowed_destinations": policy.allowed_destinations,
                    "bytes_per_second": policy.bytes_per_second })
        }),
        "etag": device.etag,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_session_keeps_its_names() {
        let value = session(&wire::Session {
            session_id: "s".to_owned(),
            phase: wire::SessionPhase::Owned.into(),
            epoch: 3,
            owner: Some(wire::Owner { node_id: "gw1".to_owned(), incarnation: 9 }),
            create_time: Some(Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            ..wire::Session::default()
        });
        assert_eq!(value["phase"], "OWNED");
        assert_eq!(value["owner"]["node_id"], "gw1");
        assert_eq!(value["create_time"], "2027-01-15T08:00:00Z");
        assert_eq!(value["handover_to"], Value::Null);
        let names: Vec<_> = value.as_object().into_iter().flat_map(|object| object.keys().cloned()).collect();
        assert_eq!(names.len(), 17, "{names:?}");
    }

    #[test]
    fn an_unset_time_is_null_and_a_dash() {
        assert_eq!(time(None), None);
        assert_eq!(since(None), "-");
    }
}
