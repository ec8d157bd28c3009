use jump_session::reason::Reason;

use super::*;

const OLD: u16 = 1;
const NEW: u16 = 2;

/// Two linked gateways; the client is attached to the first in epoch 1.
fn pair() -> (Cluster, Node, Node, Client) {
    let mut cluster = Cluster::new();
    let mut old = Node::new(&mut cluster, OLD);
    let mut new = Node::new(&mut cluster, NEW);
    link(&mut old, &mut new);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut old, session(1), 1, &[inner(1)]);
    new.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(u32::from(OLD))));
    (cluster, old, new, client)
}

fn carry_mesh(from: &mut Node, to: &mut Node) {
    for (_, datagram) in std::mem::take(&mut from.wire.mesh) {
        to.mesh_brings(&datagram);
    }
}

#[test]
fn a_planned_move_loses_no_packet_in_either_direction() {
    let (_, mut old, mut new, mut client) = pair();
    let confirmed = {
        let (keys, _) = client.handshake(&mut new, Some(session(1)), None);
        // The old path is used until the new owner is accepted.
        let old_keys = client.keys.replace(keys);
        client.send(&mut new, &Frame::Confirm);
        let new_keys = std::mem::replace(&mut client.keys, old_keys);
        (new.confirmed().remove(0), new_keys)
    };
    // Control writes the intent: every gateway learns of it; the old owner is told to stop.
    for node in [&mut old, &mut new] {
        let from = if node.end.number.0 == OLD { NodeRef::OWN } else { NodeRef(u32::from(OLD)) };
        node.bind(session(1), 1, &[inner(1)], BindingPhase::Handover { from });
    }
    client.send_packet(&mut old, &packet(inner(1), server(), b"up, before the fence"));
    assert_eq!(old.wire.inner.len(), 1, "the owner stopped before it was told to");
    assert!(old.stop(session(1), 1, StopCause::Moved));
    client.send_packet(&mut old, &packet(inner(1), server(), b"up, after the fence"));
    old.inner_sends(&packet(server(), inner(1), b"down, at the old owner"));
    new.inner_sends(&packet(server(), inner(1), b"down, at the new owner"));
    assert_eq!(old.wire.inner.len(), 1, "a fenced owner forwarded");
    assert!(old.wire.mesh.is_empty() && old.wire.clients.is_empty());

    // The acknowledgement commits the new owner. The news reaches the old one first.
    old.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(u32::from(NEW))));
    carry_mesh(&mut old, &mut new);
    new.accept(&confirmed.0, session(1), 2, &[inner(1)]);
    client.keys = confirmed.1;
    let (frames, packets) = client.receive(&mut new);
    assert_eq!(frames.len(), 1);
    assert_eq!(packets.len(), 2, "a packet to the client was lost");
    assert_eq!(new.wire.inner, [packet(inner(1), server(), b"up, after the fence")]);
    // What the network still sends to the old owner is relayed.
    old.inner_sends(&packet(server(), inner(1), b"later"));
    carry_mesh(&mut old, &mut new);
    assert_eq!(client.packets(&mut new).len(), 1);
}

#[test]
fn a_fenced_owner_answers_nothing() {
    let (_, mut old, _, mut client) = pair();
    old.stop(session(1), 1, StopCause::Moved);
    for frame in [Frame::Ping { id: 1 }, Frame::Confirm, Frame::PathChallenge { token: [1; 8] }] {
        client.send(&mut old, &frame);
    }
    assert!(old.wire.clients.is_empty());
    old.advance(3 * SECOND);
    client.send(&mut old, &Frame::Ping { id: 2 });
    let (_, hint) = old.wire.clients.pop().expect("a hint once the old keys are gone");
    assert!(jump_crypto::cookie::ReattachHint::parse(&hint).is_some());
}

#[test]
fn news_of_a_later_epoch_elsewhere_stops_a_session_without_an_order() {
    let (_, mut old, _, mut client) = pair();
    old.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(u32::from(NEW))));
    client.send_packet(&mut old, &packet(inner(1), server(), b"stale owner"));
    assert!(old.wire.inner.is_empty());
    assert_eq!(old.plane.sessions(), 0);
}

#[test]
fn news_of_an_earlier_epoch_stops_nothing() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, NEW);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 5, &[inner(1)]);
    for phase in [
        BindingPhase::Owned(NodeRef(9)),
        BindingPhase::Handover { from: NodeRef(9) },
        BindingPhase::Released(Reason::Drained),
    ] {
        node.bind(session(1), 4, &[inner(1)], phase);
    }
    node.bind(session(1), 5, &[inner(1)], BindingPhase::Owned(NodeRef::OWN));
    client.send_packet(&mut node, &packet(inner(1), server(), b"still owner"));
    assert_eq!(node.wire.inner.len(), 1);
}

#[test]
fn the_own_next_epoch_seen_first_on_the_stream_does_not_refuse_its_own_acceptance() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, NEW);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 1, &[inner(1)]);
    let confirmed = client.confirm(&mut node, Some(session(1)));
    node.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef::OWN));
    node.accept(&confirmed, session(1), 2, &[inner(1)]);
    client.frames(&mut node);
    client.send_packet(&mut node, &packet(inner(1), server(), b"on"));
    assert_eq!(node.wire.inner.len(), 1);
}

#[test]
fn a_session_that_ended_in_the_store_stops_and_its_client_is_told() {
    let (_, mut old, _, mut client) = pair();
    old.bind(session(1), 1, &[inner(1)], BindingPhase::Terminated(Reason::KeyRevoked));
    assert_eq!(client.frames(&mut old), [Frame::Terminated { reason: Reason::KeyRevoked }]);
    client.send_packet(&mut old, &packet(inner(1), server(), b"revoked"));
    old.inner_sends(&packet(server(), inner(1), b"revoked"));
    assert!(old.wire.inner.is_empty() && client.packets(&mut old).is_empty());
    assert_eq!(old.plane.routes(), 0);
}

#[test]
fn without_authority_a_terminated_sessions_client_is_told_nothing() {
    let (_, mut old, _, _) = pair();
    let update = BindingUpdate {
        session: session(1),
        epoch: Epoch(1),
        inner: vec![inner(1)],
        phase: BindingPhase::Terminated(Reason::KeyRevoked),
        policy: Policy::default(),
    };
    let tick = old.tick();
    old.plane.handle_command(tick, Command::Bindings(vec![update]), false, &mut old.wire);
    assert!(old.wire.clients.is_empty());
    assert_eq!(old.plane.sessions(), 0);
}

#[test]
fn an_acceptance_without_authority_makes_no_session() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, Some(session(1)));
    let verdict = Box::new(Verdict::Accepted(activation(session(1), 1, &[inner(1)], node.now)));
    let (tick, index) = (node.tick(), confirmed.index);
    node.plane.handle_command(tick, Command::Decide { index, verdict }, false, &mut node.wire);
    assert!(node.plane.sessions() == 0 && node.wire.clients.is_empty());
}

#[test]
fn a_draining_gateway_asks_old_and_new_clients_to_move_and_serves_them_until_then() {
    let (mut cluster, mut old, _, mut client) = pair();
    let targets = vec![SocketAddr::from(([192, 0, 2, 2], 51820))];
    let drain = Command::Drain { reason: Reason::GatewayDraining, targets: targets.clone() };
    old.command(drain);
    let migrate = Frame::Migrate { reason: Reason::GatewayDraining, targets: targets.clone() };
    assert_eq!(client.frames(&mut old), std::slice::from_ref(&migrate));
    client.send_packet(&mut old, &packet(inner(1), server(), b"still served"));
    assert_eq!(old.wire.inner.len(), 1);
    // A claim that was decided just before the drain.
    let mut late = Client::new(&mut cluster, 2);
    let confirmed = late.confirm(&mut old, None);
    old.accept(&confirmed, session(2), 1, &[inner(2)]);
    assert_eq!(late.frames(&mut old)[1], migrate);
    // Asked again, told again: a Migrate may be lost.
    old.command(Command::Drain { reason: Reason::GatewayDraining, targets });
    assert_eq!(client.frames(&mut old), [migrate]);
}

#[test]
fn an_operators_order_tells_one_client_where_to_go_and_serves_it_until_then() {
    let (_, mut old, _, mut client) = pair();
    let targets = vec![SocketAddr::from(([192, 0, 2, 2], 51820))];
    let order = |epoch, node: &mut Node| {
        let (carried, answer) = tokio::sync::oneshot::channel();
        node.command(Command::Move { session: session(1), epoch, targets: targets.clone(), carried });
        answer.blocking_recv().unwrap()
    };
    assert!(order(Epoch(1), &mut old));
    let migrate = Frame::Migrate { reason: Reason::OperatorMove, targets: targets.clone() };
    assert_eq!(client.frames(&mut old), [migrate]);
    client.send_packet(&mut old, &packet(inner(1), server(), b"still served"));
    assert_eq!(old.wire.inner.len(), 1);
    assert!(!order(Epoch(2), &mut old), "an order for another epoch found the session");
    old.stop(session(1), 1, StopCause::Moved);
    assert!(!order(Epoch(1), &mut old), "a session that had left was asked to move");
}

#[test]
fn who_stops_a_session_hears_of_its_path_switches_here_as_often_as_it_asks() {
    let (_, mut node, _, mut client) = pair();
    client.address = "198.51.100.9:4000".parse().unwrap();
    client.send_packet(&mut node, &packet(inner(1), server(), b"from elsewhere"));
    let frames = client.frames(&mut node);
    let token =
        frames.iter().find_map(|f| if let Frame::PathChallenge { token } = f { Some(*token) } else { None });
    client.send(&mut node, &Frame::PathResponse { token: token.expect("a challenge on the new path") });
    node.advance(SECOND);
    let first = node.stop_ages(session(1), 1);
    assert_eq!(first, [Duration::from_secs(1)]);
    node.advance(2 * SECOND);
    assert_eq!(node.stop_ages(session(1), 1), [Duration::from_secs(3)], "a repeated order heard of none");
}

#[test]
fn a_session_given_up_at_the_deadline_is_told_where_to_go() {
    let (_, mut old, _, mut client) = pair();
    let targets = vec![SocketAddr::from(([192, 0, 2, 2], 51820))];
    assert!(old.stop(session(1), 1, StopCause::Released(targets.clone())));
    assert_eq!(client.frames(&mut old), [Frame::Migrate { reason: Reason::Drained, targets }]);
    client.send_packet(&mut old, &packet(inner(1), server(), b"given up"));
    assert!(old.wire.inner.is_empty());
}

#[test]
fn a_session_that_a_new_snapshot_does_not_mention_ends_and_a_mentioned_or_younger_one_does_not() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, OLD);
    let mut clients: Vec<Client> = (1..=3).map(|number| Client::new(&mut cluster, number)).collect();
    for number in [1, 2] {
        clients[usize::from(number) - 1].attach(&mut node, session(number), 1, &[inner(number)]);
    }
    node.command(Command::SnapshotBegins);
    node.bind(session(2), 1, &[inner(2)], BindingPhase::Owned(NodeRef::OWN));
    clients[2].attach(&mut node, session(3), 1, &[inner(3)]);
    node.command(Command::SnapshotComplete);
    assert_eq!(node.plane.sessions(), 3, "news under way was not waited for");
    node.advance(2 * SECOND);
    assert_eq!(node.plane.sessions(), 2);
    let told = clients[0].frames(&mut node);
    assert_eq!(told, [Frame::Terminated { reason: Reason::SessionTerminated }]);
    for number in [2, 3] {
        let client = &mut clients[usize::from(number) - 1];
        client.send_packet(&mut node, &packet(inner(number), server(), b"on"));
    }
    assert_eq!(node.wire.inner.len(), 2);
}

/// An answer of control that the stream has overtaken must not revive what is over (docs/ownership.md, O3).
#[test]
fn an_acceptance_that_news_of_its_end_has_overtaken_activates_nothing() {
    for phase in [
        BindingPhase::Terminated(Reason::KeyRevoked),
        BindingPhase::Released(Reason::NodeLost),
        BindingPhase::Owned(NodeRef(9)),
        BindingPhase::Handover { from: NodeRef(9) },
    ] {
        // What names another owner says that the epoch before is over.
        let news = match phase {
            BindingPhase::Terminated(_) | BindingPhase::Released(_) => 4,
            BindingPhase::Owned(_) | BindingPhase::Handover { .. } => 5,
        };
        let mut cluster = Cluster::new();
        let mut node = Node::new(&mut cluster, NEW);
        let mut client = Client::new(&mut cluster, 1);
        let confirmed = client.confirm(&mut node, Some(session(1)));
        node.bind(session(1), news, &[inner(1)], phase);
        node.accept(&confirmed, session(1), 4, &[inner(1)]);
        assert_eq!(node.plane.sessions(), 0, "{phase:?} was followed by a session");
        let frames = client.frames(&mut node);
        assert!(
            matches!(&frames[..], [Frame::AttachResult(result)] if matches!(**result, AttachResult::Rejected { .. })),
            "{phase:?}: {frames:?}"
        );
    }
}

#[test]
fn news_of_an_end_is_remembered_only_while_an_answer_is_outstanding() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, NEW);
    for n in 0..100 {
        node.bind(session(n), 4, &[inner(n)], BindingPhase::Terminated(Reason::ClientClosed));
    }
    assert_eq!(node.plane.given_up.len(), 0);
}

#[test]
fn without_authority_news_of_an_owner_sends_nothing_that_waits() {
    let mut cluster = Cluster::new();
    let (mut node, mut other) = (Node::new(&mut cluster, OLD), Node::new(&mut cluster, NEW));
    node.bind(session(1), 1, &[inner(1)], BindingPhase::Released(Reason::NodeLost));
    node.inner_sends(&packet(server(), inner(1), b"waits"));
    assert_eq!(node.count(Count::Parked), 1);
    link(&mut node, &mut other);
    let owner = BindingPhase::Owned(NodeRef(u32::from(NEW)));
    let update = BindingUpdate {
        session: session(1),
        epoch: Epoch(2),
        inner: vec![inner(1)],
        phase: owner,
        policy: Policy::default(),
    };
    node.plane.handle_command(node.tick(), Command::Bindings(vec![update]), false, &mut node.wire);
    assert!(node.wire.mesh.is_empty(), "a gateway without authority relayed a packet");
    node.bind(session(1), 2, &[inner(1)], owner);
    assert_eq!(node.wire.mesh.len(), 1);
}

#[test]
fn what_was_under_way_before_the_session_left_and_came_back_is_delivered() {
    let (_, mut old, _, mut client) = pair();
    let under_way = client.seal(Content::Packet, &packet(inner(1), server(), b"under way"));
    assert!(old.stop(session(1), 1, StopCause::Moved));
    old.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(u32::from(NEW))));
    client.attach(&mut old, session(1), 3, &[inner(1)]);
    old.client_sends(client.address, &under_way);
    assert_eq!(old.wire.inner, [packet(inner(1), server(), b"under way")]);
}

/// The old owner hears of the commit on its stream, the new one from control's answer: either may be first.
#[test]
fn what_the_old_owner_relays_before_the_new_one_has_heard_waits_for_it() {
    let (_, mut old, mut new, mut client) = pair();
    let up = client.seal(Content::Packet, &packet(inner(1), server(), b"up"));
    let confirmed = client.confirm(&mut new, Some(session(1)));
    assert!(old.stop(session(1), 1, StopCause::Moved));
    old.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(u32::from(NEW))));
    old.client_sends(client.address, &up);
    // The new owner handed it to the old one, by what it knew.
    new.inner_sends(&packet(server(), inner(1), b"down"));
    carry_mesh(&mut new, &mut old);
    carry_mesh(&mut old, &mut new);
    new.accept(&confirmed, session(1), 2, &[inner(1)]);
    assert_eq!(new.wire.inner, [packet(inner(1), server(), b"up")]);
    assert_eq!(client.packets(&mut new), [packet(server(), inner(1), b"down")]);
}
