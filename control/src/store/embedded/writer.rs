//! The writer of the embedded store: the only place that changes the file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jump_session::ids::Revision;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, Table};
use tokio::sync::oneshot;

use super::super::{Compare, Event, KeyValue, Lease, LeaseId, Op, Outcome, StoreError, Txn};
use super::history::Change;
use super::{KEYS, LEASES, META, Shared, Slot, key_value, lock};

/// How many requests one file transaction carries at most.
const BATCH_REQUESTS_MAX: usize = 256;

/// How long the writer sleeps when no lease is about to end.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// How long the writer waits after a failed write before it tries again.
const FAILURE_WAIT: Duration = Duration::from_millis(100);

/// Where an answer goes.
pub(super) struct Reply<T> {
    pub(super) sender: oneshot::Sender<Result<T, StoreError>>,
    pub(super) _slot: Slot,
}

impl<T> Reply<T> {
    fn send(self, answer: Result<T, StoreError>) {
        // A caller that has gone away does not want it.
        let _ = self.sender.send(answer);
    }
}

/// What the writer is asked.
pub(super) enum Job {
    Commit(Txn, Reply<Outcome>),
    Grant(Duration, Reply<Lease>),
    Revoke(LeaseId, Reply<()>),
    Stop,
}

/// Live leases: time to live, deadline and keys.
#[derive(Debug, Default)]
pub(super) struct Leases {
    live: BTreeMap<LeaseId, LiveLease>,
}

#[derive(Debug)]
struct LiveLease {
    ttl: Duration,
    deadline: Instant,
    keys: BTreeSet<String>,
}

impl Leases {
    /// Starts the time to live anew; `None` when the lease has ended.
    pub(super) fn renew(&mut self, id: LeaseId, now: Instant) -> Option<()> {
        let lease = self.live.get_mut(&id)?;
        lease.deadline = now + lease.ttl;
        Some(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.live.values().map(|lease| lease.deadline).min()
    }

    fn take_due(&mut self, now: Instant) -> Vec<(LeaseId, LiveLease)> {
        let due: Vec<LeaseId> =
            self.live.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect();
        due.into_iter().filter_map(|id| Some((id, self.live.remove(&id)?))).collect()
    }
}

/// The revision that a read transaction shows.
pub(super) fn revision(transaction: &ReadTransaction) -> Result<Revision, redb::Error> {
    let meta = transaction.open_table(META)?;
    Ok(Revision(meta.get("revision")?.map_or(1, |guard| guard.value())))
}

/// Creates the tables, and loads the leases with their full time to live.
pub(super) fn prepare(database: &Database, now: Instant) -> Result<(Revision, Leases), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(KEYS)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(META)?;
    transaction.commit()?;

    let transaction = database.begin_read()?;
    let mut leases = Leases::default();
    for entry in transaction.open_table(LEASES)?.range::<i64>(..)? {
        let (id, ttl) = entry?;
        let ttl = Duration::from_millis(ttl.value());
        let lease = LiveLease { ttl, deadline: now + ttl, keys: BTreeSet::new() };
        leases.live.insert(LeaseId(id.value()), lease);
    }
    for entry in transaction.open_table(KEYS)?.range::<&str>(..)? {
        let (key, value) = entry?;
        let (_, _, lease, _) = value.value();
        if let Some(lease) = leases.live.get_mut(&LeaseId(lease)) {
            lease.keys.insert(key.value().to_owned());
        }
    }
    Ok((revision(&transaction)?, leases))
}

/// Runs until told to stop or until every handle is gone.
pub(super) fn run(shared: &Shared, queue: &Receiver<Job>) {
    loop {
        let now = Instant::now();
        let wait = lock(&shared.leases)
            .next_deadline()
            .map_or(IDLE_WAIT, |deadline| deadline.saturating_duration_since(now));
        let mut jobs = Vec::new();
        match queue.recv_timeout(wait) {
            Ok(job) => jobs.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        jobs.extend(queue.try_iter().take(BATCH_REQUESTS_MAX - 1));
        let stop = jobs.iter().any(|job| matches!(job, Job::Stop));
        let due = lock(&shared.leases).take_due(Instant::now());
        if !jobs.is_empty() || !due.is_empty() {
            write(shared, jobs, due);
        }
        if stop {
            return;
        }
    }
}

/// An answer that is sent once the file transaction is durable.
enum Answer {
    Commit(Reply<Outcome>, Result<Outcome, StoreError>),
    Grant(Reply<Lease>, Lease),
    Revoke(Reply<()>),
}

fn write(shared: &Shared, jobs: Vec<Job>, due: Vec<(LeaseId, LiveLease)>) {
    let mut answers = Vec::with_capacity(jobs.len());
    match apply(shared, jobs, &due, &mut answers) {
        Ok((newest, past)) => {
            {
                let mut history = lock(&shared.history);
                for (revision, changes) in past {
                    history.push(revision, changes);
                }
            }
            shared.published.send_if_modified(|published| {
                let moved = *published != newest;
                *published = newest;
                moved
            });
            for answer in answers {
                match answer {
                    Answer::Commit(reply, outcome) => reply.send(outcome),
                    Answer::Grant(reply, lease) => reply.send(Ok(lease)),
                    Answer::Revoke(reply) => reply.send(Ok(())),
                }
            }
        }
        Err(error) => {
            tracing::error!(%error, "the embedded store could not write; check the disk");
            // They end with the next write.
            lock(&shared.leases).live.extend(due);
            for answer in answers {
                let unknown = StoreError::Unknown(error.to_string());
                match answer {
                    Answer::Commit(reply, _) => reply.send(Err(unknown)),
                    Answer::Grant(reply, _) => reply.send(Err(unknown)),
                    Answer::Revoke(reply) => reply.send(Err(unknown)),
                }
            }
            std::thread::sleep(FAILURE_WAIT);
        }
    }
}

/// What each revision of a batch changed.
type Past = Vec<(Revision, Vec<Change>)>;

/// Which lease a key is attached to now.
type Attached = Vec<(String, Option<LeaseId>)>;

fn apply(
    shared: &Shared,
    jobs: Vec<Job>,
    due: &[(LeaseId, LiveLease)],
    answers: &mut Vec<Answer>,
) -> Result<(Revision, Past), redb::Error> {
    let transaction = shared.database.begin_write()?;
    let mut past = Past::new();
    // Lease changes take effect in memory after the commit.
    let mut attached = Attached::new();
    let mut granted: Vec<(LeaseId, Duration)> = Vec::new();
    let mut revoked: Vec<LeaseId> = Vec::new();
    let newest;
    {
        let mut meta = transaction.open_table(META)?;
        let mut batch = Batch {
            keys: transaction.open_table(KEYS)?,
            revision: Revision(meta.get("revision")?.map_or(1, |guard| guard.value())),
        };
        let mut leases = transaction.open_table(LEASES)?;
        let mut last_lease = meta.get("last_lease")?.map_or(0, |guard| guard.value());
        for (id, lease) in due {
            leases.remove(id.0)?;
            past.extend(batch.end_lease(&lease.keys)?);
        }
        for job in jobs {
            match job {
                Job::Commit(txn, reply) => {
                    let outcome = match batch.check(&txn, &leases)? {
                        Ok(true) => {
                            let (revision, changes) = batch.write(&txn.ops, &mut attached)?;
                            past.extend((!changes.is_empty()).then_some((revision, changes)));
                            Ok(Outcome::Committed(revision))
                        }
                        Ok(false) => Ok(Outcome::Conflict),
                        Err(error) => Err(error),
                    };
                    answers.push(Answer::Commit(reply, outcome));
                }
                Job::Grant(ttl, reply) => {
                    last_lease += 1;
                    let id = LeaseId(i64::try_from(last_lease).unwrap_or(i64::MAX));
                    leases.insert(id.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
                    granted.push((id, ttl));
                    answers.push(Answer::Grant(reply, Lease { id, ttl }));
                }
                Job::Revoke(id, reply) => {
                    let known = leases.remove(id.0)?.is_some();
                    if known {
                        let keys = batch.keys_of(id, &lock(&shared.leases), &attached)?;
                        past.extend(batch.end_lease(&keys)?);
                        revoked.push(id);
                    }
                    answers.push(Answer::Revoke(reply));
                }
                Job::Stop => {}
            }
        }
        newest = batch.revision;
        meta.insert("revision", newest.0)?;
        meta.insert("last_lease", last_lease)?;
    }
    transaction.commit()?;
    remember(&mut lock(&shared.leases), granted, attached, &revoked);
    Ok((newest, past))
}

fn remember(leases: &mut Leases, granted: Vec<(LeaseId, Duration)>, attached: Attached, revoked: &[LeaseId]) {
    let now = Instant::now();
    for (id, ttl) in granted {
        leases.live.insert(id, LiveLease { ttl, deadline: now + ttl, keys: BTreeSet::new() });
    }
    for (key, lease) in attached {
        for live in leases.live.values_mut() {
            live.keys.remove(&key);
        }
        if let Some(live) = lease.and_then(|id| leases.live.get_mut(&id)) {
            live.keys.insert(key);
        }
    }
    for id in revoked {
        leases.live.remove(id);
    }
}

/// The keys inside one file transaction.
struct Batch<'t> {
    keys: Table<'t, &'static str, (u64, u64, i64, &'static [u8])>,
    revision: Revision,
}

impl Batch<'_> {
    fn get(&self, key: &str) -> Result<Option<KeyValue>, redb::Error> {
        Ok(self.keys.get(key)?.map(|guard| key_value(key, guard.value())))
    }

    /// Whether every compare holds; the inner error when the transaction cannot be run at all.
    fn check(
        &self,
        txn: &Txn,
        leases: &Table<'_, i64, u64>,
    ) -> Result<Result<bool, StoreError>, redb::Error> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = txn.ops.iter().find(|op| !seen.insert(op.key())) {
            return Ok(Err(StoreError::Refused(format!("key written twice: {}", twice.key()))));
        }
        for compare in &txn.compares {
            let found = self.get(compare.key())?;
            let created = found.as_ref().map_or(Revision(0), |value| value.create_revision);
            let modified = found.as_ref().map_or(Revision(0), |value| value.mod_revision);
            let holds = match compare {
                Compare::Created(_, revision) => created == *revision,
                Compare::NotCreated(_, revision) => created != *revision,
                Compare::Modified(_, revision) => modified == *revision,
            };
            if !holds {
                return Ok(Ok(false));
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && leases.get(lease.0)?.is_none()
            {
                return Ok(Err(StoreError::LeaseNotFound));
            }
        }
        Ok(Ok(true))
    }

    /// Runs the writes at the next revision. Writes that change nothing take no revision.
    fn write(&mut self, ops: &[Op], attached: &mut Attached) -> Result<(Revision, Vec<Change>), redb::Error> {
        let revision = Revision(self.revision.0 + 1);
        let mut changes = Vec::new();
        for op in ops {
            let before = self.get(op.key())?;
            let was_leased = before.as_ref().is_some_and(|old| old.lease.is_some());
            let event = match op {
                Op::Put { key, value, lease } => {
                    let create_revision = before.as_ref().map_or(revision, |old| old.create_revision);
                    let id = lease.map_or(0, |lease| lease.0);
                    self.keys.insert(key.as_str(), (create_revision.0, revision.0, id, value.as_slice()))?;
                    if lease.is_some() || was_leased {
                        attached.push((key.clone(), *lease));
                    }
                    Event::Put(KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                        lease: *lease,
                    })
                }
                Op::Delete { key } => {
                    if before.is_none() {
                        continue;
                    }
                    self.keys.remove(key.as_str())?;
                    if was_leased {
                        attached.push((key.clone(), None));
                    }
                    Event::Delete { key: key.clone(), revision }
                }
            };
            changes.push(Change { event, before });
        }
        if !changes.is_empty() {
            self.revision = revision;
        }
        Ok((self.revision, changes))
    }

    /// Deletes the keys of a lease at the next revision.
    fn end_lease(&mut self, keys: &BTreeSet<String>) -> Result<Option<(Revision, Vec<Change>)>, redb::Error> {
        let ops: Vec<Op> = keys.iter().map(Op::delete).collect();
        let (revision, changes) = self.write(&ops, &mut Attached::new())?;
        Ok((!changes.is_empty()).then_some((revision, changes)))
    }

    /// The keys of a lease, counting what this batch attached.
    fn keys_of(
        &self,
        id: LeaseId,
        leases: &Leases,
        attached: &Attached,
    ) -> Result<BTreeSet<String>, redb::Error> {
        let mut candidates = leases.live.get(&id).map(|lease| lease.keys.clone()).unwrap_or_default();
        candidates.extend(attached.iter().map(|(key, _)| key.clone()));
        let mut keys = BTreeSet::new();
        for key in candidates {
            if self.get(&key)?.is_some_and(|value| value.lease == Some(id)) {
                keys.insert(key);
            }
        }
        Ok(keys)
    }
}
