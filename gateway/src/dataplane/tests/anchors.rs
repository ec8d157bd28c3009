//! The anchors of one session by themselves: against a plain model, and each rule.

use std::collections::BTreeMap;

use jump_crypto::ids::Incarnation;
use proptest::prelude::*;

use super::super::anchors::{Anchors, Exit};
use super::super::flow::tests::with_ports;
use super::super::flow::{Flow, TCP};
use super::super::handed::{self, AnchorName, Part};
use super::super::inner::InnerHeader;
use super::*;

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 17;
const MINUTE: Nanos = 60 * SECOND;

fn links(numbers: &[u16]) -> Links {
    let mut entropy = Seeded(1);
    let mut own = MeshSecret::generate(&mut entropy).unwrap();
    let end = |number, public| MeshEnd {
        number: NodeNumber(number),
        incarnation: Incarnation(u64::from(number)),
        public,
    };
    let mut links = Links::default();
    for number in numbers {
        let peer = MeshSecret::generate(&mut entropy).unwrap();
        let (sealing, opening) = own.link(&end(4000, own.public()), &end(*number, peer.public())).unwrap();
        links.add(Link {
            node: NodeRef(u32::from(*number)),
            number: NodeNumber(*number),
            incarnation: Incarnation(u64::from(*number)),
            address: SocketAddr::from(([192, 0, 2, *number as u8], 51821)),
            sealing,
            opening,
        });
    }
    links
}

fn flow(port: u16) -> Flow {
    Flow::new(TCP, port, server(), 443).unwrap()
}

fn parts(flows: &[u16]) -> Vec<Vec<u8>> {
    let anchor = AnchorName { number: NodeNumber(1), incarnation: Incarnation(1) };
    let flows: Vec<_> = flows.iter().map(|port| (flow(*port), anchor)).collect();
    handed::encode(session(1), Epoch(2), anchor, &flows)
}

fn tell(anchors: &mut Anchors, from: u32, flows: &[u16], node: Option<u32>, wins: bool, now: Nanos) {
    for body in parts(flows) {
        let part = Part::parse(&body).unwrap();
        anchors.take(NodeRef(from), &part, node.map(NodeRef), wins, now);
    }
}

/// Where a TCP packet with this source port and these flags leaves: 0 here, `None` for "not known".
fn exit(anchors: &mut Anchors, links: &mut Links, port: u16, flags: u8, now: Nanos) -> Option<u32> {
    let packet = with_ports(inner(1), server(), TCP, (port, 443), flags);
    match anchors.exit(&packet, &InnerHeader::parse(&packet).unwrap(), now, links) {
        Exit::Here => Some(0),
        Exit::At(link) => Some(link.node.0),
        Exit::Unknown => None,
    }
}

#[test]
fn packets_wait_for_the_awaited_list_and_for_no_other() {
    let mut links = links(&[1, 2]);
    let mut anchors = Anchors::awaited(NodeRef(1), SECOND);
    tell(&mut anchors, 2, &[7], Some(2), false, 0);
    assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 0), None);
    tell(&mut anchors, 1, &[8], Some(1), true, 0);
    let exits = [7, 8, 9].map(|port| exit(&mut anchors, &mut links, port, ACK, 0));
    assert_eq!(exits, [Some(2), Some(1), Some(0)]);
}

#[test]
fn a_list_of_several_parts_is_awaited_to_its_last_in_any_order_and_number() {
    let ports: Vec<u16> = (1..=300).collect();
    let bodies = parts(&ports);
    assert!(bodies.len() > 2);
    let mut links = links(&[1]);
    let mut anchors = Anchors::awaited(NodeRef(1), SECOND);
    for (at, body) in bodies.iter().enumerate().rev() {
        assert_eq!(exit(&mut anchors, &mut links, 1, ACK, 0), None);
        for _ in 0..2 {
            let new = anchors.take(NodeRef(1), &Part::parse(body).unwrap(), Some(NodeRef(1)), true, 0);
            assert!(at > 0 || new <= ports.len() as u64);
        }
    }
    assert!(ports.iter().all(|port| exit(&mut anchors, &mut links, *port, ACK, 0) == Some(1)));
}

#[test]
fn the_list_of_the_last_owner_wins_over_that_of_an_earlier_one_whichever_comes_first() {
    let mut links = links(&[1, 2]);
    for last_first in [true, false] {
        let mut anchors = Anchors::default();
        let mut tells = [(1, Some(1), true), (2, Some(2), false)];
        if !last_first {
            tells.reverse();
        }
        for (from, node, wins) in tells {
            tell(&mut anchors, from, &[7], node, wins, 0);
        }
        assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 0), Some(1));
        // The last owner knows that this gateway itself translates the flow.
        tell(&mut anchors, 1, &[7], None, true, 0);
        assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 0), Some(0));
    }
}

#[test]
fn a_flow_whose_gateway_is_gone_leaves_here_from_then_on() {
    let mut links = links(&[1]);
    let mut anchors = Anchors::held([(flow(7), NodeRef(1))], 0);
    assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 0), Some(1));
    links.remove(NodeRef(1));
    assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 0), Some(0));
    assert!(anchors.is_empty());
}

#[test]
fn a_flow_ends_with_its_silence_and_sooner_after_fin() {
    let mut links = links(&[1]);
    let mut anchors = Anchors::held([7, 8, 9].map(|port| (flow(port), NodeRef(1))), 0);
    assert_eq!(exit(&mut anchors, &mut links, 7, FIN, 0), Some(1));
    assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 119 * SECOND), Some(1), "half closed, still receiving");
    assert_eq!(exit(&mut anchors, &mut links, 7, ACK, 239 * SECOND), Some(0));
    assert_eq!(exit(&mut anchors, &mut links, 8, ACK, 123 * MINUTE), Some(1));
    anchors.expire(124 * MINUTE);
    assert_eq!(anchors.flows().collect::<Vec<_>>(), [(flow(8), NodeRef(1))]);
}

#[test]
fn a_new_connection_with_the_ports_of_an_ended_one_leaves_here_and_a_repeated_first_packet_does_not() {
    let mut links = links(&[1]);
    let mut anchors = Anchors::held([(flow(7), NodeRef(1))], 0);
    assert_eq!(exit(&mut anchors, &mut links, 7, SYN, 0), Some(1));
    assert_eq!(exit(&mut anchors, &mut links, 7, FIN, 0), Some(1));
    assert_eq!(exit(&mut anchors, &mut links, 7, SYN, SECOND), Some(0));
    assert_eq!(exit(&mut anchors, &mut links, 7, ACK, SECOND), Some(0));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Told { port: u16, node: u8, wins: bool },
    Sent { port: u16, flags: u8 },
    Gone(u8),
    Passed(u16),
    Expired,
}

fn step() -> impl Strategy<Value = Step> {
    let port = 1..4u16;
    let flags = prop_oneof![Just(SYN), Just(ACK), Just(FIN)];
    prop_oneof![
        (port.clone(), 0..4u8, any::<bool>()).prop_map(|(port, node, wins)| Step::Told { port, node, wins }),
        (port, flags).prop_map(|(port, flags)| Step::Sent { port, flags }),
        (1..4u8).prop_map(Step::Gone),
        (1..200u16).prop_map(Step::Passed),
        Just(Step::Expired),
    ]
}

proptest! {
    /// Against a model that keeps (node, last use, ending) by port and decides at each packet.
    #[test]
    fn every_packet_leaves_where_a_plain_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut links = links(&[1, 2, 3]);
        let mut anchors = Anchors::default();
        let mut model: BTreeMap<u16, (u32, Nanos, bool)> = BTreeMap::new();
        let mut live = vec![1, 2, 3];
        let mut now = 0;
        for step in steps {
            match step {
                Step::Told { port, node, wins } => {
                    let node = (node > 0).then_some(u32::from(node));
                    tell(&mut anchors, 1, &[port], node, wins, now);
                    match (node, model.get_mut(&port)) {
                        (Some(node), Some(known)) if wins => known.0 = node,
                        (Some(node), None) => {
                            model.insert(port, (node, now, false));
                        }
                        (None, Some(_)) if wins => {
                            model.remove(&port);
                        }
                        (Some(_) | None, Some(_) | None) => {}
                    }
                }
                Step::Sent { port, flags } => {
                    let expected = match model.get_mut(&port) {
                        Some((node, used, ending))
                            if live.contains(node)
                                && now - *used < (if *ending { 120 * SECOND } else { 7440 * SECOND })
                                && !(*ending && flags == SYN) =>
                        {
                            *used = now;
                            *ending |= flags == FIN;
                            *node
                        }
                        Some(_) | None => {
                            model.remove(&port);
                            0
                        }
                    };
                    prop_assert_eq!(exit(&mut anchors, &mut links, port, flags, now), Some(expected));
                }
                Step::Gone(node) => {
                    links.remove(NodeRef(u32::from(node)));
                    live.retain(|live| *live != u32::from(node));
                }
                Step::Passed(seconds) => now += Nanos::from(seconds) * SECOND,
                Step::Expired => {
                    anchors.expire(now);
                    model.retain(|_, (_, used, ending)| {
                        now - *used < (if *ending { 120 * SECOND } else { 7440 * SECOND })
                    });
                }
            }
        }
    }
}
