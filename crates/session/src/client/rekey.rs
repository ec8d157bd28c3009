//! Fresh keys inside an epoch: the attach handshake on the link's own path, without a claim (`docs/protocol.md` §3).

use std::time::Duration;

use jump_crypto::handshake::{Established, ReplyInfo};

use super::campaign::{Claim, Confirming, Handshake, random_attempt};
use super::{Client, Event, Now};
use crate::frame::AttachResult;
use crate::ids::AttachSeq;
use crate::reason::Reason;

/// How far the replacement of the link's keys has come.
pub(super) enum Rekey {
    /// Begins at this time.
    Due(Duration),
    /// The first message is out; the next one is due at this time.
    Started(Box<Handshake>, Duration),
    /// The gateway has proved itself; its answer is outstanding.
    Confirming(Box<Confirming>),
}

impl Rekey {
    /// A rekey that got no answer is put off for this long.
    const AGAIN_AFTER: Duration = Duration::from_secs(10);
    const RESEND_AFTER: Duration = Duration::from_millis(500);
    const SENDS_MAX: u8 = 5;

    pub(super) fn due_at(at: Duration) -> Self {
        Self::Due(at)
    }

    /// The keys wear out: begin now, unless already begun.
    pub(super) fn hurry(&mut self, now: Duration) {
        if let Self::Due(at) = self
            && *at > now + Self::AGAIN_AFTER
        {
            *at = now;
        }
    }

    /// Begins anew a little later: the path under it has changed.
    pub(super) fn reset(&mut self, now: Duration) {
        if let Self::Started(..) | Self::Confirming(_) = self {
            *self = Self::Due(now + Self::RESEND_AFTER);
        }
    }

    pub(super) fn started(&mut self) -> Option<&mut Handshake> {
        match self {
            Self::Started(handshake, _) => Some(handshake),
            Self::Due(_) | Self::Confirming(_) => None,
        }
    }

    pub(super) fn confirming(&mut self) -> Option<&mut Confirming> {
        match self {
            Self::Confirming(confirming) => Some(confirming),
            Self::Due(_) | Self::Started(..) => None,
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        match self {
            Self::Due(at) | Self::Started(_, at) => *at,
            Self::Confirming(confirming) => confirming.due,
        }
    }
}

impl Client {
    pub(super) fn drive_rekey(&mut self, now: Now) {
        // A search for another gateway brings fresh keys anyway.
        let searching = self.campaign.is_some();
        let Some(link) = self.link.as_mut().filter(|link| link.usable && link.rekey.timeout() <= now.at)
        else {
            return;
        };
        if searching {
            link.rekey = Rekey::Due(now.at + Rekey::AGAIN_AFTER);
            return;
        }
        let (path, gateway, transport) = (link.path, link.gateway, link.transport);
        match &mut link.rekey {
            Rekey::Due(_) => {
                let attempt = match random_attempt(&mut *self.entropy) {
                    Ok(attempt) => attempt,
                    Err(error) => return self.no_entropy(now.at, error),
                };
                let claim = Claim { attach_seq: AttachSeq(0), attempt };
                let Some(cluster) = self.config.cluster_keys.first().copied() else { return };
                let way = (path, transport);
                match self.handshake(now.at, way, gateway, claim, Reason::Rekey, true, cluster, None) {
                    Ok(handshake) => {
                        self.transmit(path, handshake.init.to_vec());
                        self.set_rekey(Rekey::Started(Box::new(handshake), now.at + Rekey::RESEND_AFTER));
                    }
                    Err(error) => {
                        self.set_rekey(Rekey::Due(now.at + Rekey::AGAIN_AFTER));
                        self.handshake_impossible(now.at, error);
                    }
                }
            }
            Rekey::Started(handshake, due) if handshake.sends < Rekey::SENDS_MAX => {
                handshake.sends += 1;
                *due = now.at + Rekey::RESEND_AFTER;
                let init = handshake.init.to_vec();
                self.transmit(path, init);
            }
            Rekey::Confirming(confirming)
                if confirming.deadline.is_some_and(|deadline| now.at < deadline) =>
            {
                match confirming.confirm(now.at) {
                    Some(datagram) => self.transmit(path, datagram),
                    None => self.set_rekey(Rekey::Due(now.at + Rekey::AGAIN_AFTER)),
                }
            }
            Rekey::Started(..) | Rekey::Confirming(_) => {
                link.rekey = Rekey::Due(now.at + Rekey::AGAIN_AFTER);
            }
        }
    }

    /// The gateway answered the rekey. Only the very owner may.
    pub(super) fn rekey_proven(&mut self, now: Now, keys: Established, info: ReplyInfo) {
        let Some(link) = &mut self.link else { return };
        let Rekey::Started(handshake, _) = &link.rekey else { return };
        if info.node.node != link.node.node || info.node.incarnation != link.node.incarnation {
            self.drops.unexpected += 1;
            return;
        }
        link.rekey = Rekey::Confirming(Box::new(Confirming {
            keys,
            node: info.node,
            hint: info.hint,
            path: link.path,
            transport: link.transport,
            gateway: link.gateway,
            claim: handshake.claim,
            rtt: None,
            handshake: Duration::ZERO,
            started: now.at,
            due: now.at,
            interval: Confirming::INTERVAL,
            deadline: Some(now.at + self.config.tuning.confirm_timeout),
            rides_left: 0,
        }));
    }

    pub(super) fn handle_rekey_result(&mut self, now: Now, result: AttachResult) {
        let rekey_after = self.config.tuning.rekey_after;
        let Some(link) = &mut self.link else { return };
        let Rekey::Confirming(confirming) =
            core::mem::replace(&mut link.rekey, Rekey::Due(now.at + rekey_after))
        else {
            return;
        };
        match result {
            // No claim was made, so no grant is due: the owner is the one that proved itself, in the epoch that its
            // grant already covers.
            AttachResult::Accepted(accepted)
                if Some(accepted.session) == self.session && accepted.epoch == link.epoch =>
            {
                link.hint = confirming.hint;
                link.meter.rekeyed();
                link.node = confirming.node;
                let old = core::mem::replace(&mut link.keys, confirming.keys);
                let epoch = link.epoch;
                self.drain(now.at, old, None);
                self.events.push_back(Event::Rekeyed { epoch });
            }
            AttachResult::Accepted(_) => {
                self.drops.unexpected += 1;
                link.rekey = Rekey::Due(now.at + Rekey::AGAIN_AFTER);
            }
            AttachResult::Rejected { .. } => self.leave_link(now.at, Reason::Rekey, &[]),
        }
    }

    fn set_rekey(&mut self, rekey: Rekey) {
        if let Some(link) = &mut self.link {
            link.rekey = rekey;
        }
    }
}
