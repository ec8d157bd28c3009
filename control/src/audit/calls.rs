//! Who called the API, from where, and what came of it: one layer around every service, so that no call is forgotten.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use jump_telemetry::audit::{Actor, ApiAction, Event, LOCAL, RateLimit, emit};
use jump_telemetry::{CORRELATION_KEY, Correlation};
use rustls_pki_types::CertificateDer;
use tonic::codegen::http;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};

use crate::identity::{Identity, Role};

/// Events about callers that are refused: anybody who reaches the port can cause them.
static REFUSALS: Mutex<RateLimit> = Mutex::new(RateLimit::new(20, Duration::from_secs(1)));

/// Emits an event that a stranger can cause, at most as often as strangers may.
pub(super) fn limited(event: impl FnOnce() -> Event) {
    let admitted = REFUSALS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).admit(Instant::now());
    if let Some(left_out) = admitted {
        let event = event();
        emit(if left_out > 0 { event.count(left_out + 1) } else { event });
    }
}

/// Puts [`Calls`] around the services.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallLayer;

impl<S> tower::Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

/// Tells of every call of an operator or reader, and of every call that was denied.
#[derive(Debug, Clone)]
pub(crate) struct Calls<S> {
    inner: S,
}

impl<S, B, R> tower::Service<http::Request<B>> for Calls<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let call = Call::read(&request);
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await;
            if let (Some(call), Ok(response)) = (call, &response) {
                call.tell(response.headers());
            }
            response
        })
    }
}

/// What is known of a call before it is made.
struct Call {
    service: &'static str,
    method: String,
    /// Parsed only when there is something to tell.
    certificates: Option<Arc<Vec<CertificateDer<'static>>>>,
    from: SocketAddr,
}

/// The services whose calls are told, all of them or only those that are denied.
const SERVICES: &[(&str, bool)] = &[
    ("SessionService", true),
    ("OwnershipService", true),
    ("NodeService", true),
    ("DeviceService", true),
    ("PolicyService", true),
    ("KeyService", true),
    ("LogService", true),
    ("GatewayService", false),
];

impl Call {
    fn read<B>(request: &http::Request<B>) -> Option<Self> {
        let (service, method) = request.uri().path().strip_prefix("/jump.control.v1.")?.split_once('/')?;
        let (service, _) = SERVICES.iter().find(|(known, _)| *known == service)?;
        let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let certificates = connection.and_then(TlsConnectInfo::peer_certs);
        let from = connection.and_then(|info| info.get_ref().remote_addr()).unwrap_or(LOCAL);
        Some(Self { service, method: method.chars().take(64).collect(), certificates, from })
    }

    fn tell(self, headers: &http::HeaderMap) {
        let status = Status::from_header_map(headers);
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        let denied = matches!(code, Code::PermissionDenied | Code::Unauthenticated);
        let all = SERVICES.iter().any(|(service, all)| *service == self.service && *all);
        if !all && !denied {
            return;
        }
        let action = if denied { ApiAction::Denied } else { action(&self.method) };
        let leaf = self.certificates.as_ref().and_then(|certificates| certificates.first());
        let actor = match leaf.and_then(|leaf| Identity::from_der(leaf).ok()) {
            None => Actor::Unknown,
            Some(caller) => match caller.role() {
                Role::Gateway => caller.name().parse().map_or(Actor::Unknown, Actor::Node),
                Role::Control | Role::Operator | Role::Reader => Actor::Operator(caller.name().to_owned()),
            },
        };
        let method = format!("jump.control.v1.{}/{}", self.service, self.method);
        let event = || {
            let event = Event::api(action, actor, method, self.from);
            let event = match correlation_in(headers) {
                Some(correlation) => event.correlation(correlation),
                None => event,
            };
            match status {
                Some(status) if code != Code::Ok => {
                    event.failed().detail(format!("{code:?}: {}", status.message()))
                }
                Some(_) | None => event,
            }
        };
        if denied { limited(event) } else { emit(event()) }
    }
}

/// The session that an answer is about.
fn correlation_in(headers: &http::HeaderMap) -> Option<Correlation> {
    headers.get(CORRELATION_KEY)?.to_str().ok()?.parse().ok()
}

/// What a method does, by its first word.
fn action(method: &str) -> ApiAction {
    let starts = |words: &[&str]| words.iter().any(|word| method.starts_with(word));
    if starts(&["Get", "List", "Watch"]) {
        ApiAction::Read
    } else if starts(&["Create", "Enrol", "Add"]) {
        ApiAction::Create
    } else if starts(&["Terminate", "Revoke", "Delete", "Remove"]) {
        ApiAction::Delete
    } else {
        ApiAction::Update
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_classed_by_what_it_does() {
        for (method, expected) in [
            ("GetSession", ApiAction::Read),
            ("WatchOwnership", ApiAction::Read),
            ("CreateEnrolmentToken", ApiAction::Create),
            ("TerminateSession", ApiAction::Delete),
            ("RevokeDevice", ApiAction::Delete),
            ("DrainNode", ApiAction::Update),
        ] {
            assert_eq!(action(method), expected, "{method}");
        }
    }
}
