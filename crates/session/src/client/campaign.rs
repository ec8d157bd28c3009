//! The search for a gateway: handshakes are tried one gateway after another and may overlap; the first gateway that
//! proves itself is asked to take the session over, and it alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use jump_crypto::certificate::NodeClaims;
use jump_crypto::cookie::HINT_LEN;
use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::handshake::{
    AttachIntent, Established, HandshakeError, Holding, Initiation, InitiationInput,
};
use jump_crypto::keys::ClusterPublic;
use jump_crypto::record::{Content, SealLimitReached};

use super::{Client, Event, Now, PathId, RoundTrip, sealed_frame};
use crate::frame::{CAPABILITY_MTU, Frame};
use crate::ids::{AttachSeq, AttemptId, Epoch};
use crate::path::Transport;
use crate::reason::Reason;

/// One claim to a session: asked again with both, it gets the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) attach_seq: AttachSeq,
    pub(super) attempt: AttemptId,
}

/// A search for a gateway.
pub(super) struct Campaign {
    pub(super) reason: Reason,
    pub(super) detect: Duration,
    pub(super) decided_at: Duration,
    targets: Vec<SocketAddr>,
    position: usize,
    round: u32,
    /// Tries since a gateway last answered anything.
    unanswered: u32,
    /// When the next gateway is tried; `None` while an answer is awaited.
    next_try: Option<Duration>,
    /// One gateway to ask again, after a rejection.
    again: Option<Again>,
    /// The disk must catch up before the next attempt.
    starved: bool,
    pub(super) tries: Vec<Handshake>,
    pub(super) confirming: Option<Confirming>,
    attempts: u32,
    /// The transport that gateways are tried by first.
    transport: Transport,
    /// The same gateways by the other transports, and when the next of them is tried.
    others: Vec<(SocketAddr, Transport)>,
    others_position: usize,
    others_due: Duration,
}

/// A gateway to ask again, and when.
pub(super) struct Again {
    pub(super) at: Duration,
    pub(super) gateway: SocketAddr,
    pub(super) transport: Transport,
    pub(super) claim: Option<Claim>,
}

/// An `AttachInit` that waits for its reply.
pub(super) struct Handshake {
    pub(super) initiation: Initiation,
    pub(super) init: Box<[u8]>,
    pub(super) path: PathId,
    pub(super) transport: Transport,
    pub(super) gateway: SocketAddr,
    pub(super) claim: Claim,
    pub(super) sent_at: Duration,
    pub(super) sends: u8,
    /// Replies that did not verify; bounds the work that a forger can cause.
    pub(super) refused: u8,
    pub(super) cookies: u8,
    /// Times that the gateway asked for patience.
    pub(super) waits: u8,
    /// It asked for the next repetition.
    pub(super) invited: bool,
    /// A reply answers the message of `sent_at` and no earlier one (Karn's rule).
    pub(super) timed: bool,
    /// Which cluster key it was made for.
    pub(super) cluster: ClusterPublic,
}

/// A gateway that has proved itself; the session's owner once its acceptance verifies.
pub(super) struct Confirming {
    pub(super) keys: Established,
    pub(super) node: NodeClaims,
    pub(super) hint: [u8; HINT_LEN],
    pub(super) path: PathId,
    pub(super) transport: Transport,
    pub(super) gateway: SocketAddr,
    pub(super) claim: Claim,
    pub(super) rtt: Option<Duration>,
    pub(super) handshake: Duration,
    pub(super) started: Duration,
    pub(super) due: Duration,
    pub(super) interval: Duration,
    pub(super) deadline: Option<Duration>,
    /// Inner packets that may still ride along before the answer.
    pub(super) rides_left: u8,
}

impl Handshake {
    /// Replies beyond this many refused ones are not looked at.
    pub(super) const REFUSED_MAX: u8 = 32;
    /// Cookie replies answered for one try.
    pub(super) const COOKIES_MAX: u8 = 3;
    /// A gateway that was busy this often is left for another.
    pub(super) const WAITS_MAX: u8 = 16;
    /// One first message is repeated this often before a new one, from a new port, takes its place.
    const SENDS_MAX: u8 = 5;
}

impl Confirming {
    /// How many inner packets ride along; gateways keep at least as many.
    pub(super) const RIDES_MAX: u8 = 48;
    pub(super) const INTERVAL: Duration = Duration::from_millis(100);
    const INTERVAL_MAX: Duration = Duration::from_millis(400);
    /// The same once the gateway has said that the outcome is pending.
    const INTERVAL_PENDING: Duration = Duration::from_secs(1);
    /// However often it says so, its outcome is waited for no longer than gateways wait for control.
    const PENDING_MAX: Duration = Duration::from_secs(15);

    pub(super) fn seal(
        &mut self,
        content: Content,
        frame: &mut [u8],
        len: usize,
    ) -> Result<usize, SealLimitReached> {
        self.keys.sealing.seal(content, frame, len)
    }

    /// A sealed `Confirm`, and the next one scheduled.
    pub(super) fn confirm(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.due = now + self.interval;
        self.interval = (self.interval * 2).min(Self::INTERVAL_MAX.max(self.interval));
        sealed_frame(&Frame::Confirm, |buffer, len| self.seal(Content::Control, buffer, len).ok())
    }

    /// The gateway is alive and works on it: it is given more time, and asked less often.
    pub(super) fn pending(&mut self, now: Duration, timeout: Duration) {
        if self.deadline.is_some() {
            self.deadline = Some((now + timeout).min(self.started + Self::PENDING_MAX));
            self.interval = Self::INTERVAL_PENDING;
            self.due = self.due.max(now + Self::INTERVAL_MAX);
        }
    }
}

impl Campaign {
    /// Open handshakes at once; the oldest gives way.
    const TRIES_MAX: usize = 8;
    /// A busy gateway's wait that makes it worth asking another.
    const LONG_WAIT: Duration = Duration::from_millis(300);
    /// The other transports are tried when no gateway has answered by the first one for this long, and then one after
    /// another at this interval.
    const OTHERS_AFTER: Duration = Duration::from_millis(300);
    const OTHERS_INTERVAL: Duration = Duration::from_millis(100);
    /// After each round over all of them.
    const OTHERS_WAIT: Duration = Duration::from_secs(2);

    pub(super) fn confirms_on(&self, path: PathId) -> bool {
        self.confirming.as_ref().is_some_and(|confirming| confirming.path == path)
    }

    /// The gateway whose keys inner packets may ride on, if any.
    pub(super) fn rides(&mut self) -> Option<&mut Confirming> {
        self.confirming.as_mut().filter(|confirming| confirming.rides_left > 0)
    }

    pub(super) fn room_to_ride(&self) -> usize {
        self.confirming.as_ref().map_or(0, |confirming| usize::from(confirming.rides_left))
    }

    pub(super) fn disk_is_ready(&mut self) {
        self.starved = false;
    }

    /// Forgets the backoff: the network has changed.
    pub(super) fn try_now(&mut self, now: Duration) {
        self.round = 0;
        self.unanswered = 0;
        self.others_due = self.others_due.min(now + Self::OTHERS_AFTER);
        if let Some(next_try) = &mut self.next_try {
            *next_try = now;
        }
        if let Some(confirming) = &mut self.confirming {
            confirming.due = now;
            confirming.interval = Confirming::INTERVAL;
        }
    }

    /// Drops the handshake on `path`; the next gateway is tried at once, unless all were.
    pub(super) fn path_failed(&mut self, now: Duration, path: PathId) -> bool {
        let before = self.tries.len();
        let by = self.tries.iter().find(|handshake| handshake.path == path).map(|h| h.transport);
        self.tries.retain(|handshake| handshake.path != path);
        let failed = self.tries.len() < before;
        if by.is_some_and(|by| by != self.transport) {
            if self.others_position != 0 {
                self.others_due = now;
            }
            return failed;
        }
        // A path that is refused at once says that waiting is in vain.
        self.others_due = self.others_due.min(now + Self::OTHERS_INTERVAL);
        if failed && self.position != 0 && self.next_try.is_some() {
            self.next_try = Some(now);
        }
        failed
    }

    /// Tries the next gateway at `now`, or after `pause` when all were tried; asks `again` first where given.
    pub(super) fn go_on(&mut self, now: Duration, pause: Duration, again: Option<Again>) {
        let rounds_over = self.position == 0 && self.attempts > 0;
        self.next_try = match &again {
            Some(_) => None,
            None if rounds_over => Some(now + pause),
            None => Some(now),
        };
        self.again = again;
    }

    /// A gateway was asked: no other is tried until it answers or fails.
    pub(super) fn wait(&mut self) {
        self.next_try = None;
        self.again = None;
        self.unanswered = 0;
    }

    /// The gateway of the handshake on `path` is alive and has no time for it before `at`: it is asked again then. A gateway
    /// that was not asked yet may have time, and is asked first where the wait is long.
    pub(super) fn postpone(&mut self, now: Duration, at: Duration, path: PathId) {
        let Some(open) = self.tries.iter().find(|open| open.path == path) else { return };
        if self.again.as_ref().is_none_or(|again| at < again.at) {
            let (gateway, transport) = (open.gateway, open.transport);
            self.again = Some(Again { at, gateway, transport, claim: None });
        }
        self.unanswered = 0;
        let others_left = (self.attempts as usize) < self.targets.len();
        self.next_try = (others_left && at > now + Self::LONG_WAIT).then_some(now);
    }

    /// True while gateways are tried by the other transports too: nobody has been asked to confirm or to wait.
    fn tries_others(&self) -> bool {
        self.next_try.is_some() && !self.starved && !self.others.is_empty()
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        let confirming = self.confirming.as_ref().map(|c| c.deadline.map_or(c.due, |d| d.min(c.due)));
        let again = self.again.as_ref().map(|again| again.at);
        let next_try = self.next_try.filter(|_| !self.starved);
        let others = self.tries_others().then_some(self.others_due);
        [confirming, again.filter(|_| !self.starved), next_try, others].into_iter().flatten().min()
    }
}

/// How long the times of earlier replies say what to expect of the next.
const REPLIES_FRESH: Duration = Duration::from_secs(60);
/// No reply is expected to take longer, whatever earlier ones took.
const EXPECTED_REPLY_MAX: Duration = Duration::from_secs(3);

/// The addresses with their families in turn, each family in its order, the first one's first.
fn in_turn(addresses: impl Iterator<Item = SocketAddr>) -> impl Iterator<Item = SocketAddr> {
    let all: Vec<SocketAddr> = addresses.collect();
    let v4_first = all.first().is_some_and(SocketAddr::is_ipv4);
    let (mut these, mut those): (VecDeque<_>, VecDeque<_>) =
        all.into_iter().partition(|address| address.is_ipv4() == v4_first);
    core::iter::from_fn(move || {
        core::mem::swap(&mut these, &mut those);
        those.pop_front().or_else(|| these.pop_front())
    })
}

/// The key for one round: each round over all gateways tries another.
fn cluster_key(keys: &[ClusterPublic], round: u32) -> Option<ClusterPublic> {
    keys.get(round as usize % keys.len().max(1)).copied()
}

impl Client {
    /// Starts the search, or gives a running one a new reason to hurry.
    pub(super) fn begin_campaign(
        &mut self,
        now: Duration,
        reason: Reason,
        first: &[SocketAddr],
        silent_since: Duration,
    ) {
        if let Some(campaign) = &mut self.campaign {
            // A loss outweighs the wish to move; what already runs goes on.
            campaign.reason = reason;
            if campaign.confirming.is_none() && campaign.again.is_none() {
                campaign.next_try =
                    campaign.next_try.map(|at| at.min(now + self.config.tuning.reply_timeout));
            }
            return;
        }
        let targets = self.targets(first);
        // What carried the session last goes first.
        let first = self.config.transports.first().copied().unwrap_or(Transport::Udp);
        let transport = self.link.as_ref().map_or(first, |link| link.transport);
        let others = targets
            .iter()
            .flat_map(|gateway| self.config.transports.iter().map(|other| (*gateway, *other)))
            .filter(|(_, other)| *other != transport)
            .collect();
        // A session that came by a fallback may as well go on by the best one.
        let others_after = if transport == first { Campaign::OTHERS_AFTER } else { Duration::ZERO };
        self.campaign = Some(Campaign {
            transport,
            others,
            others_position: 0,
            others_due: now + others_after,
            reason,
            detect: now.saturating_sub(silent_since),
            decided_at: now,
            targets,
            position: 0,
            round: 0,
            unanswered: 0,
            next_try: Some(now),
            again: None,
            starved: false,
            tries: Vec::new(),
            confirming: None,
            attempts: 0,
        });
    }

    /// Every known gateway once: those asked for, then the roster, IPv4 and IPv6 in turn (RFC 8305 §4), so that a network
    /// that loses one of them silently costs one step; the present owner's last. One that sent a hint has lost what it
    /// knew a moment ago: another that has not is the safer choice, at the same price of a round trip.
    fn targets(&self, first: &[SocketAddr]) -> Vec<SocketAddr> {
        let present = self.link.as_ref().map(|link| link.gateway);
        let others =
            self.roster.iter().chain(&self.config.gateways).filter(|gateway| Some(**gateway) != present);
        let mut targets: Vec<SocketAddr> = Vec::new();
        for gateway in first.iter().copied().chain(in_turn(others.copied())).chain(present) {
            if !targets.contains(&gateway) {
                targets.push(gateway);
            }
        }
        targets
    }

    pub(super) fn drive_campaign(&mut self, now: Now) {
        self.drive_confirmation(now.at);
        let Some(campaign) = &mut self.campaign else { return };
        if campaign.starved || campaign.targets.is_empty() {
            return;
        }
        if let Some(again) = campaign.again.take_if(|again| again.at <= now.at) {
            // Without a reply the search goes on with the next gateway.
            campaign.unanswered += 1;
            let patience = self.reply_patience(now.at);
            if let Some(campaign) = &mut self.campaign {
                campaign.next_try = Some(now.at + patience);
            }
            return self.try_gateway(now.at, again.gateway, again.transport, again.claim);
        }
        self.drive_others(now.at);
        let Some(campaign) = &mut self.campaign else { return };
        if campaign.next_try.is_none_or(|at| at > now.at) {
            return;
        }
        let gateway = campaign.targets[campaign.position];
        campaign.position = (campaign.position + 1) % campaign.targets.len();
        campaign.round += u32::from(campaign.position == 0);
        campaign.unanswered += 1;
        let transport = campaign.transport;
        let patience = self.reply_patience(now.at);
        if let Some(campaign) = &mut self.campaign {
            campaign.next_try = Some(now.at + patience);
        }
        self.try_gateway(now.at, gateway, transport, None);
    }

    /// How long the gateway that was asked last may be silent before another is asked: as long as replies take here, and
    /// more with each try that nobody answered and each round over all gateways. Jittered then, so that the many clients of a
    /// lost gateway do not ask in step.
    pub(super) fn reply_patience(&mut self, now: Duration) -> Duration {
        let expected = self.expected_reply(now);
        let Some(campaign) = &self.campaign else { return expected };
        let doublings = campaign.unanswered.saturating_sub(1).max(campaign.round.saturating_sub(1)).min(16);
        if doublings == 0 {
            return expected;
        }
        let ceiling = self.config.tuning.reply_timeout_max.max(expected);
        let mean = (expected * 2u32.saturating_pow(doublings)).min(ceiling);
        // Without randomness there is no jitter, and soon no session either.
        let [share] = self.random::<1>().unwrap_or([128]);
        mean * 3 / 4 + mean * u32::from(share) / 512
    }

    /// The longest that a reply is expected to take: what recent ones took, what the path to the last owner takes, and
    /// never less than the timeout that is set.
    fn expected_reply(&self, now: Duration) -> Duration {
        let recent =
            self.replies.filter(|(at, _)| now.saturating_sub(*at) < REPLIES_FRESH).map(|(_, rtt)| rtt);
        let of_link = self.link.as_ref().and_then(|link| link.detector.rtt());
        let longest = recent.into_iter().chain(of_link).map(|rtt| rtt.timeout()).max().unwrap_or_default();
        longest.min(EXPECTED_REPLY_MAX).max(self.config.tuning.reply_timeout)
    }

    /// A reply to a first message took `sample`.
    pub(super) fn reply_took(&mut self, now: Duration, sample: Duration) {
        let mut estimate =
            self.replies.filter(|(at, _)| now.saturating_sub(*at) < REPLIES_FRESH).map(|(_, rtt)| rtt);
        RoundTrip::add(&mut estimate, sample);
        self.replies = estimate.map(|estimate| (now, estimate));
    }

    /// Tries the next gateway by another transport when it is time to.
    fn drive_others(&mut self, now: Duration) {
        let Some(campaign) = self.campaign.as_mut().filter(|c| c.tries_others() && c.others_due <= now)
        else {
            return;
        };
        let (gateway, transport) = campaign.others[campaign.others_position];
        campaign.others_position = (campaign.others_position + 1) % campaign.others.len();
        let over = campaign.others_position == 0;
        campaign.others_due = now + if over { Campaign::OTHERS_WAIT } else { Campaign::OTHERS_INTERVAL };
        self.try_gateway(now, gateway, transport, None);
    }

    /// Repeats the open handshake with `gateway`, or starts one on a new path.
    fn try_gateway(
        &mut self,
        now: Duration,
        gateway: SocketAddr,
        transport: Transport,
        claim: Option<Claim>,
    ) {
        if super::ways::address_of(&self.ways.doors, gateway, transport).is_none() {
            return;
        }
        let Some(campaign) = &mut self.campaign else { return };
        if let Some(open) =
            campaign.tries.iter_mut().find(|open| open.gateway == gateway && open.transport == transport)
            && claim.is_none()
            && open.sends < Handshake::SENDS_MAX
        {
            // A repetition that the gateway asked for is the first message that it takes in.
            open.timed = std::mem::take(&mut open.invited);
            if open.timed {
                open.sent_at = now;
            } else {
                open.sends += 1;
            }
            let (path, datagram) = (open.path, open.init.to_vec());
            return self.transmit(path, datagram);
        }
        if campaign.attempts >= self.config.tuning.attempts_max && self.session.is_some() {
            return self.terminate(now, Reason::AttemptsExceeded);
        }
        let claim = match claim {
            Some(claim) => claim,
            None => match self.new_claim() {
                Ok(Some(claim)) => claim,
                Ok(None) => return self.wait_for_disk(now, gateway, transport),
                Err(error) => return self.no_entropy(now, error),
            },
        };
        self.ask_lost_link(now);
        self.close_tries(|open, index, all| {
            (open.gateway == gateway && open.transport == transport) || index + Campaign::TRIES_MAX <= all
        });
        let path = self.open_path(gateway, transport);
        let Some(campaign) = &mut self.campaign else { return };
        let reason = campaign.reason;
        let Some(cluster) = cluster_key(&self.config.cluster_keys, campaign.round) else { return };
        campaign.attempts = campaign.attempts.saturating_add(1);
        match self.handshake(now, (path, transport), gateway, claim, reason, false, cluster, None) {
            Ok(handshake) => {
                self.transmit(path, handshake.init.to_vec());
                let Claim { attach_seq, attempt } = claim;
                self.events.push_back(Event::Attempted { gateway, transport, attach_seq, attempt, reason });
                if let Some(campaign) = &mut self.campaign {
                    campaign.tries.push(handshake);
                }
            }
            Err(error) => self.handshake_impossible(now, error),
        }
    }

    /// A new claim; `None` while its number is not on disk.
    fn new_claim(&mut self) -> Result<Option<Claim>, EntropyError> {
        let attempt = match (self.session, self.birth_attempt) {
            (None, Some(attempt)) => attempt,
            (None, None) => *self.birth_attempt.insert(random_attempt(&mut *self.entropy)?),
            (Some(_), _) => random_attempt(&mut *self.entropy)?,
        };
        Ok(self.sequence.take().map(|attach_seq| Claim { attach_seq, attempt }))
    }

    fn wait_for_disk(&mut self, now: Duration, gateway: SocketAddr, transport: Transport) {
        if let Some(campaign) = &mut self.campaign {
            campaign.starved = true;
            // Nobody was asked.
            campaign.unanswered = campaign.unanswered.saturating_sub(1);
            campaign.again = Some(Again { at: now, gateway, transport, claim: None });
        }
    }

    pub(super) fn handshake_impossible(&mut self, now: Duration, error: HandshakeError) {
        match error {
            HandshakeError::Entropy(error) => self.no_entropy(now, error),
            // The machine's own message cannot be wrong in any other way: an unusable cluster key in the profile. The
            // search goes on with the next key.
            HandshakeError::Malformed
            | HandshakeError::UnknownClusterKey
            | HandshakeError::UnsupportedSuite
            | HandshakeError::Authentication
            | HandshakeError::NodeProof(_) => {}
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is a separate fact of the message; called in three places"
    )]
    pub(super) fn handshake(
        &mut self,
        now: Duration,
        (path, transport): (PathId, Transport),
        gateway: SocketAddr,
        claim: Claim,
        reason: Reason,
        rekey: bool,
        cluster: ClusterPublic,
        cookie: Option<[u8; 16]>,
    ) -> Result<Handshake, HandshakeError> {
        let index = self.random_index()?;
        let intent = AttachIntent {
            session: self.session,
            attach_seq: claim.attach_seq,
            attempt: claim.attempt,
            last_epoch: if self.session.is_some() { self.epoch } else { Epoch(0) },
            reason: reason.number(),
            capabilities: CAPABILITY_MTU,
            rekey,
            holding: Holding::new(self.config.key_set, &self.config.verifier),
        };
        let input = InitiationInput {
            device: &self.config.device,
            cluster: &cluster,
            suite: self.config.suite,
            intent: &intent,
            index,
            cookie,
        };
        let mut init = vec![0; self.config.suite.init_len()].into_boxed_slice();
        let initiation = Initiation::start(&input, &mut *self.entropy, &mut init)?;
        Ok(Handshake {
            initiation,
            init,
            path,
            transport,
            gateway,
            claim,
            sent_at: now,
            sends: 1,
            refused: 0,
            cookies: 0,
            waits: 0,
            invited: false,
            timed: true,
            cluster,
        })
    }

    /// Closes the open handshakes that `which` names by their place among all.
    pub(super) fn close_tries(&mut self, which: impl Fn(&Handshake, usize, usize) -> bool) {
        let Some(campaign) = &mut self.campaign else { return };
        let all = campaign.tries.len();
        let mut index = 0;
        campaign.tries.retain(|open| {
            let close = which(open, index, all);
            index += 1;
            if close {
                self.events.push_back(Event::ClosePath { path: open.path });
            }
            !close
        });
    }

    /// Ends the search; `keep` is the path that goes on.
    pub(super) fn end_campaign(&mut self, keep: Option<PathId>) {
        let Some(campaign) = self.campaign.take() else { return };
        let confirming = campaign.confirming.iter().map(|confirming| confirming.path);
        for path in campaign.tries.iter().map(|open| open.path).chain(confirming) {
            if Some(path) != keep {
                self.events.push_back(Event::ClosePath { path });
            }
        }
    }
}

pub(super) fn random_attempt(entropy: &mut dyn Entropy) -> Result<AttemptId, EntropyError> {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes)?;
    Ok(AttemptId::from_uuid(uuid::Builder::from_random_bytes(bytes).into_uuid()))
}
