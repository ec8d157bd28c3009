//! Changes of the rings in the store: one compare-and-swap each, every transition told to the audit log.

use std::sync::Mutex;

use jump_crypto::entropy::Entropy;
use jump_crypto::key_ring::{Cause, KeyState, RingError, RingPolicy, Transition};
use jump_crypto::key_set::KEYS_MAX;

use super::ring::{Purpose, Ring, key_id};
use super::{KeyRingError, Secret, lock};
use crate::identity::Identity;
use crate::store::{Compare, Op, Outcome, SharedStore, StoreError, Txn};
use crate::{audit, clock};

/// How often a lost compare-and-swap is repeated.
const CONFLICTS_MAX: usize = 16;

/// A change of one ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// Announce a new key.
    Rotate,
    /// Replace the current key, which leaked, at once.
    ReplaceLeaked,
    /// Refuse the next or retiring key of that name.
    Retire(String),
    /// Do what is due: promote a next key that was announced for long enough, retire keys whose overlap is over.
    Advance,
}

/// Changes the key rings.
#[derive(Debug, Clone)]
pub struct Keeper {
    /// The store.
    pub store: SharedStore,
    /// How long keys overlap.
    pub policy: RingPolicy,
    /// Whether devices are told to use the hybrid suites.
    pub hybrid: bool,
}

impl Keeper {
    /// Both rings.
    ///
    /// # Errors
    /// [`KeyRingError`].
    pub async fn list(&self) -> Result<Vec<Ring>, KeyRingError> {
        let paths = Purpose::ALL.map(|purpose| purpose.path().to_owned());
        let snapshot = self.store.read(&paths).await?;
        let stored = Purpose::ALL.into_iter().zip(&snapshot.values);
        stored.filter_map(|(purpose, value)| value.as_ref().map(|value| Ring::read(purpose, value))).collect()
    }

    /// Makes one change and says so in the audit log, in the name of `operator`, or of time itself. The ring as it is afterwards.
    ///
    /// # Errors
    /// [`KeyRingError`]; [`KeyRingError::Refused`] changed nothing.
    pub async fn change(
        &self,
        purpose: Purpose,
        change: &KeyChange,
        entropy: &Mutex<Box<dyn Entropy>>,
        operator: Option<&Identity>,
        comment: &str,
    ) -> Result<Ring, KeyRingError> {
        let fresh = match change {
            KeyChange::Rotate | KeyChange::ReplaceLeaked => Some(purpose.generate(lock(entropy).as_mut())?),
            KeyChange::Retire(_) | KeyChange::Advance => None,
        };
        for _ in 0..CONFLICTS_MAX {
            let mut ring = self.read(purpose).await?;
            let now = clock::unix_millis();
            let transitions = self.decide(&ring, change, fresh.as_ref(), ring.now(now))?;
            if transitions.is_empty() {
                return Ok(ring);
            }
            ring.apply(&transitions, fresh.as_ref(), now);
            let value = ring.value();
            let txn = Txn {
                compares: vec![Compare::Modified(purpose.path().to_owned(), ring.modified)],
                ops: vec![Op::put(purpose.path(), value.clone())],
            };
            let committed = match self.store.commit(txn).await {
                Ok(Outcome::Committed(_)) => true,
                Ok(Outcome::Conflict) => false,
                // Every write of a ring has its own time in it: if this one is there, it was ours.
                Err(StoreError::Unknown(_)) => self.read(purpose).await?.value() == value,
                Err(error) => return Err(error.into()),
            };
            if committed {
                transitions.iter().for_each(|transition| tell(purpose, transition, operator, comment));
                return self.read(purpose).await;
            }
        }
        Err(KeyRingError::Busy)
    }

    fn decide(
        &self,
        ring: &Ring,
        change: &KeyChange,
        fresh: Option<&Secret>,
        now: u64,
    ) -> Result<Vec<Transition<[u8; 32]>>, KeyRingError> {
        let mut rules = ring.rules(self.policy)?;
        let fresh = || fresh.map(|secret| ring.purpose.public_of(secret)).ok_or(RingError::NoNext);
        Ok(match change {
            KeyChange::Rotate if rules.accepted(now).count() >= KEYS_MAX => return Err(KeyRingError::Full),
            KeyChange::Rotate => vec![rules.introduce(fresh()?, now)?],
            KeyChange::ReplaceLeaked => {
                let mut transitions = Vec::new();
                if rules.next().is_none() {
                    transitions.push(rules.introduce(fresh()?, now)?);
                }
                transitions.extend(rules.replace_leaked(now)?);
                transitions
            }
            KeyChange::Retire(id) => {
                let key = ring.find(id).ok_or(RingError::Unknown)?;
                vec![rules.withdraw(key, now)?]
            }
            KeyChange::Advance => {
                let mut transitions = rules.expire(now)?;
                match rules.promote(now) {
                    Ok(promoted) => transitions.extend(promoted),
                    Err(RingError::NoNext | RingError::TooEarly { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                transitions
            }
        })
    }

    async fn read(&self, purpose: Purpose) -> Result<Ring, KeyRingError> {
        let snapshot = self.store.read(&[purpose.path().to_owned()]).await?;
        let stored = snapshot.values[0].as_ref().ok_or(KeyRingError::NoCurrentKey(purpose.name()))?;
        Ring::read(purpose, stored)
    }
}

fn state_name(state: KeyState) -> &'static str {
    match state {
        KeyState::Next => "next",
        KeyState::Current => "current",
        KeyState::Retiring { .. } => "retiring",
        KeyState::Retired => "retired",
    }
}

fn tell(purpose: Purpose, transition: &Transition<[u8; 32]>, operator: Option<&Identity>, comment: &str) {
    let cause = match transition.cause {
        Cause::Introduced => "introduced",
        Cause::Promoted => "promoted",
        Cause::Superseded => "superseded",
        Cause::OverlapEnded => "overlap ended",
        Cause::Withdrawn => "withdrawn",
    };
    let (id, to) = (key_id(&transition.key), state_name(transition.to));
    let change = match transition.from.map(state_name) {
        Some(from) => format!("{cause}: {from} to {to}"),
        None => format!("{cause}: {to}"),
    };
    tracing::info!(
        purpose = purpose.name(),
        key = id,
        operator = operator.map_or("", Identity::name),
        comment,
        "key {change}"
    );
    audit::key_changed(purpose.name(), id, &change, operator);
}
