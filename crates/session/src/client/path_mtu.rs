//! Packetization-layer path MTU discovery (RFC 8899) over the session's own records.
//!
//! ```text
//!              answered                 answered, or all between tried
//! Confirming ───────────▶ Searching ─────────────────────────▶ Confirming ──▶ Complete
//!   │  ▲  │                                                                   │   │
//!   │  │  │ not answered at the floor                   time to try more      │   │ checked, not answered:
//!   │  │  └────────────▶ Unconfirmed                    Raising ◀─────────────┘   │ back to the floor
//!   │  └──── not answered: to the floor ──────────────────────────────────────────┘
//!   └ answered briefly ▶ Off
//! ```
//!
//! A probe is a control record as long as that of an inner packet of the probed size, and its answer is as long, so both
//! directions are measured in inner packets and no header of the outer network has to be known. Only an answer raises
//! the MTU, so nobody outside can. What is lost counts only while the path brings other records, so a path that is silent
//! or gone is the silence detector's matter, not this one's.

use std::time::Duration;

use crate::frame::{MTU_MAX, MTU_PROBE_LEN_MIN};

/// The inner MTU that every path is taken to carry, and that a black hole is answered with.
pub const BASE_MTU: u16 = 1280;

/// Discovers how large inner packets may be on the path in use.
#[derive(Debug, Clone)]
pub(crate) struct PathMtu {
    mtu: u16,
    /// What the attach gave; a gateway that takes no part gets no more.
    given: u16,
    floor: u16,
    /// The most that this side wants, whatever the path carries.
    limit: u16,
    /// The most that the transport takes.
    transport_max: u16,
    /// The most that both sides and the transport take.
    ceiling: u16,
    phase: Phase,
    /// When the phase has something to send, unless a probe is out.
    due: Duration,
    probe: Option<Probe>,
    probe_next: u64,
    /// When `mtu` was last proved.
    confirmed_at: Duration,
    /// When a packet above the floor last went or came.
    large_at: Option<Duration>,
    raise_at: Duration,
    raise_wait: Duration,
}

/// Where the discovery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The present size is being proved, on a new path or after doubts; then sizes up to this bound are searched.
    Confirming {
        /// Smallest size that is known not to pass; `None` when nothing is left to search.
        above: Option<u16>,
    },
    /// The present size passes; what lies between it and this bound is searched.
    Searching {
        /// Smallest size that is known not to pass.
        above: u16,
    },
    /// Found. Checked while large packets flow.
    Complete,
    /// Whether the path carries more by now is being asked.
    Raising,
    /// Not even the floor passed. It is used all the same, and asked again.
    Unconfirmed,
    /// The gateway does not answer in kind: the size is what it was given as.
    Off,
}

impl Phase {
    /// The stable name, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Confirming { .. } => "confirming",
            Self::Searching { .. } => "searching",
            Self::Complete => "complete",
            Self::Raising => "raising",
            Self::Unconfirmed => "unconfirmed",
            Self::Off => "off",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    id: u64,
    size: u16,
    sent_at: Duration,
    due: Duration,
    losses: u8,
}

/// A probe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Send {
    pub(crate) id: u64,
    /// Length of the frame, equal to the inner packet that it stands for.
    pub(crate) size: u16,
    /// The inner MTU in use, for the gateway.
    pub(crate) mtu: u16,
}

/// What the discovery needs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Step {
    pub(crate) send: Option<Send>,
    /// A probe was lost: ask by something small whether the path is alive.
    pub(crate) doubts: bool,
    /// The probes that were lost for good in this step.
    pub(crate) lost: u8,
}

impl PathMtu {
    /// Probes of one size that may be lost before it counts as too large (`MAX_PROBES`).
    const LOSSES_MAX: u8 = 3;
    /// The same for a size that has passed before: a lossy path must not look like a black hole.
    const CHECK_LOSSES_MAX: u8 = 4;
    /// A search ends when no more than this is left, in bytes.
    const GRAIN: u16 = 4;
    /// A path that starts at the floor is searched only after this time: recovery comes first.
    const START_AFTER: Duration = Duration::from_secs(1);
    /// While large packets flow, and for a while after, their size is checked this often.
    const CHECK_EVERY: Duration = Duration::from_secs(1);
    const LARGE_MEMORY: Duration = Duration::from_secs(5);
    /// Doubts are followed up no sooner than this after the last proof.
    const DOUBT_AFTER: Duration = Duration::from_millis(200);
    /// More is tried after this long, doubling up to the RFC's `PMTU_RAISE_TIMER`.
    const RAISE_AFTER: Duration = Duration::from_secs(60);
    const RAISE_AFTER_MAX: Duration = Duration::from_secs(600);
    /// Probe ids have this bit, pings do not.
    const ID_BIT: u64 = 1 << 63;

    /// Begins on a new path with what the attach gave, or with `found`, what an earlier path carried, where that is more.
    /// `limit` is the most that this side wants, `transport_max` the most that the transport takes.
    pub(crate) fn new(now: Duration, given: u16, found: Option<u16>, limit: u16, transport_max: u16) -> Self {
        let given = given.min(transport_max).min(limit);
        let start = found.map_or(given, |found| found.min(transport_max).max(given));
        let mut new = Self {
            mtu: start,
            given,
            floor: given.min(BASE_MTU),
            limit: limit.min(MTU_MAX),
            transport_max,
            ceiling: start,
            phase: Phase::Off,
            due: Duration::MAX,
            probe: None,
            probe_next: Self::ID_BIT,
            confirmed_at: now,
            large_at: None,
            raise_at: Duration::MAX,
            raise_wait: Self::RAISE_AFTER,
        };
        if start <= MTU_MAX {
            new.begin(now);
        }
        new
    }

    /// The largest inner packet to send now.
    #[inline]
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// An inner packet of `len` bytes went or came.
    #[inline]
    pub(crate) fn carried(&mut self, now: Duration, len: usize) {
        if len > usize::from(self.floor) {
            self.large_at = Some(now);
        }
    }

    /// The session goes on over another path. Of the same transport, it is likely to carry as much and is asked at once;
    /// of another (`Some` of the most that it takes), it starts from the floor.
    pub(crate) fn moved(&mut self, now: Duration, other_transport_max: Option<u16>) {
        if self.phase == Phase::Off {
            return;
        }
        if let Some(transport_max) = other_transport_max {
            self.transport_max = transport_max;
            self.mtu = self.floor;
        }
        self.raise_wait = Self::RAISE_AFTER;
        self.begin(now);
    }

    /// On a new path: a size above the floor is proved at once.
    fn begin(&mut self, now: Duration) {
        let wait = if self.mtu > self.floor { Duration::ZERO } else { Self::START_AFTER };
        self.confirm(now + wait, Some(u16::MAX));
    }

    /// Something suggests that large packets may not pass any more.
    pub(crate) fn doubt(&mut self, now: Duration) {
        let idle = self.phase == Phase::Complete && self.mtu > self.floor;
        if idle && now >= self.confirmed_at + Self::DOUBT_AFTER {
            self.confirm(now, None);
        }
    }

    /// Probe `id` was answered by `len` bytes, and the gateway takes inner packets of at most `told` bytes.
    pub(crate) fn answered(&mut self, now: Duration, id: u64, len: u16, told: u16) {
        let Some(probe) = self.probe.take_if(|probe| probe.id == id) else { return };
        if told < self.floor || (len < probe.size && told >= probe.size) {
            return self.turn_off();
        }
        self.ceiling = self.limit.min(told).min(self.transport_max).max(self.floor);
        if len < probe.size {
            // The gateway takes less than was probed.
            self.mtu = self.mtu.min(self.ceiling);
            return self.confirm(now, Some(u16::MAX));
        }
        if probe.size >= self.mtu {
            self.confirmed_at = now;
        }
        match self.phase {
            Phase::Confirming { above: Some(above) } => self.search(now, above),
            Phase::Confirming { above: None } => self.phase = Phase::Complete,
            Phase::Searching { above } => {
                self.mtu = self.mtu.max(probe.size);
                self.search(now, above);
            }
            Phase::Raising => {
                self.mtu = self.mtu.max(probe.size);
                self.raise_wait = Self::RAISE_AFTER;
                self.search(now, u16::MAX);
            }
            Phase::Complete | Phase::Unconfirmed | Phase::Off => {}
        }
    }

    /// A gateway that does not know this discovery answered probe `id`.
    pub(crate) fn answered_briefly(&mut self, id: u64) {
        if self.probe.is_some_and(|probe| probe.id == id) {
            self.turn_off();
        }
    }

    fn turn_off(&mut self) {
        self.mtu = self.given;
        self.probe = None;
        self.phase = Phase::Off;
        self.due = Duration::MAX;
    }

    /// Does what is due. A probe is waited for as long as `wait`; `heard` is when the path last brought a record.
    pub(crate) fn poll(&mut self, now: Duration, wait: Duration, heard: Duration) -> Step {
        let mut step = Step::default();
        let losses_max = self.losses_max();
        if let Some(probe) = &mut self.probe {
            if now < probe.due {
                return step;
            }
            let alive = heard > probe.sent_at;
            probe.losses += u8::from(alive);
            step.lost = u8::from(alive);
            step.doubts = true;
            if probe.losses < losses_max {
                step.send = self.send(now, wait);
                return step;
            }
            let size = probe.size;
            self.probe = None;
            self.too_large(now, size);
        }
        if now < self.timeout() {
            return step;
        }
        match self.phase {
            Phase::Complete if self.raises_at() <= now => self.phase = Phase::Raising,
            Phase::Complete => self.phase = Phase::Confirming { above: None },
            Phase::Unconfirmed => self.phase = Phase::Confirming { above: Some(u16::MAX) },
            Phase::Confirming { .. } | Phase::Searching { .. } | Phase::Raising | Phase::Off => {}
        }
        let size = match self.phase {
            Phase::Searching { above } => self.candidate(above),
            Phase::Raising => (self.mtu + Self::GRAIN).min(self.ceiling),
            Phase::Confirming { .. } | Phase::Complete | Phase::Unconfirmed | Phase::Off => self.mtu,
        };
        self.probe_next += 1;
        self.probe = Some(Probe {
            id: self.probe_next,
            size: size.max(MTU_PROBE_LEN_MIN),
            sent_at: now,
            due: now,
            losses: 0,
        });
        step.send = self.send(now, wait);
        step
    }

    /// When [`Self::poll`] has something to do next.
    pub(crate) fn timeout(&self) -> Duration {
        match (&self.probe, self.phase) {
            (Some(probe), _) => probe.due,
            (None, Phase::Complete) => self.raises_at().min(self.checks_at()),
            (
                None,
                Phase::Confirming { .. }
                | Phase::Searching { .. }
                | Phase::Raising
                | Phase::Unconfirmed
                | Phase::Off,
            ) => self.due,
        }
    }

    fn raises_at(&self) -> Duration {
        if self.mtu < self.ceiling { self.raise_at } else { Duration::MAX }
    }

    /// When a size above the floor is proved again, because such packets flow or did lately.
    fn checks_at(&self) -> Duration {
        let at = self.confirmed_at + Self::CHECK_EVERY;
        let flows = self.large_at.is_some_and(|large| at <= large + Self::LARGE_MEMORY);
        if flows && self.mtu > self.floor { at } else { Duration::MAX }
    }

    fn losses_max(&self) -> u8 {
        match self.phase {
            Phase::Confirming { .. } => Self::CHECK_LOSSES_MAX,
            Phase::Searching { .. } | Phase::Complete | Phase::Raising | Phase::Unconfirmed | Phase::Off => {
                Self::LOSSES_MAX
            }
        }
    }

    fn send(&mut self, now: Duration, wait: Duration) -> Option<Send> {
        let probe = self.probe.as_mut()?;
        (probe.sent_at, probe.due) = (now, now + wait);
        Some(Send { id: probe.id, size: probe.size, mtu: self.mtu })
    }

    fn confirm(&mut self, at: Duration, above: Option<u16>) {
        self.probe = None;
        self.due = at;
        self.phase = Phase::Confirming { above };
    }

    /// Searches between the present size and `above`; when nothing is left between, proves and tells the present one.
    fn search(&mut self, now: Duration, above: u16) {
        if self.mtu >= self.ceiling || above.saturating_sub(self.mtu) <= Self::GRAIN {
            self.rest(now);
            return self.confirm(now, None);
        }
        self.due = now;
        self.phase = Phase::Searching { above };
    }

    /// The most first, because most paths carry it; then the middle.
    fn candidate(&self, above: u16) -> u16 {
        if above > self.ceiling {
            return self.ceiling;
        }
        let half = (above - self.mtu) / 2;
        self.mtu + (half - half % Self::GRAIN).max(1)
    }

    /// More is tried, or the floor asked again, after a while that grows.
    fn rest(&mut self, now: Duration) {
        self.raise_at = now + self.raise_wait;
        self.raise_wait = (self.raise_wait * 2).min(Self::RAISE_AFTER_MAX);
    }

    /// All probes of `size` were lost, and the path is alive.
    fn too_large(&mut self, now: Duration, size: u16) {
        match self.phase {
            Phase::Searching { .. } => self.search(now, size),
            Phase::Raising => {
                self.phase = Phase::Complete;
                self.rest(now);
            }
            Phase::Confirming { .. } if self.mtu > self.floor => {
                // A black hole. The floor is told to the gateway first.
                self.mtu = self.floor;
                self.confirm(now, Some(size));
            }
            Phase::Confirming { .. } | Phase::Unconfirmed => {
                self.phase = Phase::Unconfirmed;
                self.rest(now);
                self.due = self.raise_at;
            }
            Phase::Complete | Phase::Off => {}
        }
    }
}

#[cfg(test)]
mod tests;
