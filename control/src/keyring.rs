//! The cluster handshake keys and the grant keys: created once for the whole cluster, shared through the store, rotated
//! by the rules of [`jump_crypto::key_ring`].

use std::sync::Mutex;

use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::key_ring::{RingError, RingPolicy};
use jump_crypto::key_set::{KEYS_MAX, KeySet, KeySetClaims};
use jump_crypto::keys::{ClusterSecret, GrantKeyId, GrantSigner};
use jump_session::ids::Revision;
use jump_session::ownership::UnixMillis;
use zeroize::Zeroizing;

use crate::clock;
use crate::layout::{self, BadValue};
use crate::store::{Compare, Op, SharedStore, StoreError, Txn};

mod keeper;
mod ring;

pub use keeper::{Keeper, KeyChange};
pub use ring::{PublicKey, Purpose, Ring};

/// The keys in use at one revision of the store.
#[derive(Debug)]
pub struct KeyRings {
    /// Handshake keys to answer under: current first, then next and retiring.
    pub cluster: Vec<ClusterSecret>,
    /// The keys that sign grants, node certificates and key sets: the current one first, then those that retire, for
    /// devices that know no other yet.
    pub signers: Vec<GrantSigner>,
    /// What devices are told.
    pub claims: KeySetClaims,
    /// The same, signed by each of `signers`.
    pub key_sets: Vec<KeySet>,
    /// Changes whenever a ring does.
    pub version: u64,
    /// When time alone changes a ring, in milliseconds since the Unix epoch.
    pub due: Option<UnixMillis>,
}

/// Why the key rings cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored ring cannot be read.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// A stored ring has no current key, breaks the rules of rings, or holds a key of a wrong length.
    #[error("the key ring {0} has no usable current key")]
    NoCurrentKey(&'static str),
    /// The random generator refused.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The ring's rules refuse the change.
    #[error("{0}")]
    Refused(#[from] RingError),
    /// Too many keys are accepted at once.
    #[error("{KEYS_MAX} keys are accepted already: wait for an overlap to end, or retire one")]
    Full,
    /// Others keep changing the ring.
    #[error("too many concurrent changes: try again")]
    Busy,
}

impl KeyRings {
    /// Reads both rings, creating each that does not exist. Replicas that start together agree: the first create wins.
    ///
    /// # Errors
    /// [`KeyRingError`].
    pub async fn load(
        store: &SharedStore,
        policy: RingPolicy,
        hybrid: bool,
        entropy: &Mutex<Box<dyn Entropy>>,
    ) -> Result<Self, KeyRingError> {
        let paths = Purpose::ALL.map(|purpose| purpose.path().to_owned());
        loop {
            let snapshot = store.read(&paths).await?;
            if let [Some(cluster), Some(grant)] = &snapshot.values[..] {
                let cluster = Ring::read(Purpose::Cluster, cluster)?;
                let grant = Ring::read(Purpose::Grant, grant)?;
                return Self::of(&cluster, &grant, policy, hybrid);
            }
            let missing = Purpose::ALL.into_iter().zip(&snapshot.values).filter(|(_, value)| value.is_none());
            for (purpose, _) in missing {
                let secret = purpose.generate(lock(entropy).as_mut())?;
                let txn = Txn {
                    compares: vec![Compare::absent(purpose.path())],
                    ops: vec![Op::put(purpose.path(), Ring::first(purpose, &secret, clock::unix_millis()))],
                };
                // A conflict or an unknown outcome is settled by reading again.
                match store.commit(txn).await {
                    Ok(_) | Err(StoreError::Unknown(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    fn of(cluster: &Ring, grant: &Ring, policy: RingPolicy, hybrid: bool) -> Result<Self, KeyRingError> {
        let now = clock::unix_seconds();
        let cluster_secrets: Vec<ClusterSecret> =
            cluster.accepted(policy, now)?.iter().map(|secret| ClusterSecret::from_bytes(**secret)).collect();
        let grant_secrets = grant.accepted(policy, now)?;
        let claims = KeySetClaims {
            // Each term grows with every change of its ring, so the sum grows with every change of either. The last bit makes
            // the set that asks for the hybrid suites the newer one: a replica with another setting cannot take it back.
            serial: (cluster.changed().saturating_add(grant.changed()) << 1) | u64::from(hybrid),
            hybrid,
            cluster: cluster_secrets.iter().map(ClusterSecret::public).collect(),
            grant: grant_secrets.iter().map(|seed| GrantSigner::from_seed(seed).public()).collect(),
        };
        let signers: Vec<GrantSigner> =
            grant.signing(policy, now)?.iter().map(|seed| GrantSigner::from_seed(seed)).collect();
        let Revision(version) = cluster.modified.max(grant.modified);
        let due = [cluster.due(policy), grant.due(policy)].into_iter().flatten().min();
        Ok(Self {
            cluster: cluster_secrets,
            key_sets: signers.iter().map(|signer| KeySet::issue(&claims, signer)).collect(),
            signers,
            claims,
            version,
            due,
        })
    }

    /// The key that signs for a device that accepts those named `known`.
    pub fn signer_for(&self, known: &[[u8; 4]]) -> &GrantSigner {
        let accepted =
            self.signers.iter().find(|signer| known.iter().any(|id| GrantKeyId(*id) == signer.id()));
        accepted.unwrap_or(&self.signers[0])
    }
}

fn lock(entropy: &Mutex<Box<dyn Entropy>>) -> std::sync::MutexGuard<'_, Box<dyn Entropy>> {
    entropy.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The private half of a key.
type Secret = Zeroizing<[u8; 32]>;
