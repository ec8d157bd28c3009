//! One virtual device: the production client machine, its sockets, its traffic and its memory.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use jump_crypto::record::{HEADER_LEN, OVERHEAD};
use jump_crypto::replay_window::{ReplayError, ReplayWindow};
use jump_session::client::{Client, Event, Now, PathError, PathId};
use jump_session::reason::Reason;

use super::lane::World;
use super::packet::{LEN_MIN, Probe};
use super::record::{Attach, Gap, Record};

/// The largest probe.
pub const PROBE_MAX: usize = 1200;
/// Datagrams taken from one socket per turn.
const RECEIVES_MAX: usize = 32;

/// Probes in bursts, as people ask for pages and read them.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// Probes in one, at least one.
    pub probes: u32,
    /// Mean of the pauses after them.
    pub think: Duration,
}

impl Burst {
    /// A pause: exponentially distributed, and never longer than four times the mean. `fraction` is in `[0, 1)`.
    fn pause(&self, fraction: f64) -> Duration {
        self.think.mul_f64(-(1.0 - fraction).ln()).min(self.think_max())
    }

    /// The longest pause.
    fn think_max(&self) -> Duration {
        self.think * 4
    }
}

/// What a device sends inside its tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Time between two probes; `None` for silence.
    pub every: Option<Duration>,
    /// A pause after so many; `None` for probes without one.
    pub burst: Option<Burst>,
    /// Length of the inner packet, at least [`LEN_MIN`].
    pub length: usize,
    /// The echo server.
    pub to: SocketAddrV4,
    /// Times without an echo above this are remembered as gaps; a pause of its own is none.
    pub gap_above: Duration,
}

pub(super) struct Device {
    client: Client,
    /// Where it sends from; the port is the system's choice.
    address: Ipv4Addr,
    paths: Vec<(PathId, UdpSocket, SocketAddr)>,
    traffic: Traffic,
    probe_due: Option<Duration>,
    /// When the first probe was due that it waits for an echo of.
    asked_at: Option<Duration>,
    burst_began: Duration,
    inner: Option<Ipv4Addr>,
    link: PathId,
    epoch: u64,
    serial: u64,
    /// Probes since it last thought.
    in_burst: u32,
    /// The probes that were answered.
    echoes: ReplayWindow,
    campaign_began: Option<Duration>,
    pub(super) record: Record,
    /// When its earliest entry in the lane's queue is due.
    pub(super) queued: Option<Duration>,
}

impl Device {
    pub(super) fn new(
        client: Client,
        number: u32,
        group: usize,
        address: Ipv4Addr,
        traffic: Traffic,
        start_at: Duration,
    ) -> Self {
        let record = Record { device: number, group, started: Some(start_at), ..Record::default() };
        Self {
            client,
            address,
            paths: Vec::with_capacity(2),
            traffic: Traffic { length: traffic.length.clamp(LEN_MIN, PROBE_MAX), ..traffic },
            probe_due: None,
            asked_at: None,
            burst_began: Duration::ZERO,
            inner: None,
            link: PathId(0),
            epoch: 0,
            serial: 0,
            in_burst: 0,
            echoes: ReplayWindow::new(),
            campaign_began: None,
            record,
            queued: None,
        }
    }

    pub(super) fn start(&mut self, world: &mut World<'_>) {
        self.record.started = Some(world.now.at);
        self.client.start(world.now);
        self.settle(world);
    }

    /// When it has something to do without being spoken to.
    pub(super) fn due(&self) -> Option<Duration> {
        [self.client.poll_timeout(), self.probe_due].into_iter().flatten().min()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.record.terminated.is_some()
    }

    /// What it saw, with how it stands now.
    pub(super) fn into_record(self) -> Record {
        let last_heard = self.client.status().last_received;
        Record { last_heard, waiting_since: self.asked_at, ..self.record }
    }

    /// Does what is due.
    pub(super) fn wake(&mut self, world: &mut World<'_>) {
        if self.client.poll_timeout().is_some_and(|due| due <= world.now.at) {
            // As a device's own loop does: what has arrived comes first, or a lane that is late would call a gateway silent.
            for path in self.paths.iter().map(|(path, ..)| *path).collect::<Vec<_>>() {
                self.receive(world, path);
            }
            self.client.handle_timeout(world.now);
            self.settle(world);
        }
        if self.probe_due.is_some_and(|due| due <= world.now.at) {
            self.probe(world);
        }
    }

    /// Takes what has arrived on one socket.
    pub(super) fn receive(&mut self, world: &mut World<'_>, path: PathId) {
        let mut bytes = [0u8; 2048];
        for _ in 0..RECEIVES_MAX {
            let Some((_, socket, _)) = self.paths.iter().find(|(id, ..)| *id == path) else { break };
            match socket.recv(&mut bytes) {
                Ok(length) => {
                    let packet = self.client.handle_datagram(world.now, path, &mut bytes[..length]);
                    if let Some(probe) = packet.and_then(|packet| Probe::of_packet(packet)) {
                        self.echoed(world, &probe);
                    }
                    self.settle(world);
                }
                Err(error) => {
                    if let Some(kind) = path_error(&error) {
                        self.client.handle_path_error(world.now, path, kind);
                        self.settle(world);
                    }
                    break;
                }
            }
        }
    }

    /// Changes the pace of its probes.
    pub(super) fn set_pace(&mut self, now: Duration, every: Option<Duration>) {
        self.traffic.every = every;
        self.probe_due = every.filter(|_| self.inner.is_some()).map(|every| now + every);
    }

    /// Asks the machine to go to another gateway.
    pub(super) fn request_move(&mut self, world: &mut World<'_>, targets: &[SocketAddr]) {
        if !self.has_ended() {
            self.client.request_move(world.now, Reason::NetworkChanged, targets);
            self.settle(world);
        }
    }

    /// Goes to the gateway at the place of its own number plus `turn`, unless it is there.
    pub(super) fn spread(&mut self, world: &mut World<'_>, targets: &[SocketAddr], turn: usize) {
        let place = (self.record.device as usize + turn) % targets.len().max(1);
        let is_there =
            self.record.attaches.last().map(|attach| attach.gateway) == targets.get(place).copied();
        if !is_there && self.record.born.is_some() {
            self.request_move(world, &targets[place..=place]);
        }
    }

    /// What a NAT does that forgets: the same device from another port (and address), without a word to it.
    pub(super) fn rebind(&mut self, world: &mut World<'_>, address: Option<Ipv4Addr>) {
        if let Some(address) = address {
            self.address = address;
        }
        for i in 0..self.paths.len() {
            let (path, _, gateway) = self.paths[i];
            if let Ok(socket) = self.open(world, gateway, path) {
                world.forget(&self.paths[i].1);
                self.paths[i].1 = socket;
            }
        }
        self.record.rebinds += 1;
    }

    fn probe(&mut self, world: &mut World<'_>) {
        let Some((every, from)) = self.traffic.every.zip(self.inner) else {
            self.probe_due = None;
            return;
        };
        // Steps that were missed are left out: a late device does not flood.
        let due = self.probe_due.unwrap_or(world.now.at);
        let late = world.now.at.saturating_sub(due);
        let step = world.now.at - Duration::from_nanos(remainder(late, every));
        self.ask(due);
        self.probe_due = Some(step + every + self.pause(world));
        if self.client.packet_room() == 0 {
            self.record.held += 1;
            return;
        }
        let length = self.traffic.length;
        let mut frame = [0u8; PROBE_MAX + OVERHEAD];
        let probe = Probe {
            device: self.record.device,
            path: self.link.0,
            serial: self.serial,
            sent_at: nanos(world.now.at),
            epoch: self.epoch,
        };
        probe.write(&mut frame[HEADER_LEN..], length, from, self.traffic.to);
        match self.client.seal(world.now, &mut frame, length) {
            Ok(sealed) => {
                if sealed.path != self.link {
                    self.record.rides.push((self.serial, sealed.path.0));
                }
                self.serial += 1;
                self.record.sent += 1;
                world.counts.sent += 1;
                self.send(world, sealed.path, &frame[..sealed.len]);
            }
            Err(_) => self.record.held += 1,
        }
        self.settle(world);
    }

    /// A probe is due.
    fn ask(&mut self, due: Duration) {
        if self.traffic.burst.is_some() && self.in_burst == 0 {
            // Only the end of the burst before was lost: nobody has waited while it thought.
            if self.record.last_echo >= Some(self.burst_began) {
                self.asked_at = None;
            }
            self.burst_began = due;
        }
        self.asked_at.get_or_insert(due);
    }

    /// The time to think, when this probe is the last of its burst.
    fn pause(&mut self, world: &mut World<'_>) -> Duration {
        let Some(burst) = self.traffic.burst else { return Duration::ZERO };
        self.in_burst += 1;
        if self.in_burst < burst.probes {
            return Duration::ZERO;
        }
        self.in_burst = 0;
        burst.pause(world.fraction())
    }

    fn echoed(&mut self, world: &mut World<'_>, probe: &Probe) {
        if probe.device != self.record.device {
            return;
        }
        match self.echoes.commit(probe.serial) {
            Ok(()) => {}
            Err(ReplayError::Duplicate) => return self.record.duplicates += 1,
            Err(ReplayError::TooOld) => return self.record.too_late += 1,
        }
        let now = world.now.at;
        let asked_at = self.asked_at.take();
        if let Some(last) = self.record.last_echo.replace(now) {
            let gap = gap(last, asked_at, self.traffic.every.unwrap_or_default(), now);
            self.record.gaps.extend(Some(gap).filter(|gap| gap.length() > self.traffic.gap_above));
        }
        self.record.answered += 1;
        world.answered(self.record.group, Duration::from_nanos(probe.sent_at));
    }

    /// Does what the machine asks for.
    fn settle(&mut self, world: &mut World<'_>) {
        loop {
            while let Some(event) = self.client.poll_event() {
                self.handle(world, event);
            }
            let Some(transmit) = self.client.poll_transmit() else { break };
            self.send(world, transmit.path, &transmit.datagram);
        }
    }

    fn send(&mut self, world: &mut World<'_>, path: PathId, datagram: &[u8]) {
        let Some((_, socket, _)) = self.paths.iter().find(|(id, ..)| *id == path) else { return };
        if let Err(error) = socket.send(datagram)
            && let Some(kind) = path_error(&error)
        {
            self.client.handle_path_error(world.now, path, kind);
        }
    }

    fn open(&mut self, world: &mut World<'_>, gateway: SocketAddr, path: PathId) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((self.address, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(world.via.get(&gateway).copied().unwrap_or(gateway))?;
        world.watch(&socket, path)?;
        self.record.ports.push((socket.local_addr()?.port(), path.0));
        Ok(socket)
    }

    fn handle(&mut self, world: &mut World<'_>, event: Event) {
        let now = world.now.at;
        match event {
            Event::OpenPath { path, gateway, .. } => match self.open(world, gateway, path) {
                Ok(socket) => self.paths.push((path, socket, gateway)),
                Err(_) => self.client.handle_path_error(world.now, path, PathError::Unreachable),
            },
            Event::ClosePath { path } => {
                if let Some(i) = self.paths.iter().position(|(id, ..)| *id == path) {
                    let (_, socket, _) = self.paths.swap_remove(i);
                    world.forget(&socket);
                }
            }
            Event::Persist { ticket, stored } => self.client.persisted(world.now, ticket, &stored),
            Event::Attempted { attach_seq, .. } => {
                self.campaign_began.get_or_insert(now);
                self.record.attempts.push((now, attach_seq.0));
                world.counts.attempts += 1;
            }
            Event::Attached(attached) => {
                let accepted = &attached.accepted;
                let inner = accepted.inner.iter().find_map(|address| match address {
                    IpAddr::V4(address) => Some(*address),
                    IpAddr::V6(_) => None,
                });
                self.record.address_changed |= self.inner.is_some() && self.inner != inner;
                self.record.address_changed |=
                    self.record.session.is_some_and(|session| session != accepted.session);
                self.record.session = Some(accepted.session);
                self.inner = inner;
                self.link = attached.path;
                self.epoch = accepted.epoch.0;
                if self.record.born.is_none() {
                    self.record.born = Some(now);
                    world.counts.born += 1;
                    // Spread over the interval, so that devices born together do not send together.
                    self.probe_due = self.traffic.every.map(|every| now + world.phase_of(every));
                } else {
                    world.counts.reattached += 1;
                }
                self.record.attaches.push(Attach {
                    at: now,
                    began: self.campaign_began.take().unwrap_or(now),
                    epoch: accepted.epoch.0,
                    node: attached.node.to_string(),
                    incarnation: attached.incarnation.0,
                    gateway: attached.gateway,
                    path: attached.path.0,
                    reason: attached.reason,
                    born: attached.born,
                    timings: attached.timings,
                });
            }
            Event::Rejected { reason, .. } => {
                self.record.rejections.push((now, reason));
                world.counts.rejected += 1;
            }
            Event::Untrusted { .. } => self.record.untrusted += 1,
            Event::Terminated { reason } => {
                self.record.terminated = Some((now, reason));
                self.probe_due = None;
                world.counts.terminated += 1;
            }
            Event::PathChanged { path, .. } => {
                self.link = path;
                self.record.moved_paths.push((path.0, self.epoch));
            }
            Event::StateChanged { .. }
            | Event::NoEntropy(_)
            | Event::Bound { .. }
            | Event::MtuChanged { .. }
            | Event::FirstByte { .. }
            | Event::Rekeyed { .. }
            | Event::KeysChanged(_) => {}
        }
    }
}

/// The time without an echo until `now`. It begins with the last one; for a device that was silent meanwhile, an interval
/// before the first probe that had to wait: who thinks waits for nothing.
fn gap(last_echo: Duration, asked_at: Option<Duration>, every: Duration, now: Duration) -> Gap {
    let began = asked_at.map_or(Duration::ZERO, |asked| asked.saturating_sub(every));
    Gap { from: last_echo.max(began), to: now }
}

fn path_error(error: &io::Error) -> Option<PathError> {
    use io::ErrorKind as Kind;
    let unreachable =
        [Kind::HostUnreachable, Kind::NetworkUnreachable, Kind::NetworkDown, Kind::AddrNotAvailable];
    if error.kind() == Kind::ConnectionRefused {
        Some(PathError::Refused)
    } else {
        unreachable.contains(&error.kind()).then_some(PathError::Unreachable)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn remainder(late: Duration, every: Duration) -> u64 {
    nanos(late).checked_rem(nanos(every)).unwrap_or(0)
}

/// The time of the devices' clock.
pub(super) fn now() -> Now {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Now { at: super::clock(), unix_seconds: unix.as_secs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn a_gap_begins_with_the_last_echo_and_not_while_the_device_thought() {
        // Steady: the first probe that waits was due an interval after the one of the last echo.
        assert_eq!(gap(ms(1010), Some(ms(1100)), ms(100), ms(1500)), Gap { from: ms(1010), to: ms(1500) });
        // After a pause of four seconds the first probe is answered at once, or after a second.
        assert_eq!(gap(ms(1010), Some(ms(5000)), ms(100), ms(5003)).length(), ms(103));
        assert_eq!(gap(ms(1010), Some(ms(5000)), ms(100), ms(6000)).length(), ms(1100));
        // An echo that nobody waits for any more.
        assert_eq!(gap(ms(1010), None, ms(100), ms(1020)).length(), ms(10));
    }

    #[test]
    fn a_device_thinks_as_long_as_its_mean_says_and_never_beyond_four_of_them() {
        let burst = Burst { probes: 3, think: ms(1000) };
        let pauses: Vec<_> = (0..1000).map(|i| burst.pause(f64::from(i) / 1000.0)).collect();
        let mean = pauses.iter().sum::<Duration>() / 1000;
        assert!((ms(950)..ms(1000)).contains(&mean), "{mean:?}");
        assert_eq!(burst.pause(0.999_999), burst.think_max());
    }
}
