//! Flows that stay with the gateway that translates them when their session moves.

use super::super::flow::TCP;
use super::super::flow::tests::with_ports;
use super::super::links::Kind;
use super::*;
use jump_session::reason::Reason;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const ACK: u8 = 16;
const MILLISECOND: Nanos = 1_000_000;

/// Three gateways that masquerade, all linked; the client is attached to the first in epoch 1.
struct Lab {
    cluster: Cluster,
    nodes: [Node; 3],
    client: Client,
    epoch: u64,
}

fn node_ref(at: usize) -> NodeRef {
    NodeRef(at as u32 + 1)
}

fn flow(port: u16) -> Flow {
    Flow::new(TCP, port, server(), 443).unwrap()
}

/// A packet of [`flow`].
fn sent(port: u16) -> Vec<u8> {
    with_ports(inner(1), server(), TCP, (port, 443), ACK)
}

impl Lab {
    fn new() -> Self {
        let mut cluster = Cluster::new();
        let mut nodes = [1, 2, 3].map(|number| Node::anchoring(&mut cluster, number));
        let [a, b, c] = &mut nodes;
        link(a, b);
        link(a, c);
        link(b, c);
        let client = Client::new(&mut cluster, 1);
        let mut lab = Self { cluster, nodes, client, epoch: 0 };
        lab.attach(A);
        lab.tell_owner(A, &[B, C]);
        lab
    }

    /// The client attaches at `to` in the next epoch.
    fn attach(&mut self, to: usize) {
        self.epoch += 1;
        self.client.attach(&mut self.nodes[to], session(1), self.epoch, &[inner(1)]);
    }

    /// The stream tells these gateways who owns the session.
    fn tell_owner(&mut self, owner: usize, told: &[usize]) {
        for at in told {
            self.nodes[*at].bind(session(1), self.epoch, &[inner(1)], BindingPhase::Owned(node_ref(owner)));
        }
    }

    /// Delivers what is on the mesh, until nothing is.
    fn carry(&mut self) {
        loop {
            let mut carried = false;
            for from in 0..3 {
                for (address, datagram) in std::mem::take(&mut self.nodes[from].wire.mesh) {
                    let to = self.nodes.iter_mut().find(|node| node.mesh_address == address).unwrap();
                    to.mesh_brings(&datagram);
                    carried = true;
                }
            }
            if !carried {
                return;
            }
        }
    }

    /// A planned move, in the order in which it usually happens: the old owner stops and asks its kernel, the new one
    /// accepts, everybody hears of it, the list comes.
    fn move_on(&mut self, from: usize, to: usize, kernel: &[Flow]) {
        assert!(self.nodes[from].stop(session(1), self.epoch, StopCause::Moved));
        self.attach(to);
        let others: Vec<usize> = (0..3).filter(|at| *at != to).collect();
        self.tell_owner(to, &others);
        self.nodes[from].kernel_says(kernel);
        self.carry();
    }

    /// The client sends a packet of a flow to `at`; where it leaves.
    fn leaves_at(&mut self, at: usize, port: u16) -> Option<usize> {
        self.client.send_packet(&mut self.nodes[at], &sent(port));
        self.carry();
        self.left_at(port)
    }

    fn left_at(&mut self, port: u16) -> Option<usize> {
        let mut found = None;
        for (at, node) in self.nodes.iter_mut().enumerate() {
            for packet in std::mem::take(&mut node.wire.inner) {
                assert_eq!(packet, sent(port));
                assert_eq!(found.replace(at), None, "it left twice");
            }
        }
        found
    }

    fn seal(&mut self, from: usize, to: usize, kind: Kind, body: &[u8]) {
        let node = &mut self.nodes[from];
        let link = node.plane.links.get_mut(node_ref(to)).unwrap();
        assert!(link.send(kind, &[], body, &mut node.wire, &mut Counters::new()));
    }
}

#[test]
fn after_a_planned_move_open_flows_leave_by_the_old_gateway_and_new_ones_by_the_new() {
    let mut lab = Lab::new();
    assert_eq!(lab.leaves_at(A, 1000), Some(A));
    lab.move_on(A, B, &[flow(1000), flow(1001)]);
    assert_eq!(lab.leaves_at(B, 1000), Some(A));
    assert_eq!(lab.leaves_at(B, 1001), Some(A));
    assert_eq!(lab.leaves_at(B, 2000), Some(B));
    assert_eq!((lab.nodes[B].count(Count::AnchoredOut), lab.nodes[A].count(Count::AnchoredIn)), (2, 2));
    assert_eq!((lab.nodes[A].count(Count::AnchorsTold), lab.nodes[B].count(Count::AnchorsTaken)), (1, 2));
    assert_eq!(lab.nodes[B].count(Count::AnchorsMissed), 0);
    // The way back is the mesh's.
    let down = packet(server(), inner(1), b"down");
    lab.nodes[A].inner_sends(&down);
    lab.carry();
    assert_eq!(lab.client.packets(&mut lab.nodes[B]), [down]);
}

#[test]
fn a_second_move_hands_on_every_anchor_and_a_move_back_ends_the_detour() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    lab.move_on(B, C, &[flow(2000)]);
    let exits = [1000, 2000, 3000].map(|port| lab.leaves_at(C, port));
    assert_eq!(exits, [Some(A), Some(B), Some(C)]);
    lab.move_on(C, A, &[flow(3000)]);
    let exits = [1000, 2000, 3000, 4000].map(|port| lab.leaves_at(A, port));
    assert_eq!(exits, [Some(A), Some(B), Some(C), Some(A)]);
}

#[test]
fn packets_wait_for_the_list_whichever_part_of_the_move_is_first() {
    // The order of: the new owner accepts; the old one hears of it; the kernel answers.
    for order in ["ahk", "akh", "hak", "hka", "kah", "kha"] {
        let mut lab = Lab::new();
        assert!(lab.nodes[A].stop(session(1), 1, StopCause::Moved));
        let confirmed = lab.client.confirm(&mut lab.nodes[B], Some(session(1)));
        // Rides along with the claim.
        lab.client.send_packet(&mut lab.nodes[B], &sent(1000));
        lab.epoch = 2;
        for step in order.chars() {
            match step {
                'a' => lab.nodes[B].accept(&confirmed, session(1), 2, &[inner(1)]),
                'h' => lab.tell_owner(B, &[A]),
                _ => lab.nodes[A].kernel_says(&[flow(1000)]),
            }
            lab.nodes[A].advance(0);
            lab.carry();
        }
        lab.carry();
        assert_eq!(lab.left_at(1000), Some(A), "{order}");
        assert_eq!(lab.nodes[B].count(Count::AnchorsMissed), 0, "{order}");
        assert_eq!(lab.leaves_at(B, 1000), Some(A), "{order}");
    }
}

#[test]
fn what_the_old_owner_hands_on_goes_back_to_it_in_order() {
    let mut lab = Lab::new();
    let under_way = lab.client.seal(Content::Packet, &sent(1000));
    assert!(lab.nodes[A].stop(session(1), 1, StopCause::Moved));
    lab.nodes[A].client_sends(lab.client.address, &under_way);
    lab.attach(B);
    lab.client.send_packet(&mut lab.nodes[B], &sent(1000));
    lab.tell_owner(B, &[A]);
    lab.carry();
    assert_eq!(lab.left_at(1000), None);
    lab.nodes[A].kernel_says(&[flow(1000)]);
    lab.carry();
    let inner = std::mem::take(&mut lab.nodes[A].wire.inner);
    assert_eq!(inner, [sent(1000), sent(1000)]);
}

#[test]
fn a_lost_list_comes_again_and_one_that_never_comes_is_not_waited_for_longer_than_the_bound() {
    let mut lab = Lab::new();
    assert!(lab.nodes[A].stop(session(1), 1, StopCause::Moved));
    lab.attach(B);
    lab.tell_owner(B, &[A]);
    lab.nodes[A].kernel_says(&[flow(1000)]);
    assert_eq!(lab.nodes[A].wire.mesh.len(), 1);
    lab.nodes[A].wire.mesh.clear();
    assert_eq!(lab.leaves_at(B, 1000), None);
    lab.nodes[A].advance(10 * MILLISECOND);
    lab.carry();
    assert_eq!(lab.left_at(1000), Some(A));
    // The third time it says nothing new, and there is no fourth.
    lab.nodes[A].advance(40 * MILLISECOND);
    lab.carry();
    assert_eq!(lab.nodes[B].count(Count::AnchorsTaken), 1);
    lab.nodes[A].advance(SECOND);
    assert!(lab.nodes[A].wire.mesh.is_empty());

    let mut lab = Lab::new();
    assert!(lab.nodes[A].stop(session(1), 1, StopCause::Moved));
    lab.attach(B);
    assert_eq!(lab.leaves_at(B, 1000), None);
    assert_eq!(lab.nodes[B].plane.poll_timeout(), Some(lab.nodes[B].now + LIST_WAIT));
    lab.nodes[B].advance(LIST_WAIT - 1);
    assert_eq!(lab.left_at(1000), None);
    lab.nodes[B].advance(1);
    assert_eq!(lab.left_at(1000), Some(B));
    assert_eq!(lab.nodes[B].count(Count::AnchorsMissed), 1);
    // Late is better than never: the flow may have been silent.
    lab.tell_owner(B, &[A]);
    lab.nodes[A].kernel_says(&[flow(1001)]);
    lab.carry();
    assert_eq!(lab.leaves_at(B, 1001), Some(A));
}

#[test]
fn nobody_waits_at_birth_or_for_a_gateway_that_is_gone_or_at_a_reattach_to_the_same() {
    let mut lab = Lab::new();
    // A reattach to the owner keeps the anchors.
    lab.move_on(A, B, &[flow(1000)]);
    lab.attach(B);
    assert_eq!(lab.leaves_at(B, 1000), Some(A));
    assert_eq!(lab.leaves_at(B, 2000), Some(B));
    // The owner is lost: its flows are, those of the first gateway are not.
    lab.nodes[C].command(Command::Unlink(node_ref(B)));
    lab.nodes[A].command(Command::Unlink(node_ref(B)));
    lab.attach(C);
    lab.client.send_packet(&mut lab.nodes[C], &sent(1000));
    assert_eq!(lab.left_at(1000), None, "the first gateway still has its word to say");
    lab.tell_owner(C, &[A]);
    lab.nodes[A].kernel_says(&[flow(1000)]);
    lab.carry();
    assert_eq!(lab.left_at(1000), Some(A));
    assert_eq!(lab.leaves_at(C, 2000), Some(C));

    let mut lab = Lab::new();
    lab.nodes[B].command(Command::Unlink(node_ref(A)));
    lab.attach(B);
    assert_eq!(lab.leaves_at(B, 1000), Some(B), "waits for the word of a gateway that is gone");
    let mut other = Client::new(&mut lab.cluster, 2);
    other.attach(&mut lab.nodes[B], session(2), 1, &[inner(2)]);
    let packet = packet(inner(2), server(), b"born");
    other.send_packet(&mut lab.nodes[B], &packet);
    assert_eq!(lab.nodes[B].wire.inner, [packet]);
}

#[test]
fn a_gateway_that_is_lost_while_its_list_is_awaited_is_not_waited_for() {
    let mut lab = Lab::new();
    lab.nodes[A].stop(session(1), 1, StopCause::Moved);
    lab.attach(B);
    assert_eq!(lab.leaves_at(B, 1000), None);
    lab.nodes[B].command(Command::Unlink(node_ref(A)));
    assert_eq!(lab.left_at(1000), Some(B));
}

#[test]
fn flows_whose_gateway_is_lost_leave_by_the_owner_and_the_session_goes_on() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    assert_eq!(lab.leaves_at(B, 1000), Some(A));
    lab.nodes[B].command(Command::Unlink(node_ref(A)));
    assert_eq!(lab.leaves_at(B, 1000), Some(B));
}

#[test]
fn a_session_that_comes_back_before_anybody_else_had_it_keeps_its_anchors_and_waits_for_nobody() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    assert!(lab.nodes[B].stop(session(1), 2, StopCause::Moved));
    lab.attach(B);
    assert_eq!(lab.leaves_at(B, 1000), Some(A));
    assert_eq!(lab.leaves_at(B, 2000), Some(B));
}

#[test]
fn who_sends_too_much_in_an_anchored_flow_is_told_by_the_gateway_that_translates_it() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    for (port, told_at) in [(1000, A), (2000, B)] {
        let mut transport = vec![0; 1400];
        transport[..4].copy_from_slice(&[443u16.to_be_bytes(), u16::to_be_bytes(port)].concat());
        let mut large = packet(server(), inner(1), &transport);
        (large[6], large[9]) = (0x40, TCP);
        lab.nodes[A].inner_sends(&large);
        lab.carry();
        let errors = [A, B].map(|at| std::mem::take(&mut lab.nodes[at].wire.inner));
        assert_eq!(errors.each_ref().map(Vec::len)[told_at], 1, "about port {port}");
        assert_eq!(errors.concat().len(), 1);
    }
}

#[test]
fn only_the_owner_of_a_session_sends_for_it_through_another_gateway() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    lab.seal(C, A, Kind::AnchoredPacket, &sent(1000));
    lab.carry();
    assert_eq!((lab.left_at(1000), lab.nodes[A].dropped(DropReason::NotOwner)), (None, 1));
    // An owner sends through a gateway only for sessions that it gave up, with their own addresses, where they may go.
    lab.seal(B, C, Kind::AnchoredPacket, &sent(1000));
    lab.carry();
    assert_eq!((lab.left_at(1000), lab.nodes[C].dropped(DropReason::NotAnchored)), (None, 1));
    let spoofed = with_ports(inner(9), server(), TCP, (1000, 443), ACK);
    lab.seal(B, A, Kind::AnchoredPacket, &spoofed);
    let nowhere = with_ports(inner(1), IpAddr::from([224, 0, 0, 1]), TCP, (1000, 443), ACK);
    lab.seal(B, A, Kind::AnchoredPacket, &nowhere);
    lab.seal(B, A, Kind::AnchoredPacket, b"no packet");
    lab.carry();
    assert!(lab.nodes[A].wire.inner.is_empty());
    let dropped = [DropReason::NotOwner, DropReason::InnerScope, DropReason::InnerMalformed];
    assert_eq!(dropped.map(|reason| lab.nodes[A].dropped(reason)), [2, 1, 1]);
}

#[test]
fn what_a_device_may_not_reach_it_does_not_reach_through_another_gateway_either() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    let update = BindingUpdate {
        session: session(1),
        epoch: Epoch(2),
        inner: vec![inner(1)],
        phase: BindingPhase::Owned(node_ref(B)),
        policy: Policy { allowed: Some(vec!["10.2.0.0/16".parse().unwrap()]), bytes_per_second: 0 },
    };
    // The owner has not heard of it yet.
    lab.nodes[A].command(Command::Bindings(vec![update]));
    assert_eq!(lab.leaves_at(B, 1000), None);
    assert_eq!(lab.nodes[A].dropped(DropReason::InnerDestination), 1);
}

#[test]
fn only_who_carried_a_session_before_says_where_its_flows_leave() {
    let mut lab = Lab::new();
    lab.move_on(A, B, &[]);
    let stranger = super::super::handed::AnchorName { number: NodeNumber(3), incarnation: Incarnation(3) };
    let list = super::super::handed::encode(session(1), Epoch(2), stranger, &[(flow(1000), stranger)]);
    lab.seal(C, B, Kind::Anchors, &list[0]);
    lab.carry();
    assert_eq!(lab.nodes[B].dropped(DropReason::NotOwner), 1);
    assert_eq!(lab.leaves_at(B, 1000), Some(B));
    lab.seal(C, B, Kind::Anchors, &list[0][..20]);
    lab.carry();
    assert_eq!(lab.nodes[B].dropped(DropReason::Malformed), 1);
}

#[test]
fn an_owner_that_has_not_heard_who_had_the_session_before_it_learns_it_from_older_news() {
    let mut lab = Lab::new();
    lab.nodes[A].stop(session(1), 1, StopCause::Moved);
    let route = |lab: &Lab| lab.nodes[B].plane.routes.get(inner(1)).unwrap().before;
    // Forget what it knew.
    lab.nodes[B].plane.routes.remove(inner(1), session(1));
    lab.attach(B);
    assert_eq!(route(&lab), [NodeRef::OWN; 2]);
    lab.nodes[B].bind(session(1), 1, &[inner(1)], BindingPhase::Owned(node_ref(A)));
    assert_eq!(route(&lab), [node_ref(A), NodeRef::OWN]);
    lab.tell_owner(B, &[A]);
    lab.nodes[A].kernel_says(&[flow(1000)]);
    lab.carry();
    assert_eq!(lab.leaves_at(B, 1000), Some(A));
}

#[test]
fn a_gateway_that_is_full_of_questions_says_that_it_knows_of_no_flows() {
    let mut lab = Lab::new();
    // Nobody answers questions any more.
    lab.nodes[A].questions = None;
    lab.nodes[A].stop(session(1), 1, StopCause::Moved);
    lab.attach(B);
    lab.tell_owner(B, &[A]);
    assert_eq!(lab.leaves_at(B, 1000), None);
    lab.nodes[A].advance(0);
    lab.carry();
    assert_eq!(lab.left_at(1000), Some(B));
    assert_eq!(lab.nodes[A].count(Count::AnchorsUnknown), 1);
    assert_eq!(lab.nodes[B].count(Count::AnchorsMissed), 0);
}

#[test]
fn what_is_anchored_here_is_forgotten_with_the_session() {
    let anchored = |node: &mut Node| {
        let (answer, addresses) = tokio::sync::oneshot::channel();
        node.command(Command::Anchored(answer));
        addresses.blocking_recv().unwrap()
    };
    let mut lab = Lab::new();
    assert!(anchored(&mut lab.nodes[A]).is_empty());
    lab.move_on(A, B, &[flow(1000)]);
    assert_eq!(anchored(&mut lab.nodes[A]), [inner(1)]);
    lab.nodes[A].bind(session(1), 2, &[inner(1)], BindingPhase::Terminated(Reason::ClientClosed));
    assert!(anchored(&mut lab.nodes[A]).is_empty());
    // And with a snapshot that does not mention it.
    let mut lab = Lab::new();
    lab.move_on(A, B, &[flow(1000)]);
    lab.nodes[A].command(Command::SnapshotBegins);
    lab.nodes[A].command(Command::SnapshotComplete);
    assert!(anchored(&mut lab.nodes[A]).is_empty());
}

#[test]
fn without_anchored_egress_nothing_is_asked_waited_for_or_taken() {
    let mut cluster = Cluster::new();
    let (mut old, mut new) = (Node::anchoring(&mut cluster, 1), Node::new(&mut cluster, 2));
    link(&mut old, &mut new);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut old, session(1), 1, &[inner(1)]);
    new.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(1)));
    old.stop(session(1), 1, StopCause::Moved);
    client.attach(&mut new, session(1), 2, &[inner(1)]);
    old.bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(2)));
    old.kernel_says(&[flow(1000)]);
    let (_, list) = old.wire.mesh.pop().unwrap();
    new.mesh_brings(&list);
    assert_eq!(new.dropped(DropReason::NotAnchored), 1);
    client.send_packet(&mut new, &sent(1000));
    assert_eq!(new.wire.inner, [sent(1000)]);
}
