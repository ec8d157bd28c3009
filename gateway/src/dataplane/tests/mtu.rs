use jump_session::frame::CAPABILITY_MTU;

use super::*;

const DONT_FRAGMENT: u8 = 0x40;

/// A packet of `len` bytes to the client; of IPv4, one that must not be cut.
fn large(source: IpAddr, destination: IpAddr, len: usize) -> Vec<u8> {
    let header_len = if source.is_ipv4() { 20 } else { 40 };
    let mut packet = packet(source, destination, &vec![7; len - header_len]);
    if source.is_ipv4() {
        packet[6] = DONT_FRAGMENT;
    }
    packet
}

fn attached(capabilities: u32) -> (Cluster, Node, Client) {
    let mut cluster = Cluster::new();
    let mut node = Node::new(&mut cluster, 1);
    let mut client = Client::new(&mut cluster, 1);
    client.capabilities = capabilities;
    client.attach(&mut node, session(1), 1, &[inner(1), "fd00::1".parse().unwrap()]);
    (cluster, node, client)
}

fn tell(client: &mut Client, node: &mut Node, id: u64, mtu: u16, len: u16) -> Vec<Frame> {
    let mut text = [0; 9000];
    let len = Frame::MtuProbe { id, mtu, len }.encode(&mut text).unwrap();
    let record = client.seal(Content::Control, &text[..len]);
    node.client_sends(client.address, &record);
    client.frames(node)
}

#[test]
fn a_packet_that_the_client_does_not_take_is_dropped_and_its_sender_is_told_by_icmp_of_its_family() {
    let (_, mut node, mut client) = attached(0);
    let six: (IpAddr, IpAddr) = ("fd99::9".parse().unwrap(), "fd00::1".parse().unwrap());
    for (source, destination) in [(server(), inner(1)), six] {
        node.inner_sends(&large(source, destination, 1281));
        assert!(client.packets(&mut node).is_empty());
        let told = node.wire.inner.pop().expect("an ICMP error");
        let header = crate::dataplane::inner::InnerHeader::parse(&told).expect("a whole packet");
        assert_eq!((header.source, header.destination), (destination, source));
        let mtu = if source.is_ipv4() { &told[26..28] } else { &told[46..48] };
        assert_eq!(mtu, 1280u16.to_be_bytes());
        node.inner_sends(&large(source, destination, 1280));
        assert_eq!(client.packets(&mut node).len(), 1);
        assert!(node.wire.inner.is_empty());
    }
    assert_eq!((node.dropped(DropReason::TooBig), node.count(Count::TooBigTold)), (2, 2));
}

#[test]
fn what_the_client_tells_by_its_probes_counts_from_then_on() {
    let (_, mut node, mut client) = attached(0);
    let answers = tell(&mut client, &mut node, 1, 1340, 1360);
    assert_eq!(answers, [Frame::MtuAnswer { id: 1, mtu_max: 1360, len: 1360 }]);
    node.inner_sends(&large(server(), inner(1), 1340));
    node.inner_sends(&large(server(), inner(1), 1341));
    assert_eq!(client.packets(&mut node).len(), 1);
    tell(&mut client, &mut node, 2, 1280, 1280);
    node.inner_sends(&large(server(), inner(1), 1340));
    assert!(client.packets(&mut node).is_empty());
}

#[test]
fn a_client_that_tells_its_mtu_takes_what_the_inner_network_carries_until_then() {
    for (capabilities, most) in [(0, 1280), (CAPABILITY_MTU, 1360)] {
        let (_, mut node, mut client) = attached(capabilities);
        node.inner_sends(&large(server(), inner(1), most));
        node.inner_sends(&large(server(), inner(1), most + 1));
        assert_eq!(client.packets(&mut node).len(), 1, "capabilities {capabilities}");
        assert_eq!(node.dropped(DropReason::TooBig), 1);
    }
}

#[test]
fn errors_are_not_answered_and_a_flood_is_answered_ten_times() {
    let (_, mut node, mut client) = attached(0);
    let mut icmp = large(server(), inner(1), 1400);
    (icmp[9], icmp[20]) = (1, 3);
    node.inner_sends(&icmp);
    assert!(node.wire.inner.is_empty());
    for _ in 0..1000 {
        node.inner_sends(&large(server(), inner(1), 1400));
    }
    assert_eq!(node.wire.inner.len(), 10);
    assert!(client.packets(&mut node).is_empty());
}

#[test]
fn an_ipv4_packet_that_may_be_cut_arrives_in_fragments() {
    let (_, mut node, mut client) = attached(0);
    node.inner_sends(&packet(server(), inner(1), &[7; 2000]));
    let fragments = client.packets(&mut node);
    assert!(fragments.iter().all(|fragment| fragment.len() <= 1280));
    assert_eq!(fragments.iter().map(|fragment| fragment.len() - 20).sum::<usize>(), 2000);
    assert_eq!((node.count(Count::Fragmented), node.count(Count::PacketsDown)), (1, 1));
    assert!(node.wire.inner.is_empty());
}

#[test]
fn the_owner_tells_the_sender_of_a_packet_that_another_gateway_relayed() {
    let mut cluster = Cluster::new();
    let [mut a, mut b] = [1, 2].map(|number| Node::new(&mut cluster, number));
    link(&mut a, &mut b);
    let mut client = Client::new(&mut cluster, 1);
    client.attach(&mut a, session(1), 1, &[inner(1)]);
    b.bind(session(1), 1, &[inner(1)], BindingPhase::Owned(NodeRef(1)));
    b.inner_sends(&large(server(), inner(1), 1300));
    for (_, datagram) in std::mem::take(&mut b.wire.mesh) {
        a.mesh_brings(&datagram);
    }
    assert_eq!((a.dropped(DropReason::TooBig), a.wire.inner.len()), (1, 1));
    assert!(client.packets(&mut a).is_empty());
}
