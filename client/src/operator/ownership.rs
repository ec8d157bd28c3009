//! `jumpctl ownership`.

use clap::Subcommand;
use jump_proto::control_v1::ownership_service_client::OwnershipServiceClient;
use jump_proto::control_v1::{GetOwnershipRequest, LeaseState, Ownership, WatchOwnershipRequest};
use jump_session::ids::SessionId;

use super::watch::{self, Broken};
use super::{Operator, about, steering, view};
use crate::channel::refused;
use crate::failure::{Exit, Failure};
use crate::output::{self, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show who owns a session now, as the store says it
    Get {
        /// The session's id
        session: SessionId,
    },
    /// Show where a session is steered: the order in which its device goes to gateways, the steering bits by which each
    /// gateway's receiver indices are known, and whose index records bear now
    Steering {
        /// The session's id
        session: SessionId,
    },
    /// Show it, then every change, one per line
    Watch {
        /// The session's id
        session: SessionId,
    },
}

pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    match command {
        Command::Get { session } => {
            let what = format!("ownership of session {session}");
            let request = GetOwnershipRequest { session_id: session.to_string() };
            let ownership = OwnershipServiceClient::new(operator.channel().await?)
                .get_ownership(about(session, request))
                .await
                .map_err(|status| refused(&what, &status))?
                .into_inner()
                .ownership
                .ok_or_else(|| Failure::other(format!("{what}: control sent an empty answer")))?;
            match operator.output {
                Output::Json => output::line(&view::ownership(&ownership).to_string()),
                Output::Table => output::line(text(&ownership).trim_end()),
            }
        }
        Command::Steering { session } => steering::show(operator, session).await,
        Command::Watch { session } => follow(operator, session).await,
    }
}

async fn follow(operator: &Operator, session: SessionId) -> Result<(), Failure> {
    let what = format!("watching session {session}");
    let mut shown: Option<Ownership> = None;
    watch::keep(async |turn| {
        let lost = |failure| Broken::Lost { failure, progressed: false };
        let channel = operator.channel_in_turn(turn).await.map_err(lost)?;
        let mut stream = OwnershipServiceClient::new(channel)
            .watch_ownership(about(session, WatchOwnershipRequest { session_id: session.to_string() }))
            .await
            .map_err(|status| Broken::of(&what, &status, false))?
            .into_inner();
        let mut progressed = false;
        loop {
            let update = stream.message().await.map_err(|status| Broken::of(&what, &status, progressed))?;
            let Some(update) = update else {
                let failure = Failure::new(Exit::Unreachable, "control closed the watch");
                return Err(Broken::Lost { failure, progressed });
            };
            progressed = true;
            // A watch that was taken up again begins with what may have been shown already.
            if let Some(ownership) = update.ownership
                && !shown.as_ref().is_some_and(|shown| same(shown, &ownership))
            {
                show_line(operator, &ownership).map_err(Broken::Final)?;
                shown = Some(ownership);
            }
        }
    })
    .await
}

/// True when nothing but the revision that was read differs, or `later` is not later at all.
fn same(shown: &Ownership, later: &Ownership) -> bool {
    later.revision < shown.revision || Ownership { revision: shown.revision, ..later.clone() } == *shown
}

fn show_line(operator: &Operator, ownership: &Ownership) -> Result<(), Failure> {
    match operator.output {
        Output::Json => output::line(&view::ownership(ownership).to_string()),
        Output::Table => {
            let to =
                ownership.handover_to.as_ref().map(|to| format!(" -> {}", to.node_id)).unwrap_or_default();
            output::line(&format!(
                "epoch {}  {}  owner {}{to}  lease {}  {}  {}",
                ownership.epoch,
                view::phase(ownership.phase()),
                view::owner_cell(ownership.owner.as_ref()),
                view::lease(ownership.lease_state()),
                ownership.last_reason,
                ownership.correlation_id
            ))
        }
    }
}

fn text(ownership: &Ownership) -> String {
    let owner = match (&ownership.owner, ownership.lease_state()) {
        (Some(owner), LeaseState::Expired) => {
            format!("{} (run {}), lease expired: waits for its client", owner.node_id, owner.incarnation)
        }
        (Some(owner), _) => format!("{} (run {})", owner.node_id, owner.incarnation),
        (None, _) => "nobody".to_owned(),
    };
    let mut text = String::new();
    let rows = [
        ("session", ownership.session_id.clone()),
        ("phase", view::phase(ownership.phase())),
        ("epoch", ownership.epoch.to_string()),
        ("owner", owner),
        ("handover to", view::owner_cell(ownership.handover_to.as_ref())),
        ("owner for", view::since(ownership.owner_since.as_ref())),
        ("lease", view::lease(ownership.lease_state())),
        ("last reason", ownership.last_reason.clone()),
        ("inner address", ownership.inner_addresses.join(", ")),
        ("correlation", ownership.correlation_id.clone()),
        ("revision", ownership.revision.to_string()),
    ];
    for (name, value) in rows {
        text.push_str(&format!("{name:<14} {value}\n"));
    }
    let successors = std::iter::once(None).chain(ownership.history.iter().map(Some));
    let history: Vec<Vec<String>> = ownership
        .history
        .iter()
        .zip(successors)
        .map(|(entry, successor)| {
            vec![
                entry.epoch.to_string(),
                view::owner_cell(entry.owner.as_ref()),
                view::time(entry.since_time.as_ref()).unwrap_or_else(|| "-".to_owned()),
                successor
                    .and_then(|next| view::time(next.since_time.as_ref()))
                    .unwrap_or_else(|| "-".to_owned()),
                entry.reason.clone(),
            ]
        })
        .collect();
    if !history.is_empty() {
        text.push('\n');
        text.push_str(&output::table(&["EPOCH", "OWNER", "SINCE", "NEXT OWNER AT", "REASON"], &history));
    }
    text
}
