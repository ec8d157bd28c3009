//! Fuzzes what control reads from gateways, devices and its store on stable: committed corpora and mutations of them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use jump_proto::control_v1::AttachRequest;
use jump_proto::convert::AttachAsk;
use jump_proto::store_v1::SessionRecord as Stored;
use jump_proto::token::EnrolmentToken;
use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Incarnation, SessionId};
use jump_session::ownership::{self, DeviceStanding, Owner, SessionRecord, View, birth};
use prost::Message as _;

#[path = "../../fuzz/src/harness.rs"]
mod harness;

use harness::Target;

#[test]
fn no_mutation_of_a_corpus_breaks_what_control_reads() {
    let targets = [
        Target { name: "control_attach", run: attach, seeds: attach_seeds },
        Target { name: "control_record", run: record, seeds: record_seeds },
        Target { name: "control_token", run: token, seeds: token_seeds },
    ];
    harness::run(concat!(env!("CARGO_MANIFEST_DIR"), "/.."), &targets);
}

/// A request becomes valid values, or a list of bad fields that is not empty.
fn attach(input: &[u8]) {
    let Ok(message) = AttachRequest::decode(input) else { return };
    if let Err(bad) = AttachAsk::try_from(message) {
        assert!(!bad.0.is_empty());
    }
}

fn attach_seeds() -> Vec<Vec<u8>> {
    let message = AttachRequest {
        node_id: "gw1".to_owned(),
        incarnation: 7,
        device_key: vec![1; 32],
        session_id: "0198c2a0-0000-7000-8000-000000000001".to_owned(),
        attach_seq: 9,
        attempt_id: "0198c2a0-0000-7000-8000-000000000002".to_owned(),
        last_epoch: 3,
        reason: "GATEWAY_UNRESPONSIVE".to_owned(),
        handshake_hash: vec![2; 32],
        client_address: "198.51.100.1:4000".to_owned(),
        ..AttachRequest::default()
    };
    vec![message.encode_to_vec(), AttachRequest { session_id: String::new(), ..message }.encode_to_vec()]
}

/// What reads back from the store is written again as it was read.
fn record(input: &[u8]) {
    let Ok(message) = Stored::decode(input) else { return };
    if let Ok(record) = SessionRecord::try_from(message) {
        assert_eq!(SessionRecord::try_from(Stored::from(&record)).as_ref(), Ok(&record));
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let request = ownership::AttachRequest {
        claimant: Owner { node: "gw1".parse().unwrap(), incarnation: Incarnation(7) },
        device: DeviceKey::from_bytes([7; 32]),
        attach_seq: AttachSeq(1),
        attempt: AttemptId::from_bytes([1; 16]),
        reason: jump_session::reason::Reason::Birth,
        switch_ages: Vec::new(),
    };
    let view = View {
        claimant_registered: true,
        claimant_draining: false,
        owner_registered: false,
        owner_draining: false,
        target_registered: false,
        device: DeviceStanding::Active,
    };
    let policy = jump_session::policy::SessionPolicy::default();
    let inner = vec!["10.77.0.2".parse().unwrap(), "fd00:77::2".parse().unwrap()];
    let id = SessionId::from_bytes([3; 16]);
    let born = birth(id, inner, "laptop".to_owned(), [4; 16], &view, &request, &policy, 1_000).unwrap().next;
    vec![Stored::from(&born).encode_to_vec(), Stored::default().encode_to_vec()]
}

/// A token that reads has one text.
fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(token) = text.parse::<EnrolmentToken>() {
        assert_eq!(token.encode().unwrap().parse::<EnrolmentToken>().unwrap(), token);
    }
}

fn token_seeds() -> Vec<Vec<u8>> {
    let token = EnrolmentToken {
        address: "control.example:7443".to_owned(),
        ca: [&[0x30, 0x03][..], &[1, 2, 3]].concat(),
        secret: [7; 32],
    };
    vec![token.encode().unwrap().into_bytes(), b"jump1.AAAA".to_vec()]
}
