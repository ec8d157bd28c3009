//! Datagrams from the network: hostile until authenticated, each dropped by a counted cause or put to use.

use std::net::IpAddr;
use std::time::Duration;

use jump_crypto::cookie::{ReattachHint, open_busy, open_cookie_reply};
use jump_crypto::handshake::HandshakeError;
use jump_crypto::record::{Content, OpenError, RecordHeader};
use jump_crypto::wire::DatagramType;

use super::campaign::Handshake;
use super::outcome::{RETRY_AFTER_MAX, RETRY_AFTER_MIN};
use super::{Client, Event, Now, PathId, State};
use crate::frame::Frame;
use crate::reason::Reason;

/// Whose keys a record was opened with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Link,
    Confirming,
    Rekeying,
    Drain,
}

impl Client {
    /// Takes in a datagram that arrived on `path`; opens a record in place. Returns the inner packet it carried, if any.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Now,
        path: PathId,
        datagram: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        if self.state == State::Terminated {
            return None;
        }
        match DatagramType::of(datagram) {
            Some(DatagramType::Record) => return self.handle_record(now, path, datagram),
            Some(DatagramType::AttachReply) => self.handle_reply(now, path, datagram),
            Some(DatagramType::CookieReply) => self.handle_cookie(now, path, datagram),
            Some(DatagramType::ReattachHint) => self.handle_hint(now, datagram),
            Some(DatagramType::Busy) => self.handle_busy(now.at, path, datagram),
            Some(DatagramType::AttachInit | DatagramType::Mesh) | None => self.drops.malformed += 1,
        }
        self.drive(now);
        None
    }

    fn handle_record<'a>(&mut self, now: Now, path: PathId, record: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let Some(header) = RecordHeader::parse(record) else {
            self.drops.malformed += 1;
            return None;
        };
        let len = record.len();
        let (holder, opened) = {
            let index = header.receiver;
            let confirming = self.campaign.as_mut().and_then(|campaign| campaign.confirming.as_mut());
            let (rekeying, link) = match self.link.as_mut() {
                Some(link) => (link.rekey.confirming(), Some((link.keys.own_index, &mut link.keys.opening))),
                None => (None, None),
            };
            if let Some((_, opening)) = link.filter(|(own, _)| *own == index) {
                (Holder::Link, opening.open(record))
            } else if let Some(confirming) = confirming.filter(|c| c.keys.own_index == index) {
                (Holder::Confirming, confirming.keys.opening.open(record))
            } else if let Some(rekeying) = rekeying.filter(|c| c.keys.own_index == index) {
                (Holder::Rekeying, rekeying.keys.opening.open(record))
            } else if let Some(drain) = self.drains.iter_mut().find(|drain| drain.index == index) {
                (Holder::Drain, drain.opening.open(record))
            } else {
                self.drops.unknown_index += 1;
                return None;
            }
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                match error {
                    OpenError::Malformed => self.drops.malformed += 1,
                    OpenError::Replay(_) => self.drops.replayed += 1,
                    OpenError::Authentication => self.drops.unauthenticated += 1,
                    OpenError::LimitReached => {
                        self.drops.unauthenticated += 1;
                        if let Some(link) = self.link.as_mut().filter(|_| holder == Holder::Link) {
                            link.rekey.hurry(now.at);
                        }
                    }
                }
                return None;
            }
        };
        if holder == Holder::Link {
            self.link_heard(now.at, path, opened.counter, opened.newest, len);
        }
        match (holder, opened.content) {
            (Holder::Link | Holder::Rekeying | Holder::Drain, Content::Packet) => {
                if !is_for(&self.inner, opened.plaintext) {
                    self.drops.foreign += 1;
                    return None;
                }
                if holder == Holder::Link {
                    self.note_packet(now, path, opened.plaintext.len());
                }
                Some(opened.plaintext)
            }
            (Holder::Link | Holder::Confirming | Holder::Rekeying, Content::Control) => {
                match Frame::decode(opened.plaintext) {
                    Ok(frame) => self.handle_frame(now, path, holder, frame),
                    Err(_) => self.drops.malformed += 1,
                }
                self.drive(now);
                None
            }
            // The network overtook the acceptance, or an owner that is none any more commands.
            (Holder::Confirming, Content::Packet) | (Holder::Drain, Content::Control) => {
                self.drops.unexpected += 1;
                None
            }
        }
    }

    /// An authenticated record of the owner came by `path`: only on the path in use does it answer what was asked there.
    fn link_heard(&mut self, now: Duration, path: PathId, counter: u64, newest: bool, len: usize) {
        let Some(link) = &mut self.link else { return };
        link.meter.opened(counter, newest, len);
        if link.keys.opening.wants_rekey() {
            link.rekey.hurry(now);
        }
        if link.path == path {
            self.link_answered(now);
        } else {
            self.contact = now;
        }
    }

    fn note_packet(&mut self, now: Now, path: PathId, len: usize) {
        let Some(link) = &mut self.link else { return };
        if link.path == path {
            link.detector.received_packet();
            link.mtu.carried(now.at, len);
        }
        if let Some(link) = &mut self.link
            && let Some(accepted_at) = link.accepted_at.take()
        {
            let after = now.at.saturating_sub(accepted_at);
            self.events.push_back(Event::FirstByte { epoch: link.epoch, after });
        }
    }

    fn handle_frame(&mut self, now: Now, path: PathId, holder: Holder, frame: Frame) {
        match (holder, frame) {
            (Holder::Confirming, Frame::AttachResult(result)) => self.handle_result(now, *result),
            (Holder::Rekeying, Frame::AttachResult(result)) => self.handle_rekey_result(now, *result),
            (Holder::Link, Frame::Ping { id } | Frame::MtuProbe { id, .. }) => {
                let (received, newest) =
                    self.link.as_ref().map_or((0, 0), |link| (link.meter.received, link.meter.newest));
                self.answer(path, &Frame::Pong { id, received, newest });
            }
            (Holder::Link, Frame::PathChallenge { token }) => {
                self.answer(path, &Frame::PathResponse { token });
            }
            (Holder::Link, Frame::PathResponse { token }) => {
                self.handle_path_response(now.at, path, token);
            }
            (Holder::Link, Frame::Pong { id, received, newest }) => {
                if let Some(link) = &mut self.link {
                    link.meter.told(received, newest);
                    link.detector.ponged(now.at, id);
                    link.suspicion = Reason::GatewayUnresponsive;
                    let before = link.mtu.mtu();
                    link.mtu.answered_briefly(id);
                    let after = link.mtu.mtu();
                    self.note_mtu(before, after);
                }
                self.take_link_back(now.at);
            }
            (Holder::Link, Frame::MtuAnswer { id, mtu_max, len }) => {
                if let Some(link) = self.link.as_mut().filter(|link| link.path == path) {
                    let before = link.mtu.mtu();
                    link.mtu.answered(now.at, id, len, mtu_max);
                    let after = link.mtu.mtu();
                    self.note_mtu(before, after);
                }
            }
            (Holder::Link, Frame::Migrate { reason, targets }) => {
                let already = self.campaign.is_some();
                if !already {
                    self.leave_link(now.at, reason, &targets);
                }
            }
            (Holder::Link, Frame::Terminated { reason }) => {
                let reason = self.closing.as_ref().map_or(reason, |closing| closing.reason);
                self.terminate(now.at, reason);
            }
            (Holder::Link, Frame::Bound { binding }) => self.bound(binding),
            (Holder::Link, Frame::Keys { key_set }) => self.take_key_set(&key_set),
            // A repeated result of the attach that made this link, or a word that it overtook.
            (Holder::Link, Frame::AttachResult(_) | Frame::Pending) => {}
            (Holder::Confirming, Frame::Pending) => {
                let timeout = self.config.tuning.confirm_timeout;
                if let Some(confirming) = self.campaign.as_mut().and_then(|c| c.confirming.as_mut()) {
                    confirming.pending(now.at, timeout);
                }
            }
            (Holder::Link, Frame::Confirm | Frame::Close { .. })
            | (
                Holder::Confirming | Holder::Rekeying | Holder::Drain,
                Frame::Confirm
                | Frame::Ping { .. }
                | Frame::Pong { .. }
                | Frame::PathChallenge { .. }
                | Frame::PathResponse { .. }
                | Frame::Migrate { .. }
                | Frame::Terminated { .. }
                | Frame::Close { .. }
                | Frame::MtuProbe { .. }
                | Frame::MtuAnswer { .. }
                | Frame::Bound { .. }
                | Frame::Keys { .. },
            )
            | (Holder::Rekeying | Holder::Drain, Frame::Pending)
            | (Holder::Drain, Frame::AttachResult(_)) => self.drops.unexpected += 1,
        }
    }

    /// The owner has moved the session to the path that this came by.
    fn bound(&mut self, binding: u64) {
        if binding <= self.binding {
            return;
        }
        self.binding = binding;
        let implicit = !core::mem::take(&mut self.binding_expected);
        self.events.push_back(Event::Bound { binding, implicit });
        // The network gave the path another address while it rested.
        if implicit && let Some(link) = &mut self.link {
            link.detector.shorten_keepalive();
        }
    }

    /// Answers a frame on the path it came by, under the link's keys. Asks nothing of the path.
    fn answer(&mut self, path: PathId, frame: &Frame) {
        let Some(link) = self.link.as_mut().filter(|link| link.usable) else { return };
        let sealed = super::sealed_frame(frame, |buffer, len| {
            link.keys.sealing.seal(Content::Control, buffer, len).ok()
        });
        if let Some(datagram) = sealed {
            self.transmit(path, datagram);
        }
    }

    fn handle_reply(&mut self, now: Now, path: PathId, reply: &[u8]) {
        let rekeying =
            self.link.as_mut().filter(|link| link.path == path).and_then(|link| link.rekey.started());
        let searching = self.campaign.as_mut();
        let open = match rekeying {
            Some(open) => Some(open),
            None => searching.and_then(|campaign| campaign.tries.iter_mut().find(|open| open.path == path)),
        };
        let Some(open) = open.filter(|open| open.refused < Handshake::REFUSED_MAX) else {
            self.drops.unexpected += 1;
            return;
        };
        match open.initiation.finish(reply, &self.config.verifier, now.unix_seconds) {
            Ok((keys, info)) => self.handshake_finished(now, path, keys, info),
            // Cheap to refuse, and anybody who guesses the port can send it: it must not use up the attempt.
            Err(HandshakeError::Malformed) => self.drops.malformed += 1,
            Err(
                HandshakeError::UnknownClusterKey
                | HandshakeError::UnsupportedSuite
                | HandshakeError::Authentication
                | HandshakeError::NodeProof(_)
                | HandshakeError::Entropy(_),
            ) => {
                open.refused += 1;
                self.drops.unauthenticated += 1;
            }
        }
    }

    fn handle_cookie(&mut self, now: Now, path: PathId, reply: &[u8]) {
        let found = self.campaign.as_ref().and_then(|campaign| {
            let at = campaign.tries.iter().position(|open| open.path == path)?;
            Some((at, &campaign.tries[at], campaign.reason))
        });
        let Some((at, open, reason)) = found.filter(|(_, open, _)| open.cookies < Handshake::COOKIES_MAX)
        else {
            self.drops.unexpected += 1;
            return;
        };
        let Some(cookie) = open_cookie_reply(&open.cluster, &open.init[..], reply) else {
            self.drops.bad_cookie += 1;
            return;
        };
        let (gateway, claim, cluster, cookies) = (open.gateway, open.claim, open.cluster, open.cookies + 1);
        let way = (path, open.transport);
        match self.handshake(now.at, way, gateway, claim, reason, false, cluster, Some(cookie)) {
            Ok(handshake) => {
                self.transmit(path, handshake.init.to_vec());
                if let Some(open) = self.campaign.as_mut().and_then(|campaign| campaign.tries.get_mut(at)) {
                    *open = Handshake { cookies, waits: open.waits, ..handshake };
                }
            }
            Err(error) => self.handshake_impossible(now.at, error),
        }
    }

    fn handle_busy(&mut self, now: Duration, path: PathId, datagram: &[u8]) {
        let open = self.campaign.as_mut().and_then(|c| c.tries.iter_mut().find(|open| open.path == path));
        let Some(open) = open.filter(|open| open.waits < Handshake::WAITS_MAX) else {
            self.drops.unexpected += 1;
            return;
        };
        let Some(after) = open_busy(&open.cluster, &open.init, datagram) else {
            self.drops.bad_cookie += 1;
            return;
        };
        open.waits += 1;
        open.invited = true;
        let at = now + after.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
        if let Some(campaign) = &mut self.campaign {
            campaign.postpone(now, at, path);
        }
    }

    fn handle_hint(&mut self, now: Now, datagram: &[u8]) {
        let Some(hint) = ReattachHint::parse(datagram) else {
            self.drops.malformed += 1;
            return;
        };
        let of_link = |link: &&super::Link| link.keys.peer_index == hint.index && hint.carries(&link.hint);
        let of_confirming = self
            .campaign
            .as_ref()
            .and_then(|campaign| campaign.confirming.as_ref())
            .is_some_and(|c| c.keys.peer_index == hint.index && hint.carries(&c.hint));
        if of_confirming {
            self.fail_confirmation(now.at, Reason::ReattachHint);
        } else if self.link.as_ref().filter(of_link).is_some() {
            self.lose_link(now.at, Reason::ReattachHint);
        } else {
            self.drops.bad_hint += 1;
        }
    }
}

/// True when the inner packet's destination is one of `inner`.
fn is_for(inner: &[IpAddr], packet: &[u8]) -> bool {
    let destination = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(16..20).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from),
        Some(6) => packet.get(24..40).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from),
        Some(_) | None => None,
    };
    destination.is_some_and(|destination| inner.contains(&destination))
}
