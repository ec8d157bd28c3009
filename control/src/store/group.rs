//! Group commit: concurrent transactions and reads share requests to the store.
//!
//! A store that arbitrates thousands of attaches a second spends most of its time per request, not per key. So
//! transactions that are asked for while others are under way wait for a moment and then ride on one request, as
//! independent nested transactions: each wins or loses by itself. Under no load nothing waits: a transaction that finds
//! a free place goes at once, alone.
//!
//! Compares of a batch see the state before the batch. Riders that touch each other's keys would therefore not be
//! serializable, and do not ride together. Transactions that carry leases or write nodes go alone: a dead lease would
//! fail a whole batch, and a node's incarnation is the revision of its own transaction.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jump_session::ids::Revision;
use tokio::sync::oneshot;

use super::{Lease, LeaseId, Op, Outcome, Page, Snapshot, Store, StoreError, Txn, WatchStream};
use crate::{layout, metrics};

/// How many transactions ride on one request. With the compares of each that stays below etcd's default of 128
/// operations per transaction.
pub const RIDERS_MAX: usize = 64;

/// How many keys one request reads.
pub const READ_KEYS_MAX: usize = 120;

/// How many bytes of keys and values one request carries; etcd refuses requests of 1.5 MiB.
const BATCH_BYTES_MAX: usize = 512 * 1024;

/// The largest transaction that rides, in compares and in operations.
const RIDER_PARTS_MAX: usize = 32;

/// How many waiting riders are looked at for one batch: the others conflict with what rides already.
const LOOK_AHEAD: usize = 4 * RIDERS_MAX;

/// How many requests of a kind are under way before others wait to ride together.
pub const REQUESTS_MAX: usize = 3;

/// A store that can run independent transactions in one request.
#[async_trait]
pub trait Many: Store {
    /// Runs transactions that share no written key with each other; each wins or loses by itself. The winners share
    /// one revision.
    ///
    /// # Errors
    /// As [`Store::commit`], for all of them.
    async fn commit_many(&self, txns: &[Txn]) -> Result<Vec<Outcome>, StoreError>;
}

/// Something that waits for its place on a request.
trait Rider: Sized + Send + 'static {
    /// What it is told.
    type Answer: Send;

    /// The company that it may join.
    type Batch: Default;

    /// Says whether it may join `batch`, and joins it if so. The first one may always.
    fn join(&self, batch: &mut Self::Batch) -> bool;
}

struct Waiting<R: Rider> {
    rider: R,
    answer: oneshot::Sender<R::Answer>,
}

/// Riders in the order of their arrival, and how many requests are under way.
struct Queue<R: Rider> {
    waiting: VecDeque<Waiting<R>>,
    under_way: usize,
}

impl<R: Rider> Default for Queue<R> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), under_way: 0 }
    }
}

impl<R: Rider> Queue<R> {
    /// Takes those that ride together next: the oldest, and whoever after it can join. Nobody is passed over for ever,
    /// because the oldest always rides.
    fn board(&mut self) -> Vec<Waiting<R>> {
        let mut batch = R::Batch::default();
        let mut aboard = Vec::new();
        let mut left = VecDeque::new();
        for _ in 0..LOOK_AHEAD {
            let Some(next) = self.waiting.pop_front() else { break };
            if next.rider.join(&mut batch) {
                aboard.push(next);
            } else {
                left.push_back(next);
            }
        }
        while let Some(next) = left.pop_back() {
            self.waiting.push_front(next);
        }
        aboard
    }
}

/// Transactions that ride together.
#[derive(Debug, Default)]
struct Company {
    riders: usize,
    bytes: usize,
    compared: HashSet<String>,
    written: HashSet<String>,
}

impl Rider for Txn {
    type Answer = Result<Outcome, StoreError>;
    type Batch = Company;

    fn join(&self, company: &mut Company) -> bool {
        let bytes = txn_bytes(self);
        let conflicts = self
            .ops
            .iter()
            .any(|op| company.written.contains(op.key()) || company.compared.contains(op.key()))
            || self.compares.iter().any(|compare| company.written.contains(compare.key()));
        let full = company.riders >= RIDERS_MAX || company.bytes + bytes > BATCH_BYTES_MAX;
        if company.riders > 0 && (conflicts || full) {
            return false;
        }
        company.riders += 1;
        company.bytes += bytes;
        company.compared.extend(self.compares.iter().map(|compare| compare.key().to_owned()));
        company.written.extend(self.ops.iter().map(|op| op.key().to_owned()));
        true
    }
}

fn txn_bytes(txn: &Txn) -> usize {
    let ops = txn.ops.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    });
    ops.chain(txn.compares.iter().map(|compare| compare.key().len())).sum()
}

/// Says whether a transaction may share a request.
fn may_ride(txn: &Txn) -> bool {
    let plain = |op: &Op| {
        let leased = matches!(op, Op::Put { lease: Some(_), .. });
        !leased && !op.key().starts_with(layout::NODES) && !op.key().starts_with(layout::NUMBERS)
    };
    let sized = |parts: usize| (1..=RIDER_PARTS_MAX).contains(&parts);
    sized(txn.ops.len()) && txn.compares.len() <= RIDER_PARTS_MAX && txn.ops.iter().all(plain)
}

/// The keys of one read.
struct Keys(Vec<String>);

impl Rider for Keys {
    type Answer = Result<Snapshot, StoreError>;
    type Batch = HashSet<String>;

    fn join(&self, union: &mut HashSet<String>) -> bool {
        let new = self.0.iter().filter(|key| !union.contains(*key)).count();
        if !union.is_empty() && union.len() + new > READ_KEYS_MAX {
            return false;
        }
        union.extend(self.0.iter().cloned());
        true
    }
}

/// A store whose concurrent transactions and reads share requests. Everything else passes through.
#[derive(Debug, Clone)]
pub struct GroupCommit<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    store: S,
    txns: Mutex<Queue<Txn>>,
    reads: Mutex<Queue<Keys>>,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GroupCommit").field(&self.store).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Many> GroupCommit<S> {
    /// Groups what is asked of `store`.
    pub fn new(store: S) -> Self {
        Self { shared: Arc::new(Shared { store, txns: Mutex::default(), reads: Mutex::default() }) }
    }

    /// The store without grouping.
    pub fn inner(&self) -> &S {
        &self.shared.store
    }
}

/// Queues a rider; returns its answer-to-be, and whether a request must be started for it.
fn queue<R: Rider>(queue: &Mutex<Queue<R>>, rider: R) -> (oneshot::Receiver<R::Answer>, bool) {
    let (answer, told) = oneshot::channel();
    let mut queue = lock(queue);
    queue.waiting.push_back(Waiting { rider, answer });
    let free = queue.under_way < REQUESTS_MAX;
    queue.under_way += usize::from(free);
    (told, free)
}

/// The next batch, or `None` when nobody waits: then the place on the line is given up.
fn next<R: Rider>(queue: &Mutex<Queue<R>>) -> Option<Vec<Waiting<R>>> {
    let mut queue = lock(queue);
    let batch = queue.board();
    if batch.is_empty() {
        queue.under_way -= 1;
        return None;
    }
    Some(batch)
}

impl<S: Many> Shared<S> {
    /// Carries transactions until none waits.
    async fn carry_txns(self: Arc<Self>) {
        while let Some(batch) = next(&self.txns) {
            let (txns, answers): (Vec<Txn>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.rider, waiting.answer)).unzip();
            for (answer, outcome) in answers.into_iter().zip(self.commit_all(txns).await) {
                // Who has gone away meanwhile has an unknown outcome, and reads.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn commit_all(&self, mut txns: Vec<Txn>) -> Vec<Result<Outcome, StoreError>> {
        let started = Instant::now();
        let count = txns.len();
        let single = if count == 1 { txns.pop() } else { None };
        let results = match single {
            Some(txn) => vec![self.store.commit(txn).await],
            None => match self.store.commit_many(&txns).await {
                Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
                // Nothing was written: one of them made the store refuse all, so each is tried by itself.
                Err(StoreError::Refused(_) | StoreError::LeaseNotFound) => {
                    metrics::count_batch_split();
                    let singles = txns.into_iter().map(|txn| self.store.commit(txn));
                    futures::future::join_all(singles).await
                }
                // Unreachable, or unknown: each decides again by what it reads.
                Err(error) => vec![Err(error); count],
            },
        };
        metrics::record_batch("commit", count, started.elapsed());
        results
    }

    /// Carries reads until none waits.
    async fn carry_reads(self: Arc<Self>) {
        while let Some(batch) = next(&self.reads) {
            let started = Instant::now();
            let count = batch.len();
            let mut places: HashMap<&str, usize> = HashMap::new();
            let mut union: Vec<String> = Vec::new();
            for key in batch.iter().flat_map(|waiting| &waiting.rider.0) {
                places.entry(key).or_insert_with(|| {
                    union.push(key.clone());
                    union.len() - 1
                });
            }
            let result = self.store.read(&union).await;
            let answers: Vec<_> = batch
                .iter()
                .map(|waiting| {
                    let snapshot = result.as_ref().map_err(Clone::clone)?;
                    let of = |key: &String| snapshot.values[places[key.as_str()]].clone();
                    Ok(Snapshot {
                        revision: snapshot.revision,
                        values: waiting.rider.0.iter().map(of).collect(),
                    })
                })
                .collect();
            drop(places);
            for (waiting, answer) in batch.into_iter().zip(answers) {
                // Whoever has gone away needs no answer.
                let _ = waiting.answer.send(answer);
            }
            metrics::record_batch("read", count, started.elapsed());
        }
    }
}

#[async_trait]
impl<S: Many> Store for GroupCommit<S> {
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        if keys.len() > READ_KEYS_MAX {
            return self.shared.store.read(keys).await;
        }
        let (told, start) = queue(&self.shared.reads, Keys(keys.to_vec()));
        if start {
            tokio::spawn(Arc::clone(&self.shared).carry_reads());
        }
        told.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the replica is stopping".to_owned())))
    }

    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        self.shared.store.range(prefix, after, limit, at).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        if !may_ride(&txn) {
            return self.shared.store.commit(txn).await;
        }
        let (told, start) = queue(&self.shared.txns, txn);
        if start {
            tokio::spawn(Arc::clone(&self.shared).carry_txns());
        }
        told.await.unwrap_or_else(|_| Err(StoreError::Unknown("the replica is stopping".to_owned())))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.shared.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.store.revoke_lease(lease).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.shared.store.watch(prefix, after)
    }
}

#[cfg(test)]
mod tests;
