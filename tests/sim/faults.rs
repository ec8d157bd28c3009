//! What goes wrong, and how it is put right.

use jump_session::client::{Client, NetworkChange};

use crate::event::Event;
use crate::random::Random;
use crate::world::{MS, Nanos, SECOND, World};

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The worker dies; its supervisor reaps it.
    WorkerCrash { at: usize },
    /// The machine is gone with everything on it.
    MachineLoss { at: usize },
    /// The worker stands still; its supervisor kills it after a second.
    WorkerPause { at: usize },
    /// Worker and supervisor stand still together.
    MachinePause { at: usize },
    /// The gateway reaches no control replica.
    ControlPartition { at: usize },
    /// The device does not reach the gateway.
    ClientPartition { at: usize },
    /// A control replica dies with the calls it works on.
    ReplicaCrash { replica: usize },
    /// Datagrams are lost, doubled and reordered.
    BadNetwork { loss: u64, duplicates: u64, jitter: Nanos },
    /// The store is slow and its answers get lost.
    BadStore { slow: Nanos, unknown: u64 },
    /// The client process dies and starts again.
    ClientCrash,
    /// The NAT forgets the device's ports.
    Rebind,
    /// The device's network changes.
    NetworkChange,
    /// The client wants another gateway.
    Move,
    /// The operator drains a gateway.
    Drain { at: usize },
}

impl Fault {
    pub(crate) fn any(random: &mut Random, gateways: usize) -> Self {
        let at = random.below(gateways);
        match random.below(15) {
            0 => Self::WorkerCrash { at },
            1 => Self::MachineLoss { at },
            2 => Self::WorkerPause { at },
            3 | 14 => Self::MachinePause { at },
            4 => Self::ControlPartition { at },
            5 => Self::ClientPartition { at },
            6 => Self::ReplicaCrash { replica: random.below(2) },
            7 => {
                let jitter = random.between(0, 60) * MS;
                Self::BadNetwork { loss: random.between(0, 40), duplicates: random.between(0, 30), jitter }
            }
            8 => Self::BadStore { slow: random.between(0, 400) * MS, unknown: random.between(0, 60) },
            9 => Self::ClientCrash,
            10 => Self::Rebind,
            11 => Self::NetworkChange,
            12 => Self::Drain { at },
            _ => Self::Move,
        }
    }

    /// How long it lasts.
    pub(crate) fn lasts(random: &mut Random) -> Nanos {
        match random.below(3) {
            0 => random.between(20, 400) * MS,
            1 => random.between(400, 2_500) * MS,
            _ => random.between(2_500, 7_000) * MS,
        }
    }
}

impl World {
    pub(crate) fn plan_faults(&mut self, end: Nanos) {
        let count = self.random.between(3, 20);
        for _ in 0..count {
            let starts = self.random.between(SECOND, end - self.now - 7 * SECOND);
            let fault = Fault::any(&mut self.random, self.gateways.len());
            let lasts = Fault::lasts(&mut self.random);
            self.push(starts, Event::Fault(fault, lasts));
        }
    }

    /// Half of what hits a gateway hits the one that matters at that moment.
    fn aimed(&mut self, fault: Fault) -> Fault {
        let owner = self.store.sessions.values().next().and_then(|(record, _)| record.owner());
        let place = owner.and_then(|owner| self.gateways.iter().position(|g| g.node == owner.node));
        let Some(owner) = place.filter(|_| self.random.chance(50)) else { return fault };
        match fault {
            Fault::WorkerCrash { .. } => Fault::WorkerCrash { at: owner },
            Fault::MachineLoss { .. } => Fault::MachineLoss { at: owner },
            Fault::WorkerPause { .. } => Fault::WorkerPause { at: owner },
            Fault::MachinePause { .. } => Fault::MachinePause { at: owner },
            Fault::ControlPartition { .. } => Fault::ControlPartition { at: owner },
            Fault::ClientPartition { .. } => Fault::ClientPartition { at: owner },
            Fault::Drain { .. } => Fault::Drain { at: owner },
            Fault::ReplicaCrash { .. }
            | Fault::BadNetwork { .. }
            | Fault::BadStore { .. }
            | Fault::ClientCrash
            | Fault::Rebind
            | Fault::NetworkChange
            | Fault::Move => fault,
        }
    }

    /// The fault begins, and its end is planned.
    pub(crate) fn strike(&mut self, fault: Fault, lasts: Nanos) {
        let fault = self.aimed(fault);
        self.push(lasts, Event::Heal(fault));
        self.note(|_| format!("FAULT {fault:?}"));
        match fault {
            Fault::WorkerCrash { at } => self.crash_worker(at),
            Fault::MachineLoss { at } => {
                self.kill_worker(at);
                self.forget_reaped(at);
                self.gateways[at].is_powered = false;
            }
            Fault::WorkerPause { at } => {
                self.pause(at);
                // The supervisor notices the missing heartbeat and kills it, unless it has gone on by then.
                self.push(SECOND, Event::Heal(Fault::WorkerPause { at }));
            }
            Fault::MachinePause { at } => self.pause(at),
            Fault::ControlPartition { at } => self.gateways[at].is_cut_from_control = true,
            Fault::ClientPartition { at } => self.gateways[at].is_cut_from_clients = true,
            Fault::ReplicaCrash { replica } => {
                self.replicas[replica].life += 1;
                self.replicas[replica].is_down = true;
                for at in 0..self.gateways.len() {
                    let gateway = &mut self.gateways[at];
                    if gateway.replica == replica && gateway.run.is_some() {
                        gateway.is_stream_broken = true;
                        let boot = gateway.boot;
                        self.push(100 * MS, Event::OpenStream { at, boot });
                    }
                }
            }
            Fault::BadNetwork { loss, duplicates, jitter } => {
                self.weather.loss = loss;
                self.weather.duplicates = duplicates;
                self.weather.jitter = jitter;
            }
            Fault::BadStore { slow, unknown } => {
                self.weather.slow_store = slow;
                self.weather.unknown_outcomes = unknown;
            }
            Fault::ClientCrash => {
                if self.device.is_durable() {
                    self.device.kill();
                    self.push(200 * MS, Event::DeviceStarts);
                }
            }
            Fault::Rebind => self.device.rebind(),
            Fault::NetworkChange => {
                self.device.rebind();
                self.with_client(|client: &mut Client, now| {
                    client.handle_network_change(now, NetworkChange::Changed);
                });
            }
            Fault::Move => self.client_moves(),
            Fault::Drain { at } => self.store.draining = Some(self.gateways[at].node.clone()),
        }
    }

    pub(crate) fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::MachineLoss { at } => {
                if !self.gateways[at].is_powered {
                    self.gateways[at].is_powered = true;
                    self.boot(at);
                }
            }
            Fault::WorkerPause { at } => {
                if self.gateways[at].is_paused && self.random.chance(70) {
                    self.crash_worker(at);
                } else {
                    self.resume(at);
                }
            }
            Fault::MachinePause { at } => self.resume(at),
            Fault::ControlPartition { at } => self.gateways[at].is_cut_from_control = false,
            Fault::ClientPartition { at } => self.gateways[at].is_cut_from_clients = false,
            Fault::ReplicaCrash { replica } => self.replicas[replica].is_down = false,
            Fault::BadNetwork { .. } => {
                self.weather.loss = 0;
                self.weather.duplicates = 0;
                self.weather.jitter = 0;
            }
            Fault::BadStore { .. } => {
                self.weather.slow_store = 0;
                self.weather.unknown_outcomes = 0;
            }
            Fault::Drain { .. } => self.store.draining = None,
            Fault::WorkerCrash { .. }
            | Fault::ClientCrash
            | Fault::Rebind
            | Fault::NetworkChange
            | Fault::Move => {}
        }
    }

    fn crash_worker(&mut self, at: usize) {
        if !self.gateways[at].is_powered {
            return;
        }
        self.kill_worker(at);
        let delay = self.random.between(1, 15) * MS;
        let boot = self.gateways[at].boot;
        self.push(delay, Event::Reap { at, boot });
    }

    fn pause(&mut self, at: usize) {
        if self.gateways[at].is_powered {
            self.gateways[at].is_paused = true;
        }
    }

    /// What came meanwhile is worked off, in the order in which it came.
    fn resume(&mut self, at: usize) {
        self.gateways[at].is_paused = false;
        for event in std::mem::take(&mut self.gateways[at].backlog) {
            self.push(0, event);
        }
    }
}
