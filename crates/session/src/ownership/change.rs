//! What else changes a record: fences, releases, ends, and time.

use std::time::Duration;

use super::arbitrate::ended;
use super::{
    Change, Claim, Condition, MoveOrder, Owner, Phase, Refusal, SessionRecord, Transition, UnixMillis, View,
    millis,
};
use crate::ids::{Epoch, NodeId};
use crate::policy::SessionPolicy;
use crate::reason::Reason;

/// Decides a change that is not an attach. `None` when there is nothing to write (already so).
///
/// # Errors
/// [`Refusal`] when the caller may not: `STALE_EPOCH` for an owner of an earlier epoch, `CONFLICT` for a node that is
/// not the owner of the epoch it names or a move of a session that nobody owns, `HANDOVER_PENDING` for a move elsewhere
/// than where the session is going, `SESSION_TERMINATED` after the end.
pub fn change(
    record: &SessionRecord,
    view: &View,
    change: &Change,
    now: UnixMillis,
) -> Result<Option<Transition>, Refusal> {
    match change {
        Change::FenceAcknowledged { by, epoch, switch_ages } => {
            fence_acknowledged(record, view, by, *epoch, switch_ages, now)
        }
        Change::Release { by, epoch, reason, switch_ages } => {
            release(record, view, by, *epoch, *reason, switch_ages, now)
        }
        Change::Terminate { by, reason } => terminate(record, by.as_ref(), *reason, now),
        Change::Move { to } => order_move(record, view, to.as_ref(), now),
    }
}

/// Decides what time alone does to a record: lifetime, recovery window, and the loss of its owner's node. `None` when
/// nothing is due.
///
/// An `Owned` record whose owner's node key is gone becomes `Released`, which starts its recovery window; so does a
/// handover whose old owner is gone and whose claim nobody has completed for a whole recovery window.
pub fn expire(
    record: &SessionRecord,
    view: &View,
    policy: &SessionPolicy,
    now: UnixMillis,
) -> Option<Transition> {
    let (phase, reason, conditions) = match (&record.phase, ended(record, policy, now)) {
        (Phase::Terminated { .. }, _) | (Phase::Released { .. }, None) => return None,
        (_, Some(reason)) => (Phase::Terminated { at: now }, reason, Vec::new()),
        (Phase::Owned { owner }, None) if !view.owner_registered => {
            (Phase::Released { since: now }, Reason::NodeLost, vec![Condition::Gone(owner.clone())])
        }
        (Phase::Handover { from, to }, None) if !view.owner_registered && is_abandoned(to, policy, now) => {
            (Phase::Released { since: now }, Reason::NodeLost, vec![Condition::Gone(from.clone())])
        }
        (Phase::Owned { .. } | Phase::Handover { .. }, None) => return None,
    };
    Some(Transition { next: record.moved_to(phase, reason, now), conditions })
}

/// A waiting claim is left to its claimant, who commits it by asking again, for as long as a client may take.
fn is_abandoned(claim: &Claim, policy: &SessionPolicy, now: UnixMillis) -> bool {
    now >= claim.since.saturating_add(millis(policy.recovery_window))
}

fn fence_acknowledged(
    record: &SessionRecord,
    view: &View,
    by: &Owner,
    epoch: Epoch,
    switch_ages: &[Duration],
    now: UnixMillis,
) -> Result<Option<Transition>, Refusal> {
    match &record.phase {
        Phase::Handover { from, to } if from == by && record.epoch == epoch => {
            stopped(record, view, to, Reason::Fenced, switch_ages, now).map(Some)
        }
        // A repeated or late acknowledgement: what it was for is resolved.
        Phase::Owned { .. } | Phase::Handover { .. } if epoch < record.epoch => Ok(None),
        Phase::Released { .. } | Phase::Terminated { .. } if epoch <= record.epoch => Ok(None),
        Phase::Owned { .. } | Phase::Handover { .. } | Phase::Released { .. } | Phase::Terminated { .. } => {
            Err(refused(record, Reason::Conflict))
        }
    }
}

fn release(
    record: &SessionRecord,
    view: &View,
    by: &Owner,
    epoch: Epoch,
    reason: Reason,
    switch_ages: &[Duration],
    now: UnixMillis,
) -> Result<Option<Transition>, Refusal> {
    match &record.phase {
        Phase::Terminated { .. } => Err(refused(record, Reason::SessionTerminated)),
        Phase::Owned { .. } | Phase::Handover { .. } | Phase::Released { .. } if epoch < record.epoch => {
            Err(refused(record, Reason::StaleEpoch))
        }
        Phase::Owned { owner } if owner == by && epoch == record.epoch => {
            let mut next = record.moved_to(Phase::Released { since: now }, reason, now);
            next.count_switches(switch_ages, now);
            Ok(Some(Transition { next, conditions: Vec::new() }))
        }
        Phase::Handover { from, to } if from == by && epoch == record.epoch => {
            stopped(record, view, to, reason, switch_ages, now).map(Some)
        }
        Phase::Released { .. } if epoch == record.epoch && was_last_owner(record, by) => Ok(None),
        Phase::Owned { .. } | Phase::Handover { .. } | Phase::Released { .. } => {
            Err(refused(record, Reason::Conflict))
        }
    }
}

fn terminate(
    record: &SessionRecord,
    by: Option<&(Owner, Epoch)>,
    reason: Reason,
    now: UnixMillis,
) -> Result<Option<Transition>, Refusal> {
    if matches!(record.phase, Phase::Terminated { .. }) {
        return Ok(None);
    }
    if let Some((by, epoch)) = by {
        if *epoch < record.epoch {
            return Err(refused(record, Reason::StaleEpoch));
        }
        if record.owner() != Some(by) || *epoch != record.epoch {
            return Err(refused(record, Reason::Conflict));
        }
    }
    let next = record.moved_to(Phase::Terminated { at: now }, reason, now);
    Ok(Some(Transition { next, conditions: Vec::new() }))
}

/// Records an operator's order. Nothing is fenced: the client decides when it is ready, and the owner serves it until then.
fn order_move(
    record: &SessionRecord,
    view: &View,
    to: Option<&NodeId>,
    now: UnixMillis,
) -> Result<Option<Transition>, Refusal> {
    match &record.phase {
        Phase::Terminated { .. } => Err(refused(record, Reason::SessionTerminated)),
        Phase::Handover { to: claim, .. } if to.is_none_or(|to| claim.owner.node == *to) => Ok(None),
        Phase::Handover { .. } => Err(refused(record, Reason::HandoverPending)),
        Phase::Owned { owner } if to == Some(&owner.node) => Ok(None),
        Phase::Owned { .. } if view.owner_registered => {
            let order = MoveOrder { to: to.cloned(), since: now };
            if record.moving.as_ref() == Some(&order) {
                return Ok(None);
            }
            let phase = record.phase.clone();
            let mut next = record.moved_to(phase, Reason::OperatorMove, now);
            next.moving = Some(order);
            Ok(Some(Transition { next, conditions: Vec::new() }))
        }
        Phase::Owned { .. } | Phase::Released { .. } => Err(refused(record, Reason::Conflict)),
    }
}

/// The old owner has stopped: the waiting claim wins, or nobody does if its claimant is gone, so that the client's next
/// attempt waits for no one. `reason` is for the latter.
fn stopped(
    record: &SessionRecord,
    view: &View,
    to: &Claim,
    reason: Reason,
    switch_ages: &[Duration],
    now: UnixMillis,
) -> Result<Transition, Refusal> {
    let mut record = record.clone();
    record.count_switches(switch_ages, now);
    if !view.target_registered {
        let next = record.moved_to(Phase::Released { since: now }, reason, now);
        return Ok(Transition { next, conditions: vec![Condition::Gone(to.owner.clone())] });
    }
    match record.owned_next(to.clone(), now) {
        Some(next) => Ok(Transition { next, conditions: vec![Condition::Registered(to.owner.clone())] }),
        None => Err(refused(&record, Reason::AttemptsExceeded)),
    }
}

fn was_last_owner(record: &SessionRecord, by: &Owner) -> bool {
    record.history.first().is_some_and(|entry| entry.owner == *by && entry.epoch == record.epoch)
}

fn refused(record: &SessionRecord, reason: Reason) -> Refusal {
    Refusal::of(record, reason, Duration::ZERO)
}
