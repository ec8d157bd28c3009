//! From a proven gateway to its answer: the confirmation, the acceptance with its grant, the rejection.

use std::time::Duration;

use jump_crypto::certificate::VerifyError;
use jump_crypto::grant::{Grant, GrantClaims};
use jump_crypto::handshake::{Established, ReplyInfo};

use super::campaign::{Again, Confirming};
use super::detection::Detector;
use super::link::Link;
use super::path_mtu::PathMtu;
use super::rejection::{Course, course};
use super::rekey::Rekey;
use super::ways::inner_len_max;
use super::{Attached, Client, Event, Meter, Now, PathId, Timings, Trigger};
use crate::frame::{Accepted, AttachResult};
use crate::ids::{AttachSeq, Epoch};
use crate::reason::Reason;
use crate::steering;

/// A rejected client asks again no sooner and no later than this, whatever the gateway says.
pub(super) const RETRY_AFTER_MIN: Duration = Duration::from_millis(20);
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// The same where the refusal is a matter of pace and the old path is lost. Pace protects a live owner alone: as soon as the
/// store knows that it is dead the answer is another, and a client without service asks for it.
const RETRY_AFTER_WITHOUT_PATH_MAX: Duration = Duration::from_millis(200);

impl Client {
    /// A gateway proved itself on `path`: the open handshakes with others end, and this one is asked for the session.
    pub(super) fn handshake_finished(&mut self, now: Now, path: PathId, keys: Established, info: ReplyInfo) {
        if self.link.as_ref().is_some_and(|link| link.path == path) {
            return self.rekey_proven(now, keys, info);
        }
        let Some(campaign) = &mut self.campaign else { return };
        let Some(at) = campaign.tries.iter().position(|open| open.path == path) else { return };
        let open = campaign.tries.swap_remove(at);
        let rtt = open.timed.then(|| now.at.saturating_sub(open.sent_at));
        let replaced = campaign.confirming.replace(Confirming {
            keys,
            node: info.node,
            hint: info.hint,
            path,
            transport: open.transport,
            gateway: open.gateway,
            claim: open.claim,
            rtt,
            handshake: now.at.saturating_sub(campaign.decided_at),
            started: now.at,
            due: now.at,
            interval: Confirming::INTERVAL,
            deadline: Some(now.at + self.config.tuning.confirm_timeout),
            rides_left: Confirming::RIDES_MAX,
        });
        campaign.wait();
        let reason = campaign.reason;
        if let Some(replaced) = replaced {
            self.events.push_back(Event::ClosePath { path: replaced.path });
        }
        self.close_tries(|_, _, _| true);
        if let Some(sample) = rtt {
            self.reply_took(now.at, sample);
        }
        self.step(now.at, Trigger::Proven, reason);
    }

    pub(super) fn drive_confirmation(&mut self, now: Duration) {
        let Some(confirming) = self.campaign.as_mut().and_then(|c| c.confirming.as_mut()) else { return };
        if confirming.deadline.is_some_and(|deadline| deadline <= now) {
            // Its answer is still welcome until another gateway proves itself.
            confirming.deadline = None;
            let reason = self.campaign.as_ref().map_or(self.state_reason, |campaign| campaign.reason);
            self.search_on(now, None, reason);
            return self.drive_confirmation(now);
        }
        if confirming.due <= now {
            let path = confirming.path;
            match confirming.confirm(now) {
                Some(datagram) => self.transmit(path, datagram),
                None => self.fail_confirmation(now, Reason::KeyLimitReached),
            }
        }
    }

    /// The confirmed gateway is gone: the search goes on at once.
    pub(super) fn fail_confirmation(&mut self, now: Duration, reason: Reason) {
        let Some(confirming) = self.campaign.as_mut().and_then(|c| c.confirming.take()) else { return };
        // A gateway that sent a hint is alive and has forgotten: ask it again, anew.
        let again = (reason == Reason::ReattachHint).then_some(Again {
            at: now,
            gateway: confirming.gateway,
            transport: confirming.transport,
            claim: None,
        });
        self.events.push_back(Event::ClosePath { path: confirming.path });
        self.search_on(now, again, reason);
    }

    /// The confirmed gateway answered.
    pub(super) fn handle_result(&mut self, now: Now, result: AttachResult) {
        let Some(confirming) = self.campaign.as_mut().and_then(|campaign| campaign.confirming.take()) else {
            return;
        };
        match result {
            AttachResult::Accepted(accepted) => match self.verify(now, &confirming, &accepted) {
                Ok(()) => self.install(now, confirming, accepted),
                Err(error) => {
                    self.drops.bad_grant += 1;
                    let gateway = confirming.gateway;
                    self.events.push_back(Event::Untrusted { gateway, error });
                    self.events.push_back(Event::ClosePath { path: confirming.path });
                    self.search_on(now.at, None, self.state_reason);
                }
            },
            AttachResult::Rejected { reason, current_epoch, current_attach_seq, retry_after } => {
                let gateway = confirming.gateway;
                self.events.push_back(Event::Rejected { gateway, reason, current_epoch, retry_after });
                self.events.push_back(Event::ClosePath { path: confirming.path });
                self.rejected(now.at, &confirming, reason, current_attach_seq, retry_after);
            }
        }
    }

    fn rejected(
        &mut self,
        now: Duration,
        confirming: &Confirming,
        reason: Reason,
        current_attach_seq: AttachSeq,
        retry_after: Duration,
    ) {
        let served = self.link.as_ref().is_some_and(|link| link.usable);
        let paced = matches!(reason, Reason::SwitchRateExceeded | Reason::SwitchCooldown);
        let patience = if paced && !served { RETRY_AFTER_WITHOUT_PATH_MAX } else { RETRY_AFTER_MAX };
        let at = now + retry_after.clamp(RETRY_AFTER_MIN, patience);
        let (gateway, transport) = (confirming.gateway, confirming.transport);
        let course = course(reason);
        if course == Course::End {
            return self.terminate(now, reason);
        }
        // protocol.md §5.6
        if !self.sequence.go_past(current_attach_seq) {
            return self.terminate(now, Reason::AttemptsExceeded);
        }
        let again = match course {
            Course::SameClaim if !retry_after.is_zero() => {
                Some(Again { at, gateway, transport, claim: Some(confirming.claim) })
            }
            Course::SameGateway if reason == Reason::StaleAttempt => {
                Some(Again { at: now, gateway, transport, claim: None })
            }
            Course::SameClaim | Course::SameGateway => Some(Again { at, gateway, transport, claim: None }),
            Course::NextGateway | Course::End => None,
        };
        self.search_on(now, again, reason);
    }

    fn search_on(&mut self, now: Duration, again: Option<Again>, reason: Reason) {
        let pause = self.reply_patience(now);
        if let Some(campaign) = &mut self.campaign {
            campaign.go_on(now, pause, again);
        }
        self.step(now, Trigger::Failed, reason);
    }

    /// Says whether the acceptance holds: right session, larger epoch, same addresses, and control's word for it.
    fn verify(&self, now: Now, confirming: &Confirming, accepted: &Accepted) -> Result<(), VerifyError> {
        if self.session.is_some_and(|session| session != accepted.session) {
            return Err(VerifyError::Mismatch("session"));
        }
        if accepted.epoch <= self.epoch {
            return Err(VerifyError::Mismatch("epoch"));
        }
        if accepted.inner.is_empty() || !(self.inner.is_empty() || self.inner == accepted.inner) {
            return Err(VerifyError::Mismatch("inner address"));
        }
        let expected = GrantClaims {
            handshake_hash: confirming.keys.handshake_hash,
            session: accepted.session,
            device: self.config.device.public(),
            epoch: accepted.epoch,
            node: confirming.node.node.clone(),
            incarnation: confirming.node.incarnation,
            not_after: 0,
        };
        Grant::parse(&accepted.grant)?.verify(&self.config.verifier, &expected, now.unix_seconds)
    }

    /// The new owner takes over: its keys send, the old ones only receive for a while.
    fn install(&mut self, now: Now, confirming: Confirming, accepted: Accepted) {
        let Some(campaign) = &self.campaign else { return };
        let timings = Timings {
            detect: campaign.detect,
            handshake: confirming.handshake,
            commit: now.at.saturating_sub(confirming.started),
        };
        let reason = campaign.reason;
        let born = self.epoch == Epoch(0);
        let rtt = self.link.as_ref().filter(|link| link.gateway == confirming.gateway);
        let mut detector =
            Detector::new(self.config.tuning.patience, now.at, rtt.and_then(|link| link.detector.rtt()));
        if let Some(sample) = confirming.rtt {
            detector.sample(sample);
        }
        // The new gateway is likely to be reached by the same network: what was found there is proved again, not searched.
        let transport = confirming.transport;
        let found = self.link.as_ref().filter(|link| link.transport == transport).map(|link| link.mtu.mtu());
        let link = Link {
            detector,
            mtu: PathMtu::new(
                now.at,
                accepted.mtu,
                found,
                self.config.tuning.mtu_max,
                inner_len_max(transport),
            ),
            rekey: Rekey::due_at(now.at + self.config.tuning.rekey_after),
            keys: confirming.keys,
            node: confirming.node,
            hint: confirming.hint,
            path: confirming.path,
            transport,
            meter: Meter::default(),
            gateway: confirming.gateway,
            epoch: accepted.epoch,
            usable: true,
            accepted_at: Some(now.at),
            suspicion: Reason::GatewayUnresponsive,
        };
        self.end_campaign(Some(link.path));
        self.end_ways(false);
        let attached = Attached {
            node: link.node.node.clone(),
            incarnation: link.node.incarnation,
            gateway: link.gateway,
            path: link.path,
            transport: link.transport,
            reason,
            attempt: confirming.claim.attempt,
            born,
            timings,
            accepted,
        };
        if let Some(old) = self.link.replace(link) {
            self.drain(now.at, old.keys, Some(old.path));
        }
        self.session = Some(attached.accepted.session);
        self.epoch = attached.accepted.epoch;
        self.binding = 0;
        self.binding_expected = false;
        self.birth_attempt = None;
        self.inner.clone_from(&attached.accepted.inner);
        self.roster.clone_from(&attached.accepted.roster);
        steering::rank(&self.config.device.public(), &mut self.roster);
        if !attached.accepted.doors.is_empty() {
            self.ways.doors.clone_from(&attached.accepted.doors);
        }
        let per_minute = u32::from(attached.accepted.switches_per_minute_max);
        self.ways.pace.set_rate(per_minute, attached.accepted.switch_cooldown);
        // Nobody charges a client for going where it was sent.
        if !born && !matches!(reason, Reason::GatewayDraining | Reason::OperatorMove | Reason::Drained) {
            self.ways.pace.attached(now.at);
        }
        self.begin_ways(now.at);
        let window = Some(attached.accepted.recovery_window).filter(|window| !window.is_zero());
        self.recovery = window.unwrap_or(self.config.tuning.recovery_window) + attached.accepted.lease;
        self.contact = now.at;
        self.attaches += 1;
        // First of all: what is told of the session from here on bears its correlation id.
        self.events.push_back(Event::Attached(Box::new(attached)));
        self.step(now.at, Trigger::Accepted, reason);
        self.persist();
    }
}
