//! Many sessions on one gateway: throughput when all of them send at once, and memory.
//!
//! `throughput`: a generator thread seals real records of N sessions, each session a burst of full packets in its turn, and
//! sends them to a gateway's data plane on another thread, over loopback, in a network namespace of its own; opened packets
//! are written to a TUN device and forgotten by the kernel behind it. N = 1 is what the others are compared with.
//!
//! `memory`: attaches N sessions and prints the resident memory that each costs, busy and idle.
//!
//! `cargo bench -p jump-gateway --bench sessions -- throughput|memory [--sessions 1,1000] [--seconds n] [--burst n]`. Needs
//! root.

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fixture::{Device, Fixture, tick, udp_packet};
use jump_crypto::handshake::Suite;
use jump_crypto::record::OVERHEAD;
use jump_gateway::dataplane::{Count, DataPlane, DropReason, Tick, Wire};
use jump_session::path::Path;
use jump_transport::poll::{Waker, wait};
use jump_transport::tun::{Tun, TunOptions, TunSendBatch};
use jump_transport::udp::{ReceiveBuffers, SendBatch, UdpOptions, UdpSocket};

/// Sockets that the sessions are spread over: distinct sources, as a gateway sees them.
const SOURCES: usize = 64;
/// Inner packets are this long.
const PACKET_LEN: usize = 1400;
/// Where they go; nobody is there.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str, default: &str| {
        let at = arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
        at.map_or(default.to_owned(), Clone::clone)
    };
    let sessions = |default: &str| -> Vec<usize> {
        let text = option("--sessions", default);
        text.split(',').map(|n| n.parse().expect("a number of sessions")).collect()
    };
    match arguments.first().map(String::as_str) {
        // A network namespace of its own, which goes with the process.
        Some("throughput") if !arguments.iter().any(|argument| argument == "--inside") => {
            let me = std::env::current_exe().expect("a path of its own");
            let status = Command::new("unshare").arg("-n").arg(me).args(&arguments).arg("--inside").status();
            assert!(status.expect("unshare of util-linux").success(), "the measurement failed");
        }
        Some("throughput") => {
            let seconds = Duration::from_secs(option("--seconds", "3").parse().expect("a number of seconds"));
            let burst = option("--burst", "32").parse().expect("a number of packets");
            throughput(&sessions("1,1000,10000"), burst, seconds);
        }
        Some("memory") => sessions("100000").into_iter().for_each(memory),
        _ => println!("run by `make bench-sessions`"),
    }
}

/// Output to a real TUN device and socket.
struct Output<'a> {
    tun: &'a Tun,
    socket: &'a UdpSocket,
    clients: SendBatch,
    mesh: SendBatch,
    inner: TunSendBatch,
}

impl Wire for Output<'_> {
    fn to_client(&mut self, path: Path, len: usize) -> &mut [u8] {
        self.clients.slot(self.socket, path.peer, len)
    }
    fn cancel_client(&mut self) {
        self.clients.cancel();
    }
    fn to_mesh(&mut self, destination: SocketAddr, len: usize) -> &mut [u8] {
        self.mesh.slot(self.socket, destination, len)
    }
    fn cancel_mesh(&mut self) {
        self.mesh.cancel();
    }
    fn to_inner(&mut self, packet: &[u8]) {
        self.inner.push(self.tun, packet);
    }
}

fn throughput(counts: &[usize], burst: usize, seconds: Duration) {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("iproute2").success(), "the loopback does not come up");
    let tun = Tun::create(&TunOptions {
        name: "jbs0".to_owned(),
        addresses: vec!["10.64.0.0/12".parse().expect("a network")],
        mtu: 1420,
        offload: true,
        queue_packets: 1000,
    })
    .expect("a TUN device");
    println!(
        "{burst} packets of {PACKET_LEN} bytes per session and turn, {} s each, gateway and generator on one machine",
        seconds.as_secs()
    );
    println!("| sessions | Gbit/s | of one session's | packets/s | dropped |\n|---|---|---|---|---|");
    let mut one = None;
    for &sessions in counts {
        let options = UdpOptions { buffer_bytes: 8 << 20, ..UdpOptions::default() };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bind = || UdpSocket::bind(any, &options).expect("a socket");
        let socket = bind();
        let sources: Vec<UdpSocket> = (0..SOURCES).map(|_| bind()).collect();
        let at: Vec<SocketAddr> = sources.iter().map(|s| s.local_address().expect("bound")).collect();
        let Fixture { plane, devices, .. } = Fixture::new(sessions, Suite::AesGcmSha256, |i| at[i % SOURCES]);
        let measured = measure(plane, devices, &tun, &socket, &sources, burst, seconds);
        let bits = measured.packets * (PACKET_LEN * 8) as f64;
        let one = *one.get_or_insert(bits);
        println!(
            "| {sessions} | {:.2} | {:.2}× | {:.0} | {} |",
            bits / 1e9,
            bits / one,
            measured.packets,
            measured.dropped
        );
    }
}

struct Measured {
    /// Per second.
    packets: f64,
    dropped: u64,
}

fn measure(
    mut plane: DataPlane,
    mut devices: Vec<Device>,
    tun: &Tun,
    socket: &UdpSocket,
    sources: &[UdpSocket],
    burst: usize,
    seconds: Duration,
) -> Measured {
    let to = socket.local_address().expect("bound");
    let (stop, forwarded) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut packets = 0.0;
    std::thread::scope(|scope| {
        let gateway = scope.spawn(|| {
            let mut output = Output {
                tun,
                socket,
                clients: SendBatch::new(),
                mesh: SendBatch::new(),
                inner: TunSendBatch::new(),
            };
            let (mut buffers, waker) = (ReceiveBuffers::new(), Waker::new().expect("a waker"));
            let mut backlogged = false;
            while !stop.load(Ordering::Relaxed) {
                // As the engine's thread does: a few batches, timers, waiting.
                plane.begin_pass(backlogged);
                backlogged = true;
                for _ in 0..4 {
                    let tick = tick();
                    let got = socket.receive(&mut buffers, &mut |datagram| {
                        plane.handle_client(tick, datagram.source, datagram.bytes, &mut output);
                    });
                    output.clients.flush(socket);
                    output.inner.flush(tun);
                    if got.expect("a socket") == 0 {
                        backlogged = false;
                        break;
                    }
                }
                plane.handle_timers(tick(), &mut output);
                forwarded.store(plane.counters().count(Count::PacketsUp), Ordering::Relaxed);
                let patience = if backlogged { Duration::ZERO } else { Duration::from_millis(25) };
                wait(&[socket.as_fd()], &waker, Some(patience), &mut [false]).expect("a poll");
            }
            DropReason::ALL.iter().map(|reason| plane.counters().dropped(*reason)).sum::<u64>()
        });
        let generator = scope.spawn(|| generate(&mut devices, sources, to, burst, &stop));
        // The first half second fills caches, replay rings and keys.
        std::thread::sleep(Duration::from_millis(500));
        let (start, before) = (Instant::now(), forwarded.load(Ordering::Relaxed));
        std::thread::sleep(seconds);
        packets = (forwarded.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        generator.join().expect("the generator");
        Measured { packets, dropped: gateway.join().expect("the gateway") }
    })
}

/// Every session sends a burst in its turn, until told to stop. A full socket of the gateway holds the generator back.
fn generate(devices: &mut [Device], sources: &[UdpSocket], to: SocketAddr, burst: usize, stop: &AtomicBool) {
    let mut packet = udp_packet(Ipv4Addr::UNSPECIFIED, SERVER, PACKET_LEN);
    let mut batch = SendBatch::new();
    for turn in (0..devices.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (device, source) = (&mut devices[turn], &sources[turn % SOURCES]);
        // Another source, the same checksums: payload and identification make up for it.
        let octets = device.inner.octets();
        packet[12..16].copy_from_slice(&octets);
        packet[28..32].copy_from_slice(&octets.map(|octet| !octet));
        let bits = device.inner.to_bits();
        let words = (bits >> 16) + (bits & 0xffff);
        packet[4..6].copy_from_slice(&(!((words & 0xffff) + (words >> 16)) as u16).to_be_bytes());
        for _ in 0..burst {
            device.seal(&packet, batch.slot(source, to, PACKET_LEN + OVERHEAD));
        }
        batch.flush(source);
    }
}

/// Attaches sessions and says what each costs: right after its attach, after traffic, and once it is idle.
fn memory(sessions: usize) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let before = live();
    let Fixture { mut plane, devices, .. } = Fixture::new(sessions, Suite::AesGcmSha256, |_| any);
    // The devices' ends must not be counted; the process keeps their pages, so its resident memory still has them.
    drop(devices);
    let each = || (live() - before) / sessions as i64;
    let attached = each();
    let mut wire = Discard(vec![0; 2048]);
    for i in 0..sessions as u32 {
        plane.handle_inner(tick(), &udp_packet(SERVER, Ipv4Addr::from_bits(0x0a40_0001 + i), 100), &mut wire);
    }
    let busy = each();
    let start = tick();
    let steps = 1024;
    for step in 0..steps {
        // The clock is the caller's: two looks over all sessions pass in a moment.
        let now = start.now + 25_000_000_000 * step / steps;
        plane.handle_timers(Tick { now, ..start }, &mut wire);
    }
    println!(
        "{sessions} sessions, bytes each: attached {attached}, after traffic {busy}, idle {}; {} MiB resident with the devices' ends",
        each(),
        resident() >> 20
    );
}

/// Bytes that are allocated and not freed.
fn live() -> i64 {
    LIVE.load(Ordering::Relaxed)
}

static LIVE: AtomicI64 = AtomicI64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "counting allocations takes an allocator of one's own")]
// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

struct Discard(Vec<u8>);

impl Wire for Discard {
    fn to_client(&mut self, _: Path, len: usize) -> &mut [u8] {
        &mut self.0[..len]
    }
    fn cancel_client(&mut self) {}
    fn to_mesh(&mut self, _: SocketAddr, len: usize) -> &mut [u8] {
        &mut self.0[..len]
    }
    fn cancel_mesh(&mut self) {}
    fn to_inner(&mut self, _: &[u8]) {}
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}
