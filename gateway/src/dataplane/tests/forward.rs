use jump_session::reason::Reason;

use super::*;

fn attached() -> (Cluster, Node, Client) {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 1, &[inner(1), "fd00::1".parse().unwrap()]);
    (cluster, node, client)
}

#[test]
fn packets_go_both_ways_for_both_families() {
    let (_, mut node, mut client) = attached();
    let six: IpAddr = "fd00::1".parse().unwrap();
    let far: IpAddr = "fd99::9".parse().unwrap();
    for (own, other) in [(inner(1), server()), (six, far)] {
        let up = packet(own, other, b"up");
        client.send_packet(&mut node, &up);
        assert_eq!(node.wire.inner.pop(), Some(up));
        let down = packet(other, own, b"down");
        node.inner_sends(&down);
        assert_eq!(client.packets(&mut node), [down]);
    }
}

#[test]
fn a_client_cannot_send_from_another_inner_address() {
    let (_, mut node, mut client) = attached();
    for source in [inner(2), server(), IpAddr::from([0, 0, 0, 0]), "fd00::2".parse().unwrap()] {
        let destination = if source.is_ipv4() { server() } else { "fd99::9".parse().unwrap() };
        client.send_packet(&mut node, &packet(source, destination, b"spoofed"));
    }
    // What every Linux device sends when its interface comes up is no attempt to be somebody else.
    let solicitation = packet("fe80::1".parse().unwrap(), "ff02::2".parse().unwrap(), b"router?");
    client.send_packet(&mut node, &solicitation);
    client.send_packet(&mut node, b"not a packet");
    client.send_packet(&mut node, b"");
    assert!(node.wire.inner.is_empty());
    assert_eq!(node.dropped(DropReason::InnerSource), 4);
    assert_eq!(node.dropped(DropReason::InnerScope), 1);
    assert_eq!(node.dropped(DropReason::InnerMalformed), 2);
}

#[test]
fn a_device_reaches_only_what_its_policy_allows() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, None);
    let mut allowed = activation(session(1), 1, &[inner(1)], node.now);
    allowed.policy.allowed = Some(vec!["10.1.0.0/24".parse().unwrap()]);
    node.command(Command::Decide { index: confirmed.index, verdict: Box::new(Verdict::Accepted(allowed)) });
    client.send_packet(&mut node, &packet(inner(1), server(), b"yes"));
    client.send_packet(&mut node, &packet(inner(1), IpAddr::from([10, 1, 1, 1]), b"no"));
    assert_eq!((node.wire.inner.len(), node.dropped(DropReason::InnerDestination)), (1, 1));
}

#[test]
fn what_a_device_may_not_reach_does_not_reach_it_except_to_say_that_a_packet_did_not_arrive() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, None);
    let mut allowed = activation(session(1), 1, &[inner(1)], node.now);
    allowed.policy.allowed = Some(vec!["10.1.0.0/24".parse().unwrap()]);
    node.command(Command::Decide { index: confirmed.index, verdict: Box::new(Verdict::Accepted(allowed)) });
    client.receive(&mut node);
    let router = IpAddr::from([10, 9, 9, 9]);
    let unreachable = |target: IpAddr| {
        let quoted = packet(inner(1), target, b"12345678");
        let mut icmp = packet(router, inner(1), &[&[3, 4, 0, 0, 0, 0, 0, 0], &quoted[..]].concat());
        icmp[9] = 1;
        icmp
    };
    node.inner_sends(&packet(router, inner(1), b"no"));
    node.inner_sends(&unreachable(IpAddr::from([10, 9, 0, 1])));
    assert_eq!((client.packets(&mut node).len(), node.dropped(DropReason::InnerDestination)), (0, 2));
    node.inner_sends(&packet(server(), inner(1), b"yes"));
    node.inner_sends(&unreachable(server()));
    assert_eq!((client.packets(&mut node).len(), node.dropped(DropReason::InnerDestination)), (2, 2));
}

#[test]
fn a_session_gets_no_more_than_its_rate_in_each_direction_and_others_are_not_bound_by_it() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut bounded = Client::new(&mut cluster, 1);
    let confirmed = bounded.confirm(&mut node, None);
    let mut accepted = activation(session(1), 1, &[inner(1)], node.now);
    accepted.policy.bytes_per_second = 1_000_000;
    node.command(Command::Decide { index: confirmed.index, verdict: Box::new(Verdict::Accepted(accepted)) });
    bounded.receive(&mut node);
    let (up, down) =
        (packet(inner(1), server(), &[0; 1000 - 20]), packet(server(), inner(1), &[0; 1000 - 20]));
    for _ in 0..300 {
        bounded.send_packet(&mut node, &up);
        node.inner_sends(&down);
    }
    assert_eq!((node.wire.inner.len(), bounded.packets(&mut node).len()), (250, 250));
    assert_eq!(node.dropped(DropReason::RateLimit), 100);
    node.now += SECOND / 100;
    node.wire.inner.clear();
    for _ in 0..20 {
        bounded.send_packet(&mut node, &up);
    }
    assert_eq!(node.wire.inner.len(), 10);
}

#[test]
fn a_changed_policy_bounds_a_live_session_and_only_in_its_epoch() {
    let (_, mut node, mut client) = attached();
    let elsewhere = packet(inner(1), IpAddr::from([10, 9, 0, 1]), b"elsewhere");
    let bind = |node: &mut Node, epoch: u64, allowed: Option<&str>| {
        let policy = Policy { allowed: allowed.map(|net| vec![net.parse().unwrap()]), ..Policy::default() };
        let update = BindingUpdate {
            session: session(1),
            epoch: Epoch(epoch),
            inner: vec![inner(1)],
            phase: BindingPhase::Owned(NodeRef::OWN),
            policy,
        };
        node.command(Command::Bindings(vec![update]));
    };
    bind(&mut node, 1, Some("10.1.0.0/24"));
    client.send_packet(&mut node, &elsewhere);
    assert_eq!((node.wire.inner.len(), node.dropped(DropReason::InnerDestination)), (0, 1));
    bind(&mut node, 1, None);
    client.send_packet(&mut node, &elsewhere);
    assert_eq!(node.wire.inner.len(), 1);
    bind(&mut node, 0, Some("10.1.0.0/24"));
    client.send_packet(&mut node, &elsewhere);
    assert_eq!(node.wire.inner.len(), 2, "an older epoch's policy");
}

#[test]
fn a_policy_that_overtakes_the_answer_to_a_claim_is_the_one_that_holds() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, None);
    let update = BindingUpdate {
        session: session(1),
        epoch: Epoch(1),
        inner: vec![inner(1)],
        phase: BindingPhase::Owned(NodeRef::OWN),
        policy: Policy { allowed: Some(vec!["10.1.0.0/24".parse().unwrap()]), ..Policy::default() },
    };
    node.command(Command::Bindings(vec![update]));
    let accepted = activation(session(1), 1, &[inner(1)], node.now);
    node.command(Command::Decide { index: confirmed.index, verdict: Box::new(Verdict::Accepted(accepted)) });
    client.send_packet(&mut node, &packet(inner(1), IpAddr::from([10, 9, 0, 1]), b"no"));
    assert_eq!((node.wire.inner.len(), node.dropped(DropReason::InnerDestination)), (0, 1));
}

#[test]
fn congestion_marks_cross_the_tunnel_as_rfc_6040_says() {
    const CE: u8 = 3;
    let (_, mut node, mut client) = attached();
    node.wire.marks.clear();
    for inner_bits in 0..4 {
        let mut up = packet(inner(1), server(), b"up");
        up[1] = 0xb8 | inner_bits;
        let mut record = client.seal(Content::Packet, &up);
        node.plane.handle_marked_client(node.tick(), client.address, CE, &mut record, &mut node.wire);
        let mut down = packet(server(), inner(1), b"down");
        down[1] = 0xb8 | inner_bits;
        node.inner_sends(&down);
    }
    assert_eq!(node.wire.marks, [0, 1, 2, 3], "the outer header takes over the inner packet's bits");
    let marked: Vec<u8> = node.wire.inner.iter().map(|packet| packet[1]).collect();
    assert_eq!(marked, [0xb8 | CE; 3], "every ECN-capable packet is marked, its DSCP as it was");
    assert_eq!(node.dropped(DropReason::Congestion), 1, "the packet that is not ECN-capable is dropped");
    let record = client.seal(Content::Packet, &packet(inner(1), server(), b"later"));
    node.client_sends(client.address, &record);
    assert_eq!(node.dropped(DropReason::Congestion), 1, "a mark is of its datagram alone");
}

#[test]
fn a_flood_of_one_session_is_cut_and_the_others_are_forwarded_whole() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut clients: Vec<Client> = (1..=4).map(|n| Client::new(&mut cluster, n)).collect();
    for (n, client) in (1..).zip(&mut clients) {
        client.attach(&mut node, session(n), 1, &[inner(n)]);
    }
    for backlogged in [false, true] {
        node.wire.inner.clear();
        node.plane.begin_pass(backlogged);
        for (n, client) in (1..).zip(&mut clients) {
            for _ in 0..if n == 1 { 4000 } else { 20 } {
                client.send_packet(&mut node, &packet(inner(n), server(), b"data"));
            }
        }
        let mut of = [0; 5];
        node.wire.inner.iter().for_each(|packet| of[usize::from(packet[15])] += 1);
        assert_eq!(of[2..], [20; 3], "backlogged: {backlogged}");
        assert_eq!(of[1] < 4000, backlogged, "{} packets of the flood", of[1]);
    }
    assert!(node.dropped(DropReason::SessionShare) > 0);
}

#[test]
fn a_replayed_record_is_forwarded_once() {
    let (_, mut node, mut client) = attached();
    let record = client.seal(Content::Packet, &packet(inner(1), server(), b"once"));
    for _ in 0..3 {
        node.client_sends(client.address, &record);
    }
    assert_eq!((node.wire.inner.len(), node.dropped(DropReason::Replay)), (1, 2));
}

#[test]
fn a_replay_from_another_address_moves_no_endpoint() {
    let (_, mut node, mut client) = attached();
    let record = client.seal(Content::Control, &encode(&Frame::Ping { id: 1 }));
    node.client_sends(client.address, &record);
    client.frames(&mut node);
    node.client_sends(SocketAddr::from(([203, 0, 113, 1], 7)), &record);
    assert!(node.wire.clients.is_empty(), "something was sent to the replayer");
    node.inner_sends(&packet(server(), inner(1), b"down"));
    assert_eq!(client.packets(&mut node).len(), 1);
}

#[test]
fn a_rebound_client_is_served_at_its_new_address_after_it_has_answered_there() {
    let (_, mut node, mut client) = attached();
    let old = client.address;
    client.address = SocketAddr::from(([198, 51, 100, 99], 999));
    client.send(&mut node, &Frame::Ping { id: 1 });
    node.inner_sends(&packet(server(), inner(1), b"too early"));
    assert!(node.wire.clients.iter().any(|(to, _)| *to == old), "bulk data went to an unproven address");
    node.wire.clients.retain(|(to, _)| *to != old);
    let frames = client.frames(&mut node);
    let token = frames
        .iter()
        .find_map(|frame| if let Frame::PathChallenge { token } = frame { Some(*token) } else { None });
    client.send(&mut node, &Frame::PathResponse { token: token.expect("a challenge") });
    assert!(client.frames(&mut node).contains(&Frame::Bound { binding: 1 }));
    node.inner_sends(&packet(server(), inner(1), b"now"));
    assert_eq!(client.packets(&mut node).len(), 1);
    assert_eq!(node.count(Count::PathMoves), 1);
}

#[test]
fn an_inner_destination_that_is_nobodys_is_dropped() {
    let (_, mut node, _) = attached();
    node.inner_sends(&packet(server(), inner(77), b"?"));
    assert_eq!(node.dropped(DropReason::NoRoute), 1);
}

#[test]
fn before_the_first_snapshot_packets_for_the_pools_wait_and_others_do_not() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut peer = Node::new(&mut cluster, 2);
    link(&mut node, &mut peer);
    node.plane.routes.complete = false;
    node.inner_sends(&packet(server(), inner(1), b"wait"));
    node.inner_sends(&packet(server(), IpAddr::from([10, 99, 0, 1]), b"no pool"));
    assert_eq!((node.count(Count::Parked), node.dropped(DropReason::NoRoute)), (1, 1));
    node.command(Command::SnapshotBegins);
    node.bind(session(1), 3, &[inner(1)], BindingPhase::Owned(NodeRef(2)));
    node.command(Command::SnapshotComplete);
    assert_eq!(node.wire.mesh.len(), 1, "what waited was not relayed to the owner");
}

#[test]
fn an_unknown_index_gets_a_hint_that_is_shorter_than_its_trigger_and_rate_limited() {
    let mut cluster = Cluster::new();
    let limits = Limits { hint_rate: Rate { per_second: 1, burst: 3 }, ..Limits::default() };
    let mut node = Node::with_limits(&mut cluster, 1, limits);
    let mut client = Client::new(&mut cluster, 1);
    let (keys, info) = client.handshake(&mut node, None, None);
    let index = keys.peer_index;
    client.keys = Some(keys);
    node.advance(HANDSHAKE_WAIT);
    for _ in 0..10 {
        let record = client.seal(Content::Control, &encode(&Frame::Ping { id: 1 }));
        node.client_sends(client.address, &record);
        for (_, hint) in &node.wire.clients {
            assert!(hint.len() < record.len());
            let hint = jump_crypto::cookie::ReattachHint::parse(hint).unwrap();
            assert!(hint.index == index && hint.carries(&info.hint));
        }
    }
    assert_eq!((node.wire.clients.len(), node.count(Count::Hints)), (3, 3));
}

#[test]
fn a_client_that_closes_is_told_and_control_hears_of_it_once() {
    let (_, mut node, mut client) = attached();
    client.send(&mut node, &Frame::Close { reason: Reason::ClientClosed });
    assert_eq!(client.frames(&mut node), [Frame::Terminated { reason: Reason::ClientClosed }]);
    assert_eq!(node.ended(), [(session(1), Epoch(1), Reason::ClientClosed)]);
    client.send_packet(&mut node, &packet(inner(1), server(), b"late"));
    node.inner_sends(&packet(server(), inner(1), b"late"));
    assert!(node.wire.inner.is_empty() && client.packets(&mut node).is_empty());
    assert_eq!(node.plane.sessions(), 0);
}

#[test]
fn a_session_past_its_life_is_told_and_ends() {
    let (_, mut node, mut client) = attached();
    for _ in 0..360 {
        node.advance(10 * SECOND);
        client.send(&mut node, &Frame::Ping { id: 1 });
    }
    let frames = client.frames(&mut node);
    assert!(frames.contains(&Frame::Terminated { reason: Reason::LifetimeExceeded }));
    assert_eq!(node.ended(), [(session(1), Epoch(1), Reason::LifetimeExceeded)]);
}

#[test]
fn an_end_that_finds_the_queue_full_is_not_lost() {
    let (_, mut node, mut client) = attached();
    let note = Note { session: session(9), correlation: [0; 16], epoch: Epoch(1), what: What::Activated };
    while node.plane.events.try_send(Event::Note(note.clone())).is_ok() {}
    client.send(&mut node, &Frame::Close { reason: Reason::ClientClosed });
    assert!(node.ended().is_empty(), "the queue was not full");
    node.advance(1);
    assert_eq!(node.ended().len(), 1);
}

#[test]
fn every_session_tells_what_it_carried_in_pages() {
    let (_, mut node, mut client) = attached();
    let (up, down) = (packet(inner(1), server(), b"up"), packet(server(), inner(1), b"down"));
    client.send_packet(&mut node, &up);
    node.inner_sends(&down);
    node.inner_sends(&down);
    let page = |node: &mut Node, from| {
        let (answer, mut page) = tokio::sync::oneshot::channel();
        node.command(Command::Usage { from, answer });
        page.try_recv().unwrap()
    };
    let first = page(&mut node, 0);
    let (up, down) = (up.len() as u64, down.len() as u64);
    let traffic = Traffic { packets_up: 1, bytes_up: up, packets_down: 2, bytes_down: 2 * down };
    let inner = vec![inner(1), "fd00::1".parse().unwrap()];
    let usage = Usage { session: session(1), epoch: Epoch(1), inner, traffic };
    assert_eq!(first, UsagePage { sessions: vec![usage], next: None });
    assert_eq!(page(&mut node, usize::MAX), UsagePage::default());
}
