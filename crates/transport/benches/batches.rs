//! Micro-benchmarks: cutting superpackets, putting packets together again, batched UDP over loopback.

#![expect(missing_docs, reason = "criterion's macros make public functions without documentation")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jump_transport::batch::{HEADROOM, TAILROOM};
use jump_transport::tun::raw::{Coalescer, HEADER_LEN, split_superpacket};
use jump_transport::udp::{ReceiveBuffers, SendBatch, UdpOptions, UdpSocket};

/// Payload of a full TCP segment at an inner MTU of 1420.
const SEGMENT_LEN: usize = 1368;
const TCP_HEADERS_LEN: usize = 52;

/// A TCP superpacket over IPv4 with timestamps, and its vnet header.
fn superpacket(segments: usize) -> ([u8; HEADER_LEN], Vec<u8>) {
    let mut packet = vec![0x5a; TCP_HEADERS_LEN + segments * SEGMENT_LEN];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let len = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&len);
    packet[32] = 8 << 4;
    packet[33] = 0x10;
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&[1, 1]);
    header[2..4].copy_from_slice(&(TCP_HEADERS_LEN as u16).to_ne_bytes());
    header[4..6].copy_from_slice(&(SEGMENT_LEN as u16).to_ne_bytes());
    header[6..8].copy_from_slice(&20u16.to_ne_bytes());
    header[8..10].copy_from_slice(&16u16.to_ne_bytes());
    (header, packet)
}

/// The packets of a superpacket.
fn packets(segments: usize) -> Vec<Vec<u8>> {
    let (header, packet) = superpacket(segments);
    let mut buffer = [vec![0; HEADROOM], packet.clone(), vec![0; TAILROOM]].concat();
    let mut parts = Vec::new();
    split_superpacket(&mut buffer, packet.len(), &header, &mut |frame| {
        parts.push(frame[HEADROOM..frame.len() - TAILROOM].to_vec());
    })
    .expect("a well-formed superpacket");
    parts
}

fn tun(c: &mut Criterion) {
    let (header, packet) = superpacket(45);
    let mut buffer = [vec![0; HEADROOM], packet.clone(), vec![0; TAILROOM]].concat();
    let mut group = c.benchmark_group("tun");
    group.throughput(Throughput::Bytes(packet.len() as u64));
    group.bench_function("split 45 tcp segments", |b| {
        b.iter(|| {
            // The last split left its headers elsewhere; what the payload is does not matter.
            buffer[HEADROOM..HEADROOM + TCP_HEADERS_LEN].copy_from_slice(&packet[..TCP_HEADERS_LEN]);
            split_superpacket(&mut buffer, packet.len(), &header, &mut |frame| {
                black_box(frame);
            })
            .expect("a well-formed superpacket")
        });
    });
    let parts = packets(45);
    let mut coalescer = Coalescer::new();
    group.bench_function("coalesce 45 tcp segments", |b| {
        b.iter(|| {
            let mut writes = 0;
            for part in &parts {
                coalescer.push(&mut |_, p| _ = black_box(p), part);
            }
            let mut write = |_: &[u8; HEADER_LEN], p: &[u8]| {
                black_box(p);
                writes += 1;
            };
            coalescer.flush(&mut write);
            assert_eq!(writes, 1);
        });
    });
    group.finish();

    let small: Vec<Vec<u8>> = (0..64u16)
        .map(|port| {
            let mut packet = parts[0][..TCP_HEADERS_LEN + 12].to_vec();
            let len = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&len);
            packet[20..22].copy_from_slice(&port.to_be_bytes());
            packet
        })
        .collect();
    let mut group = c.benchmark_group("tun small");
    group.throughput(Throughput::Elements(64));
    group.bench_function("coalesce 64 packets of 64 flows", |b| {
        b.iter(|| {
            for packet in &small {
                coalescer.push(&mut |_, p| _ = black_box(p), packet);
            }
            coalescer.flush(&mut |_, p| _ = black_box(p))
        });
    });
    group.finish();
}

fn udp(c: &mut Criterion) {
    let options = UdpOptions { buffer_bytes: 8 << 20, ..UdpOptions::default() };
    let bind = || UdpSocket::bind(([127, 0, 0, 1], 0).into(), &options).expect("loopback");
    let (from, to) = (bind(), bind());
    let address = to.local_address().expect("bound");
    let (mut batch, mut buffers) = (SendBatch::new(), ReceiveBuffers::new());
    let mut group = c.benchmark_group("udp loopback");
    for (name, count, len) in [("45 datagrams of 1452 bytes", 45, 1452), ("64 datagrams of 96 bytes", 64, 96)]
    {
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |b| {
            b.iter(|| {
                for _ in 0..count {
                    batch.slot(&from, address, len).fill(7);
                }
                batch.flush(&from);
                let mut got = 0;
                while got < count as usize {
                    got += to.receive(&mut buffers, &mut |d| _ = black_box(d)).expect("loopback");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tun, udp);
criterion_main!(benches);
