//! What forwarding one packet costs the data plane, without any system call: in nanoseconds, and in instructions.
//!
//! Nanoseconds move with the machine's mood; instructions do not. `make bench-instructions` runs each case under callgrind,
//! which collects inside [`measured`] only, and prints instructions per packet; run as it is, the program prints
//! nanoseconds per packet.

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use fixture::{Fixture, tick, udp_packet};
use jump_crypto::handshake::Suite;
use jump_crypto::record::OVERHEAD;
use jump_gateway::dataplane::{Count, Wire};

/// Packets of one batch.
const BATCH: usize = 64;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

/// The cases: name, sessions, bytes of an inner packet.
const CASES: [(&str, usize, usize); 6] = [
    ("up-64", 1, 92),
    ("up-1400", 1, 1400),
    ("up-1400-of-1000-sessions", 1000, 1400),
    ("down-64", 1, 92),
    ("down-1400", 1, 1400),
    ("down-1400-of-1000-sessions", 1000, 1400),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let counted = arguments.iter().any(|argument| argument == "--counted");
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    for (name, sessions, len) in CASES {
        if wanted.is_none_or(|wanted| wanted == name) {
            // Enough to make the first use of a key disappear, and little enough for callgrind.
            let batches = if counted { 20 } else { 4000 };
            let nanos = run(name.starts_with("up"), sessions, len, batches);
            println!("{name} {} packets, {:.0} ns each", batches * BATCH, nanos);
        }
    }
}

/// Takes what the data plane writes.
struct Memory {
    slot: Vec<u8>,
}

impl Wire for Memory {
    fn to_client(&mut self, _: jump_session::path::Path, len: usize) -> &mut [u8] {
        &mut self.slot[..len]
    }
    fn cancel_client(&mut self) {}
    fn to_mesh(&mut self, _: SocketAddr, len: usize) -> &mut [u8] {
        &mut self.slot[..len]
    }
    fn cancel_mesh(&mut self) {}
    fn to_inner(&mut self, packet: &[u8]) {
        black_box(packet);
    }
}

fn run(up: bool, sessions: usize, len: usize, batches: usize) -> f64 {
    let address = SocketAddr::from(([192, 0, 2, 1], 4000));
    let Fixture { mut plane, mut devices, .. } = Fixture::new(sessions, Suite::AesGcmSha256, |_| address);
    let mut wire = Memory { slot: vec![0; 2048] };
    let mut nanos = 0;
    let mut turn = 0;
    let warm = (2 * sessions).div_ceil(BATCH);
    for batch in 0..warm + batches {
        let packets: Vec<Vec<u8>> = (0..BATCH)
            .map(|i| {
                let device = &mut devices[(turn + i) % sessions];
                if up {
                    let mut record = vec![0; len + OVERHEAD];
                    device.seal(&udp_packet(device.inner, SERVER, len), &mut record);
                    record
                } else {
                    udp_packet(SERVER, device.inner, len)
                }
            })
            .collect();
        turn += BATCH;
        let mut packets = packets;
        let start = Instant::now();
        let mut work = || {
            let tick = tick();
            for packet in &mut packets {
                if up {
                    plane.handle_client(tick, address, packet, &mut wire);
                } else {
                    plane.handle_inner(tick, packet, &mut wire);
                }
            }
        };
        // The first batches make what is made once per session: expanded keys, replay rings.
        if batch < warm {
            work();
        } else {
            measured(work);
            nanos += start.elapsed().as_nanos();
        }
    }
    let counters = plane.counters();
    let forwarded = counters.count(Count::PacketsUp) + counters.count(Count::PacketsDown);
    assert_eq!(forwarded, ((warm + batches) * BATCH) as u64, "every packet is forwarded");
    nanos as f64 / (batches * BATCH) as f64
}

/// Callgrind collects in here.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
    black_box(());
}
