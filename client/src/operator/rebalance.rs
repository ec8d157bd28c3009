//! `jumpctl nodes rebalance`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_proto::control_v1::{ListSessionsRequest, MoveSessionRequest};
use jump_session::balance::{self, Shift};
use jump_session::ids::{NodeId, SessionId};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Code;
use tonic::transport::Channel;

use super::{Operator, about, confirm, nodes};
use crate::channel::refused;
use crate::failure::Failure;
use crate::output::{self, Output};

/// Sessions per request.
const PAGE_SIZE: i32 = 1000;
/// Time between two looks at whether the clients have moved.
const LOOK: Duration = Duration::from_millis(500);
const HEADINGS: [&str; 3] = ["NODE", "BEFORE", "AFTER"];

/// How to rebalance.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Moves ordered per second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Move nothing while every node is within so many percent of the mean
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    tolerance: u32,
    /// Show what each node would own, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the clients after the last order; 0s to return at once
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Shown in the audit trail
    #[arg(long, default_value = "rebalance")]
    comment: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// The sessions of every node that takes sessions.
type Sessions = BTreeMap<NodeId, Vec<String>>;

pub(super) async fn run(operator: &Operator, arguments: Arguments) -> Result<(), Failure> {
    let mut client = SessionServiceClient::new(operator.channel().await?);
    let before = sessions(operator, &mut client).await?;
    let shifts = balance::shifts(&loads(&before), arguments.tolerance);
    let planned = planned(&loads(&before), &shifts);
    let moves: u64 = shifts.iter().map(|shift| shift.sessions).sum();
    if arguments.dry_run || moves == 0 {
        return show(operator, &loads(&before), &planned);
    }
    confirm(&format!("Move {moves} sessions at {} a second?", arguments.rate), arguments.yes)?;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / arguments.rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ordered = BTreeSet::new();
    for (session_id, to) in orders(before.clone(), &shifts) {
        pace.tick().await;
        let what = format!("moving session {session_id} to {to}");
        let (node_id, comment) = (to.to_string(), arguments.comment.clone());
        let session = session_id.parse::<SessionId>().ok();
        let request = MoveSessionRequest { session_id: session_id.clone(), node_id, comment };
        match client.move_session(about(session, request)).await {
            Ok(_) => drop(ordered.insert(session_id)),
            // It ended, moves already, or lost its owner; or the node drains by now.
            Err(status)
                if matches!(status.code(), Code::NotFound | Code::Aborted | Code::FailedPrecondition) => {}
            Err(status) => return Err(refused(&what, &status)),
        }
    }
    let after = until_moved(operator, &mut client, &before, &ordered, arguments.wait).await?;
    show(operator, &loads(&before), &after)
}

/// Looks until no node owns a session that was ordered away from it; what each owns then.
async fn until_moved(
    operator: &Operator,
    client: &mut SessionServiceClient<Channel>,
    before: &Sessions,
    ordered: &BTreeSet<String>,
    wait: Duration,
) -> Result<BTreeMap<NodeId, u64>, Failure> {
    let deadline = Instant::now() + wait;
    let left: BTreeMap<_, BTreeSet<_>> = before
        .iter()
        .map(|(node, owned)| (node, owned.iter().filter(|session| ordered.contains(*session)).collect()))
        .collect();
    loop {
        let now = sessions(operator, client).await?;
        let still = |(node, owned): (&NodeId, &Vec<String>)| {
            left.get(node).is_some_and(|left| owned.iter().any(|session| left.contains(session)))
        };
        if wait.is_zero() || !now.iter().any(still) {
            return Ok(loads(&now));
        }
        if Instant::now() + LOOK > deadline {
            return Err(Failure::other(format!(
                "{wait:?} after the last order some clients have not moved: an order stands for a minute; run it again"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn sessions(
    operator: &Operator,
    client: &mut SessionServiceClient<Channel>,
) -> Result<Sessions, Failure> {
    let mut all = Sessions::new();
    for node in nodes::all(operator).await?.into_iter().filter(|node| !node.draining) {
        let mut request = ListSessionsRequest {
            page_size: PAGE_SIZE,
            node_id: node.node_id.clone(),
            ..ListSessionsRequest::default()
        };
        let mut owned = Vec::new();
        loop {
            let page = client
                .list_sessions(request.clone())
                .await
                .map_err(|status| refused(&format!("listing the sessions of {}", node.node_id), &status))?
                .into_inner();
            // Those on their way to another node are still here until it has them.
            owned.extend(page.sessions.into_iter().map(|session| session.session_id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let id = node.node_id.parse().map_err(|_| Failure::other(format!("no node id: {}", node.node_id)))?;
        all.insert(id, owned);
    }
    Ok(all)
}

fn loads(sessions: &Sessions) -> BTreeMap<NodeId, u64> {
    sessions.iter().map(|(node, owned)| (node.clone(), owned.len() as u64)).collect()
}

fn planned(before: &BTreeMap<NodeId, u64>, shifts: &[Shift]) -> BTreeMap<NodeId, u64> {
    let mut after = before.clone();
    for Shift { from, to, sessions } in shifts {
        for (node, load) in &mut after {
            if node == from {
                *load = load.saturating_sub(*sessions);
            } else if node == to {
                *load += sessions;
            }
        }
    }
    after
}

/// Which session goes where.
fn orders(mut sessions: Sessions, shifts: &[Shift]) -> Vec<(String, NodeId)> {
    let one = |(from, to): (&NodeId, &NodeId)| Some((sessions.get_mut(from)?.pop()?, to.clone()));
    balance::turns(shifts).filter_map(one).collect()
}

fn show(
    operator: &Operator,
    before: &BTreeMap<NodeId, u64>,
    after: &BTreeMap<NodeId, u64>,
) -> Result<(), Failure> {
    let of = |node: &NodeId| after.get(node).copied().unwrap_or_default();
    match operator.output {
        Output::Json => before.iter().try_for_each(|(node, load)| {
            let line = json!({ "node_id": node.to_string(), "before": load, "after": of(node) });
            output::line(&line.to_string())
        }),
        Output::Table => {
            let row = |(node, load): (&NodeId, &u64)| {
                vec![node.to_string(), load.to_string(), of(node).to_string()]
            };
            let rows: Vec<_> = before.iter().map(row).collect();
            output::line(output::table(&HEADINGS, &rows).trim_end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_take_turns_between_shifts_and_name_no_session_twice() {
        let node = |name: &str| name.parse::<NodeId>().unwrap();
        let owned = |prefix: &str, count: usize| (0..count).map(|i| format!("{prefix}{i}")).collect();
        let sessions =
            Sessions::from([(node("a"), owned("a", 6)), (node("b"), owned("b", 6)), (node("c"), Vec::new())]);
        let shifts = balance::shifts(&loads(&sessions), 10);
        let orders = orders(sessions.clone(), &shifts);
        assert_eq!(planned(&loads(&sessions), &shifts).into_values().collect::<Vec<_>>(), [4, 4, 4]);
        let from: Vec<_> = orders.iter().map(|(session, _)| &session[..1]).collect();
        assert_eq!(from, ["a", "b", "a", "b"]);
        assert!(orders.iter().all(|(_, to)| *to == node("c")));
        let mut names: Vec<_> = orders.iter().map(|(session, _)| session).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 4);
    }
}
