use std::net::Ipv4Addr;

use super::*;
use crate::poll::{Waker, wait};

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap(), &UdpOptions::default()).unwrap()
}

/// Receives until `count` datagrams came.
fn receive_all(socket: &UdpSocket, count: usize) -> Vec<(Vec<u8>, SocketAddr, u8)> {
    let waker = Waker::new().unwrap();
    let mut buffers = ReceiveBuffers::new();
    let mut all = Vec::new();
    while all.len() < count {
        wait(&[socket.as_fd()], &waker, None, &mut [false]).unwrap();
        socket.receive(&mut buffers, &mut |d| all.push((d.bytes.to_vec(), d.source, d.ecn))).unwrap();
    }
    all
}

fn send_and_check(from: &UdpSocket, to: &UdpSocket, destination: SocketAddr, sizes: &[usize]) {
    let mut batch = SendBatch::new();
    for (i, size) in sizes.iter().enumerate() {
        batch.slot(from, destination, *size).fill(i as u8);
    }
    let flushed = batch.flush(from);
    assert_eq!(flushed.sent, sizes.len() as u64);
    assert_eq!(flushed.dropped, 0);
    let all = receive_all(to, sizes.len());
    for (i, (bytes, _, _)) in all.iter().enumerate() {
        assert_eq!(bytes, &vec![i as u8; sizes[i]], "datagram {i}");
    }
}

#[test]
fn a_batch_of_mixed_sizes_arrives_whole_and_in_order() {
    let (a, b) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let to = b.local_address().unwrap();
    let mut sizes = vec![1200; 40];
    sizes.extend([77, 1200, 1200, 1, 0, 9000, 9000, 3]);
    send_and_check(&a, &b, to, &sizes);
}

#[test]
fn ipv6_and_dual_stack_peers_reach_each_other() {
    let (a, b) = (socket("[::1]:0"), socket("[::]:0"));
    let port = b.local_address().unwrap().port();
    send_and_check(&a, &b, SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)), &[500; 10]);
    let v4 = socket("127.0.0.1:0");
    send_and_check(&v4, &b, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &[500; 10]);
    // And back: the dual-stack socket takes an IPv4 destination.
    send_and_check(&b, &v4, v4.local_address().unwrap(), &[500; 10]);
}

#[test]
fn an_ipv4_peer_of_a_dual_stack_socket_has_an_ipv4_address_and_the_local_address_is_known() {
    let (v4, dual) = (socket("127.0.0.1:0"), socket("[::]:0"));
    let port = dual.local_address().unwrap().port();
    v4.send(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), b"x").unwrap();
    let waker = Waker::new().unwrap();
    wait(&[dual.as_fd()], &waker, None, &mut [false]).unwrap();
    let mut seen = None;
    dual.receive(&mut ReceiveBuffers::new(), &mut |d| seen = Some((d.source, d.local))).unwrap();
    let (source, local) = seen.unwrap();
    assert_eq!(source, v4.local_address().unwrap());
    assert_eq!(local, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
}

#[test]
fn an_answer_leaves_from_the_chosen_local_address() {
    for (bound, asked) in [("0.0.0.0:0", "127.0.0.1:0"), ("[::]:0", "127.0.0.1:0")] {
        let (server, client) = (socket(bound), socket(asked));
        let local = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 7));
        let route = Route { destination: client.local_address().unwrap(), local: Some(local), ecn: 0 };
        server.send_from(route, b"x").unwrap();
        let all = receive_all(&client, 1);
        assert_eq!(all[0].1.ip(), local);
    }
}

#[test]
fn ecn_bits_travel_in_both_families() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = (socket(address), socket(address));
        let mut batch = SendBatch::new();
        for ecn in [0, 1, 2, 3] {
            let route = Route { ecn, ..Route::from(b.local_address().unwrap()) };
            batch.slot_from(&a, route, 8);
        }
        assert_eq!(batch.flush(&a).sent, 4);
        let seen: Vec<u8> = receive_all(&b, 4).iter().map(|d| d.2).collect();
        assert_eq!(seen, [0, 1, 2, 3]);
    }
}

#[test]
fn a_cancelled_slot_is_not_sent() {
    let (a, b) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let to = b.local_address().unwrap();
    let mut batch = SendBatch::new();
    batch.cancel();
    batch.slot(&a, to, 4).copy_from_slice(b"keep");
    batch.slot(&a, to, 9).copy_from_slice(b"forget me");
    batch.cancel();
    batch.slot(&a, to, 4).copy_from_slice(b"also");
    assert_eq!(batch.flush(&a).sent, 2);
    let all: Vec<Vec<u8>> = receive_all(&b, 2).into_iter().map(|d| d.0).collect();
    assert_eq!(all, [b"keep".to_vec(), b"also".to_vec()]);
}

#[test]
fn a_full_batch_flushes_by_itself_and_loses_nothing() {
    let options = UdpOptions { buffer_bytes: 8 << 20, ..UdpOptions::default() };
    let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
    let b = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
    let to = b.local_address().unwrap();
    let mut batch = SendBatch::new();
    for i in 0..600u32 {
        batch.slot(&a, to, 900).fill(i as u8);
    }
    assert_eq!(batch.flush(&a).sent, 600);
    let all = receive_all(&b, 600);
    assert!(all.iter().enumerate().all(|(i, d)| d.0 == [i as u8; 900]));
}

#[test]
fn an_icmp_refusal_is_reported_once_and_the_socket_stays_usable() {
    let closed = socket("127.0.0.1:0").local_address().unwrap();
    let a = socket("127.0.0.1:0");
    a.connect(closed).unwrap();
    a.send(closed, b"anyone?").unwrap();
    let waker = Waker::new().unwrap();
    wait(&[a.as_fd()], &waker, None, &mut [false]).unwrap();
    let mut buffers = ReceiveBuffers::new();
    let error = a.receive(&mut buffers, &mut |_| ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(a.receive(&mut buffers, &mut |_| ()).unwrap(), 0);
    let mut ready = [true];
    wait(&[a.as_fd()], &waker, Some(std::time::Duration::ZERO), &mut ready).unwrap();
    assert_eq!(ready, [false], "an emptied error queue leaves nothing to report");
}

#[test]
fn a_flush_reports_a_refusal_and_still_sends() {
    let closed = socket("127.0.0.1:0").local_address().unwrap();
    let a = socket("127.0.0.1:0");
    a.connect(closed).unwrap();
    a.send(closed, b"anyone?").unwrap();
    let waker = Waker::new().unwrap();
    wait(&[a.as_fd()], &waker, None, &mut [false]).unwrap();
    let mut batch = SendBatch::new();
    batch.slot(&a, closed, 3);
    let flushed = batch.flush(&a);
    assert!(flushed.refused);
    assert_eq!(flushed.sent, 1);
}

#[test]
fn a_refused_segmentation_falls_back_and_is_remembered() {
    // Segmented sends need UDP checksums: without them the kernel answers EIO or EINVAL, as an interface without
    // checksum offload once did.
    let (a, b) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sys::set_option(a.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    send_and_check(&a, &b, b.local_address().unwrap(), &[700; 9]);
    assert!(!a.shared.segmentation.load(Ordering::Relaxed), "remembered");
    send_and_check(&a, &b, b.local_address().unwrap(), &[700; 9]);
}

#[test]
fn a_run_is_split_at_its_segment_size_and_an_empty_datagram_counts() {
    let mut buffer = *b"aaabbbc";
    let mut seen = Vec::new();
    let run = sys::Received { len: 7, segment_len: 3, ..sys::Received::NONE };
    assert_eq!(split_run(&run, &mut buffer, &mut |d| seen.push(d.bytes.to_vec())), 3);
    assert_eq!(seen, [b"aaa".to_vec(), b"bbb".to_vec(), b"c".to_vec()]);
    let mut empty = 0;
    assert_eq!(split_run(&sys::Received::NONE, &mut buffer, &mut |_| empty += 1), 1);
    assert_eq!(empty, 1);
}

proptest::proptest! {
    #[test]
    fn splitting_a_run_keeps_every_byte(len in 1usize..5000, segment_len in 1usize..5000) {
        let segment_len = segment_len.min(len);
        let original: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut buffer = original.clone();
        let run = sys::Received { len, segment_len, ..sys::Received::NONE };
        let mut parts = Vec::new();
        split_run(&run, &mut buffer, &mut |d| parts.push(d.bytes.to_vec()));
        proptest::prop_assert!(parts[..parts.len() - 1].iter().all(|p| p.len() == segment_len));
        proptest::prop_assert_eq!(parts.concat(), original);
    }
}
