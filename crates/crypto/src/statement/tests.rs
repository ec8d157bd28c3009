use proptest::prelude::*;

use crate::certificate::{NodeCertificate, NodeClaims, NodeSigner, VerifyError};
use crate::grant::{Grant, GrantClaims};
use crate::ids::{DeviceKey, Epoch, Incarnation, SessionId};
use crate::key_set::{KEYS_MAX, KeySet, KeySetClaims};
use crate::keys::{ClusterPublic, GrantSigner, GrantVerifier};
use crate::testing::SeededEntropy;

const NOW: u64 = 1_000;

fn signer() -> GrantSigner {
    GrantSigner::from_seed(&[1; 32])
}

fn verifier() -> GrantVerifier {
    GrantVerifier::new(&[[2; 32], signer().public()])
}

fn grant_claims() -> GrantClaims {
    GrantClaims {
        handshake_hash: [3; 32],
        session: SessionId::from_bytes([4; 16]),
        device: DeviceKey::from_bytes([5; 32]),
        epoch: Epoch(6),
        node: "gw-1".parse().unwrap(),
        incarnation: Incarnation(7),
        not_after: NOW + 1,
    }
}

fn node_claims() -> NodeClaims {
    NodeClaims {
        node: "gw-1".parse().unwrap(),
        incarnation: Incarnation(7),
        verifying_key: [8; 32],
        not_after: NOW + 1,
    }
}

fn key_set_claims() -> KeySetClaims {
    KeySetClaims {
        serial: 9,
        hybrid: true,
        cluster: vec![ClusterPublic([10; 32]), ClusterPublic([11; 32])],
        grant: vec![[12; 32]],
    }
}

#[test]
fn a_key_set_is_taken_from_an_accepted_signer_once_and_never_again() {
    let key_set = KeySet::issue(&key_set_claims(), &signer());
    assert_eq!(KeySet::parse(key_set.as_bytes()), Ok(key_set.clone()));
    assert_eq!(key_set.open(&verifier(), 8), Ok(key_set_claims()));
    assert_eq!(key_set.open(&verifier(), 9), Err(VerifyError::Expired), "the one that is held");
    assert_eq!(key_set.open(&verifier(), 10), Err(VerifyError::Expired), "an older one");
    let thief = KeySet::issue(&key_set_claims(), &GrantSigner::from_seed(&[9; 32]));
    assert_eq!(thief.open(&verifier(), 8), Err(VerifyError::UnknownKey));
}

#[test]
fn a_key_set_names_one_to_eight_different_keys_of_each_kind() {
    let keys = |count: u8| (0..count).map(|byte| [byte; 32]).collect::<Vec<_>>();
    let set = |grant| KeySet::issue(&KeySetClaims { grant, ..key_set_claims() }, &signer());
    let parsed = |grant| KeySet::parse(set(grant).as_bytes());
    assert!(parsed(keys(KEYS_MAX as u8)).is_ok());
    assert_eq!(parsed(keys(20)).unwrap(), set(keys(KEYS_MAX as u8)), "more are left out");
    assert_eq!(parsed(Vec::new()), Err(VerifyError::Malformed));
    assert_eq!(parsed(vec![[1; 32], [1; 32]]), Err(VerifyError::Malformed));
    let longest = KeySetClaims {
        cluster: keys(8).into_iter().map(ClusterPublic).collect(),
        grant: keys(8),
        ..key_set_claims()
    };
    assert_eq!(KeySet::issue(&longest, &signer()).as_bytes().len(), KeySet::LEN_MAX);
}

#[test]
fn statements_survive_their_encoding() {
    let grant = Grant::issue(&grant_claims(), &signer());
    assert_eq!(Grant::parse(grant.as_bytes()), Ok(grant.clone()));
    assert_eq!(grant.open(&verifier(), NOW), Ok(grant_claims()));
    let certificate = NodeCertificate::issue(&node_claims(), &signer());
    assert_eq!(NodeCertificate::parse(certificate.as_bytes()), Ok(certificate.clone()));
    assert_eq!(certificate.signed_by(), signer().id());
    assert_eq!(certificate.verify(&verifier(), NOW), Ok(node_claims()));
}

#[test]
fn the_longest_name_stays_within_the_stated_length() {
    let node: crate::ids::NodeId = "n".repeat(63).parse().unwrap();
    let grant = Grant::issue(&GrantClaims { node: node.clone(), ..grant_claims() }, &signer());
    let certificate = NodeCertificate::issue(&NodeClaims { node, ..node_claims() }, &signer());
    assert!(grant.as_bytes().len() <= Grant::LEN_MAX);
    assert!(certificate.as_bytes().len() <= NodeCertificate::LEN_MAX);
}

#[test]
fn no_byte_of_a_statement_can_be_changed_added_or_cut() {
    let grant = Grant::issue(&grant_claims(), &signer());
    let certificate = NodeCertificate::issue(&node_claims(), &signer());
    let grant_holds = |bytes: &[u8]| Grant::parse(bytes).and_then(|it| it.open(&verifier(), NOW)).is_ok();
    let certificate_holds =
        |bytes: &[u8]| NodeCertificate::parse(bytes).and_then(|it| it.verify(&verifier(), NOW)).is_ok();
    let key_set = KeySet::issue(&key_set_claims(), &signer());
    let key_set_holds = |bytes: &[u8]| KeySet::parse(bytes).and_then(|it| it.open(&verifier(), 0)).is_ok();
    for (bytes, holds) in [
        (grant.as_bytes(), &grant_holds as &dyn Fn(&[u8]) -> bool),
        (certificate.as_bytes(), &certificate_holds),
        (key_set.as_bytes(), &key_set_holds),
    ] {
        assert!(holds(bytes));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 1 << bit;
                assert!(!holds(&damaged), "bit {bit} of byte {at} is not signed");
            }
        }
        for len in 0..bytes.len() {
            assert!(!holds(&bytes[..len]));
        }
        assert!(!holds(&[bytes, &[0]].concat()));
    }
}

#[test]
fn a_grant_is_refused_where_any_claim_differs_from_what_the_client_saw() {
    let grant = Grant::issue(&grant_claims(), &signer());
    let check = |expected: GrantClaims| grant.verify(&verifier(), &expected, NOW);
    assert_eq!(check(grant_claims()), Ok(()));
    assert_eq!(check(GrantClaims { not_after: 0, ..grant_claims() }), Ok(()));
    for (expected, field) in [
        (GrantClaims { handshake_hash: [0; 32], ..grant_claims() }, "handshake"),
        (GrantClaims { session: SessionId::from_bytes([0; 16]), ..grant_claims() }, "session"),
        (GrantClaims { device: DeviceKey::from_bytes([0; 32]), ..grant_claims() }, "device"),
        (GrantClaims { epoch: Epoch(5), ..grant_claims() }, "epoch"),
        (GrantClaims { node: "gw-2".parse().unwrap(), ..grant_claims() }, "node"),
        (GrantClaims { incarnation: Incarnation(8), ..grant_claims() }, "incarnation"),
    ] {
        assert_eq!(check(expected), Err(VerifyError::Mismatch(field)));
    }
}

#[test]
fn a_statement_ends_at_its_last_second() {
    let grant = Grant::issue(&grant_claims(), &signer());
    let certificate = NodeCertificate::issue(&node_claims(), &signer());
    assert!(grant.open(&verifier(), NOW).is_ok() && certificate.verify(&verifier(), NOW).is_ok());
    assert_eq!(grant.open(&verifier(), NOW + 1), Err(VerifyError::Expired));
    assert_eq!(grant.verify(&verifier(), &grant_claims(), NOW + 1), Err(VerifyError::Expired));
    assert_eq!(certificate.verify(&verifier(), NOW + 1), Err(VerifyError::Expired));
}

#[test]
fn a_key_that_is_not_held_is_unknown_and_one_of_the_same_name_is_not_enough() {
    let grant = Grant::issue(&grant_claims(), &signer());
    assert_eq!(grant.open(&GrantVerifier::new(&[[2; 32]]), NOW), Err(VerifyError::UnknownKey));
    let thief = GrantSigner::from_seed(&[9; 32]);
    let mut forged = Grant::issue(&grant_claims(), &thief).as_bytes().to_vec();
    forged[2..6].copy_from_slice(&signer().id().0);
    let forged = Grant::parse(&forged).unwrap();
    assert_eq!(forged.open(&verifier(), NOW), Err(VerifyError::Signature));
}

#[test]
fn a_grant_is_not_a_certificate_nor_the_other_way_round() {
    let grant = Grant::issue(&grant_claims(), &signer());
    let certificate = NodeCertificate::issue(&node_claims(), &signer());
    assert_eq!(NodeCertificate::parse(grant.as_bytes()), Err(VerifyError::Malformed));
    assert_eq!(Grant::parse(certificate.as_bytes()), Err(VerifyError::Malformed));
    // The kind alone decides, even where the fields would fit.
    let fields = |bytes: &[u8]| bytes[6..bytes.len() - 64].to_vec();
    let as_certificate = super::sign(super::Kind::NodeCertificate, &fields(grant.as_bytes()), &signer());
    assert_eq!(Grant::parse(&as_certificate), Err(VerifyError::Malformed));
    let as_grant = super::sign(super::Kind::Grant, &fields(certificate.as_bytes()), &signer());
    assert_eq!(NodeCertificate::parse(&as_grant), Err(VerifyError::Malformed));
    let key_set = KeySet::issue(&key_set_claims(), &signer());
    for kind in [super::Kind::Grant, super::Kind::NodeCertificate] {
        let other = super::sign(kind, &fields(key_set.as_bytes()), &signer());
        assert_eq!(KeySet::parse(&other), Err(VerifyError::Malformed));
    }
}

#[test]
fn a_node_proof_holds_for_one_handshake_and_one_node() {
    let mut entropy = SeededEntropy::new(1);
    let (node, other) =
        (NodeSigner::generate(&mut entropy).unwrap(), NodeSigner::generate(&mut entropy).unwrap());
    let claims = NodeClaims { verifying_key: node.verifying_key(), ..node_claims() };
    assert!(claims.proves(&[1; 32], &node.sign_handshake(&[1; 32])));
    assert!(!claims.proves(&[2; 32], &node.sign_handshake(&[1; 32])));
    assert!(!claims.proves(&[1; 32], &other.sign_handshake(&[1; 32])));
}

#[test]
fn debug_output_of_secrets_shows_public_halves_at_most() {
    let device = crate::keys::DeviceSecret::from_bytes([0xd1; 32]);
    let cluster = crate::keys::ClusterSecret::from_bytes([0xd1; 32]);
    let grant = GrantSigner::from_seed(&[0xd1; 32]);
    let shown = format!("{device:?} {cluster:?} {grant:?}").to_lowercase();
    assert!(!shown.contains("d1d1") && !shown.contains("209, 209"), "{shown}");
    assert!(shown.contains(&device.public().to_string()));
}

#[test]
fn keys_come_back_from_what_they_expose() {
    let device = crate::keys::DeviceSecret::from_bytes([0xd1; 32]);
    assert_eq!(crate::keys::DeviceSecret::from_bytes(*device.expose()).public(), device.public());
    let grant = GrantSigner::from_seed(&[0xd1; 32]);
    assert_eq!(GrantSigner::from_seed(grant.expose_seed()).public(), grant.public());
    let cluster = crate::keys::ClusterSecret::from_bytes([0xd1; 32]);
    assert_eq!(cluster.clone().public(), cluster.public());
    assert_eq!(cluster.public().id(), cluster.public().id());
}

proptest! {
    #[test]
    fn no_bytes_panic_or_verify(bytes in prop::collection::vec(any::<u8>(), 0..700), kind in 1u8..4) {
        let mut bytes = bytes;
        if bytes.len() > 6 {
            bytes[..2].copy_from_slice(&[1, kind]);
            bytes[2..6].copy_from_slice(&signer().id().0);
        }
        prop_assert!(Grant::parse(&bytes).and_then(|it| it.open(&verifier(), NOW)).is_err());
        prop_assert!(KeySet::parse(&bytes).and_then(|it| it.open(&verifier(), 0)).is_err());
        prop_assert!(NodeCertificate::parse(&bytes).and_then(|it| it.verify(&verifier(), NOW)).is_err());
    }
}
