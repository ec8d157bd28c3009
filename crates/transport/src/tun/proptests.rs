//! Split and coalesce against each other and against a plain model of TCP and UDP packets.

use std::cell::RefCell;
use std::io;

use proptest::collection::vec;
use proptest::prelude::*;

use super::checksum::reference;
use super::coalesce::{Sink, TunSendBatch};
use super::split::split;
use super::vnet::{Gso, HEADER_LEN, VnetHeader};
use super::{HEADROOM, TAILROOM};

/// A device that splits every superpacket back into packets, as the kernel does.
#[derive(Default)]
struct Device {
    packets: RefCell<Vec<Vec<u8>>>,
    writes: RefCell<usize>,
}

impl Sink for Device {
    fn coalesces(&self) -> (bool, bool) {
        (true, true)
    }

    fn write(&self, header: VnetHeader, packet: &[u8]) -> io::Result<()> {
        *self.writes.borrow_mut() += 1;
        let parts = split_all(packet, &header).expect("a superpacket of ours is well formed");
        self.packets.borrow_mut().extend(parts);
        Ok(())
    }
}

/// Splits a copy; each "sealing" scribbles over the whole frame, as a careless caller may.
fn split_all(packet: &[u8], header: &VnetHeader) -> Option<Vec<Vec<u8>>> {
    let mut buffer = [vec![0; HEADROOM], packet.to_vec(), vec![0; TAILROOM]].concat();
    let mut parts = Vec::new();
    let count = split(&mut buffer, packet.len(), header, &mut |frame| {
        parts.push(frame[HEADROOM..frame.len() - TAILROOM].to_vec());
        frame.fill(0xee);
    })
    .ok()?;
    assert_eq!(count, parts.len());
    Some(parts)
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    ipv6: bool,
    tcp: bool,
    port: u16,
}

impl Flow {
    /// A packet of this flow with right lengths and checksums, from the plain reference.
    fn packet(&self, id: u16, sequence: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.port.to_be_bytes());
        body.extend(443u16.to_be_bytes());
        let field = if self.tcp {
            body.extend(sequence.to_be_bytes());
            body.extend(77u32.to_be_bytes());
            body.push((((20 + options.len()) / 4) << 4) as u8);
            body.extend([flags, 0x20, 0, 0, 0, 0, 0]);
            body.extend(options);
            16
        } else {
            body.extend(((8 + payload.len()) as u16).to_be_bytes());
            body.extend([0, 0]);
            6
        };
        body.extend(payload);
        let protocol = if self.tcp { 6 } else { 17 };
        let mut ip = if self.ipv6 {
            let mut ip = vec![0x60, 0, 0, 9];
            ip.extend((body.len() as u16).to_be_bytes());
            ip.extend([protocol, 64]);
            ip.extend([0x20; 32]);
            ip
        } else {
            let mut ip = vec![0x45, 0];
            ip.extend(((20 + body.len()) as u16).to_be_bytes());
            ip.extend(id.to_be_bytes());
            ip.extend([0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = reference::checksum(&[&ip]);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            ip
        };
        let checksum = match transport_checksum(&ip, &body) {
            0 if !self.tcp => 0xffff,
            checksum => checksum,
        };
        body[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        ip.extend(body);
        ip
    }
}

/// Reference checksum over pseudo header and body; zero for a body whose checksum is right.
fn transport_checksum(ip: &[u8], body: &[u8]) -> u16 {
    let (addresses, protocol) = if ip[0] >> 4 == 6 { (&ip[8..40], ip[6]) } else { (&ip[12..20], ip[9]) };
    let len = (body.len() as u32).to_be_bytes();
    reference::checksum(&[addresses, &len, &[0, 0, 0, protocol], body])
}

fn assert_checksums(packet: &[u8]) {
    let header_len = if packet[0] >> 4 == 6 { 40 } else { 20 };
    let (ip, body) = packet.split_at(header_len);
    if header_len == 20 {
        assert_eq!(reference::checksum(&[ip]), 0, "IPv4 header checksum");
    }
    assert_eq!(transport_checksum(ip, body), 0, "transport checksum");
}

fn flows() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 1000u16..1003).prop_map(|(ipv6, tcp, port)| Flow { ipv6, tcp, port })
}

/// Packets as a sender of several flows makes them: mostly full-sized runs, with odd ends, pushes, gaps and bare ACKs.
fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let burst = (flows(), 1usize..40, 1usize..1400, 0usize..3, 0u8..8, 0usize..100);
    vec(burst, 1..12).prop_map(|bursts| {
        let mut state = std::collections::BTreeMap::new();
        let mut packets = Vec::new();
        for (flow, count, size, options, oddity, last) in bursts {
            let (id, sequence) =
                state.entry((flow.ipv6, flow.tcp, flow.port)).or_insert((u16::MAX - 3, u32::MAX - 3000));
            let options = vec![1u8; options * 4];
            for i in 0..count {
                let end = i + 1 == count;
                let len = if end { last.min(size) } else { size };
                let flags = match oddity {
                    1 if end => 0x18,
                    2 if end => 0x11,
                    3 if end => 0x14,
                    _ => 0x10,
                };
                let payload: Vec<u8> = (0..len).map(|b| (b + i * 7) as u8).collect();
                packets.push(flow.packet(*id, *sequence, flags, &options, &payload));
                *id = id.wrapping_add(if oddity == 4 { 2 } else { 1 });
                *sequence = sequence.wrapping_add(len as u32 + u32::from(oddity == 5));
            }
        }
        packets
    })
}

/// What identifies a packet's flow.
fn flow_of(packet: &[u8]) -> (u8, u8, [u8; 2]) {
    let (protocol, body) = if packet[0] >> 4 == 6 { (packet[6], 40) } else { (packet[9], 20) };
    (packet[0] >> 4, protocol, [packet[body], packet[body + 1]])
}

fn by_flow(packets: &[Vec<u8>]) -> std::collections::BTreeMap<(u8, u8, [u8; 2]), Vec<Vec<u8>>> {
    let mut flows = std::collections::BTreeMap::new();
    for packet in packets {
        flows.entry(flow_of(packet)).or_insert_with(Vec::new).push(packet.clone());
    }
    flows
}

proptest! {
    #[test]
    fn coalescing_then_splitting_keeps_every_byte_and_the_order_of_every_flow(packets in traffic(), flush_every in 1usize..300) {
        let device = Device::default();
        let mut batch = TunSendBatch::new();
        let mut written = 0;
        for (i, packet) in packets.iter().enumerate() {
            batch.push_to(&device, packet);
            if i % flush_every == 0 {
                written += batch.flush_to(&device).packets;
            }
        }
        written += batch.flush_to(&device).packets;
        prop_assert_eq!(written, packets.len() as u64);
        let out = device.packets.borrow();
        prop_assert_eq!(by_flow(&out), by_flow(&packets));
        out.iter().for_each(|p| assert_checksums(p));
    }

    #[test]
    fn splitting_a_superpacket_gives_right_headers_and_all_of_the_payload(
        flow in flows(), segment_len in 1usize..1500, payload in vec(any::<u8>(), 1..9000), options in 0usize..10, flags in any::<u8>()
    ) {
        let flags = flags & !0x06 | 0x10;
        let mut whole = flow.packet(65_530, u32::MAX - 100, flags, &vec![1; options * 4], &payload);
        let transport = if flow.ipv6 { 40 } else { 20 };
        let headers_len = transport + if flow.tcp { 20 + options * 4 } else { 8 };
        let offset = if flow.tcp { 16 } else { 6 };
        whole[transport + offset..transport + offset + 2].fill(0x5a); // whatever the kernel left there
        let header = VnetHeader {
            needs_checksum: true,
            gso: match (flow.tcp, flow.ipv6) { (true, false) => Gso::Tcp4, (true, true) => Gso::Tcp6, _ => Gso::Udp },
            headers_len: 0,
            segment_len: segment_len as u16,
            checksum_start: transport as u16,
            checksum_offset: offset as u16,
        };
        let parts = split_all(&whole, &header).unwrap();
        let count = payload.len().div_ceil(segment_len);
        prop_assert_eq!(parts.len(), count);
        let mut rebuilt: Vec<u8> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            assert_checksums(part);
            rebuilt.extend(&part[headers_len..]);
            let expected = &payload[i * segment_len..payload.len().min((i + 1) * segment_len)];
            let mut segment_flags = flags;
            if i + 1 < count { segment_flags &= !0x09; }
            if i > 0 { segment_flags &= !0x80; }
            let model = flow.packet(
                65_530u16.wrapping_add(i as u16), (u32::MAX - 100).wrapping_add((i * segment_len) as u32), segment_flags,
                &vec![1; options * 4], expected,
            );
            prop_assert_eq!(part, &model);
        }
        prop_assert_eq!(rebuilt, payload);
    }

    #[test]
    fn garbage_in_the_vnet_or_ip_header_never_panics(
        vnet in any::<[u8; HEADER_LEN]>(), kind in 0u8..6, start in 0u16..80, mut packet in vec(any::<u8>(), 0..300), version in any::<bool>()
    ) {
        if let Some(first) = packet.first_mut() {
            *first = if version { 0x45 } else { 0x60 };
        }
        let mut headers = [vnet, vnet, vnet];
        headers[1][1] = kind;
        headers[2][1] = kind;
        headers[2][6..8].copy_from_slice(&start.to_ne_bytes());
        for header in headers.iter().filter_map(VnetHeader::parse) {
            split_all(&packet, &header);
        }
        let device = Device::default();
        let mut batch = TunSendBatch::new();
        batch.push_to(&device, &packet);
        batch.push_to(&device, &packet);
        batch.flush_to(&device);
    }

    #[test]
    fn one_flipped_bit_survives_coalescing_as_one_flipped_bit(flow in flows(), at in 0usize..4000, bit in 0u8..8) {
        let mut packets: Vec<Vec<u8>> =
            (0..10u16).map(|i| flow.packet(i, u32::from(i) * 400, 0x10, &[], &[i as u8; 400])).collect();
        let header_len = packets[0].len() - 400;
        packets[at / 400][header_len + at % 400] ^= 1 << bit;
        let device = Device::default();
        let mut batch = TunSendBatch::new();
        packets.iter().for_each(|p| batch.push_to(&device, p));
        batch.flush_to(&device);
        prop_assert_eq!(&*device.packets.borrow(), &packets, "the damaged packet stays damaged, and is seen to be");
    }
}

#[test]
fn a_long_run_of_one_flow_is_one_write_even_between_packets_of_other_flows() {
    let device = Device::default();
    let mut batch = TunSendBatch::new();
    let flow = |port| Flow { ipv6: false, tcp: true, port };
    for i in 0..40u16 {
        for port in 0..4 {
            batch.push_to(&device, &flow(port).packet(i, u32::from(i) * 1000, 0x10, &[], &[7; 1000]));
        }
    }
    assert_eq!(batch.flush_to(&device).packets, 160);
    assert_eq!(*device.writes.borrow(), 4);
}

#[test]
fn more_flows_than_runs_lose_nothing() {
    let device = Device::default();
    let mut batch = TunSendBatch::new();
    let mut packets = Vec::new();
    for i in 0..3u16 {
        for port in 0..100 {
            packets.push(Flow { ipv6: true, tcp: false, port }.packet(
                0,
                u32::from(i),
                0,
                &[],
                &[port as u8; 50],
            ));
        }
    }
    packets.iter().for_each(|p| batch.push_to(&device, p));
    assert_eq!(batch.flush_to(&device).packets, 300);
    assert_eq!(by_flow(&device.packets.borrow()), by_flow(&packets));
}

#[test]
fn an_icmp_packet_does_not_overtake_a_run_between_the_same_hosts() {
    let device = Device::default();
    let mut batch = TunSendBatch::new();
    let flow = Flow { ipv6: false, tcp: true, port: 9 };
    let data: Vec<Vec<u8>> =
        (0..2u16).map(|i| flow.packet(i, u32::from(i) * 100, 0x10, &[], &[1; 100])).collect();
    let mut icmp = flow.packet(9, 0, 0, &[], &[0; 30]);
    icmp[9] = 1;
    data.iter().for_each(|p| batch.push_to(&device, p));
    batch.push_to(&device, &icmp);
    batch.flush_to(&device);
    assert_eq!(*device.packets.borrow(), [data[0].clone(), data[1].clone(), icmp]);
}

#[test]
fn what_is_not_an_ip_packet_is_dropped_and_counted() {
    let device = Device::default();
    let mut batch = TunSendBatch::new();
    batch.push_to(&device, &[]);
    batch.push_to(&device, &[0x45; 10]);
    assert_eq!(batch.flush_to(&device).dropped, 2);
}
