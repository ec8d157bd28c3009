//! `jumpctl nodes`.

use std::time::Duration;

use clap::Subcommand;
use jump_proto::control_v1::node_service_client::NodeServiceClient;
use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_proto::control_v1::{
    DrainNodeRequest, ListNodesRequest, ListSessionsRequest, Node, UndrainNodeRequest,
};
use jump_session::ids::NodeId;
use tokio::time::Instant;

use super::{Operator, confirm, rebalance, view};
use crate::channel::refused;
use crate::failure::Failure;
use crate::output::{self, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List gateway nodes that hold a lease
    List,
    /// Hand over all sessions of a node and keep new ones away
    Drain {
        /// The node's name
        node: NodeId,
        /// How long to wait until it owns no session; 0s to order the drain and return
        #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
        wait: Duration,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Let a drained node take sessions again
    Undrain {
        /// The node's name
        node: NodeId,
    },
    /// Move sessions from full nodes to empty ones, a few per second, until each owns about as many as any other
    Rebalance(rebalance::Arguments),
}

const HEADINGS: [&str; 7] = ["NODE", "RUN", "NUMBER", "STATE", "ENDPOINTS", "MESH", "SINCE"];

pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    let node = match command {
        Command::List => return list(operator).await,
        Command::Rebalance(arguments) => return rebalance::run(operator, arguments).await,
        Command::Drain { node, wait, yes } => {
            confirm(&format!("Move all sessions away from {node}?"), yes)?;
            let response = NodeServiceClient::new(operator.channel().await?)
                .drain_node(DrainNodeRequest { node_id: node.to_string() })
                .await
                .map_err(|status| refused(&format!("draining {node}"), &status))?;
            if !wait.is_zero() {
                until_empty(operator, &node, wait).await?;
            }
            response.into_inner().node
        }
        Command::Undrain { node } => {
            let response = NodeServiceClient::new(operator.channel().await?)
                .undrain_node(UndrainNodeRequest { node_id: node.to_string() })
                .await
                .map_err(|status| refused(&format!("undraining {node}"), &status))?;
            response.into_inner().node
        }
    };
    show(operator, &node.into_iter().collect::<Vec<_>>())
}

/// Waits until a node owns no session.
async fn until_empty(operator: &Operator, node: &NodeId, wait: Duration) -> Result<(), Failure> {
    const LOOK: Duration = Duration::from_millis(250);
    let mut client = SessionServiceClient::new(operator.channel().await?);
    let deadline = Instant::now() + wait;
    loop {
        let request =
            ListSessionsRequest { page_size: 1, node_id: node.to_string(), ..ListSessionsRequest::default() };
        let left = client
            .list_sessions(request)
            .await
            .map_err(|status| refused(&format!("waiting for {node}"), &status))?;
        if left.into_inner().sessions.is_empty() {
            return Ok(());
        }
        if Instant::now() + LOOK > deadline {
            return Err(Failure::other(format!(
                "{node} still owns sessions after {wait:?}: their clients have not moved; it goes on asking them"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn list(operator: &Operator) -> Result<(), Failure> {
    show(operator, &all(operator).await?)
}

/// Every node that holds a lease.
pub(super) async fn all(operator: &Operator) -> Result<Vec<Node>, Failure> {
    let mut client = NodeServiceClient::new(operator.channel().await?);
    let mut request = ListNodesRequest::default();
    let mut nodes = Vec::new();
    loop {
        let page = client
            .list_nodes(request.clone())
            .await
            .map_err(|status| refused("listing nodes", &status))?
            .into_inner();
        nodes.extend(page.nodes);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(nodes)
}

fn show(operator: &Operator, nodes: &[Node]) -> Result<(), Failure> {
    match operator.output {
        Output::Json => nodes.iter().try_for_each(|node| output::line(&view::node(node).to_string())),
        Output::Table => {
            let rows: Vec<_> = nodes.iter().map(row).collect();
            output::line(output::table(&HEADINGS, &rows).trim_end())
        }
    }
}

fn row(node: &Node) -> Vec<String> {
    vec![
        node.node_id.clone(),
        node.incarnation.to_string(),
        node.number.to_string(),
        if node.draining { "DRAINING" } else { "READY" }.to_owned(),
        node.endpoints.join(","),
        node.mesh_endpoint.clone(),
        view::since(node.register_time.as_ref()),
    ]
}
