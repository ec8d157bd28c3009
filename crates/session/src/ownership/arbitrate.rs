//! Who becomes owner: the decisions over attaches and births.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    AttachRequest, Claim, Condition, Decision, DeviceStanding, HistoryEntry, Owner, Phase,
    RECENT_SWITCHES_MAX, RETRY_AFTER, Refusal, SWITCH_WINDOW, SessionRecord, Transition, UnixMillis, View,
    is_recent, millis,
};
use crate::ids::{Epoch, SessionId};
use crate::path::KEPT_FOR_ATTACH;
use crate::policy::{DevicePolicy, SessionPolicy};
use crate::reason::Reason;

/// Asking again never helps.
const NEVER: Duration = Duration::ZERO;

/// Decides an attach. The same record, view, request and policy always give the same answer.
///
/// The order of the checks is part of the contract: what is final for the session comes first, then what is final for
/// the attempt, then what is only a matter of waiting. A final refusal stays final whatever happens to the record
/// later (`docs/ownership.md`, "One answer per attempt").
///
/// A refusal with `LIFETIME_EXCEEDED` or `RECOVERY_WINDOW_EXCEEDED` means that [`expire`](super::expire) has a
/// transition to write for the same record and time.
///
/// # Errors
/// [`Refusal`] with the reason that the client is told.
pub fn arbitrate(
    record: &SessionRecord,
    view: &View,
    request: &AttachRequest,
    policy: &SessionPolicy,
    now: UnixMillis,
) -> Result<Decision, Refusal> {
    check_standing(view.device)?;
    if record.device != request.device {
        return Err(Refusal::blank(Reason::WrongDevice, NEVER));
    }
    let refuse = |reason, retry_after| Err(Refusal::of(record, reason, retry_after));
    if let Some(reason) = ended(record, policy, now) {
        return refuse(reason, NEVER);
    }
    let standing = standing(record, request);
    match standing {
        Standing::Stale => return refuse(Reason::StaleAttempt, NEVER),
        Standing::Superseded => return refuse(Reason::SupersededAttempt, NEVER),
        Standing::Accepted | Standing::Waiting | Standing::New => {}
    }
    if !view.claimant_registered {
        return refuse(Reason::NodeNotRegistered, RETRY_AFTER);
    }
    match (standing, &record.phase) {
        (Standing::Accepted, _) => return Ok(Decision::AlreadyAccepted),
        (Standing::Waiting, Phase::Handover { to, .. }) if !view.owner_registered => {
            return commit(record, view, Claim { charged: false, ..to.clone() }, now);
        }
        (Standing::Waiting, _) => return Ok(Decision::Wait),
        (Standing::New | Standing::Stale | Standing::Superseded, _) => {}
    }
    if view.claimant_draining {
        return refuse(Reason::NodeDraining, RETRY_AFTER);
    }

    let has_live_owner = record.owner().is_some() && view.owner_registered;
    // Only a live owner that wants to keep the session is protected by cooldown and switch rate: elsewhere, refusing
    // would hold a client back, or leave it without any gateway, for a choice that it did not make.
    let charged = has_live_owner && !is_sent_away(record, view, &request.claimant, now);
    let claim = Claim {
        owner: request.claimant.clone(),
        attach_seq: request.attach_seq,
        attempt: request.attempt,
        since: now,
        reason: request.reason,
        charged,
    };
    if !has_live_owner {
        return commit(record, view, claim, now);
    }
    if charged {
        // The owner itself knows of switches that the record does not have yet; another owner keeps one back for this claim.
        let more = if record.owner() == Some(&request.claimant) { &request.switch_ages[..] } else { &[] };
        check_pace(record, view, more, policy, now)?;
    }
    match &record.phase {
        // The same run as now, and the client has new keys there: the gateway replaces its own old keys, no other node
        // has to stop. A claim that waits for this owner to stop loses to the newer attempt.
        Phase::Owned { owner: from } | Phase::Handover { from, .. } if *from == request.claimant => {
            commit(record, view, claim, now)
        }
        Phase::Owned { owner: from } | Phase::Handover { from, .. } => {
            let phase = Phase::Handover { from: from.clone(), to: claim };
            let next = record.moved_to(phase, request.reason, now);
            let conditions = vec![Condition::Registered(request.claimant.clone())];
            Ok(Decision::Intend(Transition { next, conditions }))
        }
        Phase::Released { .. } | Phase::Terminated { .. } => commit(record, view, claim, now),
    }
}

/// Decides the birth of a session: the record to create, owned by the claimant in epoch 1. The caller's transaction
/// also compares that no record of this id exists.
///
/// # Errors
/// [`Refusal`] with the reason that the client is told.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a separate fact of the new record; called in one place"
)]
pub fn birth(
    id: SessionId,
    inner: Vec<IpAddr>,
    device_name: String,
    correlation: [u8; 16],
    view: &View,
    request: &AttachRequest,
    policy: &SessionPolicy,
    now: UnixMillis,
) -> Result<Transition, Refusal> {
    check_standing(view.device)?;
    if !view.claimant_registered {
        return Err(Refusal::blank(Reason::NodeNotRegistered, RETRY_AFTER));
    }
    if view.claimant_draining {
        return Err(Refusal::blank(Reason::NodeDraining, RETRY_AFTER));
    }
    if inner.is_empty() {
        return Err(Refusal::blank(Reason::AddressPoolExhausted, RETRY_AFTER));
    }
    let owner = request.claimant.clone();
    let next = SessionRecord {
        id,
        device: request.device,
        device_name,
        epoch: Epoch(1),
        attach_seq: request.attach_seq,
        attempt: request.attempt,
        phase: Phase::Owned { owner: owner.clone() },
        inner,
        created: now,
        changed: now,
        expires: now.saturating_add(millis(policy.session_lifetime)),
        reason: request.reason,
        history: vec![HistoryEntry {
            epoch: Epoch(1),
            owner: owner.clone(),
            since: now,
            reason: request.reason,
        }],
        recent_switches: Vec::new(),
        moving: None,
        correlation,
        policy: DevicePolicy::default(),
    };
    Ok(Transition { next, conditions: vec![Condition::Registered(owner)] })
}

/// Why the session is over at `now`, if it is.
pub(super) fn ended(record: &SessionRecord, policy: &SessionPolicy, now: UnixMillis) -> Option<Reason> {
    match &record.phase {
        Phase::Terminated { .. } => Some(Reason::SessionTerminated),
        _ if now >= record.expires => Some(Reason::LifetimeExceeded),
        Phase::Released { since } if now >= since.saturating_add(millis(policy.recovery_window)) => {
            Some(Reason::RecoveryWindowExceeded)
        }
        Phase::Released { .. } | Phase::Owned { .. } | Phase::Handover { .. } => None,
    }
}

fn check_standing(device: DeviceStanding) -> Result<(), Refusal> {
    let reason = match device {
        DeviceStanding::Active => return Ok(()),
        DeviceStanding::Unknown => Reason::UnknownDevice,
        DeviceStanding::Revoked => Reason::KeyRevoked,
        DeviceStanding::Expired => Reason::KeyExpired,
    };
    Err(Refusal::blank(reason, NEVER))
}

/// Where an attempt stands towards the record.
#[derive(Clone, Copy)]
enum Standing {
    /// It was accepted in this epoch and its claimant still owns the session.
    Accepted,
    /// Its claim waits for the old owner.
    Waiting,
    /// A newer attempt of the client has a claim recorded.
    Superseded,
    /// Its sequence number is used up.
    Stale,
    /// It is newer than everything in the record.
    New,
}

/// An attempt is its id, its sequence number and its claimant together: what differs in any of them is another one.
fn standing(record: &SessionRecord, request: &AttachRequest) -> Standing {
    let AttachRequest { claimant, attach_seq, attempt, device: _, reason: _, switch_ages: _ } = request;
    let is_recorded_as = |owner: &Owner, seq, id| *owner == *claimant && seq == *attach_seq && id == *attempt;
    match &record.phase {
        Phase::Owned { owner } if is_recorded_as(owner, record.attach_seq, record.attempt) => {
            Standing::Accepted
        }
        Phase::Handover { to, .. } if is_recorded_as(&to.owner, to.attach_seq, to.attempt) => {
            Standing::Waiting
        }
        Phase::Handover { to, .. } if (record.attach_seq < *attach_seq) && (*attach_seq < to.attach_seq) => {
            Standing::Superseded
        }
        Phase::Owned { .. } | Phase::Handover { .. } | Phase::Released { .. } | Phase::Terminated { .. } => {
            if *attach_seq > record.highest_attach_seq() {
                Standing::New
            } else {
                Standing::Stale
            }
        }
    }
}

/// Whether the client moves to `claimant` because it was asked to: the live owner drains, or an operator moves the session.
fn is_sent_away(record: &SessionRecord, view: &View, claimant: &Owner, now: UnixMillis) -> bool {
    let leaves = record.owner().is_some_and(|owner| owner.node != claimant.node);
    let ordered = record
        .moving
        .as_ref()
        .is_some_and(|order| order.stands(now) && order.to.as_ref().is_none_or(|to| *to == claimant.node));
    leaves && (view.owner_draining || ordered)
}

/// Refuses a chosen switch that comes too soon or too often. `retry_after` is exact: a millisecond earlier the answer is
/// the same, at that time the pace is no reason any more.
fn check_pace(
    record: &SessionRecord,
    view: &View,
    more: &[Duration],
    policy: &SessionPolicy,
    now: UnixMillis,
) -> Result<(), Refusal> {
    let cooled_at = cooled_at(record, view, policy, now).map(|at| (at, Reason::SwitchCooldown));
    let allowed_at = allowed_at(record, more, policy, now).map(|at| (at, Reason::SwitchRateExceeded));
    match [cooled_at, allowed_at].into_iter().flatten().max() {
        Some((at, reason)) => Err(Refusal::of(record, reason, Duration::from_millis(at.saturating_sub(now)))),
        None => Ok(()),
    }
}

/// When the cooldown ends, if it has not.
fn cooled_at(
    record: &SessionRecord,
    view: &View,
    policy: &SessionPolicy,
    now: UnixMillis,
) -> Option<UnixMillis> {
    let cooldown = millis(policy.switch_cooldown);
    let last_switch = record.history.first().map(|entry| entry.since);
    // Replacing a waiting claim is a switch of mind; a dead target's claim may be replaced at once.
    let last_claim = match &record.phase {
        Phase::Handover { to, .. } if view.target_registered => Some(to.since),
        Phase::Handover { .. } | Phase::Owned { .. } | Phase::Released { .. } | Phase::Terminated { .. } => {
            None
        }
    };
    let cooling = [last_switch, last_claim].into_iter().flatten().filter(|at| now.abs_diff(*at) < cooldown);
    cooling.max().map(|last| last.saturating_add(cooldown))
}

/// When the window holds fewer chosen switches than the policy allows, if it does not now.
fn allowed_at(
    record: &SessionRecord,
    more: &[Duration],
    policy: &SessionPolicy,
    now: UnixMillis,
) -> Option<UnixMillis> {
    let most = usize::try_from(policy.switches_per_minute_max).unwrap_or(usize::MAX).min(RECENT_SWITCHES_MAX);
    // What the record does not have is not counted when the client goes elsewhere next: one is kept for that.
    let allowed = most.saturating_sub(if more.is_empty() { 0 } else { KEPT_FOR_ATTACH });
    let more = more.iter().map(|age| now.saturating_sub(millis(*age)));
    let known = record.recent_switches.iter().copied().chain(more);
    let mut recent: Vec<UnixMillis> = known.filter(|at| is_recent(*at, now)).collect();
    recent.sort_unstable();
    let surplus = recent.len().checked_sub(allowed)?;
    // Once this one has left the window, one less than `allowed` is in it. A policy of none never allows any.
    let last_to_leave = recent.get(surplus).copied().unwrap_or(now);
    Some(last_to_leave.saturating_add(millis(SWITCH_WINDOW)))
}

/// The claim becomes owner in the next epoch. Where the record names another owner, that one must be gone.
fn commit(record: &SessionRecord, view: &View, claim: Claim, now: UnixMillis) -> Result<Decision, Refusal> {
    let mut conditions = vec![Condition::Registered(claim.owner.clone())];
    match record.owner() {
        Some(owner) if *owner != claim.owner => {
            debug_assert!(!view.owner_registered, "a live owner is fenced, not overrun");
            conditions.push(Condition::Gone(owner.clone()));
        }
        Some(_) | None => {}
    }
    match record.owned_next(claim, now) {
        Some(next) => Ok(Decision::Commit(Transition { next, conditions })),
        None => Err(Refusal::of(record, Reason::AttemptsExceeded, NEVER)),
    }
}
