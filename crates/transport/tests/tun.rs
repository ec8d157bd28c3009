//! Real TUN devices in network namespaces.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "namespace/mod.rs"]
mod namespace;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jump_transport::batch::{HEADROOM, TAILROOM};
use jump_transport::network::network_changes;
use jump_transport::poll::{Waker, wait};
use jump_transport::tun::{
    Tun, TunError, TunOptions, TunReceiveBuffers, TunSendBatch, add_address, add_route, delete_address,
    delete_route,
};
use namespace::Namespace;

fn options(addresses: &[&str]) -> TunOptions {
    TunOptions {
        name: "jump0".to_owned(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mtu: 1280,
        offload: true,
        queue_packets: 1000,
    }
}

/// Two namespaces whose TUN devices a thread connects.
struct Wire {
    left: Namespace,
    right: Namespace,
    stop: Arc<AtomicBool>,
    waker: Waker,
    pump: Option<JoinHandle<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    packets: u64,
    writes: u64,
    dropped: u64,
    malformed: u64,
    longest: usize,
}

impl Wire {
    fn new(offload: [bool; 2]) -> Self {
        let (left, right) = (Namespace::new(), Namespace::new());
        let make = |addresses: [&str; 2], offload| {
            let options = TunOptions { offload, ..options(&addresses) };
            move || Tun::create(&options).unwrap()
        };
        let a = left.run(make(["10.99.0.1/24", "fd99::1/64"], offload[0]));
        let b = right.run(make(["10.99.0.2/24", "fd99::2/64"], offload[1]));
        assert_eq!([a.has_tcp_offload(), b.has_tcp_offload()], offload);
        let (stop, waker) = (Arc::new(AtomicBool::new(false)), Waker::new().unwrap());
        let pump = std::thread::spawn({
            let (stop, waker) = (Arc::clone(&stop), waker.clone());
            move || pump(&a, &b, &stop, &waker)
        });
        Self { left, right, stop, waker, pump: Some(pump) }
    }

    fn finish(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.pump.take().unwrap().join().unwrap()
    }
}

fn pump(a: &Tun, b: &Tun, stop: &AtomicBool, waker: &Waker) -> Counts {
    let (mut buffers, mut batch) = (TunReceiveBuffers::new(), TunSendBatch::new());
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        wait(&[a.as_fd(), b.as_fd()], waker, None, &mut [false; 2]).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            from.receive(&mut buffers, 128, &mut |frame| {
                let packet = &frame[HEADROOM..frame.len() - TAILROOM];
                counts.longest = counts.longest.max(packet.len());
                batch.push(to, packet);
            })
            .unwrap();
            let written = batch.flush(to);
            counts.packets += written.packets;
            counts.writes += written.writes;
            counts.dropped += written.dropped;
        }
    }
    counts.malformed = buffers.malformed();
    counts
}

/// Sends a few MiB to an echoing peer over TCP and compares.
fn tcp_echo(wire: &Wire, address: &str) {
    const LEN: usize = 4 << 20;
    let address: SocketAddr = address.parse().unwrap();
    let listener = wire.right.run(move || TcpListener::bind(address).unwrap());
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut copy, &mut stream).unwrap();
    });
    let mut stream = wire.left.run(move || TcpStream::connect(address).unwrap());
    let data: Vec<u8> = (0..LEN).map(|i| ((i * i) >> 7) as u8).collect();
    let sender = std::thread::spawn({
        let (mut stream, data) = (stream.try_clone().unwrap(), data.clone());
        move || {
            stream.write_all(&data).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    echo.join().unwrap();
    assert!(back == data, "the stream came back changed");
}

/// Sends datagrams of many sizes to an echoing peer, one at a time, and compares.
fn udp_echo(wire: &Wire, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let server = wire.right.run(move || UdpSocket::bind(address).unwrap());
    let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let client = wire.left.run(move || UdpSocket::bind(any).unwrap());
    client.connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        loop {
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
            if len == 0 {
                return;
            }
        }
    });
    for len in (1..1200).step_by(37).chain([0]) {
        let data: Vec<u8> = (0..len).map(|i| (i ^ len) as u8).collect();
        client.send(&data).unwrap();
        let mut back = [0; 2000];
        let got = client.recv(&mut back).unwrap();
        assert_eq!(&back[..got], data, "a datagram of {len} bytes");
    }
    echo.join().unwrap();
}

#[test]
fn streams_and_datagrams_pass_two_devices_with_offloads_unchanged() {
    let wire = Wire::new([true, true]);
    tcp_echo(&wire, "10.99.0.2:7000");
    tcp_echo(&wire, "[fd99::2]:7000");
    udp_echo(&wire, "10.99.0.2:7000");
    udp_echo(&wire, "[fd99::2]:7000");
    let counts = wire.finish();
    assert_eq!((counts.malformed, counts.dropped), (0, 0));
    assert!(counts.writes * 3 < counts.packets, "runs are coalesced: {counts:?}");
    assert!(counts.longest <= 1280, "a packet of {} bytes exceeds the MTU", counts.longest);
}

#[test]
fn a_device_with_offloads_and_one_without_understand_each_other() {
    let wire = Wire::new([true, false]);
    tcp_echo(&wire, "10.99.0.2:7000");
    tcp_echo(&wire, "[fd99::2]:7000");
    udp_echo(&wire, "10.99.0.2:7000");
    let counts = wire.finish();
    assert_eq!((counts.malformed, counts.dropped), (0, 0));
}

#[test]
fn a_segmented_udp_send_arrives_as_its_datagrams() {
    let wire = Wire::new([true, true]);
    let receiver = wire.right.run(|| UdpSocket::bind("10.99.0.2:7001").unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let sent = wire.left.run(|| {
        use jump_transport::udp::{SendBatch, UdpOptions, UdpSocket};
        let socket = UdpSocket::bind("10.99.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let mut batch = SendBatch::new();
        for i in 0..50u8 {
            batch.slot(&socket, "10.99.0.2:7001".parse().unwrap(), 1000).fill(i);
        }
        batch.flush(&socket).sent
    });
    assert_eq!(sent, 50);
    let mut buffer = [0; 2000];
    for i in 0..50u8 {
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], [i; 1000], "datagram {i}");
    }
    assert_eq!(wire.finish().malformed, 0);
}

#[test]
fn a_device_has_the_name_addresses_mtu_and_state_asked_for() {
    let namespace = Namespace::new();
    let tun = namespace.run(|| Tun::create(&options(&["10.1.2.3/24", "10.1.3.3/32", "fd00::3/64"])).unwrap());
    assert_eq!(tun.name(), "jump0");
    let shown = namespace.ip(&["addr", "show", "dev", "jump0"]);
    for expected in [
        &format!("{}: jump0", tun.index()),
        "mtu 1280",
        ",UP",
        "10.1.2.3/24",
        "10.1.3.3/32",
        "fd00::3/64",
        "qlen 1000",
    ] {
        assert!(shown.contains(expected), "{expected} is not in: {shown}");
    }
    drop(tun);
    assert!(!namespace.ip(&["link"]).contains("jump0"), "dropping removes the interface");
}

#[test]
fn errors_say_what_to_do() {
    let namespace = Namespace::new();
    let (busy, long, forbidden) = namespace.run(|| {
        let _first = Tun::create(&options(&[])).unwrap();
        let busy = Tun::create(&options(&[])).unwrap_err();
        let long = Tun::create(&TunOptions { name: "a-name-that-is-too-long".to_owned(), ..options(&[]) })
            .unwrap_err();
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective -= rustix::thread::CapabilitySet::NET_ADMIN;
        rustix::thread::set_capabilities(None, sets).unwrap();
        let other = TunOptions { name: "jump1".to_owned(), ..options(&[]) };
        (busy, long, Tun::create(&other).unwrap_err())
    });
    assert!(matches!(busy, TunError::Busy { .. }), "{busy:?}");
    assert!(matches!(long, TunError::Other { .. }), "{long:?}");
    assert!(matches!(forbidden, TunError::Permission { .. }), "{forbidden:?}");
    assert_eq!(
        forbidden.to_string(),
        "no permission to create TUN device jump1: run as root or grant CAP_NET_ADMIN"
    );
}

#[test]
fn a_descriptor_that_is_no_tun_device_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Tun::from_fd(file.into()).is_err());
}

const CHILD: &str = "JUMP_TEST_TUN_CHILD";

#[test]
fn a_child_process_answers_on_the_device_it_inherited_and_the_parent_keeps_it() {
    if std::env::var_os(CHILD).is_some() {
        answer_one_datagram();
        return;
    }
    let namespace = Namespace::new();
    let status = namespace.run(|| {
        let tun = Tun::create(&options(&["10.99.0.1/24"])).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_child_process_answers_on_the_device_it_inherited_and_the_parent_keeps_it"])
            .env(CHILD, "1")
            .stdin(Stdio::from(tun.as_fd().try_clone_to_owned().unwrap()))
            .spawn()
            .unwrap();
        let socket = UdpSocket::bind("10.99.0.1:5000").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.send_to(b"ping", "10.99.0.9:6000").unwrap();
        let mut buffer = [0; 100];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"ping"[..], "10.99.0.9:6000".parse().unwrap()));
        let status = child.wait().unwrap();
        assert!(rustix::net::netdevice::name_to_index(&socket, tun.name()).is_ok(), "still there");
        status
    });
    assert!(status.success());
}

/// The child's part: turns the first UDP packet to port 6000 around.
fn answer_one_datagram() {
    let tun = Tun::from_fd(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(tun.has_tcp_offload(), "the vnet-header mode is read from the kernel");
    let (mut buffers, mut batch) = (TunReceiveBuffers::new(), TunSendBatch::new());
    let waker = Waker::new().unwrap();
    let mut answered = false;
    while !answered {
        wait(&[tun.as_fd()], &waker, None, &mut [false]).unwrap();
        tun.receive(&mut buffers, 64, &mut |frame| {
            let end = frame.len() - TAILROOM;
            let packet = &mut frame[HEADROOM..end];
            if packet[0] == 0x45 && packet[9] == 17 && packet[22..24] == 6000u16.to_be_bytes() {
                // Exchanging addresses and ports leaves both checksums right.
                let (source, destination) = packet[12..20].split_at_mut(4);
                source.swap_with_slice(destination);
                let (source, destination) = packet[20..24].split_at_mut(2);
                source.swap_with_slice(destination);
                batch.push(&tun, packet);
                answered = true;
            }
        })
        .unwrap();
        assert_eq!(batch.flush(&tun).dropped, 0);
    }
}

#[test]
fn routes_and_addresses_come_and_go_and_are_announced() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tun = Tun::create(&options(&["10.99.0.1/24", "fd99::1/64"])).unwrap();
        let index = tun.index();
        let mut changes = network_changes().unwrap();
        let waker = Waker::new().unwrap();
        let mut announced = |what: &str| {
            wait(&[changes.as_fd()], &waker, Some(Duration::from_secs(60)), &mut [false]).unwrap();
            let change = changes.drain().unwrap();
            assert!(change.any(), "{what} was not announced");
            change
        };
        let show = |family: &str| {
            let output = Command::new("ip").args([family, "route", "show", "dev", "jump0"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        for (network, family) in
            [("10.50.0.0/16", "-4"), ("fd50::/32", "-6"), ("0.0.0.0/1", "-4"), ("::/1", "-6")]
        {
            let network = network.parse().unwrap();
            for _ in 0..2 {
                runtime.block_on(add_route(network, index, Some(77))).unwrap();
            }
            assert!(announced("a new route").route);
            assert!(show(family).contains(&format!("{network} ")), "{network} in {}", show(family));
            for _ in 0..2 {
                runtime.block_on(delete_route(network, index, Some(77))).unwrap();
            }
            assert!(announced("a deleted route").route);
            assert!(!show(family).contains(&format!("{network} ")));
        }
        for network in ["10.60.0.1/32", "fd60::1/128"] {
            let network = network.parse().unwrap();
            for _ in 0..2 {
                runtime.block_on(add_address(network, index)).unwrap();
            }
            assert!(announced("a new address").address);
            for _ in 0..2 {
                runtime.block_on(delete_address(network, index)).unwrap();
            }
            assert!(announced("a deleted address").address);
        }
        drop(tun);
        assert!(announced("a vanished link").link);
    });
}
