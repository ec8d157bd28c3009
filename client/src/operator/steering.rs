//! `jumpctl ownership steering`: what the steering bits and the devices' order of gateways say of one session.

use std::net::SocketAddr;

use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_proto::control_v1::{GetSessionRequest, Node, Session};
use jump_session::ids::{DeviceKey, NodeNumber, ReceiverIndex, SessionId};
use jump_session::steering;
use serde_json::json;

use super::{Operator, about, nodes};
use crate::channel::refused;
use crate::failure::Failure;
use crate::output::{self, Output};

/// One gateway, as a session's device ranks it.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    node: String,
    /// First of the receiver indices that bear its steering bits.
    first_index: u32,
    number: u32,
    draining: bool,
    /// It owns the session: records bear one of its indices.
    owns: bool,
}

const HEADINGS: [&str; 5] = ["RANK", "NODE", "NUMBER", "INDICES FROM", ""];

pub(super) async fn show(operator: &Operator, id: SessionId) -> Result<(), Failure> {
    let what = format!("session {id}");
    let session = SessionServiceClient::new(operator.channel().await?)
        .get_session(about(id, GetSessionRequest { session_id: id.to_string() }))
        .await
        .map_err(|status| refused(&what, &status))?
        .into_inner()
        .session
        .ok_or_else(|| Failure::other(format!("{what}: control sent an empty answer")))?;
    let places = places(&session, &nodes::all(operator).await?)
        .ok_or_else(|| Failure::other(format!("{what}: control sent an unusable device key")))?;
    let next = next(&places);
    match operator.output {
        Output::Json => output::line(
            &json!({
                "session_id": session.session_id,
                "correlation_id": session.correlation_id,
                "steered_to": next.map(|place| &place.node),
                "index_owner": places.iter().find(|place| place.owns).map(|place| &place.node),
                "gateways": places.iter().map(|place| json!({
                    "node_id": place.node,
                    "number": place.number,
                    "first_index": format!("{:08x}", place.first_index),
                    "draining": place.draining,
                })).collect::<Vec<_>>(),
            })
            .to_string(),
        ),
        Output::Table => {
            let row = |(rank, place): (usize, &Place)| {
                let mut says = Vec::new();
                says.extend(place.owns.then_some("owns the session: its records bear this index"));
                says.extend((next == Some(place)).then_some("where it goes when it has to go"));
                says.extend(place.draining.then_some("drains: nobody is steered here"));
                let first = format!("{:08x}", place.first_index);
                vec![
                    (rank + 1).to_string(),
                    place.node.clone(),
                    place.number.to_string(),
                    first,
                    says.join("; "),
                ]
            };
            let rows: Vec<_> = places.iter().enumerate().map(row).collect();
            output::line(output::table(&HEADINGS, &rows).trim_end())
        }
    }
}

/// Where the session goes when it has to leave its owner, or is born.
fn next(places: &[Place]) -> Option<&Place> {
    places.iter().find(|place| !place.owns && !place.draining)
}

/// The gateways in the device's order; `None` when its key cannot be read.
fn places(session: &Session, nodes: &[Node]) -> Option<Vec<Place>> {
    let device: DeviceKey = session.device_key.parse().ok()?;
    let weight = |node: &&Node| {
        let endpoints = node.endpoints.iter().filter_map(|endpoint| endpoint.parse::<SocketAddr>().ok());
        std::cmp::Reverse(endpoints.map(|endpoint| steering::weight(&device, endpoint)).max())
    };
    let mut ranked: Vec<&Node> = nodes.iter().collect();
    ranked.sort_by_key(weight);
    let owner = session.owner.as_ref();
    let place = |node: &Node| {
        let number = NodeNumber(u16::try_from(node.number).unwrap_or(0));
        Place {
            node: node.node_id.clone(),
            first_index: ReceiverIndex::of_node(number, 0).0,
            number: node.number,
            draining: node.draining,
            owns: owner.is_some_and(|o| (&o.node_id, o.incarnation) == (&node.node_id, node.incarnation)),
        }
    };
    Some(ranked.into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use jump_proto::control_v1::Owner;

    use super::*;

    fn node(number: u32, draining: bool) -> Node {
        Node {
            node_id: format!("gw{number}"),
            incarnation: 7,
            number,
            endpoints: vec![format!("192.0.2.{number}:51820")],
            draining,
            ..Node::default()
        }
    }

    fn session(owner: &str) -> Session {
        Session {
            device_key: DeviceKey::from_bytes([9; 32]).to_string(),
            owner: Some(Owner { node_id: owner.to_owned(), incarnation: 7 }),
            ..Session::default()
        }
    }

    #[test]
    fn the_order_is_the_device_s_own_and_its_next_gateway_neither_owns_nor_drains() {
        let nodes: Vec<_> = (1..=4).map(|number| node(number, false)).collect();
        let ranked = places(&session("gw1"), &nodes).unwrap();
        let mut addresses: Vec<SocketAddr> =
            nodes.iter().map(|node| node.endpoints[0].parse().unwrap()).collect();
        steering::rank(&DeviceKey::from_bytes([9; 32]), &mut addresses);
        let of =
            |address: &SocketAddr| format!("gw{}", address.to_string().split(['.', ':']).nth(3).unwrap());
        let expected: Vec<String> = addresses.iter().map(of).collect();
        assert_eq!(ranked.iter().map(|place| place.node.clone()).collect::<Vec<_>>(), expected);

        let first = ranked[0].node.clone();
        let draining: Vec<_> = (1..=4).map(|number| node(number, format!("gw{number}") == first)).collect();
        let owner = ranked[1].node.clone();
        let places = places(&session(&owner), &draining).unwrap();
        assert_eq!(next(&places).unwrap().node, ranked[2].node);
        assert!(places[1].owns && places[1].first_index == places[1].number << 20);
    }

    #[test]
    fn an_earlier_run_of_a_node_owns_no_index_of_the_present_one() {
        let mut later = node(1, false);
        later.incarnation = 8;
        assert!(!places(&session("gw1"), &[later]).unwrap()[0].owns);
    }
}
