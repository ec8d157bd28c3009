use jump_session::reason::Reason;

use super::*;

#[test]
fn an_attach_becomes_a_session_only_once_control_has_accepted_the_confirmed_handshake() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let (keys, _) = client.handshake(&mut node, None, None);
    client.keys = Some(keys);
    assert!(node.confirmed().is_empty(), "control was asked before the client had confirmed");
    client.send(&mut node, &Frame::Confirm);
    let confirmed = node.confirmed().remove(0);
    assert_eq!(confirmed.device, client.device_key());
    assert_eq!(node.plane.sessions(), 0);
    node.accept(&confirmed, session(1), 1, &[inner(1)]);
    assert_eq!(node.plane.sessions(), 1);
    assert_eq!(client.frames(&mut node).len(), 1);
}

#[test]
fn every_repeated_confirmation_gets_the_same_result_and_asks_control_once() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, None);
    client.send(&mut node, &Frame::Confirm);
    assert!(node.confirmed().is_empty());
    assert_eq!(client.frames(&mut node), [Frame::Pending], "the client does not know that it is waited for");
    node.accept(&confirmed, session(1), 1, &[inner(1)]);
    let first = client.frames(&mut node);
    for _ in 0..3 {
        client.send(&mut node, &Frame::Confirm);
        assert_eq!(client.frames(&mut node), first);
    }
    assert!(node.confirmed().is_empty());
}

#[test]
fn a_rejection_is_repeated_and_leaves_no_session() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, Some(session(1)));
    let rejected = AttachResult::Rejected {
        reason: Reason::StaleAttempt,
        current_epoch: Epoch(9),
        current_attach_seq: AttachSeq(77),
        retry_after: Duration::ZERO,
    };
    let verdict = Box::new(Verdict::Rejected(rejected.clone()));
    node.command(Command::Decide { index: confirmed.index, verdict });
    for _ in 0..2 {
        assert_eq!(client.frames(&mut node), [Frame::AttachResult(Box::new(rejected.clone()))]);
        client.send(&mut node, &Frame::Confirm);
    }
    assert_eq!(node.plane.sessions(), 0);
    node.advance(2 * CLAIM_WAIT);
    assert_eq!(node.plane.entries(), 0);
}

#[test]
fn a_replayed_or_withheld_attach_init_changes_nothing_and_is_counted() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let (mut initiation, init) = client.init(Some(session(1)), None);
    node.client_sends(client.address, &init);
    node.answer_inits();
    let (_, reply) = node.wire.clients.pop().unwrap();
    let (keys, _) = initiation.finish(&reply, &client.verifier, 0).unwrap();
    client.keys = Some(keys);
    client.send(&mut node, &Frame::Confirm);
    let confirmed = node.confirmed().remove(0);
    node.accept(&confirmed, session(1), 1, &[inner(1)]);
    client.frames(&mut node);
    let (withheld, thief) = (client.init(Some(session(1)), None).1, SocketAddr::from(([203, 0, 113, 9], 9)));
    for first_message in [init, withheld] {
        for wait in [0, 60 * SECOND] {
            node.advance(wait);
            let unconfirmed = node.dropped(DropReason::Unconfirmed);
            node.client_sends(thief, &first_message);
            node.answer_inits();
            // The answer is of no use to whoever cannot finish the handshake; a guess at its index opens nothing.
            node.wire.clients.clear();
            assert!(node.confirmed().is_empty());
            node.advance(HANDSHAKE_WAIT);
            assert_eq!(node.dropped(DropReason::Unconfirmed), unconfirmed + 1, "it was not counted");
            client.send(&mut node, &Frame::Ping { id: 1 });
            assert!(
                matches!(client.frames(&mut node)[..], [Frame::Pong { id: 1, .. }]),
                "the session was disturbed"
            );
        }
    }
    assert_eq!((node.plane.sessions(), node.plane.entries()), (1, 1));
}

#[test]
fn a_confirmation_under_other_keys_confirms_nothing() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let mut other = Client::new(&mut cluster, 2);
    let (keys, _) = client.handshake(&mut node, None, None);
    let (other_keys, _) = other.handshake(&mut node, None, None);
    let target = keys.peer_index;
    other.keys = Some(other_keys);
    let mut forged = other.seal(Content::Control, &encode(&Frame::Confirm));
    forged[4..8].copy_from_slice(&target.0.to_be_bytes());
    node.client_sends(client.address, &forged);
    assert_eq!(node.dropped(DropReason::Authentication), 1);
    assert!(node.confirmed().is_empty());
}

#[test]
fn after_a_newer_attach_on_the_same_node_the_older_keys_only_receive() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 1, &[inner(1)]);
    let old = client.seal(Content::Packet, &packet(inner(1), server(), b"old"));
    let asks = client.seal(Content::Control, &encode(&Frame::Close { reason: Reason::ClientClosed }));
    let foreign = client.seal(Content::Packet, &packet(inner(2), server(), b"foreign"));
    client.attach(&mut node, session(1), 2, &[inner(1)]);
    assert_eq!(node.plane.sessions(), 1);
    for datagram in [&old, &old, &asks, &foreign] {
        node.client_sends(client.address, datagram);
    }
    assert_eq!(node.wire.inner, [packet(inner(1), server(), b"old")]);
    assert!(node.wire.clients.is_empty(), "keys that were replaced answered");
    assert_eq!(node.plane.sessions(), 1, "keys that were replaced ended the session");
    client.send_packet(&mut node, &packet(inner(1), server(), b"new"));
    node.inner_sends(&packet(server(), inner(1), b"down"));
    assert_eq!((node.wire.inner.len(), client.packets(&mut node).len()), (2, 1));
    let late = client.seal(Content::Packet, &packet(inner(1), server(), b"late"));
    client.attach(&mut node, session(1), 3, &[inner(1)]);
    node.advance(3 * SECOND);
    node.client_sends(client.address, &late);
    assert_eq!(node.wire.inner.len(), 2, "replaced keys outlived their window");
}

#[test]
fn an_order_to_stop_that_overtakes_the_acceptance_wins() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, Some(session(1)));
    assert!(node.stop(session(1), 5, StopCause::Moved));
    node.accept(&confirmed, session(1), 5, &[inner(1)]);
    assert_eq!(node.plane.sessions(), 0, "a fenced epoch came to life");
    let frames = client.frames(&mut node);
    let [Frame::AttachResult(result)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(refused(result), (Reason::SupersededAttempt, Epoch(5)));
    let confirmed = client.confirm(&mut node, Some(session(1)));
    node.accept(&confirmed, session(1), 6, &[inner(1)]);
    assert_eq!(node.plane.sessions(), 1, "a later epoch was refused");
}

#[test]
fn an_acceptance_of_a_session_that_ended_meanwhile_says_so() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, Some(session(1)));
    assert!(node.stop(session(1), 5, StopCause::Terminated(Reason::OperatorTerminated)));
    node.accept(&confirmed, session(1), 5, &[inner(1)]);
    let frames = client.frames(&mut node);
    let [Frame::AttachResult(result)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(refused(result), (Reason::SessionTerminated, Epoch(5)));
}

#[test]
fn an_acceptance_that_is_older_than_the_news_of_its_session_makes_no_session() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let confirmed = client.confirm(&mut node, Some(session(1)));
    node.bind(session(1), 7, &[inner(1)], BindingPhase::Owned(NodeRef(9)));
    node.accept(&confirmed, session(1), 5, &[inner(1)]);
    assert_eq!(node.plane.sessions(), 0);
    let frames = client.frames(&mut node);
    let [Frame::AttachResult(result)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(refused(result), (Reason::SupersededAttempt, Epoch(7)));
}

fn refused(result: &AttachResult) -> (Reason, Epoch) {
    match result {
        AttachResult::Rejected { reason, current_epoch, .. } => (*reason, *current_epoch),
        AttachResult::Accepted(_) => panic!("accepted: {result:?}"),
    }
}

#[test]
fn a_rekey_keeps_epoch_and_path_and_retires_the_old_keys() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 4, &[inner(1)]);
    let under_way = client.seal(Content::Packet, &packet(inner(1), server(), b"under way"));
    let (keys, _) = client.handshake(&mut node, Some(session(1)), Some(4));
    client.keys = Some(keys);
    client.send(&mut node, &Frame::Confirm);
    assert!(node.confirmed().is_empty(), "a rekey asked control");
    let frames = client.frames(&mut node);
    assert!(
        matches!(&frames[..], [Frame::AttachResult(r)] if matches!(&**r, AttachResult::Accepted(a) if a.epoch == Epoch(4))),
        "{frames:?}"
    );
    node.client_sends(client.address, &under_way);
    client.send_packet(&mut node, &packet(inner(1), server(), b"new"));
    assert_eq!(node.wire.inner.len(), 2);
    node.inner_sends(&packet(server(), inner(1), b"down"));
    assert_eq!(client.packets(&mut node).len(), 1);
    node.advance(3 * SECOND);
    assert_eq!((node.plane.sessions(), node.plane.entries()), (1, 1), "the old keys stay");
}

#[test]
fn a_rekey_of_another_epoch_or_device_is_rejected() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let mut other = Client::new(&mut cluster, 2);
    client.attach(&mut node, session(1), 4, &[inner(1)]);
    for (who, epoch) in [(&mut client, 3), (&mut other, 4)] {
        let (keys, _) = who.handshake(&mut node, Some(session(1)), Some(epoch));
        let before = who.keys.replace(keys);
        who.send(&mut node, &Frame::Confirm);
        let frames = who.frames(&mut node);
        assert!(
            matches!(&frames[..], [Frame::AttachResult(r)]
                if matches!(**r, AttachResult::Rejected { reason: Reason::StaleEpoch, .. })),
            "{frames:?}"
        );
        who.keys = before;
    }
    client.send_packet(&mut node, &packet(inner(1), server(), b"still here"));
    assert_eq!(node.wire.inner.len(), 1);
}

#[test]
fn under_load_a_first_message_without_a_cookie_gets_a_cookie_and_nothing_else() {
    let mut cluster = Cluster::new();
    let limits = Limits { cookie_above_per_second: 3, ..Limits::default() };
    let mut node = Node::with_limits(&mut cluster, 1, limits);
    let mut client = Client::new(&mut cluster, 1);
    for _ in 0..3 {
        let (_, init) = client.init(None, None);
        node.client_sends(client.address, &init);
    }
    node.answer_inits();
    node.wire.clients.clear();
    let (initiation, init) = client.init(None, None);
    node.client_sends(client.address, &init);
    let (_, reply) = node.wire.clients.pop().expect("a cookie reply");
    assert!(reply.len() <= init.len());
    assert!(node.jobs.try_recv().is_err(), "a handshake was started");
    let cookie = jump_crypto::cookie::open_cookie_reply(&client.cluster, &init, &reply).expect("a cookie");
    drop(initiation);
    let intent = AttachIntent {
        session: None,
        attach_seq: AttachSeq(9),
        attempt: AttemptId::from_bytes([9; 16]),
        last_epoch: Epoch(0),
        reason: 1,
        capabilities: 0,
        rekey: false,
        holding: jump_crypto::handshake::Holding::default(),
    };
    let input = InitiationInput {
        device: &client.device,
        cluster: &client.cluster,
        suite: Suite::ChaChaPolyBlake2s,
        intent: &intent,
        index: ReceiverIndex(1),
        cookie: Some(cookie),
    };
    let mut with_cookie = [0; INIT_LEN];
    Initiation::start(&input, &mut client.entropy, &mut with_cookie).unwrap();
    node.client_sends(SocketAddr::from(([203, 0, 113, 1], 1)), &with_cookie);
    assert!(node.jobs.try_recv().is_err(), "the cookie worked from another address");
    node.client_sends(client.address, &with_cookie);
    assert!(node.jobs.try_recv().is_ok(), "the cookie did not work");
}

#[test]
fn unconfirmed_handshakes_are_bounded_and_expire() {
    let mut cluster = Cluster::new();
    let limits = Limits {
        handshakes_max: 10,
        source_rate: Rate { per_second: 1_000_000, burst: 1_000_000 },
        ..Limits::default()
    };
    let mut node = Node::with_limits(&mut cluster, 1, limits);
    let mut client = Client::new(&mut cluster, 1);
    for i in 0..30 {
        let (_, init) = client.init(None, None);
        // One second apart, and from one address each: neither the load nor the rate is the bound here.
        node.now += SECOND / 100;
        node.client_sends(SocketAddr::from(([198, 51, 100, i], 1)), &init);
        node.answer_inits();
        assert!(node.plane.entries() <= 10, "{} handshakes", node.plane.entries());
    }
    node.advance(HANDSHAKE_WAIT);
    assert_eq!(node.plane.entries(), 0);
}

#[test]
fn one_source_cannot_use_up_the_handshakes_of_others() {
    let mut cluster = Cluster::new();
    let limits = Limits { source_rate: Rate { per_second: 1, burst: 2 }, ..Limits::default() };
    let mut node = Node::with_limits(&mut cluster, 1, limits);
    let mut client = Client::new(&mut cluster, 1);
    for _ in 0..5 {
        let (_, init) = client.init(None, None);
        node.client_sends(client.address, &init);
    }
    assert_eq!((node.dropped(DropReason::SourceRate), node.count(Count::AttachInits)), (3, 2));
    let mut other = Client::new(&mut cluster, 2);
    let (_, init) = other.init(None, None);
    node.client_sends(other.address, &init);
    assert_eq!(node.count(Count::AttachInits), 3);
}

/// Anybody who knows the cluster's public key can have claims refused: their outcomes are kept, bounded.
#[test]
fn refused_claims_do_not_fill_the_table() {
    let mut cluster = Cluster::new();
    let limits = Limits { claims_max: 8, ..Limits::default() };
    let mut node = Node::with_limits(&mut cluster, 1, limits);
    for _ in 0..50 {
        let mut stranger = Client::new(&mut cluster, 1);
        let confirmed = stranger.confirm(&mut node, None);
        let rejected = AttachResult::Rejected {
            reason: Reason::UnknownDevice,
            current_epoch: Epoch(0),
            current_attach_seq: AttachSeq(0),
            retry_after: Duration::ZERO,
        };
        node.command(Command::Decide {
            index: confirmed.index,
            verdict: Box::new(Verdict::Rejected(rejected)),
        });
        assert!(node.plane.entries() <= 8, "{} entries", node.plane.entries());
    }
    node.advance(2 * CLAIM_WAIT);
    assert_eq!(node.plane.entries(), 0);
}

/// A client that flaps between two addresses makes notes for the log; nobody's confirmation waits for them.
#[test]
fn a_flood_of_notes_leaves_room_for_confirmations() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut flapping = Client::new(&mut cluster, 1);
    flapping.attach(&mut node, session(1), 1, &[inner(1)]);
    let home = flapping.address;
    for n in 0..20_000u32 {
        flapping.address = SocketAddr::from(([203, 0, 113, (n % 250) as u8], 2000));
        flapping.send_packet(&mut node, &packet(inner(1), server(), b"x"));
        node.plane.note(flapping.keys.as_ref().unwrap().peer_index.local(), What::Rekeyed);
        node.wire.clients.clear();
        node.wire.inner.clear();
    }
    flapping.address = home;
    let mut other = Client::new(&mut cluster, 2);
    let (keys, _) = other.handshake(&mut node, None, None);
    other.keys = Some(keys);
    other.send(&mut node, &Frame::Confirm);
    assert_eq!(node.confirmed().len(), 1, "the confirmation found no room");
}

#[test]
fn the_same_first_message_again_gets_the_same_reply_and_makes_no_other_handshake() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let (_, init) = client.init(None, None);
    node.client_sends(client.address, &init);
    // Repeated while it is being answered, and after that.
    node.client_sends(client.address, &init);
    assert_eq!(node.dropped(DropReason::RepeatedInit), 1);
    node.answer_inits();
    let (_, reply) = node.wire.clients.pop().unwrap();
    node.client_sends(client.address, &init);
    assert_eq!(node.wire.clients.pop(), Some((client.address, reply)));
    node.answer_inits();
    assert!(node.wire.clients.is_empty());
    assert_eq!((node.plane.entries(), node.count(Count::AttachInits)), (1, 1));
    // A forgotten one is worked on anew.
    node.advance(HANDSHAKE_WAIT);
    node.client_sends(client.address, &init);
    assert_eq!(node.count(Count::AttachInits), 2);
}

#[test]
fn beyond_the_backlog_clients_are_told_when_to_come_and_nothing_is_kept_of_them() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    let mut inits = Vec::new();
    while node.dropped(DropReason::Busy) == 0 {
        inits.push(client.init(None, None).1);
        node.client_sends(client.address, &inits[inits.len() - 1]);
        assert!(inits.len() < INITS_MAX, "the queue fills up and nobody is told");
    }
    let told = inits.len() - 1;
    assert_eq!(node.plane.entries(), told);
    let (_, busy) = node.wire.clients.pop().unwrap();
    let after = jump_crypto::cookie::open_busy(&client.cluster, &inits[told], &busy).expect("a busy word");
    assert!(after >= Duration::from_millis(20) && after < Duration::from_millis(100), "{after:?}");
    // Those that wait here already are not sent away, and there is room again once they are answered.
    node.client_sends(client.address, &inits[0]);
    assert_eq!(node.dropped(DropReason::RepeatedInit), 1);
    node.answer_inits();
    node.client_sends(client.address, &inits[told]);
    assert_eq!(node.count(Count::AttachInits), told as u64 + 1);
}

#[test]
fn without_authority_records_of_a_session_are_answered_by_a_hint_and_nothing_else_is_answered() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 1, &[inner(1)]);
    let record = client.seal(Content::Packet, &packet(inner(1), server(), b"late"));
    let (tick, source) = (node.tick(), client.address);
    node.wire.clients.clear();
    node.plane.refuse_client(tick, source, &record, &mut node.wire);
    let (to, hint) = node.wire.clients.pop().expect("a hint");
    assert!(to == source && jump_crypto::cookie::ReattachHint::parse(&hint).is_some());
    let mut foreign = record.clone();
    foreign[4..8].copy_from_slice(&ReceiverIndex::of_node(NodeNumber(1), 99).0.to_be_bytes());
    let (_, init) = client.init(None, None);
    for datagram in [&foreign[..], &init[..], b"", b"x"] {
        node.plane.refuse_client(tick, source, datagram, &mut node.wire);
    }
    assert!(
        node.wire.clients.is_empty() && node.wire.inner.is_empty(),
        "something was answered or forwarded"
    );
    assert_eq!(node.dropped(DropReason::Guard), 5);
}

#[test]
fn a_session_refused_for_want_of_authority_longer_than_any_silence_is_allowed_goes_on_when_it_is_back() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 1, &[inner(1)]);
    node.plane.handle_authority(node.now, true);
    node.advance(30 * SECOND);
    for _ in 0..10 {
        node.plane.handle_authority(node.now, false);
        node.now += 60 * SECOND;
    }
    node.plane.handle_authority(node.now, true);
    assert_eq!(node.count(Count::GuardTrips), 1);
    node.advance(0);
    assert_eq!(
        node.plane.sessions_in(State::Attached),
        1,
        "it was silent for 30 s while anybody could hear it"
    );
    node.plane.handle_authority(node.now, true);
    node.advance(90 * SECOND);
    assert_eq!(node.plane.sessions(), 0, "120 s of silence are too long, in pieces too");
}

#[test]
fn sessions_are_counted_by_state_from_acceptance_to_end() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut clients =
        [Client::new(&mut cluster, 1), Client::new(&mut cluster, 2), Client::new(&mut cluster, 3)];
    for (n, client) in (1..).zip(&mut clients) {
        let confirmed = client.confirm(&mut node, None);
        node.accept(&confirmed, session(n), 1, &[inner(n)]);
    }
    let count = |node: &Node, expected: [(State, u32); 4]| {
        for (state, sessions) in expected {
            assert_eq!(node.plane.sessions_in(state), sessions, "{state:?}");
        }
    };
    use State::{Attached, Degraded, Reattaching, Volatile};
    count(&node, [(Attached, 3), (Volatile, 0), (Degraded, 0), (Reattaching, 0)]);
    node.advance(41 * SECOND);
    count(&node, [(Attached, 0), (Volatile, 3), (Degraded, 0), (Reattaching, 0)]);
    clients[0].send(&mut node, &Frame::Ping { id: 1 });
    node.advance(35 * SECOND);
    count(&node, [(Attached, 1), (Volatile, 0), (Degraded, 2), (Reattaching, 0)]);
    let (carried, _) = tokio::sync::oneshot::channel();
    node.command(Command::Move { session: session(1), epoch: Epoch(1), targets: vec![], carried });
    count(&node, [(Attached, 0), (Volatile, 0), (Degraded, 2), (Reattaching, 1)]);
    node.stop(session(1), 1, StopCause::Moved);
    count(&node, [(Attached, 0), (Volatile, 0), (Degraded, 2), (Reattaching, 0)]);
    clients[1].send(&mut node, &Frame::Close { reason: Reason::ClientClosed });
    count(&node, [(Attached, 0), (Volatile, 0), (Degraded, 1), (Reattaching, 0)]);
    node.advance(60 * SECOND);
    assert_eq!(State::ALL.map(|state| node.plane.sessions_in(state)), [0; State::ALL.len()]);
}
