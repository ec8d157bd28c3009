//! A whole worker in this process: real sockets, a real TUN device, a control that answers as told. Needs root.
#![expect(clippy::unwrap_used, reason = "a failed test is the point")]

mod fake;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fake::{FakeControl, Renewals, TTL};
use jump_crypto::entropy::OsEntropy;
use jump_crypto::handshake::{AttachIntent, Established, INIT_LEN, Initiation, InitiationInput, Suite};
use jump_crypto::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, ReceiverIndex, SessionId};
use jump_crypto::keys::{ClusterSecret, DeviceSecret, GrantVerifier};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD};
use jump_gateway::config::{Config, Flags};
use jump_gateway::heartbeat::Heart;
use jump_gateway::worker::{self, Inheritance, WorkerError};
use jump_proto::control_v1::{Binding, FenceOrder, Node, Owner, SessionPhase, WatchBindingsResponse};
use jump_session::frame::{AttachResult, Frame};
use jump_telemetry::Correlation;
use jump_transport::tun::{Tun, TunOptions};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// One test at a time: they share the inner network 10.213.0.0/24.
static INNER_NETWORK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

static NUMBER: AtomicU16 = AtomicU16::new(0);

struct Rig {
    control: FakeControl,
    gateway: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    worker: JoinHandle<Result<(), WorkerError>>,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

/// A port that nobody has, below those that the kernel gives to sockets which ask for none in particular: one of those
/// could be taken before the worker binds it.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() % 1000 * 20;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap()));
        if UdpSocket::bind(address).is_ok() && std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// The inner network's device.
fn tun() -> Tun {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Tun::create(&TunOptions {
        name: format!("jtest{}n{number}", std::process::id() % 10_000),
        addresses: vec!["10.213.0.1/24".parse().unwrap()],
        mtu: 1280,
        offload: true,
        queue_packets: 100,
    })
    .expect("these tests need root and /dev/net/tun")
}

fn config(control: &FakeControl, listen: SocketAddr, mesh: SocketAddr) -> Config {
    let text = |path: std::path::PathBuf| Some(path.to_str().unwrap().to_owned());
    let flags = Flags {
        node: Some("gw-1".into()),
        listen: Some(listen.to_string()),
        mesh_listen: Some(mesh.to_string()),
        metrics_listen: Some("127.0.0.1:0".into()),
        control: Some(format!("https://{}", control.address)),
        tls_ca: text(control.file("ca.pem")),
        tls_certificate: text(control.file("gw.pem")),
        tls_key: text(control.file("gw-key.pem")),
        tun_routes: Some("false".into()),
        drain_deadline: Some("20s".into()),
        ..Flags::default()
    };
    Config::load(&flags).unwrap()
}

impl Rig {
    async fn start() -> Self {
        let alone = INNER_NETWORK.lock().await;
        // The data plane of the test before ends a moment after its worker.
        while UdpSocket::bind("10.213.0.1:0").is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let control = FakeControl::start().await;
        let gateway = free_port();
        let config = config(&control, gateway, free_port());
        let (stop, stopped) = oneshot::channel::<()>();
        let inheritance = Inheritance { tun: tun(), heart: Heart::unwatched(), reaped: Incarnation(0) };
        let mut worker = tokio::spawn(worker::run(config, inheritance, async {
            let _ = stopped.await;
        }));
        tokio::select! {
            () = control.until("the first renewal", |state| (!state.renewals_seen.is_empty()).then_some(())) => {}
            ended = &mut worker => panic!("the worker ended before its first renewal: {ended:?}"),
        }
        control.until("the watch", |state| (!state.watchers.is_empty()).then_some(())).await;
        Self { control, gateway, stop: Some(stop), worker, _alone: alone }
    }

    /// Attaches a client; blocking calls run beside the runtime.
    async fn attach(&self) -> Device {
        let (gateway, cluster, grants) = (self.gateway, self.control.cluster, self.control.grants.public());
        tokio::task::spawn_blocking(move || Device::attach(gateway, cluster, grants)).await.unwrap()
    }

    fn owner(&self) -> Owner {
        Owner { node_id: "gw-1".into(), incarnation: self.control.with(|state| state.incarnation) }
    }
}

/// A client on a real socket.
struct Device {
    socket: UdpSocket,
    keys: Established,
    session: SessionId,
    epoch: Epoch,
}

impl Device {
    fn attach(gateway: SocketAddr, cluster: [u8; 32], grants: [u8; 32]) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(gateway).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut entropy = OsEntropy::new().unwrap();
        let device = DeviceSecret::generate(&mut entropy).unwrap();
        let intent = AttachIntent {
            session: None,
            attach_seq: AttachSeq(1),
            attempt: AttemptId::from_bytes([5; 16]),
            last_epoch: Epoch(0),
            reason: 1,
            capabilities: 0,
            rekey: false,
            holding: jump_crypto::handshake::Holding::default(),
        };
        let input = InitiationInput {
            device: &device,
            cluster: &ClusterSecret::from_bytes(cluster).public(),
            suite: Suite::preferred(),
            intent: &intent,
            index: ReceiverIndex(77),
            cookie: None,
        };
        let mut init = [0; INIT_LEN];
        let mut initiation = Initiation::start(&input, &mut entropy, &mut init).unwrap();
        socket.send(&init).unwrap();
        let mut reply = [0; 2048];
        let len = socket.recv(&mut reply).expect("an AttachReply");
        let (keys, _) = initiation.finish(&reply[..len], &GrantVerifier::new(&[grants]), 0).unwrap();
        let mut device = Self { socket, keys, session: SessionId::from_bytes([0; 16]), epoch: Epoch(0) };
        device.send(Content::Control, &frame(&Frame::Confirm));
        match device.receive() {
            Some(Received::Frame(Frame::AttachResult(result))) => match *result {
                AttachResult::Accepted(accepted) => {
                    device.session = accepted.session;
                    device.epoch = accepted.epoch;
                }
                AttachResult::Rejected { reason, .. } => panic!("rejected: {reason}"),
            },
            other => panic!("{other:?} instead of a result"),
        }
        device
    }

    fn send(&mut self, content: Content, text: &[u8]) {
        let mut record = vec![0; text.len() + OVERHEAD];
        record[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
        self.keys.sealing.seal(content, &mut record, text.len()).unwrap();
        // A gateway that has gone answers by ICMP; that is the test's business.
        let _ = self.socket.send(&record);
    }

    /// The next record under this device's keys, within the read timeout.
    fn receive(&mut self) -> Option<Received> {
        let mut datagram = [0; 2048];
        loop {
            let len = self.socket.recv(&mut datagram).ok()?;
            let Ok(opened) = self.keys.opening.open(&mut datagram[..len]) else { continue };
            return Some(match opened.content {
                Content::Control => Received::Frame(Frame::decode(opened.plaintext).unwrap()),
                Content::Packet => Received::Packet(opened.plaintext.to_vec()),
            });
        }
    }

    /// Sends a UDP packet from the inner address to the TUN device's own, and says whether it arrived there.
    fn reaches(&mut self, server: &UdpSocket, mark: u8) -> bool {
        let packet = udp_packet([10, 213, 0, 2], server.local_addr().unwrap().port(), &[mark]);
        self.send(Content::Packet, &packet);
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut byte = [0; 8];
        server.recv(&mut byte).is_ok_and(|len| len == 1 && byte[0] == mark)
    }
}

impl Device {
    /// The same, tried for as long as a loaded machine may need.
    fn reaches_soon(&mut self, server: &UdpSocket, mark: u8) -> bool {
        (0..30).any(|_| self.reaches(server, mark))
    }
}

#[derive(Debug)]
enum Received {
    Frame(Frame),
    Packet(Vec<u8>),
}

fn frame(frame: &Frame) -> Vec<u8> {
    let mut text = vec![0; jump_session::frame::FRAME_LEN_MAX];
    let len = frame.encode(&mut text).unwrap();
    text.truncate(len);
    text
}

/// An IPv4 UDP packet to 10.213.0.1; the UDP checksum is left out, as IPv4 allows.
fn udp_packet(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let len = 28 + payload.len() as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(source);
    packet.extend([10, 213, 0, 1]);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(9u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn server() -> UdpSocket {
    UdpSocket::bind("10.213.0.1:0").unwrap()
}

/// Runs blocking steps beside the runtime.
async fn beside<T: Send + 'static>(steps: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(steps).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens_for_clients_before_the_run_is_registered() {
    let rig = Rig::start().await;
    assert!(
        !rig.control.with(|state| state.listened_early),
        "clients would wait for a run that cannot answer"
    );
    assert!(UdpSocket::bind(rig.gateway).is_err(), "somebody listens once it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_collide_or_are_taken_end_the_run_before_control_hears_of_it() {
    let _alone = INNER_NETWORK.lock().await;
    let control = FakeControl::start().await;
    let (listen, other) = (free_port(), free_port());
    let held = UdpSocket::bind(other).unwrap();
    for (listen, mesh, wrong) in [(listen, listen, "mesh_listen"), (other, listen, "listen")] {
        let inheritance = Inheritance { tun: tun(), heart: Heart::unwatched(), reaped: Incarnation(0) };
        let ended =
            worker::run(config(&control, listen, mesh), inheritance, std::future::pending::<()>()).await;
        assert!(
            matches!(ended, Err(WorkerError::Listen { setting, .. }) if setting == wrong),
            "{wrong}: {ended:?}"
        );
    }
    drop(held);
    assert!(control.with(|state| state.registrations.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_both_ways_through_the_tun_device() {
    let rig = Rig::start().await;
    let mut device = rig.attach().await;
    beside(move || {
        let server = server();
        assert!(device.reaches_soon(&server, 1));
        server.send_to(b"down", "10.213.0.2:9").unwrap();
        let down = std::iter::from_fn(|| device.receive()).take(10).find_map(|received| match received {
            Received::Packet(packet) if packet.ends_with(b"down") => Some(packet),
            Received::Packet(_) | Received::Frame(_) => None,
        });
        assert!(down.is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_renewal_nothing_is_forwarded_past_the_deadline_and_everything_after_the_next_one() {
    let rig = Rig::start().await;
    let mut device = rig.attach().await;
    rig.control.with(|state| state.renewals = Renewals::Silent);
    let from = Instant::now();
    let (mut device, server) = beside(move || {
        let server = server();
        let mut last = from;
        while from.elapsed() < TTL + Duration::from_millis(500) {
            let sent = Instant::now();
            if device.reaches(&server, 2) {
                last = sent;
            }
        }
        // The last renewal was sent at most one interval before; the margin is 300 ms.
        assert!(last - from < TTL, "a packet sent {:?} after the last renewal was forwarded", last - from);
        server.send_to(b"down", "10.213.0.2:9").unwrap();
        device.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(device.receive().is_none(), "something was sent to a client without authority");
        (device, server)
    })
    .await;
    rig.control.with(|state| {
        state.renewals = Renewals::Granted;
        state.renewals_seen.clear();
    });
    rig.control.until("a renewal", |state| (!state.renewals_seen.is_empty()).then_some(())).await;
    assert!(beside(move || device.reaches_soon(&server, 3)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_control_no_longer_knows_ends() {
    let rig = Rig::start().await;
    rig.control.with(|state| state.renewals = Renewals::Gone);
    let end = tokio::time::timeout(Duration::from_secs(10), rig.worker).await.unwrap().unwrap();
    assert!(matches!(end, Err(WorkerError::LeaseLost(_))), "{end:?}");
    assert!(rig.control.with(|state| state.deregistered.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_in_a_renewals_answer_stops_the_session_before_it_is_acknowledged() {
    let rig = Rig::start().await;
    let mut device = rig.attach().await;
    let order = FenceOrder {
        session_id: device.session.to_string(),
        epoch: device.epoch.0,
        to: Some(Owner { node_id: "gw-2".into(), incarnation: 5 }),
        ..FenceOrder::default()
    };
    let ack = (order.session_id.clone(), order.epoch);
    rig.control.with(|state| state.fences.push(order));
    let acked = {
        let ack = ack.clone();
        rig.control.until("the acknowledgement", move |state| state.fence_acks.contains(&ack).then_some(()))
    };
    acked.await;
    beside(move || {
        let server = server();
        assert!(!device.reaches(&server, 4), "forwarded after the acknowledgement");
    })
    .await;
    rig.control
        .until("the acknowledgement on the next renewal", move |state| {
            let renewed = state.renewals_seen.iter().any(|renewal| !renewal.acks.is_empty());
            renewed.then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_on_the_stream_stops_the_session_and_is_acknowledged_at_once() {
    let rig = Rig::start().await;
    let mut device = rig.attach().await;
    let binding = Binding {
        session_id: device.session.to_string(),
        epoch: device.epoch.0,
        phase: SessionPhase::Handover.into(),
        owner: Some(rig.owner()),
        handover_to: Some(Owner { node_id: "gw-2".into(), incarnation: 5 }),
        inner_addresses: vec!["10.213.0.2".into()],
        reason: "GATEWAY_DRAINING".into(),
        ..Binding::default()
    };
    let ack = (binding.session_id.clone(), binding.epoch);
    let news =
        WatchBindingsResponse { revision: 2, bindings: vec![binding], ..WatchBindingsResponse::default() };
    rig.control.publish(news).await;
    rig.control
        .until("the acknowledgement", move |state| state.fence_acks.contains(&ack).then_some(()))
        .await;
    assert!(!beside(move || device.reaches(&server(), 5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_opened_again() {
    let rig = Rig::start().await;
    rig.control.with(|state| state.watchers.clear());
    rig.control.until("another watch", |state| (state.watches >= 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_without_another_gateway_releases_every_session_and_deregisters() {
    let mut rig = Rig::start().await;
    let mut device = rig.attach().await;
    rig.stop.take().unwrap().send(()).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), rig.worker).await.unwrap().unwrap();
    assert!(end.is_ok(), "{end:?}");
    rig.control.with(|state| {
        assert_eq!(state.releases.len(), 1);
        assert!(!state.releases[0].terminate && state.releases[0].reason == "DRAINED");
        assert_eq!(state.deregistered[0].reason, "NODE_DRAINED");
    });
    let told = beside(move || device.receive()).await;
    assert!(matches!(told, Some(Received::Frame(Frame::Migrate { .. }))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_names_the_other_gateway_and_ends_once_the_session_has_moved() {
    let mut rig = Rig::start().await;
    let target = "127.0.0.9:51820";
    let node = Node {
        node_id: "gw-2".into(),
        incarnation: 5,
        number: 2,
        endpoints: vec![target.into()],
        mesh_endpoint: "127.0.0.9:51821".into(),
        mesh_public_key: vec![9; 32],
        ..Node::default()
    };
    let news = WatchBindingsResponse { revision: 2, nodes: vec![node], ..WatchBindingsResponse::default() };
    rig.control.publish(news).await;
    let mut device = rig.attach().await;
    rig.stop.take().unwrap().send(()).unwrap();
    let (session, epoch) = (device.session, device.epoch);
    let (told, mut device) = beside(move || (device.receive(), device)).await;
    match told {
        Some(Received::Frame(Frame::Migrate { targets, .. })) => {
            assert_eq!(targets, [target.parse().unwrap()])
        }
        other => panic!("{other:?} instead of a Migrate"),
    }
    let device = beside(move || {
        assert!(device.reaches_soon(&server(), 6), "not served until it has moved");
        device
    })
    .await;
    let binding = Binding {
        session_id: session.to_string(),
        epoch: epoch.0 + 1,
        phase: SessionPhase::Owned.into(),
        owner: Some(Owner { node_id: "gw-2".into(), incarnation: 5 }),
        inner_addresses: vec!["10.213.0.2".into()],
        ..Binding::default()
    };
    let news =
        WatchBindingsResponse { revision: 3, bindings: vec![binding], ..WatchBindingsResponse::default() };
    rig.control.publish(news).await;
    let end = tokio::time::timeout(Duration::from_secs(10), rig.worker).await.unwrap().unwrap();
    assert!(end.is_ok(), "{end:?}");
    assert!(rig.control.with(|state| state.releases.is_empty()), "a moved session was released");
    drop(device);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_session_ends_it_in_the_store() {
    let rig = Rig::start().await;
    let mut device = rig.attach().await;
    let reason = jump_session::reason::Reason::ClientClosed;
    beside(move || device.send(Content::Control, &frame(&Frame::Close { reason }))).await;
    rig.control
        .until("the release", |state| {
            state.releases.iter().any(|r| r.terminate && r.reason == "CLIENT_CLOSED").then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_about_a_session_names_its_correlation_id_in_its_metadata() {
    let rig = Rig::start().await;
    let mut device = rig.attach().await;
    let owner = rig.owner();
    let fenced = Binding {
        session_id: device.session.to_string(),
        epoch: device.epoch.0,
        phase: SessionPhase::Handover.into(),
        owner: Some(owner),
        handover_to: Some(Owner { node_id: "gw-2".into(), incarnation: 5 }),
        inner_addresses: vec!["10.213.0.2".into()],
        reason: "GATEWAY_DRAINING".into(),
        correlation_id: SessionId::from_bytes([9; 16]).to_string(),
        ..Binding::default()
    };
    rig.control
        .publish(WatchBindingsResponse { revision: 2, bindings: vec![fenced], ..Default::default() })
        .await;
    rig.control.until("the fence", |state| (!state.fence_acks.is_empty()).then_some(())).await;
    let reason = jump_session::reason::Reason::ClientClosed;
    device = rig.attach().await;
    beside(move || device.send(Content::Control, &frame(&Frame::Close { reason }))).await;
    rig.control.until("the release", |state| (!state.releases.is_empty()).then_some(())).await;

    let known = Correlation::from_bytes([9; 16]);
    rig.control.with(|state| {
        // A birth has no session yet: its id follows from the device and the attempt.
        let born = state.attached.iter().map(|request| {
            let device = DeviceKey::from_bytes(request.device_key.as_slice().try_into().unwrap());
            SessionId::born_of(&device, request.attempt_id.parse().unwrap()).correlation().into()
        });
        let born: Vec<Option<Correlation>> = born.map(Some).collect();
        let of = |method| {
            let asked = state.correlations.iter().filter(move |(asked, _)| *asked == method);
            let mut asked: Vec<_> = asked.map(|(_, correlation)| *correlation).collect();
            // A request that was not answered in time is made again.
            asked.dedup();
            asked
        };
        assert_eq!(of("Attach"), born);
        assert_eq!(of("AckFence"), [Some(known)]);
        assert_eq!(of("Release"), [Some(known)]);
    });
}
