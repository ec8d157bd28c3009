//! `jumpctl sessions timeline`: one session's life, from exported audit events or from control's memory.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use jump_proto::control_v1::ownership_service_client::OwnershipServiceClient;
use jump_proto::control_v1::{GetOwnershipRequest, OwnershipEntry};
use jump_session::ids::SessionId;
use jump_telemetry::timeline::{Ownership, Timeline};

use super::{Operator, about};
use crate::channel::refused;
use crate::failure::{Exit, Failure};
use crate::output::{self, Output};

pub(super) async fn show(
    operator: &Operator,
    session: SessionId,
    events: &[PathBuf],
    svg: Option<&Path>,
) -> Result<(), Failure> {
    let timeline = match events {
        [] => remembered(operator, session).await?,
        files => exported(session, files)?,
    };
    if timeline.entries.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("no event is about session {session}")));
    }
    match (svg, operator.output) {
        (Some(path), _) if path.as_os_str() == "-" => output::line(&timeline.to_svg()),
        (Some(path), _) => fs::write(path, timeline.to_svg()).map_err(|error| {
            Failure::because(Exit::Failed, format_args!("cannot write {}", path.display()), &error)
        }),
        (None, Output::Table) => output::line(timeline.to_text().trim_end()),
        (None, Output::Json) => output::line(
            &serde_json::to_string(&timeline)
                .map_err(|error| Failure::because(Exit::Failed, "cannot write the timeline", &error))?,
        ),
    }
}

fn exported(session: SessionId, files: &[PathBuf]) -> Result<Timeline, Failure> {
    let mut text = String::new();
    for file in files {
        let read = if file.as_os_str() == "-" {
            io::stdin().lock().read_to_string(&mut text)
        } else {
            fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
        };
        read.map_err(|error| {
            Failure::because(Exit::Failed, format_args!("cannot read {}", file.display()), &error)
        })?;
        text.push('\n');
    }
    // Collectors put their own header before each event.
    let events = text.lines().filter_map(|line| line.find('{').map(|start| &line[start..]));
    Ok(Timeline::build(session, events))
}

async fn remembered(operator: &Operator, session: SessionId) -> Result<Timeline, Failure> {
    let what = format!("ownership of session {session}");
    let ownership = OwnershipServiceClient::new(operator.channel().await?)
        .get_ownership(about(session, GetOwnershipRequest { session_id: session.to_string() }))
        .await
        .map_err(|status| refused(&what, &status))?
        .into_inner()
        .ownership
        .ok_or_else(|| Failure::other(format!("{what}: control sent an empty answer")))?;
    let owners = ownership.history.iter().map(owner).collect();
    let correlation = Some(ownership.correlation_id).filter(|id| !id.is_empty());
    Ok(Timeline::from_owners(session, correlation, owners))
}

fn owner(entry: &OwnershipEntry) -> Ownership {
    let since = entry.since_time.as_ref();
    let millis =
        since.map_or(0, |at| at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000));
    Ownership {
        epoch: entry.epoch,
        node: entry.owner.as_ref().map(|owner| owner.node_id.clone()).unwrap_or_default(),
        reason: Some(entry.reason.clone()).filter(|reason| !reason.is_empty()),
        from: u64::try_from(millis).unwrap_or_default(),
        to: None,
    }
}
