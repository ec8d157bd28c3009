//! Known answers of every message, in a file that other implementations can use: `vectors/v1.json`.
//!
//! `cargo test -p jump-crypto --test vectors -- --ignored` writes the file anew; a change of it is a change of the protocol.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jump_crypto::certificate::{NodeCertificate, NodeClaims, NodeSigner};
use jump_crypto::cookie::{Admission, COOKIE_REPLY_LEN, Gate, ReattachHint, open_busy, open_cookie_reply};
use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::grant::{Grant, GrantClaims};
use jump_crypto::handshake::{
    AttachIntent, Established, Holding, Initiation, InitiationInput, REPLY_LEN_MAX, Responder, Suite,
};
use jump_crypto::ids::{AttachSeq, AttemptId, Epoch, Incarnation, NodeNumber, ReceiverIndex, SessionId};
use jump_crypto::key_set::{KeySet, KeySetClaims};
use jump_crypto::keys::{ClusterPublic, ClusterSecret, DeviceSecret, GrantKeyId, GrantSigner, GrantVerifier};
use jump_crypto::mesh::{MeshEnd, MeshSecret};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, SealingKey};
use jump_crypto::replay_window::{ReplayError, ReplayWindow};
use jump_crypto::rotation::{Challenge, answer};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

#[test]
fn every_message_has_exactly_the_bytes_of_the_published_vectors() {
    let published: Value = serde_json::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap();
    let made = vectors();
    for (section, value) in made.as_object().unwrap() {
        assert_eq!(&published[section], value, "section {section}");
    }
    assert_eq!(published, made);
}

#[test]
#[ignore = "writes the published vectors: make crypto-fixtures"]
fn write_the_published_vectors() {
    std::fs::write(file(), serde_json::to_string_pretty(&vectors()).unwrap() + "\n").unwrap();
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/v1.json")
}

fn vectors() -> Value {
    json!({
        "about": "Jumping VPN protocol version 1. Byte strings are hexadecimal; layouts are in docs/protocol.md.",
        "keys": keys(),
        "handshake": [
            handshake("25519_ChaChaPoly_BLAKE2s", Suite::ChaChaPolyBlake2s),
            handshake("25519_AESGCM_SHA256", Suite::AesGcmSha256),
            handshake("25519_ChaChaPoly_BLAKE2s", Suite::HybridChaChaPolyBlake2s),
            handshake("25519_AESGCM_SHA256", Suite::HybridAesGcmSha256),
        ],
        "gate": gate(),
        "statements": statements(),
        "mesh": mesh(),
        "replay_window": window(),
    })
}

/// Hands out given bytes, in order.
struct Given(Vec<u8>);

impl Entropy for Given {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        if self.0.len() < bytes.len() {
            return Err(EntropyError::Source);
        }
        bytes.copy_from_slice(&self.0[..bytes.len()]);
        self.0.drain(..bytes.len());
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 32 bytes that differ from each other and from those of another `start`.
fn secret(start: u8) -> [u8; 32] {
    std::array::from_fn(|at| start.wrapping_add(at as u8))
}

const DEVICE: u8 = 0x01;
const CLUSTER: u8 = 0x21;
const CLIENT_EPHEMERAL: u8 = 0x41;
const GATEWAY_EPHEMERAL: u8 = 0x61;
const NODE_SEED: u8 = 0x81;
const GRANT_SEED: u8 = 0xa1;
const MESH_A: u8 = 0xc1;
const MESH_B: u8 = 0xe1;
const KEM_SEED: u8 = 0x11;
const KEM_COINS: u8 = 0x71;

fn device() -> DeviceSecret {
    DeviceSecret::from_bytes(secret(DEVICE))
}

fn cluster() -> ClusterSecret {
    ClusterSecret::from_bytes(secret(CLUSTER))
}

fn node() -> NodeSigner {
    NodeSigner::generate(&mut Given(secret(NODE_SEED).to_vec())).unwrap()
}

fn grant_signer() -> GrantSigner {
    GrantSigner::from_seed(&secret(GRANT_SEED))
}

fn keys() -> Value {
    json!({
        "device_private": hex(device().expose()),
        "device_public": hex(device().public().as_bytes()),
        "cluster_private": hex(cluster().expose()),
        "cluster_public": hex(&cluster().public().0),
        "cluster_key_id": hex(&cluster().public().id().0),
        "node_seed": hex(&secret(NODE_SEED)),
        "node_public": hex(&node().verifying_key()),
        "grant_seed": hex(grant_signer().expose_seed()),
        "grant_public": hex(&grant_signer().public()),
        "grant_key_id": hex(&grant_signer().id().0),
    })
}

fn node_claims() -> NodeClaims {
    NodeClaims {
        node: "gw-1.eu".parse().unwrap(),
        incarnation: Incarnation(0x0102_0304),
        verifying_key: node().verifying_key(),
        not_after: NOW + 600,
    }
}

fn intent() -> AttachIntent {
    AttachIntent {
        session: Some(SessionId::from_bytes([0x51; 16])),
        attach_seq: AttachSeq(7),
        attempt: AttemptId::from_bytes([0x52; 16]),
        last_epoch: Epoch(3),
        reason: 0x0102,
        capabilities: 0,
        rekey: false,
        holding: Holding {
            key_set: 0x0708,
            grant_keys: [
                grant_signer().id(),
                GrantKeyId([0xaa; 4]),
                GrantKeyId::default(),
                GrantKeyId::default(),
            ],
        },
    }
}

fn start(suite: Suite, cookie: Option<[u8; 16]>) -> (Initiation, Vec<u8>) {
    let mut init = vec![0; suite.init_len()];
    let input = InitiationInput {
        device: &device(),
        cluster: &cluster().public(),
        suite,
        intent: &intent(),
        index: ReceiverIndex(0xc1c2_c3c4),
        cookie,
    };
    let mut entropy = Given([&secret(CLIENT_EPHEMERAL)[..], &kem_seed()].concat());
    let initiation = Initiation::start(&input, &mut entropy, &mut init).unwrap();
    (initiation, init)
}

fn handshake(name: &str, suite: Suite) -> Value {
    let (mut initiation, init) = start(suite, None);
    let certificate = NodeCertificate::issue(&node_claims(), &grant_signer());
    let responder = Responder::new(vec![cluster()], certificate, node());
    let pending = responder.read_init(&init).unwrap();
    assert_eq!((pending.device(), pending.intent()), (device().public(), &intent()));
    let roster: Vec<SocketAddr> =
        vec!["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()];
    let index = ReceiverIndex::of_node(NodeNumber(0x123), 0x45678);
    let hint = Gate::new(&cluster()).hint(index);
    let mut reply = [0; REPLY_LEN_MAX];
    let (ephemeral, coins) = (secret(GATEWAY_EPHEMERAL), secret(KEM_COINS));
    // In a hybrid suite the coins of the encapsulation are drawn after the ephemeral key.
    let mut entropy = Given([ephemeral, coins].concat());
    let (len, mut gateway) =
        pending.write_reply(&responder, index, hint, &roster, &mut entropy, &mut reply).unwrap();
    let verifier = GrantVerifier::new(&[grant_signer().public()]);
    let (mut client, info) = initiation.finish(&reply[..len], &verifier, NOW).unwrap();
    assert_eq!((info.node, info.roster.clone(), info.hint), (node_claims(), roster, hint));
    assert_eq!(client.handshake_hash, gateway.handshake_hash);
    let mut vector = json!({
        "protocol": format!("Noise_{}_{name}", if suite.is_hybrid() { "IKpsk2" } else { "IK" }),
        "suite": suite as u8,
        "client_ephemeral_private": hex(&secret(CLIENT_EPHEMERAL)),
        "gateway_ephemeral_private": hex(&secret(GATEWAY_EPHEMERAL)),
        "client_index": "c1c2c3c4",
        "gateway_index": hex(&index.0.to_be_bytes()),
        "intent": {
            "session": hex(&[0x51; 16]), "attach_seq": 7, "attempt": hex(&[0x52; 16]), "last_epoch": 3,
            "reason": 0x0102, "capabilities": 0, "rekey": false,
            "key_set": 0x0708, "grant_keys": [hex(&grant_signer().id().0), "aaaaaaaa", "00000000", "00000000"],
        },
        "attach_init": hex(&init),
        "hint": hex(&hint),
        "roster": info.roster.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "attach_reply": hex(&reply[..len]),
        "handshake_hash": hex(&client.handshake_hash),
        "records_to_gateway": records(&mut client, &mut gateway, &[(Content::Control, "01"), (Content::Packet, "00112233")]),
        "records_to_client": records(&mut gateway, &mut client, &[(Content::Control, "0a0b"), (Content::Packet, "")]),
    });
    if suite.is_hybrid() {
        vector["kem"] = kem(&reply);
    }
    vector
}

/// The seed `d ‖ z` of the client's ML-KEM-768 key pair.
fn kem_seed() -> [u8; 64] {
    std::array::from_fn(|at| KEM_SEED.wrapping_add(at as u8))
}

/// ML-KEM's own values, so that an implementation without it can check the rest.
fn kem(reply: &[u8]) -> Value {
    use ml_kem::ml_kem_768::DecapsulationKey;
    use ml_kem::{Decapsulate as _, KeyExport as _};

    let secret_key = DecapsulationKey::from_seed(kem_seed().into());
    let ciphertext = &reply[16..16 + 1088];
    let shared = secret_key.decapsulate(&ciphertext.try_into().unwrap());
    json!({
        "seed": hex(&kem_seed()),
        "coins": hex(&secret(KEM_COINS)),
        "encapsulation_key": hex(&secret_key.encapsulation_key().to_bytes()),
        "ciphertext": hex(ciphertext),
        "shared_secret": hex(&shared),
    })
}

fn records(from: &mut Established, to: &mut Established, plaintexts: &[(Content, &str)]) -> Value {
    let one = |(content, plaintext): &(Content, &str)| {
        let text = bytes(plaintext);
        let record = seal(&mut from.sealing, *content, &text);
        let mut received = record.clone();
        let opened = to.opening.open(&mut received).unwrap();
        assert_eq!((opened.content, &opened.plaintext[..]), (*content, &text[..]));
        json!({ "content": *content as u8, "counter": opened.counter, "plaintext": plaintext, "record": hex(&record) })
    };
    plaintexts.iter().map(one).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn seal(key: &mut SealingKey, content: Content, text: &[u8]) -> Vec<u8> {
    let mut record = vec![0; text.len() + OVERHEAD];
    record[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    key.seal(content, &mut record, text.len()).unwrap();
    record
}

fn gate() -> Value {
    let gate = Gate::new(&cluster());
    let source: SocketAddr = "192.0.2.7:40000".parse().unwrap();
    let (_, first) = start(Suite::ChaChaPolyBlake2s, None);
    assert_eq!(gate.admit(&first, source, NOW), Admission::NoCookie);
    let mut reply = [0; COOKIE_REPLY_LEN];
    gate.cookie_reply(&first, source, NOW, [0x77; 16], &mut reply).unwrap();
    let cookie = open_cookie_reply(&cluster().public(), &first, &reply).unwrap();
    let (_, second) = start(Suite::ChaChaPolyBlake2s, Some(cookie));
    assert_eq!(gate.admit(&second, source, NOW), Admission::Cookie);
    let hint = gate.hint_datagram(ReceiverIndex(0x1234_5678));
    assert!(ReattachHint::parse(&hint).unwrap().carries(&gate.hint(ReceiverIndex(0x1234_5678))));
    let busy = gate.busy(&first, Duration::from_millis(750)).unwrap();
    assert_eq!(open_busy(&cluster().public(), &first, &busy), Some(Duration::from_millis(750)));
    json!({
        "time": NOW,
        "source": source.to_string(),
        "attach_init_without_cookie": hex(&first),
        "cookie_reply_nonce": hex(&[0x77; 16]),
        "cookie_reply": hex(&reply),
        "cookie": hex(&cookie),
        "attach_init_with_cookie": hex(&second),
        "busy_ms": 750,
        "busy": hex(&busy),
        "hint_index": "12345678",
        "reattach_hint": hex(&hint),
    })
}

fn statements() -> Value {
    let verifier = GrantVerifier::new(&[grant_signer().public()]);
    let certificate = NodeCertificate::issue(&node_claims(), &grant_signer());
    assert_eq!(certificate.verify(&verifier, NOW), Ok(node_claims()));
    let claims = GrantClaims {
        handshake_hash: [0x61; 32],
        session: SessionId::from_bytes([0x51; 16]),
        device: device().public(),
        epoch: Epoch(4),
        node: node_claims().node,
        incarnation: node_claims().incarnation,
        not_after: NOW + 60,
    };
    let grant = Grant::issue(&claims, &grant_signer());
    assert_eq!(grant.verify(&verifier, &claims, NOW), Ok(()));
    let key_set_claims = KeySetClaims {
        serial: 0x0102_0304_0506,
        hybrid: false,
        cluster: vec![cluster().public(), ClusterPublic([0x62; 32])],
        grant: vec![grant_signer().public(), [0x63; 32]],
    };
    let key_set = KeySet::issue(&key_set_claims, &grant_signer());
    assert_eq!(key_set.open(&verifier, 1), Ok(key_set_claims.clone()));
    let new_device = DeviceSecret::from_bytes([0x64; 32]);
    let challenge = Challenge::generate(&mut Given(vec![0x65; 32])).unwrap();
    let asked = challenge.public();
    let answered = answer(&device(), &new_device, &asked).unwrap();
    assert!(challenge.proved_by(device().public(), new_device.public(), &answered));
    json!({
        "key_set": {
            "serial": key_set_claims.serial, "hybrid": false,
            "cluster": [hex(&cluster().public().0), hex(&[0x62; 32])],
            "grant": [hex(&grant_signer().public()), hex(&[0x63; 32])],
            "encoding": hex(key_set.as_bytes()),
        },
        "device_rotation": {
            "new_device_private": hex(&[0x64; 32]), "challenge_private": hex(&[0x65; 32]),
            "challenge": hex(&asked), "answer": hex(&answered),
        },
        "node_certificate": {
            "node": "gw-1.eu", "incarnation": 0x0102_0304, "verifying_key": hex(&node().verifying_key()),
            "not_after": NOW + 600, "encoding": hex(certificate.as_bytes()),
        },
        "grant": {
            "handshake_hash": hex(&[0x61; 32]), "session": hex(&[0x51; 16]), "device": hex(device().public().as_bytes()),
            "epoch": 4, "node": "gw-1.eu", "incarnation": 0x0102_0304, "not_after": NOW + 60,
            "encoding": hex(grant.as_bytes()),
        },
        "node_proof": { "handshake_hash": hex(&[0x61; 32]), "signature": hex(&node().sign_handshake(&[0x61; 32])) },
    })
}

fn mesh() -> Value {
    let make = |start| MeshSecret::generate(&mut Given(secret(start).to_vec())).unwrap();
    let (mut a, mut b) = (make(MESH_A), make(MESH_B));
    let end_a = MeshEnd { number: NodeNumber(1), incarnation: Incarnation(100), public: a.public() };
    let end_b = MeshEnd { number: NodeNumber(2), incarnation: Incarnation(200), public: b.public() };
    let (mut seal_a, _) = a.link(&end_a, &end_b).unwrap();
    let (_, mut open_b) = b.link(&end_b, &end_a).unwrap();
    let record = seal(&mut seal_a, Content::Packet, &[1, 0x45, 0, 0, 20]);
    assert_eq!(open_b.open(&mut record.clone()).unwrap().plaintext, [1, 0x45, 0, 0, 20]);
    json!({
        "a": { "private": hex(&secret(MESH_A)), "public": hex(&end_a.public), "number": 1, "incarnation": 100 },
        "b": { "private": hex(&secret(MESH_B)), "public": hex(&end_b.public), "number": 2, "incarnation": 200 },
        "plaintext": "0145000014",
        "record_from_a": hex(&record),
    })
}

fn window() -> Value {
    let mut window = ReplayWindow::new();
    let counters = [
        0,
        0,
        5,
        3,
        3,
        8191,
        8192,
        8193,
        1,
        2,
        0,
        5,
        4,
        16_384,
        8_192,
        8_191,
        8_193,
        20_000,
        11_808,
        11_807,
        1 << 40,
    ];
    let verdict = |counter: &u64| {
        let verdict = match window.commit(*counter) {
            Ok(()) => "accepted",
            Err(ReplayError::Duplicate) => "duplicate",
            Err(ReplayError::TooOld) => "too old",
        };
        json!([counter, verdict])
    };
    counters.iter().map(verdict).collect()
}
