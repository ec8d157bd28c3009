//! The lease and the guard: how long this run may forward.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jump_crypto::certificate::{NodeCertificate, VerifyError};
use jump_crypto::cookie::Gate;
use jump_crypto::ids::{Epoch, SessionId};
use jump_crypto::key_set::KeySet;
use jump_crypto::keys::ClusterSecret;
use jump_proto::control_v1::{FenceAck, FenceOrder, RenewRequest, RenewResponse};
use jump_proto::convert::switch_ages_ms;
use jump_session::gateway::Nanos;
use jump_session::ownership::Authority;
use jump_session::reason::Reason;
use jump_transport::clock::boottime_nanos;
use tonic::Code;
use zeroize::Zeroizing;

use crate::bindings::acknowledge_fence;
use crate::context::Context;
use crate::control::explain;
use crate::dataplane::{Command, StopCause};
use crate::metrics;
use crate::registration::LeaseTimes;

/// The authority to forward, readable by any thread: one deadline on the suspend-counting clock.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    deadline: Arc<AtomicU64>,
}

impl Guard {
    /// Says whether forwarding is allowed at `now`.
    #[inline]
    pub fn holds(&self, now: Nanos) -> bool {
        Authority { deadline: self.deadline.load(Ordering::Acquire) }.holds(now)
    }

    /// The deadline.
    pub fn deadline(&self) -> Nanos {
        self.deadline.load(Ordering::Acquire)
    }

    /// Extends the authority; never shortens it.
    pub(crate) fn extend(&self, authority: Authority) {
        self.deadline.fetch_max(authority.deadline, Ordering::AcqRel);
    }

    /// Ends the authority at once.
    pub(crate) fn revoke(&self) {
        self.deadline.store(0, Ordering::Release);
    }
}

/// The run is over: its lease or its registration is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("control no longer knows this run of the node: {0}")]
pub struct LeaseLost(String);

/// How long one replica may take to renew.
const RENEW_PATIENCE: Duration = Duration::from_millis(700);
/// Pause after a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_millis(150);

/// Renews the lease until the run is over. The authority counts from the moment each request is sent, and is extended
/// only after the sessions that the answer lists have stopped.
///
/// # Errors
/// [`LeaseLost`] when control says that this run is over; the guard is revoked by then.
pub async fn renew(context: &Arc<Context>, lease: LeaseTimes) -> Result<(), LeaseLost> {
    let mut acks: Vec<FenceAck> = Vec::new();
    let mut held = true;
    loop {
        let sent = boottime_nanos();
        let request = RenewRequest {
            node_id: context.node.to_string(),
            incarnation: context.incarnation.0,
            acks: acks.clone(),
            sessions: u32::try_from(context.shared.sessions.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
            draining: context.terminating.load(Ordering::Acquire),
        };
        let answer = context
            .control
            .call(RENEW_PATIENCE, |mut client| {
                let request = request.clone();
                async move { client.renew(request).await }
            })
            .await;
        let pause = match answer {
            Ok(response) => {
                metrics::RENEWALS.counter(&[("outcome", "renewed")]).increment(1);
                metrics::renewed(Duration::from_nanos(boottime_nanos().saturating_sub(sent)));
                acks = obey(context, &response.fences).await;
                context.guard.extend(Authority::renewed(sent, lease.ttl, lease.guard_margin));
                take_news(context, &response).await;
                if request.draining {
                    context.ending_told.cancel();
                }
                lease
                    .renew_interval
                    .saturating_sub(Duration::from_nanos(boottime_nanos().saturating_sub(sent)))
            }
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                context.guard.revoke();
                return Err(LeaseLost(explain(&status)));
            }
            Err(status) => {
                metrics::RENEWALS.counter(&[("outcome", "failed")]).increment(1);
                tracing::warn!(
                    error = %explain(&status),
                    control = %context.control.endpoints(),
                    "cannot renew the lease; will stop forwarding unless control answers"
                );
                RENEW_AGAIN
            }
        };
        let holds = context.guard.holds(boottime_nanos());
        if holds != held {
            let reason = if holds { Reason::GuardRecovered } else { Reason::GuardTripped };
            tracing::warn!(%reason, "authority to forward {}", if holds { "is back" } else { "has run out" });
            held = holds;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.renew_now.notified() => {}
            () = context.cancel.cancelled() => return Ok(()),
        }
    }
}

/// Stops every session that control orders to stop; returns the acknowledgements for the next renewal.
async fn obey(context: &Arc<Context>, fences: &[FenceOrder]) -> Vec<FenceAck> {
    let mut acks = Vec::with_capacity(fences.len());
    for order in fences {
        let Ok(session) = order.session_id.parse::<SessionId>() else { continue };
        let epoch = Epoch(order.epoch);
        metrics::FENCES.counter(&[("source", "renewal")]).increment(1);
        if let Ok(ages) = context.orders.stop(session, epoch, StopCause::Moved).await {
            let switch_ages_ms = switch_ages_ms(&ages);
            acks.push(FenceAck {
                session_id: order.session_id.clone(),
                epoch: order.epoch,
                switch_ages_ms: switch_ages_ms.clone(),
            });
            // No need to let the successor wait for the next renewal.
            tokio::spawn(acknowledge_fence(
                Arc::clone(context),
                session,
                epoch,
                switch_ages_ms,
                order.correlation_id.clone(),
            ));
        }
    }
    acks
}

async fn take_news(context: &Context, response: &RenewResponse) {
    match read_certificates(&response.node_certificates) {
        Ok(certificates) => {
            let mut responder = context.responder.write().unwrap_or_else(PoisonError::into_inner);
            responder.set_certificates(certificates);
        }
        Err(error) => tracing::error!(%error, "control sent an unusable node certificate"),
    }
    if !response.key_sets.is_empty() {
        match read_key_sets(&response.key_sets) {
            Ok(key_sets) => {
                let mut responder = context.responder.write().unwrap_or_else(PoisonError::into_inner);
                responder.set_key_sets(key_sets);
            }
            Err(error) => tracing::error!(%error, "control sent an unusable key set"),
        }
    }
    if !response.cluster_keys.is_empty() {
        match cluster_secrets(&response.cluster_keys) {
            Some(secrets) => {
                let gates = secrets.iter().map(Gate::new).collect();
                {
                    let mut responder = context.responder.write().unwrap_or_else(PoisonError::into_inner);
                    responder.set_cluster_keys(secrets);
                }
                if context.orders.give(Command::Gates(gates)).await.is_ok() {
                    tracing::info!(keys = response.cluster_keys.len(), "cluster keys changed");
                }
            }
            None => tracing::error!("control sent unusable cluster keys"),
        }
    }
    context.claim_places.resize(claims_allowed(response.claims_max));
    context.set_operator_drain(response.drain);
}

/// How many claims may be under way when control says `claims_max`; 0 is what an older control says.
fn claims_allowed(claims_max: u32) -> usize {
    match usize::try_from(claims_max) {
        Ok(max @ 1..Context::CLAIMS_MAX) => max,
        Ok(_) | Err(_) => Context::CLAIMS_MAX,
    }
}

/// Reads node certificates as control hands them out.
pub(crate) fn read_certificates(encoded: &[Vec<u8>]) -> Result<Vec<NodeCertificate>, VerifyError> {
    encoded.iter().map(|bytes| NodeCertificate::parse(bytes)).collect()
}

/// Reads key sets as control hands them out.
pub(crate) fn read_key_sets(encoded: &[Vec<u8>]) -> Result<Vec<KeySet>, VerifyError> {
    encoded.iter().map(|bytes| KeySet::parse(bytes)).collect()
}

/// Reads cluster keys as control hands them out.
pub(crate) fn cluster_secrets(keys: &[Vec<u8>]) -> Option<Vec<ClusterSecret>> {
    keys.iter()
        .map(|key| {
            Some(ClusterSecret::from_bytes(*Zeroizing::new(<[u8; 32]>::try_from(key.as_slice()).ok()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_may_ask_for_fewer_claims_and_not_for_none_or_for_more() {
        assert_eq!([0, 1, 8, 255, 256, u32::MAX].map(claims_allowed), [256, 1, 8, 255, 256, 256]);
    }
}
