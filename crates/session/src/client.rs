//! The client session machine: one device's session, from birth to its end, over any number of gateways and paths.
//!
//! The caller owns sockets, the TUN device, the clock and the disk; the machine decides. After every input the caller
//! drains [`Client::poll_event`] and then [`Client::poll_transmit`] to `None`, and calls [`Client::handle_timeout`] when
//! [`Client::poll_timeout`] is due. Inner packets take the fast path, [`Client::seal`] and [`Client::handle_datagram`]:
//! in place, without allocation.
//!
//! - An attempt's sequence number is on disk before the attempt is sent ([`Event::Persist`]).
//! - Two paths can exist at once: the old one forwards until the new owner is accepted.
//! - Only a verified grant makes a gateway the owner; only a larger epoch replaces an owner.
//!
//! The states and their table are in [`state`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::handshake::Suite;
use jump_crypto::keys::{ClusterPublic, DeviceSecret, GrantVerifier};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD};

use crate::frame::{FRAME_LEN_MAX, Frame, MTU_MAX};
use crate::ids::{AttemptId, Epoch, ReceiverIndex, SessionId};
use crate::path::Transport;
use crate::reason::Reason;

mod campaign;
mod detection;
mod event;
mod inbound;
mod keys;
mod link;
mod outcome;
mod path_mtu;
mod rejection;
mod rekey;
mod sequence;
pub mod state;
#[cfg(test)]
mod tests;
mod ways;

pub use detection::{Patience, RoundTrip};
pub use event::{
    Attached, Drops, Event, Health, Meter, NetworkChange, Now, PathError, PathHealth, PathId, Status, Stored,
    Ticket, Timings, Transmit, TriedWay,
};
pub use path_mtu::{BASE_MTU, Phase as MtuPhase};
pub use state::{State, Trigger};

use campaign::Campaign;
use link::{Drain, Link};
use sequence::Sequence;
use ways::{Ways, address_of};

/// How many control datagrams may wait for [`Client::poll_transmit`]; more are left out and counted.
const TRANSMITS_MAX: usize = 64;

/// Who the device is, whom it trusts and how patient it is.
pub struct ClientConfig {
    /// The device's key.
    pub device: DeviceSecret,
    /// Cluster handshake keys, current first. At least one.
    pub cluster_keys: Vec<ClusterPublic>,
    /// Keys that sign grants and node certificates.
    pub verifier: GrantVerifier,
    /// The serial of the key set that these keys are of; 0 when they came with the enrolment.
    pub key_set: u64,
    /// Gateways known from enrolment, best first.
    pub gateways: Vec<SocketAddr>,
    /// Handshake and record suite.
    pub suite: Suite,
    /// Transports that may be used, best first. At least one.
    pub transports: Vec<Transport>,
    /// Times and bounds.
    pub tuning: Tuning,
}

/// Times and bounds of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// How soon silence is noticed.
    pub patience: Patience,
    /// The next gateway is tried after this long without a reply, or after the longest that a reply is expected to take
    /// (RFC 6298), if that is longer. Doubles with each unanswered try but the first two.
    pub reply_timeout: Duration,
    /// The doubling stops here.
    pub reply_timeout_max: Duration,
    /// A confirmed attach is given up after this long without a word of it. Longer than control waits for a live owner.
    pub confirm_timeout: Duration,
    /// How long the keys of a left path still receive.
    pub drain_window: Duration,
    /// Keys are replaced after this long.
    pub rekey_after: Duration,
    /// Attempts in one search for a gateway before a session is given up.
    pub attempts_max: u32,
    /// How long a session without any owner's word is kept when no owner has told its policy.
    pub recovery_window: Duration,
    /// The largest inner packet that discovery may find, in bytes; at most what the gateways take.
    pub mtu_max: u16,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            patience: Patience::default(),
            reply_timeout: Duration::from_millis(100),
            reply_timeout_max: Duration::from_secs(1),
            confirm_timeout: Duration::from_millis(2500),
            drain_window: Duration::from_secs(2),
            rekey_after: Duration::from_secs(120),
            attempts_max: 1000,
            recovery_window: Duration::from_secs(120),
            mtu_max: MTU_MAX,
        }
    }
}

/// A sealed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Where to send it.
    pub path: PathId,
    /// Its length: the record is at the start of the caller's buffer.
    pub len: usize,
}

/// An inner packet cannot be sent now: leave it where it waits, and ask again after the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no gateway to send to")]
pub struct Held;

/// The client session machine.
pub struct Client {
    config: ClientConfig,
    entropy: Box<dyn Entropy>,
    state: State,
    state_reason: Reason,
    state_since: Duration,
    session: Option<SessionId>,
    epoch: Epoch,
    binding: u64,
    inner: Vec<IpAddr>,
    roster: Vec<SocketAddr>,
    sequence: Sequence,
    ticket: Ticket,
    /// The attempt id of the birth, kept over all its tries: control finds one session under it, never two.
    birth_attempt: Option<AttemptId>,
    link: Option<Link>,
    drains: VecDeque<Drain>,
    campaign: Option<Campaign>,
    ways: Ways,
    /// The next `Bound` answers a change of path that this side made.
    binding_expected: bool,
    closing: Option<Closing>,
    recovery: Duration,
    /// What replies to first messages took, and when the last one came.
    replies: Option<(Duration, RoundTrip)>,
    /// When an owner was last heard, or the machine started.
    contact: Duration,
    path_next: u32,
    attaches: u64,
    drops: Drops,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

/// The client has asked the owner to end the session and repeats itself until the owner agrees or does not answer.
struct Closing {
    reason: Reason,
    sends: u8,
    due: Duration,
}

impl Client {
    const CLOSES_MAX: u8 = 3;
    const CLOSE_INTERVAL: Duration = Duration::from_millis(100);

    /// A machine that goes on with `stored`, or gives birth to a session when it names none.
    pub fn new(config: ClientConfig, stored: Stored, entropy: Box<dyn Entropy>) -> Self {
        let recovery = config.tuning.recovery_window;
        let client = Self {
            config,
            entropy,
            state: if stored.session.is_some() { State::Reattaching } else { State::Birth },
            state_reason: if stored.session.is_some() { Reason::ClientRestarted } else { Reason::Birth },
            state_since: Duration::ZERO,
            session: stored.session,
            epoch: if stored.session.is_some() { stored.epoch } else { Epoch(0) },
            binding: 0,
            inner: if stored.session.is_some() { stored.inner } else { Vec::new() },
            roster: stored.roster,
            ways: Ways::new(stored.doors),
            binding_expected: false,
            sequence: Sequence::new(stored.attach_seq, stored.session.is_none()),
            ticket: Ticket(0),
            birth_attempt: None,
            link: None,
            drains: VecDeque::with_capacity(Self::DRAINS_MAX),
            campaign: None,
            closing: None,
            recovery,
            replies: None,
            contact: Duration::ZERO,
            path_next: 1,
            attaches: 0,
            drops: Drops::default(),
            transmits: VecDeque::with_capacity(TRANSMITS_MAX),
            events: VecDeque::new(),
        };
        client.prepare_keys();
        client
    }

    /// Begins the search for a gateway. Call once.
    pub fn start(&mut self, now: Now) {
        self.contact = now.at;
        self.state_since = now.at;
        self.begin_campaign(now.at, self.state_reason, &[], now.at);
        self.drive(now);
    }

    /// `ticket`'s state is on disk.
    pub fn persisted(&mut self, now: Now, ticket: Ticket, stored: &Stored) {
        if ticket <= self.ticket {
            self.sequence.persisted(stored.attach_seq);
            if let Some(campaign) = &mut self.campaign {
                campaign.disk_is_ready();
            }
        }
        self.drive(now);
    }

    /// Lets the time pass.
    pub fn handle_timeout(&mut self, now: Now) {
        self.drive(now);
    }

    /// A path's socket reported an error.
    pub fn handle_path_error(&mut self, now: Now, path: PathId, error: PathError) {
        if self.link.as_ref().is_some_and(|link| link.path == path) {
            let reason = match error {
                PathError::Refused => Reason::PathRefused,
                PathError::Unreachable => Reason::NetworkChanged,
            };
            self.lose_link(now.at, reason);
        } else if self.probe_failed(path) {
            // Another way that does not exist; the one in use goes on.
        } else if self.campaign.as_ref().is_some_and(|campaign| campaign.confirms_on(path)) {
            self.fail_confirmation(now.at, self.state_reason);
        } else if let Some(campaign) = &mut self.campaign
            && campaign.path_failed(now.at, path)
        {
            self.events.push_back(Event::ClosePath { path });
        }
        self.drive(now);
    }

    /// The device's own network changed.
    pub fn handle_network_change(&mut self, now: Now, change: NetworkChange) {
        if let Some(campaign) = &mut self.campaign {
            campaign.try_now(now.at);
        }
        if self.link.as_ref().is_some_and(|link| link.usable) {
            self.rebind(now.at, change);
        }
        self.drive(now);
    }

    /// Leaves a working gateway for another; `targets` go before the roster.
    pub fn request_move(&mut self, now: Now, reason: Reason, targets: &[SocketAddr]) {
        self.leave_link(now.at, reason, targets);
        self.drive(now);
    }

    /// Ends the session: the owner is told, and [`Event::Terminated`] follows at once or after its word.
    pub fn close(&mut self, now: Now, reason: Reason) {
        if self.state == State::Terminated || self.closing.is_some() {
            return;
        }
        if self.link.as_ref().is_some_and(|link| link.usable) {
            self.closing = Some(Closing { reason, sends: 0, due: now.at });
        } else {
            self.terminate(now.at, reason);
        }
        self.drive(now);
    }

    /// Seals the inner packet at `frame[HEADER_LEN..HEADER_LEN + packet_len]` in place.
    ///
    /// # Errors
    /// [`Held`] while no gateway can take it.
    ///
    /// # Panics
    /// When `frame` is shorter than `packet_len + OVERHEAD`.
    pub fn seal(&mut self, now: Now, frame: &mut [u8], packet_len: usize) -> Result<Sealed, Held> {
        if let Some(link) = self.link.as_mut().filter(|link| link.usable) {
            link.mtu.carried(now.at, packet_len);
            return match link.seal(now.at, Content::Packet, frame, packet_len) {
                Ok(len) => Ok(Sealed { path: link.path, len }),
                Err(_) => {
                    self.lose_link(now.at, Reason::KeyLimitReached);
                    Err(Held)
                }
            };
        }
        let confirming = self.campaign.as_mut().and_then(Campaign::rides).ok_or(Held)?;
        let len = confirming.seal(Content::Packet, frame, packet_len).map_err(|_| Held)?;
        confirming.rides_left -= 1;
        Ok(Sealed { path: confirming.path, len })
    }

    /// How many packets [`Self::seal`] would take now; 0 while they must wait.
    pub fn packet_room(&self) -> usize {
        if self.link.as_ref().is_some_and(|link| link.usable) {
            return usize::MAX;
        }
        self.campaign.as_ref().map_or(0, Campaign::room_to_ride)
    }

    /// The largest inner packet that the path to the owner carries; `None` without an owner.
    #[inline]
    pub fn mtu(&self) -> Option<u16> {
        self.link.as_ref().map(|link| link.mtu.mtu())
    }

    /// The device's own network says that a datagram was too long for `path`. Anybody may have made it say so.
    pub fn handle_too_long(&mut self, now: Now, path: PathId) {
        if let Some(link) = self.link.as_mut().filter(|link| link.path == path) {
            link.mtu.doubt(now.at);
        }
        self.drive(now);
    }

    /// The next control datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due; `None` after the end.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.state == State::Terminated {
            return None;
        }
        let link = self.link.as_ref().map(Link::timeout);
        let steady = self.steady_at();
        let drain = self.drains.front().map(|drain| drain.until);
        let campaign = self.campaign.as_ref().and_then(Campaign::timeout);
        let closing = self.closing.as_ref().map(|closing| closing.due);
        let recovery = self.gives_up_at();
        let ways = self.ways_timeout();
        [link, steady, drain, campaign, closing, recovery, ways].into_iter().flatten().min()
    }

    /// A snapshot.
    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            reason: self.state_reason,
            session: self.session,
            epoch: self.epoch,
            binding: self.binding,
            owner: self.link.as_ref().map(|link| (link.node.node.clone(), link.gateway)),
            suite: self.link.as_ref().map(|link| link.keys.suite),
            inner: self.inner.clone(),
            transport: self.link.as_ref().map(|link| link.transport),
            path_changes: self.ways.switches,
            meter: self.link.as_ref().map_or_else(Meter::default, |link| link.meter),
            mtu: self.link.as_ref().map(|link| (link.mtu.mtu(), link.mtu.phase())),
            tried: self
                .ways
                .probes
                .iter()
                .map(|probe| TriedWay { transport: probe.transport, answers: probe.answers, rtt: probe.rtt })
                .collect(),
            rtt: self.link.as_ref().and_then(|link| link.detector.rtt()),
            last_received: self.link.as_ref().map(|link| link.detector.last_received()),
            roster: self.roster.clone(),
            attaches: self.attaches,
            drops: self.drops,
        }
    }

    /// How the session and its path are: of [`Self::status`], what costs nothing to tell.
    pub fn health(&self) -> Health {
        Health {
            state: self.state,
            path: self.link.as_ref().map(|link| PathHealth {
                transport: link.transport,
                rtt: link.detector.rtt(),
                loss_up: link.meter.loss_up,
                loss_down: link.meter.loss_down,
            }),
            drops: self.drops,
        }
    }

    /// What the process must remember when it ends now.
    pub fn stored(&self) -> Stored {
        Stored {
            session: self.session.filter(|_| self.state != State::Terminated),
            epoch: self.epoch,
            attach_seq: self.sequence.reserved(),
            inner: self.inner.clone(),
            roster: self.roster.clone(),
            doors: self.ways.doors.clone(),
        }
    }

    /// Everything that is due.
    fn drive(&mut self, now: Now) {
        if self.state == State::Terminated {
            return;
        }
        while self.drains.front().is_some_and(|drain| drain.until <= now.at) {
            self.end_drain();
        }
        self.drive_link(now);
        self.drive_ways(now.at);
        self.drive_campaign(now);
        self.drive_closing(now.at);
        if self.gives_up_at().is_some_and(|at| at <= now.at) {
            self.terminate(now.at, Reason::RecoveryWindowExceeded);
        }
        if self.state != State::Terminated && self.sequence.wanted().is_some() {
            self.persist();
        }
    }

    fn drive_closing(&mut self, now: Duration) {
        let Some(closing) = self.closing.as_mut().filter(|closing| closing.due <= now) else { return };
        let (reason, last) = (closing.reason, closing.sends == Self::CLOSES_MAX);
        closing.sends += 1;
        closing.due = now + Self::CLOSE_INTERVAL;
        if last {
            self.terminate(now, reason);
        } else {
            self.send_on_link(now, &Frame::Close { reason });
        }
    }

    /// When a session that no gateway serves is given up: the recovery window after an owner was last heard.
    fn gives_up_at(&self) -> Option<Duration> {
        let served = self.link.as_ref().is_some_and(|link| link.usable);
        (self.session.is_some() && !served).then(|| self.contact + self.recovery)
    }

    fn persist(&mut self) {
        self.ticket.0 += 1;
        self.events.push_back(Event::Persist { ticket: self.ticket, stored: self.stored() });
    }

    /// Applies `trigger`; false when it means nothing in this state.
    fn step(&mut self, now: Duration, trigger: Trigger, reason: Reason) -> bool {
        let Ok(next) = self.state.after(trigger) else { return false };
        if next != self.state {
            self.events.push_back(Event::StateChanged { from: self.state, to: next, reason });
            self.state = next;
            self.state_reason = reason;
            self.state_since = now;
        }
        true
    }

    fn terminate(&mut self, now: Duration, reason: Reason) {
        if !self.step(now, Trigger::Ended, reason) {
            return;
        }
        self.end_campaign(None);
        self.end_ways(true);
        if let Some(link) = self.link.take() {
            self.events.push_back(Event::ClosePath { path: link.path });
        }
        while !self.drains.is_empty() {
            self.end_drain();
        }
        self.closing = None;
        self.persist();
        self.events.push_back(Event::Terminated { reason });
    }

    fn no_entropy(&mut self, now: Duration, error: EntropyError) {
        self.events.push_back(Event::NoEntropy(error));
        self.terminate(now, Reason::KeyLimitReached);
    }

    fn open_path(&mut self, gateway: SocketAddr, transport: Transport) -> PathId {
        let path = PathId(self.path_next);
        self.path_next = self.path_next.wrapping_add(1);
        // A transport without a door there is not tried; the fallback keeps this total.
        let address = address_of(&self.ways.doors, gateway, transport).unwrap_or(gateway);
        self.events.push_back(Event::OpenPath { path, gateway, transport, address });
        path
    }

    fn transmit(&mut self, path: PathId, datagram: Vec<u8>) {
        if self.transmits.len() < TRANSMITS_MAX {
            self.transmits.push_back(Transmit { path, datagram });
        } else {
            self.drops.queue_full += 1;
        }
    }

    /// Seals a control frame on the link, where there is one.
    fn send_on_link(&mut self, now: Duration, frame: &Frame) {
        let Some(link) = &mut self.link else { return };
        let path = link.path;
        match sealed_frame(frame, |buffer, len| link.seal(now, Content::Control, buffer, len).ok()) {
            Some(datagram) => self.transmit(path, datagram),
            None => self.lose_link(now, Reason::KeyLimitReached),
        }
    }

    fn random<const N: usize>(&mut self) -> Result<[u8; N], EntropyError> {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn random_index(&mut self) -> Result<ReceiverIndex, EntropyError> {
        Ok(ReceiverIndex(u32::from_be_bytes(self.random()?)))
    }
}

/// Encodes and seals one control frame; `None` when the key is at its limit.
fn sealed_frame(frame: &Frame, seal: impl FnOnce(&mut [u8], usize) -> Option<usize>) -> Option<Vec<u8>> {
    let padded = if let Frame::MtuProbe { len, .. } = frame { usize::from(*len) } else { 0 };
    let room = padded.max(FRAME_LEN_MAX);
    let mut buffer = vec![0; room + OVERHEAD];
    let len = frame.encode(&mut buffer[HEADER_LEN..room + HEADER_LEN])?;
    let sealed = seal(&mut buffer, len)?;
    buffer.truncate(sealed);
    Some(buffer)
}
