//! Claims: what a confirmed client asks for, decided by control.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use jump_crypto::ids::{AttachSeq, Epoch, SessionId};
use jump_proto::control_v1::attach_response::{Accepted, Outcome, Rejected};
use jump_proto::control_v1::{AttachRequest, ReleaseRequest};
use jump_proto::convert::{switch_ages, switch_ages_ms};
use jump_session::frame::{self, AttachResult, DNS_MAX, ROSTER_MAX, ROUTES_MAX};
use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use jump_telemetry::{recovery, trace};
use jump_transport::clock::boottime_nanos;
use tonic::Status;
use tonic_types::StatusExt;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::context::Context;
use crate::control::{about, explain, moves_on};
use crate::dataplane::{Activation, Carried, Command, Confirmed, Inner, Policy, Verdict};
use crate::metrics;

/// How long one replica may take to decide: its bounded wait for a live owner, with room.
const ATTACH_PATIENCE: Duration = Duration::from_millis(2500);
/// When a client asks again that could not be served.
const AGAIN: Duration = Duration::from_millis(200);

/// Asks control about confirmed clients, a bounded number at a time.
#[derive(Clone)]
pub struct Claims {
    context: Arc<Context>,
}

impl Claims {
    /// Claims for this run.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Decides one claim in a task of its own.
    pub fn decide(&self, confirmed: Confirmed) {
        let claims = self.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            let _place = claims.context.claim_places.take().await;
            let index = confirmed.index;
            let session = confirmed.intent.session.map(tracing::field::display);
            let correlation = correlation(&confirmed);
            let span = tracing::info_span!("claim", node = %claims.context.node, session, %correlation);
            trace::join_attempt(&span, confirmed.intent.attempt);
            let verdict = claims.ask(&confirmed).instrument(span.clone()).await;
            span.in_scope(|| report(&confirmed, &verdict, started.elapsed()));
            // If the data plane has ended, so have its claims.
            let _ = claims.context.orders.give(Command::Decide { index, verdict: Box::new(verdict) }).await;
        });
    }

    async fn ask(&self, confirmed: &Confirmed) -> Verdict {
        let context = &self.context;
        if context.is_draining() {
            return rejected(Reason::NodeDraining, Duration::ZERO);
        }
        let (intent, correlation) = (&confirmed.intent, correlation(confirmed));
        let request = AttachRequest {
            node_id: context.node.to_string(),
            incarnation: context.incarnation.0,
            device_key: confirmed.device.as_bytes().to_vec(),
            session_id: intent.session.map(|session| session.to_string()).unwrap_or_default(),
            attach_seq: intent.attach_seq.0,
            attempt_id: intent.attempt.to_string(),
            last_epoch: intent.last_epoch.0,
            reason: asked(intent.reason).code().to_owned(),
            handshake_hash: confirmed.handshake_hash.to_vec(),
            client_address: confirmed.path.peer.to_string(),
            grant_key_ids: intent.holding.grant_keys.iter().map(|id| id.0.to_vec()).collect(),
            switch_ages_ms: switch_ages_ms(&confirmed.switch_ages),
        };
        let answer = context
            .control
            .call(ATTACH_PATIENCE, |mut client| {
                let request = about(request.clone(), Some(correlation));
                async move { client.attach(request).await }
            })
            .await;
        match answer.map(|response| response.outcome) {
            Ok(Some(Outcome::Accepted(accepted))) => match read_accepted(context, &accepted) {
                Some(activation) => Verdict::Accepted(activation),
                None => {
                    tracing::error!(session = accepted.session_id, %correlation, "control sent an unusable acceptance");
                    rejected(Reason::ControlUnavailable, AGAIN)
                }
            },
            Ok(Some(Outcome::Rejected(refusal))) => Verdict::Rejected(read_rejected(&refusal)),
            Ok(None) => rejected(Reason::ControlUnavailable, AGAIN),
            Err(status) => {
                tracing::warn!(device = %confirmed.device, %correlation, error = %explain(&status), "control did not decide a claim");
                rejected(reason_of(&status).unwrap_or(Reason::ControlUnavailable), AGAIN)
            }
        }
    }
}

/// The correlation id of the session that a client goes on with or gives birth to.
fn correlation(confirmed: &Confirmed) -> Correlation {
    confirmed.intent.session_of(&confirmed.device).correlation().into()
}

/// The reason code that control put into an error, if any.
fn reason_of(status: &Status) -> Option<Reason> {
    status.get_details_error_info().and_then(|info| Reason::from_code(&info.reason))
}

/// The reason that a client gave, as far as it is a client's to give.
fn asked(number: u16) -> Reason {
    Reason::from_number(number).map_or(Reason::ClientRequest, Reason::as_asked_by_client)
}

fn rejected(reason: Reason, retry_after: Duration) -> Verdict {
    Verdict::Rejected(AttachResult::Rejected {
        reason,
        current_epoch: Epoch(0),
        current_attach_seq: AttachSeq(0),
        retry_after,
    })
}

fn read_rejected(refusal: &Rejected) -> AttachResult {
    AttachResult::Rejected {
        reason: Reason::from_code(&refusal.reason).unwrap_or(Reason::ControlUnavailable),
        current_epoch: Epoch(refusal.current_epoch),
        current_attach_seq: AttachSeq(refusal.current_attach_seq),
        retry_after: duration(refusal.retry_after.as_ref()),
    }
}

fn read_accepted(context: &Context, accepted: &Accepted) -> Option<Activation> {
    let session: SessionId = accepted.session_id.parse().ok()?;
    let inner: Vec<IpAddr> = accepted.inner_addresses.iter().filter_map(|a| a.parse().ok()).collect();
    let expires_in = until(accepted.expire_time.as_ref());
    let policy = accepted.policy.clone().unwrap_or_default();
    let correlation = Uuid::try_parse(&accepted.correlation_id).ok()?.into_bytes();
    let routes = accepted.routes.iter().filter_map(|route| route.parse::<IpNet>().ok());
    let result = AttachResult::Accepted(frame::Accepted {
        session,
        epoch: Epoch(accepted.epoch),
        inner: Inner::new(inner.iter().copied()).iter().collect(),
        grant: accepted.grant.clone(),
        routes: routes.take(ROUTES_MAX).map(|route| (route.addr(), route.prefix_len())).collect(),
        dns: accepted.dns_servers.iter().filter_map(|server| server.parse().ok()).take(DNS_MAX).collect(),
        mtu: u16::try_from(accepted.mtu).ok().filter(|mtu| *mtu > 0).unwrap_or(1280),
        expires_in,
        lease: context.lease_ttl,
        roster: context.roster.load().list(ROSTER_MAX),
        doors: context.doors.clone(),
        correlation,
        switches_per_minute_max: u16::try_from(policy.switches_per_minute_max).unwrap_or(u16::MAX),
        switch_cooldown: duration(policy.switch_cooldown.as_ref()),
        recovery_window: duration(policy.recovery_window.as_ref()),
    });
    let idle = duration(policy.idle_transport_max.as_ref());
    Some(Activation {
        session,
        epoch: Epoch(accepted.epoch),
        inner: Inner::new(inner),
        correlation,
        expires: boottime_nanos().saturating_add(u64::try_from(expires_in.as_nanos()).unwrap_or(u64::MAX)),
        idle_transport_max: if idle.is_zero() { Duration::from_secs(120) } else { idle },
        switches_per_minute_max: policy.switches_per_minute_max,
        switch_cooldown: duration(policy.switch_cooldown.as_ref()),
        switch_ages: switch_ages(&accepted.switch_ages_ms),
        policy: read_policy(&policy.allowed_destinations, policy.bytes_per_second),
        result,
    })
}

/// Reads a device's policy. A network that cannot be read is left out, and an empty rest allows nothing: an error must not
/// widen what the device may reach.
pub(crate) fn read_policy(networks: &[String], bytes_per_second: u64) -> Policy {
    let read = || networks.iter().filter_map(|network| network.parse().ok()).collect();
    Policy { allowed: (!networks.is_empty()).then(read), bytes_per_second }
}

fn duration(duration: Option<&prost_types::Duration>) -> Duration {
    duration.and_then(|d| Duration::try_from(*d).ok()).unwrap_or_default()
}

fn until(time: Option<&prost_types::Timestamp>) -> Duration {
    let time = time.and_then(|time| SystemTime::try_from(*time).ok()).unwrap_or(UNIX_EPOCH);
    time.duration_since(SystemTime::now()).unwrap_or_default()
}

fn report(confirmed: &Confirmed, verdict: &Verdict, took: Duration) {
    let device = confirmed.device;
    let asked = asked(confirmed.intent.reason).code();
    let (outcome, reason) = match verdict {
        Verdict::Accepted(activation) => {
            tracing::info!(
                session = %activation.session,
                correlation = %Uuid::from_bytes(activation.correlation),
                epoch = activation.epoch.0,
                %device,
                reason = asked,
                took_ms = took.as_millis() as u64,
                "claim accepted"
            );
            if let Some(cause) = Reason::from_number(confirmed.intent.reason) {
                recovery::measured(cause, recovery::Phase::Commit, took);
            }
            ("accepted", Reason::Accepted)
        }
        Verdict::Rejected(result) => {
            let reason = match result {
                AttachResult::Rejected { reason, .. } => *reason,
                AttachResult::Accepted(_) => Reason::Accepted,
            };
            let session = confirmed.intent.session.map(|session| session.to_string()).unwrap_or_default();
            tracing::info!(session, %device, %reason, asked, took_ms = took.as_millis() as u64, "claim rejected");
            ("rejected", reason)
        }
    };
    metrics::ATTACH.counter(&[("outcome", outcome), ("reason", reason.code())]).increment(1);
    metrics::ATTACH_SECONDS.histogram(&[("outcome", outcome)]).record(took.as_secs_f64());
}

/// Tells control that a session has ended (`terminate`) or is given up, and the ages of its path switches here. Tries until control has heard it or the run is
/// over; says whether control has heard it.
pub async fn release(
    context: &Context,
    carried: Carried,
    switch_ages: &[Duration],
    reason: Reason,
    terminate: bool,
) -> bool {
    let Carried { session, epoch, correlation } = carried;
    let correlation = Correlation::from_bytes(correlation);
    let request = ReleaseRequest {
        node_id: context.node.to_string(),
        incarnation: context.incarnation.0,
        session_id: session.to_string(),
        epoch: epoch.0,
        reason: reason.code().to_owned(),
        terminate,
        switch_ages_ms: switch_ages_ms(switch_ages),
    };
    let mut pause = Duration::from_millis(100);
    loop {
        let answer = context
            .control
            .call(Duration::from_secs(1), |mut client| {
                let request = about(request.clone(), Some(correlation));
                async move { client.release(request).await }
            })
            .await;
        match answer {
            Ok(_) => return true,
            Err(status) if moves_on(&status) => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
                    () = context.cancel.cancelled() => return false,
                }
            }
            Err(status) => {
                tracing::warn!(%session, %correlation, epoch = epoch.0, error = %explain(&status), "control refused a release");
                return false;
            }
        }
    }
}
