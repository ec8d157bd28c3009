//! A UDP relay that impairs what passes: seeded, per direction, adjustable while it runs. Loss (uniform and in bursts),
//! delay, jitter, reordering, duplication, rate limit, MTU clamp, blackhole and NAT rebinding.
//!
//! To each client the relay looks like the server, to the server like one client per client address (a NAT). The same
//! seed and the same arrivals give the same decisions.

use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::probe::Worker;
use super::rng::Rng;

/// Clients that the relay serves at once; the datagrams of further ones are dropped.
pub const CLIENTS_MAX: usize = 4096;
/// Datagrams that wait in the relay at once; further ones are dropped.
pub const WAITING_MAX: usize = 65_536;
const DATAGRAM_MAX: usize = 65_535;
/// What IPv4 and UDP add to a datagram.
const IP_UDP_HEADERS: usize = 28;
/// How long a datagram may wait for the rate limit.
const RATE_QUEUE: Duration = Duration::from_millis(100);

/// What happens to datagrams of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Impairment {
    /// Probability that a datagram is dropped, 0 to 1.
    pub loss: f64,
    /// Loss in bursts, in addition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bursts: Option<Bursts>,
    /// Added to every datagram's way.
    #[serde(rename = "delay_ms", with = "as_millis")]
    pub delay: Duration,
    /// Up to this much more, uniform; keeps the order unless `reorder` applies.
    #[serde(rename = "jitter_ms", with = "as_millis")]
    pub jitter: Duration,
    /// Probability that a datagram overtakes those before it: it skips delay and jitter.
    pub reorder: f64,
    /// Probability that a datagram is sent twice.
    pub duplicate: f64,
    /// At most so many bits per second, over all clients; a queue of 100 ms stands before it. 0 for no limit.
    pub rate_bits: u64,
    /// Larger datagrams are dropped, as by a path that loses its packet-too-big messages. 0 for no limit.
    pub mtu: usize,
    /// Drops everything, as a network that blocks UDP.
    pub blackhole: bool,
}

/// Gilbert and Elliott's channel: a good and a bad state with their own loss, and a chance to change at each datagram.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bursts {
    /// From good to bad.
    pub enter: f64,
    /// From bad to good; bursts last `1 / leave` datagrams on average.
    pub leave: f64,
    /// Probability of loss in the bad state.
    pub loss: f64,
}

/// Times as milliseconds in files.
mod as_millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64() * 1000.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let millis = f64::deserialize(from)?;
        Duration::try_from_secs_f64(millis / 1000.0).map_err(serde::de::Error::custom)
    }
}

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the server.
    Up,
    /// From the server to clients.
    Down,
}

/// What passed, over both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Datagrams received.
    pub received: u64,
    /// Datagrams sent on.
    pub sent: u64,
    /// Datagrams dropped on purpose.
    pub dropped: u64,
    /// Datagrams dropped because a bound of the relay was reached.
    pub overflowed: u64,
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _worker: Worker,
}

#[derive(Debug, Default)]
struct Shared {
    up: Mutex<Impairment>,
    down: Mutex<Impairment>,
    rebind: AtomicBool,
    /// Where the relay's sockets towards the server are bound from the next rebinding on.
    rebind_to: Mutex<Option<IpAddr>>,
    received: AtomicU64,
    sent: AtomicU64,
    dropped: AtomicU64,
    overflowed: AtomicU64,
}

impl Relay {
    /// Starts between an already bound socket, where clients arrive, and `server`.
    ///
    /// # Errors
    /// When the sockets or the thread cannot be made.
    pub fn start(
        listen: UdpSocket,
        server: SocketAddr,
        up: Impairment,
        down: Impairment,
        seed: u64,
    ) -> Result<Self> {
        let address = listen.local_addr()?;
        listen.set_nonblocking(true)?;
        let shared = Arc::new(Shared { up: Mutex::new(up), down: Mutex::new(down), ..Shared::default() });
        let mut engine = Engine {
            listen,
            server,
            bind_to: if address.ip().is_unspecified() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            } else {
                address.ip()
            },
            clients: BTreeMap::new(),
            waiting: BinaryHeap::new(),
            last_due: [Instant::now(); 2],
            rate_free: [Instant::now(); 2],
            is_bad: [false; 2],
            rng: Rng::new(seed),
            serial: 0,
            shared: Arc::clone(&shared),
        };
        // Sockets made later must stay in the namespace of the listening one: the worker's thread inherits it.
        let worker = Worker::start("relay", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                if engine.turn().is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })?;
        Ok(Self { address, shared, _worker: worker })
    }

    /// Where clients send.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens in one direction from now on.
    pub fn impair(&self, direction: Direction, impairment: Impairment) {
        let side = match direction {
            Direction::Up => &self.shared.up,
            Direction::Down => &self.shared.down,
        };
        *side.lock().unwrap_or_else(PoisonError::into_inner) = impairment;
    }

    /// Gives every client a new port towards the server, as a NAT that lost its table does.
    pub fn rebind(&self) {
        self.shared.rebind.store(true, Ordering::Release);
    }

    /// The same, from another address: a NAT that gave the client another one, or a client that changed networks.
    pub fn rebind_address(&self, address: IpAddr) {
        *self.shared.rebind_to.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        self.rebind();
    }

    /// What passed so far.
    pub fn counts(&self) -> RelayCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayCounts {
            received: read(&self.shared.received),
            sent: read(&self.shared.sent),
            dropped: read(&self.shared.dropped),
            overflowed: read(&self.shared.overflowed),
        }
    }
}

struct Engine {
    listen: UdpSocket,
    server: SocketAddr,
    bind_to: IpAddr,
    clients: BTreeMap<SocketAddr, UdpSocket>,
    waiting: BinaryHeap<Waiting>,
    /// When the latest datagram of each direction is due, so that jitter does not reorder.
    last_due: [Instant; 2],
    /// When the rate limit of each direction lets the next datagram go.
    rate_free: [Instant; 2],
    /// Whether the burst channel of each direction is in its bad state.
    is_bad: [bool; 2],
    rng: Rng,
    serial: u64,
    shared: Arc<Shared>,
}

/// A datagram on its way; the heap's largest is the one due first.
struct Waiting {
    due: Instant,
    serial: u64,
    direction: Direction,
    client: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.serial).cmp(&(self.due, self.serial))
    }
}

impl Engine {
    /// Waits for a datagram or for the next one due, and moves what can move.
    fn turn(&mut self) -> Result<()> {
        if self.shared.rebind.swap(false, Ordering::AcqRel) {
            let address = self.shared.rebind_to.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.bind_to = address.unwrap_or(self.bind_to);
            for socket in self.clients.values_mut() {
                *socket = upstream(self.bind_to, self.server)?;
            }
        }
        let limit = self.waiting.peek().map_or(Duration::from_millis(20), |next| {
            next.due.saturating_duration_since(Instant::now()).min(Duration::from_millis(20))
        });
        let limit =
            Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut wanted = vec![PollFd::from_borrowed_fd(self.listen.as_fd(), PollFlags::IN)];
        wanted.extend(self.clients.values().map(|s| PollFd::from_borrowed_fd(s.as_fd(), PollFlags::IN)));
        let _ = poll(&mut wanted, Some(&limit));
        let ready: Vec<bool> = wanted.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(wanted);
        if ready.first() == Some(&true) {
            self.take_up()?;
        }
        let clients: Vec<_> =
            self.clients.keys().zip(ready.iter().skip(1)).filter(|(_, r)| **r).map(|(c, _)| *c).collect();
        for client in clients {
            self.take_down(client);
        }
        self.deliver();
        Ok(())
    }

    fn take_up(&mut self) -> Result<()> {
        let mut bytes = vec![0u8; DATAGRAM_MAX];
        for _ in 0..64 {
            let Ok((length, client)) = self.listen.recv_from(&mut bytes) else { break };
            if !self.clients.contains_key(&client) {
                if self.clients.len() >= CLIENTS_MAX {
                    self.shared.overflowed.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                self.clients.insert(client, upstream(self.bind_to, self.server)?);
            }
            self.schedule(Direction::Up, client, &bytes[..length]);
        }
        Ok(())
    }

    fn take_down(&mut self, client: SocketAddr) {
        let mut bytes = vec![0u8; DATAGRAM_MAX];
        for _ in 0..64 {
            match self.clients.get(&client).map(|socket| socket.recv(&mut bytes)) {
                Some(Ok(length)) => self.schedule(Direction::Down, client, &bytes[..length]),
                Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => break,
            }
        }
    }

    fn schedule(&mut self, direction: Direction, client: SocketAddr, bytes: &[u8]) {
        self.shared.received.fetch_add(1, Ordering::Relaxed);
        let (side, lane) = match direction {
            Direction::Up => (&self.shared.up, 0),
            Direction::Down => (&self.shared.down, 1),
        };
        let rule = *side.lock().unwrap_or_else(PoisonError::into_inner);
        // Every draw is made for every datagram, so that one decision does not shift the next ones.
        let lost = self.rng.chance(rule.loss);
        let overtakes = self.rng.chance(rule.reorder);
        let twice = self.rng.chance(rule.duplicate);
        let jitter = self.rng.fraction();
        let in_burst = self.loses_to_burst(lane, rule.bursts);
        let too_large = rule.mtu > 0 && bytes.len() + IP_UDP_HEADERS > rule.mtu;
        let now = Instant::now();
        let Some(departs) = self.departs(lane, now, rule.rate_bits, bytes.len()) else {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if rule.blackhole || lost || in_burst || too_large {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let due = if overtakes {
            departs
        } else {
            let due = (departs + rule.delay + rule.jitter.mul_f64(jitter)).max(self.last_due[lane]);
            self.last_due[lane] = due;
            due
        };
        for _ in 0..=u8::from(twice) {
            if self.waiting.len() >= WAITING_MAX {
                self.shared.overflowed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.serial += 1;
            self.waiting.push(Waiting { due, serial: self.serial, direction, client, bytes: bytes.to_vec() });
        }
    }

    /// Moves the burst channel by one datagram.
    fn loses_to_burst(&mut self, lane: usize, bursts: Option<Bursts>) -> bool {
        let Some(bursts) = bursts else { return false };
        let turn = if self.is_bad[lane] { bursts.leave } else { bursts.enter };
        self.is_bad[lane] ^= self.rng.chance(turn);
        self.rng.chance(bursts.loss) && self.is_bad[lane]
    }

    /// When the rate limit lets a datagram of `length` go; `None` when its queue is full.
    fn departs(&mut self, lane: usize, now: Instant, rate_bits: u64, length: usize) -> Option<Instant> {
        if rate_bits == 0 {
            return Some(now);
        }
        let bits = (length + IP_UDP_HEADERS) as f64 * 8.0;
        let from = self.rate_free[lane].max(now);
        if from - now > RATE_QUEUE {
            return None;
        }
        self.rate_free[lane] = from + Duration::from_secs_f64(bits / rate_bits as f64);
        Some(self.rate_free[lane])
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|next| next.due <= now) {
            let Some(next) = self.waiting.pop() else { break };
            let sent = match next.direction {
                Direction::Up => self.clients.get(&next.client).map(|socket| socket.send(&next.bytes)),
                Direction::Down => Some(self.listen.send_to(&next.bytes, next.client)),
            };
            if matches!(sent, Some(Ok(_))) {
                self.shared.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn upstream(bind_to: IpAddr, server: SocketAddr) -> Result<UdpSocket> {
    let bind_to = if bind_to.is_ipv4() == server.is_ipv4() {
        SocketAddr::new(bind_to, 0)
    } else {
        SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0)
    };
    let socket = UdpSocket::bind(bind_to).context("opening the relay's socket towards the server")?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> (SocketAddr, Worker) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let worker = Worker::start("echo", move |stop| {
            let mut bytes = [0u8; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut bytes) {
                    // The answer tells which port the server saw.
                    let _ = socket.send_to(&from.port().to_be_bytes(), from);
                }
            }
        });
        (address, worker.unwrap())
    }

    fn relay_to(server: SocketAddr, up: Impairment) -> (Relay, UdpSocket) {
        let listen = UdpSocket::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(listen, server, up, Impairment::default(), 7).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(relay.address()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (relay, client)
    }

    fn ask(client: &UdpSocket) -> io::Result<u16> {
        client.send(b"?")?;
        let mut port = [0u8; 2];
        client.recv(&mut port)?;
        Ok(u16::from_be_bytes(port))
    }

    #[test]
    fn a_rebinding_changes_the_port_that_the_server_sees_and_nothing_else() {
        let (server, _echo) = echo();
        let (relay, client) = relay_to(server, Impairment::default());
        let before = ask(&client).unwrap();
        assert_eq!(ask(&client).unwrap(), before);
        relay.rebind();
        // The relay rebinds at the start of a turn; the first datagram may still meet the turn before and its answer
        // a socket that is gone.
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let changed = (0..100).any(|_| ask(&client).is_ok_and(|port| port != before));
        assert!(changed, "the server still saw port {before}");
    }

    #[test]
    fn a_duplicating_relay_delivers_everything_twice() {
        let (server, _echo) = echo();
        let (_relay, client) = relay_to(server, Impairment { duplicate: 1.0, ..Impairment::default() });
        let first = ask(&client).unwrap();
        let mut again = [0u8; 2];
        client.recv(&mut again).unwrap();
        assert_eq!(u16::from_be_bytes(again), first);
    }

    #[test]
    fn a_blackhole_swallows_everything_until_it_is_lifted() {
        let (server, _echo) = echo();
        let (relay, client) = relay_to(server, Impairment { blackhole: true, ..Impairment::default() });
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(ask(&client).is_err());
        assert_eq!(relay.counts().dropped, 1);
        relay.impair(Direction::Up, Impairment::default());
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(ask(&client).is_ok());
    }

    #[test]
    fn datagrams_above_the_mtu_are_dropped_and_those_below_pass() {
        let (server, _echo) = echo();
        let (relay, client) = relay_to(server, Impairment { mtu: 28 + 10, ..Impairment::default() });
        client.send(&[0; 11]).unwrap();
        client.send(&[0; 10]).unwrap();
        assert!(client.recv(&mut [0; 2]).is_ok());
        // The small one came behind the large one, so that one has been decided on.
        assert_eq!((relay.counts().dropped, relay.counts().received >= 2), (1, true));
    }

    fn engine() -> Engine {
        let listen = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = listen.local_addr().unwrap();
        Engine {
            listen,
            server: address,
            bind_to: address.ip(),
            clients: BTreeMap::new(),
            waiting: BinaryHeap::new(),
            last_due: [Instant::now(); 2],
            rate_free: [Instant::now(); 2],
            is_bad: [false; 2],
            rng: Rng::new(5),
            serial: 0,
            shared: Arc::default(),
        }
    }

    #[test]
    fn losses_of_the_burst_channel_come_in_runs_of_the_asked_length() {
        let mut engine = engine();
        let bursts = Some(Bursts { enter: 0.01, leave: 0.2, loss: 1.0 });
        let lost: Vec<_> = (0..100_000).map(|_| engine.loses_to_burst(0, bursts)).collect();
        let runs = lost.windows(2).filter(|pair| pair[1] && !pair[0]).count();
        let total = lost.iter().filter(|lost| **lost).count();
        let mean = total as f64 / runs as f64;
        assert!((4.5..5.5).contains(&mean), "runs of {mean}");
        // The share of time in the bad state: enter / (enter + leave).
        assert!((0.043..0.053).contains(&(total as f64 / 1e5)), "{total} lost");
    }

    #[test]
    fn the_rate_limit_spaces_datagrams_and_drops_what_would_wait_too_long() {
        let mut engine = engine();
        let now = Instant::now() + Duration::from_secs(1);
        // 1000 bytes with headers take 8 ms at 1 Mbit/s; the queue holds 100 ms of them.
        let times: Vec<_> = (0..100).filter_map(|_| engine.departs(0, now, 1_000_000, 972)).collect();
        assert_eq!(times.len(), 13);
        assert!(times.iter().zip(1u32..).all(|(at, i)| *at == now + Duration::from_millis(8) * i));
    }
}
