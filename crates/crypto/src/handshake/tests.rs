use super::*;
use crate::certificate::NodeClaims;
use crate::ids::Incarnation;
use crate::key_set::KeySetClaims;
use crate::keys::GrantSigner;
use crate::record::{Content, HEADER_LEN, OVERHEAD, OpenError};
use crate::testing::SeededEntropy;

const NOW: u64 = 1_800_000_000;

struct Bench {
    entropy: SeededEntropy,
    signer: GrantSigner,
    cluster: ClusterSecret,
    device: DeviceSecret,
    responder: Responder,
}

impl Bench {
    fn new() -> Self {
        Self::with_seed(1)
    }

    fn with_seed(seed: u64) -> Self {
        let mut entropy = SeededEntropy::new(seed);
        let signer = GrantSigner::generate(&mut entropy).unwrap();
        let cluster = ClusterSecret::generate(&mut entropy).unwrap();
        let device = DeviceSecret::generate(&mut entropy).unwrap();
        let responder = responder(&mut entropy, &cluster, &signer);
        Self { entropy, signer, cluster, device, responder }
    }

    fn verifier(&self) -> GrantVerifier {
        GrantVerifier::new(&[self.signer.public()])
    }

    fn start(&mut self, suite: Suite) -> (Initiation, [u8; INIT_LEN]) {
        self.start_as(suite, &intent())
    }

    fn start_with(&mut self, intent: &AttachIntent) -> (Initiation, [u8; INIT_LEN]) {
        self.start_as(Suite::ChaChaPolyBlake2s, intent)
    }

    fn start_as(&mut self, suite: Suite, intent: &AttachIntent) -> (Initiation, [u8; INIT_LEN]) {
        let mut init = [0; INIT_LEN];
        let input = InitiationInput {
            device: &self.device,
            cluster: &self.cluster.public(),
            suite,
            intent,
            index: ReceiverIndex(0x0102_0304),
            cookie: None,
        };
        let initiation = Initiation::start(&input, &mut self.entropy, &mut init).unwrap();
        (initiation, init)
    }

    fn answer(&mut self, init: &[u8]) -> (Vec<u8>, Established) {
        let pending = self.responder.read_init(init).unwrap();
        let mut out = [0; REPLY_LEN_MAX];
        let index = ReceiverIndex(0x0ff0_0001);
        let (len, keys) = pending
            .write_reply(&self.responder, index, [7; 16], &roster(), &mut self.entropy, &mut out)
            .unwrap();
        (out[..len].to_vec(), keys)
    }
}

fn responder(entropy: &mut SeededEntropy, cluster: &ClusterSecret, signer: &GrantSigner) -> Responder {
    let node = NodeSigner::generate(entropy).unwrap();
    let claims = NodeClaims {
        node: "gw-1".parse().unwrap(),
        incarnation: Incarnation(7),
        verifying_key: node.verifying_key(),
        not_after: NOW + 60,
    };
    Responder::new(vec![cluster.clone()], NodeCertificate::issue(&claims, signer), node)
}

fn intent() -> AttachIntent {
    AttachIntent {
        session: Some(SessionId::from_bytes([3; 16])),
        attach_seq: AttachSeq(5),
        attempt: AttemptId::from_bytes([4; 16]),
        last_epoch: Epoch(2),
        reason: 9,
        capabilities: 1,
        rekey: false,
        holding: Holding::default(),
    }
}

fn roster() -> Vec<SocketAddr> {
    vec!["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:51820".parse().unwrap()]
}

fn seal(keys: &mut Established, text: &[u8]) -> Vec<u8> {
    let mut record = vec![0; text.len() + OVERHEAD];
    record[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    keys.sealing.seal(Content::Packet, &mut record, text.len()).unwrap();
    record
}

#[test]
fn both_sides_agree_on_keys_indices_and_payloads_in_every_suite() {
    for suite in [Suite::ChaChaPolyBlake2s, Suite::AesGcmSha256] {
        let mut bench = Bench::new();
        let (mut initiation, init) = bench.start(suite);
        let pending = bench.responder.read_init(&init).unwrap();
        assert_eq!((pending.device(), pending.intent()), (bench.device.public(), &intent()));
        let (reply, mut gateway) = bench.answer(&init);
        let (mut client, info) = initiation.finish(&reply, &bench.verifier(), NOW).unwrap();
        assert_eq!(info.roster, roster());
        assert_eq!((info.hint, info.node.node.as_str()), ([7; 16], "gw-1"));
        assert_eq!(client.handshake_hash, gateway.handshake_hash);
        assert_eq!((client.own_index, client.peer_index), (gateway.peer_index, gateway.own_index));
        assert_eq!((client.sealing.sealed(), gateway.sealing.sealed()), (0, 1));

        let mut up = seal(&mut client, b"up");
        assert_eq!(gateway.opening.open(&mut up).unwrap().plaintext, b"up");
        let mut down = seal(&mut gateway, b"down");
        assert_eq!(client.opening.open(&mut down).unwrap().plaintext, b"down");
    }
}

#[test]
fn a_device_is_answered_under_a_grant_key_that_it_accepts_and_told_of_newer_keys() {
    let mut bench = Bench::new();
    let new_signer = GrantSigner::generate(&mut bench.entropy).unwrap();
    let claims = bench.responder.certificates[0].verify(&bench.verifier(), NOW).unwrap();
    let old = bench.responder.certificates[0].clone();
    let new = NodeCertificate::issue(&claims, &new_signer);
    bench.responder.set_certificates(vec![new, old]);
    // A device that knows the old key alone, one that knows both, and one that does not say.
    let both = GrantVerifier::new(&[bench.signer.public(), new_signer.public()]);
    for (verifier, holding, works) in [
        (bench.verifier(), Holding::new(1, &bench.verifier()), true),
        (both.clone(), Holding::new(1, &both), true),
        (bench.verifier(), Holding::default(), false),
    ] {
        let (mut initiation, init) = bench.start_with(&AttachIntent { holding, ..intent() });
        let (reply, _) = bench.answer(&init);
        assert_eq!(initiation.finish(&reply, &verifier, NOW).is_ok(), works, "{holding:?}");
    }
    let key_set = |signer| {
        let claims = KeySetClaims {
            serial: 7,
            hybrid: false,
            cluster: vec![bench.cluster.public()],
            grant: vec![new_signer.public()],
        };
        KeySet::issue(&claims, signer)
    };
    let sets = vec![key_set(&new_signer), key_set(&bench.signer)];
    bench.responder.set_key_sets(sets.clone());
    let old = bench.verifier();
    let told = |serial, verifier| bench.responder.key_set_for(&Holding::new(serial, verifier));
    assert_eq!(told(6, &old), Some(sets[1].as_bytes()), "signed by a key that it knows");
    assert_eq!(told(6, &both), Some(sets[0].as_bytes()));
    assert_eq!(told(7, &both), None, "it has this one");
}

#[test]
fn no_reply_is_longer_than_its_trigger_with_the_fullest_content() {
    let mut bench = Bench::new();
    let node = NodeSigner::generate(&mut bench.entropy).unwrap();
    let claims = NodeClaims {
        node: "n".repeat(63).parse().unwrap(),
        incarnation: Incarnation(u64::MAX),
        verifying_key: node.verifying_key(),
        not_after: u64::MAX,
    };
    let certificate = NodeCertificate::issue(&claims, &bench.signer);
    bench.responder = Responder::new(vec![bench.cluster.clone()], certificate, node);
    let (mut initiation, init) = bench.start(Suite::AesGcmSha256);
    let pending = bench.responder.read_init(&init).unwrap();
    let roster = vec!["[2001:db8::1]:1".parse().unwrap(); ROSTER_MAX + 3];
    let mut out = [0; REPLY_LEN_MAX];
    let (len, _) = pending
        .write_reply(&bench.responder, ReceiverIndex(1), [1; 16], &roster, &mut bench.entropy, &mut out)
        .unwrap();
    assert!(len <= INIT_LEN);
    let (_, info) = initiation.finish(&out[..len], &bench.verifier(), NOW).unwrap();
    assert_eq!(info.roster.len(), ROSTER_MAX);
}

#[test]
fn every_damaged_reply_is_refused_and_none_ends_the_initiation() {
    for suite in [Suite::ChaChaPolyBlake2s, Suite::AesGcmSha256] {
        let mut bench = Bench::new();
        let (mut initiation, init) = bench.start(suite);
        let (reply, _) = bench.answer(&init);
        let verifier = bench.verifier();
        for at in 0..reply.len() {
            let mut damaged = reply.clone();
            damaged[at] ^= 0x40;
            assert!(initiation.finish(&damaged, &verifier, NOW).is_err(), "byte {at} is not authenticated");
        }
        for len in 0..reply.len() {
            assert!(initiation.finish(&reply[..len], &verifier, NOW).is_err(), "cut at {len}");
        }
        assert!(initiation.finish(&[reply.clone(), vec![0]].concat(), &verifier, NOW).is_err());
        initiation.finish(&reply, &verifier, NOW).expect("the true reply still counts");
    }
}

#[test]
fn every_damaged_init_is_refused_by_mac_or_by_noise() {
    let mut bench = Bench::new();
    let (_, init) = bench.start(Suite::ChaChaPolyBlake2s);
    for at in 0..INIT_LEN - 32 {
        let mut damaged = init;
        damaged[at] ^= 1;
        assert!(bench.responder.read_init(&damaged).is_err(), "byte {at} is not authenticated");
    }
    for len in 0..INIT_LEN {
        assert_eq!(bench.responder.read_init(&init[..len]).unwrap_err(), HandshakeError::Malformed);
    }
}

#[test]
fn a_stolen_cluster_key_without_a_certificate_yields_nothing_and_ends_nothing() {
    let mut bench = Bench::new();
    let (mut initiation, init) = bench.start(Suite::ChaChaPolyBlake2s);
    let verifier = bench.verifier();

    let own_signer = GrantSigner::generate(&mut bench.entropy).unwrap();
    let thief = responder(&mut bench.entropy, &bench.cluster, &own_signer);
    let honest = std::mem::replace(&mut bench.responder, thief);
    let (forged, _) = bench.answer(&init);
    let error = initiation.finish(&forged, &verifier, NOW).unwrap_err();
    assert_eq!(error, HandshakeError::NodeProof(VerifyError::UnknownKey));

    // The certificate is public: copying a true one does not help without the node's key.
    bench.responder.set_certificates(honest.certificates.clone());
    let (forged, _) = bench.answer(&init);
    let error = initiation.finish(&forged, &verifier, NOW).unwrap_err();
    assert_eq!(error, HandshakeError::NodeProof(VerifyError::Signature));

    bench.responder = honest;
    let (reply, _) = bench.answer(&init);
    let late = initiation.finish(&reply, &verifier, NOW + 60).unwrap_err();
    assert_eq!(late, HandshakeError::NodeProof(VerifyError::Expired));
    initiation.finish(&reply, &verifier, NOW).expect("the honest gateway is still heard");
}

#[test]
fn a_finished_initiation_gives_no_second_pair_of_keys() {
    let mut bench = Bench::new();
    let (mut initiation, init) = bench.start(Suite::ChaChaPolyBlake2s);
    let (reply, _) = bench.answer(&init);
    let (other, _) = bench.answer(&init);
    let verifier = bench.verifier();
    initiation.finish(&reply, &verifier, NOW).unwrap();
    assert_eq!(initiation.finish(&reply, &verifier, NOW).unwrap_err(), HandshakeError::Authentication);
    assert_eq!(initiation.finish(&other, &verifier, NOW).unwrap_err(), HandshakeError::Authentication);
}

#[test]
fn a_replayed_init_makes_keys_that_its_recorder_cannot_confirm() {
    let mut bench = Bench::new();
    let (mut initiation, init) = bench.start(Suite::ChaChaPolyBlake2s);
    let (reply, _) = bench.answer(&init);
    let (mut client, _) = initiation.finish(&reply, &bench.verifier(), NOW).unwrap();
    let (_, mut replayed) = bench.answer(&init);
    assert_ne!(replayed.handshake_hash, client.handshake_hash);
    let mut confirm = seal(&mut client, b"confirm");
    assert_eq!(replayed.opening.open(&mut confirm).unwrap_err(), OpenError::Authentication);
}

#[test]
fn the_node_proof_cannot_come_back_as_a_record() {
    let mut bench = Bench::new();
    let (mut initiation, init) = bench.start(Suite::ChaChaPolyBlake2s);
    let (reply, _) = bench.answer(&init);
    let (mut client, _) = initiation.finish(&reply, &bench.verifier(), NOW).unwrap();
    let mut record = vec![0; 64];
    record[0] = DatagramType::Record as u8;
    record[4..8].copy_from_slice(&client.own_index.0.to_be_bytes());
    assert!(matches!(client.opening.open(&mut record), Err(OpenError::Replay(_))));
}

#[test]
fn a_cluster_key_or_device_key_of_small_order_is_refused() {
    let mut bench = Bench::new();
    let mut init = [0; INIT_LEN];
    let input = InitiationInput {
        device: &bench.device,
        cluster: &ClusterPublic([0; 32]),
        suite: Suite::ChaChaPolyBlake2s,
        intent: &intent(),
        index: ReceiverIndex(1),
        cookie: None,
    };
    let error = Initiation::start(&input, &mut bench.entropy, &mut init).unwrap_err();
    assert_eq!(error, HandshakeError::Authentication);
}

#[test]
fn an_unknown_cluster_key_or_suite_is_named_as_such() {
    let mut bench = Bench::new();
    let (_, mut init) = bench.start(Suite::ChaChaPolyBlake2s);
    init[2] = 9;
    assert_eq!(bench.responder.read_init(&init).unwrap_err(), HandshakeError::UnsupportedSuite);
    init[2] = 1;
    init[4] ^= 1;
    assert_eq!(bench.responder.read_init(&init).unwrap_err(), HandshakeError::UnknownClusterKey);
}

#[test]
fn an_init_turned_into_the_other_suite_fails() {
    let mut bench = Bench::new();
    let (_, mut init) = bench.start(Suite::AesGcmSha256);
    init[2] = Suite::ChaChaPolyBlake2s as u8;
    assert_eq!(bench.responder.read_init(&init).unwrap_err(), HandshakeError::Authentication);
}

#[test]
fn a_refusing_generator_stops_both_sides() {
    let mut bench = Bench::new();
    let (_, init) = bench.start(Suite::ChaChaPolyBlake2s);
    let pending = bench.responder.read_init(&init).unwrap();
    let mut out = [0; REPLY_LEN_MAX];
    let refused = pending.write_reply(
        &bench.responder,
        ReceiverIndex(1),
        [0; 16],
        &[],
        &mut crate::testing::RefusingEntropy,
        &mut out,
    );
    assert_eq!(refused.unwrap_err(), HandshakeError::Entropy(EntropyError::Source));
}
