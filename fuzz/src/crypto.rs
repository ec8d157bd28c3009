//! What the crypto fuzz targets do with their input. `crates/crypto/tests/corpus.rs` runs the same functions over the
//! committed corpus and over mutations of it.

use std::net::SocketAddr;
use std::sync::LazyLock;

use jump_crypto::certificate::{NodeCertificate, NodeClaims, NodeSigner};
use jump_crypto::cookie::{Admission, Gate, ReattachHint, open_cookie_reply};
use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::grant::Grant;
use jump_crypto::handshake::{
    AttachIntent, Established, Initiation, InitiationInput, REPLY_LEN_MAX, Responder, Suite,
};
use jump_crypto::ids::{AttachSeq, AttemptId, Epoch, Incarnation, ReceiverIndex};
use jump_crypto::key_set::{KeySet, KeySetClaims};
use jump_crypto::keys::{ClusterSecret, DeviceSecret, GrantSigner, GrantVerifier};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, RecordHeader};

const NOW: u64 = 1_800_000_000;
const CLIENT: ReceiverIndex = ReceiverIndex(0x0102_0304);
const GATEWAY: ReceiverIndex = ReceiverIndex(0x0010_0001);

/// A gateway reads an AttachInit.
pub(crate) fn attach_init(input: &[u8]) {
    let world = &*WORLD;
    let gate = Gate::new(&world.cluster);
    let admitted = gate.admit(input, source(), NOW);
    let mut out = [0; REPLY_LEN_MAX];
    if let Some(len) = gate.cookie_reply(input, source(), NOW, [1; 16], &mut out) {
        assert!(len < input.len() && admitted != Admission::BadMac);
    }
    if let Ok(pending) = world.responder.read_init(input) {
        // Only the device's key makes a readable message, and here only the seeds were made with it.
        assert_eq!(pending.device(), world.device.public());
        let (len, _) = pending
            .write_reply(&world.responder, GATEWAY, [7; 16], &[source()], &mut Counting(9), &mut out)
            .expect("a readable message is answered");
        assert!(len <= input.len());
    }
}

pub(crate) fn attach_init_seeds() -> Vec<Vec<u8>> {
    let world = &*WORLD;
    Suite::ALL.map(|suite| world.start(suite).1).to_vec()
}

/// A client reads an AttachReply; whatever it was, the true reply still counts afterwards.
pub(crate) fn attach_reply(input: &[u8]) {
    let world = &*WORLD;
    // The client's own suite is that of the reply, so that mutations get past the header in both kinds.
    let hybrid = input.get(2).is_some_and(|suite| *suite == Suite::HybridChaChaPolyBlake2s as u8);
    let (mut initiation, init) = world.start(Suite::ChaChaPolyBlake2s.with_hybrid(hybrid));
    let (reply, _) = world.answer(&init);
    match initiation.finish(input, &world.verifier(), NOW) {
        Ok(_) => assert_eq!(input, reply, "a reply that no gateway made was accepted"),
        Err(_) => assert!(initiation.finish(&reply, &world.verifier(), NOW).is_ok()),
    }
}

pub(crate) fn attach_reply_seeds() -> Vec<Vec<u8>> {
    let world = &*WORLD;
    [false, true]
        .map(|hybrid| world.answer(&world.start(Suite::ChaChaPolyBlake2s.with_hybrid(hybrid)).1).0)
        .to_vec()
}

/// A gateway opens records: each input byte string is one datagram, behind its length.
pub(crate) fn record(input: &[u8]) {
    let (mut client, mut gateway) = WORLD.established();
    let genuine: Vec<_> = (0..3).map(|_| sealed(&mut client)).collect();
    let mut accepted = Vec::new();
    let mut rest = input;
    while let Some((len, tail)) = rest.split_first() {
        let (datagram, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = tail;
        let _ = RecordHeader::parse(datagram);
        let _ = RecordHeader::parse_mesh(datagram);
        if let Ok(opened) = gateway.opening.open(&mut datagram.to_vec()) {
            assert!(genuine.iter().any(|record| record == datagram), "a forged record was opened");
            assert!(!accepted.contains(&opened.counter), "a record was opened twice");
            accepted.push(opened.counter);
        }
    }
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let (mut client, _) = WORLD.established();
    let records: Vec<_> = (0..3).map(|_| sealed(&mut client)).collect();
    let sequence = |order: &[usize]| {
        let framed = |at: &usize| [&[records[*at].len() as u8][..], &records[*at]].concat();
        order.iter().flat_map(framed).collect()
    };
    vec![sequence(&[0, 1, 2]), sequence(&[2, 0, 2, 1, 0])]
}

/// A client parses a node certificate, a grant and a key set.
pub(crate) fn statement(input: &[u8]) {
    let world = &*WORLD;
    static GENUINE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(statement_seeds);
    let genuine = &*GENUINE;
    for (parsed, holds) in [
        (NodeCertificate::parse(input).map(|it| it.as_bytes().to_vec()), certificate_holds(world, input)),
        (Grant::parse(input).map(|it| it.as_bytes().to_vec()), grant_holds(world, input)),
        (KeySet::parse(input).map(|it| it.as_bytes().to_vec()), key_set_holds(world, input)),
    ] {
        assert!(parsed.is_err() || parsed.as_deref() == Ok(input), "the encoding is not the only one");
        assert!(!holds || genuine.iter().any(|seed| seed == input), "a forged statement was accepted");
    }
}

fn certificate_holds(world: &World, input: &[u8]) -> bool {
    NodeCertificate::parse(input).and_then(|it| it.verify(&world.verifier(), NOW)).is_ok()
}

fn grant_holds(world: &World, input: &[u8]) -> bool {
    Grant::parse(input).and_then(|it| it.open(&world.verifier(), NOW)).is_ok()
}

fn key_set_holds(world: &World, input: &[u8]) -> bool {
    KeySet::parse(input).and_then(|it| it.open(&world.verifier(), 0)).is_ok()
}

pub(crate) fn statement_seeds() -> Vec<Vec<u8>> {
    let world = &*WORLD;
    let claims = jump_crypto::grant::GrantClaims {
        handshake_hash: [1; 32],
        session: jump_crypto::ids::SessionId::from_bytes([2; 16]),
        device: world.device.public(),
        epoch: Epoch(3),
        node: "gw-1".parse().expect("a node name"),
        incarnation: Incarnation(7),
        not_after: NOW + 60,
    };
    let key_set_claims = KeySetClaims {
        serial: 1,
        hybrid: false,
        cluster: vec![world.cluster.public()],
        grant: vec![world.signer.public()],
    };
    vec![
        Grant::issue(&claims, &world.signer).as_bytes().to_vec(),
        certificate(&world.signer, &node()).as_bytes().to_vec(),
        KeySet::issue(&key_set_claims, &world.signer).as_bytes().to_vec(),
    ]
}

/// A client reads what comes without a session: cookie replies and hints.
pub(crate) fn gate(input: &[u8]) {
    let world = &*WORLD;
    let gate = Gate::new(&world.cluster);
    let (_, init) = world.start(Suite::ChaChaPolyBlake2s);
    static GENUINE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(gate_seeds);
    let genuine = &*GENUINE;
    if open_cookie_reply(&world.cluster.public(), &init, input).is_some() {
        assert_eq!(input, genuine[0], "a forged cookie reply was opened");
    }
    if ReattachHint::parse(input).is_some_and(|hint| hint.carries(&gate.hint(GATEWAY))) {
        assert_eq!(input[8..], genuine[1][8..], "a forged hint was believed");
    }
}

pub(crate) fn gate_seeds() -> Vec<Vec<u8>> {
    let world = &*WORLD;
    let gate = Gate::new(&world.cluster);
    let (_, init) = world.start(Suite::ChaChaPolyBlake2s);
    let mut reply = [0; jump_crypto::cookie::COOKIE_REPLY_LEN];
    gate.cookie_reply(&init, source(), NOW, [1; 16], &mut reply).expect("a well-formed message");
    vec![reply.to_vec(), gate.hint_datagram(GATEWAY).to_vec()]
}

/// Made once: an input must not pay for its keys.
static WORLD: LazyLock<World> = LazyLock::new(World::new);

struct World {
    device: DeviceSecret,
    cluster: ClusterSecret,
    signer: GrantSigner,
    responder: Responder,
}

impl World {
    fn new() -> Self {
        let cluster = ClusterSecret::from_bytes([2; 32]);
        let signer = GrantSigner::from_seed(&[3; 32]);
        let certificate = certificate(&signer, &node());
        let responder = Responder::new(vec![cluster.clone()], certificate, node());
        Self { device: DeviceSecret::from_bytes([1; 32]), cluster, signer, responder }
    }

    fn verifier(&self) -> GrantVerifier {
        GrantVerifier::new(&[self.signer.public()])
    }

    fn start(&self, suite: Suite) -> (Initiation, Vec<u8>) {
        let mut init = vec![0; suite.init_len()];
        let input = InitiationInput {
            device: &self.device,
            cluster: &self.cluster.public(),
            suite,
            intent: &AttachIntent {
                session: None,
                attach_seq: AttachSeq(1),
                attempt: AttemptId::from_bytes([1; 16]),
                last_epoch: Epoch(0),
                reason: 0,
                capabilities: 0,
                rekey: false,
                holding: jump_crypto::handshake::Holding::default(),
            },
            index: CLIENT,
            cookie: None,
        };
        let initiation = Initiation::start(&input, &mut Counting(5), &mut init).expect("the generator works");
        (initiation, init)
    }

    fn answer(&self, init: &[u8]) -> (Vec<u8>, Established) {
        let mut out = [0; REPLY_LEN_MAX];
        let pending = self.responder.read_init(init).expect("a message of our own");
        let (len, keys) = pending
            .write_reply(&self.responder, GATEWAY, [7; 16], &[source()], &mut Counting(6), &mut out)
            .expect("the generator works");
        (out[..len].to_vec(), keys)
    }

    fn established(&self) -> (Established, Established) {
        let (mut initiation, init) = self.start(Suite::ChaChaPolyBlake2s);
        let (reply, gateway) = self.answer(&init);
        (initiation.finish(&reply, &self.verifier(), NOW).expect("a reply of our own").0, gateway)
    }
}

fn node() -> NodeSigner {
    NodeSigner::generate(&mut Counting(4)).expect("the generator works")
}

fn certificate(signer: &GrantSigner, node: &NodeSigner) -> NodeCertificate {
    let claims = NodeClaims {
        node: "gw-1".parse().expect("a node name"),
        incarnation: Incarnation(7),
        verifying_key: node.verifying_key(),
        not_after: NOW + 60,
    };
    NodeCertificate::issue(&claims, signer)
}

fn sealed(keys: &mut Established) -> Vec<u8> {
    let mut record = vec![0x45; OVERHEAD + 8];
    keys.sealing.seal(Content::Packet, &mut record, 8).expect("far from the limit");
    assert!(record.len() > HEADER_LEN);
    record
}

fn source() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4000))
}

/// Every run must be the same run: bytes that count up.
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for byte in bytes {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        }
        Ok(())
    }
}
