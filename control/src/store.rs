//! The session store: a small transactional key-value interface with two implementations.
//!
//! The interface is the subset of etcd's semantics that ownership needs, and no more: revisions, transactions that
//! compare revisions, leases, and watches that resume. Everything that means something (sessions, nodes, addresses)
//! is written once above it. `docs/adr/0004-one-store-trait.md` says why the line is drawn here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jump_session::ids::Revision;

pub mod embedded;
pub mod etcd;
pub mod group;
pub mod measured;

pub use embedded::EmbeddedStore;
pub use etcd::EtcdStore;
pub use group::GroupCommit;
pub use measured::MeasuredStore;

/// A shared store.
pub type SharedStore = Arc<dyn Store>;

/// The largest number of keys that one [`Store::range`] returns.
pub const RANGE_LIMIT_MAX: usize = 1000;

/// Names a lease; chosen by the store, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// One key with its value, as of the revision that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that created the key (since it last did not exist).
    pub create_revision: Revision,
    /// The revision that last changed it.
    pub mod_revision: Revision,
    /// The lease that it is attached to.
    pub lease: Option<LeaseId>,
}

impl fmt::Debug for KeyValue {
    /// Shows no value: values may be keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("create", &self.create_revision.0)
            .field("mod", &self.mod_revision.0)
            .field("lease", &self.lease.map(|lease| lease.0))
            .finish_non_exhaustive()
    }
}

/// Several keys, read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision at the read.
    pub revision: Revision,
    /// One entry per asked key, in the asked order.
    pub values: Vec<Option<KeyValue>>,
}

/// One page of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The revision that the page shows.
    pub revision: Revision,
    /// Keys in order.
    pub values: Vec<KeyValue>,
    /// True when keys after the last one were left out.
    pub more: bool,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The key's create revision is exactly this; 0 means that the key does not exist.
    Created(String, Revision),
    /// The key's create revision is not this: the key is gone, or was created anew.
    NotCreated(String, Revision),
    /// The key's modification revision is exactly this; 0 means that the key does not exist.
    Modified(String, Revision),
}

impl Compare {
    /// The key exists in no form.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::Created(key.into(), Revision(0))
    }

    /// The key that is compared.
    pub fn key(&self) -> &str {
        match self {
            Self::Created(key, _) | Self::NotCreated(key, _) | Self::Modified(key, _) => key,
        }
    }
}

/// A write of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a value, attached to a lease or to none.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The lease.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// Writes a value that outlives every lease.
    pub fn put(key: impl Into<String>, value: Vec<u8>) -> Self {
        Self::Put { key: key.into(), value, lease: None }
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl fmt::Debug for Op {
    /// Shows no value: values may be keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value, lease } => write!(f, "Put({key}, {} bytes, {lease:?})", value.len()),
            Self::Delete { key } => write!(f, "Delete({key})"),
        }
    }
}

/// All of `ops` happen at one revision if all of `compares` hold, otherwise none. No key twice among `ops`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is written.
    pub ops: Vec<Op>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Every write is durable, at this revision.
    Committed(Revision),
    /// A compare did not hold; nothing was written.
    Conflict,
}

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// Its time to live; the store may give more than was asked.
    pub ttl: Duration,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key has this value now.
    Put(KeyValue),
    /// The key is gone.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(value) => &value.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// Changes in revision order. A batch never splits a revision. A batch without events says how far the store has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision up to which the watcher has now seen everything.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// What a watch yields. After [`StoreError::Compacted`] the stream ends: list again, then watch from there. A lost
/// connection is no error: the watch reconnects and resumes by revision.
pub type WatchStream = BoxStream<'static, Result<WatchBatch, StoreError>>;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was done. Asking again is safe.
    #[error("the store is unreachable: {0}")]
    Unavailable(String),
    /// It may or may not have been done. Read before deciding.
    #[error("the store did not say whether it wrote: {0}")]
    Unknown(String),
    /// The lease has ended.
    #[error("the lease has ended")]
    LeaseNotFound,
    /// The revision is too old to be read or watched from.
    #[error("the revision is compacted")]
    Compacted,
    /// The store refused for a reason that asking again does not change.
    #[error("the store refused: {0}")]
    Refused(String),
}

/// A transactional key-value store with leases and watches.
///
/// Reads are linearizable. Every method is cancel safe in the sense that a dropped call either happened or did not;
/// a dropped [`commit`](Self::commit) is an unknown outcome.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Reads several keys at one revision.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError>;

    /// Reads up to `limit` keys (at most [`RANGE_LIMIT_MAX`]) that start with `prefix` and come after `after` (empty
    /// for the start), now or as of revision `at`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `at` is too old, [`StoreError::Unavailable`].
    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError>;

    /// Runs a transaction.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may have been written, [`StoreError::LeaseNotFound`] when a put names a dead
    /// lease, [`StoreError::Unavailable`], [`StoreError::Refused`].
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Grants a lease of at least `ttl`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Unknown`] (a lease that nobody knows ends by itself).
    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Starts a lease's time to live anew. On success the lease lives at least its full time to live from the moment
    /// of this call, whichever server answered.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`], [`StoreError::Unavailable`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys. A lease that has ended already is no error.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Unknown`].
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Watches every key that starts with `prefix`, from the first revision after `after`.
    fn watch(&self, prefix: &str, after: Revision) -> WatchStream;
}

/// Reads every key that starts with `prefix`, page by page, pinned to one revision.
///
/// # Errors
/// As [`Store::range`].
pub async fn list(store: &dyn Store, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
    let mut values: Vec<KeyValue> = Vec::new();
    let mut pinned = None;
    loop {
        let after = values.last().map(|value| value.key.clone()).unwrap_or_default();
        let page = store.range(prefix, &after, RANGE_LIMIT_MAX, pinned).await?;
        let revision = *pinned.get_or_insert(page.revision);
        values.extend(page.values);
        if !page.more {
            return Ok((revision, values));
        }
    }
}
