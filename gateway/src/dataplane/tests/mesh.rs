use super::*;

fn three() -> (Cluster, [Node; 3], Client) {
    let mut cluster = Cluster::new();
    let mut nodes = [1, 2, 3].map(|number| Node::new(&mut cluster, number));
    let [a, b, c] = &mut nodes;
    link(a, b);
    link(a, c);
    link(b, c);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(a, session(1), 1, &[inner(1)]);
    for node in [b, c] {
        node.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(1)));
    }
    (cluster, nodes, client)
}

fn carry(from: &mut Node, to: &mut Node) -> usize {
    let mesh = std::mem::take(&mut from.wire.mesh);
    for (address, datagram) in &mesh {
        assert_eq!(*address, to.mesh_address);
        to.mesh_brings(datagram);
    }
    mesh.len()
}

#[test]
fn any_gateway_relays_an_inner_packet_to_the_owner_which_seals_it() {
    let (_, [mut a, mut b, _], mut client) = three();
    let down = packet(server(), inner(1), b"by another way");
    b.inner_sends(&down);
    assert_eq!(carry(&mut b, &mut a), 1);
    assert_eq!(client.packets(&mut a), [down]);
    assert_eq!((b.count(Count::RelayedOut), a.count(Count::RelayedIn)), (1, 1));
}

#[test]
fn a_record_on_the_wrong_gateway_reaches_its_owner_with_its_source() {
    let (_, [mut a, mut b, _], mut client) = three();
    let up = packet(inner(1), server(), b"rehashed");
    client.send_packet(&mut b, &up);
    assert!(b.wire.clients.is_empty(), "a hint for an index of a live node");
    carry(&mut b, &mut a);
    assert_eq!(a.wire.inner, [up]);
    client.send(&mut b, &Frame::Ping { id: 5 });
    carry(&mut b, &mut a);
    assert!(matches!(client.frames(&mut a)[..], [Frame::Pong { id: 5, .. }]));
}

#[test]
fn a_relayed_packet_travels_over_two_links_at_most() {
    let (_, [mut a, mut b, mut c], _) = three();
    // Every gateway believes that another one owns the session: a loop, if relays were relayed.
    a.stop(session(1), 1, StopCause::Moved);
    a.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(2)));
    b.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(3)));
    c.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(1)));
    a.inner_sends(&packet(server(), inner(1), b"around"));
    assert_eq!(carry(&mut a, &mut b), 1);
    assert_eq!(carry(&mut b, &mut c), 1);
    assert_eq!(carry(&mut c, &mut a), 0, "the packet goes round");
    assert_eq!(c.count(Count::Parked), 1, "it waits for news of the owner");
    c.advance(WAIT_MAX);
    assert_eq!(c.dropped(DropReason::ParkingExpired), 1);
}

#[test]
fn a_stray_record_is_not_relayed_twice() {
    let (_, [mut a, mut b, _], mut client) = three();
    let record = client.seal(Content::Control, &encode(&Frame::Ping { id: 1 }));
    let mut body = vec![links::Kind::StrayRecord as u8];
    body.extend(links::encode_source(client.address));
    body.extend(&record);
    // A peer that relays a record of a third node's index.
    let link = b.plane.links.get_mut(NodeRef(3)).unwrap();
    assert!(link.send(
        links::Kind::StrayRecord,
        &body[1..20],
        &body[20..],
        &mut b.wire,
        &mut Counters::new()
    ));
    let (_, datagram) = b.wire.mesh.pop().unwrap();
    let mut c = three().1.into_iter().nth(2).unwrap();
    c.mesh_brings(&datagram);
    assert!(c.wire.mesh.is_empty(), "relayed again");
    let _ = &mut a;
}

#[test]
fn a_peer_cannot_send_as_a_client_that_it_does_not_carry() {
    let (_, [mut a, mut b, _], _) = three();
    // The new owner checks the inner source of what an old owner hands on, as if the client had sent it.
    let spoofed = packet(inner(9), server(), b"spoofed");
    let link = b.plane.links.get_mut(NodeRef(1)).unwrap();
    link.send(links::Kind::UplinkPacket, &[], &spoofed, &mut b.wire, &mut Counters::new());
    carry(&mut b, &mut a);
    assert!(a.wire.inner.is_empty());
}

#[test]
fn a_mesh_datagram_that_is_replayed_forged_or_of_a_gone_node_is_dropped() {
    let (_, [mut a, mut b, _], mut client) = three();
    b.inner_sends(&packet(server(), inner(1), b"once"));
    let (_, datagram) = b.wire.mesh.pop().unwrap();
    a.mesh_brings(&datagram);
    a.mesh_brings(&datagram);
    assert_eq!(a.dropped(DropReason::Replay), 1);
    let mut forged = datagram.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    forged[15] ^= 1;
    a.mesh_brings(&forged);
    assert_eq!(a.dropped(DropReason::Authentication), 1);
    assert_eq!(client.packets(&mut a).len(), 1);
    a.command(Command::Unlink(NodeRef(2)));
    b.inner_sends(&packet(server(), inner(1), b"gone"));
    carry(&mut b, &mut a);
    assert_eq!(a.dropped(DropReason::UnknownNode), 1);
    assert!(client.packets(&mut a).is_empty());
}

#[test]
fn packets_for_a_dead_owners_session_wait_for_the_next_owner() {
    let (_, [_, mut b, mut c], _) = three();
    b.command(Command::Unlink(NodeRef(1)));
    for _ in 0..2000 {
        b.inner_sends(&packet(server(), inner(1), &[7; 1200]));
    }
    let parked = b.count(Count::Parked);
    assert!((1500..2000).contains(&parked), "{parked} of 2000 packets wait");
    assert_eq!(b.dropped(DropReason::ParkingFull), 2000 - parked);
    let parked = parked as usize;
    b.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(3)));
    assert_eq!(b.wire.mesh.len(), parked);
    let mut client = Client::new(&mut Cluster::new(), 1);
    client.attach(&mut c, session(1), 2, &[inner(1)]);
    carry(&mut b, &mut c);
    assert_eq!(client.packets(&mut c).len(), parked);
}

#[test]
fn packets_that_nobody_comes_for_are_forgotten() {
    let (_, [_, mut b, _], _) = three();
    b.command(Command::Unlink(NodeRef(1)));
    b.inner_sends(&packet(server(), inner(1), b"x"));
    b.advance(WAIT_MAX);
    assert_eq!(b.dropped(DropReason::ParkingExpired), 1);
    b.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(3)));
    assert!(b.wire.mesh.is_empty());
}

#[test]
fn what_waits_for_a_node_leaves_when_its_link_comes_up() {
    let mut cluster = Cluster::new();
    let mut a = Node::new(&mut cluster, 1);
    let mut b = Node::new(&mut cluster, 2);
    a.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(2)));
    a.inner_sends(&packet(server(), inner(1), b"x"));
    assert!(a.wire.mesh.is_empty());
    link(&mut a, &mut b);
    assert_eq!(a.wire.mesh.len(), 1);
}
