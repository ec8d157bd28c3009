//! One suite over all transports: what `path::Transport` promises holds for each of them.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod fifth;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use jump_transport::health::TransportKind;
use jump_transport::memory::MemoryNetwork;
use jump_transport::path::{CloseReason, PathEvent, PathId, Transport};
use jump_transport::poll::{Waker, wait};
use jump_transport::quic::{self, QuicLimits};
use jump_transport::tcp::{self, TcpConnectOptions, TcpLimits};
use jump_transport::udp::{UdpOptions, UdpSocket, UdpTransport};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::runtime::Runtime;
use tokio_rustls::rustls;

/// Nothing here takes this long; a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A transport and the thread that owns it, which is the test's.
struct End {
    transport: Box<dyn Transport>,
    waker: Waker,
    seen: Vec<(PathId, Vec<u8>)>,
    events: Vec<PathEvent>,
}

impl End {
    fn new(transport: impl Transport + 'static, waker: Waker) -> Self {
        Self { transport: Box::new(transport), waker, seen: Vec::new(), events: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        self.transport.local_address().unwrap()
    }

    fn send(&mut self, path: PathId, datagram: &[u8]) -> bool {
        let taken = self.transport.send(path, datagram);
        self.transport.flush();
        taken
    }

    /// Takes in what is there, without waiting.
    fn take(&mut self) {
        let seen = &mut self.seen;
        self.transport.receive(usize::MAX, &mut |d| seen.push((d.path, d.bytes.to_vec()))).unwrap();
        while let Some(event) = self.transport.poll_event() {
            self.events.push(event);
        }
    }

    /// Takes in what comes until `enough`.
    fn until(&mut self, what: &str, mut enough: impl FnMut(&Self) -> bool) {
        loop {
            self.take();
            if enough(self) {
                return;
            }
            let before = std::time::Instant::now();
            let fd = self.transport.readable();
            wait(fd.as_slice(), &self.waker, Some(PATIENCE), &mut [false]).unwrap();
            assert!(
                before.elapsed() < PATIENCE,
                "{what} did not happen; seen {} datagrams, {:?}",
                self.seen.len(),
                self.events
            );
        }
    }

    fn until_datagrams(&mut self, count: usize) {
        self.until("the arrival of all datagrams", |end| end.seen.len() >= count);
    }

    fn until_opened(&mut self, path: PathId) {
        self.until("the opening", |end| end.events.contains(&PathEvent::Opened(path)));
    }

    fn until_closed(&mut self, path: PathId) -> CloseReason {
        let mut found = None;
        self.until("the end of the path", |end| {
            found = end.events.iter().find_map(|e| match e {
                PathEvent::Closed(p, reason) if *p == path => Some(*reason),
                PathEvent::Closed(..) | PathEvent::Opened(_) => None,
            });
            found.is_some()
        });
        found.unwrap()
    }
}

/// Makes servers and clients of one transport.
struct Suite {
    server: Box<dyn FnMut() -> End>,
    client: Box<dyn FnMut() -> End>,
    /// Paths are connections, with a beginning and an end that the other side sees.
    connections: bool,
    /// Only its bounded queues lose anything, and they lose the oldest.
    keeps_newest: bool,
    /// Lives as long as the suite's transports.
    _runtime: Option<Runtime>,
}

fn waker() -> Waker {
    Waker::new().unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn udp_suite() -> Suite {
    let make = || {
        let options = UdpOptions { buffer_bytes: 1 << 20, ..UdpOptions::default() };
        End::new(UdpTransport::new(UdpSocket::bind(loopback(), &options).unwrap()), waker())
    };
    Suite {
        server: Box::new(make),
        client: Box::new(make),
        connections: false,
        keeps_newest: false,
        _runtime: None,
    }
}

fn memory_suite() -> Suite {
    let network = MemoryNetwork::new();
    let mut port = 0;
    let make = move || {
        port += 1;
        let waker = waker();
        End::new(network.bind(SocketAddr::from(([10, 0, 0, 1], port)), waker.clone()).unwrap(), waker)
    };
    let make = Arc::new(std::sync::Mutex::new(make));
    let other = Arc::clone(&make);
    Suite {
        server: Box::new(move || (make.lock().unwrap())()),
        client: Box::new(move || (other.lock().unwrap())()),
        connections: false,
        keeps_newest: true,
        _runtime: None,
    }
}

fn fifth_suite() -> Suite {
    let runtime = runtime();
    let (handle, other) = (runtime.handle().clone(), runtime.handle().clone());
    Suite {
        server: Box::new(move || {
            let waker = waker();
            End::new(fifth::listener(&handle, waker.clone()).unwrap(), waker)
        }),
        client: Box::new(move || {
            let waker = waker();
            End::new(fifth::connector(other.clone(), waker.clone()), waker)
        }),
        connections: true,
        keeps_newest: true,
        _runtime: Some(runtime),
    }
}

fn tls_configs() -> (rustls::ServerConfig, rustls::ClientConfig) {
    let certified = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, client)
}

fn tcp_suite(tls: bool) -> Suite {
    let runtime = runtime();
    let handle = runtime.handle().clone();
    let (server, client) = tls_configs();
    let server = tls.then(|| Arc::new(server));
    let name = ServerName::try_from("gateway.test").unwrap();
    let client = tls.then(|| (Arc::new(client), name));
    let other = handle.clone();
    Suite {
        server: Box::new(move || {
            let waker = waker();
            let limits = TcpLimits::default();
            End::new(
                tcp::listener(loopback(), server.clone(), limits, &handle, waker.clone()).unwrap(),
                waker,
            )
        }),
        client: Box::new(move || {
            let waker = waker();
            let options = TcpConnectOptions { tls: client.clone(), ..TcpConnectOptions::default() };
            End::new(tcp::connector(options, other.clone(), waker.clone()), waker)
        }),
        connections: true,
        keeps_newest: true,
        _runtime: Some(runtime),
    }
}

fn quic_suite() -> Suite {
    quic_suite_and_connectors().0
}

/// The suite, and where the connectors of its clients appear.
fn quic_suite_and_connectors() -> (Suite, Receiver<quic::Connector>) {
    let (connectors, made) = channel();
    let runtime = runtime();
    let handle = runtime.handle().clone();
    let (server, client) = tls_configs();
    let other = handle.clone();
    let suite = Suite {
        server: Box::new(move || {
            let waker = waker();
            let limits = QuicLimits::default();
            End::new(
                quic::listener(loopback(), server.clone(), limits, &handle, waker.clone()).unwrap(),
                waker,
            )
        }),
        client: Box::new(move || {
            let waker = waker();
            let limits = QuicLimits::default();
            let name = "gateway.test".to_owned();
            let (exchange, connector) =
                quic::connector(loopback(), None, client.clone(), name, limits, other.clone(), waker.clone())
                    .unwrap();
            let _ = connectors.send(connector);
            End::new(exchange, waker)
        }),
        connections: true,
        keeps_newest: false,
        _runtime: Some(runtime),
    };
    (suite, made)
}

#[test]
fn a_connection_whose_client_comes_from_another_port_migrates_and_its_path_stays() {
    let (mut suite, connectors) = quic_suite_and_connectors();
    let (mut server, mut client, to_server, to_client) = suite.pair();
    client.events.clear();

    connectors.recv().unwrap().rebind(loopback()).unwrap();
    assert!(client.send(to_server, b"from elsewhere"));
    server.until_datagrams(1);
    assert_eq!(server.seen.pop().unwrap(), (to_client, b"from elsewhere".to_vec()));
    assert!(server.send(to_client, b"to elsewhere"));
    client.until_datagrams(1);
    assert_eq!(client.seen.pop().unwrap(), (to_server, b"to elsewhere".to_vec()));
    assert!(client.events.is_empty(), "{:?}", client.events);
}

impl Suite {
    /// A server, and a client with a path to it over which one datagram went both ways.
    fn pair(&mut self) -> (End, End, PathId, PathId) {
        let (mut server, mut client) = ((self.server)(), (self.client)());
        let to_server = client.transport.open(server.address()).unwrap();
        assert!(client.send(to_server, b"hello"), "what is sent before the opening waits");
        client.until_opened(to_server);
        server.until_datagrams(1);
        let (to_client, greeting) = server.seen.pop().unwrap();
        assert_eq!(greeting, b"hello");
        assert!(server.send(to_client, b"welcome"));
        client.until_datagrams(1);
        assert_eq!(client.seen.pop().unwrap().1, b"welcome");
        (server, client, to_server, to_client)
    }
}

fn numbered(i: usize, len: usize) -> Vec<u8> {
    let mut datagram = vec![i as u8; len.max(4)];
    datagram[..4].copy_from_slice(&(i as u32).to_be_bytes());
    datagram
}

fn number(datagram: &[u8]) -> usize {
    u32::from_be_bytes(datagram[..4].try_into().unwrap()) as usize
}

fn datagrams_keep_their_boundaries_and_content_both_ways(mut suite: Suite) {
    let (mut server, mut client, to_server, to_client) = suite.pair();
    exchange_both_patterns(&mut client, &mut server, to_server);
    exchange_both_patterns(&mut server, &mut client, to_client);
}

fn exchange_both_patterns(from: &mut End, to: &mut End, path: PathId) {
    let sizes = [1, 2, 3, 100, 1000, 1200, 1300, 1200, 1200, 1, 700];
    // One at a time, then as one batch that any transport's queue holds.
    for (i, len) in sizes.iter().cycle().take(110).enumerate() {
        let datagram = vec![i as u8; *len];
        assert!(from.send(path, &datagram));
        to.until_datagrams(1);
        assert_eq!(to.seen.drain(..).map(|d| d.1).collect::<Vec<_>>(), [datagram]);
    }
    for i in 0..100 {
        assert!(from.transport.send(path, &numbered(i, 50 + i)));
    }
    assert_eq!(from.transport.flush().dropped, 0);
    to.until_datagrams(100);
    let mut all: Vec<_> = to.seen.drain(..).map(|d| d.1).collect();
    all.sort_by_key(|d| number(d));
    assert!(all.iter().enumerate().all(|(i, d)| *d == numbered(i, 50 + i)), "each came once and unchanged");
}

fn the_longest_datagram_passes_and_a_longer_or_empty_one_is_refused_and_counted(mut suite: Suite) {
    let (mut server, mut client, to_server, _) = suite.pair();
    let longest = client.transport.datagram_len_max();
    let kind = client.transport.kind();
    // QUIC's longest depends on the path's MTU; 1312 bytes (an inner packet of 1280) is the least that must pass.
    let passing = if kind == TransportKind::Quic { 1312 } else { longest };
    let datagram: Vec<u8> = (0..passing).map(|i| (i / 7) as u8).collect();
    assert!(client.send(to_server, &datagram));
    server.until_datagrams(1);
    assert!(server.seen.pop().unwrap().1 == datagram);
    let before = client.transport.counters().dropped_outgoing;
    assert!(client.transport.slot(to_server, longest + 1).is_none());
    assert!(client.transport.slot(to_server, 0).is_none());
    assert_eq!(client.transport.flush().dropped, 2);
    assert_eq!(client.transport.counters().dropped_outgoing, before + 2);
}

fn a_cancelled_slot_sends_nothing(mut suite: Suite) {
    let (mut server, mut client, to_server, _) = suite.pair();
    client.transport.cancel();
    client.transport.slot(to_server, 6).unwrap().copy_from_slice(b"forget");
    client.transport.cancel();
    client.transport.slot(to_server, 4).unwrap().copy_from_slice(b"keep");
    client.transport.flush();
    server.until_datagrams(1);
    assert_eq!(server.seen[0].1, b"keep");
}

fn two_clients_are_two_paths_and_the_end_of_one_leaves_the_other(mut suite: Suite) {
    let (mut server, mut first, first_path, to_first) = suite.pair();
    let mut second = (suite.client)();
    let second_path = second.transport.open(server.address()).unwrap();
    assert!(second.send(second_path, b"second"));
    server.until_datagrams(1);
    let to_second = server.seen.pop().unwrap().0;
    assert_ne!(to_first, to_second);
    first.transport.close(first_path);
    assert_eq!(first.until_closed(first_path), CloseReason::Requested);
    if suite.connections {
        assert_eq!(server.until_closed(to_first), CloseReason::Peer);
        assert!(!server.send(to_first, b"too late"), "a path that is gone takes nothing");
        assert!(!first.send(first_path, b"too late"));
    }
    drop(first);
    for i in 0..20 {
        assert!(server.send(to_second, &numbered(i, 100)));
    }
    second.until_datagrams(20);
}

fn a_flood_without_a_reader_is_bounded_and_the_path_recovers(mut suite: Suite) {
    const FLOOD: usize = 40_000;
    const MARK: usize = u32::MAX as usize;
    let (mut server, mut client, to_server, _) = suite.pair();
    for i in 0..FLOOD {
        client.transport.send(to_server, &numbered(i, 1000));
        if i % 32 == 0 {
            client.transport.flush();
        }
    }
    client.transport.flush();
    if suite.keeps_newest {
        server.until("the newest datagram", |end| end.seen.last().is_some_and(|d| number(&d.1) == FLOOD - 1));
        assert!(server.seen.len() < FLOOD, "nothing was dropped, so something grew");
        let dropped =
            client.transport.counters().dropped_outgoing + server.transport.counters().dropped_incoming;
        assert_eq!(dropped as usize + server.seen.len(), FLOOD, "every loss is counted");
    }
    // Now that the reader is back, a datagram gets through, if need be at a later try.
    let start = std::time::Instant::now();
    while server.seen.last().is_none_or(|d| number(&d.1) != MARK) {
        assert!(start.elapsed() < PATIENCE, "no recovery; {} datagrams came", server.seen.len());
        client.send(to_server, &numbered(MARK, 1000));
        let fd = server.transport.readable();
        wait(fd.as_slice(), &server.waker, Some(Duration::from_millis(20)), &mut [false]).unwrap();
        server.take();
    }
    assert!(server.seen.iter().filter(|d| number(&d.1) != MARK).count() < FLOOD);
}

fn a_path_to_nobody_ends_with_a_reason(mut suite: Suite) {
    if !suite.connections {
        return;
    }
    let address = std::net::TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let mut client = (suite.client)();
    let path = client.transport.open(address).unwrap();
    assert!(client.send(path, b"waits for the opening"));
    let reason = client.until_closed(path);
    assert!(
        matches!(
            reason,
            CloseReason::Refused | CloseReason::Unreachable | CloseReason::TimedOut | CloseReason::Peer
        ),
        "{reason}"
    );
    assert!(!client.events.contains(&PathEvent::Opened(path)));
}

/// Runs every test of the suite for every transport.
macro_rules! conformance {
    ($($transport:ident: $suite:expr;)*) => {
        $(mod $transport {
            use super::*;
            conformance!(@tests $suite;
                datagrams_keep_their_boundaries_and_content_both_ways
                the_longest_datagram_passes_and_a_longer_or_empty_one_is_refused_and_counted
                a_cancelled_slot_sends_nothing
                two_clients_are_two_paths_and_the_end_of_one_leaves_the_other
                a_flood_without_a_reader_is_bounded_and_the_path_recovers
                a_path_to_nobody_ends_with_a_reason
            );
        })*
    };
    (@tests $suite:expr; $($test:ident)*) => {
        $(#[test]
        fn $test() {
            super::$test($suite);
        })*
    };
}

conformance! {
    over_udp: udp_suite();
    over_tcp: tcp_suite(false);
    over_tcp_with_tls: tcp_suite(true);
    over_quic: quic_suite();
    over_memory: memory_suite();
    over_a_fifth: fifth_suite();
}
