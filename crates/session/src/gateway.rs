//! The gateway session machine: what one owner knows of one session besides its keys.
//!
//! ```text
//!  BIRTH ────────┐ accepted                 quiet              silent
//!                ├─────────▶ ATTACHED ◀───────────▶ VOLATILE ◀──────────▶ DEGRADED
//!  RECOVERING ───┘               │       heard          │      heard         │
//!      ▲                         ├──────────────────────┴────────────────────┤
//!      │ fenced                  ▼ asked to move                             │ lost, closed, ended
//!      └──────────────────── REATTACHING ────────────────────────────────────┤
//!                                                                            ▼
//!                                                                        TERMINATED
//! ```
//!
//! On a gateway, `BIRTH` and `RECOVERING` are sessions that nobody forwards here: a claim that waits for control's
//! answer, or an old owner that has stopped for its successor. The table itself is [`transition`].
//!
//! Time is nanoseconds of the gateway's suspend-counting clock, randomness a generator; what must happen comes back as
//! [`Effect`] values.

mod path;
mod states;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use jump_crypto::entropy::Entropy;
use jump_crypto::record::OVERHEAD;

use crate::frame::{Frame, MTU_MIN};
use crate::ids::{Binding, Epoch};
use crate::path::{KEPT_FOR_ATTACH, Path, SwitchRate};
use crate::reason::Reason;

pub use path::CHALLENGES_MAX;
use path::Candidate;
pub use states::{Event, Illegal, Next, State, transition};

/// Nanoseconds of the suspend-counting clock.
pub type Nanos = u64;

/// The machine's timing, one value for all sessions of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Silence of the client after which its session is `VOLATILE`.
    pub quiet_after: Duration,
    /// Silence after which it is `DEGRADED`.
    pub silent_after: Duration,
    /// Time between probes of a silent client.
    pub probe_every: Duration,
    /// Time to the first repetition of an unanswered path challenge; doubles from there.
    pub challenge_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet_after: Duration::from_secs(40),
            silent_after: Duration::from_secs(75),
            probe_every: Duration::from_secs(15),
            challenge_after: Duration::from_millis(100),
        }
    }
}

/// What a machine is born with once control has accepted the attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// The epoch that this gateway owns.
    pub epoch: Epoch,
    /// Where the client proved to receive: the path that the `AttachReply` took.
    pub path: Path,
    /// When the session ends at the latest.
    pub expires: Nanos,
    /// Longest silence before the owner ends the session.
    pub idle_transport_max: Duration,
    /// Path switches per minute.
    pub switches_per_minute_max: u32,
    /// Shortest time between two of them.
    pub switch_cooldown: Duration,
    /// Ages of the switches that control has counted within the last minute.
    pub switch_ages: Vec<Duration>,
    /// The largest inner packet to send to the client until it tells another, in bytes.
    pub mtu: u16,
    /// The largest inner packet that this gateway takes.
    pub mtu_max: u16,
}

/// Something that the data plane must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Seal this frame and send it there.
    Send {
        /// The destination.
        to: Path,
        /// The frame.
        frame: Frame,
    },
    /// The session's endpoint moved.
    Moved {
        /// The old path.
        from: Path,
        /// The validated new one.
        to: Path,
        /// The new binding number of the epoch.
        binding: Binding,
        /// What changed: the transport, the client's address, or only its port.
        reason: Reason,
    },
    /// The state changed.
    Changed {
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Why.
        reason: Reason,
    },
    /// A move of the endpoint was refused; nothing changed.
    MoveRefused {
        /// The path that was not moved to.
        to: Path,
        /// Why: the switch rate, the cooldown, or no answer on the new path.
        reason: Reason,
    },
    /// Forward nothing more and have control end the session.
    End {
        /// Why.
        reason: Reason,
    },
}

/// An authenticated record, as the data plane saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Where it came from.
    pub source: Path,
    /// Its counter.
    pub counter: u64,
    /// As in [`Opened`](jump_crypto::record::Opened): no higher counter was accepted before.
    pub newest: bool,
    /// Its length, in bytes.
    pub len: usize,
    /// True for a client's `PathChallenge`: it tries a path and does not move to it.
    pub probes: bool,
}

/// A frame that a client may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame is not one that a client sends")]
pub struct UnexpectedFrame;

/// One session on its owner. About 150 bytes.
#[derive(Debug)]
pub struct GatewaySession {
    state: State,
    epoch: Epoch,
    binding: Binding,
    path: Path,
    candidate: Option<Box<Candidate>>,
    heard: Nanos,
    next_probe: Nanos,
    expires: Nanos,
    idle_max: Nanos,
    rate: SwitchRate,
    /// Claims of its client to this gateway that wait for control.
    claims: u8,
    probes: u32,
    /// When a refused move was last told of.
    refusal_told: Nanos,
    /// Records accepted under the present keys, and the highest counter among them.
    received: u64,
    newest: u64,
    mtu: u16,
    mtu_max: u16,
    /// The probe that told `mtu`.
    mtu_told_by: u64,
}

impl GatewaySession {
    /// A session that control has just accepted here.
    pub fn accepted(ownership: &Ownership, now: Nanos) -> Self {
        let mut rate = SwitchRate::new(ownership.switches_per_minute_max, ownership.switch_cooldown);
        ownership.switch_ages.iter().for_each(|age| rate.tell(Duration::from_nanos(now), *age));
        Self {
            state: State::Attached,
            epoch: ownership.epoch,
            binding: Binding(0),
            path: ownership.path,
            candidate: None,
            heard: now,
            next_probe: Nanos::MAX,
            expires: ownership.expires,
            idle_max: nanos(ownership.idle_transport_max),
            rate,
            claims: 0,
            probes: 0,
            refusal_told: 0,
            received: 0,
            newest: 0,
            mtu: ownership.mtu,
            mtu_max: ownership.mtu_max.max(MTU_MIN),
            mtu_told_by: 0,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// True while this gateway forwards for the session (authority permitting).
    pub fn forwards(&self) -> bool {
        self.state.forwards()
    }

    /// The epoch that this gateway owns.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Path switches inside the epoch.
    pub fn binding(&self) -> Binding {
        self.binding
    }

    /// Where records for the client go.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The largest inner packet that the client takes, in bytes.
    #[inline]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Where a copy of a sealed inner packet of `len` bytes may go besides [`Self::path`]: to a new path that has not
    /// proved itself yet, within its budget. The client's replay window drops the second one to arrive.
    #[inline]
    pub fn copy_to(&mut self, len: usize) -> Option<Path> {
        let candidate = self.candidate.as_mut()?;
        candidate.spend_on_copy(len).then_some(candidate.path)
    }

    /// The machine that its client's earlier attach to this gateway made ends here: its path switches go on counting, and
    /// claims still wait.
    pub fn replaces(&mut self, old: &Self) {
        self.rate.go_on_from(&old.rate);
        self.claims = old.claims;
    }

    /// A claim of its client to this gateway waits for control, which may count it as a switch.
    pub fn claim_waits(&mut self) {
        self.claims = self.claims.saturating_add(1);
    }

    /// Control has decided such a claim, or nobody waits for it any more.
    pub fn claim_ended(&mut self) {
        self.claims = self.claims.saturating_sub(1);
    }

    /// The ages of the path switches that this gateway made within the last minute: what control has to count with its own.
    pub fn switch_ages(&self, now: Nanos) -> Vec<Duration> {
        self.rate.ages(Duration::from_nanos(now))
    }

    /// Fresh keys are in use: counters start again.
    pub fn rekeyed(&mut self) {
        (self.received, self.newest) = (0, 0);
    }

    /// True while a new path has not proved itself yet.
    #[inline]
    pub fn has_candidate(&self) -> bool {
        self.candidate.is_some()
    }

    /// An authenticated record came. Only the newest can begin a move of the endpoint.
    #[inline]
    pub fn on_record(
        &mut self,
        now: Nanos,
        record: Received,
        timing: &Timing,
        entropy: &mut dyn Entropy,
        out: &mut Vec<Effect>,
    ) {
        self.heard = now;
        self.received += 1;
        if record.newest {
            self.newest = record.counter;
        }
        if matches!(self.state, State::Volatile | State::Degraded) {
            self.next_probe = Nanos::MAX;
            self.step(Event::Heard, out);
        }
        if record.newest && record.source != self.path && !record.probes && self.forwards() {
            self.on_new_source(now, record, timing, entropy, out);
        }
    }

    fn on_new_source(
        &mut self,
        now: Nanos,
        Received { source, len, .. }: Received,
        timing: &Timing,
        entropy: &mut dyn Entropy,
        out: &mut Vec<Effect>,
    ) {
        match &mut self.candidate {
            Some(candidate) if candidate.path == source => candidate.credit(len),
            Some(_) | None => {
                if !self.rate.allows(Duration::from_nanos(now), KEPT_FOR_ATTACH + usize::from(self.claims)) {
                    return self.refuse_move(now, source, out);
                }
                let mut token = [0; 8];
                // A generator that refuses stops path moves, not the session.
                if entropy.fill(&mut token).is_err() {
                    return;
                }
                self.candidate = Some(Box::new(Candidate::new(source, token, len, now)));
            }
        }
        self.challenge(now, timing, out);
    }

    /// Told once a second at most: a client may ask with every packet.
    fn refuse_move(&mut self, now: Nanos, to: Path, out: &mut Vec<Effect>) {
        if self.refusal_told == 0 || now >= self.refusal_told.saturating_add(REFUSAL_EVERY) {
            self.refusal_told = now.max(1);
            out.push(Effect::MoveRefused { to, reason: Reason::SwitchRateExceeded });
        }
    }

    fn challenge(&mut self, now: Nanos, timing: &Timing, out: &mut Vec<Effect>) {
        if let Some(candidate) = &mut self.candidate
            && let Some(token) = candidate.challenge(now, nanos(timing.challenge_after))
        {
            out.push(Effect::Send { to: candidate.path, frame: Frame::PathChallenge { token } });
        }
    }

    /// An authenticated control frame came from `source` (after [`Self::on_record`]).
    ///
    /// # Errors
    /// [`UnexpectedFrame`] for a frame that only gateways send; nothing changed.
    pub fn on_frame(
        &mut self,
        now: Nanos,
        source: Path,
        frame: &Frame,
        out: &mut Vec<Effect>,
    ) -> Result<(), UnexpectedFrame> {
        match frame {
            Frame::Ping { id } | Frame::MtuProbe { id, mtu: 0, .. } => {
                let pong = Frame::Pong { id: *id, received: self.received, newest: self.newest };
                self.reply(source, pong, PONG_LEN, out);
            }
            Frame::MtuProbe { id, mtu, len } => {
                // Ids grow, so a probe that was overtaken tells nothing. protocol.md §5.4
                if *id >= self.mtu_told_by {
                    self.mtu_told_by = *id;
                    self.mtu = (*mtu).min(self.mtu_max);
                }
                let len = (*len).min(self.mtu_max);
                let answer = Frame::MtuAnswer { id: *id, mtu_max: self.mtu_max, len };
                self.reply(source, answer, usize::from(len), out);
            }
            // As long as the challenge, so that no budget is needed. protocol.md §5.9
            Frame::PathChallenge { token } if self.forwards() => {
                out.push(Effect::Send { to: source, frame: Frame::PathResponse { token: *token } });
            }
            Frame::PathChallenge { .. } => {}
            Frame::PathResponse { token } => self.on_path_response(now, source, *token, out),
            // Whatever reason it gives: the record must not name one that is an operator's or control's to give.
            Frame::Close { reason: _ } => {
                self.reply(source, Frame::Terminated { reason: Reason::ClientClosed }, PONG_LEN, out);
                self.end(Reason::ClientClosed, out);
            }
            Frame::Pong { .. } | Frame::Confirm => {}
            Frame::AttachResult(_)
            | Frame::Migrate { .. }
            | Frame::Terminated { .. }
            | Frame::Bound { .. }
            | Frame::Pending
            | Frame::MtuAnswer { .. }
            | Frame::Keys { .. } => {
                return Err(UnexpectedFrame);
            }
        }
        Ok(())
    }

    /// Answers by a frame of `len` bytes on the path that one came by: freely on the validated one, within the budget on a
    /// candidate, not at all elsewhere.
    fn reply(&mut self, source: Path, frame: Frame, len: usize, out: &mut Vec<Effect>) {
        let candidate = |c: &mut Box<Candidate>| c.path == source && c.spend(len + OVERHEAD);
        let allowed =
            self.forwards() && (source == self.path || self.candidate.as_mut().is_some_and(candidate));
        if allowed {
            out.push(Effect::Send { to: source, frame });
        }
    }

    fn on_path_response(&mut self, now: Nanos, source: Path, token: [u8; 8], out: &mut Vec<Effect>) {
        let Some(candidate) = self.candidate.take_if(|c| c.path == source && c.proves(token)) else {
            return;
        };
        let Some(binding) = self.binding.0.checked_add(1) else { return };
        let from = core::mem::replace(&mut self.path, candidate.path);
        self.binding = Binding(binding);
        self.rate.spend(Duration::from_nanos(now));
        let reason = reason_of_move(&from, &source);
        out.push(Effect::Moved { from, to: source, binding: self.binding, reason });
        out.push(Effect::Send { to: source, frame: Frame::Bound { binding } });
    }

    /// The gateway drains, or an operator asked: the client is told to move to one of `targets`. It is still served.
    /// Asking again tells it again.
    pub fn ask_to_move(&mut self, reason: Reason, targets: Vec<SocketAddr>, out: &mut Vec<Effect>) {
        self.step(Event::MoveAsked(reason), out);
        if self.forwards() {
            out.push(Effect::Send { to: self.path, frame: Frame::Migrate { reason, targets } });
        }
    }

    /// The session was given, or is being given, to another gateway: forwarding has stopped for good.
    pub fn fence(&mut self, out: &mut Vec<Effect>) {
        self.candidate = None;
        self.step(Event::Fenced, out);
    }

    /// The session ends for good, by this owner's own decision: control must be told.
    pub fn end(&mut self, reason: Reason, out: &mut Vec<Effect>) {
        if self.terminate(reason, out) {
            out.push(Effect::End { reason });
        }
    }

    /// The session has ended in the store. Returns false when it had already ended here.
    pub fn terminate(&mut self, reason: Reason, out: &mut Vec<Effect>) -> bool {
        self.candidate = None;
        self.step(Event::Ended(reason), out)
    }

    /// Takes off the client's silence the time in which this gateway had no authority and refused whatever came.
    pub fn excuse(&mut self, now: Nanos, refused: Nanos) {
        self.heard = self.heard.saturating_add(refused).min(now.max(self.heard));
    }

    /// Does what is due at `now`.
    pub fn on_timeout(&mut self, now: Nanos, timing: &Timing, out: &mut Vec<Effect>) {
        if !self.forwards() {
            return;
        }
        if now >= self.expires {
            out.push(Effect::Send {
                to: self.path,
                frame: Frame::Terminated { reason: Reason::LifetimeExceeded },
            });
            return self.end(Reason::LifetimeExceeded, out);
        }
        let silence = now.saturating_sub(self.heard);
        if silence >= self.idle_max {
            return self.end(Reason::TransportLost, out);
        }
        if silence >= nanos(timing.silent_after) {
            self.step(Event::Silent, out);
        } else if silence >= nanos(timing.quiet_after) {
            self.step(Event::Quiet, out);
        }
        if silence < nanos(timing.quiet_after) {
            self.next_probe = Nanos::MAX;
        } else if self.next_probe == Nanos::MAX || now >= self.next_probe {
            self.probes = self.probes.wrapping_add(1);
            self.next_probe = now.saturating_add(nanos(timing.probe_every).max(1));
            out.push(Effect::Send { to: self.path, frame: Frame::Ping { id: u64::from(self.probes) } });
        }
        if let Some(exhausted) = self.candidate.take_if(|c| c.is_exhausted(now)) {
            out.push(Effect::MoveRefused { to: exhausted.path, reason: Reason::PathReverted });
        }
        self.challenge(now, timing, out);
    }

    /// When [`Self::on_timeout`] has something to do next; `None` for never.
    pub fn poll_timeout(&self, timing: &Timing) -> Option<Nanos> {
        let silence = match self.state {
            State::Birth | State::Recovering | State::Terminated => return None,
            State::Attached => nanos(timing.quiet_after),
            State::Volatile => nanos(timing.silent_after),
            State::Degraded => self.idle_max,
            State::Reattaching if self.next_probe == Nanos::MAX => nanos(timing.quiet_after),
            State::Reattaching => self.idle_max,
        };
        let silent = self.heard.saturating_add(silence.min(self.idle_max));
        let candidate = self.candidate.as_ref().map_or(Nanos::MAX, |c| c.next_at());
        Some(self.expires.min(silent).min(self.next_probe).min(candidate))
    }

    /// Applies `event`; says whether the state changed. An illegal event changes nothing.
    fn step(&mut self, event: Event, out: &mut Vec<Effect>) -> bool {
        match transition(self.state, event) {
            Ok(Next::To(to, reason)) => {
                let from = core::mem::replace(&mut self.state, to);
                out.push(Effect::Changed { from, to, reason });
                true
            }
            Ok(Next::Stay) | Err(Illegal) => false,
        }
    }
}

/// The longest of the short answers, in bytes.
const PONG_LEN: usize = 25;
/// A refused move is told of this often at most.
const REFUSAL_EVERY: Nanos = 1_000_000_000;

fn reason_of_move(from: &Path, to: &Path) -> Reason {
    if from.transport != to.transport {
        Reason::TransportChanged
    } else if from.peer.ip() != to.peer.ip() {
        Reason::NetworkChanged
    } else {
        Reason::NatRebind
    }
}

pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
