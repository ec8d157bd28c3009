//! What time does: sessions that end or lose their owner, tombstones, tokens and addresses that may be forgotten.
//!
//! Every replica may run it at once: each step is a compare-and-swap.

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
use crate::store::{Compare, KeyValue, Op, RANGE_LIMIT_MAX, StoreError, Txn};
use crate::{clock, metrics};

/// Time between two looks at the sessions.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the sessions between two sweeps of addresses and tokens.
const LOOKS_PER_SWEEP: u32 = 60;

/// Runs until `stop`.
pub async fn run(arbiter: Arc<Arbiter>, stop: CancellationToken) {
    let mut looks: u32 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SESSIONS_INTERVAL) => {}
        }
        expire_due(&arbiter).await;
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS_PER_SWEEP)
            && let Err(error) = sweep(&arbiter).await
        {
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

/// Forgets old tombstones, used or expired tokens, and addresses that have rested.
async fn sweep(arbiter: &Arbiter) -> Result<(), StoreError> {
    let now = clock::unix_millis();
    let kept = TOMBSTONE_RETENTION_MS;
    let old = arbiter.bindings.sessions_due(
        now,
        RANGE_LIMIT_MAX,
        |session, _| matches!(session.record.phase, Phase::Terminated { at } if at.saturating_add(kept) <= now),
    );
    for session in old {
        forget(arbiter, layout::session(session.record.id), session.modified).await?;
    }
    let rested = |stored: &KeyValue| {
        layout::decode::<AddressRecord>(stored)
            .is_ok_and(|record| record.quarantine_until_ms != 0 && record.quarantine_until_ms <= now)
    };
    forget_where(arbiter, layout::ADDRESSES, rested).await?;
    let day = 24 * 3600 * 1000;
    let expired = |stored: &KeyValue| {
        layout::decode::<TokenRecord>(stored).is_ok_and(|record| record.expires_ms.saturating_add(day) <= now)
    };
    forget_where(arbiter, layout::TOKENS, expired).await
}

async fn forget_where(
    arbiter: &Arbiter,
    prefix: &str,
    done: impl Fn(&KeyValue) -> bool,
) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let page = arbiter.store.range(prefix, &after, RANGE_LIMIT_MAX, None).await?;
        for stored in page.values.iter().filter(|stored| done(stored)) {
            forget(arbiter, stored.key.clone(), stored.mod_revision).await?;
        }
        match page.values.last() {
            Some(last) if page.more => after = last.key.clone(),
            Some(_) | None => return Ok(()),
        }
    }
}

async fn forget(arbiter: &Arbiter, key: String, modified: Revision) -> Result<(), StoreError> {
    let txn = Txn { compares: vec![Compare::Modified(key.clone(), modified)], ops: vec![Op::delete(key)] };
    // A conflict means that it is in use again.
    let _ = arbiter.store.commit(txn).await?;
    Ok(())
}
