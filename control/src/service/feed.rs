//! Snapshots and deltas for watchers: how far each has got, when it must start anew.

use std::sync::Arc;

use jump_session::ids::Revision;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Context, ServiceError};
use crate::bindings::{Delta, Everything};

/// How many messages may wait for a slow watcher; the cache's bound on deltas is what it may fall behind.
const QUEUE_MESSAGES: usize = 16;

/// How many items one message carries at most.
pub(super) const ITEMS_PER_MESSAGE: usize = 1000;

/// What one kind of watcher is told.
pub(super) trait Feed: Send + 'static {
    /// Its messages.
    type Message: Send + 'static;

    /// The messages of a snapshot; the first says that it starts, the last that it is complete.
    fn snapshot(&self, everything: Everything) -> Vec<Self::Message>;

    /// The messages of deltas up to `revision`; none when nothing concerns the watcher.
    fn deltas(&self, revision: Revision, deltas: Vec<Delta>) -> Vec<Self::Message>;
}

/// The stream type of watches.
pub(super) type Messages<M> = ReceiverStream<Result<M, Status>>;

/// Starts a feed after `after` (0 for a snapshot).
pub(super) async fn start<F: Feed>(
    context: &Arc<Context>,
    after: Revision,
    feed: F,
) -> Result<Messages<F::Message>, ServiceError> {
    let bindings = &context.bindings;
    bindings.ready().await;
    let mut resume = (after.0 > 0).then_some(after);
    // A revision from the future is of another store, unless this replica merely lags.
    if after > bindings.revision() && context.arbiter.store.read(&[]).await?.revision < after {
        resume = None;
    }
    let (messages, stream) = mpsc::channel(QUEUE_MESSAGES);
    tokio::spawn(run(Arc::clone(context), resume, feed, messages));
    Ok(ReceiverStream::new(stream))
}

async fn run<F: Feed>(
    context: Arc<Context>,
    resume: Option<Revision>,
    feed: F,
    messages: mpsc::Sender<Result<F::Message, Status>>,
) {
    let mut at = resume;
    let mut reached = context.bindings.reached();
    loop {
        reached.mark_unchanged();
        let known = at.and_then(|at| context.bindings.deltas_after(at));
        let (revision, batch) = match known {
            Some((revision, deltas)) if deltas.is_empty() => (revision, Vec::new()),
            Some((revision, deltas)) => (revision, feed.deltas(revision, deltas)),
            None => {
                let everything = context.bindings.everything();
                (everything.revision, feed.snapshot(everything))
            }
        };
        at = Some(revision);
        for message in batch {
            let sent = tokio::select! {
                sent = messages.send(Ok(message)) => sent.is_ok(),
                () = context.stop.cancelled() => false,
            };
            if !sent {
                return;
            }
        }
        tokio::select! {
            changed = reached.changed() => if changed.is_err() { return },
            () = messages.closed() => return,
            () = context.stop.cancelled() => {
                // A reader that is gone needs no farewell.
                let _ = messages.try_send(Err(Status::unavailable("this control replica is stopping: watch another")));
                return;
            }
        }
    }
}
