//! The store of a single machine: redb on disk, one writer thread, no server.
//!
//! The writer takes whatever is queued, applies it as one redb transaction (one fsync), and answers. Each transaction
//! of a batch gets its own revision. Leases are kept on disk and start anew, in full, when the store is opened. The
//! history that watches and pinned reads need is in memory and bounded: after a restart, or for a watcher that is too
//! slow, older revisions are [`StoreError::Compacted`].

use std::fmt;
use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream;
use jump_session::ids::Revision;
use redb::{Database, ReadableDatabase, TableDefinition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{
    KeyValue, Lease, LeaseId, Outcome, Page, RANGE_LIMIT_MAX, Snapshot, Store, StoreError, Txn, WatchBatch,
    WatchStream,
};

mod history;
mod writer;

use history::History;

/// Key to (create revision, modification revision, lease or 0, value).
const KEYS: TableDefinition<'_, &str, (u64, u64, i64, &[u8])> = TableDefinition::new("keys");
/// Lease to its time to live in milliseconds.
const LEASES: TableDefinition<'_, i64, u64> = TableDefinition::new("leases");
/// `revision` and `last_lease`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// How many requests may wait for the writer; more wait to be queued.
const QUEUE_REQUESTS_MAX: usize = 4096;

/// Default number of revisions that watches and pinned reads can reach back to.
pub const HISTORY_REVISIONS_MAX: usize = 16_384;

/// A store in one file. Clones share it; the file is closed when the last one is dropped.
#[derive(Clone)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// Dropping the last handle stops the writer and waits for it.
    writer: Arc<WriterHandle>,
}

struct Shared {
    database: Database,
    history: Mutex<History>,
    leases: Mutex<writer::Leases>,
    /// The last revision whose events are in `history`.
    published: watch::Sender<Revision>,
}

struct WriterHandle {
    jobs: std_mpsc::Sender<writer::Job>,
    slots: Arc<Semaphore>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        // A failed send means that the thread is gone already.
        let _ = self.jobs.send(writer::Job::Stop);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmbeddedStore")
    }
}

impl EmbeddedStore {
    /// Opens the store at `path`, creating the file if there is none.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the file cannot be opened, is damaged, or is open in another process.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_history(path, HISTORY_REVISIONS_MAX)
    }

    /// As [`open`](Self::open), with another bound on the history.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_history(path: &Path, history_revisions_max: usize) -> Result<Self, StoreError> {
        let refused = |error: &dyn fmt::Display| {
            StoreError::Refused(format!("{}: {}", path.display(), error.to_string().trim_end_matches('.')))
        };
        let database = Database::create(path).map_err(|e| refused(&e))?;
        let (revision, leases) = writer::prepare(&database, Instant::now()).map_err(|e| refused(&e))?;
        let shared = Arc::new(Shared {
            database,
            history: Mutex::new(History::new(revision, history_revisions_max)),
            leases: Mutex::new(leases),
            published: watch::Sender::new(revision),
        });
        let (jobs, queue) = std_mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || writer::run(&shared, &queue)
            })
            .map_err(|e| refused(&e))?;
        let writer = Arc::new(WriterHandle {
            jobs,
            slots: Arc::new(Semaphore::new(QUEUE_REQUESTS_MAX)),
            thread: Mutex::new(Some(thread)),
        });
        Ok(Self { shared, writer })
    }

    async fn ask<T>(&self, job: impl FnOnce(writer::Reply<T>) -> writer::Job) -> Result<T, StoreError> {
        let slot =
            Arc::clone(&self.writer.slots).acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        self.writer.jobs.send(job(writer::Reply { sender: reply, _slot: slot })).map_err(|_| stopped())?;
        answer.await.map_err(|_| StoreError::Unknown("the store's writer stopped".to_owned()))?
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store's writer stopped".to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(error: impl fmt::Display) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn key_value(key: &str, stored: (u64, u64, i64, &[u8])) -> KeyValue {
    let (created, modified, lease, value) = stored;
    KeyValue {
        key: key.to_owned(),
        value: value.to_vec(),
        create_revision: Revision(created),
        mod_revision: Revision(modified),
        lease: (lease != 0).then_some(LeaseId(lease)),
    }
}

impl Shared {
    fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        let transaction = self.database.begin_read().map_err(unavailable)?;
        let revision = writer::revision(&transaction).map_err(unavailable)?;
        let table = transaction.open_table(KEYS).map_err(unavailable)?;
        let values = keys
            .iter()
            .map(|key| {
                let found = table.get(key.as_str()).map_err(unavailable)?;
                Ok(found.map(|guard| key_value(key, guard.value())))
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Snapshot { revision, values })
    }

    /// One page of the newest state, with the revision that it shows.
    fn newest(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        let transaction = self.database.begin_read().map_err(unavailable)?;
        let revision = writer::revision(&transaction).map_err(unavailable)?;
        let table = transaction.open_table(KEYS).map_err(unavailable)?;
        let start = if after > prefix { after } else { prefix };
        let mut values = Vec::new();
        let mut more = false;
        for entry in table.range(start..).map_err(unavailable)? {
            let (key, value) = entry.map_err(unavailable)?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            if key == after {
                continue;
            }
            if values.len() == limit {
                more = true;
                break;
            }
            values.push(key_value(key, value.value()));
        }
        Ok(Page { revision, values, more })
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.shared.read(keys)
    }

    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, RANGE_LIMIT_MAX);
        let Some(at) = at else {
            return self.shared.newest(prefix, after, limit);
        };
        // Undo what happened since: keys changed after `at` take the value that they had then. At most `changed` of
        // the newest keys are undone away, so that many more are read.
        let mut published = self.shared.published.subscribe();
        let changed = {
            let newest = self.shared.read(&[])?.revision;
            published.wait_for(|revision| *revision >= newest).await.map_err(|_| stopped())?;
            lock(&self.shared.history).values_at(at, prefix)?
        };
        let page = self.shared.newest(prefix, after, limit.saturating_add(changed.len()))?;
        published.wait_for(|revision| *revision >= page.revision).await.map_err(|_| stopped())?;
        let changed = lock(&self.shared.history).values_at(at, prefix)?;
        Ok(history::as_of(page, changed, after, limit, at))
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.ask(|reply| writer::Job::Commit(txn, reply)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.ask(|reply| writer::Job::Grant(ttl, reply)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        lock(&self.shared.leases).renew(lease, Instant::now()).ok_or(StoreError::LeaseNotFound)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| writer::Job::Revoke(lease, reply)).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        struct Cursor {
            shared: Arc<Shared>,
            published: watch::Receiver<Revision>,
            prefix: String,
            after: Revision,
            ended: bool,
            // Keeps the writer, and so the stream, alive.
            _writer: Arc<WriterHandle>,
        }
        let cursor = Cursor {
            shared: Arc::clone(&self.shared),
            published: self.shared.published.subscribe(),
            prefix: prefix.to_owned(),
            after,
            ended: false,
            _writer: Arc::clone(&self.writer),
        };
        Box::pin(stream::unfold(cursor, |mut cursor| async move {
            if cursor.ended {
                return None;
            }
            let newest = *cursor.published.wait_for(|revision| *revision > cursor.after).await.ok()?;
            let found = lock(&cursor.shared.history).events_after(cursor.after, newest, &cursor.prefix);
            let item = found.map(|events| WatchBatch { revision: newest, events });
            cursor.after = newest;
            cursor.ended = item.is_err();
            Some((item, cursor))
        }))
    }
}

/// Holds a place in the writer's queue until the answer is sent.
type Slot = OwnedSemaphorePermit;
