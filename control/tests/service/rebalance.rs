//! The rebalancer, from an uneven cluster to what the full gateway hears.

use std::collections::BTreeSet;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::session_service_client::SessionServiceClient;

use super::{DEVICE, next_bindings};
use crate::cluster::{Gateway, Pki, Server, enrol};
use crate::support::Harness;

pub(crate) async fn two_replicas_together_order_just_what_evens_out_the_gateways(harness: Harness) {
    let settings = [("policy.sessions_per_device_max", "16"), ("rebalance.moves_per_second", "2")];
    let pki = Pki::new();
    let store = harness.open().await;
    let server = Server::start(&pki, store.clone(), &settings).await;
    let other = Server::start(&pki, store, &settings).await;
    let gw1 = Gateway::register(&pki, &server, "gw1").await;
    let gw2 = Gateway::register(&pki, &other, "gw2").await;
    gw1.keep_alive();
    gw2.keep_alive();
    enrol(&pki, &server, DEVICE).await;
    let watch = wire::WatchBindingsRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        after_revision: 0,
    };
    let mut bindings = gw1.client.clone().watch_bindings(watch).await.unwrap().into_inner();
    let mut born = BTreeSet::new();
    for _ in 0..8 {
        born.insert(gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await.session_id);
    }

    let mut ordered = BTreeSet::new();
    while ordered.len() < 4 {
        for binding in next_bindings(&mut bindings).await.bindings {
            if let Some(order) = binding.r#move {
                assert_eq!(order.node_id, "gw2");
                assert!(born.contains(&binding.session_id));
                ordered.insert(binding.session_id);
            }
        }
    }
    // The orders count as followed: there is no more to do, then or once their sessions are there.
    gw1.obey_fences().await;
    for session in &ordered {
        gw2.accepted(gw2.attach_request(DEVICE, session, 2)).await;
    }
    let mut sessions = SessionServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    let listed = sessions.list_sessions(wire::ListSessionsRequest::default()).await.unwrap().into_inner();
    let of = |node: &str| {
        let owned =
            |session: &&wire::Session| session.owner.as_ref().is_some_and(|owner| owner.node_id == node);
        listed.sessions.iter().filter(owned).count()
    };
    assert_eq!((of("gw1"), of("gw2")), (4, 4));
    assert!(listed.sessions.iter().all(|session| session.r#move.is_none()), "{listed:#?}");
}
