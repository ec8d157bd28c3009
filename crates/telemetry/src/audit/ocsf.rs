//! Audit events as OCSF objects (Open Cybersecurity Schema Framework, <https://schema.ocsf.io>).

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::action::Class;
use super::event::{Actor, Event, Path};
use super::sequence::Number;

/// The schema version that events declare.
pub const VERSION: &str = "1.3.0";

/// Who emits: the same in every event of a process.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) component: String,
    pub(crate) instance: String,
    pub(crate) version: String,
    /// Names this run of the process.
    pub(crate) run: uuid::Uuid,
}

/// Renders an event as one OCSF object.
pub(crate) fn render(event: &Event, origin: &Origin, number: Number) -> Value {
    let definition = event.definition;
    let class = definition.class;
    let mut object = json!({
        "class_uid": class.uid(),
        "class_name": class.name(),
        "category_uid": class.category_uid(),
        "category_name": class.category_name(),
        "activity_id": definition.activity,
        "activity_name": definition.activity_name,
        "type_uid": definition.type_uid(),
        "type_name": format!("{}: {}", class.name(), definition.activity_name),
        "severity_id": definition.severity as u8,
        "severity": definition.severity.name(),
        "time": millis(event.time),
        "message": definition.meaning,
        "metadata": metadata(event, origin, number),
        "unmapped": unmapped(event, origin, number),
    });
    let fields = object.as_object_mut().expect("json! of braces makes an object");
    status(event, fields);
    class_fields(event, origin, fields);
    if let Some(count) = event.count {
        fields.insert("count".into(), count.into());
    }
    object
}

fn metadata(event: &Event, origin: &Origin, number: Number) -> Value {
    let mut metadata = json!({
        "version": VERSION,
        "product": {
            "name": "Jumping VPN",
            "vendor_name": "Jumping VPN",
            "version": origin.version,
            "feature": { "name": origin.component },
        },
        "log_name": "audit",
        "log_provider": provider(origin),
        "event_code": event.definition.name,
        "uid": format!("{}-{}", origin.run, number.run),
        "sequence": number.run,
    });
    if let Some(correlation) = event.correlation {
        metadata["correlation_uid"] = correlation.to_string().into();
    }
    metadata
}

/// What has no place in the schema: ours, under stable names.
fn unmapped(event: &Event, origin: &Origin, number: Number) -> Value {
    let mut ours = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            ours.insert(name.into(), value);
        }
    };
    put("action", Some(event.definition.name.into()));
    put("component", Some(origin.component.as_str().into()));
    put("instance", (!origin.instance.is_empty()).then(|| origin.instance.as_str().into()));
    put("run", Some(origin.run.to_string().into()));
    put("session", event.session.map(|session| session.to_string().into()));
    put("session_sequence", number.session.map(Into::into));
    put("epoch", event.epoch.map(|epoch| epoch.0.into()));
    put("binding", event.binding.map(|binding| binding.0.into()));
    put("reason", event.reason.map(|reason| reason.code().into()));
    put("reason_number", event.reason.map(|reason| reason.number().into()));
    put("node", event.node.as_ref().map(|node| node.as_str().into()));
    put("from_node", event.from_node.as_ref().map(|node| node.as_str().into()));
    put("actor_kind", Some(event.actor.kind().into()));
    put("actor", event.actor.name().map(Into::into));
    put("device", event.device.as_ref().map(|(key, _)| key.to_string().into()));
    put("device_name", event.device.as_ref().and_then(|(_, name)| named(name)));
    if let Some((old, new)) = &event.paths {
        put("old_path", old.as_ref().map(path));
        put("new_path", new.as_ref().map(path));
    }
    put("old_state", event.states.map(|(old, _)| old.into()));
    put("new_state", event.states.map(|(_, new)| new.into()));
    if let Some(recovery) = event.recovery {
        put(
            "recovery_micros",
            Some(json!({
                "detect": micros(recovery.detect),
                "handshake": micros(recovery.handshake),
                "commit": micros(recovery.commit),
                "first_byte": micros(recovery.first_byte),
                "total": micros(recovery.total()),
            })),
        );
    }
    put("detail", event.detail.as_deref().map(Into::into));
    Value::Object(ours)
}

fn status(event: &Event, fields: &mut Map<String, Value>) {
    // A finding's status is its place in a review, not an outcome.
    let (id, name) = match (event.definition.class, event.failed) {
        (Class::DetectionFinding, _) => (1, "New"),
        (_, false) => (1, "Success"),
        (_, true) => (2, "Failure"),
    };
    fields.insert("status_id".into(), id.into());
    fields.insert("status".into(), name.into());
    if let Some(reason) = event.reason {
        fields.insert("status_code".into(), reason.code().into());
    }
    if let Some(detail) = &event.detail {
        fields.insert("status_detail".into(), detail.as_str().into());
    }
}

fn class_fields(event: &Event, origin: &Origin, fields: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.into(), value);
        }
    };
    let node = event.node.as_ref().map(|node| json!({ "name": node.as_str() }));
    let source = event.source.map(endpoint);
    match event.definition.class {
        Class::TunnelActivity => {
            put("session", session(event));
            put("user", user(event));
            put("dst_endpoint", node);
            put("src_endpoint", source);
            put("protocol_name", Some("Jumping VPN".into()));
            put("duration", event.recovery.map(|recovery| (micros(recovery.total()) / 1000).into()));
        }
        Class::Authentication => {
            put("session", session(event));
            put("user", user(event));
            put("service", Some(json!({ "name": "Jumping VPN" })));
            put("dst_endpoint", node);
            put("src_endpoint", source);
            put("is_remote", Some(true.into()));
        }
        Class::EntityManagement => {
            put(
                "entity",
                event.entity.as_ref().map(|entity| {
                    let mut value = json!({ "type": entity.kind, "uid": entity.uid });
                    if let Some(name) = named(&entity.name) {
                        value["name"] = name;
                    }
                    value
                }),
            );
            put("actor", Some(actor(&event.actor)));
            put("src_endpoint", source);
        }
        Class::NetworkActivity => {
            put("src_endpoint", source);
            put("dst_endpoint", event.destination.map(|ip| json!({ "ip": ip.to_string() })));
        }
        Class::ApplicationLifecycle => {
            let instance = event.node.as_ref().map_or(origin.instance.as_str(), |node| node.as_str());
            put(
                "app",
                Some(json!({
                    "name": "Jumping VPN node",
                    "vendor_name": "Jumping VPN",
                    "uid": instance,
                    "version": origin.version,
                })),
            );
        }
        Class::ApiActivity => {
            put("actor", Some(actor(&event.actor)));
            put("api", event.method.as_ref().map(|method| json!({ "operation": method })));
            put("src_endpoint", source);
        }
        Class::DetectionFinding => put(
            "finding_info",
            Some(json!({
                "uid": event.definition.name,
                "title": event.definition.meaning,
                "types": [event.definition.name],
            })),
        ),
    }
}

fn session(event: &Event) -> Option<Value> {
    event.session.map(|session| json!({ "uid": session.to_string(), "is_vpn": true }))
}

fn user(event: &Event) -> Option<Value> {
    event.device.as_ref().map(|(key, name)| {
        let mut user = json!({ "uid": key.to_string(), "type": "device", "type_id": 99 });
        if let Some(name) = named(name) {
            user["name"] = name;
        }
        user
    })
}

fn actor(actor: &Actor) -> Value {
    match actor {
        Actor::System => json!({ "app_name": "jumping-vpn" }),
        Actor::Node(node) => json!({ "app_name": "jump-gateway", "app_uid": node.as_str() }),
        Actor::Device(key) => json!({ "user": { "uid": key.to_string(), "type": "device", "type_id": 99 } }),
        Actor::Operator(name) => json!({ "user": { "name": name, "type": "Admin", "type_id": 2 } }),
        Actor::Unknown => json!({ "user": { "name": "unknown", "type": "Unknown", "type_id": 0 } }),
    }
}

fn endpoint(address: SocketAddr) -> Value {
    json!({ "ip": address.ip().to_canonical().to_string(), "port": address.port() })
}

fn path(path: &Path) -> Value {
    match path.client {
        Some(client) => json!({ "transport": path.transport, "client": client.to_string() }),
        None => json!({ "transport": path.transport }),
    }
}

fn provider(origin: &Origin) -> String {
    match origin.instance.as_str() {
        "" => origin.component.clone(),
        instance => format!("{}/{instance}", origin.component),
    }
}

fn named(name: &str) -> Option<Value> {
    (!name.is_empty()).then(|| name.into())
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
