//! What goes wrong, and how the cluster comes back.

use std::time::Duration;

use super::client::{SENDS_EVERY, UNANSWERED};
use super::cluster::{Cluster, Event};
use super::{MILLISECOND, Nanos, SECOND};
use crate::lab::histogram::Histogram;

/// From the death of a worker until its supervisor has given the lease back.
const REAPED: Nanos = 10 * MILLISECOND;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A gateway's worker dies: its supervisor gives the lease back.
    WorkerKilled,
    /// A gateway's machine is gone: only the end of its lease frees its sessions.
    MachineLost,
    /// A gateway that devices reach is cut off from control: its guard stops it.
    CutFromControl,
    /// A gateway is drained: every one of its sessions is asked to leave.
    Drained,
    /// A tenth of all gateways' machines are gone at the same moment.
    TenthLost,
}

impl Fault {
    /// All of them, in the order of a run.
    pub const ALL: [Self; 5] =
        [Self::WorkerKilled, Self::MachineLost, Self::CutFromControl, Self::Drained, Self::TenthLost];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled => "worker killed",
            Self::MachineLost => "machine lost",
            Self::CutFromControl => "cut off from control",
            Self::Drained => "drained",
            Self::TenthLost => "a tenth of all machines lost",
        }
    }
}

/// How it came back.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// From what.
    pub fault: Fault,
    /// From the fault to the acceptance, of each session.
    pub times: Histogram,
    /// Keys written per second while it did.
    pub writes_per_second: f64,
    /// Gateways that stopped forwarding because no renewal came back in time, beside those that were meant to.
    pub lapses: u64,
}

impl Cluster {
    /// Lets `fault` happen and runs until everybody is back, for ten minutes at most; puts things right again.
    ///
    /// # Panics
    /// When a session has two owners, or is not back.
    pub fn suffer(&mut self, fault: Fault) -> Recovered {
        let from = self.now;
        let victims = match fault {
            Fault::TenthLost => (self.gateways.len() / 10).max(1),
            Fault::WorkerKilled | Fault::MachineLost | Fault::CutFromControl | Fault::Drained => 1,
        };
        let first = self.rng.below(self.gateways.len() as u64) as usize;
        let victims: Vec<usize> = (0..victims).map(|i| (first + i) % self.gateways.len()).collect();
        self.begin_measuring();
        let mut silent = 0u64;
        for victim in &victims {
            silent += self.strike(*victim, fault);
        }
        let lapses = self.totals.lapses;
        let writes = self.writes();
        self.run_until_calm(from + 600 * SECOND);
        let times = self.measured.clone();
        assert!(times.count() >= silent, "sessions that are not back from {}", fault.name());
        let seconds = (times.max().as_secs_f64()).max(0.001);
        let recovered = Recovered {
            fault,
            times,
            writes_per_second: (self.writes() - writes) as f64 / seconds,
            lapses: self.totals.lapses - lapses,
        };
        for victim in victims {
            self.start_again(victim);
        }
        self.run_until(self.now + 5 * SECOND);
        recovered
    }

    /// What `make bench-control` measures: the claims of every session of a killed worker are at the other gateways at
    /// once. How long until the last is accepted.
    pub fn claims_at_once(&mut self, victim: usize) -> Nanos {
        let from = self.now;
        self.begin_measuring();
        self.gateways[victim].is_alive = false;
        let run = self.gateways[victim].owner.incarnation;
        self.at(from, Event::KeyGone { gateway: victim, run });
        let others: Vec<usize> = (0..self.gateways.len()).filter(|gateway| *gateway != victim).collect();
        for session in 0..self.clients.len() {
            if self.clients[session].gateway == Some(victim) && self.want(session) {
                let call = self.claim(session, others[session % others.len()]);
                self.at(from, Event::Confirmed { call });
            }
        }
        self.run_until_calm(from + 600 * SECOND);
        self.now - from
    }

    /// One gateway fails; returns how many sessions that interrupts.
    fn strike(&mut self, victim: usize, fault: Fault) -> u64 {
        let now = self.now;
        // When its devices' packets go nowhere any more, and whether they are told.
        let (from, noticed_by) = match fault {
            Fault::WorkerKilled => {
                self.gateways[victim].is_alive = false;
                let run = self.gateways[victim].owner.incarnation;
                self.at(now + REAPED, Event::KeyGone { gateway: victim, run });
                (now, 0)
            }
            Fault::MachineLost | Fault::TenthLost => {
                self.gateways[victim].is_alive = false;
                (now, UNANSWERED)
            }
            Fault::CutFromControl => {
                self.gateways[victim].is_cut_off = true;
                (self.gateways[victim].authority.deadline.max(now), UNANSWERED)
            }
            Fault::Drained => {
                self.gateways[victim].is_draining = true;
                (now, 0)
            }
        };
        let mut interrupted = 0;
        for session in 0..self.clients.len() {
            if self.clients[session].gateway != Some(victim) || !self.want(session) {
                continue;
            }
            interrupted += 1;
            let silence = if fault == Fault::Drained { 0 } else { self.rng.below(SENDS_EVERY) + noticed_by };
            self.at(from + silence, Event::Search { session });
        }
        interrupted
    }
}

/// Milliseconds of a virtual time.
pub(super) fn duration(nanos: Nanos) -> Duration {
    Duration::from_nanos(nanos)
}
