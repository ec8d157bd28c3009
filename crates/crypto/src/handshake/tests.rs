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

    fn start(&mut self, suite: Suite) -> (Initiation, Vec<u8>) {
        self.start_as(suite, &intent())
    }

    fn start_with(&mut self, intent: &AttachIntent) -> (Initiation, Vec<u8>) {
        self.start_as(Suite::ChaChaPolyBlake2s, intent)
    }

    fn start_as(&mut self, suite: Suite, intent: &AttachIntent) -> (Initiation, Vec<u8>) {
        let mut init = vec![0; suite.init_len()];
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
    for suite in Suite::ALL {
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
    for (suite, addresses) in [(Suite::AesGcmSha256, ROSTER_MAX), (Suite::HybridAesGcmSha256, 0)] {
        let (mut initiation, init) = bench.start(suite);
        let pending = bench.responder.read_init(&init).unwrap();
        let roster = vec!["[2001:db8::1]:1".parse().unwrap(); ROSTER_MAX + 3];
        let mut out = [0; REPLY_LEN_MAX];
        let (len, _) = pending
            .write_reply(&bench.responder, ReceiverIndex(1), [1; 16], &roster, &mut bench.entropy, &mut out)
            .unwrap();
        assert!(len <= init.len());
        let (_, info) = initiation.finish(&out[..len], &bench.verifier(), NOW).unwrap();
        assert_eq!(info.roster.len(), addresses);
    }
}

#[test]
fn a_hybrid_reply_names_three_gateways_beside_a_name_of_ten_characters() {
    assert_eq!(roster_room(Suite::HybridChaChaPolyBlake2s, NodeCertificate::LEN_MAX - 53), 3);
}

#[test]
fn a_hybrid_message_with_an_impossible_encapsulation_key_is_refused_after_it_was_read() {
    let mut bench = Bench::new();
    let (_, init) = bench.start(Suite::HybridChaChaPolyBlake2s);
    let mut pending = bench.responder.read_init(&init).unwrap();
    pending.kem.as_mut().unwrap().fill(0xff);
    let mut out = [0; REPLY_LEN_MAX];
    let refused =
        pending.write_reply(&bench.responder, ReceiverIndex(1), [0; 16], &[], &mut bench.entropy, &mut out);
    assert_eq!(refused.unwrap_err(), HandshakeError::Malformed);
}

#[test]
fn the_keys_of_a_hybrid_session_need_the_secret_of_ml_kem() {
    // A gateway that sees the client's encapsulation key differently gives a reply that the client refuses.
    let mut bench = Bench::new();
    let (mut initiation, init) = bench.start(Suite::HybridAesGcmSha256);
    let other = KemSecret::generate(&mut bench.entropy).unwrap().public();
    let mut pending = bench.responder.read_init(&init).unwrap();
    **pending.kem.as_mut().unwrap() = other;
    let mut out = [0; REPLY_LEN_MAX];
    let (len, _) = pending
        .write_reply(&bench.responder, ReceiverIndex(1), [0; 16], &[], &mut bench.entropy, &mut out)
        .unwrap();
    let refused = initiation.finish(&out[..len], &bench.verifier(), NOW).unwrap_err();
    assert_eq!(refused, HandshakeError::Authentication);
    let (reply, _) = bench.answer(&init);
    initiation.finish(&reply, &bench.verifier(), NOW).expect("the true reply still counts");
}

#[test]
fn a_message_has_exactly_the_length_of_its_suite() {
    let mut bench = Bench::new();
    for suite in Suite::ALL {
        let (_, mut init) = bench.start(suite);
        let input = InitiationInput {
            device: &bench.device,
            cluster: &bench.cluster.public(),
            suite,
            intent: &intent(),
            index: ReceiverIndex(1),
            cookie: None,
        };
        let mut short = vec![0; init.len() - 1];
        let refused = Initiation::start(&input, &mut bench.entropy, &mut short).unwrap_err();
        assert_eq!(refused, HandshakeError::Malformed);
        let other = suite.with_hybrid(!suite.is_hybrid());
        init[2] = other as u8;
        assert_eq!(bench.responder.read_init(&init).unwrap_err(), HandshakeError::Malformed);
    }
}

#[test]
fn a_certificate_that_was_good_is_not_computed_again_and_ends_all_the_same() {
    let mut bench = Bench::new();
    let verifier = bench.verifier();
    for (now, good) in [(NOW, true), (NOW, true), (NOW + 60, false), (NOW, true)] {
        let (mut initiation, init) = bench.start(Suite::ChaChaPolyBlake2s);
        let (reply, _) = bench.answer(&init);
        assert_eq!(initiation.finish(&reply, &verifier, now).is_ok(), good);
    }
    // Other keys know nothing of it, and a damaged signature is another statement.
    let certificate = bench.responder.certificates[0].clone();
    let own = GrantSigner::generate(&mut bench.entropy).unwrap();
    let stranger = GrantVerifier::new(&[own.public()]);
    assert_eq!(certificate.verify(&stranger, NOW).unwrap_err(), VerifyError::UnknownKey);
    for at in 0..certificate.as_bytes().len() {
        let mut damaged = certificate.as_bytes().to_vec();
        damaged[at] ^= 1;
        for time in ["first", "second"] {
            let refused = NodeCertificate::parse(&damaged).and_then(|damaged| damaged.verify(&verifier, NOW));
            assert!(refused.is_err(), "byte {at}, the {time} time");
        }
    }
}

#[test]
fn every_damaged_reply_is_refused_and_none_ends_the_initiation() {
    for suite in Suite::ALL {
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
    for suite in [Suite::ChaChaPolyBlake2s, Suite::HybridAesGcmSha256] {
        let (_, init) = bench.start(suite);
        for at in 0..init.len() - MACS_LEN {
            let mut damaged = init.clone();
            damaged[at] ^= 1;
            assert!(bench.responder.read_init(&damaged).is_err(), "byte {at} is not authenticated");
        }
        for len in 0..init.len() {
            assert!(bench.responder.read_init(&init[..len]).is_err(), "cut at {len}");
        }
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
    // Padded or cut to the other length, a message is not of the other kind either.
    for suite in Suite::ALL {
        for other in Suite::ALL.into_iter().filter(|other| *other != suite) {
            let (_, mut init) = bench.start(suite);
            init.resize(other.init_len(), 0);
            init[2] = other as u8;
            assert_eq!(bench.responder.read_init(&init).unwrap_err(), HandshakeError::Authentication);
        }
    }
}

#[test]
fn a_refusing_generator_stops_both_sides() {
    let mut bench = Bench::new();
    for suite in Suite::ALL {
        let (_, init) = bench.start(suite);
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
}
