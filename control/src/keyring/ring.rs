//! One ring as the store keeps it, and the pure ring that decides.

use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::key_ring::{KeyRing, KeyState, RingEntry, RingPolicy, Transition};
use jump_crypto::keys::{ClusterSecret, GrantKeyId, GrantSigner};
use jump_proto::store_v1::{KeyRecord, KeyRingRecord, KeyState as StoredState};
use jump_session::ids::Revision;
use jump_session::ownership::UnixMillis;
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::{KeyRingError, Secret, layout};
use crate::store::KeyValue;

/// How many retired keys a ring remembers, so that it can say what became of them.
const RETIRED_MAX: usize = 16;

/// What the keys of a ring are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The X25519 key that gateways answer handshakes under.
    Cluster,
    /// The Ed25519 key by which control signs.
    Grant,
}

impl Purpose {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Grant];

    /// For people and audit events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster key",
            Self::Grant => "grant key",
        }
    }

    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Cluster => layout::CLUSTER_KEYS,
            Self::Grant => layout::GRANT_KEYS,
        }
    }

    pub(super) fn generate(self, entropy: &mut dyn Entropy) -> Result<Secret, EntropyError> {
        Ok(Zeroizing::new(match self {
            Self::Cluster => *ClusterSecret::generate(entropy)?.expose(),
            Self::Grant => *GrantSigner::generate(entropy)?.expose_seed(),
        }))
    }

    pub(super) fn public_of(self, secret: &[u8; 32]) -> [u8; 32] {
        match self {
            Self::Cluster => ClusterSecret::from_bytes(*secret).public().0,
            Self::Grant => GrantSigner::from_seed(secret).public(),
        }
    }
}

/// The name of a key in messages: 8 hexadecimal digits.
pub(crate) fn key_id(public: &[u8; 32]) -> String {
    // Both kinds of keys are named by the same rule.
    let GrantKeyId(id) = GrantKeyId::of(public);
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A ring at one revision of the store.
#[derive(Debug, Clone)]
pub struct Ring {
    /// What its keys are for.
    pub purpose: Purpose,
    /// When the store changed it last.
    pub modified: Revision,
    record: KeyRingRecord,
    /// The public halves, in the order of the record.
    publics: Vec<[u8; 32]>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.record.keys.iter_mut().for_each(|key| key.secret.zeroize());
    }
}

/// A key without its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    /// The public half.
    pub public: [u8; 32],
    /// Where it stands.
    pub state: KeyState,
    /// When it was made.
    pub created: UnixMillis,
    /// When it came into its state.
    pub changed: UnixMillis,
    /// When it leaves its state by itself.
    pub due: Option<UnixMillis>,
}

impl PublicKey {
    /// Its name in messages.
    pub fn id(&self) -> String {
        key_id(&self.public)
    }
}

impl Ring {
    /// The value of a ring with its first key.
    pub(super) fn first(purpose: Purpose, secret: &Secret, now: UnixMillis) -> Vec<u8> {
        let key = KeyRecord {
            secret: secret.to_vec(),
            state: StoredState::Current.into(),
            created_ms: now,
            changed_ms: now,
            until_ms: 0,
            public_key: purpose.public_of(secret).to_vec(),
        };
        KeyRingRecord { keys: vec![key], changed_ms: now }.encode_to_vec()
    }

    pub(super) fn read(purpose: Purpose, stored: &KeyValue) -> Result<Self, KeyRingError> {
        let record: KeyRingRecord = layout::decode(stored)?;
        let unusable = || KeyRingError::NoCurrentKey(purpose.name());
        let publics = record.keys.iter().map(|key| match <[u8; 32]>::try_from(key.public_key.as_slice()) {
            Ok(public) => Some(public),
            // Written before public halves were stored.
            Err(_) => key.secret.as_slice().try_into().ok().map(|secret| purpose.public_of(&secret)),
        });
        let publics = publics.collect::<Option<Vec<_>>>().ok_or_else(unusable)?;
        Ok(Self { purpose, modified: stored.mod_revision, record, publics })
    }

    /// When it last changed.
    pub(super) fn changed(&self) -> UnixMillis {
        let keys = self.record.keys.iter().map(|key| key.changed_ms).max().unwrap_or(0);
        self.record.changed_ms.max(keys)
    }

    /// The pure ring.
    pub(super) fn rules(&self, policy: RingPolicy) -> Result<KeyRing<[u8; 32]>, KeyRingError> {
        let entries = self.publics.iter().zip(&self.record.keys).map(|(public, key)| RingEntry {
            key: *public,
            state: match key.state() {
                StoredState::Next => KeyState::Next,
                StoredState::Current => KeyState::Current,
                StoredState::Retiring => KeyState::Retiring { until: key.until_ms / 1000 },
                StoredState::Retired | StoredState::Unspecified => KeyState::Retired,
            },
            since: key.changed_ms / 1000,
        });
        KeyRing::restore(policy, entries.collect())
            .filter(|ring| ring.current().is_some())
            .ok_or(KeyRingError::NoCurrentKey(self.purpose.name()))
    }

    /// The time for the rules: never before the last change, although the clocks of replicas differ.
    pub(super) fn now(&self, now: UnixMillis) -> u64 {
        now.max(self.changed()) / 1000
    }

    /// The secrets of the accepted keys: current, next, retiring.
    pub(super) fn accepted(&self, policy: RingPolicy, now: u64) -> Result<Vec<Secret>, KeyRingError> {
        let rules = self.rules(policy)?;
        let first = rules.current().into_iter().chain(rules.next());
        let rest =
            rules.accepted(now).filter(|key| rules.current() != Some(*key) && rules.next() != Some(*key));
        self.secrets(first.chain(rest))
    }

    /// The secrets of the keys that sign: current, retiring.
    pub(super) fn signing(&self, policy: RingPolicy, now: u64) -> Result<Vec<Secret>, KeyRingError> {
        let rules = self.rules(policy)?;
        let rest =
            rules.accepted(now).filter(|key| rules.current() != Some(*key) && rules.next() != Some(*key));
        self.secrets(rules.current().into_iter().chain(rest))
    }

    fn secrets(&self, keys: impl Iterator<Item = [u8; 32]>) -> Result<Vec<Secret>, KeyRingError> {
        keys.map(|public| {
            let at = self.publics.iter().position(|known| *known == public);
            let secret = at.and_then(|at| self.record.keys[at].secret.as_slice().try_into().ok());
            secret.map(Zeroizing::new).ok_or(KeyRingError::NoCurrentKey(self.purpose.name()))
        })
        .collect()
    }

    /// When time alone changes it.
    pub(super) fn due(&self, policy: RingPolicy) -> Option<UnixMillis> {
        self.keys(policy).iter().filter_map(|key| key.due).min()
    }

    /// Its keys, oldest first.
    pub fn keys(&self, policy: RingPolicy) -> Vec<PublicKey> {
        let of = |(public, key): (&[u8; 32], &KeyRecord)| {
            let (state, due) = match key.state() {
                StoredState::Next => {
                    // The rules count in whole seconds.
                    let usable = (key.changed_ms / 1000).saturating_add(policy.announce_seconds);
                    (KeyState::Next, Some(usable.saturating_mul(1000)))
                }
                StoredState::Current => (KeyState::Current, None),
                StoredState::Retiring => {
                    (KeyState::Retiring { until: key.until_ms / 1000 }, Some(key.until_ms))
                }
                StoredState::Retired | StoredState::Unspecified => (KeyState::Retired, None),
            };
            PublicKey { public: *public, state, created: key.created_ms, changed: key.changed_ms, due }
        };
        self.publics.iter().zip(&self.record.keys).map(of).collect()
    }

    /// The key of that name.
    pub(super) fn find(&self, id: &str) -> Option<[u8; 32]> {
        self.publics.iter().copied().find(|public| key_id(public) == id)
    }

    /// Writes the transitions into the record. `fresh` is the secret of a key that is new to the ring.
    pub(super) fn apply(
        &mut self,
        transitions: &[Transition<[u8; 32]>],
        fresh: Option<&Secret>,
        now: UnixMillis,
    ) {
        let now = now.max(self.changed().saturating_add(1));
        for transition in transitions {
            let at = self.publics.iter().position(|public| *public == transition.key).unwrap_or_else(|| {
                self.publics.push(transition.key);
                self.record.keys.push(KeyRecord {
                    secret: fresh.map(|secret| secret.to_vec()).unwrap_or_default(),
                    public_key: transition.key.to_vec(),
                    created_ms: now,
                    ..KeyRecord::default()
                });
                self.publics.len() - 1
            });
            let key = &mut self.record.keys[at];
            key.changed_ms = now;
            key.until_ms = 0;
            key.public_key = transition.key.to_vec();
            let state = match transition.to {
                KeyState::Next => StoredState::Next,
                KeyState::Current => StoredState::Current,
                KeyState::Retiring { until } => {
                    key.until_ms = until.saturating_mul(1000);
                    StoredState::Retiring
                }
                KeyState::Retired => {
                    key.secret.zeroize();
                    StoredState::Retired
                }
            };
            key.set_state(state);
        }
        self.forget_old();
        self.record.changed_ms = now;
    }

    fn forget_old(&mut self) {
        let retired = |key: &KeyRecord| key.state() == StoredState::Retired;
        let mut surplus =
            self.record.keys.iter().filter(|key| retired(key)).count().saturating_sub(RETIRED_MAX);
        let mut at = 0;
        while surplus > 0 && at < self.record.keys.len() {
            if retired(&self.record.keys[at]) {
                self.record.keys.remove(at);
                self.publics.remove(at);
                surplus -= 1;
            } else {
                at += 1;
            }
        }
    }

    pub(super) fn value(&self) -> Vec<u8> {
        self.record.encode_to_vec()
    }
}
