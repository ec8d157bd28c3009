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

#[test]
fn an_idle_session_costs_less_than_the_bound() {
    // The boxes of one session: itself, its expanded keys (made on first use) and its repeated outcome, which goes
    // after ten seconds. The bound of the whole is checked on the process by the lab.
    let table = std::mem::size_of::<Entry>() + 8;
    let session = std::mem::size_of::<Session>();
    assert!(table + session < 2048, "{table} + {session} bytes");
}
