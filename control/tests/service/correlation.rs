//! One correlation id per session, in the metadata of every answer about it.

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::ownership_service_client::OwnershipServiceClient;
use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_session::ids::SessionId;
use jump_telemetry::Correlation;
use jump_telemetry::trace::correlation;
use tonic::Response;

use super::{DEVICE, two_gateways};
use crate::support::Harness;

pub(crate) async fn every_answer_about_a_session_names_its_correlation_id(harness: Harness) {
    let (pki, server, gw1, _) = two_gateways(&harness, &[]).await;
    let mut gateway = gw1.client.clone();
    let request = gw1.attach_request(DEVICE, "", 1);
    let attached = gateway.attach(request.clone()).await.unwrap();
    let refused = gateway
        .attach(wire::AttachRequest { attempt_id: SessionId::from_bytes([3; 16]).to_string(), ..request });
    let Some(wire::attach_response::Outcome::Accepted(born)) = &attached.get_ref().outcome else {
        panic!("{attached:?}")
    };
    let session_id = born.session_id.clone();
    let id = Correlation::from(session_id.parse::<SessionId>().unwrap().correlation());
    assert_eq!(born.correlation_id, id.to_string());
    fn named<T>(answer: &Response<T>) -> Option<Correlation> {
        correlation(answer.metadata())
    }
    assert_eq!(named(&attached), Some(id));
    // Another birth is another session, whatever comes of it.
    let other = named(&refused.await.unwrap());
    assert!(other.is_some() && other != Some(id));

    let mut sessions = SessionServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let mut owners = OwnershipServiceClient::new(server.channel(&pki, Some("operator-op")).await);
    let get = wire::GetSessionRequest { session_id: session_id.clone() };
    assert_eq!(named(&sessions.get_session(get).await.unwrap()), Some(id));
    let owner = wire::GetOwnershipRequest { session_id: session_id.clone() };
    assert_eq!(named(&owners.get_ownership(owner).await.unwrap()), Some(id));
    let watch = wire::WatchOwnershipRequest { session_id: session_id.clone() };
    assert_eq!(named(&owners.watch_ownership(watch).await.unwrap()), Some(id));
    let order = wire::MoveSessionRequest { session_id: session_id.clone(), ..Default::default() };
    assert_eq!(named(&sessions.move_session(order).await.unwrap()), Some(id));
    let end = wire::TerminateSessionRequest { session_id: session_id.clone(), ..Default::default() };
    assert_eq!(named(&sessions.terminate_session(end).await.unwrap()), Some(id));
    let release = wire::ReleaseRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        session_id,
        epoch: 1,
        reason: "CLIENT_CLOSED".to_owned(),
        terminate: true,
        ..Default::default()
    };
    assert_eq!(named(&gateway.release(release).await.unwrap()), Some(id));
}
