//! The link to the session's owner, and the links that only drain.

use std::net::SocketAddr;
use std::time::Duration;

use jump_crypto::certificate::NodeClaims;
use jump_crypto::cookie::HINT_LEN;
use jump_crypto::handshake::Established;
use jump_crypto::record::{Content, OpeningKey, SealLimitReached};

use super::detection::{Detector, Verdict};
use super::path_mtu::PathMtu;
use super::rekey::Rekey;
use super::{Client, Event, Meter, Now, PathId, State, Trigger, path_mtu};
use crate::frame::Frame;
use crate::ids::{Epoch, ReceiverIndex};
use crate::path::Transport;
use crate::reason::Reason;

/// The keys and the path to the owner.
pub(super) struct Link {
    pub(super) keys: Established,
    pub(super) node: NodeClaims,
    pub(super) hint: [u8; HINT_LEN],
    pub(super) path: PathId,
    pub(super) transport: Transport,
    pub(super) meter: Meter,
    pub(super) gateway: SocketAddr,
    pub(super) epoch: Epoch,
    pub(super) detector: Detector,
    pub(super) mtu: PathMtu,
    /// False once the path is lost or its keys are spent: it may still receive, and nothing is sent on it.
    pub(super) usable: bool,
    /// Set until the first inner packet arrives: when the link was accepted.
    pub(super) accepted_at: Option<Duration>,
    /// What a loss of the path is put down to.
    pub(super) suspicion: Reason,
    pub(super) rekey: Rekey,
}

/// The receiving half of keys that were replaced.
pub(super) struct Drain {
    pub(super) opening: OpeningKey,
    pub(super) index: ReceiverIndex,
    pub(super) until: Duration,
    /// The path to close at the end, unless the new keys use it too.
    pub(super) path: Option<PathId>,
}

impl Link {
    pub(super) fn seal(
        &mut self,
        now: Duration,
        content: Content,
        frame: &mut [u8],
        len: usize,
    ) -> Result<usize, SealLimitReached> {
        let sealed = self.keys.sealing.seal(content, frame, len)?;
        self.detector.sent(now);
        self.meter.bytes_sent += sealed as u64;
        if self.keys.sealing.wants_rekey() {
            self.rekey.hurry(now);
        }
        Ok(sealed)
    }

    pub(super) fn timeout(&self) -> Duration {
        if !self.usable {
            return Duration::MAX;
        }
        self.detector.timeout().min(self.rekey.timeout()).min(self.mtu.timeout())
    }
}

impl Client {
    pub(super) const DRAINS_MAX: usize = 4;

    pub(super) fn drive_link(&mut self, now: Now) {
        self.drive_mtu(now.at);
        let Some(link) = self.link.as_mut().filter(|link| link.usable) else { return };
        match link.detector.poll(now.at) {
            Verdict::Quiet => {}
            Verdict::Probe { id, unanswered } => {
                link.mtu.doubt(now.at);
                self.send_on_link(now.at, &Frame::Ping { id });
                if unanswered > 0 {
                    self.step(now.at, Trigger::Unanswered, Reason::PathDegraded);
                    self.try_other_ways(now.at);
                    self.choose_way(now.at, false);
                }
            }
            Verdict::Dead => {
                let reason = link.suspicion;
                if !self.choose_way(now.at, true) {
                    self.lose_link(now.at, reason);
                    return;
                }
            }
        }
        if self.steady_at().is_some_and(|at| at <= now.at) {
            // The path has been answering, and nobody asks it: ask, so that the state can settle.
            if let Some(link) = &mut self.link {
                link.detector.probe_now(now.at);
            }
            return self.drive_link(now);
        }
        self.drive_rekey(now);
    }

    /// Sends the probe of the path's MTU that is due. It asks nothing of the path: being too long is no silence.
    fn drive_mtu(&mut self, now: Duration) {
        let Some(link) = self.link.as_mut().filter(|link| link.usable) else { return };
        let before = link.mtu.mtu();
        let step = link.mtu.poll(now, link.detector.settling_time(), link.detector.last_received());
        let after = link.mtu.mtu();
        link.meter.excuse(step.lost);
        if step.doubts && !link.detector.is_asked() {
            link.detector.probe_now(now);
        }
        if let Some(path_mtu::Send { id, size, mtu }) = step.send {
            let path = link.path;
            let sealed = super::sealed_frame(&Frame::MtuProbe { id, mtu, len: size }, |buffer, len| {
                link.keys.sealing.seal(Content::Control, buffer, len).ok()
            });
            if let Some(datagram) = sealed {
                self.transmit(path, datagram);
            }
        }
        self.note_mtu(before, after);
    }

    pub(super) fn note_mtu(&mut self, before: u16, after: u16) {
        if before != after {
            self.events.push_back(Event::MtuChanged { from: before, to: after });
        }
    }

    /// When a wobbling path that answers is asked again, so that it can be called steady.
    pub(super) fn steady_at(&self) -> Option<Duration> {
        let link = self.link.as_ref().filter(|link| link.usable && !link.detector.is_asked())?;
        match self.state {
            State::Volatile | State::Degraded => {
                Some(self.state_since.max(link.detector.last_received()) + link.detector.settling_time())
            }
            State::Birth | State::Attached | State::Reattaching | State::Recovering | State::Terminated => {
                None
            }
        }
    }

    /// An authenticated record arrived on the link.
    pub(super) fn link_answered(&mut self, now: Duration) {
        let Some(link) = &mut self.link else { return };
        link.detector.received(now);
        self.contact = now;
        match self.state {
            State::Attached | State::Recovering | State::Birth | State::Terminated => {}
            State::Volatile | State::Degraded => {
                // One step for each quiet interval, so that a single packet does not hide a bad path.
                if now >= self.state_since + link.detector.settling_time() {
                    self.step(now, Trigger::Answered, Reason::PathRecovered);
                }
            }
            State::Reattaching => {
                if self.campaign.as_ref().is_some_and(|c| c.reason == Reason::GatewayUnresponsive) {
                    self.take_link_back(now);
                }
            }
        }
    }

    /// The path that was given up works after all: unless another gateway has already been asked, the search ends.
    pub(super) fn take_link_back(&mut self, now: Duration) {
        let asked = self.campaign.as_ref().is_none_or(|campaign| campaign.confirming.is_some());
        if asked || self.state != State::Reattaching {
            return;
        }
        let Some(link) = self.link.as_mut().filter(|link| !link.usable) else { return };
        link.usable = true;
        self.end_campaign(None);
        self.step(now, Trigger::Returned, Reason::PathRecovered);
    }

    /// Asks a path that was given up, so that a false alarm (a hint or an ICMP error of someone else) is found out.
    pub(super) fn ask_lost_link(&mut self, now: Duration) {
        let Some(link) = self.link.as_mut().filter(|link| !link.usable) else { return };
        let (path, id) = (link.path, link.detector.ping(now));
        let sealed = super::sealed_frame(&Frame::Ping { id }, |buffer, len| {
            link.keys.sealing.seal(Content::Control, buffer, len).ok()
        });
        if let Some(datagram) = sealed {
            self.transmit(path, datagram);
        }
    }

    /// The path to the owner is lost: nothing is sent on it any more, and another gateway is looked for.
    pub(super) fn lose_link(&mut self, now: Duration, reason: Reason) {
        let Some(link) = self.link.as_mut().filter(|link| link.usable) else { return };
        link.usable = false;
        link.rekey.reset(now);
        let silent_since = link.detector.silent_since();
        if self.closing.take().is_some() {
            return self.terminate(now, Reason::ClientClosed);
        }
        self.step(now, Trigger::Lost, reason);
        self.begin_campaign(now, reason, &[], silent_since);
        // A gateway that sent a hint has forgotten these keys, on every path.
        if reason != Reason::ReattachHint && reason != Reason::KeyLimitReached {
            self.try_other_ways(now);
        }
    }

    /// Another gateway is looked for while the path to this one goes on forwarding.
    pub(super) fn leave_link(&mut self, now: Duration, reason: Reason, targets: &[SocketAddr]) {
        if self.link.as_ref().is_some_and(|link| link.usable) && self.closing.is_none() {
            self.step(now, Trigger::Move, reason);
            self.begin_campaign(now, reason, targets, now);
        }
    }

    /// Keeps the receiving half of `keys` for the drain window.
    pub(super) fn drain(&mut self, now: Duration, keys: Established, path: Option<PathId>) {
        if self.drains.len() == Self::DRAINS_MAX {
            self.end_drain();
        }
        self.drains.push_back(Drain {
            opening: keys.opening,
            index: keys.own_index,
            until: now + self.config.tuning.drain_window,
            path,
        });
    }

    pub(super) fn end_drain(&mut self) {
        if let Some(path) = self.drains.pop_front().and_then(|drain| drain.path) {
            self.events.push_back(Event::ClosePath { path });
        }
    }
}
