//! Structured logs: `tracing` to stderr as JSON lines or for people, through a bounded queue that never blocks.
//!
//! Names in every JSON line: `ts` (RFC 3339, UTC, microseconds), `level`, `target`, `message`, `component`, `instance`
//! (who logs), `node` (the node that the line is about; the logger itself unless the event says otherwise). Fields of
//! the event and of the spans around it follow under their own names, an inner one hiding an outer one of the same
//! name: `session`, `correlation`, `epoch`, `reason`, ….

mod line;
mod writer;

use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::metrics::{self, Kind, MetricDef, Unit};
use crate::trace::{self, TraceConfig, TraceError, TraceGuard, TraceStats};

pub use line::LineLayer;
pub use writer::{LogStats, QueueWriter};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// For people at a terminal.
    Human,
}

/// Says that a format's name is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log format: expected json or human")]
pub struct InvalidFormat;

impl FromStr for Format {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        match text {
            "json" => Ok(Self::Json),
            "human" => Ok(Self::Human),
            _ => Err(InvalidFormat),
        }
    }
}

/// What [`init`] needs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// How lines look.
    pub format: Format,
    /// Levels per target, as `tracing` writes them: `info,jump_gateway=debug`.
    pub filter: String,
    /// The program: `gateway`, `control`, `client`.
    pub component: String,
    /// The node's or replica's name; empty if it has none.
    pub node: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: Format::Json, filter: "info".into(), component: "jump".into(), node: String::new() }
    }
}

/// Why logging could not start or change.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("invalid log filter {filter:?}")]
    Filter {
        /// The refused text.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another subscriber is installed in this process.
    #[error("logging is already initialised")]
    AlreadyInitialised,
    /// The writer thread could not start.
    #[error("could not start the log writer")]
    Writer(#[source] std::io::Error),
    /// Traces could not start.
    #[error("could not start traces")]
    Trace(#[from] TraceError),
}

/// Lines queued for stderr.
pub const LINES_QUEUED: MetricDef = MetricDef {
    name: "jump_log_lines_queued_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Log lines accepted by the bounded log queue.",
    labels: &[],
};

/// Lines dropped.
pub const LINES_DROPPED: MetricDef = MetricDef {
    name: "jump_log_lines_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Log lines dropped because the log queue was full or stderr could not be written.",
    labels: &[],
};

/// The metrics of this module.
pub const METRICS: &[MetricDef] = &[LINES_QUEUED, LINES_DROPPED];

type FilterHandle = reload::Handle<EnvFilter, Registry>;

/// The handle of this process, once [`init`] has run.
static HANDLE: OnceLock<LogHandle> = OnceLock::new();

/// Returns the handle that changes this process's levels; `None` before [`init`].
pub fn handle() -> Option<LogHandle> {
    HANDLE.get().cloned()
}

/// Changes levels while the program runs. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    filter: FilterHandle,
    configured: Arc<Mutex<String>>,
}

impl LogHandle {
    fn new(filter: FilterHandle, configured: &str) -> Self {
        Self { filter, configured: Arc::new(Mutex::new(configured.to_owned())) }
    }

    /// Replaces the filter, for example by `info,jump_gateway::mesh=trace`.
    ///
    /// # Errors
    /// [`LogError::Filter`] when the text does not parse; the old filter stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse_filter(filter)?;
        // Reloading fails only once the subscriber is gone, which a process-wide one never is.
        self.filter.reload(parsed).map_err(|_| LogError::AlreadyInitialised)
    }

    /// Returns the filter in force.
    pub fn filter(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Takes over a filter that was configured anew: it is in force, and the one to go back to.
    ///
    /// # Errors
    /// As [`Self::set_filter`].
    pub fn configure(&self, filter: &str) -> Result<(), LogError> {
        self.set_filter(filter)?;
        filter.clone_into(&mut self.configured());
        Ok(())
    }

    /// Goes back to the configured filter.
    pub fn reset_filter(&self) {
        let configured = self.configured().clone();
        let _ = self.set_filter(&configured);
    }

    fn configured(&self) -> MutexGuard<'_, String> {
        self.configured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle").field("filter", &self.filter()).finish()
    }
}

/// Keeps logging alive; dropping it writes out what is queued, waiting at most half a second.
#[derive(Debug)]
pub struct LogGuard {
    handle: LogHandle,
    traces: Option<TraceGuard>,
    writer: QueueWriter,
}

impl LogGuard {
    /// Returns the handle that changes levels.
    pub fn handle(&self) -> LogHandle {
        self.handle.clone()
    }

    /// Returns what was queued and dropped so far.
    pub fn stats(&self) -> LogStats {
        self.writer.stats()
    }

    /// Returns what happened to spans so far, if traces are on.
    pub fn trace_stats(&self) -> Option<TraceStats> {
        self.traces.as_ref().map(TraceGuard::stats)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // First, because a failed export may still want to say so.
        drop(self.traces.take());
        self.writer.flush(Duration::from_millis(500));
    }
}

/// Installs logging for the whole process. Call once, first thing in `main`, and keep the guard until the end.
///
/// # Errors
/// [`LogError`]: a filter that does not parse, a second call, no thread for the writer.
pub fn init(config: LogConfig) -> Result<LogGuard, LogError> {
    init_with_traces(config, None)
}

/// Installs logging, and traces if there is a collector for them. Lines of a sampled span carry its `trace_id` and
/// `span_id`.
///
/// # Errors
/// As [`init`]; [`LogError::Trace`] when the trace settings are unusable. An unreachable collector is no error.
pub fn init_with_traces(config: LogConfig, traces: Option<TraceConfig>) -> Result<LogGuard, LogError> {
    let filter = parse_filter(&config.filter)?;
    let writer = QueueWriter::start(std::io::stderr()).map_err(LogError::Writer)?;
    let (filter, filter_handle) = reload::Layer::new(filter);
    let mut lines = LineLayer::new(&config, writer.clone());
    let (spans, traces) = match traces {
        None => (None, None),
        Some(traces) => {
            let span_filter = parse_filter(&traces.filter)?;
            let (provider, guard) = trace::start(&traces, &config.component, &config.node)?;
            lines = lines.with_trace_ids();
            // The tracer keeps its provider alive.
            let spans =
                tracing_opentelemetry::layer().with_tracer(provider.tracer("jump")).with_threads(false);
            (Some(spans.with_filter(span_filter)), Some(guard))
        }
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|_| LogError::AlreadyInitialised)?;
    let handle = HANDLE.get_or_init(|| LogHandle::new(filter_handle, &config.filter)).clone();
    let counted = writer.clone();
    metrics::before_scrape(move || {
        let stats = counted.stats();
        LINES_QUEUED.counter(&[]).absolute(stats.queued);
        LINES_DROPPED.counter(&[]).absolute(stats.dropped);
    });
    Ok(LogGuard { handle, traces, writer })
}

/// Changes levels by signals. `SIGUSR1` shows debug lines too, `SIGUSR2` goes back to the configured levels. With
/// `reread`, which reads the levels from the program's settings once more, `SIGHUP` takes those over; a file that is wrong
/// changes nothing and is logged. Runs until it is dropped.
///
/// # Errors
/// The operating system's, when a signal handler cannot be installed.
///
/// # Cancel safety
/// Cancel safe; a signal that was not yet acted on may be lost.
pub async fn follow_signals<R>(handle: LogHandle, reread: Option<R>) -> std::io::Result<()>
where
    R: Fn() -> Result<String, String>,
{
    use tokio::signal::unix::{SignalKind, signal};
    let mut more = signal(SignalKind::user_defined1())?;
    let mut normal = signal(SignalKind::user_defined2())?;
    // Without settings to read again the signal keeps its usual meaning: the end.
    let mut again = reread.as_ref().map(|_| signal(SignalKind::hangup())).transpose()?;
    loop {
        let again = async {
            match &mut again {
                Some(again) => again.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = more.recv() => {
                // Directives for single targets stay in force.
                let debug = format!("{},debug", handle.configured());
                let _ = handle.set_filter(&debug);
            }
            _ = normal.recv() => handle.reset_filter(),
            _ = again => {
                let Some(reread) = &reread else { continue };
                let configured = reread()
                    .and_then(|filter| handle.configure(&filter).map_err(|error| error.to_string()));
                if let Err(problem) = configured {
                    tracing::error!(problem, "log levels stay as they are: the settings cannot be read again");
                    continue;
                }
            }
        }
        tracing::info!(filter = handle.filter(), "log levels changed by a signal");
    }
}

/// Says whether a filter parses.
///
/// # Errors
/// [`LogError::Filter`].
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse_filter(filter).map(|_| ())
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_refused_with_its_text() {
        let error = parse_filter("info,jump=loud").expect_err("loud is no level");
        assert_eq!(error.to_string(), "invalid log filter \"info,jump=loud\"");
    }

    /// The lines that `work` logs, with levels that begin at `info`.
    fn lines_of(work: impl FnOnce(&LogHandle)) -> Vec<String> {
        let (sink, lines) = writer::memory();
        let writer = QueueWriter::start(sink).expect("a thread starts");
        let (filter, filter_handle) = reload::Layer::new(parse_filter("info").expect("valid"));
        let lines_layer = LineLayer::new(&LogConfig::default(), writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines_layer.with_filter(filter));
        let handle = LogHandle::new(filter_handle, "info");
        tracing::subscriber::with_default(subscriber, || work(&handle));
        assert!(writer.flush(Duration::from_secs(5)));
        let lines = lines.lock().expect("no panic");
        lines.clone()
    }

    #[test]
    fn levels_change_while_the_program_runs_and_a_bad_filter_changes_nothing() {
        let lines = lines_of(|handle| {
            let say = || tracing::debug!("deep");
            say();
            assert!(handle.set_filter("jump=loud").is_err());
            say();
            handle.set_filter("debug").expect("valid");
            assert_eq!(handle.filter(), "debug");
            say();
            handle.reset_filter();
            say();
        });
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn levels_are_set_per_target_and_levels_configured_anew_are_the_ones_to_go_back_to() {
        let lines = lines_of(|handle| {
            let say = || {
                tracing::debug!(target: "jump_gateway::mesh", "wanted");
                tracing::debug!(target: "jump_gateway::lease", "unwanted");
            };
            say();
            handle.configure("info,jump_gateway::mesh=debug").expect("valid");
            say();
            handle.set_filter("error").expect("valid");
            say();
            handle.reset_filter();
            say();
            assert!(handle.configure("jump=loud").is_err());
            handle.reset_filter();
            assert_eq!(handle.filter(), "jump_gateway::mesh=debug,info");
        });
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.contains("\"wanted\"")));
    }
}
