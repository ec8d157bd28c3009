//! The data plane's thread: sockets and TUN in, one pass, out, and back to waiting.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use jump_session::gateway::{Nanos, State};
use jump_session::path::{Path, Transport};
use jump_transport::batch::{Datagram, HEADROOM, TAILROOM};
use jump_transport::clock::boottime_nanos;
use jump_transport::poll::{Waker, wait};
use jump_transport::tun::{Tun, TunReceiveBuffers, TunSendBatch};
use jump_transport::udp::{ReceiveBuffers, Route, SendBatch, UdpSocket};
use tokio::sync::mpsc;

use super::After;
use super::doors::Doors;
use super::{Command, DataPlane, DropReason, SharedCounters, Tick, Wire};
use crate::lease::Guard;

/// Batches of one socket in a row before the others get their turn.
const BATCHES_MAX: usize = 4;
/// Packets of the TUN device in a row.
const TUN_BUDGET: usize = 256;
/// Datagrams of one door in a row.
const DOOR_BUDGET: usize = 256;
/// Orders in a row.
const COMMANDS_BUDGET: usize = 64;
/// Longest wait: the thread shows that it is alive at least this often.
const WAIT_MAX: Duration = Duration::from_millis(25);

/// What the data plane shows to other threads.
#[derive(Debug, Default)]
pub struct Shared {
    /// Counts passes of the loop: who sees it stand still knows that the thread does.
    pub passes: AtomicU64,
    /// Sessions carried.
    pub sessions: AtomicU64,
    /// Those of them in each state, in the order of [`State::ALL`].
    pub states: [AtomicU64; State::ALL.len()],
    /// Receiver indices in use.
    pub entries: AtomicU64,
    /// Known ways to inner addresses.
    pub routes: AtomicU64,
    /// Links to other gateways.
    pub links: AtomicU64,
    /// Everything counted.
    pub counters: SharedCounters,
    /// What each of the ways in besides UDP counted, in the order of [`Transport::ALL`].
    pub doors: [DoorCounters; Transport::ALL.len()],
}

/// What one way in counted.
#[derive(Debug, Default)]
pub struct DoorCounters {
    /// Datagrams to clients.
    pub sent: AtomicU64,
    /// Datagrams from clients.
    pub received: AtomicU64,
    /// Datagrams dropped by its queues, in both directions.
    pub dropped: AtomicU64,
    /// Connections turned away.
    pub refused: AtomicU64,
}

/// The thread's sockets.
pub struct Sockets {
    /// The clients' socket.
    pub clients: UdpSocket,
    /// The gateways' socket.
    pub mesh: UdpSocket,
    /// The inner network.
    pub tun: Tun,
}

struct Output<'a> {
    sockets: &'a Sockets,
    /// Of the next slot for a client.
    ecn: u8,
    /// Something was written to the inner network since it was last read.
    wrote_inner: bool,
    /// The clients' socket listens on every address: answers must say from which one they leave.
    everywhere: bool,
    doors: Doors,
    /// The last slot for a client was a door's.
    by_door: bool,
    clients: SendBatch,
    mesh: SendBatch,
    inner: TunSendBatch,
}

impl Wire for Output<'_> {
    fn to_client(&mut self, path: Path, len: usize) -> &mut [u8] {
        let ecn = std::mem::take(&mut self.ecn);
        self.by_door = path.transport != Transport::Udp;
        if self.by_door {
            return self.doors.slot(path, len);
        }
        let route = Route { destination: path.peer, local: path.local, ecn };
        self.clients.slot_from(&self.sockets.clients, route, len)
    }

    fn mark_next(&mut self, ecn: u8) {
        self.ecn = ecn;
    }

    fn cancel_client(&mut self) {
        if self.by_door {
            self.doors.cancel();
        } else {
            self.clients.cancel();
        }
    }

    fn to_mesh(&mut self, destination: std::net::SocketAddr, len: usize) -> &mut [u8] {
        self.mesh.slot(&self.sockets.mesh, destination, len)
    }

    fn cancel_mesh(&mut self) {
        self.mesh.cancel();
    }

    fn to_inner(&mut self, packet: &[u8]) {
        self.inner.push(&self.sockets.tun, packet);
    }
}

impl Output<'_> {
    fn flush(&mut self, plane: &mut DataPlane) {
        let clients = self.clients.flush(&self.sockets.clients);
        let mesh = self.mesh.flush(&self.sockets.mesh);
        let inner = self.inner.flush(&self.sockets.tun);
        let doors = self.doors.flush();
        let counters = plane.counters_mut();
        counters.drop_many(DropReason::SocketFull, clients.dropped + mesh.dropped);
        counters.drop_many(DropReason::TunRefused, inner.dropped);
        self.wrote_inner |= inner.writes > 0;
        counters.drop_many(DropReason::DoorFull, doors);
    }
}

/// Everything the thread runs on.
pub struct Engine {
    /// The packet state.
    pub plane: DataPlane,
    /// Its sockets.
    pub sockets: Sockets,
    /// The ways in besides UDP.
    pub doors: Doors,
    /// Orders.
    pub commands: mpsc::Receiver<Command>,
    /// Wakes the thread for an order.
    pub waker: Waker,
    /// The authority to forward.
    pub guard: Guard,
    /// What others see.
    pub shared: Arc<Shared>,
}

impl Engine {
    /// Runs until it is told to shut down or nobody is left to give orders.
    ///
    /// # Errors
    /// When waiting for or reading from a socket fails for good.
    pub fn run(self) -> io::Result<()> {
        let Self { mut plane, sockets, doors, mut commands, waker, guard, shared } = self;
        let mut output = Output {
            sockets: &sockets,
            ecn: 0,
            wrote_inner: false,
            everywhere: sockets.clients.local_address()?.ip().is_unspecified(),
            doors,
            by_door: false,
            clients: SendBatch::new(),
            mesh: SendBatch::new(),
            inner: TunSendBatch::new(),
        };
        let mut buffers = (ReceiveBuffers::new(), ReceiveBuffers::new(), TunReceiveBuffers::new());
        let mut ready = [true; 3];
        let mut backlogged = false;
        loop {
            // Work that no descriptor will speak of again: the poll that follows must not wait.
            let mut more = true;
            let mut acknowledgements = Vec::new();
            for _ in 0..COMMANDS_BUDGET {
                let command = match commands.try_recv() {
                    Ok(command) => command,
                    Err(mpsc::error::TryRecvError::Empty) => {
                        more = false;
                        break;
                    }
                    Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                };
                let tick = tick();
                match plane.handle_command(tick, command, guard.holds(tick.now), &mut output) {
                    After::Nothing => {}
                    After::Acknowledge(done, ages) => acknowledgements.push((done, ages)),
                    After::Shutdown => {
                        output.flush(&mut plane);
                        return Ok(());
                    }
                }
            }
            output.flush(&mut plane);
            for (done, ages) in acknowledgements {
                // The asker may have given up waiting.
                let _ = done.send(ages);
            }
            let now = boottime_nanos();
            plane.handle_authority(now, guard.holds(now));

            plane.begin_pass(backlogged);
            backlogged = false;
            if ready[0] {
                let (socket, buffers) = (&sockets.clients, &mut buffers.0);
                let had = datagrams_in(&mut plane, socket, buffers, &guard, &mut output, CLIENT)?;
                backlogged = had == Had::More;
            }
            more |= doors_in(&mut plane, &guard, &mut output);
            if ready[1] {
                let (socket, buffers) = (&sockets.mesh, &mut buffers.1);
                datagrams_in(&mut plane, socket, buffers, &guard, &mut output, MESH)?;
            }
            // What was just written may have its answer waiting already.
            if ready[2] || std::mem::take(&mut output.wrote_inner) {
                inner_in(&mut plane, &sockets, &mut buffers.2, &guard, &mut output)?;
            }
            let now = tick();
            if guard.holds(now.now) {
                plane.handle_timers(now, &mut output);
                output.flush(&mut plane);
            }
            publish(&plane, &output.doors, &shared);
            // What is left in a socket or the device ends the wait at once.
            let timeout = match (more, guard.holds(now.now)) {
                (true, _) => Duration::ZERO,
                (false, true) => patience(plane.poll_timeout(), now.now),
                // Nothing that is due may be done.
                (false, false) => WAIT_MAX,
            };
            wait(
                &[sockets.clients.as_fd(), sockets.mesh.as_fd(), sockets.tun.as_fd()],
                &waker,
                Some(timeout),
                &mut ready,
            )?;
        }
    }
}

fn tick() -> Tick {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Tick { now: boottime_nanos(), unix }
}

fn patience(due: Option<Nanos>, now: Nanos) -> Duration {
    let until = due.map_or(WAIT_MAX, |due| Duration::from_nanos(due.saturating_sub(now)));
    // A deadline that was missed by a moment must not turn into spinning.
    until.clamp(Duration::from_millis(1), WAIT_MAX)
}

fn publish(plane: &DataPlane, doors: &Doors, shared: &Shared) {
    shared.passes.fetch_add(1, Ordering::Relaxed);
    shared.sessions.store(plane.sessions() as u64, Ordering::Relaxed);
    for (state, shown) in State::ALL.into_iter().zip(&shared.states) {
        shown.store(u64::from(plane.sessions_in(state)), Ordering::Relaxed);
    }
    shared.entries.store(plane.entries() as u64, Ordering::Relaxed);
    shared.routes.store(plane.routes() as u64, Ordering::Relaxed);
    shared.links.store(plane.links() as u64, Ordering::Relaxed);
    shared.counters.publish(plane.counters());
    for (transport, counted) in doors.counters() {
        let door = &shared.doors[usize::from(transport.number()) - 1];
        door.sent.store(counted.sent, Ordering::Relaxed);
        door.received.store(counted.received, Ordering::Relaxed);
        door.dropped.store(counted.dropped_outgoing + counted.dropped_incoming, Ordering::Relaxed);
        door.refused.store(counted.refused_connections, Ordering::Relaxed);
    }
}

/// What came in by the other doors, each in its turn. True when a turn ended before its door was empty.
fn doors_in(plane: &mut DataPlane, guard: &Guard, output: &mut Output<'_>) -> bool {
    let mut more = false;
    for number in 0..output.doors.len() {
        let mut left = DOOR_BUDGET;
        let tick = tick();
        let holds = guard.holds(tick.now);
        while left > 0
            && let Some((path, mut frame)) = output.doors.receive(number)
        {
            left -= 1;
            if holds {
                plane.handle_client(tick, path, frame.bytes_mut(), output);
            } else {
                plane.refuse_client(tick, path, frame.bytes_mut(), output);
            }
            output.doors.recycle(number, frame);
        }
        if left < DOOR_BUDGET {
            output.flush(plane);
        }
        more |= left == 0;
    }
    more
}

/// What a socket had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Had {
    Nothing,
    Datagrams,
    /// Its turn ended before it was empty.
    More,
}

/// What is done with one datagram.
type Handle = fn(&mut DataPlane, Tick, Datagram<'_>, &mut Output<'_>);
/// With authority, and without.
const CLIENT: (Handle, Handle) = (client_datagram, refused_datagram);
const MESH: (Handle, Handle) = (mesh_datagram, dropped_datagram);

/// Takes in what waits in a socket, a few batches at most; each batch leaves before the next is looked at.
fn datagrams_in(
    plane: &mut DataPlane,
    socket: &UdpSocket,
    buffers: &mut ReceiveBuffers,
    guard: &Guard,
    output: &mut Output<'_>,
    (handle, refuse): (Handle, Handle),
) -> io::Result<Had> {
    let mut had = Had::Nothing;
    for _ in 0..BATCHES_MAX {
        let tick = tick();
        let holds = guard.holds(tick.now);
        let received = socket.receive(buffers, &mut |datagram| {
            if holds {
                handle(plane, tick, datagram, output);
            } else {
                refuse(plane, tick, datagram, output);
            }
        });
        output.flush(plane);
        if none_left(received)? {
            return Ok(had);
        }
        had = Had::Datagrams;
        if !buffers.filled() {
            return Ok(had);
        }
    }
    Ok(Had::More)
}

fn client_datagram(plane: &mut DataPlane, tick: Tick, datagram: Datagram<'_>, output: &mut Output<'_>) {
    let local = if output.everywhere { datagram.local } else { None };
    let path = Path { local, ..Path::from(datagram.source) };
    plane.handle_marked_client(tick, path, datagram.ecn, datagram.bytes, output);
}

fn refused_datagram(plane: &mut DataPlane, tick: Tick, datagram: Datagram<'_>, output: &mut Output<'_>) {
    let local = if output.everywhere { datagram.local } else { None };
    let path = Path { local, ..Path::from(datagram.source) };
    plane.refuse_client(tick, path, datagram.bytes, output);
}

fn dropped_datagram(plane: &mut DataPlane, _: Tick, _: Datagram<'_>, _: &mut Output<'_>) {
    plane.counters_mut().drop(DropReason::Guard);
}

fn mesh_datagram(plane: &mut DataPlane, tick: Tick, datagram: Datagram<'_>, output: &mut Output<'_>) {
    plane.handle_mesh(tick, datagram.bytes, output);
}

fn inner_in(
    plane: &mut DataPlane,
    sockets: &Sockets,
    buffers: &mut TunReceiveBuffers,
    guard: &Guard,
    output: &mut Output<'_>,
) -> io::Result<()> {
    let tick = tick();
    let holds = guard.holds(tick.now);
    let received = sockets.tun.receive(buffers, TUN_BUDGET, &mut |frame| {
        let packet = frame.get(HEADROOM..frame.len() - TAILROOM).unwrap_or_default();
        if holds {
            plane.handle_inner(tick, packet, output);
        } else {
            plane.counters_mut().drop(DropReason::Guard);
        }
    });
    output.flush(plane);
    none_left(received)?;
    Ok(())
}

/// Says whether nothing was received. Errors of single datagrams (ICMP answers on an unconnected socket) are nothing.
fn none_left(received: io::Result<usize>) -> io::Result<bool> {
    match received {
        Ok(0) => Ok(true),
        Ok(_) => Ok(false),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
            ) =>
        {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}
