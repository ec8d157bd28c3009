//! Evens out the gateways: orders a few sessions per second to move from full gateways to empty ones.
//!
//! Off unless `rebalance.moves_per_second` says otherwise. Every replica may run it at once, and together they order no
//! faster than one: whoever has seen the turn's key unchanged for an interval takes the turn by a compare-and-swap. No clock
//! of one machine is compared with another's.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures::StreamExt as _;
use jump_session::balance;
use jump_session::ids::{NodeId, Revision, SessionId};
use jump_session::ownership::Change;
use jump_telemetry::Correlation;
use tokio_util::sync::CancellationToken;

use crate::arbiter::{Arbiter, ArbiterError};
use crate::store::{Compare, Op, Outcome, StoreError, Txn};
use crate::{clock, layout, metrics};

/// Time between two batches of orders.
const INTERVAL: Duration = Duration::from_secs(1);

/// Orders under way at a time.
const ORDERS_MAX: usize = 16;

/// How to rebalance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RebalanceSettings {
    /// Sessions ordered to move per second; 0 for none.
    pub moves_per_second: u32,
    /// Nothing moves while every gateway is within so many percent of the mean.
    pub tolerance_percent: u32,
}

/// Runs until `stop`.
pub async fn run(arbiter: Arbiter, settings: RebalanceSettings, stop: CancellationToken) {
    if settings.moves_per_second == 0 {
        return;
    }
    let mut seen = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        match order_batch(&arbiter, settings, &mut seen).await {
            Ok(0) => {}
            Ok(ordered) => tracing::info!(ordered, "sessions ordered to move to emptier gateways"),
            Err(error) => tracing::warn!(%error, "could not order sessions to move; trying again"),
        }
    }
}

/// Orders at most one second's moves, if the gateways are uneven and it is this replica's turn. `seen` is the turn's revision
/// at the last look.
async fn order_batch(
    arbiter: &Arbiter,
    settings: RebalanceSettings,
    seen: &mut Option<Revision>,
) -> Result<usize, StoreError> {
    let now = clock::unix_millis();
    let shifts = balance::shifts(&arbiter.bindings.loads(now), settings.tolerance_percent);
    if shifts.is_empty() || !take_turn(arbiter, seen).await? {
        return Ok(0);
    }
    let batch = settings.moves_per_second as usize;
    let mut movable: BTreeMap<&NodeId, VecDeque<SessionId>> = BTreeMap::new();
    for shift in &shifts {
        let sessions = || arbiter.bindings.movable(&shift.from, batch, now).into();
        movable.entry(&shift.from).or_insert_with(sessions);
    }
    let orders: Vec<(SessionId, NodeId)> = balance::turns(&shifts)
        .filter_map(|(from, to)| Some((movable.get_mut(from)?.pop_front()?, to.clone())))
        .take(batch)
        .collect();
    let ordered =
        futures::stream::iter(orders).map(|(id, to)| order(arbiter, id, to)).buffer_unordered(ORDERS_MAX);
    let ordered = ordered.filter(|done| std::future::ready(*done)).count().await;
    metrics::count_rebalance_orders(ordered);
    Ok(ordered)
}

/// Says whether the order stands now. A session that ended, or is on its way elsewhere, is left to the next look.
async fn order(arbiter: &Arbiter, id: SessionId, to: NodeId) -> bool {
    match arbiter.change(id, &Change::Move { to: Some(to) }).await {
        Ok(stored) => stored.record.moving.is_some(),
        Err(ArbiterError::Refused(_)) => false,
        Err(error) => {
            let correlation = Correlation::from(id.correlation());
            tracing::warn!(session = %id, %correlation, %error, "could not order a session to move");
            false
        }
    }
}

/// Takes the turn if nobody has for an interval.
async fn take_turn(arbiter: &Arbiter, seen: &mut Option<Revision>) -> Result<bool, StoreError> {
    let key = layout::REBALANCE_TURN.to_owned();
    let snapshot = arbiter.store.read(std::slice::from_ref(&key)).await?;
    let modified = snapshot.values[0].as_ref().map_or(Revision(0), |stored| stored.mod_revision);
    if seen.replace(modified) != Some(modified) {
        return Ok(false);
    }
    let compares = vec![Compare::Modified(key.clone(), modified)];
    match arbiter.store.commit(Txn { compares, ops: vec![Op::put(key, Vec::new())] }).await? {
        Outcome::Committed(revision) => {
            *seen = Some(revision);
            Ok(true)
        }
        Outcome::Conflict => Ok(false),
    }
}
