//! Who owns a session: the one question that is always answered from the store.

use std::sync::Arc;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::ownership_service_server::OwnershipService;
use jump_session::ids::{NodeId, SessionId};
use jump_telemetry::Correlation;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::feed::Messages;
use super::session::parse_session;
use super::{Context, ServiceError, about, caller};
use crate::bindings::Wake;

/// How many answers may wait for a slow watcher.
const QUEUE_ANSWERS: usize = 4;

/// `OwnershipService`.
#[derive(Debug)]
pub struct OwnershipApi {
    context: Arc<Context>,
}

impl OwnershipApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

/// The answer, the owner's node, and the session's correlation id.
async fn read(
    context: &Context,
    id: SessionId,
) -> Result<(wire::Ownership, Option<NodeId>, Correlation), ServiceError> {
    let (stored, owner_registered, revision) = context.arbiter.session(id).await?;
    let node = stored.record.owner().map(|owner| owner.node.clone());
    let ownership = wire::Ownership::of(&stored.record, owner_registered, revision);
    Ok((ownership, node, stored.record.correlation.into()))
}

#[tonic::async_trait]
impl OwnershipService for OwnershipApi {
    async fn get_ownership(
        &self,
        request: Request<wire::GetOwnershipRequest>,
    ) -> Result<Response<wire::GetOwnershipResponse>, Status> {
        caller::reader(&request)?;
        let id = parse_session(&request.get_ref().session_id)?;
        let (ownership, _, correlation) = read(&self.context, id).await?;
        Ok(about(wire::GetOwnershipResponse { ownership: Some(ownership) }, correlation))
    }

    type WatchOwnershipStream = Messages<wire::WatchOwnershipResponse>;

    async fn watch_ownership(
        &self,
        request: Request<wire::WatchOwnershipRequest>,
    ) -> Result<Response<Self::WatchOwnershipStream>, Status> {
        caller::reader(&request)?;
        let id = parse_session(&request.get_ref().session_id)?;
        let (_, _, correlation) = read(&self.context, id).await?;
        let (answers, stream) = mpsc::channel(QUEUE_ANSWERS);
        tokio::spawn(follow(Arc::clone(&self.context), id, answers));
        Ok(about(Messages::new(stream), correlation))
    }
}

async fn follow(
    context: Arc<Context>,
    id: SessionId,
    answers: mpsc::Sender<Result<wire::WatchOwnershipResponse, Status>>,
) {
    let mut told: Option<wire::Ownership> = None;
    let mut node: Option<NodeId> = None;
    loop {
        let session_wake = context.bindings.wake(Wake::Session(id));
        let session_changed = session_wake.notified();
        tokio::pin!(session_changed);
        session_changed.as_mut().enable();
        let node_wake = node.clone().map(|node| context.bindings.wake(Wake::Node(node)));
        let node_changed = async {
            match &node_wake {
                Some(wake) => wake.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(node_changed);
        let (answer, owner) = match read(&context, id).await {
            Ok((ownership, owner, _)) => {
                // The read's revision moves with every write of anybody; it alone is no news.
                let news = told.as_ref().is_none_or(|told| {
                    wire::Ownership { revision: told.revision, ..ownership.clone() } != *told
                });
                told = Some(ownership.clone());
                (news.then_some(Ok(wire::WatchOwnershipResponse { ownership: Some(ownership) })), owner)
            }
            Err(error) => (Some(Err(Status::from(error))), None),
        };
        if let Some(answer) = answer {
            let failed = answer.is_err();
            if answers.send(answer).await.is_err() || failed {
                return;
            }
        }
        if owner != node {
            // Read once more under the new owner's wake-up, so that nothing falls between.
            node = owner;
            continue;
        }
        tokio::select! {
            () = session_changed => {}
            () = node_changed => {}
            () = answers.closed() => return,
            () = context.stop.cancelled() => return,
        }
    }
}
