//! `jumpctl nodes`.

use clap::Subcommand;
use jump_proto::control_v1::node_service_client::NodeServiceClient;
use jump_proto::control_v1::{DrainNodeRequest, ListNodesRequest, Node, UndrainNodeRequest};
use jump_session::ids::NodeId;

use super::{Operator, confirm, view};
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
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Let a drained node take sessions again
    Undrain {
        /// The node's name
        node: NodeId,
    },
}

const HEADINGS: [&str; 7] = ["NODE", "RUN", "NUMBER", "STATE", "ENDPOINTS", "MESH", "SINCE"];

pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    let node = match command {
        Command::List => return list(operator).await,
        Command::Drain { node, yes } => {
            confirm(&format!("Move all sessions away from {node}?"), yes)?;
            let response = NodeServiceClient::new(operator.channel().await?)
                .drain_node(DrainNodeRequest { node_id: node.to_string() })
                .await
                .map_err(|status| refused(&format!("draining {node}"), &status))?;
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

async fn list(operator: &Operator) -> Result<(), Failure> {
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
    show(operator, &nodes)
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
