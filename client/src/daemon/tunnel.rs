//! The tunnel's event loop.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jump_crypto::record::{HEADER_LEN, OVERHEAD};
use jump_session::client::{Client, Event, NetworkChange, Now, PathError, PathId, Stored};
use jump_session::frame::Accepted;
use jump_session::reason::Reason;
use jump_transport::clock::{ClockJumps, boottime_nanos};
use jump_transport::network::{NetworkChanges, network_changes};
use jump_transport::poll::{self, Waker};
use jump_transport::tun::{
    ErrorPace, TOO_BIG_LEN_MAX, Tun, TunReceiveBuffers, TunSendBatch, apply_outer_ecn, clamp_mss, ecn_of,
    packet_too_big,
};
use jump_transport::udp::ReceiveBuffers;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::audit::Teller;
use super::disk::Disk;
use super::journal::{Journal, line_of};
use super::mailbox::Command;
use super::paths::{News, Outgoing, Path, Paths, Sent, is_too_long, path_error};
use super::report::{Report, Surroundings, Traffic};
use super::routes::Configured;
use crate::failure::{Exit, Failure};
use crate::metrics::Gauges;

/// Inner packets taken from the TUN device per turn.
const TUN_BUDGET: usize = 256;
/// Sockets that are waited on; the machine opens far fewer.
const PATHS_MAX: usize = poll::DESCRIPTORS_MAX - OTHERS;
/// Descriptors besides the paths': the network's news, the clock's, and the interface.
const OTHERS: usize = 3;
/// Where the paths' descriptors begin.
const FIRST_PATH: usize = 2;
/// Batched receives per socket and turn.
const RECEIVES_MAX: usize = 8;
/// Datagrams and ends of connections taken in per turn.
const CONNECTION_BUDGET: usize = 512;
/// Inner packets kept when the machine stops taking them in the middle of a read.
const HELD_MAX: usize = 256;
/// A suspend shorter than this is no suspend.
const SUSPEND_MIN: Duration = Duration::from_secs(1);
/// The loop looks around at least this often.
const TURN_MAX: Duration = Duration::from_secs(60);

/// Why [`Tunnel::run`] returned.
pub(super) enum Ended {
    /// The process was told to stop; the session waits in the store.
    Stopped,
    /// The session has ended.
    Terminated { reason: Reason, stored: Stored },
}

/// Everything that outlives one session: the device, the sockets, the buffers.
pub(super) struct Tunnel {
    tun: Tun,
    waker: Waker,
    commands: Receiver<Command>,
    disk: Disk,
    journal: Journal,
    teller: Teller,
    runtime: Runtime,
    device_name: String,
    network: NetworkChanges,
    clock: ClockJumps,
    paths: Paths,
    outgoing: Outgoing,
    incoming: ReceiveBuffers,
    tun_incoming: TunReceiveBuffers,
    tun_outgoing: TunSendBatch,
    /// Of the ICMP errors about packets that are larger than the path carries.
    errors: ErrorPace,
    /// Inner packets, framed for sealing, that wait for a gateway.
    held: VecDeque<Vec<u8>>,
    configured: Configured,
    dns: Vec<IpAddr>,
    traffic: Traffic,
    gauges: Gauges,
    attached_at: Option<Duration>,
    source: Option<IpAddr>,
    suspended: Duration,
    origin: Duration,
    down: Vec<oneshot::Sender<()>>,
    stopping: bool,
}

impl Tunnel {
    #[expect(clippy::too_many_arguments, reason = "each is a part that outlives a session; called once")]
    pub(super) fn new(
        tun: Tun,
        waker: Waker,
        commands: Receiver<Command>,
        disk: Disk,
        journal: Journal,
        teller: Teller,
        runtime: Runtime,
        device_name: String,
    ) -> Result<Self, Failure> {
        let network = network_changes()
            .map_err(|error| Failure::because(Exit::Failed, "cannot watch the network", &error))?;
        let clock = ClockJumps::new()
            .map_err(|error| Failure::because(Exit::Failed, "cannot watch the clock", &error))?;
        let paths = Paths::new(runtime.handle().clone(), waker.clone());
        Ok(Self {
            tun,
            waker,
            commands,
            disk,
            journal,
            teller,
            runtime,
            device_name,
            network,
            clock,
            paths,
            outgoing: Outgoing::new(),
            incoming: ReceiveBuffers::new(),
            tun_incoming: TunReceiveBuffers::new(),
            tun_outgoing: TunSendBatch::new(),
            errors: ErrorPace::default(),
            held: VecDeque::new(),
            configured: Configured::default(),
            dns: Vec::new(),
            traffic: Traffic::default(),
            gauges: Gauges::new(),
            attached_at: None,
            source: None,
            suspended: suspended(),
            origin: boottime(),
            down: Vec::new(),
            stopping: false,
        })
    }

    /// Carries one session to its end, or until told to stop.
    pub(super) fn run(&mut self, mut client: Client) -> Result<Ended, Failure> {
        self.paths.clear();
        self.attached_at = None;
        client.start(now());
        loop {
            let ended = self.settle(&mut client)?;
            self.gauges.set(&client.health(), &self.traffic);
            if let Some(reason) = ended {
                return Ok(Ended::Terminated { reason, stored: client.stored() });
            }
            if self.stopping {
                let stored = client.stored();
                let session = stored.session.map(|session| session.to_string());
                let fields = json!({ "session_id": session, "correlation_id": self.teller.correlation() });
                self.journal.note(self.at(), "stopped", fields);
                return Ok(Ended::Stopped);
            }
            self.turn(&mut client)?;
        }
    }

    /// Waits for something to do and does it.
    fn turn(&mut self, client: &mut Client) -> Result<(), Failure> {
        let takes = client.packet_room() > 0;
        let mut ids = [PathId(0); PATHS_MAX];
        let mut ready = [false; PATHS_MAX + OTHERS];
        let mut open = 0;
        {
            let mut descriptors = [self.network.as_fd(); PATHS_MAX + OTHERS];
            descriptors[1] = self.clock.as_fd();
            let sockets = self.paths.iter().filter_map(|(id, path)| Some((id, path.socket()?)));
            for ((id, socket), slot) in sockets.zip(&mut ids) {
                *slot = id;
                descriptors[FIRST_PATH + open] = socket.as_fd();
                open += 1;
            }
            descriptors[FIRST_PATH + open] = self.tun.as_fd();
            let watched = FIRST_PATH + open + usize::from(takes);
            let timeout = client.poll_timeout().unwrap_or(Duration::MAX).saturating_sub(boottime());
            poll::wait(&descriptors[..watched], &self.waker, Some(timeout.min(TURN_MAX)), &mut ready)
                .map_err(|error| Failure::because(Exit::Failed, "cannot wait for packets", &error))?;
        }
        self.take_commands(client);
        if ready[0] {
            self.look_at_network(client);
        }
        if ready[1]
            && let Err(error) = self.clock.clear()
        {
            debug!("clock: {error}");
        }
        self.look_for_suspend(client);
        for (id, _) in ids[..open].iter().zip(&ready[FIRST_PATH..]).filter(|(_, ready)| **ready) {
            self.receive(client, *id);
        }
        self.receive_by_connections(client);
        self.write_inner();
        if takes {
            self.send(client, ready[FIRST_PATH + open])?;
        }
        if client.poll_timeout().is_some_and(|due| due <= boottime()) {
            client.handle_timeout(now());
        }
        Ok(())
    }

    /// Writes what waits for the interface.
    fn write_inner(&mut self) {
        self.traffic.interface_dropped += self.tun_outgoing.flush(&self.tun).dropped;
    }

    fn receive(&mut self, client: &mut Client, id: PathId) {
        for _ in 0..RECEIVES_MAX {
            let Some(socket) = self.paths.get(id).and_then(Path::socket) else { return };
            let (tun, out, traffic) = (&self.tun, &mut self.tun_outgoing, &mut self.traffic);
            let now = now();
            let received = socket.receive(&mut self.incoming, &mut |datagram| {
                if let Some(packet) = client.handle_datagram(now, id, datagram.bytes) {
                    if !apply_outer_ecn(packet, datagram.ecn) {
                        return traffic.congestion_dropped += 1;
                    }
                    traffic.received_packets += 1;
                    traffic.received_bytes += packet.len() as u64;
                    clamp(client, packet);
                    out.push(tun, packet);
                }
            });
            match received {
                Ok(0) => return,
                // The socket was found empty: what comes from now on makes it ready again.
                Ok(_) if !self.incoming.filled() => return,
                Ok(_) => {}
                Err(error) => {
                    match path_error(&error) {
                        Some(kind) => client.handle_path_error(now, id, kind),
                        None if is_too_long(&error) => client.handle_too_long(now, id),
                        None => debug!("receiving: {error}"),
                    }
                    return;
                }
            }
        }
    }

    /// Takes in what came by TCP, TLS and QUIC.
    fn receive_by_connections(&mut self, client: &mut Client) {
        let now = now();
        for _ in 0..CONNECTION_BUDGET {
            match self.paths.next_news() {
                Some(News::Datagram(id, mut frame, at)) => {
                    if let Some(packet) = client.handle_datagram(now, id, frame.bytes_mut()) {
                        self.traffic.received_packets += 1;
                        self.traffic.received_bytes += packet.len() as u64;
                        clamp(client, packet);
                        self.tun_outgoing.push(&self.tun, packet);
                    }
                    self.paths.recycle(frame, at);
                }
                Some(News::Failed(id, error)) => client.handle_path_error(now, id, error),
                None => return,
            }
        }
        // More waits: come back without waiting.
        self.waker.wake();
    }

    /// Seals what waits and sends it.
    fn send(&mut self, client: &mut Client, tun_ready: bool) -> Result<(), Failure> {
        let now = now();
        let mut sent = Sent::default();
        let mut add = |more: Sent| {
            sent.dropped += more.dropped;
            sent.refused = sent.refused.or(more.refused);
            sent.too_long = sent.too_long.or(more.too_long);
        };
        while client.packet_room() > 0
            && let Some(mut frame) = self.held.pop_front()
        {
            let len = frame.len() - OVERHEAD;
            let packet = &mut frame[HEADER_LEN..HEADER_LEN + len];
            if let Some(mtu) = too_big(client, packet) {
                let (tun, out) = (&self.tun, &mut self.tun_outgoing);
                refuse_too_big(packet, mtu, now.at, &mut self.errors, tun, out, &mut self.traffic);
                continue;
            }
            clamp(client, packet);
            let ecn = ecn_of(packet);
            if let Ok(sealed) = client.seal(now, &mut frame, len) {
                add(self.outgoing.push(&mut self.paths, sealed.path, ecn, &frame[..sealed.len]));
                self.traffic.sent_packets += 1;
                self.traffic.sent_bytes += len as u64;
            }
        }
        let budget = client.packet_room().min(TUN_BUDGET);
        if tun_ready && budget > 0 {
            let (outgoing, paths, traffic, held) =
                (&mut self.outgoing, &mut self.paths, &mut self.traffic, &mut self.held);
            let (tun, inwards, errors) = (&self.tun, &mut self.tun_outgoing, &mut self.errors);
            let read = self.tun.receive(&mut self.tun_incoming, budget, &mut |frame| {
                let len = frame.len() - OVERHEAD;
                if client.packet_room() == 0 {
                    if held.len() < HELD_MAX {
                        held.push_back(frame.to_vec());
                    } else {
                        traffic.held_dropped += 1;
                    }
                    return;
                }
                let packet = &mut frame[HEADER_LEN..HEADER_LEN + len];
                if let Some(mtu) = too_big(client, packet) {
                    return refuse_too_big(packet, mtu, now.at, errors, tun, inwards, traffic);
                }
                clamp(client, packet);
                let ecn = ecn_of(packet);
                if let Ok(sealed) = client.seal(now, frame, len) {
                    add(outgoing.push(paths, sealed.path, ecn, &frame[..sealed.len]));
                    traffic.sent_packets += 1;
                    traffic.sent_bytes += len as u64;
                }
            });
            if let Err(error) = read
                && error.kind() != io::ErrorKind::WouldBlock
            {
                return Err(Failure::because(Exit::Failed, "the interface is gone", &error));
            }
        }
        add(self.outgoing.flush(&mut self.paths));
        self.write_inner();
        self.traffic.send_dropped += sent.dropped;
        if let Some(path) = sent.too_long {
            client.handle_too_long(now, path);
        }
        if let Some(path) = sent.refused {
            client.handle_path_error(now, path, PathError::Refused);
        }
        Ok(())
    }

    /// Does what the machine asks for; returns the reason when its session has ended.
    fn settle(&mut self, client: &mut Client) -> Result<Option<Reason>, Failure> {
        let mut ended = None;
        loop {
            while let Some(event) = client.poll_event() {
                let status = client.status();
                self.teller.tell(&event, &status);
                if let Some((name, mut fields)) = line_of(&event, &status) {
                    if let Some(correlation) = self.teller.correlation() {
                        fields["correlation_id"] = correlation.into();
                    }
                    self.journal.note(self.at(), name, fields);
                }
                self.handle_event(client, event, &mut ended);
            }
            let Some(transmit) = client.poll_transmit() else { break };
            if let Err(error) = self.paths.send(transmit.path, &transmit.datagram)
                && let Some(kind) = path_error(&error)
            {
                client.handle_path_error(now(), transmit.path, kind);
            }
        }
        Ok(ended)
    }

    fn handle_event(&mut self, client: &mut Client, event: Event, ended: &mut Option<Reason>) {
        match event {
            Event::OpenPath { path, gateway, transport, address } => {
                if let Err(error) = self.paths.open(path, gateway, transport, address) {
                    debug!(%address, %transport, "no path: {error}");
                    client.handle_path_error(
                        now(),
                        path,
                        path_error(&error).unwrap_or(PathError::Unreachable),
                    );
                }
            }
            Event::ClosePath { path } => self.paths.close(path),
            Event::Persist { ticket, stored } => self.disk.write(ticket, stored),
            Event::StateChanged { from, to, reason } => {
                let status = client.status();
                let session = status.session.map(|session| session.to_string()).unwrap_or_default();
                let correlation = self.teller.correlation();
                info!(session, correlation, epoch = status.epoch.0, reason = reason.code(), "{from} -> {to}");
            }
            Event::Attached(attached) => {
                let total = attached.timings.detect + attached.timings.handshake + attached.timings.commit;
                info!(
                    session = %attached.accepted.session,
                    correlation = self.teller.correlation(),
                    attempt = %attached.attempt,
                    epoch = attached.accepted.epoch.0,
                    node = %attached.node,
                    reason = attached.reason.code(),
                    "attached to {} in {} ms",
                    attached.gateway,
                    total.as_millis()
                );
                self.attached_at = Some(boottime());
                self.source = Paths::source_towards(attached.gateway);
                self.configure(client, &attached.accepted);
            }
            Event::MtuChanged { from, to } => {
                info!(
                    correlation = self.teller.correlation(),
                    from, to, "the path carries inner packets of another size"
                );
                self.set_mtu(to);
            }
            Event::PathChanged { from, to, reason, .. } => {
                let correlation = self.teller.correlation();
                info!(correlation, reason = reason.code(), %from, %to, "the session goes on over another path");
            }
            Event::Rejected { gateway, reason, .. } => {
                let correlation = self.teller.correlation();
                info!(correlation, %gateway, reason = reason.code(), "the attach was rejected");
            }
            Event::Untrusted { gateway, error } => {
                let correlation = self.teller.correlation();
                warn!(correlation, %gateway, "the gateway says that it owns the session and cannot prove it: {error}");
            }
            Event::Terminated { reason } => {
                let correlation = self.teller.correlation();
                info!(correlation, reason = reason.code(), "the session has ended");
                for down in self.down.drain(..) {
                    let _ = down.send(());
                }
                *ended = Some(reason);
            }
            Event::KeysChanged(keys) => {
                info!(serial = keys.serial, "the cluster's keys have changed");
                self.disk.write_keys(keys);
            }
            Event::NoEntropy(error) => {
                error!(correlation = self.teller.correlation(), "the session ends without keys: {error}");
            }
            Event::Attempted { gateway, transport, attach_seq, attempt, .. } => {
                let correlation = self.teller.correlation();
                debug!(correlation, %gateway, %transport, %attempt, attach_seq = attach_seq.0, "attempt")
            }
            Event::Bound { .. } | Event::FirstByte { .. } | Event::Rekeyed { .. } => {}
        }
    }

    /// Brings the interface to what the owner gave; after the first time, mostly nothing.
    fn configure(&mut self, client: &Client, accepted: &Accepted) {
        self.dns.clone_from(&accepted.dns);
        let mut gateways = client.status().roster;
        gateways.extend(self.paths.iter().map(|(_, path)| path.gateway));
        let mtu = client.mtu().unwrap_or(accepted.mtu);
        let applied = self.runtime.block_on(self.configured.apply(&self.tun, accepted, mtu, &gateways));
        if let Err(error) = applied {
            let correlation = self.teller.correlation();
            error!(correlation, interface = self.tun.name(), "addresses or routes could not be set: {error}");
        }
    }

    fn set_mtu(&mut self, mtu: u16) {
        if let Err(error) = self.runtime.block_on(self.configured.set_mtu(&self.tun, mtu)) {
            let correlation = self.teller.correlation();
            error!(correlation, interface = self.tun.name(), "the MTU could not be set: {error}");
        }
    }

    fn take_commands(&mut self, client: &mut Client) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Status(answer) => {
                    // The asker may have gone.
                    let _ = answer.send(self.report(client));
                }
                Command::Watch(watcher) => self.journal.add_watcher(watcher),
                Command::Down(answer) => {
                    self.down.extend(answer);
                    client.close(now(), Reason::ClientClosed);
                }
                Command::Stop => self.stopping = true,
                Command::ReplaceDevice(device, answer) => {
                    self.teller.replace_device(device.public());
                    info!(correlation = self.teller.correlation(), key = %device.public(), "going on under another device key");
                    client.replace_device(now(), device);
                    let _ = answer.send(());
                }
                Command::Persisted(ticket, stored) => client.persisted(now(), ticket, &stored),
            }
        }
    }

    /// Our own changes are reported too, and most others do not matter: what counts is our address towards the gateway.
    fn look_at_network(&mut self, client: &mut Client) {
        match self.network.drain() {
            Ok(change) if change.any() => {}
            Ok(_) => return,
            Err(error) => return debug!("netlink: {error}"),
        }
        let gateway = match client.status().owner {
            Some((_, gateway)) => Some(gateway),
            None => self.paths.iter().map(|(_, path)| path.gateway).next(),
        };
        let source = gateway.and_then(Paths::source_towards);
        let before = core::mem::replace(&mut self.source, source);
        if let Some(source) = source.filter(|source| Some(*source) != before) {
            let correlation = self.teller.correlation();
            info!(correlation, %source, "the network has changed");
            let fields = json!({ "source": source, "correlation_id": correlation });
            self.journal.note(self.at(), "network", fields);
            client.handle_network_change(now(), NetworkChange::Changed);
        }
    }

    fn look_for_suspend(&mut self, client: &mut Client) {
        let suspended = suspended();
        if suspended.saturating_sub(self.suspended) >= SUSPEND_MIN {
            info!(correlation = self.teller.correlation(), "the device was suspended");
            client.handle_network_change(now(), NetworkChange::Resumed);
        }
        self.suspended = suspended;
    }

    fn report(&self, client: &Client) -> Report {
        let around = Surroundings {
            now: boottime(),
            device_name: &self.device_name,
            interface: self.tun.name(),
            routes: self.configured.routes(),
            dns_servers: self.dns.clone(),
            mtu: self.configured.mtu,
            attached_at: self.attached_at,
            traffic: self.traffic,
            correlation: self.teller.correlation(),
        };
        Report::new(client.status(), around)
    }

    pub(super) fn note_new_session(&mut self, reason: Reason) {
        self.journal.note(self.at(), "new_session", json!({ "reason": reason.code() }));
    }

    /// Waits between two sessions; false when told to stop meanwhile.
    pub(super) fn rest(&mut self, time: Duration) -> bool {
        let end = boottime() + time;
        while !self.stopping && boottime() < end {
            let left = end.saturating_sub(boottime());
            if poll::wait(&[], &self.waker, Some(left), &mut []).is_err() {
                return false;
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Down(answer) => {
                        self.stopping = true;
                        if let Some(answer) = answer {
                            let _ = answer.send(());
                        }
                    }
                    Command::Stop => self.stopping = true,
                    Command::Watch(watcher) => self.journal.add_watcher(watcher),
                    // The next session reads its key from disk.
                    Command::ReplaceDevice(device, _) => self.teller.replace_device(device.public()),
                    Command::Status(_) | Command::Persisted(..) => {}
                }
            }
        }
        !self.stopping
    }

    /// Takes back what does not vanish with the interface, and waits for disk and journal.
    pub(super) fn finish(mut self) {
        if let Err(error) = self.runtime.block_on(self.configured.remove()) {
            warn!("routing rules could not be removed: {error}");
        }
        drop(self.disk);
        drop(self.journal);
        self.runtime.shutdown_timeout(Duration::from_millis(200));
    }

    fn at(&self) -> Duration {
        boottime().saturating_sub(self.origin)
    }
}

/// The MTU, when `packet` is larger: the interface's was lowered after it was sent.
#[inline]
fn too_big(client: &Client, packet: &[u8]) -> Option<u16> {
    client.mtu().filter(|mtu| packet.len() > usize::from(*mtu))
}

/// Drops a packet that is larger than the path carries, and tells its sender.
#[cold]
fn refuse_too_big(
    packet: &[u8],
    mtu: u16,
    now: Duration,
    errors: &mut ErrorPace,
    tun: &Tun,
    out: &mut TunSendBatch,
    traffic: &mut Traffic,
) {
    traffic.too_big_dropped += 1;
    let mut error = [0; TOO_BIG_LEN_MAX];
    if let Some(len) = packet_too_big(packet, mtu, &mut error)
        && errors.take(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
    {
        out.push(tun, &error[..len]);
    }
}

/// Lowers what a SYN announces to what the path carries, in either direction.
#[inline]
fn clamp(client: &Client, packet: &mut [u8]) {
    if let Some(mtu) = client.mtu() {
        clamp_mss(packet, mtu);
    }
}

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { at: boottime(), unix_seconds: unix.as_secs() }
}

fn boottime() -> Duration {
    Duration::from_nanos(boottime_nanos())
}

/// Time that the device has spent suspended: what the one clock counts and the other does not.
fn suspended() -> Duration {
    thread_local! {
        static START: (Instant, Duration) = (Instant::now(), boottime());
    }
    START.with(|(instant, boot)| (boottime().saturating_sub(*boot)).saturating_sub(instant.elapsed()))
}
