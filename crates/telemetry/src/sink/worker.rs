//! The part that all sinks share: the queue, the thread, batches, retries and counters.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::config::{QueueConfig, SinkConfig};
use super::{
    EVENTS_DROPPED, EVENTS_QUEUED, EVENTS_SENT, FAILURES, QUEUE_EVENTS, Record, SPOOL_BYTES, SinkError, file,
    http, otlp, syslog,
};
use crate::audit::Identity;
use crate::metrics;

/// The first and the longest pause between two attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// What a sink did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SinkStats {
    /// Events accepted by the queue.
    pub queued: u64,
    /// Events delivered: acknowledged where the protocol acknowledges, else written.
    pub sent: u64,
    /// Events dropped because the queue was full.
    pub dropped_queue_full: u64,
    /// Events that the receiver refused for good.
    pub dropped_rejected: u64,
    /// Events dropped because the spool was full or unusable.
    pub dropped_spool_full: u64,
    /// Events that the end of the program left undelivered.
    pub dropped_shutdown: u64,
    /// Failed attempts to connect or deliver.
    pub failures: u64,
    /// Events that wait in the queue or are being delivered.
    pub queue_events: u64,
    /// Bytes of the events that wait.
    pub queue_bytes: u64,
    /// Bytes in the spool on disk.
    pub spool_bytes: u64,
}

impl SinkStats {
    /// Returns all drops together.
    pub fn dropped(&self) -> u64 {
        self.dropped_queue_full + self.dropped_rejected + self.dropped_spool_full + self.dropped_shutdown
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) queued: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) spool_full: AtomicU64,
    pub(super) shutdown: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) waiting: AtomicUsize,
    pub(super) waiting_bytes: AtomicUsize,
    pub(super) spool_bytes: AtomicU64,
}

impl Counters {
    fn stats(&self) -> SinkStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SinkStats {
            queued: read(&self.queued),
            sent: read(&self.sent),
            dropped_queue_full: read(&self.queue_full),
            dropped_rejected: read(&self.rejected),
            dropped_spool_full: read(&self.spool_full),
            dropped_shutdown: read(&self.shutdown),
            failures: read(&self.failures),
            queue_events: self.waiting.load(Ordering::Relaxed) as u64,
            queue_bytes: self.waiting_bytes.load(Ordering::Relaxed) as u64,
            spool_bytes: read(&self.spool_bytes),
        }
    }

    fn done(&self, records: &[Arc<Record>]) {
        let bytes: usize = records.iter().map(|record| record.size()).sum();
        self.waiting.fetch_sub(records.len(), Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// How a delivery ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All delivered; this many of them were refused for good by the receiver.
    Sent {
        /// Refused by the receiver.
        rejected: usize,
    },
    /// The sink keeps them (on disk) and counts them itself later.
    Kept,
    /// The first `sent` are delivered; the rest is worth another attempt, no sooner than `after`.
    Retry {
        /// Delivered, from the front.
        sent: usize,
        /// The receiver's wish.
        after: Option<Duration>,
        /// For the log.
        cause: String,
    },
    /// The receiver will never take them.
    Rejected {
        /// For the log.
        cause: String,
    },
}

impl Verdict {
    pub(super) fn retry(cause: impl std::fmt::Display) -> Self {
        Self::Retry { sent: 0, after: None, cause: cause.to_string() }
    }
}

/// Delivers batches to one receiver.
pub(super) trait Deliver: Send + 'static {
    /// The most events in one batch, and how long the first waits for company.
    fn batch(&self) -> (usize, Duration);

    /// Delivers a batch, in order. May be cancelled at any await; an undelivered event is offered again.
    fn deliver(&mut self, batch: &[Arc<Record>]) -> impl Future<Output = Verdict> + Send;

    /// When to call [`Self::idle`] if no event arrives.
    fn idle_after(&self) -> Option<Duration> {
        None
    }

    /// Works on what was kept.
    fn idle(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The router's end of a sink's queue.
#[derive(Debug)]
pub(crate) struct SinkQueue {
    queue: mpsc::Sender<Arc<Record>>,
    counters: Arc<Counters>,
    bytes_max: usize,
}

impl SinkQueue {
    /// Says whether a record may still fit: rendering one that nobody takes is work for nothing.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.capacity() > 0 && self.counters.waiting_bytes.load(Ordering::Relaxed) < self.bytes_max
    }

    /// Counts a record that was not rendered because no queue had room.
    pub(crate) fn drop_unrendered(&self) {
        self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues the record or drops it, counted.
    pub(crate) fn offer(&self, record: &Arc<Record>) {
        let counters = &self.counters;
        let size = record.size();
        let before = counters.waiting_bytes.fetch_add(size, Ordering::Relaxed);
        counters.waiting.fetch_add(1, Ordering::Relaxed);
        if before + size <= self.bytes_max && self.queue.try_send(Arc::clone(record)).is_ok() {
            counters.queued.fetch_add(1, Ordering::Relaxed);
        } else {
            counters.done(std::slice::from_ref(record));
            counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The owner's view of a running sink.
#[derive(Debug)]
pub(crate) struct SinkHandle {
    name: String,
    counters: Arc<Counters>,
    queue: Option<SinkQueue>,
    deadline: watch::Sender<Option<Instant>>,
    finished: blocking::Receiver<()>,
}

impl SinkHandle {
    /// Starts a sink of the configured kind.
    pub(crate) fn start(config: SinkConfig, identity: &Identity) -> Result<Self, SinkError> {
        let name = config.name().to_owned();
        let queue = config.queue();
        let counters = Arc::new(Counters::default());
        match config {
            SinkConfig::File(config) => Self::spawn(name, queue, counters, file::FileSink::open(config)?),
            SinkConfig::Syslog(config) => {
                Self::spawn(name, queue, counters, syslog::SyslogSink::new(config, identity)?)
            }
            SinkConfig::Otlp(config) => {
                Self::spawn(name, queue, counters, otlp::OtlpSink::new(config, identity)?)
            }
            SinkConfig::Http(config) => {
                let sink = http::HttpSink::new(config, Arc::clone(&counters))?;
                Self::spawn(name, queue, counters, sink)
            }
        }
    }

    fn spawn(
        name: String,
        bounds: QueueConfig,
        counters: Arc<Counters>,
        sink: impl Deliver,
    ) -> Result<Self, SinkError> {
        let (queue, records) = mpsc::channel(bounds.events_max.max(1));
        let (deadline, stop) = watch::channel(None);
        let (finish, finished) = blocking::sync_channel(1);
        // Blocking threads look up names; a resolver that hangs may hold a few, not hundreds.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .map_err(SinkError::Thread)?;
        let worker = Worker { name: name.clone(), sink, records, counters: Arc::clone(&counters) };
        crate::thread::spawn(format!("jump-sink-{}", &name[..name.len().min(5)]), move || {
            runtime.block_on(worker.run(stop));
            let _ = finish.try_send(());
            // A name lookup that hangs must not hold the end of the thread.
            runtime.shutdown_background();
        })
        .map_err(SinkError::Thread)?;
        let queue = SinkQueue { queue, counters: Arc::clone(&counters), bytes_max: bounds.bytes_max };
        Ok(Self { name, counters, queue: Some(queue), deadline, finished })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn stats(&self) -> SinkStats {
        self.counters.stats()
    }

    /// Gives away the queue; the sink ends once it is dropped and everything is delivered.
    pub(crate) fn take_queue(&mut self) -> Option<SinkQueue> {
        self.queue.take()
    }

    /// Makes the sink give up at `deadline`.
    pub(crate) fn stop_at(&self, deadline: Instant) {
        let _ = self.deadline.send(Some(deadline));
    }

    /// Waits for the end of the sink. Says whether everything was delivered.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> bool {
        // A little longer than the sink itself has, for its own account of the end.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(200);
        self.finished.recv_timeout(left).is_ok() && self.counters.shutdown.load(Ordering::Relaxed) == 0
    }

    /// Shows the counters as metrics.
    pub(crate) fn publish(&self) {
        let (name, counters) = (self.name.clone(), Arc::clone(&self.counters));
        metrics::before_scrape(move || {
            let stats = counters.stats();
            let sink = [("sink", name.as_str())];
            EVENTS_QUEUED.counter(&sink).absolute(stats.queued);
            EVENTS_SENT.counter(&sink).absolute(stats.sent);
            FAILURES.counter(&sink).absolute(stats.failures);
            QUEUE_EVENTS.gauge(&sink).set(stats.queue_events as f64);
            SPOOL_BYTES.gauge(&sink).set(stats.spool_bytes as f64);
            for (cause, dropped) in [
                ("queue_full", stats.dropped_queue_full),
                ("rejected", stats.dropped_rejected),
                ("spool_full", stats.dropped_spool_full),
                ("shutdown", stats.dropped_shutdown),
            ] {
                EVENTS_DROPPED.counter(&[sink[0], ("cause", cause)]).absolute(dropped);
            }
        });
    }
}

struct Worker<S> {
    name: String,
    sink: S,
    records: mpsc::Receiver<Arc<Record>>,
    counters: Arc<Counters>,
}

impl<S: Deliver> Worker<S> {
    async fn run(mut self, stop: watch::Receiver<Option<Instant>>) {
        tokio::select! {
            () = self.deliver_all() => {}
            () = passed(stop) => {}
        }
        let left = self.counters.waiting.load(Ordering::Relaxed);
        self.counters.shutdown.fetch_add(left as u64, Ordering::Relaxed);
        if left > 0 {
            tracing::warn!(sink = self.name, events = left, "audit events were left undelivered");
        }
    }

    async fn deliver_all(&mut self) {
        let (batch_max, batch_wait) = self.sink.batch();
        let mut batch = Vec::with_capacity(batch_max);
        while self.fill(&mut batch, batch_max, batch_wait).await {
            self.deliver(&batch).await;
            batch.clear();
        }
    }

    /// Waits for a batch; false once the queue is closed and empty.
    async fn fill(&mut self, batch: &mut Vec<Arc<Record>>, batch_max: usize, batch_wait: Duration) -> bool {
        loop {
            let first = match self.sink.idle_after() {
                None => self.records.recv_many(batch, batch_max).await,
                Some(idle) => {
                    match tokio::time::timeout(idle, self.records.recv_many(batch, batch_max)).await {
                        Ok(count) => count,
                        Err(_) => {
                            self.sink.idle().await;
                            continue;
                        }
                    }
                }
            };
            if first == 0 {
                return false;
            }
            break;
        }
        let company = async {
            while batch.len() < batch_max {
                let room = batch_max - batch.len();
                if self.records.recv_many(batch, room).await == 0 {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(batch_wait, company).await;
        true
    }

    async fn deliver(&mut self, batch: &[Arc<Record>]) {
        let mut rest = batch;
        let mut backoff = BACKOFF.0;
        let mut failing = false;
        while !rest.is_empty() {
            let (done, pause) = match self.sink.deliver(rest).await {
                Verdict::Sent { rejected } => {
                    let rejected = rejected.min(rest.len());
                    self.counters.sent.fetch_add((rest.len() - rejected) as u64, Ordering::Relaxed);
                    self.counters.rejected.fetch_add(rejected as u64, Ordering::Relaxed);
                    (rest.len(), None)
                }
                Verdict::Kept => (rest.len(), None),
                Verdict::Rejected { cause } => {
                    self.counters.failures.fetch_add(1, Ordering::Relaxed);
                    self.counters.rejected.fetch_add(rest.len() as u64, Ordering::Relaxed);
                    tracing::warn!(sink = self.name, events = rest.len(), cause, "audit events were refused");
                    (rest.len(), None)
                }
                Verdict::Retry { sent, after, cause } => {
                    self.counters.failures.fetch_add(1, Ordering::Relaxed);
                    self.counters.sent.fetch_add(sent as u64, Ordering::Relaxed);
                    if !failing {
                        tracing::warn!(sink = self.name, cause, "audit sink failed and will be retried");
                    }
                    failing = true;
                    (sent, Some(after.unwrap_or(Duration::ZERO).max(jittered(backoff)).min(BACKOFF.1)))
                }
            };
            self.counters.done(&rest[..done]);
            rest = &rest[done..];
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            } else if failing {
                tracing::info!(sink = self.name, "audit sink works again");
            }
        }
    }
}

async fn passed(mut stop: watch::Receiver<Option<Instant>>) {
    // An owner that vanished without a word leaves the queue to end the sink.
    let deadline = match stop.wait_for(Option::is_some).await {
        Ok(deadline) => *deadline,
        Err(_) => None,
    };
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Between half and the whole of `pause`, so that many senders do not return at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish() % 512;
    pause.mul_f64(0.5 + random as f64 / 1023.0)
}
