//! The ways to the owner: while the one in use wobbles, or is not the best kind, the others are probed under the same
//! keys, and [`Pace::choose`] decides.
//!
//! A probe is a `PathChallenge`, which moves nothing at the gateway; its answer proves the way in both directions. Only
//! then the client sends on it, and the gateway, in turn, validates it before it is sent more than three times what
//! came from there. The way that was left stays open for the drain window: what is under way on it still arrives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use jump_crypto::record::{Content, OVERHEAD};
use subtle::ConstantTimeEq as _;

use super::detection::RoundTrip;
use super::{Client, Event, NetworkChange, PathId, State, Trigger, sealed_frame};
use crate::frame::Frame;
use crate::path::{Challenger, Choice, Door, Incumbent, Pace, ReturnPolicy, SwitchRate, Transport};
use crate::reason::Reason;

/// Where gateways listen when none has told: TCP at the number of the UDP port, QUIC two above it, TLS at its own.
const TLS_PORT: u16 = 443;
const QUIC_ABOVE: u16 = 2;

/// The length of the frame that announces a new path: it gives the gateway room to answer with data before the path is
/// validated.
const ANNOUNCEMENT_LEN: u16 = 1000;

/// The address of a gateway by a transport; `None` when it has none there.
pub(super) fn address_of(doors: &[Door], gateway: SocketAddr, transport: Transport) -> Option<SocketAddr> {
    let port = match transport {
        Transport::Udp => Some(gateway.port()),
        Transport::Quic | Transport::Tcp | Transport::Tls if !doors.is_empty() => {
            doors.iter().find(|door| door.transport == transport).map(|door| door.port)
        }
        Transport::Quic => gateway.port().checked_add(QUIC_ABOVE),
        Transport::Tcp => Some(gateway.port()),
        Transport::Tls => Some(TLS_PORT),
    };
    port.map(|port| SocketAddr::new(gateway.ip(), port))
}

/// The largest inner packet that fits a datagram of `transport`.
pub(super) fn inner_len_max(transport: Transport) -> u16 {
    transport.datagram_len_max() - OVERHEAD as u16
}

/// What the machine knows of the ways besides the one in use.
pub(super) struct Ways {
    pub(super) doors: Vec<Door>,
    pub(super) pace: Pace,
    pub(super) probes: Vec<Probe>,
    /// Paths that were left and still receive, oldest first.
    leaving: VecDeque<(PathId, Duration)>,
    /// When better transports are tried next.
    return_due: Duration,
    return_wait: Duration,
    /// When other ways were last opened because the one in use wobbled.
    opened_at: Option<Duration>,
    pub(super) switches: u64,
}

/// A way that is being tried.
pub(super) struct Probe {
    pub(super) path: PathId,
    pub(super) transport: Transport,
    token: [u8; 8],
    sent_at: Duration,
    due: Duration,
    /// Challenges sent since the last answer.
    sends: u8,
    pub(super) answers: u8,
    pub(super) rtt: Option<RoundTrip>,
    /// Tried because the present way wobbles; otherwise because this one is better.
    urgent: bool,
}

impl Probe {
    /// Challenges without an answer before the way is given up.
    const SENDS_MAX: u8 = 8;
    /// The same for a way that is only hoped to be better.
    const RETURN_SENDS_MAX: u8 = 3;
    /// Time between two challenges of a way that has answered.
    const STEADY_INTERVAL: Duration = Duration::from_millis(500);

    fn interval(&self) -> Duration {
        if !self.urgent || self.answers > 0 {
            return Self::STEADY_INTERVAL;
        }
        // A connection is being made first; what is sent meanwhile only waits in its queue.
        let first = if self.transport.connects() { 250 } else { 100 };
        Duration::from_millis(first << self.sends.min(3))
    }

    fn is_exhausted(&self) -> bool {
        self.sends >= if self.urgent { Self::SENDS_MAX } else { Self::RETURN_SENDS_MAX }
    }
}

impl Ways {
    /// Time between two tries of better transports after a failed one.
    const RETURN_WAIT: Duration = Duration::from_secs(5);
    const RETURN_WAIT_MAX: Duration = Duration::from_secs(60);
    /// Other ways are opened no more often than this while a path wobbles.
    const OPEN_INTERVAL: Duration = Duration::from_secs(1);
    const LEAVING_MAX: usize = 4;

    pub(super) fn new(doors: Vec<Door>) -> Self {
        // Without an owner's word: what the policy's default would allow.
        let rate = SwitchRate::new(20, Duration::from_millis(100));
        Self {
            doors,
            pace: Pace::new(rate, ReturnPolicy::default()),
            probes: Vec::new(),
            leaving: VecDeque::new(),
            return_due: Duration::MAX,
            return_wait: Self::RETURN_WAIT,
            opened_at: None,
            switches: 0,
        }
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        let probe = self.probes.iter().map(|probe| probe.due).min();
        let leaving = self.leaving.front().map(|(_, until)| *until);
        [probe, leaving].into_iter().flatten().min()
    }

    fn challengers(&self) -> Vec<Challenger> {
        let rtt = |probe: &Probe| probe.rtt.map_or(Duration::ZERO, |rtt| rtt.smoothed);
        let challenger = |probe: &Probe| Challenger {
            transport: probe.transport,
            rtt: rtt(probe),
            answers: probe.answers,
        };
        self.probes.iter().map(challenger).collect()
    }

    /// When the next try of a better transport begins, given the way in use.
    fn schedule_return(&mut self, now: Duration, wait: Duration) {
        let answers = u32::from(ReturnPolicy::default().answers);
        let ready = self.pace.returns_at().saturating_sub(Probe::STEADY_INTERVAL * answers);
        self.return_due = (now + wait).max(ready);
    }
}

impl Client {
    /// When [`Self::drive_ways`] is due.
    pub(super) fn ways_timeout(&self) -> Option<Duration> {
        let returning = self.wants_return().then_some(self.ways.return_due);
        [self.ways.timeout(), returning].into_iter().flatten().min()
    }

    /// True while a better transport than the one in use might be had.
    fn wants_return(&self) -> bool {
        let best = self.config.transports.first();
        self.state == State::Attached
            && self.campaign.is_none()
            && self.ways.probes.is_empty()
            && self
                .link
                .as_ref()
                .is_some_and(|link| link.usable && best.is_some_and(|best| *best < link.transport))
    }

    /// The way in use wobbles or is lost: tries every other one to the same gateway.
    pub(super) fn try_other_ways(&mut self, now: Duration) {
        let Some(link) = &self.link else { return };
        let (gateway, present, lost) = (link.gateway, link.transport, !link.usable);
        let lately = self.ways.opened_at.is_some_and(|at| now < at + Ways::OPEN_INTERVAL);
        if self.closing.is_some() || (lately && !lost) {
            return;
        }
        for probe in &mut self.ways.probes {
            probe.urgent = true;
        }
        for transport in self.config.transports.clone() {
            if transport != present && self.ways.probes.iter().all(|probe| probe.transport != transport) {
                self.ways.opened_at = Some(now);
                self.try_way(now, gateway, transport, true);
            }
        }
    }

    fn try_way(&mut self, now: Duration, gateway: SocketAddr, transport: Transport, urgent: bool) {
        if address_of(&self.ways.doors, gateway, transport).is_none() {
            return;
        }
        // A generator that refuses ends the session elsewhere; here it only means that no way is tried.
        let Ok(token) = self.random() else { return };
        let path = self.open_path(gateway, transport);
        self.ways.probes.push(Probe {
            path,
            transport,
            token,
            sent_at: now,
            due: now,
            sends: 0,
            answers: 0,
            rtt: None,
            urgent,
        });
    }

    /// Sends what is due, ends what is over, and begins to look for a better way when it is time to.
    pub(super) fn drive_ways(&mut self, now: Duration) {
        while let Some((path, until)) = self.ways.leaving.front().copied()
            && until <= now
        {
            self.ways.leaving.pop_front();
            self.events.push_back(Event::ClosePath { path });
        }
        let steady = self.state == State::Attached && self.link.as_ref().is_some_and(|link| link.usable);
        if self.wants_return() && self.ways.return_due <= now {
            self.try_better_ways(now);
        }
        let mut at = 0;
        while let Some(probe) = self.ways.probes.get(at) {
            let over = probe.due <= now && probe.is_exhausted();
            if over || (steady && probe.urgent) {
                let missed = !probe.urgent;
                self.close_probe(at);
                if missed {
                    let wait = self.ways.return_wait;
                    self.ways.return_wait = (wait * 2).min(Ways::RETURN_WAIT_MAX);
                    self.ways.schedule_return(now, wait);
                }
                continue;
            }
            if probe.due <= now {
                self.send_challenge(now, at);
            }
            at += 1;
        }
    }

    fn try_better_ways(&mut self, now: Duration) {
        let Some(link) = &self.link else { return };
        let (gateway, present) = (link.gateway, link.transport);
        for transport in self.config.transports.clone() {
            if transport < present {
                self.try_way(now, gateway, transport, false);
            }
        }
    }

    fn send_challenge(&mut self, now: Duration, at: usize) {
        let Some(link) = self.link.as_mut() else { return };
        let Some(probe) = self.ways.probes.get_mut(at) else { return };
        probe.sends += 1;
        if probe.sends > 1 {
            // A miss: answers in a row count from here.
            probe.answers = 0;
        }
        probe.sent_at = now;
        probe.due = now + probe.interval();
        let (path, frame) = (probe.path, Frame::PathChallenge { token: probe.token });
        let sealed =
            sealed_frame(&frame, |buffer, len| link.keys.sealing.seal(Content::Control, buffer, len).ok());
        if let Some(datagram) = sealed {
            self.transmit(path, datagram);
        }
    }

    /// A challenge was answered on `path`.
    pub(super) fn handle_path_response(&mut self, now: Duration, path: PathId, token: [u8; 8]) {
        let Ok(next) = self.random() else { return };
        let probe = self
            .ways
            .probes
            .iter_mut()
            .find(|probe| probe.path == path && bool::from(probe.token.ct_eq(&token)));
        let Some(probe) = probe else {
            self.drops.unexpected += 1;
            return;
        };
        let sample = now.saturating_sub(probe.sent_at);
        // The first round trip of a connection includes making it.
        if !(probe.transport.connects() && probe.rtt.is_none() && probe.sends > 1) {
            RoundTrip::add(&mut probe.rtt, sample);
        }
        probe.answers = probe.answers.saturating_add(1);
        probe.sends = 0;
        probe.token = next;
        probe.due = now + probe.interval();
        self.choose_way(now, false);
    }

    /// Takes another way when it is better; `lost` says that the present one has just proved dead. True when it did.
    pub(super) fn choose_way(&mut self, now: Duration, lost: bool) -> bool {
        let asked = self.campaign.as_ref().is_some_and(|campaign| campaign.confirming.is_some());
        let Some(link) = self.link.as_ref().filter(|_| !asked && self.closing.is_none()) else {
            return false;
        };
        let incumbent = Incumbent {
            transport: link.transport,
            rtt: link.detector.rtt().map_or(Duration::ZERO, |rtt| rtt.smoothed),
            unanswered: link.detector.unanswered(),
            loss: link.meter.loss_up.max(link.meter.loss_down),
            lost: lost || !link.usable,
        };
        match self.ways.pace.choose(now, &incumbent, &self.ways.challengers()) {
            Choice::Take(at) => {
                self.take_way(now, at);
                true
            }
            Choice::Stay | Choice::Held => false,
        }
    }

    fn take_way(&mut self, now: Duration, at: usize) {
        let Probe { path, transport, rtt, .. } = self.ways.probes.remove(at);
        while !self.ways.probes.is_empty() {
            self.close_probe(0);
        }
        let Some(link) = &mut self.link else { return };
        let from = link.transport;
        link.transport = transport;
        let before = link.mtu.mtu();
        link.mtu.moved(now, Some(inner_len_max(transport)));
        let after = link.mtu.mtu();
        let returned = !link.usable;
        link.usable = true;
        self.ways.pace.switched(now, from, transport);
        self.ways.return_wait = Ways::RETURN_WAIT;
        self.ways.schedule_return(now, Duration::ZERO);
        self.note_mtu(before, after);
        self.move_link(now, path, rtt, Reason::GatewayUnresponsive);
        self.events.push_back(Event::PathChanged {
            path,
            from,
            to: transport,
            reason: Reason::TransportChanged,
        });
        if returned {
            self.end_campaign(None);
            self.step(now, Trigger::Returned, Reason::TransportChanged);
        }
    }

    /// Goes on over `path` and announces it to the gateway. The old path still receives for a while.
    fn move_link(&mut self, now: Duration, path: PathId, rtt: Option<RoundTrip>, suspicion: Reason) {
        let window = self.config.tuning.drain_window;
        let patience = self.config.tuning.patience;
        let Some(link) = &mut self.link else { return };
        let old = core::mem::replace(&mut link.path, path);
        link.rekey.reset(now);
        link.suspicion = suspicion;
        link.detector.moved(patience, now, rtt);
        let id = link.detector.ping(now);
        if self.ways.leaving.len() == Ways::LEAVING_MAX
            && let Some((path, _)) = self.ways.leaving.pop_front()
        {
            self.events.push_back(Event::ClosePath { path });
        }
        self.ways.leaving.push_back((old, now + window));
        self.ways.switches += 1;
        self.binding_expected = true;
        self.send_on_link(now, &Frame::MtuProbe { id, mtu: 0, len: ANNOUNCEMENT_LEN });
    }

    /// Takes a new local port to the same gateway under the same keys, and asks it at once.
    pub(super) fn rebind(&mut self, now: Duration, change: NetworkChange) {
        let Some(link) = &mut self.link else { return };
        let (gateway, transport) = (link.gateway, link.transport);
        // Of another network the old round trip says as much as one sample does.
        let rtt = link.detector.rtt().map(|rtt| RoundTrip::first(rtt.smoothed));
        link.mtu.moved(now, None);
        let path = self.open_path(gateway, transport);
        let reason = match change {
            NetworkChange::Changed => Reason::NetworkChanged,
            NetworkChange::Resumed => Reason::Resumed,
        };
        self.ways.pace.network_changed(now);
        self.ways.return_wait = Ways::RETURN_WAIT;
        self.ways.return_due = now + Duration::from_secs(1);
        self.move_link(now, path, rtt, reason);
        self.events.push_back(Event::PathChanged { path, from: transport, to: transport, reason });
    }

    fn close_probe(&mut self, at: usize) {
        let probe = self.ways.probes.remove(at);
        self.transmits.retain(|transmit| transmit.path != probe.path);
        self.events.push_back(Event::ClosePath { path: probe.path });
    }

    /// The path of a probe failed. False when it was none.
    pub(super) fn probe_failed(&mut self, path: PathId) -> bool {
        let at = self.ways.probes.iter().position(|probe| probe.path == path);
        if let Some(at) = at {
            // Counted as a miss at the next turn, so that it is not tried again at once.
            let probe = &mut self.ways.probes[at];
            probe.sends = Probe::SENDS_MAX;
            probe.answers = 0;
            probe.due = Duration::ZERO;
        }
        at.is_some()
    }

    /// Another owner, or none: what was tried under the old keys is over.
    pub(super) fn end_ways(&mut self, leaving_too: bool) {
        while !self.ways.probes.is_empty() {
            self.close_probe(0);
        }
        while leaving_too && let Some((path, _)) = self.ways.leaving.pop_front() {
            self.events.push_back(Event::ClosePath { path });
        }
    }

    /// A new owner was accepted over `transport`.
    pub(super) fn begin_ways(&mut self, now: Duration) {
        self.ways.opened_at = None;
        self.ways.return_wait = Ways::RETURN_WAIT;
        self.ways.schedule_return(now, Duration::from_secs(1));
    }
}
