//! Fuzzes the gateway on stable: what strangers send, what an attached client seals, what another gateway seals, what the
//! kernel says of its connections, and the configuration file.

use super::*;

#[path = "../../../../fuzz/src/harness.rs"]
mod harness;

use harness::{Target, join, split};

#[test]
fn no_mutation_of_a_corpus_breaks_the_gateway() {
    let targets = [
        Target { name: "gateway_socket", run: socket, seeds: socket_seeds },
        Target { name: "gateway_client", run: client, seeds: client_seeds },
        Target { name: "gateway_mesh", run: mesh, seeds: mesh_seeds },
        Target { name: "gateway_conntrack", run: conntrack, seeds: conntrack_seeds },
        Target { name: "gateway_config", run: config, seeds: config_seeds },
    ];
    harness::run(concat!(env!("CARGO_MANIFEST_DIR"), "/.."), &targets);
}

fn attached() -> (Node, Node, Client) {
    let mut cluster = Cluster::new();
    let mut nodes = [1, 2].map(|number| Node::new(&mut cluster, number));
    let mut client = Client::new(&mut cluster, 1);
    let [a, b] = &mut nodes;
    link(a, b);
    client.attach(a, session(1), 1, &[inner(1)]);
    b.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(1)));
    let [a, b] = nodes;
    (a, b, client)
}

/// The session still answers.
fn assert_alive(node: &mut Node, client: &mut Client) {
    node.wire.clients.clear();
    // The seeds hold records of this very client, made with its first counters.
    (0..16).for_each(|_| drop(client.seal(Content::Control, &[])));
    client.send(node, &Frame::Ping { id: 77 });
    let answered = client.frames(node).iter().any(|frame| matches!(frame, Frame::Pong { id: 77, .. }));
    assert!(answered, "the session was disturbed");
}

/// Datagrams of strangers, on both sockets, and packets of the inner network.
fn socket(input: &[u8]) {
    let (mut node, _, mut client) = attached();
    let stranger = SocketAddr::from(([203, 0, 113, 1], 9));
    for message in split(input) {
        let Some((place, datagram)) = message.split_first() else { continue };
        match place % 3 {
            0 => node.client_sends(stranger, datagram),
            1 => node.mesh_brings(datagram),
            _ => node.inner_sends(datagram),
        }
        node.answer_inits();
    }
    assert!(node.wire.inner.is_empty(), "something came through");
    assert!(node.confirmed().is_empty());
    assert_alive(&mut node, &mut client);
}

fn socket_seeds() -> Vec<Vec<u8>> {
    let (mut node, _, mut client) = attached();
    let placed = |place: u8, bytes: &[u8]| [&[place], bytes].concat();
    let record = client.seal(Content::Control, &encode(&Frame::Ping { id: 1 }));
    let (_, init) = client.init(Some(session(1)), None);
    node.client_sends(client.address, &init);
    vec![
        join(&[placed(0, &init), placed(0, &record[..40])]),
        join(&[placed(1, &record), placed(1, &[6; 64])]),
        join(&[placed(2, &packet(server(), inner(9), b"x")), placed(2, &[0x60; 40])]),
    ]
}

/// Whatever an attached client seals: control frames and packets of any content.
fn client(input: &[u8]) {
    let (mut node, _, mut client) = attached();
    let mut over = false;
    for message in split(input) {
        let Some((content, text)) = message.split_first() else { continue };
        let content = if content % 2 == 0 { Content::Packet } else { Content::Control };
        over |= matches!((content, Frame::decode(text)), (Content::Control, Ok(Frame::Close { .. })));
        let record = client.seal(content, text);
        node.client_sends(client.address, &record);
        node.advance(1_000_000);
    }
    for packet in std::mem::take(&mut node.wire.inner) {
        let header = super::super::inner::InnerHeader::parse(&packet).expect("what comes out is a packet");
        assert_eq!(header.source, inner(1), "with the client's own address");
    }
    assert!(node.confirmed().is_empty());
    if !over {
        assert_alive(&mut node, &mut client);
    }
}

fn client_seeds() -> Vec<Vec<u8>> {
    let frame = |frame: &Frame| [&[1], &encode(frame)[..]].concat();
    vec![
        join(&[
            frame(&Frame::Confirm),
            frame(&Frame::Ping { id: 3 }),
            frame(&Frame::PathChallenge { token: [1; 8] }),
        ]),
        join(&[
            [&[0], &packet(inner(1), server(), b"data")[..]].concat(),
            frame(&Frame::PathResponse { token: [2; 8] }),
        ]),
        join(&[frame(&Frame::Bound { binding: 3 }), frame(&Frame::Ping { id: 1 })]),
    ]
}

/// As [`attached`], but both anchor flows: the session came from the other gateway, and a second one went there.
fn anchoring() -> (Node, Node, Client) {
    let mut cluster = Cluster::new();
    let mut nodes = [1, 2].map(|number| Node::anchoring(&mut cluster, number));
    let mut client = Client::new(&mut cluster, 1);
    let [a, b] = &mut nodes;
    link(a, b);
    a.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(2)));
    client.attach(a, session(1), 2, &[inner(1)]);
    a.advance(LIST_WAIT);
    Client::new(&mut cluster, 2).attach(a, session(2), 1, &[inner(2)]);
    a.stop(session(2), 1, StopCause::Moved);
    a.bind(session(2), 2, &[inner(2)], BindingPhase::Owned(NodeRef(2)));
    a.kernel_says(&[]);
    a.wire.mesh.clear();
    let [a, b] = nodes;
    (a, b, client)
}

/// Whatever another gateway seals on its link.
fn mesh(input: &[u8]) {
    let (mut node, mut other, mut client) = anchoring();
    for message in split(input) {
        let Some(link) = other.plane.links.get_mut(NodeRef(1)) else { panic!("no link") };
        let mut record = vec![0; message.len() + OVERHEAD];
        record[HEADER_LEN..HEADER_LEN + message.len()].copy_from_slice(message);
        link.sealing.seal(Content::Packet, &mut record, message.len()).unwrap();
        node.mesh_brings(&record);
    }
    for packet in std::mem::take(&mut node.wire.inner) {
        let header = super::super::inner::InnerHeader::parse(&packet).expect("what comes out is a packet");
        let sessions = [inner(1), inner(2)];
        assert!(
            sessions.contains(&header.source),
            "of a session that is carried here or left for the sender"
        );
    }
    assert!(node.confirmed().is_empty());
    assert_alive(&mut node, &mut client);
}

fn mesh_seeds() -> Vec<Vec<u8>> {
    let (_, _, mut client) = attached();
    let down = packet(server(), inner(1), b"down");
    let up = packet(inner(1), server(), b"up");
    let source = super::super::links::encode_source(client.address);
    let stray = client.seal(Content::Packet, &up);
    vec![
        join(&[[&[1], &down[..]].concat(), [&[4], &down[..]].concat()]),
        join(&[[&[3], &up[..]].concat(), [&[2], &source[..], &stray[..]].concat()]),
        anchored_seed(),
    ]
}

/// A list for the session that came, a packet of a flow that is on it, and one of a session that went.
fn anchored_seed() -> Vec<u8> {
    let flow = Flow::new(6, 4000, server(), 443).unwrap();
    let other = super::super::handed::AnchorName { number: NodeNumber(2), incarnation: Incarnation(2) };
    let list = super::super::handed::encode(session(1), Epoch(2), other, &[(flow, other)]);
    let packet = |n| super::super::flow::tests::with_ports(inner(n), server(), 6, (4000, 443), 16);
    join(&[[&[6], &list[0][..]].concat(), [&[3], &packet(1)[..]].concat(), [&[5], &packet(2)[..]].concat()])
}

/// Whatever the kernel says of its connections.
fn conntrack(input: &[u8]) {
    use crate::conntrack::message::{Message, messages};
    let read = messages(input).inspect(|message| {
        if let Message::Entry(entry) = message {
            let flow = entry.flow;
            let again = Flow::new(flow.protocol, flow.source_port, flow.destination, flow.destination_port);
            assert_eq!(again, Some(flow), "a flow without ports");
        }
    });
    assert!(read.count() <= input.len() / 16);
}

fn conntrack_seeds() -> Vec<Vec<u8>> {
    let dumped = crate::conntrack::message::tests::dumped();
    let error = [&20u32.to_ne_bytes()[..], &[2, 0], &[0; 10], &(-1i32).to_ne_bytes()].concat();
    vec![dumped, error, {
        use crate::conntrack::message::{Wanted, request};
        request(Wanted::From(std::net::Ipv4Addr::new(10, 64, 0, 1)))
    }]
}

/// Any file is a configuration or a list of what is wrong with it.
fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    std::fs::write(&path, text).unwrap();
    let flags = crate::config::Flags { config: Some(path), ..crate::config::Flags::default() };
    if let Err(errors) = crate::config::Config::load(&flags) {
        assert!(!errors.to_string().is_empty());
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let text = "node = \"gw1\"\nlisten = \"0.0.0.0:51820\"\nadvertise = [\"192.0.2.1:51820\"]\n\
                control = [\"https://control:7443\"]\n[tls]\nca = \"ca.pem\"\n[lease]\nguard_margin = \"300ms\"\n";
    vec![text.as_bytes().to_vec(), b"listen = 7\n[tun]\nmtu = 70000\n".to_vec()]
}
