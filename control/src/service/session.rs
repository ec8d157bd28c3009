//! Sessions for operators.

use std::sync::Arc;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::session_service_server::SessionService;
use jump_proto::convert::Fields;
use jump_session::ids::{DeviceKey, NodeId, Revision, SessionId};
use jump_session::ownership::{Change, Phase};
use jump_session::reason::Reason;
use jump_telemetry::Correlation;
use tonic::{Request, Response, Status};

use super::feed::{self, Feed, ITEMS_PER_MESSAGE, Messages};
use super::{Context, ServiceError, about, caller};
use crate::bindings::{Delta, Everything};
use crate::layout::StoredSession;

/// Page sizes: when none is asked for, and at most.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;

/// The page size of a request.
pub(super) fn page_size(asked: i32) -> Result<usize, ServiceError> {
    let mut fields = Fields::default();
    let size = match usize::try_from(asked) {
        Ok(0) => Some(PAGE_DEFAULT),
        Ok(size) => Some(size.min(PAGE_MAX)),
        Err(_) => {
            fields.bad("page_size", "must not be negative");
            None
        }
    };
    Ok(fields.finish(|| size)?)
}

/// `SessionService`.
#[derive(Debug)]
pub struct SessionApi {
    context: Arc<Context>,
}

impl SessionApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl SessionService for SessionApi {
    async fn get_session(
        &self,
        request: Request<wire::GetSessionRequest>,
    ) -> Result<Response<wire::GetSessionResponse>, Status> {
        caller::reader(&request)?;
        let id = parse_session(&request.get_ref().session_id)?;
        let (stored, _, _) = self.context.arbiter.session(id).await.map_err(ServiceError::from)?;
        let session = Some(wire::Session::of(&stored.record, stored.modified));
        Ok(about(wire::GetSessionResponse { session }, stored.record.correlation.into()))
    }

    async fn list_sessions(
        &self,
        request: Request<wire::ListSessionsRequest>,
    ) -> Result<Response<wire::ListSessionsResponse>, Status> {
        caller::reader(&request)?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let mut fields = Fields::default();
        let after: Option<SessionId> = optional(&mut fields, "page_token", &request.page_token);
        let node: Option<NodeId> = optional(&mut fields, "node_id", &request.node_id);
        let device: Option<DeviceKey> = optional(&mut fields, "device_key", &request.device_key);
        fields.finish(|| Some(())).map_err(ServiceError::from)?;
        self.context.catch_up().await?;
        let wanted = |session: &StoredSession, _| {
            let owner = session.record.owner();
            node.as_ref().is_none_or(|node| owner.is_some_and(|owner| owner.node == *node))
                && device.is_none_or(|device| session.record.device == device)
        };
        let mut found = self.context.bindings.sessions_after(after, size + 1, wanted);
        let more = found.len() > size;
        found.truncate(size);
        let next = found.last().filter(|_| more).map(|last| last.record.id.to_string());
        let sessions = found.iter().map(|stored| wire::Session::of(&stored.record, stored.modified));
        Ok(Response::new(wire::ListSessionsResponse {
            sessions: sessions.collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    type WatchSessionsStream = Messages<wire::WatchSessionsResponse>;

    async fn watch_sessions(
        &self,
        request: Request<wire::WatchSessionsRequest>,
    ) -> Result<Response<Self::WatchSessionsStream>, Status> {
        caller::reader(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let only = optional(&mut fields, "session_id", &request.session_id);
        fields.finish(|| Some(())).map_err(ServiceError::from)?;
        let after = Revision(request.after_revision);
        Ok(Response::new(feed::start(&self.context, after, SessionFeed { only }).await?))
    }

    async fn terminate_session(
        &self,
        request: Request<wire::TerminateSessionRequest>,
    ) -> Result<Response<wire::TerminateSessionResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let id = parse_session(&request.session_id)?;
        let change = Change::Terminate { by: None, reason: Reason::OperatorTerminated };
        let stored = self.context.arbiter.change(id, &change).await.map_err(ServiceError::from)?;
        let correlation = Correlation::from(stored.record.correlation);
        tracing::info!(
            session = %id,
            %correlation,
            epoch = stored.record.epoch.0,
            reason = stored.record.reason.code(),
            operator = operator.name(),
            comment = request.comment,
            "session ended by an operator"
        );
        let session = Some(wire::Session::of(&stored.record, stored.modified));
        Ok(about(wire::TerminateSessionResponse { session }, correlation))
    }

    async fn move_session(
        &self,
        request: Request<wire::MoveSessionRequest>,
    ) -> Result<Response<wire::MoveSessionResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let id = parse_session(&request.session_id)?;
        let to = self.move_target(&request.node_id).await?;
        let (stored, owner_registered, _) =
            self.context.arbiter.session(id).await.map_err(ServiceError::from)?;
        if !owner_registered && !matches!(stored.record.phase, Phase::Terminated { .. }) {
            let text = "no live gateway owns the session: it goes to the one that its client reaches next";
            return Err(ServiceError::Precondition(text.to_owned()).into());
        }
        let change = Change::Move { to };
        let stored = self.context.arbiter.change(id, &change).await.map_err(ServiceError::from)?;
        let correlation = Correlation::from(stored.record.correlation);
        tracing::info!(
            session = %id,
            %correlation,
            epoch = stored.record.epoch.0,
            reason = Reason::OperatorMove.code(),
            to = request.node_id,
            operator = operator.name(),
            comment = request.comment,
            "session ordered to move"
        );
        let session = Some(wire::Session::of(&stored.record, stored.modified));
        Ok(about(wire::MoveSessionResponse { session }, correlation))
    }
}

impl SessionApi {
    /// Where an operator may move a session to: a registered node that takes sessions; `None` for any.
    async fn move_target(&self, node_id: &str) -> Result<Option<NodeId>, ServiceError> {
        let mut fields = Fields::default();
        let to: Option<NodeId> = optional(&mut fields, "node_id", node_id);
        fields.finish(|| Some(()))?;
        let Some(to) = to else { return Ok(None) };
        let Some((node, drained)) = self.context.registry.node(&to).await? else {
            return Err(ServiceError::NotFound(format!("no node {to} is registered")));
        };
        if drained || node.record.draining {
            return Err(ServiceError::Precondition(format!(
                "node {to} drains: choose another, or undrain it"
            )));
        }
        Ok(Some(to))
    }
}

/// Parses a required session id.
pub(super) fn parse_session(text: &str) -> Result<SessionId, ServiceError> {
    let mut fields = Fields::default();
    let id = fields.id("session_id", text);
    Ok(fields.finish(|| id)?)
}

/// Parses a field that may be empty.
pub(super) fn optional<T>(fields: &mut Fields, field: &str, text: &str) -> Option<T>
where
    T: std::str::FromStr<Err = jump_session::ids::InvalidId>,
{
    if text.is_empty() { None } else { fields.id(field, text) }
}

struct SessionFeed {
    only: Option<SessionId>,
}

impl SessionFeed {
    fn wants(&self, session: &StoredSession) -> bool {
        self.only.is_none_or(|only| only == session.record.id)
    }
}

impl Feed for SessionFeed {
    type Message = wire::WatchSessionsResponse;

    fn snapshot(&self, everything: Everything) -> Vec<Self::Message> {
        let sessions: Vec<wire::Session> = everything
            .sessions
            .iter()
            .filter(|session| self.wants(session))
            .map(|session| wire::Session::of(&session.record, session.modified))
            .collect();
        let message = |sessions: &[wire::Session]| wire::WatchSessionsResponse {
            revision: everything.revision.0,
            sessions: sessions.to_vec(),
            ..wire::WatchSessionsResponse::default()
        };
        let mut messages: Vec<_> = sessions.chunks(ITEMS_PER_MESSAGE).map(message).collect();
        if messages.is_empty() {
            messages.push(message(&[]));
        }
        messages.first_mut().expect("one is there").snapshot_start = true;
        messages.last_mut().expect("one is there").snapshot_complete = true;
        messages
    }

    fn deltas(&self, revision: Revision, deltas: Vec<Delta>) -> Vec<Self::Message> {
        let sessions: Vec<wire::Session> = deltas
            .iter()
            .filter_map(|delta| match delta {
                Delta::Session(session) if self.wants(session) => {
                    Some(wire::Session::of(&session.record, session.modified))
                }
                Delta::Session(_) | Delta::Node(..) | Delta::NodeGone(_) => None,
            })
            .collect();
        let mut messages: Vec<Self::Message> = sessions
            .chunks(ITEMS_PER_MESSAGE)
            .map(|chunk| wire::WatchSessionsResponse { sessions: chunk.to_vec(), ..Default::default() })
            .collect();
        if let Some(last) = messages.last_mut() {
            last.revision = revision.0;
        }
        messages
    }
}
