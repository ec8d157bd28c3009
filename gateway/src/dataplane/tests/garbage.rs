use super::*;

/// A million datagrams, less in a quick run: `JUMP_GARBAGE=n`.
fn datagrams() -> u64 {
    std::env::var("JUMP_GARBAGE").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

/// Bytes that look like something, often enough to get past the first check.
fn spoil(i: u64, chaos: &mut Seeded, samples: &[Vec<u8>], out: &mut Vec<u8>) {
    let mut dice = [0; 16];
    chaos.fill(&mut dice).unwrap();
    let len = usize::from(u16::from_le_bytes([dice[0], dice[1]]));
    out.clear();
    match i % 4 {
        // Random bytes of a length up to a full datagram, mostly short, with a plausible type.
        0 => {
            out.resize(if dice[2] < 4 { len.min(65_507) } else { len % 256 }, dice[3]);
            chaos.fill(out.as_mut_slice()).unwrap();
            if let Some(first) = out.first_mut() {
                *first = dice[4] % 8;
            }
        }
        // A real datagram, cut short or made longer.
        1 => {
            out.extend(&samples[usize::from(dice[5]) % samples.len()]);
            out.resize(len % (2 * out.len().max(1)), dice[6]);
        }
        // A real datagram with a byte changed.
        2 => {
            out.extend(&samples[usize::from(dice[5]) % samples.len()]);
            let at = len % out.len();
            out[at] ^= dice[7] | 1;
        }
        // A record header for any index of this node.
        _ => {
            out.extend([4, dice[8] % 3, 0, 0]);
            out.extend(
                (1u32 << 20 | u32::from_le_bytes([dice[9], dice[10], dice[11] & 0xf, 0])).to_be_bytes(),
            );
            out.resize(8 + len % 200, dice[12]);
        }
    }
}

#[test]
fn a_million_bad_datagrams_neither_panic_nor_grow_the_table_nor_disturb_a_session() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut peer = Node::new(&mut cluster, 2);
    link(&mut node, &mut peer);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut node, session(1), 1, &[inner(1)]);
    let mut other = Client::new(&mut cluster, 2);
    let (_, init) = other.init(None, None);
    let record = client.seal(Content::Packet, &packet(inner(1), server(), b"genuine"));
    peer.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(1)));
    peer.inner_sends(&packet(server(), inner(1), b"relayed"));
    let mesh = peer.wire.mesh.pop().unwrap().1;
    let samples = [init.to_vec(), record, mesh];
    let mut chaos = Seeded(99);
    let mut datagram = Vec::with_capacity(65_536);
    let entries = node.plane.entries();
    for i in 0..datagrams() {
        spoil(i, &mut chaos, &samples, &mut datagram);
        let source = SocketAddr::from(([203, 0, 113, i as u8], i as u16 | 1));
        node.now += 1_000;
        let tick = node.tick();
        if i % 5 == 0 {
            node.plane.handle_mesh(tick, &mut datagram, &mut node.wire);
        } else {
            node.plane.handle_client(tick, source, &mut datagram, &mut node.wire);
        }
        if i % 1024 == 0 {
            // Nobody is sent more than came.
            node.wire = MemoryWire::default();
            node.plane.handle_timers(tick, &mut node.wire);
            while node.jobs.try_recv().is_ok() {}
        }
    }
    node.advance(HANDSHAKE_WAIT);
    assert_eq!(node.plane.entries(), entries, "entries were left behind");
    assert_eq!(node.plane.sessions(), 1);
    node.wire = MemoryWire::default();
    client.send_packet(&mut node, &packet(inner(1), server(), b"up"));
    node.inner_sends(&packet(server(), inner(1), b"down"));
    assert_eq!((node.wire.inner.len(), client.packets(&mut node).len()), (1, 1));
}

#[test]
fn garbage_that_a_peer_seals_is_dropped() {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut peer = Node::new(&mut cluster, 2);
    link(&mut node, &mut peer);
    let mut chaos = Seeded(5);
    for i in 0..20_000usize {
        let mut text = vec![0; i % 200];
        chaos.fill(&mut text).unwrap();
        let link = peer.plane.links.get_mut(NodeRef(1)).unwrap();
        let kind = [
            links::Kind::InnerPacket,
            links::Kind::StrayRecord,
            links::Kind::UplinkPacket,
            links::Kind::ForwardedPacket,
        ][i % 4];
        link.send(kind, &[], &text, &mut peer.wire, &mut Counters::new());
        let (_, datagram) = peer.wire.mesh.pop().unwrap();
        node.mesh_brings(&datagram);
    }
    assert!(node.wire.inner.is_empty());
    assert_eq!(node.plane.entries(), 0);
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Runs itself again in a process of its own, where no other test allocates.
#[test]
fn an_idle_session_costs_less_than_four_kibibytes() {
    const SESSIONS: u16 = 2000;
    if std::env::var_os("JUMP_IDLE_SESSIONS").is_none() {
        let own = "dataplane::tests::garbage::an_idle_session_costs_less_than_four_kibibytes";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let status = alone.args([own, "--exact", "--nocapture"]).env("JUMP_IDLE_SESSIONS", "1").status();
        assert!(status.unwrap().success());
        return;
    }
    let mut cluster = Cluster::new();
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let limits = Limits { source_rate: rate, cookie_above_per_second: u32::MAX, ..Limits::default() };
    let mut node = Node::with_limits(&mut cluster, 1, limits);
    let mut client = Client::new(&mut cluster, 1);
    let mut attach = |node: &mut Node, number: u16| {
        let id = SessionId::from_bytes([[number as u8, (number >> 8) as u8]; 8].concat().try_into().unwrap());
        let address = IpAddr::from([10, 64, (number >> 8) as u8, number as u8]);
        client.attach(node, id, 1, &[address]);
        // One packet each way, so that every key is in its expanded form.
        client.send_packet(node, &packet(address, server(), b"up"));
        node.inner_sends(&packet(server(), address, b"down"));
        node.wire = MemoryWire::default();
        node.now += 1_000_000;
    };
    (0..100).for_each(|number| attach(&mut node, number));
    let before = resident();
    (100..100 + SESSIONS).for_each(|number| attach(&mut node, number));
    node.advance(20 * SECOND);
    while node.events.try_recv().is_ok() {}
    assert_eq!(node.plane.sessions(), 100 + usize::from(SESSIONS));
    let each = (resident().saturating_sub(before)) / usize::from(SESSIONS);
    eprintln!(
        "{each} bytes per session, {} of them its own box",
        std::mem::size_of::<crate::dataplane::session::Session>()
    );
    assert!(each < 4096, "{each} bytes per session");
}
