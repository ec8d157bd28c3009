//! The drain: clients are asked to move, served until they have moved, and given up at the deadline. What they had open
//! through this gateway may go on for a while after that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::attach::release;
use crate::config::{DrainConfig, EgressConfig};
use crate::conntrack::open_flows;
use crate::context::{Context, DataPlaneEnded};
use crate::dataplane::{Carried, Command, StopCause};

/// Time between two looks at how far the drain is.
const LOOK: Duration = Duration::from_millis(10);
/// Time between two looks at the connections that leave by this gateway.
const LOOK_AT_FLOWS: Duration = Duration::from_millis(500);
/// Time after which clients that are still here are asked again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Most gateways that a client is sent to.
pub(crate) const TARGETS_MAX: usize = 8;
/// Sessions given up at a time.
const RELEASES_MAX: usize = 64;

/// Keeps clients moving while an operator drains this node; ends when the process is told to end.
pub async fn follow_operator(context: &Context) -> Result<(), DataPlaneEnded> {
    let mut asked = false;
    loop {
        if context.terminating.load(Ordering::Acquire) {
            return Ok(());
        }
        let drain = context.operator_drain.load(Ordering::Acquire);
        if drain {
            if !asked {
                tracing::info!(reason = %Reason::OperatorMove, "an operator drains this node");
            }
            ask(context, Reason::OperatorMove).await?;
        } else if asked {
            tracing::info!("the operator's drain is over");
            context.orders.give(Command::Undrain).await?;
        }
        asked = drain;
        let again = if drain { ASK_AGAIN } else { Duration::from_secs(3600) };
        tokio::select! {
            () = context.drain_changed.notified() => {}
            () = tokio::time::sleep(again) => {}
            () = context.cancel.cancelled() => return Ok(()),
        }
    }
}

async fn ask(context: &Context, reason: Reason) -> Result<(), DataPlaneEnded> {
    let targets = context.roster.load().others.iter().take(TARGETS_MAX).copied().collect();
    context.orders.give(Command::Drain { reason, targets }).await
}

/// Moves every session away, gives up those that stay, and returns once nothing is carried any more.
///
/// # Errors
/// When the data plane has ended.
pub async fn drain(
    context: &Arc<Context>,
    config: DrainConfig,
    egress: EgressConfig,
) -> Result<(), DataPlaneEnded> {
    let started = Instant::now();
    let deadline = started + config.deadline;
    let sessions = context.orders.list().await?.len();
    tracing::info!(sessions, reason = %Reason::GatewayDraining, "draining");
    crate::audit::draining(&context.node, sessions);
    let mut ask_at = started;
    while !context.orders.list().await?.is_empty() {
        let now = Instant::now();
        // Without another gateway there is nobody to move to.
        if now >= deadline || context.roster.load().others.is_empty() {
            break;
        }
        if now >= ask_at {
            ask(context, Reason::GatewayDraining).await?;
            ask_at = now + ASK_AGAIN;
        }
        tokio::time::sleep(LOOK).await;
    }
    give_up(context).await?;
    tracing::info!(took_ms = started.elapsed().as_millis() as u64, "drained");
    if sessions > 0 {
        // Records that clients sent before they heard of their new owner, and packets that still come this way.
        tokio::time::sleep(config.linger).await;
    }
    if egress.anchored { hold(context, egress.hold).await } else { Ok(()) }
}

/// Waits while connections of sessions that others carry leave by this gateway, for `longest` at most.
async fn hold(context: &Context, longest: Duration) -> Result<(), DataPlaneEnded> {
    let started = Instant::now();
    let mut told = false;
    loop {
        let addresses = context.orders.anchored().await?;
        if context.roster.load().others.is_empty() {
            // Nobody is left whose sessions could use them.
            return Ok(());
        }
        let open = tokio::task::spawn_blocking(move || match &addresses[..] {
            [] => Ok(0),
            addresses => open_flows(addresses),
        });
        // A table that cannot be read says nothing worth waiting for.
        let open = open.await.ok().and_then(Result::ok).unwrap_or(0);
        if !told && open > 0 {
            told = true;
            tracing::info!(
                flows = open,
                longest_s = longest.as_secs(),
                "waiting for anchored connections to end"
            );
        }
        let left = longest.saturating_sub(started.elapsed());
        if open == 0 || left.is_zero() {
            if told {
                let waited_ms = started.elapsed().as_millis() as u64;
                tracing::info!(flows = open, waited_ms, "no longer waiting for anchored connections");
            }
            return Ok(());
        }
        tokio::time::sleep(left.min(LOOK_AT_FLOWS)).await;
    }
}

/// Releases what is still carried, and tells the clients.
async fn give_up(context: &Arc<Context>) -> Result<(), DataPlaneEnded> {
    let targets: Vec<_> = context.roster.load().others.iter().take(TARGETS_MAX).copied().collect();
    let mut releases = JoinSet::new();
    for carried in context.orders.list().await? {
        let Carried { session, epoch, .. } = carried;
        let ages = context.orders.stop(session, epoch, StopCause::Released(targets.clone())).await?;
        let correlation = Correlation::from_bytes(carried.correlation);
        tracing::warn!(%session, %correlation, epoch = epoch.0, reason = %Reason::Drained, "session given up");
        let context = Arc::clone(context);
        releases.spawn(async move {
            let told = release(&context, carried, &ages, Reason::Drained, false);
            // A control that does not answer learns it from the deregistration, or from the end of the lease.
            let _ = tokio::time::timeout(Duration::from_secs(2), told).await;
        });
        while releases.len() >= RELEASES_MAX {
            releases.join_next().await;
        }
    }
    while releases.join_next().await.is_some() {}
    Ok(())
}
