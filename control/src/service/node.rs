//! Gateway nodes for operators.

use std::sync::Arc;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::node_service_server::NodeService;
use jump_proto::convert::Fields;
use jump_session::ids::NodeId;
use tonic::{Request, Response, Status};

use super::session::{optional, page_size};
use super::{Context, ServiceError, caller, node_message};
use crate::audit;
use crate::identity::Identity;

/// `NodeService`.
#[derive(Debug)]
pub struct NodeApi {
    context: Arc<Context>,
}

impl NodeApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn set_drained(
        &self,
        operator: &Identity,
        node_id: &str,
        drained: bool,
    ) -> Result<wire::Node, ServiceError> {
        let mut fields = Fields::default();
        let id = fields.id::<NodeId>("node_id", node_id);
        let id = fields.finish(|| id)?;
        let registry = &self.context.registry;
        let known = registry.node(&id).await?;
        let (node, _) = known.ok_or_else(|| ServiceError::NotFound(format!("no node {id} is registered")))?;
        registry.set_drained(&id, drained).await?;
        tracing::info!(node = %id, operator = operator.name(), drained, "node drain changed");
        audit::node_drained(&id, drained, operator);
        Ok(node_message(&node, drained))
    }
}

#[tonic::async_trait]
impl NodeService for NodeApi {
    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        caller::reader(&request)?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let mut fields = Fields::default();
        let after: Option<NodeId> = optional(&mut fields, "page_token", &request.page_token);
        fields.finish(|| Some(())).map_err(ServiceError::from)?;
        self.context.catch_up().await?;
        let mut nodes = self.context.bindings.nodes();
        nodes.retain(|(node, _)| after.as_ref().is_none_or(|after| node.id > *after));
        let more = nodes.len() > size;
        nodes.truncate(size);
        let next = nodes.last().filter(|_| more).map(|(node, _)| node.id.to_string());
        Ok(Response::new(wire::ListNodesResponse {
            nodes: nodes.iter().map(|(node, drained)| node_message(node, *drained)).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn drain_node(
        &self,
        request: Request<wire::DrainNodeRequest>,
    ) -> Result<Response<wire::DrainNodeResponse>, Status> {
        let operator = caller::operator(&request)?;
        let node = self.set_drained(&operator, &request.get_ref().node_id, true).await?;
        Ok(Response::new(wire::DrainNodeResponse { node: Some(node) }))
    }

    async fn undrain_node(
        &self,
        request: Request<wire::UndrainNodeRequest>,
    ) -> Result<Response<wire::UndrainNodeResponse>, Status> {
        let operator = caller::operator(&request)?;
        let node = self.set_drained(&operator, &request.get_ref().node_id, false).await?;
        Ok(Response::new(wire::UndrainNodeResponse { node: Some(node) }))
    }
}
