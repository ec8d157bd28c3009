//! `jumpctl sessions`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use jump_proto::control_v1::ownership_service_client::OwnershipServiceClient;
use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_proto::control_v1::{
    GetSessionRequest, ListSessionsRequest, MoveSessionRequest, Session, SessionPhase,
    TerminateSessionRequest, WatchOwnershipRequest, WatchSessionsRequest,
};
use jump_session::ids::{NodeId, SessionId};
use serde_json::json;

use super::watch::{self, Broken};
use super::{Operator, about, confirm, view};
use crate::channel::refused;
use crate::failure::{Exit, Failure};
use crate::output::{self, Output};

/// Sessions per request.
const PAGE_SIZE: i32 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List sessions
    List {
        /// Only those that this node owns
        #[arg(long)]
        node: Option<String>,
        /// Only those of this device (its key, 64 hexadecimal digits)
        #[arg(long, value_name = "KEY")]
        device: Option<String>,
    },
    /// Show one session
    Get {
        /// The session's id
        session: SessionId,
    },
    /// Show a session's life: owners, transitions, reasons, times without service
    Timeline {
        /// The session's id
        session: SessionId,
        /// Read exported audit events from this file (- for standard input); may be given several times. Without it, the
        /// owners that control remembers are shown
        #[arg(long, value_name = "FILE")]
        events: Vec<PathBuf>,
        /// Write it as an SVG picture to this file instead (- for standard output)
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Follow changes, one session per line
    Watch {
        /// Only this session
        session: Option<SessionId>,
    },
    /// Send a session's client to another gateway, and wait until it is there
    Move {
        /// The session's id
        session: SessionId,
        /// The gateway to move to; any other one without it
        #[arg(long, value_name = "NODE")]
        to: Option<NodeId>,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
        /// How long to wait for the client; 0s to order the move and return
        #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
    /// End a session for good; its device starts a new one
    Terminate {
        /// The session's id
        session: SessionId,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { node, device } => list(operator, node, device).await,
        Command::Get { session } => {
            let request = GetSessionRequest { session_id: session.to_string() };
            let what = format!("session {session}");
            let response = SessionServiceClient::new(operator.channel().await?)
                .get_session(about(session, request))
                .await
                .map_err(|status| refused(&what, &status))?;
            show(operator, &present(response.into_inner().session, &what)?)
        }
        Command::Timeline { session, events, svg } => {
            super::timeline::show(operator, session, &events, svg.as_deref()).await
        }
        Command::Watch { session } => follow(operator, session).await,
        Command::Move { session, to, comment, wait } => {
            order_move(operator, session, to, comment, wait).await
        }
        Command::Terminate { session, comment, yes } => {
            confirm(&format!("End session {session} for good?"), yes)?;
            let request = TerminateSessionRequest { session_id: session.to_string(), comment };
            let what = format!("ending session {session}");
            let response = SessionServiceClient::new(operator.channel().await?)
                .terminate_session(about(session, request))
                .await
                .map_err(|status| refused(&what, &status))?;
            show(operator, &present(response.into_inner().session, &what)?)
        }
    }
}

/// Orders a move and follows the ownership until another gateway owns the session.
async fn order_move(
    operator: &Operator,
    session: SessionId,
    to: Option<NodeId>,
    comment: String,
    wait: Duration,
) -> Result<(), Failure> {
    let what = format!("moving session {session}");
    let node_id = to.map(|to| to.to_string()).unwrap_or_default();
    let request = MoveSessionRequest { session_id: session.to_string(), node_id, comment };
    let channel = operator.channel().await?;
    let ordered = SessionServiceClient::new(channel.clone())
        .move_session(about(session, request))
        .await
        .map_err(|status| refused(&what, &status))?;
    let ordered = present(ordered.into_inner().session, &what)?;
    // Without an order there was nothing to do: it is there, or on its way.
    if wait.is_zero() || (ordered.r#move.is_none() && ordered.handover_to.is_none()) {
        return show(operator, &ordered);
    }
    let from = ordered.owner.as_ref().map(|owner| owner.node_id.clone());
    let moved = async {
        let mut stream = OwnershipServiceClient::new(channel.clone())
            .watch_ownership(about(session, WatchOwnershipRequest { session_id: session.to_string() }))
            .await
            .map_err(|status| refused(&what, &status))?
            .into_inner();
        while let Some(update) = stream.message().await.map_err(|status| refused(&what, &status))? {
            let Some(ownership) = update.ownership else { continue };
            if ownership.phase() == SessionPhase::Terminated {
                return Err(Failure::other(format!("{what}: it ended ({})", ownership.last_reason)));
            }
            let owner = ownership.owner.as_ref().map(|owner| &owner.node_id);
            if ownership.epoch > ordered.epoch && owner.is_some() && owner != from.as_ref() {
                return Ok(());
            }
        }
        Err(Failure::new(Exit::Unreachable, "control closed the watch"))
    };
    match tokio::time::timeout(wait, moved).await {
        Ok(moved) => moved?,
        Err(_) => {
            return Err(Failure::other(format!(
                "{what}: its client has not moved within {wait:?}; it is still served where it was, and the order stands for a minute"
            )));
        }
    }
    let request = GetSessionRequest { session_id: session.to_string() };
    let now = SessionServiceClient::new(channel)
        .get_session(about(session, request))
        .await
        .map_err(|status| refused(&what, &status))?;
    show(operator, &present(now.into_inner().session, &what)?)
}

async fn list(operator: &Operator, node: Option<String>, device: Option<String>) -> Result<(), Failure> {
    let mut client = SessionServiceClient::new(operator.channel().await?);
    let mut request = ListSessionsRequest {
        page_size: PAGE_SIZE,
        page_token: String::new(),
        node_id: node.unwrap_or_default(),
        device_key: device.unwrap_or_default(),
    };
    let mut rows = Vec::new();
    loop {
        let page = client
            .list_sessions(request.clone())
            .await
            .map_err(|status| refused("listing sessions", &status))?
            .into_inner();
        for session in &page.sessions {
            match operator.output {
                Output::Json => output::line(&view::session(session).to_string())?,
                Output::Table => rows.push(view::session_row(session)),
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match operator.output {
        Output::Json => Ok(()),
        Output::Table => output::line(output::table(&view::SESSION_HEADINGS, &rows).trim_end()),
    }
}

async fn follow(operator: &Operator, session: Option<SessionId>) -> Result<(), Failure> {
    let session_id = session.map(|session| session.to_string()).unwrap_or_default();
    let mut after_revision = 0;
    if operator.output == Output::Table {
        output::line(&view::SESSION_HEADINGS.join("  "))?;
    }
    watch::keep(async |turn| {
        let lost = |failure| Broken::Lost { failure, progressed: false };
        let channel = operator.channel_in_turn(turn).await.map_err(lost)?;
        let request = WatchSessionsRequest { after_revision, session_id: session_id.clone() };
        let mut stream = SessionServiceClient::new(channel)
            .watch_sessions(about(session, request))
            .await
            .map_err(|status| Broken::of("watching sessions", &status, false))?
            .into_inner();
        let mut progressed = false;
        loop {
            let update =
                stream.message().await.map_err(|s| Broken::of("watching sessions", &s, progressed))?;
            let Some(update) = update else {
                let failure = Failure::new(Exit::Unreachable, "control closed the watch");
                return Err(Broken::Lost { failure, progressed });
            };
            progressed = true;
            after_revision = after_revision.max(update.revision);
            for session in &update.sessions {
                show_line(operator, session, update.revision).map_err(Broken::Final)?;
            }
        }
    })
    .await
}

fn show_line(operator: &Operator, session: &Session, revision: u64) -> Result<(), Failure> {
    match operator.output {
        Output::Json => {
            let mut value = view::session(session);
            value["revision"] = json!(revision);
            output::line(&value.to_string())
        }
        Output::Table => output::line(&view::session_row(session).join("  ")),
    }
}

fn show(operator: &Operator, session: &Session) -> Result<(), Failure> {
    match operator.output {
        Output::Json => output::line(&view::session(session).to_string()),
        Output::Table => {
            let text = output::table(&view::SESSION_HEADINGS, &[view::session_row(session)]);
            output::line(text.trim_end())
        }
    }
}

fn present<T>(value: Option<T>, what: &str) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::other(format!("{what}: control sent an empty answer")))
}
