//! A device's policy, from the operator's word to what its sessions' owners hear.

use jump_proto::client_v1::EnrolRequest;
use jump_proto::client_v1::enrolment_service_client::EnrolmentServiceClient;
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::device_service_client::DeviceServiceClient;
use jump_proto::token::EnrolmentToken;
use tonic::Code;

use super::{DEVICE, next_bindings, two_gateways};
use crate::support::Harness;

fn policy(network: &str, bytes_per_second: u64) -> Option<wire::DevicePolicy> {
    Some(wire::DevicePolicy { allowed_destinations: vec![network.to_owned()], bytes_per_second })
}

pub(crate) async fn a_devices_policy_binds_its_live_sessions_and_every_later_attach(harness: Harness) {
    let (pki, server, gw1, gw2) = two_gateways(&harness, &[]).await;
    gw1.obey_fences().await;
    gw2.obey_fences().await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let unbound = born.policy.unwrap();
    assert!(unbound.allowed_destinations.is_empty() && unbound.bytes_per_second == 0);
    let watch = wire::WatchBindingsRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        after_revision: 0,
    };
    let mut bindings = gw1.client.clone().watch_bindings(watch).await.unwrap().into_inner();

    let mut devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let hex: String = DEVICE.iter().map(|byte| format!("{byte:02x}")).collect();
    let set = |policy| wire::SetDevicePolicyRequest {
        device_key: hex.clone(),
        policy,
        ..wire::SetDevicePolicyRequest::default()
    };
    let refused = devices.set_device_policy(set(policy("10.9.0.0/99", 0))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let answer = devices.set_device_policy(set(policy("10.9.0.7/16", 125_000))).await.unwrap().into_inner();
    let wanted = policy("10.9.0.0/16", 125_000);
    assert_eq!((answer.device.unwrap().policy, answer.sessions), (wanted.clone(), 1));

    // Its owner hears of it without an attach.
    loop {
        let news = next_bindings(&mut bindings).await;
        if news.bindings.iter().any(|b| b.session_id == born.session_id && b.policy == wanted) {
            break;
        }
    }
    let moved = gw2.accepted(gw2.attach_request(DEVICE, &born.session_id, 2)).await.policy.unwrap();
    assert_eq!(
        (moved.allowed_destinations, moved.bytes_per_second),
        (vec!["10.9.0.0/16".to_owned()], 125_000)
    );
    let second = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await.policy.unwrap();
    assert_eq!(second.bytes_per_second, 125_000);

    let lifted = devices.set_device_policy(set(None)).await.unwrap().into_inner();
    assert_eq!((lifted.device.unwrap().policy, lifted.sessions), (None, 2));
    let again = gw1.accepted(gw1.attach_request(DEVICE, &born.session_id, 3)).await.policy.unwrap();
    assert!(again.allowed_destinations.is_empty() && again.bytes_per_second == 0);
}

pub(crate) async fn a_token_bounds_the_device_that_it_enrols(harness: Harness) {
    let (pki, server, _, _) = two_gateways(&harness, &[]).await;
    let mut devices = DeviceServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let enrolled = devices
        .enrol_device(wire::EnrolDeviceRequest {
            device_key: "e1".repeat(32),
            name: "printer".to_owned(),
            policy: policy("10.9.1.0/24", 0),
            ..wire::EnrolDeviceRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(enrolled.into_inner().device.unwrap().policy, policy("10.9.1.0/24", 0));
    let token = devices
        .create_enrolment_token(wire::CreateEnrolmentTokenRequest {
            name: "camera".to_owned(),
            policy: policy("10.9.2.0/24", 1),
            ..wire::CreateEnrolmentTokenRequest::default()
        })
        .await
        .unwrap()
        .into_inner()
        .token;
    let token: EnrolmentToken = token.parse().unwrap();
    let request = EnrolRequest { secret: token.secret.to_vec(), device_key: vec![0xe2; 32] };
    EnrolmentServiceClient::new(server.channel(&pki, None).await).enrol(request).await.unwrap();
    let listed = devices.list_devices(wire::ListDevicesRequest::default()).await.unwrap().into_inner();
    let camera = listed.devices.into_iter().find(|device| device.name == "camera").unwrap();
    assert_eq!(camera.policy, policy("10.9.2.0/24", 1));
}
