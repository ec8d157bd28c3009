//! One thread of a fleet: its devices, one epoll set, one queue of times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jump_session::client::{Now, PathId};
use rustix::event::{Timespec, epoll};

use super::device::{Device, now};
use super::{Command, Counts, GROUPS_MAX, Phase, Shared};
use crate::lab::process::NICEST;
use crate::lab::rng::Rng;

/// The lane looks for commands at least this often.
const TURN_MAX: Duration = Duration::from_millis(20);
const EVENTS_MAX: usize = 512;

/// What a device may use of its lane.
pub(super) struct World<'a> {
    pub(super) now: Now,
    pub(super) counts: &'a mut Counts,
    pub(super) via: &'a BTreeMap<SocketAddr, SocketAddr>,
    /// The device's place in its lane.
    place: u32,
    poll: &'a OwnedFd,
    rng: &'a mut Rng,
    phase: &'a mut Phase,
    phase_began: Duration,
}

impl World<'_> {
    pub(super) fn watch(&self, socket: &UdpSocket, path: PathId) -> io::Result<()> {
        let data = epoll::EventData::new_u64(u64::from(self.place) << 32 | u64::from(path.0));
        Ok(epoll::add(self.poll, socket, data, epoll::EventFlags::IN)?)
    }

    pub(super) fn forget(&self, socket: &UdpSocket) {
        // The kernel forgets a closed socket anyway.
        let _ = epoll::delete(self.poll, socket);
    }

    /// A probe that was sent at `sent_at` has come back.
    pub(super) fn answered(&mut self, group: usize, sent_at: Duration) {
        self.counts.answered += 1;
        self.phase.late += u64::from(sent_at < self.phase_began);
        self.phase.round_trips[group.min(GROUPS_MAX - 1)].add(self.now.at.saturating_sub(sent_at));
    }

    /// A random time below `every`.
    pub(super) fn phase_of(&mut self, every: Duration) -> Duration {
        every.mul_f64(self.fraction())
    }

    /// Uniform in `[0, 1)`.
    pub(super) fn fraction(&mut self) -> f64 {
        self.rng.fraction()
    }
}

/// A lane's devices before it runs.
pub(super) struct Lane {
    /// Devices by their place in the lane, each with the time it starts, unless it waits for a command.
    pub(super) devices: Vec<(Device, Option<Duration>)>,
    pub(super) via: BTreeMap<SocketAddr, SocketAddr>,
    pub(super) seed: u64,
    /// Works only when nobody else on the machine wants to.
    pub(super) yields: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) number: usize,
}

struct Running {
    devices: Vec<Device>,
    started: Vec<bool>,
    queue: BinaryHeap<Reverse<(Duration, u32)>>,
    via: BTreeMap<SocketAddr, SocketAddr>,
    poll: OwnedFd,
    rng: Rng,
    /// Not yet published.
    counts: Counts,
    phase: Phase,
    phase_began: Duration,
    shared: Arc<Shared>,
    number: usize,
}

impl Lane {
    /// Runs until told to stop; returns the devices' records.
    pub(super) fn run(self) -> io::Result<Vec<super::record::Record>> {
        if self.yields {
            // Of this thread alone, under Linux.
            rustix::process::setpriority_process(None, NICEST)?;
        }
        let count = self.devices.len();
        let mut running = Running {
            devices: Vec::with_capacity(count),
            started: vec![false; count],
            queue: BinaryHeap::with_capacity(count * 2),
            via: self.via,
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            rng: Rng::new(self.seed),
            counts: Counts::default(),
            phase: Phase::default(),
            phase_began: Duration::ZERO,
            shared: self.shared,
            number: self.number,
        };
        for (place, (mut device, start)) in (0u32..).zip(self.devices) {
            if let Some(start) = start {
                running.queue.push(Reverse((start, place)));
                device.queued = Some(start);
            }
            running.devices.push(device);
        }
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while running.turn(&mut events)? {}
        Ok(running.devices.into_iter().map(Device::into_record).collect())
    }
}

impl Running {
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<bool> {
        let at = super::clock();
        let next = self.queue.peek().map_or(at + TURN_MAX, |Reverse((due, _))| *due);
        let wait = next.saturating_sub(at).min(TURN_MAX);
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        events.clear();
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.iter() {
            let data = event.data.u64();
            let (place, path) = ((data >> 32) as u32, data as u32);
            self.visit(place, |device, world| device.receive(world, PathId(path)));
        }
        let at = super::clock();
        while let Some(Reverse((due, place))) = self.queue.peek().copied() {
            if due > at {
                break;
            }
            self.queue.pop();
            let index = place as usize;
            if self.devices[index].queued == Some(due) {
                self.devices[index].queued = None;
            }
            if std::mem::replace(&mut self.started[index], true) {
                self.visit(place, Device::wake);
            } else {
                self.visit(place, Device::start);
            }
        }
        // Who gives a command and hears of its end sees what came before it.
        self.publish();
        Ok(self.take_commands())
    }

    /// Lets one device act, then queues it for its next time.
    fn visit(&mut self, place: u32, act: impl FnOnce(&mut Device, &mut World<'_>)) {
        let Some(device) = self.devices.get_mut(place as usize) else { return };
        let mut world = World {
            now: now(),
            counts: &mut self.counts,
            via: &self.via,
            place,
            poll: &self.poll,
            rng: &mut self.rng,
            phase: &mut self.phase,
            phase_began: self.phase_began,
        };
        act(device, &mut world);
        if let Some(due) = device.due()
            && device.queued.is_none_or(|queued| due < queued)
        {
            device.queued = Some(due);
            self.queue.push(Reverse((due, place)));
        }
    }

    fn take_commands(&mut self) -> bool {
        let commands = std::mem::take(
            &mut *self.shared.commands[self.number].lock().unwrap_or_else(PoisonError::into_inner),
        );
        for command in commands {
            let at = super::clock();
            match command {
                Command::Stop => return false,
                Command::Phase => {
                    self.phase_began = at;
                    self.shared.finish_phase(&std::mem::take(&mut self.phase));
                }
                Command::Pace { group, every } => {
                    for place in self.places(group) {
                        if self.started[place as usize] {
                            self.visit(place, |device, _| device.set_pace(at, every));
                        } else {
                            self.devices[place as usize].set_pace(at, every);
                        }
                    }
                }
                Command::Rebind { group, share, address_too } => {
                    for place in self.places(group) {
                        if self.started[place as usize] && self.rng.chance(share) {
                            let address = address_too.then(|| address_from(&mut self.rng));
                            self.visit(place, |device, world| device.rebind(world, address));
                        }
                    }
                }
                Command::Move { group, targets } => {
                    self.each(group, |device, world| device.request_move(world, &targets));
                }
                Command::Spread { group, targets, turn } => {
                    self.each(group, |device, world| device.spread(world, &targets, turn));
                }
                Command::Release { group, over } => {
                    let places = self.places(group);
                    let between = over / u32::try_from(places.len()).unwrap_or(u32::MAX).max(1);
                    for (i, place) in (0u32..).zip(places) {
                        let start = at + between * i;
                        if !self.started[place as usize] && self.devices[place as usize].queued.is_none() {
                            self.devices[place as usize].queued = Some(start);
                            self.queue.push(Reverse((start, place)));
                        }
                    }
                }
            }
        }
        true
    }

    fn places(&self, group: usize) -> Vec<u32> {
        let places = (0u32..).zip(&self.devices).filter(|(_, device)| device.record.group == group);
        places.map(|(place, _)| place).collect()
    }

    fn each(&mut self, group: usize, mut act: impl FnMut(&mut Device, &mut World<'_>)) {
        for place in self.places(group) {
            if self.started[place as usize] {
                self.visit(place, |device, world| act(device, world));
            }
        }
    }

    fn publish(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        self.phase.counts.add(&counts);
        let add = |counter: &std::sync::atomic::AtomicU64, more: u64| {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        };
        let live = &self.shared.live;
        add(&live.sent, counts.sent);
        add(&live.answered, counts.answered);
        add(&live.born, counts.born);
        add(&live.reattached, counts.reattached);
        add(&live.rejected, counts.rejected);
        add(&live.attempts, counts.attempts);
        add(&live.terminated, counts.terminated);
    }
}

/// An address of the devices' own network.
fn address_from(rng: &mut Rng) -> Ipv4Addr {
    super::device_address(u32::try_from(rng.below(u64::from(super::ADDRESSES))).unwrap_or(0))
}
