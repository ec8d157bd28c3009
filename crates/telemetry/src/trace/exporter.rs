//! The bounded queue of finished spans and the thread that exports them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::Duration;

use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::mpsc;

use super::{SPANS_DROPPED, SPANS_EXPORTED, SPANS_QUEUED, TraceConfig, TraceError};
use crate::metrics;
use crate::sink::otlp_endpoint;

const BATCH_SPANS_MAX: usize = 512;

/// How long a span may wait for company.
const BATCH_WAIT: Duration = Duration::from_secs(1);

/// What the span queue did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceStats {
    /// Spans accepted by the queue.
    pub queued: u64,
    /// Spans that the collector acknowledged.
    pub exported: u64,
    /// Spans that found the queue full.
    pub dropped_queue_full: u64,
    /// Spans of batches that the collector did not take.
    pub dropped_failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    queued: AtomicU64,
    exported: AtomicU64,
    queue_full: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    fn stats(&self) -> TraceStats {
        TraceStats {
            queued: self.queued.load(Ordering::Relaxed),
            exported: self.exported.load(Ordering::Relaxed),
            dropped_queue_full: self.queue_full.load(Ordering::Relaxed),
            dropped_failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

enum Message {
    Span(Box<SpanData>),
    Resource(Box<Resource>),
    Flush(blocking::SyncSender<()>),
}

/// Takes finished spans; never waits.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    queue: mpsc::Sender<Message>,
    counters: Arc<Counters>,
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let counter = match self.queue.try_send(Message::Span(Box::new(span))) {
            Ok(()) => &self.counters.queued,
            Err(_) => &self.counters.queue_full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn force_flush(&self) -> OTelSdkResult {
        flush(&self.queue, Duration::from_secs(5))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        flush(&self.queue, timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        let _ = self.queue.try_send(Message::Resource(Box::new(resource.clone())));
    }
}

fn flush(queue: &mpsc::Sender<Message>, timeout: Duration) -> OTelSdkResult {
    let (done, wait) = blocking::sync_channel(1);
    queue.try_send(Message::Flush(done)).map_err(|_| OTelSdkError::Timeout(timeout))?;
    wait.recv_timeout(timeout).map_err(|_| OTelSdkError::Timeout(timeout))
}

/// Exports what is queued when it is dropped, waiting at most one second.
#[derive(Debug)]
pub(crate) struct TraceGuard {
    queue: mpsc::Sender<Message>,
    counters: Arc<Counters>,
}

impl TraceGuard {
    pub(crate) fn stats(&self) -> TraceStats {
        self.counters.stats()
    }
}

impl Drop for TraceGuard {
    fn drop(&mut self) {
        let _ = flush(&self.queue, Duration::from_secs(1));
    }
}

/// Starts the thread, with a runtime of its own for the collector's connection.
pub(super) fn start(config: &TraceConfig) -> Result<(SpanQueue, TraceGuard), TraceError> {
    let endpoint = otlp_endpoint(&config.endpoint, config.tls.as_ref(), config.timeout)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TraceError::Thread)?;
    let exporter = {
        let _inside = runtime.enter();
        SpanExporter::builder()
            .with_tonic()
            .with_channel(endpoint.connect_lazy())
            .build()
            .map_err(TraceError::Exporter)?
    };
    let (queue, spans) = mpsc::channel(config.queue_spans_max.max(1));
    let counters = Arc::new(Counters::default());
    let worker =
        Worker { exporter, spans, counters: Arc::clone(&counters), timeout: config.timeout, failing: false };
    crate::thread::spawn("jump-traces".into(), move || runtime.block_on(worker.run()))
        .map_err(TraceError::Thread)?;
    let counted = Arc::clone(&counters);
    metrics::before_scrape(move || {
        let stats = counted.stats();
        SPANS_QUEUED.counter(&[]).absolute(stats.queued);
        SPANS_EXPORTED.counter(&[]).absolute(stats.exported);
        SPANS_DROPPED.counter(&[("cause", "queue_full")]).absolute(stats.dropped_queue_full);
        SPANS_DROPPED.counter(&[("cause", "failed")]).absolute(stats.dropped_failed);
    });
    let guard = TraceGuard { queue: queue.clone(), counters: Arc::clone(&counters) };
    Ok((SpanQueue { queue, counters }, guard))
}

struct Worker {
    exporter: SpanExporter,
    spans: mpsc::Receiver<Message>,
    counters: Arc<Counters>,
    timeout: Duration,
    failing: bool,
}

impl Worker {
    async fn run(mut self) {
        let mut messages = Vec::with_capacity(BATCH_SPANS_MAX);
        while self.spans.recv_many(&mut messages, BATCH_SPANS_MAX).await > 0 {
            let urgent =
                |messages: &[Message]| messages.iter().any(|message| matches!(message, Message::Flush(_)));
            let company = async {
                while messages.len() < BATCH_SPANS_MAX && !urgent(&messages) {
                    let room = BATCH_SPANS_MAX - messages.len();
                    if self.spans.recv_many(&mut messages, room).await == 0 {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(BATCH_WAIT, company).await;
            let mut batch = Vec::new();
            for message in messages.drain(..) {
                match message {
                    Message::Span(span) => batch.push(*span),
                    Message::Resource(resource) => self.exporter.set_resource(&resource),
                    Message::Flush(done) => {
                        self.export(std::mem::take(&mut batch)).await;
                        let _ = done.try_send(());
                    }
                }
            }
            self.export(batch).await;
        }
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let cause = match tokio::time::timeout(self.timeout, self.exporter.export(batch)).await {
            Ok(Ok(())) => {
                self.counters.exported.fetch_add(count, Ordering::Relaxed);
                self.failing = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        self.counters.failed.fetch_add(count, Ordering::Relaxed);
        if !self.failing {
            tracing::warn!(cause, spans = count, "the trace collector takes no spans");
        }
        self.failing = true;
    }
}
