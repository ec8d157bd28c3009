//! Cluster keys and device keys that are replaced: the overlap of old and new, and what a leak costs.

use std::time::Duration;

use jump_crypto::grant::Grant;
use jump_crypto::key_set::KeySet;
use jump_crypto::keys::{DeviceSecret, GrantVerifier};
use jump_crypto::rotation;
use jump_proto::client_v1::enrolment_service_client::EnrolmentServiceClient;
use jump_proto::client_v1::{RotateKeyRequest, RotationKeys, rotate_key_request, rotate_key_response};
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::device_service_client::DeviceServiceClient;
use jump_proto::control_v1::key_service_client::KeyServiceClient;
use tonic::Code;

use super::{DEVICE, two_gateways};
use crate::cluster::{Gateway, Pki, Server, enrol, registration};
use crate::support::Harness;

/// The ids of the keys of one purpose in one state.
async fn keys_in(
    pki: &Pki,
    server: &Server,
    purpose: wire::KeyPurpose,
    state: wire::KeyState,
) -> Vec<String> {
    let mut client = KeyServiceClient::new(server.channel(pki, Some("reader-eye")).await);
    let keys = client.list_keys(wire::ListKeysRequest {}).await.unwrap().into_inner().keys;
    let wanted = keys.iter().filter(|key| key.purpose() == purpose && key.state() == state);
    wanted.map(|key| key.key_id.clone()).collect()
}

fn grant_key_of(encoded: &[u8]) -> String {
    encoded[2..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn renewed(gateway: &Gateway) -> wire::RenewResponse {
    let request = wire::RenewRequest {
        node_id: gateway.name.clone(),
        incarnation: gateway.incarnation,
        ..wire::RenewRequest::default()
    };
    gateway.client.clone().renew(request).await.unwrap().into_inner()
}

pub(crate) async fn a_rotated_key_overlaps_with_its_successor_and_then_retires(harness: Harness) {
    use wire::{KeyPurpose, KeyState};
    let settings = [("lease.ttl", "3s"), ("keys.announce", "3s"), ("keys.overlap", "3s")];
    let pki = Pki::new();
    let server = Server::start(&pki, harness.open().await, &settings).await;
    let gw1 = Gateway::register(&pki, &server, "gw1").await;
    enrol(&pki, &server, DEVICE).await;
    let mut operator = KeyServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let mut reader = KeyServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    let old = keys_in(&pki, &server, KeyPurpose::Grant, KeyState::Current).await;
    let rotate = wire::RotateKeyRequest { purpose: KeyPurpose::Grant.into(), ..Default::default() };
    assert_eq!(reader.rotate_key(rotate.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    operator.rotate_key(rotate.clone()).await.unwrap();
    assert_eq!(operator.rotate_key(rotate).await.unwrap_err().code(), Code::FailedPrecondition);
    let new = keys_in(&pki, &server, KeyPurpose::Grant, KeyState::Next).await;
    // The gateway hears of the announced key, still under the old one.
    let mut serial = 0;
    let mut heard = Vec::new();
    let mut signers = Vec::new();
    for _ in 0..200 {
        let answer = renewed(&gw1).await;
        for key_set in &answer.key_sets {
            let parsed = KeySet::parse(key_set).unwrap();
            assert!(parsed.serial() >= serial, "a key set with an older serial");
            serial = parsed.serial();
            heard.push(grant_key_of(key_set));
        }
        if !answer.node_certificates.is_empty() {
            signers = answer.node_certificates.iter().map(|bytes| grant_key_of(bytes)).collect();
        }
        if !signers.is_empty() && signers == new {
            break;
        }
        // Not a synchronisation: the next renewal, as a gateway makes it.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(signers, new, "after the overlap only the new key signs");
    assert!(heard.starts_with(&old), "the new key was announced under the old one: {heard:?}");
    assert!(heard.ends_with(&new));
    assert!(heard.windows(2).any(|pair| pair[0] == new[0] && pair[1] == old[0]), "an overlap: {heard:?}");
    assert_eq!(keys_in(&pki, &server, KeyPurpose::Grant, KeyState::Retired).await, old);
    assert_eq!(keys_in(&pki, &server, KeyPurpose::Grant, KeyState::Current).await, new);
    // A retired key does not sign, whatever the device says it accepts.
    let id: [u8; 4] = std::array::from_fn(|at| u8::from_str_radix(&old[0][2 * at..2 * at + 2], 16).unwrap());
    let request =
        wire::AttachRequest { grant_key_ids: vec![id.to_vec()], ..gw1.attach_request(DEVICE, "", 1) };
    assert_eq!(grant_key_of(&gw1.accepted(request).await.grant), new[0]);
}

pub(crate) async fn a_key_that_leaked_is_refused_at_once(harness: Harness) {
    use wire::{KeyPurpose, KeyState};
    let (pki, server, gw1, _) = two_gateways(&harness, &[]).await;
    let mut operator = KeyServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let purpose = KeyPurpose::Cluster;
    let old = keys_in(&pki, &server, purpose, KeyState::Current).await;
    let retire = |id: &str| wire::RetireKeyRequest {
        purpose: purpose.into(),
        key_id: id.to_owned(),
        ..Default::default()
    };
    assert_eq!(operator.retire_key(retire(&old[0])).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(operator.retire_key(retire("00000000")).await.unwrap_err().code(), Code::NotFound);
    let leaked = wire::RotateKeyRequest { purpose: purpose.into(), leaked: true, ..Default::default() };
    operator.rotate_key(leaked).await.unwrap();
    assert_eq!(keys_in(&pki, &server, purpose, KeyState::Retired).await, old);
    let current = keys_in(&pki, &server, purpose, KeyState::Current).await;
    assert_eq!(current.len(), 1);
    // Gateways answer under the new key alone, from their next renewal on.
    let keys = loop {
        let answer = renewed(&gw1).await;
        if !answer.cluster_keys.is_empty() {
            break answer.cluster_keys;
        }
        tokio::task::yield_now().await;
    };
    let ids: Vec<String> = keys
        .iter()
        .map(|key| {
            let secret = jump_crypto::keys::ClusterSecret::from_bytes(key.clone().try_into().unwrap());
            secret.public().id().0.iter().map(|byte| format!("{byte:02x}")).collect()
        })
        .collect();
    assert_eq!(ids, current);
}

/// Asks control to replace `old` by `new`; the answer to the challenge is made with `prover` in place of `old`.
async fn rotated(
    pki: &Pki,
    server: &Server,
    old: &DeviceSecret,
    new: &DeviceSecret,
    prover: &DeviceSecret,
) -> Result<jump_proto::client_v1::Rotated, tonic::Status> {
    let mut client = EnrolmentServiceClient::new(server.channel(pki, None).await);
    let (steps, stream) = tokio::sync::mpsc::channel(2);
    let step = |step| RotateKeyRequest { step: Some(step) };
    let keys = RotationKeys { old: old.public().as_bytes().to_vec(), new: new.public().as_bytes().to_vec() };
    steps.send(step(rotate_key_request::Step::Keys(keys))).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut answers = client.rotate_key(stream).await?.into_inner();
    let challenge = match answers.message().await?.unwrap().step.unwrap() {
        rotate_key_response::Step::Challenge(challenge) => challenge,
        rotate_key_response::Step::Rotated(_) => panic!("rotated without a proof"),
    };
    let proof = rotation::answer(prover, new, &challenge.try_into().unwrap()).unwrap();
    steps.send(step(rotate_key_request::Step::Answer(proof.to_vec()))).await.unwrap();
    match answers.message().await?.unwrap().step.unwrap() {
        rotate_key_response::Step::Rotated(rotated) => Ok(rotated),
        rotate_key_response::Step::Challenge(_) => panic!("a second challenge"),
    }
}

fn device(byte: u8) -> DeviceSecret {
    DeviceSecret::from_bytes([byte; 32])
}

fn public(byte: u8) -> [u8; 32] {
    *device(byte).public().as_bytes()
}

pub(crate) async fn a_device_that_rotates_its_key_keeps_its_sessions(harness: Harness) {
    let (pki, server, gw1, gw2) = two_gateways(&harness, &[("keys.device_overlap", "1s")]).await;
    enrol(&pki, &server, public(1)).await;
    let born = gw1.accepted(gw1.attach_request(public(1), "", 1)).await;
    rotated(&pki, &server, &device(1), &device(2), &device(1)).await.unwrap();
    // The new key goes on with the session; the grant names the key that made the handshake.
    let release = wire::ReleaseRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        session_id: born.session_id.clone(),
        epoch: 1,
        reason: "DRAINED".to_owned(),
        terminate: false,
        switch_ages_ms: Vec::new(),
    };
    gw1.client.clone().release(release).await.unwrap();
    let moved = gw2.accepted(gw2.attach_request(public(2), &born.session_id, 2)).await;
    assert_eq!((moved.epoch, &moved.inner_addresses), (2, &born.inner_addresses));
    assert_eq!(Grant::parse(&moved.grant).unwrap().as_bytes(), moved.grant);
    let mut client = gw1.client.clone();
    let keys =
        client.register(wire::RegisterRequest { reaped_incarnation: gw1.incarnation, ..registration("gw1") });
    let keys = keys.await.unwrap().into_inner();
    let verifier = GrantVerifier::new(&[keys.grant_keys[0].clone().try_into().unwrap()]);
    let claims = Grant::parse(&moved.grant).unwrap().open(&verifier, 1).unwrap();
    assert_eq!(claims.device.as_bytes(), &public(2));
    // A second rotation goes on from the new key, not from the first.
    let superseded = rotated(&pki, &server, &device(1), &device(3), &device(1)).await.unwrap_err();
    assert_eq!(superseded.code(), Code::FailedPrecondition, "{superseded}");
    rotated(&pki, &server, &device(2), &device(3), &device(2)).await.unwrap();
    // The first key's overlap ended with the second rotation, the second key's ends by time.
    let refused = gw2.rejected(gw2.attach_request(public(1), &born.session_id, 3)).await;
    assert_eq!(refused.reason, "KEY_EXPIRED");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = gw2.rejected(gw2.attach_request(public(2), &born.session_id, 4)).await;
    assert_eq!(refused.reason, "KEY_EXPIRED");
    // Any of its keys names the device.
    let mut devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let name = device(2).public().to_string();
    let revoke = wire::RevokeDeviceRequest { device_key: name, ..Default::default() };
    let answer = devices.revoke_device(revoke).await.unwrap().into_inner();
    assert_eq!(answer.terminated_sessions, 1);
    assert_eq!(answer.device.unwrap().current_key, device(3).public().to_string());
    let refused = gw2.rejected(gw2.attach_request(public(3), "", 1)).await;
    assert_eq!(refused.reason, "KEY_REVOKED");
}

pub(crate) async fn a_rotation_needs_both_keys_and_is_the_same_when_asked_again(harness: Harness) {
    let (pki, server, _, _) = two_gateways(&harness, &[]).await;
    enrol(&pki, &server, public(1)).await;
    enrol(&pki, &server, public(9)).await;
    let refused = |outcome: Result<_, tonic::Status>| outcome.map(|_| ()).unwrap_err().code();
    // Somebody who knows the device's public key and not the private one.
    let forged = rotated(&pki, &server, &device(1), &device(2), &device(7)).await;
    assert_eq!(refused(forged), Code::PermissionDenied);
    let unknown = rotated(&pki, &server, &device(5), &device(6), &device(5)).await;
    assert_eq!(refused(unknown), Code::NotFound);
    let taken = rotated(&pki, &server, &device(1), &device(9), &device(1)).await;
    assert_eq!(refused(taken), Code::AlreadyExists);
    for _ in 0..2 {
        let rotated = rotated(&pki, &server, &device(1), &device(2), &device(1)).await.unwrap();
        assert_eq!(rotated.profile.unwrap().cluster_keys.len(), 1);
    }
    // A deadline on the present key is met by rotating.
    let mut devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let require = wire::RequireRotationRequest {
        device_key: device(1).public().to_string(),
        within: Some(Duration::from_secs(60).try_into().unwrap()),
        ..Default::default()
    };
    let due = devices.require_rotation(require).await.unwrap().into_inner().device.unwrap();
    assert!(due.rotate_by.is_some());
    rotated(&pki, &server, &device(2), &device(3), &device(2)).await.unwrap();
    let list = devices.list_devices(wire::ListDevicesRequest::default()).await.unwrap().into_inner().devices;
    let now = list.iter().find(|listed| listed.current_key == device(3).public().to_string()).unwrap();
    assert!(now.rotate_by.is_none());
    assert_eq!(now.device_key, device(1).public().to_string(), "the device keeps its first name");
}
