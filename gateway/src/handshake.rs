//! The threads that answer first messages: Diffie-Hellman stays off the data plane and off the runtime.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use jump_crypto::entropy::Entropy;
use jump_crypto::handshake::{REPLY_LEN_MAX, ROSTER_MAX, Responder};
use jump_session::gateway::Nanos;
use jump_telemetry::{Correlation, trace};
use jump_transport::clock::boottime_nanos;

use crate::context::Orders;
use crate::dataplane::{Answered, Command, DropReason, INIT_STALE, InitJob};

/// Gives the addresses that an `AttachReply` carries.
pub type RosterSource = Arc<dyn Fn(usize) -> Vec<SocketAddr> + Send + Sync>;

/// Answers first messages until nobody sends any more or the data plane has ended.
pub fn answer_inits(
    jobs: &Receiver<InitJob>,
    responder: &RwLock<Responder>,
    roster: &RosterSource,
    mut entropy: Box<dyn Entropy>,
    orders: &Orders,
) {
    let mut recent = RecentInits::new();
    while let Ok(job) = jobs.recv() {
        let index = job.index;
        let now = boottime_nanos();
        let command = if now.saturating_sub(job.at) > INIT_STALE {
            Command::Refused { index, reason: DropReason::StaleInit }
        } else if recent.is_replay(&job.datagram[..], job.source.peer, now) {
            Command::Refused { index, reason: DropReason::ReplayedInit }
        } else {
            match answer(job, responder, roster, &mut *entropy) {
                Some(answered) => Command::Answered(Box::new(answered)),
                None => Command::Refused { index, reason: DropReason::RefusedInit },
            }
        };
        if orders.give_blocking(command).is_err() {
            return;
        }
    }
}

fn answer(
    job: InitJob,
    responder: &RwLock<Responder>,
    roster: &RosterSource,
    entropy: &mut dyn Entropy,
) -> Option<Answered> {
    let started = SystemTime::now();
    let responder = responder.read().unwrap_or_else(PoisonError::into_inner);
    let pending = responder.read_init(&job.datagram[..]).ok()?;
    let (device, intent) = (pending.device(), pending.intent().clone());
    let key_set = responder.key_set_for(&intent.holding).map(Box::from);
    let mut reply = [0; REPLY_LEN_MAX];
    let (len, keys) = pending
        .write_reply(&responder, job.index, job.hint, &roster(ROSTER_MAX), entropy, &mut reply)
        .ok()?;
    let correlation = Correlation::from(intent.session_of(&device).correlation());
    trace::past_span(intent.attempt, "answer_init", started..SystemTime::now(), correlation);
    Some(Answered { keys, device, intent, path: job.source, reply: Box::from(&reply[..len]), key_set })
}

/// First messages of the last while, by a secret hash: the same one from another address is a replay.
struct RecentInits {
    hasher: RandomState,
    current: HashMap<u64, SocketAddr>,
    previous: HashMap<u64, SocketAddr>,
    turned: Nanos,
}

impl RecentInits {
    /// Entries of one generation; beyond it the generations turn early.
    const ENTRIES_MAX: usize = 16_384;
    /// How long one generation lasts, in nanoseconds.
    const TURN: Nanos = 60_000_000_000;

    fn new() -> Self {
        Self { hasher: RandomState::new(), current: HashMap::new(), previous: HashMap::new(), turned: 0 }
    }

    /// Notes a first message; true when the same one came from another address before.
    fn is_replay(&mut self, init: &[u8], source: SocketAddr, now: Nanos) -> bool {
        if self.current.len() >= Self::ENTRIES_MAX || now.saturating_sub(self.turned) >= Self::TURN {
            self.previous = std::mem::take(&mut self.current);
            self.turned = now;
        }
        // The cookie is not part of the message's identity: an attacker with one of its own could add it.
        let identity = &init[..init.len().saturating_sub(16)];
        let hash = self.hasher.hash_one(identity);
        match self.current.get(&hash).or_else(|| self.previous.get(&hash)) {
            Some(first) => *first != source,
            None => {
                self.current.insert(hash, source);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_message_from_another_address_is_a_replay_and_from_the_same_is_not() {
        let mut recent = RecentInits::new();
        let source = |port| SocketAddr::from(([192, 0, 2, 1], port));
        assert!(!recent.is_replay(&[1; 640], source(1), 0));
        assert!(!recent.is_replay(&[1; 640], source(1), 1));
        assert!(recent.is_replay(&[1; 640], source(2), 2));
        assert!(recent.is_replay(&[1; 640], source(2), RecentInits::TURN + 1));
        assert!(!recent.is_replay(&[2; 640], source(2), 3));
    }

    #[test]
    fn the_memory_of_first_messages_is_bounded() {
        let mut recent = RecentInits::new();
        for i in 0..3 * RecentInits::ENTRIES_MAX as u64 {
            let mut init = [0; 640];
            init[..8].copy_from_slice(&i.to_be_bytes());
            recent.is_replay(&init, SocketAddr::from(([192, 0, 2, 1], 1)), 0);
        }
        assert!(recent.current.len() + recent.previous.len() <= 2 * RecentInits::ENTRIES_MAX);
    }
}
