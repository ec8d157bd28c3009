//! Replay verification: what two gateways received in every phase of three sessions' lives is sent to them again, whole, in
//! part, reordered, to other sessions, to the other gateway, over the other socket. Nothing may change.
//!
//! `JUMP_REPLAY_TRIALS` says how many trials (`make test-replay`: a million); `JUMP_WRITE_DOCS=1` writes the report.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jump_session::reason::Reason;

use super::super::flow::TCP;
use super::super::flow::tests::with_ports;
use super::*;

/// Trials of the short form.
const TRIALS: u64 = 20_000;

/// One captured datagram.
#[derive(Debug, Clone)]
struct Captured {
    phase: &'static str,
    node: usize,
    /// The client's address; `None` for the mesh socket.
    source: Option<SocketAddr>,
    bytes: Vec<u8>,
}

/// How a capture is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Whole,
    Part,
    Reordered,
    OtherAddress,
    OtherSession,
    OtherNode,
    OtherSocket,
    Cut,
}

impl Mode {
    const ALL: [Self; 8] = [
        Self::Whole,
        Self::Part,
        Self::Reordered,
        Self::OtherAddress,
        Self::OtherSession,
        Self::OtherNode,
        Self::OtherSocket,
        Self::Cut,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Whole => "one phase whole",
            Self::Part => "one datagram",
            Self::Reordered => "eight of any phase, in any order",
            Self::OtherAddress => "from another address",
            Self::OtherSession => "to another live session's index",
            Self::OtherNode => "to the other gateway",
            Self::OtherSocket => "on the other socket (clients' or mesh)",
            Self::Cut => "cut short",
        }
    }
}

struct Stage {
    nodes: [Node; 2],
    captured: Vec<Captured>,
    /// Indices of sessions that live at the end.
    live: Vec<ReceiverIndex>,
    /// Carried by the first gateway.
    witness: Client,
}

fn carry(nodes: &mut [Node; 2]) {
    let [a, b] = nodes;
    for _ in 0..2 {
        for (_, datagram) in std::mem::take(&mut a.wire.mesh) {
            b.mesh_brings(&datagram);
        }
        for (_, datagram) in std::mem::take(&mut b.wire.mesh) {
            a.mesh_brings(&datagram);
        }
    }
}

/// Lives through every phase and records it.
fn stage() -> Stage {
    let mut cluster = Cluster::new();
    // Neither cookies nor buckets may do the work of what is tested here.
    let limits = Limits {
        cookie_above_per_second: u32::MAX,
        source_rate: Rate { per_second: 1_000_000, burst: 1_000_000 },
        ..Limits::default()
    };
    let mut nodes = [1, 2].map(|number| Node::anchoring_with_limits(&mut cluster, number, limits.clone()));
    {
        let [a, b] = &mut nodes;
        link(a, b);
    }
    let mut captured = Vec::new();
    let note = |nodes: &mut [Node; 2], captured: &mut Vec<Captured>, phase: &'static str| {
        for (node, of) in nodes.iter_mut().enumerate() {
            let tape = of.tape.replace(Vec::new()).unwrap_or_default();
            captured.extend(tape.into_iter().map(|(source, bytes)| Captured { phase, node, source, bytes }));
            of.wire.clients.clear();
            of.wire.inner.clear();
        }
    };
    note(&mut nodes, &mut captured, "setup");
    let mut a = Client::new(&mut cluster, 1);
    let mut stays = Client::new(&mut cluster, 2);
    let mut leaves = Client::new(&mut cluster, 3);

    a.attach(&mut nodes[0], session(1), 1, &[inner(1)]);
    a.send(&mut nodes[0], &Frame::Confirm);
    stays.attach(&mut nodes[0], session(2), 1, &[inner(2)]);
    leaves.attach(&mut nodes[0], session(3), 1, &[inner(3)]);
    let owner = NodeRef(1);
    for n in 1..=3 {
        nodes[1].bind(session(n), 1, &[inner(n)], BindingPhase::Owned(owner));
    }
    note(&mut nodes, &mut captured, "attach");

    for n in 0..4u8 {
        a.send_packet(&mut nodes[0], &packet(inner(1), server(), &[n]));
        stays.send_packet(&mut nodes[0], &packet(inner(2), server(), &[n]));
    }
    a.send(&mut nodes[0], &Frame::Ping { id: 7 });
    a.send(&mut nodes[0], &Frame::PathChallenge { token: [7; 8] });
    note(&mut nodes, &mut captured, "data and probes");

    a.address = SocketAddr::from(([198, 51, 100, 77], 7777));
    a.send_packet(&mut nodes[0], &packet(inner(1), server(), b"from a new port"));
    let frames = a.frames(&mut nodes[0]);
    let token =
        frames.iter().find_map(|f| if let Frame::PathChallenge { token } = f { Some(*token) } else { None });
    a.send(&mut nodes[0], &Frame::PathResponse { token: token.expect("a challenge on the new path") });
    note(&mut nodes, &mut captured, "path move");

    let (keys, _) = a.handshake(&mut nodes[0], Some(session(1)), Some(1));
    a.keys = Some(keys);
    a.send(&mut nodes[0], &Frame::Confirm);
    a.send_packet(&mut nodes[0], &packet(inner(1), server(), b"under new keys"));
    assert_eq!(nodes[0].count(Count::Rekeys), 1);
    note(&mut nodes, &mut captured, "rekey");

    let stray = stays.seal(Content::Packet, &packet(inner(2), server(), b"at the wrong gateway"));
    nodes[1].client_sends(stays.address, &stray);
    nodes[1].inner_sends(&packet(server(), inner(2), b"down, at the wrong gateway"));
    carry(&mut nodes);
    assert_eq!(nodes[0].wire.inner.len(), 1, "the stray reached nobody");
    note(&mut nodes, &mut captured, "mesh relay");

    let (keys, _) = a.handshake(&mut nodes[1], Some(session(1)), None);
    let old = a.keys.replace(keys);
    a.send(&mut nodes[1], &Frame::Confirm);
    let confirmed = nodes[1].confirmed().remove(0);
    for (node, from) in [(0, NodeRef::OWN), (1, owner)] {
        nodes[node].bind(session(1), 1, &[inner(1)], BindingPhase::Handover { from });
    }
    nodes[0].stop(session(1), 1, StopCause::Moved);
    let new = std::mem::replace(&mut a.keys, old);
    a.send_packet(&mut nodes[0], &packet(inner(1), server(), b"after the fence"));
    nodes[0].bind(session(1), 2, &[inner(1)], BindingPhase::Owned(NodeRef(2)));
    carry(&mut nodes);
    nodes[1].accept(&confirmed, session(1), 2, &[inner(1)]);
    a.keys = new;
    note(&mut nodes, &mut captured, "handover");

    let anchored = Flow::new(TCP, 1000, server(), 443).unwrap();
    nodes[0].kernel_says(&[anchored]);
    carry(&mut nodes);
    a.send_packet(&mut nodes[1], &with_ports(inner(1), server(), TCP, (1000, 443), 16));
    a.send_packet(&mut nodes[1], &packet(inner(1), server(), b"at the new owner"));
    carry(&mut nodes);
    let left = nodes.each_ref().map(|node| node.wire.inner.len());
    assert_eq!(
        left,
        [1, 2],
        "the anchored flow by the old owner; its neighbour, and what waited for the list, by the new"
    );
    note(&mut nodes, &mut captured, "anchored egress");

    leaves.send(&mut nodes[0], &Frame::Close { reason: Reason::ClientClosed });
    assert_eq!(nodes[0].ended().len(), 1);
    note(&mut nodes, &mut captured, "end");

    for node in &mut nodes {
        node.advance(3 * SECOND);
        node.wire.clients.clear();
        while node.events.try_recv().is_ok() {}
        node.tape = None;
    }
    // What is alive was heard a moment ago.
    a.send(&mut nodes[1], &Frame::Ping { id: 8 });
    stays.send(&mut nodes[0], &Frame::Ping { id: 8 });
    captured.retain(|one| one.phase != "setup");
    let live = vec![a.keys.as_ref().unwrap().peer_index, stays.keys.as_ref().unwrap().peer_index];
    nodes.iter_mut().for_each(|node| node.wire.clients.clear());
    Stage { nodes, captured, live, witness: stays }
}

/// All that must not change: who is carried, in which epoch, at which address, in which state, with which keys' progress.
fn digest(nodes: &[Node; 2]) -> String {
    let mut text = String::new();
    for node in nodes {
        let plane = &node.plane;
        let mut locals: Vec<(&SessionId, &u32)> = plane.by_session.iter().collect();
        locals.sort();
        for (id, local) in locals {
            let Some(Entry::Session(session)) = plane.entries.get(*local) else { panic!("no session") };
            let machine = &session.machine;
            writeln!(
                text,
                "{id} {local} e{} b{:?} {} {:?} {:?}",
                machine.epoch(),
                machine.binding(),
                machine.path(),
                machine.state(),
                session.opening,
            )
            .unwrap();
        }
        let counts = [
            Count::PacketsUp,
            Count::PacketsDown,
            Count::Confirms,
            Count::Accepted,
            Count::Rejected,
            Count::Rekeys,
            Count::PathMoves,
            Count::Fenced,
            Count::RelayedIn,
            Count::AnchorsTaken,
            Count::AnchoredIn,
            Count::AnchoredOut,
        ];
        writeln!(text, "{:?} routes {}", counts.map(|count| node.count(count)), plane.routes()).unwrap();
    }
    text
}

/// What leaves the gateways for the inner network, and what control is asked: nothing, on account of a replay.
fn assert_silence(nodes: &mut [Node; 2], what: impl Fn() -> String) {
    for node in nodes {
        assert!(node.wire.inner.is_empty(), "a packet came out again: {}", what());
        assert!(node.confirmed().is_empty(), "control was asked: {}", what());
    }
}

fn send(nodes: &mut [Node; 2], node: usize, source: Option<SocketAddr>, bytes: &[u8]) {
    match source {
        Some(source) => nodes[node].client_sends(source, bytes),
        None => nodes[node].mesh_brings(bytes),
    }
}

/// Plays one trial; says how many datagrams were sent.
fn play(stage: &mut Stage, mode: Mode, random: &mut Seeded) -> usize {
    let mut pick = |below: usize| {
        let mut bytes = [0; 8];
        random.fill(&mut bytes).unwrap();
        usize::try_from(u64::from_be_bytes(bytes) % below as u64).unwrap()
    };
    let Stage { nodes, captured, live, witness: _ } = stage;
    let elsewhere = SocketAddr::from(([203, 0, 113, 1 + pick(200) as u8], 1024 + pick(60_000) as u16));
    let at = pick(captured.len());
    let one = &captured[at];
    match mode {
        Mode::Whole => {
            let phase = one.phase;
            let all: Vec<&Captured> = captured.iter().filter(|other| other.phase == phase).collect();
            all.iter().for_each(|one| send(nodes, one.node, one.source, &one.bytes));
            return all.len();
        }
        Mode::Part => send(nodes, one.node, one.source, &one.bytes),
        Mode::Reordered => {
            for _ in 0..8 {
                let one = &captured[pick(captured.len())];
                send(nodes, one.node, one.source, &one.bytes);
            }
            return 8;
        }
        Mode::OtherAddress => send(nodes, one.node, one.source.map(|_| elsewhere), &one.bytes),
        Mode::OtherSession => {
            let mut bytes = one.bytes.clone();
            bytes[4..8].copy_from_slice(&live[pick(live.len())].0.to_be_bytes());
            send(nodes, one.node, one.source, &bytes);
        }
        Mode::OtherNode => send(nodes, 1 - one.node, one.source, &one.bytes),
        Mode::OtherSocket => {
            let source = match one.source {
                Some(_) => None,
                None => Some(elsewhere),
            };
            // The type byte of the other socket as well, half of the time.
            let mut bytes = one.bytes.clone();
            if pick(2) == 0 {
                bytes[0] = if source.is_some() { 4 } else { 6 };
            }
            send(nodes, one.node, source, &bytes);
        }
        Mode::Cut => send(nodes, one.node, one.source, &one.bytes[..pick(one.bytes.len())]),
    }
    1
}

#[test]
fn no_replay_of_any_phase_changes_the_state_of_any_gateway() {
    let asked = std::env::var("JUMP_REPLAY_TRIALS").ok().and_then(|text| text.parse().ok());
    let trials: u64 = asked.unwrap_or(TRIALS);
    let mut stage = stage();
    let before = digest(&stage.nodes);
    let mut random = Seeded(0x7e57);
    let mut sent: BTreeMap<Mode, (u64, u64)> = BTreeMap::new();
    for trial in 0..trials {
        let mode = Mode::ALL[(trial % Mode::ALL.len() as u64) as usize];
        let datagrams = play(&mut stage, mode, &mut random) as u64;
        carry(&mut stage.nodes);
        // Handshake threads answer some of what was replayed; nobody can confirm the answers.
        if trial % 64 == 0 {
            stage.nodes.iter_mut().for_each(Node::answer_inits);
        }
        assert_silence(&mut stage.nodes, || format!("trial {trial}, {mode:?}"));
        stage.nodes.iter_mut().for_each(|node| node.wire.clients.clear());
        let (trials, all) = sent.entry(mode).or_default();
        (*trials, *all) = (*trials + 1, *all + datagrams);
        if trial % 1000 == 0 {
            assert_eq!(digest(&stage.nodes), before, "after trial {trial}, {mode:?}");
        }
    }
    assert_eq!(digest(&stage.nodes), before);
    // The comparison sees what is not a replay.
    let Stage { nodes, witness, .. } = &mut stage;
    witness.send_packet(&mut nodes[0], &packet(inner(2), server(), b"fresh"));
    assert_eq!(nodes[0].wire.inner.len(), 1);
    assert_ne!(digest(nodes), before);
    report(&stage, &sent, trials);
}

/// Prints what was tried, and writes it down where asked.
fn report(stage: &Stage, sent: &BTreeMap<Mode, (u64, u64)>, trials: u64) {
    let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
    stage.captured.iter().for_each(|one| *phases.entry(one.phase).or_default() += 1);
    let mut text = String::from("| How | Trials | Datagrams | Changes of state |\n|---|---|---|---|\n");
    for (mode, (trials, datagrams)) in sent {
        writeln!(text, "| {} | {trials} | {datagrams} | 0 |", mode.name()).unwrap();
    }
    let captured: Vec<String> = phases.iter().map(|(phase, count)| format!("{phase} {count}")).collect();
    writeln!(text, "\nCaptured: {}. Trials: {trials}.", captured.join(", ")).unwrap();
    eprintln!("{text}");
    if std::env::var_os("JUMP_WRITE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/replay.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- begin: report -->\n", "<!-- end: report -->");
        let (head, rest) = document.split_once(begin).unwrap();
        let (_, tail) = rest.split_once(end).unwrap();
        std::fs::write(path, format!("{head}{begin}{text}{end}{tail}")).unwrap();
    }
}
