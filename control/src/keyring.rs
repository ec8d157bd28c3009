//! The cluster handshake keys and the grant keys: created once for the whole cluster, shared through the store.

use std::sync::Mutex;

use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::keys::{ClusterSecret, GrantSigner};
use jump_proto::store_v1::{KeyRecord, KeyRingRecord, KeyState};
use jump_session::ids::Revision;
use prost::Message;

use crate::clock;
use crate::layout::{self, BadValue};
use crate::store::{Compare, KeyValue, Op, SharedStore, StoreError, Txn};

/// The keys of a ring at one revision of the store.
#[derive(Debug)]
pub struct KeyRings {
    /// Handshake keys to answer under, current first, then next and retiring.
    pub cluster: Vec<ClusterSecret>,
    /// Signs grants and node certificates.
    pub signer: GrantSigner,
    /// Grant public keys that are accepted: current, next and retiring.
    pub grant_public: Vec<[u8; 32]>,
    /// Changes whenever a ring does.
    pub version: u64,
}

/// Why the key rings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored ring cannot be read.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// A stored ring has no current key, or a key of a wrong length.
    #[error("the key ring {0} has no usable current key")]
    NoCurrentKey(&'static str),
    /// The random generator refused.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl KeyRings {
    /// Reads both rings, creating each that does not exist. Replicas that start together agree: the first create wins.
    ///
    /// # Errors
    /// [`KeyRingError`].
    pub async fn load(store: &SharedStore, entropy: &Mutex<Box<dyn Entropy>>) -> Result<Self, KeyRingError> {
        loop {
            let keys = [layout::CLUSTER_KEYS.to_owned(), layout::GRANT_KEYS.to_owned()];
            let snapshot = store.read(&keys).await?;
            if let [Some(cluster), Some(grant)] = &snapshot.values[..] {
                return Self::read(cluster, grant);
            }
            let missing = keys.into_iter().zip(&snapshot.values).filter(|(_, value)| value.is_none());
            for (key, _) in missing {
                let secret = match key == layout::CLUSTER_KEYS {
                    true => *ClusterSecret::generate(lock(entropy).as_mut())?.expose(),
                    false => *GrantSigner::generate(lock(entropy).as_mut())?.expose_seed(),
                };
                let txn = Txn {
                    compares: vec![Compare::absent(&key)],
                    ops: vec![Op::put(key, first_ring(secret.to_vec()))],
                };
                // A conflict or an unknown outcome is settled by reading again.
                match store.commit(txn).await {
                    Ok(_) | Err(StoreError::Unknown(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    fn read(cluster: &KeyValue, grant: &KeyValue) -> Result<Self, KeyRingError> {
        let cluster_keys: Vec<ClusterSecret> =
            usable(cluster, "keys/cluster")?.into_iter().map(ClusterSecret::from_bytes).collect();
        let seeds = usable(grant, "keys/grant")?;
        let grant_public = seeds.iter().map(|seed| GrantSigner::from_seed(seed).public()).collect();
        let Revision(version) = cluster.mod_revision.max(grant.mod_revision);
        Ok(Self { cluster: cluster_keys, signer: GrantSigner::from_seed(&seeds[0]), grant_public, version })
    }
}

fn lock(entropy: &Mutex<Box<dyn Entropy>>) -> std::sync::MutexGuard<'_, Box<dyn Entropy>> {
    entropy.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn first_ring(secret: Vec<u8>) -> Vec<u8> {
    let now = clock::unix_millis();
    let key = KeyRecord { secret, state: KeyState::Current.into(), created_ms: now, changed_ms: now };
    KeyRingRecord { keys: vec![key] }.encode_to_vec()
}

/// The secrets of keys in use: the current one first. Not empty.
fn usable(stored: &KeyValue, name: &'static str) -> Result<Vec<[u8; 32]>, KeyRingError> {
    let ring: KeyRingRecord = layout::decode(stored)?;
    let rank = |key: &KeyRecord| match key.state() {
        KeyState::Current => Some(0),
        KeyState::Next => Some(1),
        KeyState::Retiring => Some(2),
        KeyState::Unspecified | KeyState::Retired => None,
    };
    let mut ranked: Vec<(i32, [u8; 32])> = ring
        .keys
        .iter()
        .filter_map(|key| Some((rank(key)?, <[u8; 32]>::try_from(key.secret.as_slice()).ok()?)))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    match ranked.first() {
        Some((0, _)) => Ok(ranked.into_iter().map(|(_, secret)| secret).collect()),
        Some(_) | None => Err(KeyRingError::NoCurrentKey(name)),
    }
}
