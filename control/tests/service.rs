//! The control plane as its callers see it, over both stores.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use jump_control::identity::Role;
use jump_control::layout;
use jump_control::store::Event;
use jump_crypto::grant::Grant;
use jump_crypto::keys::GrantVerifier;
use jump_proto::client_v1::EnrolRequest;
use jump_proto::client_v1::enrolment_service_client::EnrolmentServiceClient;
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::attach_response::Outcome;
use jump_proto::control_v1::device_service_client::DeviceServiceClient;
use jump_proto::control_v1::gateway_service_client::GatewayServiceClient;
use jump_proto::control_v1::node_service_client::NodeServiceClient;
use jump_proto::control_v1::ownership_service_client::OwnershipServiceClient;
use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_proto::token::EnrolmentToken;
use tonic::{Code, Response};
use tonic_types::StatusExt;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "service/connections.rs"]
mod connections;
#[path = "service/correlation.rs"]
mod correlation;
#[path = "service/keys.rs"]
mod keys;
#[path = "service/policy.rs"]
mod policy;
#[path = "service/rebalance.rs"]
mod rebalance;
#[path = "service/roles.rs"]
mod roles;
mod support;

use cluster::{Gateway, Pki, Server, enrol, registration};
use correlation::every_answer_about_a_session_names_its_correlation_id;
use futures::StreamExt as _;
use keys::{
    a_device_that_rotates_its_key_keeps_its_sessions, a_key_that_leaked_is_refused_at_once,
    a_rotated_key_overlaps_with_its_successor_and_then_retires,
    a_rotation_needs_both_keys_and_is_the_same_when_asked_again,
};
use policy::{
    a_devices_policy_binds_its_live_sessions_and_every_later_attach, a_token_bounds_the_device_that_it_enrols,
};
use rebalance::two_replicas_together_order_just_what_evens_out_the_gateways;
use support::Harness;

/// Runs each claim once per store.
macro_rules! suite {
    ($($claim:ident;)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $claim() { super::$claim(super::Harness::embedded()).await })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $claim() { super::$claim(super::Harness::etcd()).await })*
        }
    };
}

suite! {
    a_new_session_has_addresses_a_verifiable_grant_and_one_owner;
    a_retry_of_the_same_attempt_gets_the_same_session_at_another_replica;
    a_live_owner_is_asked_to_stop_and_its_acknowledgement_commits_the_move;
    a_dead_owner_is_taken_over_at_once_and_the_session_keeps_its_addresses;
    a_live_owner_that_never_stops_makes_the_attach_wait_and_be_rejected_until_it_renews_with_an_acknowledgement;
    of_a_thousand_racing_attaches_exactly_one_is_accepted_per_epoch;
    a_gateway_speaks_only_for_itself_and_readers_change_nothing;
    a_token_enrols_one_device_once_and_the_same_device_again;
    a_renewal_says_how_many_claims_a_gateway_may_have_under_way;
    a_token_that_is_asked_for_again_is_the_same_and_its_request_serves_for_no_other;
    a_revoked_device_loses_its_sessions_and_cannot_attach;
    a_rotated_key_overlaps_with_its_successor_and_then_retires;
    a_key_that_leaked_is_refused_at_once;
    a_device_that_rotates_its_key_keeps_its_sessions;
    a_rotation_needs_both_keys_and_is_the_same_when_asked_again;
    a_second_run_of_a_node_is_refused_until_the_first_is_gone_or_reaped;
    node_numbers_are_not_given_again_soon;
    inner_addresses_are_never_shared_and_rest_before_they_are_given_again;
    a_bindings_watch_starts_with_a_snapshot_and_resumes_by_revision;
    an_operator_can_drain_a_node_and_end_a_session;
    a_gateway_that_is_ending_takes_nothing_new_and_is_left_free_of_charge;
    an_operator_orders_a_session_to_move_and_its_owner_hears_of_it;
    the_ownership_watch_tells_every_change_of_owner;
    a_session_whose_owner_died_is_released_and_ends_after_its_recovery_window;
    the_addresses_of_an_ended_session_leave_the_store_after_their_rest;
    a_devices_policy_binds_its_live_sessions_and_every_later_attach;
    a_token_bounds_the_device_that_it_enrols;
    two_replicas_together_order_just_what_evens_out_the_gateways;
    every_answer_about_a_session_names_its_correlation_id;
}

const DEVICE: [u8; 32] = [0xd1; 32];

async fn two_gateways(harness: &Harness, settings: &[(&str, &str)]) -> (Pki, Server, Gateway, Gateway) {
    let pki = Pki::new();
    let server = Server::start(&pki, harness.open().await, settings).await;
    let first = Gateway::register(&pki, &server, "gw1").await;
    let second = Gateway::register(&pki, &server, "gw2").await;
    first.keep_alive();
    second.keep_alive();
    enrol(&pki, &server, DEVICE).await;
    (pki, server, first, second)
}

async fn ownership(pki: &Pki, server: &Server, session: &str) -> wire::Ownership {
    let mut client = OwnershipServiceClient::new(server.channel(pki, Some("reader-eye")).await);
    let request = wire::GetOwnershipRequest { session_id: session.to_owned() };
    client.get_ownership(request).await.unwrap().into_inner().ownership.unwrap()
}

fn owner(ownership: &wire::Ownership) -> Option<(String, u64)> {
    ownership.owner.clone().map(|owner| (owner.node_id, ownership.epoch))
}

async fn a_new_session_has_addresses_a_verifiable_grant_and_one_owner(harness: Harness) {
    let (pki, server, gw1, _) =
        two_gateways(&harness, &[("dns", "10.77.0.1"), ("routes", "192.168.0.0/16")]).await;
    let mut client = gw1.client.clone();
    let accepted = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    assert_eq!(accepted.epoch, 1);
    assert_eq!(accepted.inner_addresses.len(), 2);
    assert_eq!(accepted.routes, ["10.77.0.0/16", "fd00:77::/64", "192.168.0.0/16"]);
    assert_eq!(accepted.mtu, 1280);

    let mut again = registration("gw9");
    pki.issue(Role::Gateway, "gw9");
    again.node_id = "gw9".to_owned();
    let mut gw9 = GatewayServiceClient::new(server.channel(&pki, Some("gateway-gw9")).await);
    let keys = gw9.register(again).await.unwrap().into_inner();
    assert_eq!((keys.cluster_keys.len(), keys.grant_keys.len()), (1, 1));
    assert_eq!(keys.pools, ["10.77.0.0/16", "fd00:77::/64"]);
    let verifier = GrantVerifier::new(&[keys.grant_keys[0].clone().try_into().unwrap()]);
    let claims = Grant::parse(&accepted.grant).unwrap().open(&verifier, 1).unwrap();
    assert_eq!(claims.handshake_hash, [7; 32]);
    assert_eq!((claims.session.to_string(), claims.epoch.0), (accepted.session_id.clone(), 1));
    assert_eq!((claims.node.as_str(), claims.incarnation.0), ("gw1", gw1.incarnation));

    let seen = ownership(&pki, &server, &accepted.session_id).await;
    assert_eq!(owner(&seen), Some(("gw1".to_owned(), 1)));
    assert_eq!(seen.lease_state(), wire::LeaseState::Held);
    assert_eq!(seen.inner_addresses, accepted.inner_addresses);

    let mut sessions = SessionServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    let listed = sessions.list_sessions(wire::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sessions.len(), 1);
    assert_eq!(listed.sessions[0].device_name, "device 209");

    let request = wire::ReleaseRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        session_id: accepted.session_id.clone(),
        epoch: 1,
        reason: "CLIENT_CLOSED".to_owned(),
        terminate: true,
        switch_ages_ms: Vec::new(),
    };
    client.release(request).await.unwrap();
    let seen = ownership(&pki, &server, &accepted.session_id).await;
    assert_eq!((owner(&seen), seen.epoch), (None, 1));
    let ended = gw1.rejected(gw1.attach_request(DEVICE, &accepted.session_id, 2)).await;
    assert_eq!((ended.reason.as_str(), ended.current_epoch), ("SESSION_TERMINATED", 1));
    server.stop().await;
}

async fn a_retry_of_the_same_attempt_gets_the_same_session_at_another_replica(harness: Harness) {
    let pki = Pki::new();
    let store = harness.open().await;
    let one = Server::start(&pki, store.clone(), &[]).await;
    let two = Server::start(&pki, store, &[]).await;
    let gw1 = Gateway::register(&pki, &one, "gw1").await;
    enrol(&pki, &one, DEVICE).await;
    let request = gw1.attach_request(DEVICE, "", 1);
    let first = gw1.accepted(request.clone()).await;
    let elsewhere = Gateway {
        client: GatewayServiceClient::new(two.channel(&pki, Some("gateway-gw1")).await),
        ..gw1.clone()
    };
    let again = elsewhere.accepted(request).await;
    assert_eq!((&first.session_id, first.epoch), (&again.session_id, again.epoch));
    assert_eq!(first.inner_addresses, again.inner_addresses);
    assert_eq!(first.correlation_id, again.correlation_id);
    // Its sequence number is used up for every other attempt.
    let stale = gw1.rejected(gw1.attach_request(DEVICE, &first.session_id, 1)).await;
    assert_eq!((stale.reason.as_str(), stale.current_attach_seq), ("STALE_ATTEMPT", 1));
}

async fn a_live_owner_is_asked_to_stop_and_its_acknowledgement_commits_the_move(harness: Harness) {
    let (pki, server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    gw1.obey_fences().await;
    let moved = gw2.accepted(gw2.attach_request(DEVICE, &born.session_id, 2)).await;
    assert_eq!((moved.session_id, moved.epoch), (born.session_id.clone(), 2));
    assert_eq!(moved.inner_addresses, born.inner_addresses);
    let seen = ownership(&pki, &server, &born.session_id).await;
    assert_eq!(owner(&seen), Some(("gw2".to_owned(), 2)));
    assert_eq!(seen.history.len(), 2);
}

async fn a_dead_owner_is_taken_over_at_once_and_the_session_keeps_its_addresses(harness: Harness) {
    let (_pki, _server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let dead = wire::DeregisterRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        reason: "NODE_LOST".to_owned(),
    };
    gw1.client.clone().deregister(dead.clone()).await.unwrap();
    gw1.client.clone().deregister(dead).await.unwrap();
    let moved = gw2.accepted(gw2.attach_request(DEVICE, &born.session_id, 2)).await;
    assert_eq!((moved.epoch, moved.inner_addresses), (2, born.inner_addresses));
    // The dead run can do nothing any more.
    let refused = gw1.rejected(gw1.attach_request(DEVICE, &born.session_id, 3)).await;
    assert_eq!(refused.reason, "NODE_NOT_REGISTERED");
    let renewal = wire::RenewRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        ..wire::RenewRequest::default()
    };
    let status = gw1.client.clone().renew(renewal).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.get_details_error_info().unwrap().reason, "NODE_NOT_REGISTERED");
}

async fn a_live_owner_that_never_stops_makes_the_attach_wait_and_be_rejected_until_it_renews_with_an_acknowledgement(
    harness: Harness,
) {
    let (_pki, _server, gw1, gw2) = two_gateways(&harness, &[("handover_wait", "300ms")]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let claim = gw2.attach_request(DEVICE, &born.session_id, 2);
    let pending = gw2.rejected(claim.clone()).await;
    assert_eq!((pending.reason.as_str(), pending.current_epoch), ("HANDOVER_PENDING", 1));
    // The fence rides on the owner's renewal, and its acknowledgement on the next.
    let mut client = gw1.client.clone();
    let mut renewal = wire::RenewRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        ..wire::RenewRequest::default()
    };
    let answer = client.renew(renewal.clone()).await.unwrap().into_inner();
    assert_eq!(answer.fences.len(), 1);
    assert_eq!((&answer.fences[0].session_id, answer.fences[0].epoch), (&born.session_id, 1));
    renewal.acks =
        vec![wire::FenceAck { session_id: born.session_id.clone(), epoch: 1, switch_ages_ms: Vec::new() }];
    assert!(client.renew(renewal).await.unwrap().into_inner().fences.is_empty());
    let accepted = gw2.accepted(claim).await;
    assert_eq!(accepted.epoch, 2);
}

async fn of_a_thousand_racing_attaches_exactly_one_is_accepted_per_epoch(harness: Harness) {
    let (pki, server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    gw1.obey_fences().await;
    gw2.obey_fences().await;
    let racers = (0..1000u64).map(|i| {
        let gateway = if i % 2 == 0 { gw1.clone() } else { gw2.clone() };
        let session = born.session_id.clone();
        tokio::spawn(async move {
            // Few sequence numbers, so that attempts collide in them too.
            let request = gateway.attach_request(DEVICE, &session, 2 + i / 10);
            (gateway.name.clone(), gateway.attach(request).await)
        })
    });
    let outcomes: Vec<_> = futures::stream::iter(racers).buffer_unordered(100).collect().await;
    let mut accepted: BTreeMap<u64, Vec<String>> = BTreeMap::from([(1, vec!["gw1".to_owned()])]);
    let mut rejected: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in outcomes {
        let (name, outcome) = outcome.unwrap();
        match outcome {
            Outcome::Accepted(won) => accepted.entry(won.epoch).or_default().push(name),
            Outcome::Rejected(lost) => {
                assert!(!lost.reason.is_empty());
                *rejected.entry(lost.reason).or_default() += 1;
            }
        }
    }
    assert!(accepted.values().all(|winners| winners.len() == 1), "{accepted:?}");
    let winners: usize = accepted.values().map(Vec::len).sum();
    assert_eq!(winners - 1 + rejected.values().sum::<usize>(), 1000);
    // No epoch was given without an answer, and the store agrees with the last one.
    let seen = ownership(&pki, &server, &born.session_id).await;
    let (last, names) = accepted.last_key_value().unwrap();
    println!("{winners} epochs, rejected: {rejected:?}, last epoch {last}");
    assert!(seen.epoch >= *last);
    if seen.epoch == *last && seen.phase() == wire::SessionPhase::Owned {
        assert_eq!(owner(&seen), Some((names[0].clone(), *last)));
    }
    // Nobody is stuck: the next attempt goes through.
    let next = gw1.attach_request(DEVICE, &born.session_id, 1000);
    let settled = async {
        loop {
            match gw1.attach(next.clone()).await {
                Outcome::Accepted(won) => break won.epoch,
                Outcome::Rejected(lost) => println!("not yet: {}", lost.reason),
            }
        }
    };
    let epoch = tokio::time::timeout(Duration::from_secs(60), settled).await.expect("the session is stuck");
    assert!(epoch > *last);
}

async fn a_gateway_speaks_only_for_itself_and_readers_change_nothing(harness: Harness) {
    let (pki, server, gw1, _) = two_gateways(&harness, &[]).await;
    let mut client = gw1.client.clone();
    let other =
        wire::RenewRequest { node_id: "gw2".to_owned(), incarnation: 1, ..wire::RenewRequest::default() };
    assert_eq!(client.renew(other).await.unwrap_err().code(), Code::PermissionDenied);
    let mut reader = NodeServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    assert_eq!(
        reader.list_nodes(wire::ListNodesRequest::default()).await.unwrap().into_inner().nodes.len(),
        2
    );
    let drain = wire::DrainNodeRequest { node_id: "gw1".to_owned() };
    assert_eq!(reader.drain_node(drain).await.unwrap_err().code(), Code::PermissionDenied);
    let mut nobody = NodeServiceClient::new(server.channel(&pki, None).await);
    let status = nobody.list_nodes(wire::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut gateway = NodeServiceClient::new(server.channel(&pki, Some("gateway-gw1")).await);
    let status = gateway.list_nodes(wire::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

async fn a_token_enrols_one_device_once_and_the_same_device_again(harness: Harness) {
    let (pki, server, _, _) = two_gateways(&harness, &[]).await;
    let mut devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let request = wire::CreateEnrolmentTokenRequest {
        name: "phone".to_owned(),
        ..wire::CreateEnrolmentTokenRequest::default()
    };
    let answer = devices.create_enrolment_token(request).await.unwrap().into_inner();
    let token: EnrolmentToken = answer.token.parse().unwrap();
    assert_eq!(token.address, "127.0.0.1:7443");
    let mut enrolment = EnrolmentServiceClient::new(server.channel(&pki, None).await);
    let enrol = |key: u8| EnrolRequest { secret: token.secret.to_vec(), device_key: vec![key; 32] };
    let mut nodes = NodeServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    nodes.list_nodes(wire::ListNodesRequest::default()).await.unwrap();
    let profile = enrolment.enrol(enrol(5)).await.unwrap().into_inner().profile.unwrap();
    assert_eq!(profile.device_name, "phone");
    assert_eq!((profile.cluster_keys.len(), profile.grant_keys.len(), profile.gateways.len()), (1, 1, 2));
    assert_eq!(enrolment.enrol(enrol(5)).await.unwrap().into_inner().profile.unwrap(), profile);
    assert_eq!(enrolment.enrol(enrol(6)).await.unwrap_err().code(), Code::PermissionDenied);
    let guess = EnrolRequest { secret: vec![0; 32], device_key: vec![5; 32] };
    assert_eq!(enrolment.enrol(guess).await.unwrap_err().code(), Code::PermissionDenied);
    let listed = devices.list_devices(wire::ListDevicesRequest { page_size: 1, ..Default::default() });
    let listed = listed.await.unwrap().into_inner();
    assert_eq!(listed.devices.len(), 1);
    let rest = wire::ListDevicesRequest { page_size: 1, page_token: listed.next_page_token };
    assert_eq!(devices.list_devices(rest).await.unwrap().into_inner().devices.len(), 1);
}

async fn a_renewal_says_how_many_claims_a_gateway_may_have_under_way(harness: Harness) {
    let (_pki, _server, gw1, _) = two_gateways(&harness, &[]).await;
    let request = wire::RenewRequest {
        node_id: gw1.name.clone(),
        incarnation: gw1.incarnation,
        ..wire::RenewRequest::default()
    };
    let answer = gw1.client.clone().renew(request).await.unwrap().into_inner();
    assert_eq!(answer.claims_max, 256);
}

async fn a_token_that_is_asked_for_again_is_the_same_and_its_request_serves_for_no_other(harness: Harness) {
    let (pki, server, _, _) = two_gateways(&harness, &[]).await;
    let devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let ask = |name: &str, request_id: &str| {
        let mut devices = devices.clone();
        let request = wire::CreateEnrolmentTokenRequest {
            name: name.to_owned(),
            request_id: request_id.to_owned(),
            ..wire::CreateEnrolmentTokenRequest::default()
        };
        async move { devices.create_enrolment_token(request).await.map(Response::into_inner) }
    };
    let id = "0196f6a0-7c1e-7b5e-8000-1234567890ab";
    let first = ask("phone", id).await.unwrap();
    assert_eq!(ask("phone", id).await.unwrap(), first);
    assert_eq!(ask("laptop", id).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(ask("phone", "7").await.unwrap_err().code(), Code::InvalidArgument);
    let (one, other) = (ask("phone", "").await.unwrap(), ask("phone", "").await.unwrap());
    assert!(one.token != other.token && one.token != first.token);
}

async fn a_revoked_device_loses_its_sessions_and_cannot_attach(harness: Harness) {
    let (pki, server, gw1, _) = two_gateways(&harness, &[]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let mut devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let request =
        wire::RevokeDeviceRequest { device_key: "d1".repeat(32), ..wire::RevokeDeviceRequest::default() };
    let answer = devices.revoke_device(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.terminated_sessions, 1);
    assert_eq!(answer.device.unwrap().state(), wire::device::State::Revoked);
    devices.revoke_device(request).await.unwrap();
    let seen = ownership(&pki, &server, &born.session_id).await;
    assert_eq!((seen.phase(), seen.last_reason.as_str()), (wire::SessionPhase::Terminated, "KEY_REVOKED"));
    for session in ["", &born.session_id] {
        let refused = gw1.rejected(gw1.attach_request(DEVICE, session, 2)).await;
        assert_eq!((refused.reason.as_str(), refused.current_epoch), ("KEY_REVOKED", 0));
    }
    let unknown = gw1.rejected(gw1.attach_request([9; 32], "", 1)).await;
    assert_eq!(unknown.reason, "UNKNOWN_DEVICE");
}

async fn a_second_run_of_a_node_is_refused_until_the_first_is_gone_or_reaped(harness: Harness) {
    let (_pki, _server, gw1, _) = two_gateways(&harness, &[]).await;
    let mut client = gw1.client.clone();
    let status = client.register(registration("gw1")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let reaped = wire::RegisterRequest { reaped_incarnation: gw1.incarnation, ..registration("gw1") };
    let answer = client.register(reaped.clone()).await.unwrap().into_inner();
    assert!(answer.incarnation > gw1.incarnation);
    // The same request again is the same run.
    let again = client.register(reaped).await.unwrap().into_inner();
    assert_eq!(again.incarnation, answer.incarnation);
    let renewal = wire::RenewRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        ..wire::RenewRequest::default()
    };
    assert_eq!(client.renew(renewal).await.unwrap_err().code(), Code::FailedPrecondition);
}

async fn node_numbers_are_not_given_again_soon(harness: Harness) {
    let (_pki, _server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let mut numbers = vec![gw1.number, gw2.number];
    let mut incarnation = gw1.incarnation;
    for _ in 0..5 {
        let request = wire::RegisterRequest { reaped_incarnation: incarnation, ..registration("gw1") };
        let answer = gw1.client.clone().register(request).await.unwrap().into_inner();
        assert!(!numbers.contains(&answer.number), "{} again after {numbers:?}", answer.number);
        numbers.push(answer.number);
        incarnation = answer.incarnation;
    }
}

async fn inner_addresses_are_never_shared_and_rest_before_they_are_given_again(harness: Harness) {
    // Room for five addresses of each family.
    let settings = [("pools", "10.5.0.0/29"), ("policy.sessions_per_device_max", "100")];
    let (_pki, _server, gw1, _) = two_gateways(&harness, &settings).await;
    let births = (0..5).map(|_| {
        let gateway = gw1.clone();
        tokio::spawn(async move { gateway.accepted(gateway.attach_request(DEVICE, "", 1)).await })
    });
    let mut born: Vec<_> = futures::future::join_all(births).await.into_iter().map(Result::unwrap).collect();
    let mut addresses: Vec<_> = born.iter().flat_map(|session| session.inner_addresses.clone()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 5);
    let full = gw1.rejected(gw1.attach_request(DEVICE, "", 1)).await;
    assert_eq!(full.reason, "ADDRESS_POOL_EXHAUSTED");
    let ended = born.pop().unwrap();
    let request = wire::ReleaseRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        session_id: ended.session_id,
        epoch: 1,
        reason: "CLIENT_CLOSED".to_owned(),
        terminate: true,
        switch_ages_ms: Vec::new(),
    };
    gw1.client.clone().release(request).await.unwrap();
    let resting = gw1.rejected(gw1.attach_request(DEVICE, "", 1)).await;
    assert_eq!(resting.reason, "ADDRESS_POOL_EXHAUSTED");
}

async fn next_bindings(
    stream: &mut tonic::Streaming<wire::WatchBindingsResponse>,
) -> wire::WatchBindingsResponse {
    tokio::time::timeout(Duration::from_secs(20), stream.message())
        .await
        .expect("the stream stays silent")
        .unwrap()
        .expect("the stream ended")
}

async fn a_bindings_watch_starts_with_a_snapshot_and_resumes_by_revision(harness: Harness) {
    let (_pki, _server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let watch = |after_revision| wire::WatchBindingsRequest {
        node_id: "gw2".to_owned(),
        incarnation: gw2.incarnation,
        after_revision,
    };
    let mut client = gw2.client.clone();
    let mut stream = client.watch_bindings(watch(0)).await.unwrap().into_inner();
    let mut bindings = Vec::new();
    let mut nodes = Vec::new();
    let mut started = false;
    let revision = loop {
        let message = next_bindings(&mut stream).await;
        started |= message.snapshot_start;
        bindings.extend(message.bindings);
        nodes.extend(message.nodes);
        if message.snapshot_complete {
            break message.revision;
        }
    };
    assert!(started && revision > 0);
    // The cache may have been behind the registrations and the birth; then they follow as deltas.
    while nodes.len() < 2 || !bindings.iter().any(|binding| binding.session_id == born.session_id) {
        let message = next_bindings(&mut stream).await;
        bindings.extend(message.bindings);
        nodes.extend(message.nodes);
    }
    drop(stream);
    let second = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let mut stream = client.watch_bindings(watch(revision)).await.unwrap().into_inner();
    loop {
        let message = next_bindings(&mut stream).await;
        assert!(!message.snapshot_start, "a known revision was answered with a snapshot");
        if message.bindings.iter().any(|binding| binding.session_id == second.session_id) {
            break;
        }
    }
    // A revision that never was is answered with a snapshot.
    let mut stream = client.watch_bindings(watch(revision + 1_000_000)).await.unwrap().into_inner();
    assert!(next_bindings(&mut stream).await.snapshot_start);
}

async fn an_operator_can_drain_a_node_and_end_a_session(harness: Harness) {
    let (pki, server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let born = gw2.accepted(gw2.attach_request(DEVICE, "", 1)).await;
    let channel = server.channel(&pki, Some("operator-op")).await;
    let mut nodes = NodeServiceClient::new(channel.clone());
    let drain = wire::DrainNodeRequest { node_id: "gw1".to_owned() };
    assert!(nodes.drain_node(drain).await.unwrap().into_inner().node.unwrap().draining);
    let refused = gw1.rejected(gw1.attach_request(DEVICE, "", 1)).await;
    assert_eq!(refused.reason, "NODE_DRAINING");
    // Listing waits for the cache.
    nodes.list_nodes(wire::ListNodesRequest::default()).await.unwrap();
    let mut told = false;
    for _ in 0..50 {
        let renewal = wire::RenewRequest {
            node_id: "gw1".to_owned(),
            incarnation: gw1.incarnation,
            ..wire::RenewRequest::default()
        };
        told |= gw1.client.clone().renew(renewal).await.unwrap().into_inner().drain;
    }
    assert!(told, "the drained node is not told");
    let undrain = wire::UndrainNodeRequest { node_id: "gw1".to_owned() };
    nodes.undrain_node(undrain).await.unwrap();
    gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;

    let mut sessions = SessionServiceClient::new(channel);
    let request = wire::TerminateSessionRequest {
        session_id: born.session_id.clone(),
        ..wire::TerminateSessionRequest::default()
    };
    let ended = sessions.terminate_session(request).await.unwrap().into_inner().session.unwrap();
    assert_eq!(
        (ended.phase(), ended.last_reason.as_str()),
        (wire::SessionPhase::Terminated, "OPERATOR_TERMINATED")
    );
    let unknown = wire::GetSessionRequest { session_id: uuid::Uuid::nil().to_string() };
    assert_eq!(sessions.get_session(unknown).await.unwrap_err().code(), Code::NotFound);
}

async fn a_gateway_that_is_ending_takes_nothing_new_and_is_left_free_of_charge(harness: Harness) {
    // One switch a minute, and a cooldown that outlives the test.
    let settings = [("policy.switches_per_minute_max", "1"), ("policy.switch_cooldown", "30s")];
    let (pki, server, gw1, gw2) = two_gateways(&harness, &settings).await;
    gw1.obey_fences().await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let held = gw2.rejected(gw2.attach_request(DEVICE, &born.session_id, 2)).await;
    assert_eq!(held.reason, "SWITCH_COOLDOWN");
    let renewal = wire::RenewRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        draining: true,
        ..wire::RenewRequest::default()
    };
    let answer = gw1.client.clone().renew(renewal.clone()).await.unwrap().into_inner();
    assert!(!answer.drain, "its own word came back as an operator's order");
    gw1.client.clone().renew(renewal).await.unwrap();
    assert_eq!(gw1.rejected(gw1.attach_request(DEVICE, "", 1)).await.reason, "NODE_DRAINING");
    let mut nodes = NodeServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    let listed = nodes.list_nodes(wire::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    let seen: Vec<(&str, u64, bool)> =
        listed.iter().map(|node| (node.node_id.as_str(), node.incarnation, node.draining)).collect();
    assert_eq!(seen, [("gw1", gw1.incarnation, true), ("gw2", gw2.incarnation, false)]);
    let moved = gw2.accepted(gw2.attach_request(DEVICE, &born.session_id, 2)).await;
    assert_eq!(moved.epoch, 2);
}

async fn an_operator_orders_a_session_to_move_and_its_owner_hears_of_it(harness: Harness) {
    let settings = [("policy.switches_per_minute_max", "1"), ("policy.switch_cooldown", "30s")];
    let (pki, server, gw1, gw2) = two_gateways(&harness, &settings).await;
    gw1.obey_fences().await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let watch = wire::WatchBindingsRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        after_revision: 0,
    };
    let mut bindings = gw1.client.clone().watch_bindings(watch).await.unwrap().into_inner();
    let mut sessions = SessionServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let order = |to: &str| wire::MoveSessionRequest {
        session_id: born.session_id.clone(),
        node_id: to.to_owned(),
        ..wire::MoveSessionRequest::default()
    };
    let nowhere = sessions.move_session(order("gw9")).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::NotFound);
    let ordered = sessions.move_session(order("gw2")).await.unwrap().into_inner().session.unwrap();
    assert_eq!(ordered.r#move.as_ref().unwrap().node_id, "gw2");
    assert_eq!((ordered.epoch, ordered.owner.unwrap().node_id.as_str()), (1, "gw1"));
    let mut told = false;
    while !told {
        let message = tokio::time::timeout(Duration::from_secs(20), bindings.message()).await;
        let news = message.expect("the owner is not told").unwrap().unwrap();
        told = news.bindings.iter().any(|b| b.r#move.as_ref().is_some_and(|order| order.node_id == "gw2"));
    }
    let moved = gw2.accepted(gw2.attach_request(DEVICE, &born.session_id, 2)).await;
    assert_eq!(moved.epoch, 2);
    let seen = ownership(&pki, &server, &born.session_id).await;
    assert_eq!(owner(&seen), Some(("gw2".to_owned(), 2)));
    let dead = wire::DeregisterRequest {
        node_id: "gw2".to_owned(),
        incarnation: gw2.incarnation,
        reason: "NODE_LOST".to_owned(),
    };
    gw2.client.clone().deregister(dead).await.unwrap();
    assert_eq!(sessions.move_session(order("gw1")).await.unwrap_err().code(), Code::FailedPrecondition);
}

async fn the_ownership_watch_tells_every_change_of_owner(harness: Harness) {
    let (pki, server, gw1, gw2) = two_gateways(&harness, &[]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let mut client = OwnershipServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    let request = wire::WatchOwnershipRequest { session_id: born.session_id.clone() };
    let mut stream = client.watch_ownership(request).await.unwrap().into_inner();
    let mut next = async || {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
        message.expect("the watch stays silent").unwrap().unwrap().ownership.unwrap()
    };
    assert_eq!(owner(&next().await), Some(("gw1".to_owned(), 1)));
    let dead = wire::DeregisterRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        reason: "NODE_LOST".to_owned(),
    };
    gw1.client.clone().deregister(dead).await.unwrap();
    let expired = next().await;
    assert!(expired.lease_state() != wire::LeaseState::Held, "{expired:?}");
    gw2.accepted(gw2.attach_request(DEVICE, &born.session_id, 2)).await;
    loop {
        if owner(&next().await) == Some(("gw2".to_owned(), 2)) {
            break;
        }
    }
}

async fn a_session_whose_owner_died_is_released_and_ends_after_its_recovery_window(harness: Harness) {
    let (pki, server, gw1, _) = two_gateways(&harness, &[("policy.recovery_window", "1s")]).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let mut client = OwnershipServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    let request = wire::WatchOwnershipRequest { session_id: born.session_id.clone() };
    let mut stream = client.watch_ownership(request).await.unwrap().into_inner();
    let dead = wire::DeregisterRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        reason: "NODE_LOST".to_owned(),
    };
    gw1.client.clone().deregister(dead).await.unwrap();
    let mut phases = Vec::new();
    while phases.last() != Some(&wire::SessionPhase::Terminated) {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
        let seen = message.expect("the reaper does nothing").unwrap().unwrap().ownership.unwrap();
        if phases.last() != Some(&seen.phase()) {
            phases.push(seen.phase());
        }
    }
    use wire::SessionPhase::{Owned, Released, Terminated};
    assert_eq!(phases, [Owned, Released, Terminated]);
}

async fn the_addresses_of_an_ended_session_leave_the_store_after_their_rest(harness: Harness) {
    let pki = Pki::new();
    let store = harness.open().await;
    let server = Server::start(&pki, store.clone(), &[("policy.address_quarantine", "1s")]).await;
    let gateway = Gateway::register(&pki, &server, "gw1").await;
    gateway.keep_alive();
    enrol(&pki, &server, DEVICE).await;
    let ended = gateway.accepted(gateway.attach_request(DEVICE, "", 1)).await;
    let lives = gateway.accepted(gateway.attach_request(DEVICE, "", 2)).await;
    let (revision, taken) = jump_control::store::list(&*store, layout::ADDRESSES).await.unwrap();
    assert_eq!(taken.len(), ended.inner_addresses.len() + lives.inner_addresses.len());
    let mut addresses = store.watch(layout::ADDRESSES, revision);
    let mut sessions = SessionServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let end = wire::TerminateSessionRequest { session_id: ended.session_id, ..Default::default() };
    sessions.terminate_session(end).await.unwrap();
    let mut left: Vec<String> = taken.into_iter().map(|value| value.key).collect();
    while left.len() > lives.inner_addresses.len() {
        let batch = tokio::time::timeout(Duration::from_secs(20), addresses.next()).await;
        for event in batch.expect("nothing releases the addresses").unwrap().unwrap().events {
            if let Event::Delete { key, .. } = event {
                left.retain(|address| *address != key);
            }
        }
    }
    for address in lives.inner_addresses {
        assert!(left.iter().any(|key| key.ends_with(&format!("/{address}"))), "{address} is in use");
    }
}
