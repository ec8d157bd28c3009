//! What time does: sessions that end or lose their owner, tombstones, tokens and addresses that may be forgotten.
//!
//! Every replica may run it at once: each step is a compare-and-swap. Each look costs what is due, and 1/256 of the tokens;
//! nothing grows with the sessions that live.

use std::sync::Arc;
use std::time::Duration;

use jump_proto::store_v1::{AddressRecord, TokenRecord};
use jump_session::ids::Revision;
use jump_session::ownership::{self, DeviceStanding, Phase, UnixMillis, View};
use jump_session::policy::SessionPolicy;
use tokio_util::sync::CancellationToken;

use crate::arbiter::{Arbiter, ArbiterError};
use crate::bindings::TOMBSTONE_RETENTION_MS;
use crate::layout::{self, StoredSession};
use crate::store::{self, Compare, KeyValue, Op, Outcome, RANGE_LIMIT_MAX, StoreError, Txn};
use crate::{addresses, clock, metrics};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Ended sessions whose addresses are read at a time: two addresses each, within what one read of the store takes.
const ADDRESSES_OF: usize = 50;

/// Runs until `stop`.
pub async fn run(arbiter: Arc<Arbiter>, stop: CancellationToken) {
    for bucket in (0..=u8::MAX).cycle() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        expire_due(&arbiter).await;
        if let Err(error) = forget_unneeded(&arbiter, bucket).await {
            tracing::warn!(%error, "could not clear what is no longer needed; trying again later");
        }
    }
}

/// Applies [`ownership::expire`] to every session that the cache says is due; the store has the last word.
pub async fn expire_due(arbiter: &Arbiter) {
    let now = clock::unix_millis();
    let due = arbiter.bindings.sessions_due(now, RANGE_LIMIT_MAX, |session, registered| {
        is_due(session, registered, &arbiter.policy, now)
    });
    for session in due {
        let id = session.record.id;
        match arbiter.expire(id).await {
            Ok(stored) if stored.modified != session.modified => {
                metrics::count_expired(stored.record.reason.code());
                tracing::info!(
                    session = %id,
                    correlation = %uuid::Uuid::from_bytes(stored.record.correlation),
                    epoch = stored.record.epoch.0,
                    reason = stored.record.reason.code(),
                    "session expired or lost its owner"
                );
            }
            Ok(_) => {}
            Err(ArbiterError::Refused(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "could not expire sessions; trying again");
                return;
            }
        }
    }
}

fn is_due(session: &StoredSession, owner_registered: bool, policy: &SessionPolicy, now: UnixMillis) -> bool {
    let view = View {
        claimant_registered: false,
        claimant_draining: false,
        owner_draining: false,
        owner_registered,
        target_registered: false,
        device: DeviceStanding::Active,
    };
    ownership::expire(&session.record, &view, policy, now).is_some()
}

/// Forgets addresses that have rested, old tombstones, and the old tokens of one bucket of 256.
///
/// Nothing is looked for in the store but tokens: which addresses rest is known from the tombstones in the cache. A walk
/// through all addresses would read every one in use, and etcd counts the rest of a range for each page of it.
async fn forget_unneeded(arbiter: &Arbiter, token_bucket: u8) -> Result<(), StoreError> {
    let now = clock::unix_millis();
    release_addresses(arbiter, now).await?;
    let kept = TOMBSTONE_RETENTION_MS;
    let old = arbiter.bindings.sessions_due(
        now,
        RANGE_LIMIT_MAX,
        |session, _| matches!(session.record.phase, Phase::Terminated { at } if at.saturating_add(kept) <= now),
    );
    for session in old {
        let _ = forget(arbiter, vec![(layout::session(session.record.id), session.modified)]).await?;
    }
    forget_tokens(arbiter, token_bucket, now).await
}

/// Deletes the addresses of ended sessions that have rested. One that another session took meanwhile is that session's.
async fn release_addresses(arbiter: &Arbiter, now: UnixMillis) -> Result<(), StoreError> {
    for sessions in arbiter.bindings.sessions_rested(now, RANGE_LIMIT_MAX).chunks(ADDRESSES_OF) {
        let addresses =
            |session: &StoredSession| session.record.inner.clone().into_iter().map(layout::address);
        let keys: Vec<String> = sessions.iter().flat_map(|session| addresses(session)).collect();
        let mut values = arbiter.store.read(&keys).await?.values.into_iter();
        for session in sessions {
            let stored: Vec<KeyValue> = values.by_ref().take(session.record.inner.len()).flatten().collect();
            if release(arbiter, session, &stored, now).await? {
                arbiter.bindings.addresses_released(session);
            }
        }
    }
    Ok(())
}

/// Says whether none of `stored` is the session's any more.
async fn release(
    arbiter: &Arbiter,
    session: &StoredSession,
    stored: &[KeyValue],
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let mut rested = Vec::new();
    for stored in stored {
        match layout::decode::<AddressRecord>(stored) {
            Ok(record) if record.session_id != session.record.id.to_bytes() => {}
            Ok(record) if addresses::has_rested(&record, now) => {
                rested.push((stored.key.clone(), stored.mod_revision));
            }
            // The quarantine was longer when it began.
            Ok(_) => return Ok(false),
            Err(error) => tracing::warn!(%error, "leaving an address as it is"),
        }
    }
    if rested.is_empty() {
        return Ok(true);
    }
    Ok(matches!(forget(arbiter, rested).await?, Outcome::Committed(_)))
}

async fn forget_tokens(arbiter: &Arbiter, bucket: u8, now: UnixMillis) -> Result<(), StoreError> {
    let day = 24 * 3600 * 1000;
    let (_, tokens) = store::list(&*arbiter.store, &layout::token_bucket(bucket)).await?;
    for stored in tokens {
        if layout::decode::<TokenRecord>(&stored)
            .is_ok_and(|record| record.expires_ms.saturating_add(day) <= now)
        {
            let _ = forget(arbiter, vec![(stored.key, stored.mod_revision)]).await?;
        }
    }
    Ok(())
}

/// Deletes the keys if all are as they were read. A conflict means that one is in use again, or that another replica was
/// quicker.
async fn forget(arbiter: &Arbiter, keys: Vec<(String, Revision)>) -> Result<Outcome, StoreError> {
    let compares = keys.iter().map(|(key, modified)| Compare::Modified(key.clone(), *modified)).collect();
    let ops = keys.into_iter().map(|(key, _)| Op::delete(key)).collect();
    arbiter.store.commit(Txn { compares, ops }).await
}

#[cfg(test)]
mod tests;
