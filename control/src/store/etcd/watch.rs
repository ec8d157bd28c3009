//! A watch that outlives its connection.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse};
use jump_session::ids::Revision;
use tokio::sync::mpsc;

use super::super::{Event, StoreError, WatchBatch};
use super::failure::Failure;
use super::pool::{Member, Pool};
use super::{key_value, signed};

/// Pause before a lost watch is opened again, at first and at most.
const REOPEN_MIN: Duration = Duration::from_millis(20);
const REOPEN_MAX: Duration = Duration::from_secs(1);

type Batches = mpsc::Sender<Result<WatchBatch, StoreError>>;

/// Why one connection's watch ended.
enum End {
    ReaderGone,
    Compacted,
    Lost(String),
}

/// Follows `prefix` after revision `after` until the reader goes away or the revision is compacted.
pub(super) async fn follow(pool: Arc<Pool>, prefix: String, after: Revision, batches: Batches) {
    let mut after = after;
    let mut pause = REOPEN_MIN;
    loop {
        let member = pool.choose();
        let reached = after;
        let end = tokio::select! {
            end = stream(&pool, member, &prefix, &mut after, &batches) => end,
            () = batches.closed() => End::ReaderGone,
        };
        match end {
            End::ReaderGone => return,
            End::Compacted => {
                // A reader that has gone away lists again by itself.
                let _ = batches.send(Err(StoreError::Compacted)).await;
                return;
            }
            End::Lost(reason) => {
                tracing::warn!(endpoint = member.endpoint(), %reason, after = after.0, "watch lost; resuming");
                pool.pass_over(member);
            }
        }
        pause = if after > reached { REOPEN_MIN } else { (pause * 2).min(REOPEN_MAX) };
        tokio::time::sleep(pause).await;
    }
}

/// Streams from one member; moves `after` along with what was delivered.
async fn stream(pool: &Pool, member: &Member, prefix: &str, after: &mut Revision, batches: &Batches) -> End {
    // No progress notifications: before 3.4.25 and 3.5.8 they may overtake events. The last delivered event is the
    // only safe place to resume from.
    let options = WatchOptions::new().with_prefix().with_start_revision(signed(after.0 + 1));
    let opened = pool
        .once(member, async {
            let mut stream = member.watch().await?.watch(prefix, Some(options)).await?;
            let first = stream.message().await?;
            Ok((stream, first))
        })
        .await;
    let (mut stream, mut message) = match opened {
        Ok(opened) => opened,
        Err(Failure::Compacted) => return End::Compacted,
        Err(failure) => return End::Lost(StoreError::from(failure).to_string()),
    };
    loop {
        let Some(response) = message else {
            return End::Lost("the server closed the watch".to_owned());
        };
        if response.compact_revision() > 0 {
            return End::Compacted;
        }
        if response.canceled() {
            return End::Lost(format!("the server cancelled the watch: {}", response.cancel_reason()));
        }
        match batch(&response) {
            Ok(None) => {}
            Ok(Some(batch)) => {
                *after = batch.revision;
                if batches.send(Ok(batch)).await.is_err() {
                    return End::ReaderGone;
                }
            }
            Err(failure) => return End::Lost(StoreError::from(failure).to_string()),
        }
        message = match stream.message().await {
            Ok(message) => message,
            Err(error) => return End::Lost(error.to_string()),
        };
    }
}

/// The events of a response; `None` when it has none. The header's revision is no progress: a watcher that catches up
/// gets it while events are still to come.
fn batch(response: &WatchResponse) -> Result<Option<WatchBatch>, Failure> {
    let mut events = Vec::with_capacity(response.events().len());
    let mut revision = Revision(0);
    for event in response.events() {
        let Some(value) = event.kv() else { continue };
        let value = key_value(value)?;
        revision = revision.max(value.mod_revision);
        events.push(match event.event_type() {
            EventType::Put => Event::Put(value),
            EventType::Delete => Event::Delete { revision: value.mod_revision, key: value.key },
        });
    }
    Ok((!events.is_empty()).then_some(WatchBatch { revision, events }))
}
