//! Forwarding allocates nothing: a counting allocator watches records of many sessions through the data plane and real
//! send batches, both ways.

mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use fixture::{Fixture, tick, udp_packet};
use jump_crypto::handshake::Suite;
use jump_gateway::dataplane::{Count, Wire};
use jump_transport::udp::{ReceiveBuffers, SendBatch, UdpOptions, UdpSocket};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "counting allocations takes an allocator of one's own")]
// SAFETY: every call goes to the system allocator unchanged; the counter is a thread-local integer that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// A real socket's batch towards clients; inner packets are counted.
struct SocketWire {
    socket: UdpSocket,
    clients: SendBatch,
    mesh: SendBatch,
    inner: u64,
}

impl Wire for SocketWire {
    fn to_client(&mut self, path: jump_session::path::Path, len: usize) -> &mut [u8] {
        self.clients.slot(&self.socket, path.peer, len)
    }
    fn cancel_client(&mut self) {
        self.clients.cancel();
    }
    fn to_mesh(&mut self, destination: SocketAddr, len: usize) -> &mut [u8] {
        self.mesh.slot(&self.socket, destination, len)
    }
    fn cancel_mesh(&mut self) {
        self.mesh.cancel();
    }
    fn to_inner(&mut self, _: &[u8]) {
        self.inner += 1;
    }
}

#[test]
fn forwarding_for_many_sessions_allocates_nothing_in_either_direction() {
    const SESSIONS: usize = 200;
    const ROUNDS: usize = 300;
    let server = Ipv4Addr::new(10, 1, 0, 1);
    let options = UdpOptions { buffer_bytes: 4 << 20, ..UdpOptions::default() };
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let (socket, sink) =
        (UdpSocket::bind(loopback, &options).unwrap(), UdpSocket::bind(loopback, &options).unwrap());
    let address = sink.local_address().unwrap();
    let Fixture { mut plane, mut devices, .. } = Fixture::new(SESSIONS, Suite::AesGcmSha256, |_| address);
    let mut wire = SocketWire { socket, clients: SendBatch::new(), mesh: SendBatch::new(), inner: 0 };
    let up: Vec<_> = devices.iter().map(|device| udp_packet(device.inner, server, 700)).collect();
    let down: Vec<_> = devices.iter().map(|device| udp_packet(server, device.inner, 700)).collect();
    let (mut record, mut received) = (vec![0; 2048], ReceiveBuffers::new());
    let mut opened = 0;
    let mut before = 0;
    for round in 0..ROUNDS {
        // A replay window's ring is made with its 64th record, expanded keys with the first.
        if round == 70 {
            before = allocations();
        }
        plane.begin_pass(round % 2 == 0);
        for (device, packet) in devices.iter_mut().zip(&up) {
            let sealed = device.seal(packet, &mut record);
            plane.handle_client(tick(), address, sealed, &mut wire);
        }
        for packet in &down {
            plane.handle_inner(tick(), packet, &mut wire);
        }
        wire.clients.flush(&wire.socket);
        plane.handle_timers(tick(), &mut wire);
        while sink.receive(&mut received, &mut |_| opened += 1).unwrap() > 0 {}
    }
    let made = allocations() - before;
    let counters = plane.counters();
    assert_eq!(counters.count(Count::PacketsUp), (SESSIONS * ROUNDS) as u64);
    assert_eq!(counters.count(Count::PacketsDown), (SESSIONS * ROUNDS) as u64);
    assert_eq!(wire.inner, (SESSIONS * ROUNDS) as u64);
    assert!(opened > SESSIONS * ROUNDS / 2, "only {opened} datagrams arrived");
    assert_eq!(made, 0, "allocations in {} packets", SESSIONS * (ROUNDS - 70) * 2);
}

#[test]
fn packets_that_are_too_large_are_answered_or_cut_without_an_allocation() {
    let server = Ipv4Addr::new(10, 1, 0, 1);
    let options = UdpOptions { buffer_bytes: 4 << 20, ..UdpOptions::default() };
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let (socket, sink) =
        (UdpSocket::bind(loopback, &options).unwrap(), UdpSocket::bind(loopback, &options).unwrap());
    let address = sink.local_address().unwrap();
    let Fixture { mut plane, devices, .. } = Fixture::new(1, Suite::AesGcmSha256, |_| address);
    let mut wire = SocketWire { socket, clients: SendBatch::new(), mesh: SendBatch::new(), inner: 0 };
    let mut may_be_cut = udp_packet(server, devices[0].inner, 1400);
    may_be_cut[6] = 0;
    let mut must_not = may_be_cut.clone();
    must_not[6] = 0x40;
    let mut before = 0;
    for round in 0..100 {
        // Expanded keys are made with the first packet.
        if round == 10 {
            before = allocations();
        }
        plane.handle_inner(tick(), &may_be_cut, &mut wire);
        plane.handle_inner(tick(), &must_not, &mut wire);
        wire.clients.flush(&wire.socket);
    }
    assert_eq!(allocations() - before, 0);
    let counters = plane.counters();
    assert_eq!(counters.count(Count::Fragmented), 100);
    assert!((1..100).contains(&counters.count(Count::TooBigTold)), "{}", counters.count(Count::TooBigTold));
}
