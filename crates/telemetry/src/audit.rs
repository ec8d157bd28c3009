//! Audit events: what happened to sessions, nodes, devices and the API, for operators, auditors and SIEMs.
//!
//! [`Audit::emit`] numbers an event and puts it into a bounded queue of its own, larger than that of the logs; a
//! thread renders it as OCSF and offers it to every sink. Each [sink](crate::sink) has its own bounded queue, thread
//! and counters. A full queue drops the newest event and counts it; the numbers make the gap visible. No caller waits.

mod action;
mod event;
mod ocsf;
mod rate;
mod sequence;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::metrics::{self, Kind, MetricDef, Unit};
use crate::sink::{FileConfig, Record, SinkConfig, SinkError, SinkHandle, SinkQueue, SinkStats};
use crate::thread::COMPANY;

pub use action::{
    ActionDef, ApiAction, AttachAction, Class, EntityAction, NodeAction, SecurityAction, SessionAction,
    Severity, TrafficAction, groups, table,
};
pub use event::{Actor, Entity, Event, Path, RecoveryDurations, TEXT_BYTES_MAX};
pub use ocsf::VERSION as OCSF_VERSION;
pub use rate::RateLimit;

use ocsf::Origin;
use sequence::{Number, SESSIONS_MAX, Sequence};

/// Events that callers emitted.
pub const EVENTS_EMITTED: MetricDef = MetricDef {
    name: "jump_audit_events_emitted_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Audit events that the program emitted.",
    labels: &[],
};

/// Events that found the queue full.
pub const EVENTS_DROPPED: MetricDef = MetricDef {
    name: "jump_audit_events_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Audit events dropped before any sink because the audit queue was full.",
    labels: &[],
};

/// The metrics of this module; the sinks have their own.
pub const METRICS: &[MetricDef] = &[EVENTS_EMITTED, EVENTS_DROPPED];

/// The `[audit]` table of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// The longest queue before the sinks, in events.
    pub queue_events_max: usize,
    /// A file for events: short for a sink of the kind `file` with the name `file`.
    pub file: Option<PathBuf>,
    /// Where events go.
    pub sinks: Vec<SinkConfig>,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { queue_events_max: 32_768, file: None, sinks: Vec::new() }
    }
}

impl AuditConfig {
    /// Every sink, that of `file` included.
    pub fn all_sinks(&self) -> Vec<SinkConfig> {
        let file = self.file.clone().map(|path| SinkConfig::File(FileConfig::new("file", path)));
        self.sinks.iter().cloned().chain(file).collect()
    }

    /// What is wrong with the settings, as far as can be said without opening anything.
    pub fn problems(&self) -> Vec<String> {
        let names = check_names(&self.all_sinks()).err().map(|error| error.to_string());
        let queue =
            (self.queue_events_max == 0).then(|| "audit.queue_events_max must be at least 1".to_owned());
        names.into_iter().chain(queue).collect()
    }
}

/// Who emits; the same in every event of a process.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The program: `gateway`, `control`, `client`.
    pub component: String,
    /// The node's or replica's name; empty if it has none.
    pub node: String,
    /// The program's version.
    pub version: String,
}

/// Why auditing could not start.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A sink's settings are unusable.
    #[error("audit sink {name:?} cannot start")]
    Sink {
        /// The sink.
        name: String,
        /// Why.
        #[source]
        source: SinkError,
    },
    /// Two sinks have one name, or a name is unusable as a metric label.
    #[error("audit sink name {0:?} is used twice or is not 1 to 32 characters of a-z, 0-9 and -")]
    SinkName(String),
    /// The operating system gave no thread.
    #[error("could not start the audit thread")]
    Thread(#[source] std::io::Error),
}

/// What the audit queue did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditStats {
    /// Events emitted.
    pub emitted: u64,
    /// Events that found the queue full.
    pub dropped: u64,
}

enum Message {
    Event(Box<(Event, Number)>),
    Stop,
}

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Message>,
    /// Held for one number and one `try_send`, so that numbers enter the queue in their order.
    sequence: Mutex<Sequence>,
    emitted: AtomicU64,
    dropped: AtomicU64,
}

/// Takes events. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Audit(Option<Arc<Shared>>);

impl Audit {
    /// Takes events and forgets them: for tests and programs without auditing.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Numbers the event and queues it; drops it, counted, when the queue is full. Takes microseconds and no memory
    /// beyond the queue's bound. Not for the per-packet path.
    pub fn emit(&self, event: Event) {
        let Some(shared) = &self.0 else { return };
        shared.emitted.fetch_add(1, Ordering::Relaxed);
        let mut sequence = shared.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let number = sequence.next(event.session);
        if shared.queue.try_send(Message::Event(Box::new((event, number)))).is_err() {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns what the queue did so far.
    pub fn stats(&self) -> AuditStats {
        self.0.as_ref().map_or_else(AuditStats::default, |shared| AuditStats {
            emitted: shared.emitted.load(Ordering::Relaxed),
            dropped: shared.dropped.load(Ordering::Relaxed),
        })
    }
}

/// Keeps the sinks running; dropping it delivers what is queued, waiting at most two seconds.
#[derive(Debug)]
pub struct AuditGuard {
    audit: Audit,
    sinks: Vec<SinkHandle>,
    closed: bool,
}

impl AuditGuard {
    /// Returns what each sink did so far, by name.
    pub fn sinks(&self) -> Vec<(String, SinkStats)> {
        self.sinks.iter().map(|sink| (sink.name().to_owned(), sink.stats())).collect()
    }

    /// Stops taking events and waits until the sinks delivered what is queued, at most for `timeout`. What is then
    /// still queued is dropped and counted. Says whether everything was delivered. Blocks the calling thread.
    pub fn close(mut self, timeout: Duration) -> bool {
        self.stop(timeout)
    }

    fn stop(&mut self, timeout: Duration) -> bool {
        self.closed = true;
        let deadline = Instant::now() + timeout;
        if let Some(shared) = &self.audit.0 {
            while let Err(TrySendError::Full(_)) = shared.queue.try_send(Message::Stop) {
                if Instant::now() >= deadline {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.sinks.iter().for_each(|sink| sink.stop_at(deadline));
        // Every sink is waited for, also after one that did not finish.
        let delivered: Vec<bool> = self.sinks.iter_mut().map(|sink| sink.wait_until(deadline)).collect();
        !delivered.contains(&false)
    }
}

impl Drop for AuditGuard {
    fn drop(&mut self) {
        if !self.closed {
            self.stop(Duration::from_secs(2));
        }
    }
}

/// Starts auditing: the queue, its thread and the sinks.
///
/// # Errors
/// [`AuditError`]: a sink's settings are unusable, no thread. An unreachable collector is no error: the sink keeps
/// trying.
pub fn start(identity: Identity, config: AuditConfig) -> Result<(Audit, AuditGuard), AuditError> {
    let configured = config.all_sinks();
    check_names(&configured)?;
    let mut sinks = Vec::with_capacity(configured.len());
    for sink in configured {
        let name = sink.name().to_owned();
        let handle =
            SinkHandle::start(sink, &identity).map_err(|source| AuditError::Sink { name, source })?;
        sinks.push(handle);
    }
    let (audit, events) = open(config.queue_events_max);
    let offers: Vec<_> = sinks.iter_mut().filter_map(SinkHandle::take_queue).collect();
    let origin = origin(identity);
    crate::thread::spawn("jump-audit".into(), move || route(&events, &offers, &origin))
        .map_err(AuditError::Thread)?;
    let counted = audit.clone();
    metrics::before_scrape(move || {
        let stats = counted.stats();
        EVENTS_EMITTED.counter(&[]).absolute(stats.emitted);
        EVENTS_DROPPED.counter(&[]).absolute(stats.dropped);
    });
    sinks.iter().for_each(SinkHandle::publish);
    Ok((audit.clone(), AuditGuard { audit, sinks, closed: false }))
}

/// Offers every event to every sink, until told to stop.
fn route(events: &Receiver<Message>, sinks: &[SinkQueue], origin: &Origin) {
    while let Ok(first) = events.recv() {
        thread::sleep(COMPANY);
        for message in std::iter::once(first).chain(events.try_iter()) {
            let Message::Event(event) = message else { return };
            if sinks.iter().any(SinkQueue::has_room) {
                let record = Arc::new(record(&event.0, origin, event.1));
                sinks.iter().for_each(|sink| sink.offer(&record));
            } else {
                sinks.iter().for_each(SinkQueue::drop_unrendered);
            }
        }
    }
}

/// The process's audit, as its logs and metrics are the process's.
static PROCESS: OnceLock<Audit> = OnceLock::new();

/// Starts auditing for the whole process: [`emit`] reaches the sinks until the guard is dropped. Without a sink nothing
/// is started and nothing emitted. Call it once, first thing in `main`.
///
/// # Errors
/// As [`start`].
pub fn init(identity: Identity, config: &AuditConfig) -> Result<Option<AuditGuard>, AuditError> {
    if config.all_sinks().is_empty() {
        return Ok(None);
    }
    let (audit, guard) = start(identity, config.clone())?;
    install(audit);
    Ok(Some(guard))
}

/// Makes `audit` the process's. The first one stays.
pub fn install(audit: Audit) {
    let _ = PROCESS.set(audit);
}

/// Emits an event to the process's audit, if there is one: numbered, queued or dropped and counted, never waited for.
/// Not for the per-packet path.
pub fn emit(event: Event) {
    if let Some(audit) = PROCESS.get() {
        audit.emit(event);
    }
}

/// What [`capture`] collected.
#[derive(Debug)]
pub struct Captured {
    events: Receiver<Message>,
    origin: Origin,
}

impl Captured {
    /// Takes the events emitted so far, rendered as a sink would get them.
    pub fn take(&self) -> Vec<serde_json::Value> {
        self.events
            .try_iter()
            .filter_map(|message| match message {
                Message::Event(event) => Some(ocsf::render(&event.0, &self.origin, event.1)),
                Message::Stop => None,
            })
            .collect()
    }
}

/// Collects events in memory (at most 65,536), for tests.
pub fn capture(identity: Identity) -> (Audit, Captured) {
    let (audit, events) = open(65_536);
    (audit, Captured { events, origin: origin(identity) })
}

fn open(queue_events_max: usize) -> (Audit, Receiver<Message>) {
    let (queue, events) = sync_channel(queue_events_max.max(1));
    let shared = Shared {
        queue,
        sequence: Mutex::new(Sequence::new(SESSIONS_MAX)),
        emitted: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
    };
    (Audit(Some(Arc::new(shared))), events)
}

fn origin(identity: Identity) -> Origin {
    Origin {
        component: identity.component,
        instance: identity.node,
        version: identity.version,
        run: uuid::Uuid::now_v7(),
    }
}

fn record(event: &Event, origin: &Origin, number: Number) -> Record {
    Record {
        json: ocsf::render(event, origin, number).to_string(),
        time: event.time,
        definition: event.definition,
        sequence: number.run,
        session: event.session.map(|session| session.to_string()),
        correlation: event.correlation.map(|correlation| correlation.to_string()),
    }
}

fn check_names(sinks: &[SinkConfig]) -> Result<(), AuditError> {
    for (i, sink) in sinks.iter().enumerate() {
        let name = sink.name();
        let usable = (1..=32).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !usable || sinks[..i].iter().any(|other| other.name() == name) {
            return Err(AuditError::SinkName(name.to_owned()));
        }
    }
    Ok(())
}

/// The address that stands for a caller inside the process, where an event must name a source.
pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[cfg(test)]
mod tests;
