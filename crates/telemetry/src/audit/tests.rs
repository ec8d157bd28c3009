use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use jump_session::ids::{Binding, DeviceKey, Epoch, NodeId, SessionId};
use jump_session::reason::Reason;
use serde_json::{Map, Value};

use super::*;
use crate::correlation::Correlation;

fn identity() -> Identity {
    Identity { component: "gateway".into(), node: "gw1".into(), version: "0.1.0".into() }
}

fn gw(name: &str) -> NodeId {
    name.parse().expect("a node name")
}

fn outer() -> SocketAddr {
    "198.51.100.7:4711".parse().expect("an address")
}

const SESSION: SessionId = SessionId::from_bytes([0xab; 16]);
const DEVICE: DeviceKey = DeviceKey::from_bytes([0xd0; 32]);

/// Every action with the least that its constructor takes.
fn least() -> Vec<Event> {
    let entity = || Entity { kind: "device", uid: DEVICE.to_string(), name: String::new() };
    let inner: IpAddr = "10.0.0.9".parse().expect("an address");
    let mut events = Vec::new();
    events.extend(SessionAction::ALL.iter().map(|action| Event::session(*action, SESSION)));
    events.extend(AttachAction::ALL.iter().map(|action| Event::attach(*action, DEVICE, None)));
    events.extend(NodeAction::ALL.iter().map(|action| Event::node(*action, &gw("gw2"))));
    events.extend(EntityAction::ALL.iter().map(|action| Event::entity(*action, entity())));
    events.extend(ApiAction::ALL.iter().map(|action| {
        Event::api(
            *action,
            Actor::Operator("ada".into()),
            "jump.control.v1.SessionService/GetSession",
            outer(),
        )
    }));
    events.extend(TrafficAction::ALL.iter().map(|action| Event::traffic(*action, outer(), inner)));
    events.extend(SecurityAction::ALL.iter().map(|action| Event::security(*action)));
    events
}

/// The same event with everything that can be added.
fn filled(event: Event) -> Event {
    let path = |transport| Some(Path { transport, client: Some(outer()) });
    event
        .with_session(SESSION)
        .correlation([7; 16])
        .epoch(Epoch(4))
        .binding(Binding(2))
        .reason(Reason::NodeLost)
        .device(DEVICE, "ada's laptop")
        .on_node(&gw("gw2"))
        .previous_node(&gw("gw1"))
        .source(outer())
        .paths(path("udp"), path("tcp"))
        .states("ATTACHED", "RECOVERING")
        .recovery(RecoveryDurations { detect: Duration::from_millis(310), ..RecoveryDurations::default() })
        .count(3)
        .detail("details")
        .failed()
}

struct Schema(Value);

impl Schema {
    fn load() -> Self {
        Self(serde_json::from_str(include_str!("ocsf_1_3.json")).expect("the fixture is JSON"))
    }

    /// Returns what an event misses or has too much.
    fn faults(&self, event: &Value) -> Vec<String> {
        let class = &self.0["classes"][event["class_uid"].to_string()];
        let mut faults = Vec::new();
        let fields = event.as_object().expect("an object");
        let names = |rule: &Value| -> Vec<String> {
            rule.as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        };
        let mut known = names(&self.0["base"]["known"]);
        known.extend(names(&class["known"]));
        faults.extend(unknown("event", fields, &known));
        faults.extend(missing("event", fields, &names(&self.0["base"]["required"])));
        self.object_faults("event", fields, class, &mut faults);
        for (name, allowed) in [("activity_id", "activities"), ("status_id", "statuses")] {
            if !class[allowed].as_array().is_some_and(|allowed| allowed.contains(&event[name])) {
                faults.push(format!("{name} is {}", event[name]));
            }
        }
        let number = |name: &str| event[name].as_u64().unwrap_or_default();
        if number("type_uid") != number("class_uid") * 100 + number("activity_id") {
            faults.push("type_uid is not class_uid * 100 + activity_id".into());
        }
        if event["category_uid"] != class["category"] {
            faults.push("the category is not the class's".into());
        }
        if !(0..=6).contains(&number("severity_id")) {
            faults.push("severity_id is out of range".into());
        }
        faults
    }

    fn object_faults(
        &self,
        place: &str,
        fields: &Map<String, Value>,
        rules: &Value,
        faults: &mut Vec<String>,
    ) {
        let names = |rule: &str| -> Vec<String> {
            rules[rule]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        };
        faults.extend(missing(place, fields, &names("required")));
        let any = names("at_least_one");
        if !any.is_empty() && !any.iter().any(|name| fields.contains_key(name)) {
            faults.push(format!("{place} has none of {any:?}"));
        }
        for (name, value) in fields.iter().filter(|(name, _)| *name != "unmapped") {
            match (self.0["attributes"][name].as_str(), value.as_object()) {
                (Some(object), Some(inner)) => {
                    let rules = &self.0["objects"][object];
                    let known: Vec<String> = rules["known"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|name| name.as_str().map(str::to_owned))
                        .collect();
                    faults.extend(unknown(name, inner, &known));
                    self.object_faults(name, inner, rules, faults);
                }
                (None, None) => {}
                (Some(_), None) | (None, Some(_)) => {
                    faults.push(format!("{place}.{name} has the wrong type"))
                }
            }
        }
    }
}

fn missing(place: &str, fields: &Map<String, Value>, required: &[String]) -> Vec<String> {
    required
        .iter()
        .filter(|name| fields.get(*name).is_none_or(Value::is_null))
        .map(|name| format!("{place} lacks {name}"))
        .collect()
}

fn unknown(place: &str, fields: &Map<String, Value>, known: &[String]) -> Vec<String> {
    fields
        .keys()
        .filter(|name| !known.contains(name))
        .map(|name| format!("{place} has unknown {name}"))
        .collect()
}

#[test]
fn every_action_bare_or_filled_satisfies_the_published_schema() {
    let schema = Schema::load();
    assert_eq!(schema.0["version"], OCSF_VERSION);
    let (audit, captured) = capture(identity());
    for event in least() {
        audit.emit(event.clone());
        audit.emit(filled(event));
    }
    let rendered = captured.take();
    let actions: usize = groups().iter().map(|(_, rows)| rows.len()).sum();
    assert_eq!(rendered.len(), 2 * actions, "an action is in no test");
    for event in rendered {
        assert_eq!(schema.faults(&event), Vec::<String>::new(), "{event:#}");
    }
}

#[test]
fn the_schema_check_notices_what_is_missing_and_what_is_unknown() {
    let schema = Schema::load();
    let (audit, captured) = capture(identity());
    audit.emit(Event::session(SessionAction::Born, SESSION));
    let good = captured.take().remove(0);
    let broken: [fn(&mut Value); 5] = [
        |event| drop(event.as_object_mut().expect("an object").remove("session")),
        |event| drop(event["metadata"].as_object_mut().expect("an object").remove("product")),
        |event| event["colour"] = "blue".into(),
        |event| event["activity_id"] = 7.into(),
        |event| event["time"] = Value::Null,
    ];
    for breakage in broken {
        let mut event = good.clone();
        breakage(&mut event);
        assert!(!schema.faults(&event).is_empty(), "{event:#}");
    }
}

#[test]
fn an_event_carries_the_session_the_reason_and_its_numbers() {
    let (audit, captured) = capture(identity());
    audit.emit(Event::node(NodeAction::Lost, &gw("gw1")));
    audit.emit(
        Event::session(SessionAction::OwnerChanged, SESSION)
            .correlation([7; 16])
            .epoch(Epoch(4))
            .reason(Reason::NodeLost)
            .previous_node(&gw("gw1"))
            .on_node(&gw("gw2")),
    );
    let event = captured.take().remove(1);
    assert_eq!(event["metadata"]["sequence"], 2);
    assert_eq!(event["metadata"]["correlation_uid"], Correlation::from_bytes([7; 16]).to_string());
    assert_eq!(event["status_code"], "NODE_LOST");
    assert_eq!(event["session"]["uid"], SESSION.to_string());
    let ours = &event["unmapped"];
    assert_eq!((ours["session_sequence"].as_u64(), ours["epoch"].as_u64()), (Some(1), Some(4)));
    assert_eq!((ours["from_node"].as_str(), ours["node"].as_str()), (Some("gw1"), Some("gw2")));
}

#[test]
fn a_full_queue_drops_and_counts_and_the_numbers_show_the_gap() {
    let (audit, events) = open(3);
    (0..5).for_each(|_| audit.emit(Event::session(SessionAction::Rekeyed, SESSION)));
    assert_eq!(audit.stats(), AuditStats { emitted: 5, dropped: 2 });
    let numbers = |events: &Receiver<Message>| -> Vec<(u64, Option<u64>)> {
        events
            .try_iter()
            .filter_map(|message| match message {
                Message::Event(event) => Some((event.1.run, event.1.session)),
                Message::Stop => None,
            })
            .collect()
    };
    assert_eq!(numbers(&events), [(1, Some(1)), (2, Some(2)), (3, Some(3))]);
    audit.emit(Event::session(SessionAction::Rekeyed, SESSION));
    assert_eq!(numbers(&events), [(6, Some(6))]);
}

#[test]
fn a_long_text_is_cut_and_the_names_of_sinks_are_checked() {
    let (audit, captured) = capture(identity());
    audit.emit(Event::security(SecurityAction::Flood).detail("é".repeat(10_000)));
    let event = captured.take().remove(0);
    assert!(event["unmapped"]["detail"].as_str().expect("text").len() <= TEXT_BYTES_MAX);

    let sink = |name: &str| -> SinkConfig {
        toml::from_str(&format!("kind = \"otlp\"\nname = \"{name}\"\nendpoint = \"http://127.0.0.1:1\""))
            .expect("valid")
    };
    for sinks in [vec![sink("a"), sink("a")], vec![sink("A")], vec![sink("")]] {
        let config = AuditConfig { sinks, ..AuditConfig::default() };
        assert!(matches!(start(identity(), config), Err(AuditError::SinkName(_))));
    }
}

#[test]
fn the_documentation_lists_every_action() {
    crate::docs::assert_section("docs/audit-events.md", "actions", &table());
}

#[test]
fn the_documentation_shows_a_real_event() {
    let event = Event::session(SessionAction::OwnerChanged, SESSION)
        .at(UNIX_EPOCH + Duration::from_millis(1_795_000_000_123))
        .correlation([7; 16])
        .epoch(Epoch(4))
        .reason(Reason::NodeLost)
        .device(DEVICE, "ada's laptop")
        .previous_node(&gw("gw1"))
        .on_node(&gw("gw2"));
    let mut origin =
        origin(Identity { component: "control".into(), node: "c1".into(), version: "0.1.0".into() });
    origin.run = uuid::Uuid::from_u128(0x0198_9c6e_6f00_7000_8000_0000_0000_0001);
    let rendered = ocsf::render(&event, &origin, Number { run: 812, session: Some(5) });
    crate::docs::assert_section("docs/audit-events.md", "example", &format!("```json\n{rendered:#}\n```"));
}

#[test]
fn every_action_of_the_table_is_emitted_by_a_program() {
    fn read(directory: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(directory).expect("the sources") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                read(&path, text);
            } else {
                text.push_str(&std::fs::read_to_string(path).expect("UTF-8"));
            }
        }
    }
    // What a generator's failure emits is this crate's own; every program has its generators watched.
    let mut programs = include_str!("../entropy.rs").to_owned();
    for program in ["control", "gateway", "client"] {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut sources = String::new();
        read(&root.join(program).join("src"), &mut sources);
        assert!(sources.contains("WatchedEntropy::open()"), "{program} makes keys that nobody watches");
        programs += &sources;
    }
    let mut names = Vec::new();
    names.extend(SessionAction::ALL.iter().map(|action| format!("SessionAction::{action:?}")));
    names.extend(AttachAction::ALL.iter().map(|action| format!("AttachAction::{action:?}")));
    names.extend(NodeAction::ALL.iter().map(|action| format!("NodeAction::{action:?}")));
    names.extend(EntityAction::ALL.iter().map(|action| format!("EntityAction::{action:?}")));
    names.extend(ApiAction::ALL.iter().map(|action| format!("ApiAction::{action:?}")));
    names.extend(TrafficAction::ALL.iter().map(|action| format!("TrafficAction::{action:?}")));
    names.extend(SecurityAction::ALL.iter().map(|action| format!("SecurityAction::{action:?}")));
    let silent: Vec<&String> = names.iter().filter(|name| !programs.contains(name.as_str())).collect();
    assert!(silent.is_empty(), "documented and never emitted: {silent:?}");
}
