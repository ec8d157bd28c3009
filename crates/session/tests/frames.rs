//! Known answers of every control frame, in a file that other implementations can use: `vectors/frames.json`.
//!
//! `cargo test -p jump-session --test frames -- --ignored` writes the file anew; a change of it is a change of the protocol.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jump_session::frame::{Accepted, AttachResult, Frame};
use jump_session::ids::{AttachSeq, Epoch, SessionId};
use jump_session::path::{Door, Transport};
use jump_session::reason::Reason;
use serde_json::{Value, json};

#[test]
fn every_frame_has_exactly_the_bytes_of_the_published_vectors() {
    let published: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap();
    assert_eq!(published, vectors());
}

#[test]
fn the_bytes_of_the_published_vectors_are_read_as_the_frames_that_they_say() {
    let published: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap();
    for (vector, frame) in published.iter().zip(frames()) {
        let hex = vector["bytes"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        assert_eq!(Frame::decode(&bytes).unwrap(), frame);
    }
}

#[test]
fn every_type_of_the_protocol_has_a_vector() {
    let types: BTreeSet<u8> = frames().iter().map(|frame| encoded(frame)[0]).collect();
    assert_eq!(types, (1..=14).collect());
}

#[test]
#[ignore = "writes the published vectors: make crypto-fixtures"]
fn write_the_published_vectors() {
    std::fs::write(file(), serde_json::to_string_pretty(&vectors()).unwrap() + "\n").unwrap();
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/frames.json")
}

fn vectors() -> Vec<Value> {
    frames()
        .iter()
        .map(|frame| {
            let mut value = described(frame);
            value["bytes"] = hex(&encoded(frame)).into();
            value
        })
        .collect()
}

fn frames() -> Vec<Frame> {
    let targets: Vec<SocketAddr> =
        vec!["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()];
    let accepted = Accepted {
        session: SessionId::from_bytes(*b"a session of one"),
        epoch: Epoch(3),
        inner: vec!["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()],
        grant: (0..208).collect(),
        routes: vec![("10.91.0.0".parse().unwrap(), 24), ("fd91::".parse().unwrap(), 64)],
        dns: vec!["10.91.0.53".parse().unwrap()],
        mtu: 1280,
        expires_in: Duration::from_secs(86_400),
        lease: Duration::from_secs(3),
        roster: targets.clone(),
        doors: vec![
            Door { transport: Transport::Quic, port: 443 },
            Door { transport: Transport::Tcp, port: 51821 },
        ],
        correlation: *b"correlation id 1",
        switches_per_minute_max: 20,
        switch_cooldown: Duration::from_millis(500),
        recovery_window: Duration::from_secs(120),
    };
    // As little as an acceptance can hold.
    let bare = Accepted {
        inner: vec!["10.77.0.2".parse().unwrap()],
        grant: Vec::new(),
        routes: Vec::new(),
        dns: Vec::new(),
        roster: Vec::new(),
        doors: Vec::new(),
        ..accepted.clone()
    };
    let rejected = AttachResult::Rejected {
        reason: Reason::StaleAttempt,
        current_epoch: Epoch(3),
        current_attach_seq: AttachSeq(7),
        retry_after: Duration::from_millis(256),
    };
    vec![
        Frame::Confirm,
        Frame::AttachResult(Box::new(AttachResult::Accepted(accepted))),
        Frame::AttachResult(Box::new(AttachResult::Accepted(bare))),
        Frame::AttachResult(Box::new(rejected)),
        Frame::Ping { id: 0x0102 },
        Frame::Pong { id: 0x0102, received: 9, newest: u64::MAX },
        Frame::PathChallenge { token: *b"12345678" },
        Frame::PathResponse { token: *b"abcdefgh" },
        Frame::Migrate { reason: Reason::GatewayDraining, targets },
        Frame::Terminated { reason: Reason::KeyRevoked },
        Frame::Close { reason: Reason::ClientClosed },
        Frame::MtuProbe { id: 1, mtu: 0, len: 12 },
        Frame::MtuProbe { id: 1, mtu: 1280, len: 12 },
        Frame::Bound { binding: 5 },
        Frame::Keys { key_set: vec![1, 3, 7] },
        Frame::Pending,
        Frame::MtuAnswer { id: 1, mtu_max: 1360, len: 12 },
    ]
}

fn described(frame: &Frame) -> Value {
    match frame {
        Frame::Confirm => json!({ "frame": "Confirm" }),
        Frame::Pending => json!({ "frame": "Pending" }),
        Frame::AttachResult(result) => match &**result {
            AttachResult::Accepted(accepted) => {
                json!({ "frame": "AttachResult", "accepted": accepted_described(accepted) })
            }
            AttachResult::Rejected { reason, current_epoch, current_attach_seq, retry_after } => json!({
                "frame": "AttachResult",
                "rejected": {
                    "reason": reason.number(),
                    "current_epoch": current_epoch.0,
                    "current_attach_seq": current_attach_seq.0,
                    "retry_after_ms": ms(*retry_after),
                },
            }),
        },
        Frame::Ping { id } => json!({ "frame": "Ping", "id": id }),
        Frame::Pong { id, received, newest } => {
            json!({ "frame": "Pong", "id": id, "received": received, "newest": newest })
        }
        Frame::PathChallenge { token } => json!({ "frame": "PathChallenge", "token": hex(token) }),
        Frame::PathResponse { token } => json!({ "frame": "PathResponse", "token": hex(token) }),
        Frame::Migrate { reason, targets } => {
            json!({ "frame": "Migrate", "reason": reason.number(), "targets": targets })
        }
        Frame::Terminated { reason } => json!({ "frame": "Terminated", "reason": reason.number() }),
        Frame::Close { reason } => json!({ "frame": "Close", "reason": reason.number() }),
        Frame::MtuProbe { id, mtu, len } => {
            json!({ "frame": "MtuProbe", "id": id, "mtu": mtu, "length": len })
        }
        Frame::MtuAnswer { id, mtu_max, len } => {
            json!({ "frame": "MtuAnswer", "id": id, "mtu_max": mtu_max, "length": len })
        }
        Frame::Bound { binding } => json!({ "frame": "Bound", "binding": binding }),
        Frame::Keys { key_set } => json!({ "frame": "Keys", "key_set": hex(key_set) }),
    }
}

fn accepted_described(accepted: &Accepted) -> Value {
    let routes: Vec<String> = accepted.routes.iter().map(|(net, len)| format!("{net}/{len}")).collect();
    let doors: Vec<Value> = accepted
        .doors
        .iter()
        .map(|door| json!({ "transport": door.transport.number(), "port": door.port }))
        .collect();
    json!({
        "session": hex(&accepted.session.to_bytes()),
        "epoch": accepted.epoch.0,
        "correlation": hex(&accepted.correlation),
        "mtu": accepted.mtu,
        "switches_per_minute_max": accepted.switches_per_minute_max,
        "switch_cooldown_ms": ms(accepted.switch_cooldown),
        "recovery_window_ms": ms(accepted.recovery_window),
        "expires_in_ms": ms(accepted.expires_in),
        "lease_ms": ms(accepted.lease),
        "grant": hex(&accepted.grant),
        "inner": accepted.inner,
        "routes": routes,
        "dns": accepted.dns,
        "roster": accepted.roster,
        "doors": doors,
    })
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = [0xaa; 2048];
    let len = frame.encode(&mut out).unwrap();
    out[..len].to_vec()
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
