//! The packet path allocates nothing: a counting allocator watches one thread move packets through a real TUN device
//! and real UDP sockets.

#[path = "namespace/mod.rs"]
mod namespace;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket as StdUdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use jump_transport::batch::{HEADROOM, TAILROOM};
use jump_transport::poll::{Waker, wait};
use jump_transport::tun::{Tun, TunOptions, TunReceiveBuffers, TunSendBatch};
use jump_transport::udp::{ReceiveBuffers, SendBatch, UdpOptions, UdpSocket};
use namespace::Namespace;

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

#[test]
fn the_counter_sees_an_allocation() {
    let before = allocations();
    drop(std::hint::black_box(vec![0u8; 100]));
    assert_eq!(allocations() - before, 1);
}

/// Packets leave through the TUN device in bursts (superpackets), go as datagrams to a socket that sends them back, and
/// return through the device, with addresses exchanged so that they have somewhere to go.
#[test]
fn packets_through_device_and_socket_and_back_allocate_nothing() {
    const ROUNDS: u32 = 60;
    let namespace = Namespace::new();
    namespace.run(|| {
        let tun = Tun::create(&TunOptions {
            name: "jump0".to_owned(),
            addresses: vec!["10.99.0.1/24".parse().unwrap()],
            mtu: 1280,
            offload: true,
            queue_packets: 1000,
        })
        .unwrap();
        let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let (near, far) = (bind(), bind());
        let far_address = far.local_address().unwrap();
        let application = StdUdpSocket::bind("10.99.0.1:0").unwrap();
        application.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let traffic = UdpSocket::bind("10.99.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let mut traffic_batch = SendBatch::new();

        let waker = Waker::new().unwrap();
        let (mut tun_buffers, mut tun_batch) = (TunReceiveBuffers::new(), TunSendBatch::new());
        let (mut buffers, mut batch, mut echo_batch) =
            (ReceiveBuffers::new(), SendBatch::new(), SendBatch::new());
        let mut totals = [0u64; 3];
        let mut before = 0;
        for round in 0..ROUNDS {
            if round == 10 {
                totals = [0; 3];
                before = allocations();
            }
            // Bursts of one flow, one message to the kernel: the device gets a superpacket.
            for i in 0..40 {
                traffic_batch.slot(&traffic, "10.99.0.9:9".parse().unwrap(), 1000).fill(i);
            }
            traffic_batch.flush(&traffic);
            wait(&[tun.as_fd()], &waker, None, &mut [false]).unwrap();
            totals[0] += tun
                .receive(&mut tun_buffers, 256, &mut |frame| {
                    batch.slot(&near, far_address, frame.len()).copy_from_slice(frame);
                })
                .unwrap() as u64;
            assert_eq!(batch.flush(&near).dropped, 0);
            wait(&[far.as_fd()], &waker, None, &mut [false]).unwrap();
            far.receive(&mut buffers, &mut |d| {
                echo_batch.slot(&far, d.source, d.bytes.len()).copy_from_slice(d.bytes);
            })
            .unwrap();
            totals[1] += echo_batch.flush(&far).sent;
            wait(&[near.as_fd()], &waker, Some(Duration::ZERO), &mut [false]).unwrap();
            near.receive(&mut buffers, &mut |d| {
                let end = d.bytes.len() - TAILROOM;
                let packet = &mut d.bytes[HEADROOM..end];
                let (source, destination) = packet[12..20].split_at_mut(4);
                source.swap_with_slice(destination);
                tun_batch.push(&tun, packet);
            })
            .unwrap();
            let written = tun_batch.flush(&tun);
            assert_eq!(written.dropped, 0);
            totals[2] += written.packets;
        }
        let after = allocations();
        assert!(totals.iter().all(|t| *t >= 40 * u64::from(ROUNDS - 10)), "traffic flowed: {totals:?}");
        assert_eq!(after - before, 0, "allocations while {totals:?} packets passed");
    });
}
