//! What a virtual device remembers of its run.

use std::net::SocketAddr;
use std::time::Duration;

use jump_session::client::Timings;
use jump_session::ids::SessionId;
use jump_session::reason::Reason;

/// An accepted attach. Times are on the device's clock, which counts suspended time.
#[derive(Debug, Clone)]
pub struct Attach {
    /// When the device verified the grant.
    pub at: Duration,
    /// When it sent the first attempt of the campaign that led here.
    pub began: Duration,
    /// The epoch.
    pub epoch: u64,
    /// The owner.
    pub node: String,
    /// Its run.
    pub incarnation: u64,
    /// The owner's address.
    pub gateway: SocketAddr,
    /// The path in use.
    pub path: u32,
    /// Why the device attached.
    pub reason: Reason,
    /// True for the first one.
    pub born: bool,
    /// The parts of the time it took.
    pub timings: Timings,
}

/// A time without echoes longer than the fleet's threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last echo before it, or the end of the device's own pause.
    pub from: Duration,
    /// The first one after it.
    pub to: Duration,
}

impl Gap {
    /// How long.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

/// Everything that one device saw.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Its number.
    pub device: u32,
    /// Its group.
    pub group: usize,
    /// Its session, once born.
    pub session: Option<SessionId>,
    /// When it started.
    pub started: Option<Duration>,
    /// When it was attached first.
    pub born: Option<Duration>,
    /// Attempts sent: when, and their place in the device's order.
    pub attempts: Vec<(Duration, u64)>,
    /// Accepted attaches.
    pub attaches: Vec<Attach>,
    /// Rejections that were not the end.
    pub rejections: Vec<(Duration, Reason)>,
    /// The end of the session.
    pub terminated: Option<(Duration, Reason)>,
    /// True when the inner address changed, which must never happen.
    pub address_changed: bool,
    /// Probes sent.
    pub sent: u64,
    /// Probes that could not be sent because no gateway would take them.
    pub held: u64,
    /// Echoes, each probe counted once.
    pub answered: u64,
    /// Echoes of a probe that was answered before.
    pub duplicates: u64,
    /// Echoes of probes so old that it is not known whether they were answered before.
    pub too_late: u64,
    /// The last echo.
    pub last_echo: Option<Duration>,
    /// At the end: when its owner was last heard, by whatever record; `None` without an owner.
    pub last_heard: Option<Duration>,
    /// At the end: when the first probe was due that still had no echo.
    pub waiting_since: Option<Duration>,
    /// Long times without echoes.
    pub gaps: Vec<Gap>,
    /// Local ports, each with the path that used it, in the order of use.
    pub ports: Vec<(u16, u32)>,
    /// Paths that became the session's within an epoch, each with that epoch.
    pub moved_paths: Vec<(u32, u64)>,
    /// Probes that rode along with a confirmation, before the path was accepted: serial and path.
    pub rides: Vec<(u64, u32)>,
    /// Times that the address or port it sends from changed without its knowledge.
    pub rebinds: u64,
    /// Grants that did not verify, and replies that the machine refused.
    pub untrusted: u64,
}
