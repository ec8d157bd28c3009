//! `jumpctl log-levels`.

use clap::Subcommand;
use jump_proto::control_v1::log_service_client::LogServiceClient;
use jump_proto::control_v1::{GetLogLevelsRequest, SetLogLevelsRequest};
use serde_json::json;

use super::Operator;
use crate::channel::refused;
use crate::failure::Failure;
use crate::output::{self, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the levels in force
    Get,
    /// Set them, until the replica ends or reads its settings again
    Set {
        /// Levels per target, for example info,jump_control::store=debug
        levels: String,
    },
    /// Go back to the levels of the replica's settings
    Reset,
}

/// Asks every replica that was named: each has levels of its own.
pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for turn in 0..operator.controls.len() {
        let mut client = LogServiceClient::new(operator.channel_to(turn).await?);
        let asked = match &command {
            Command::Get => {
                let answer = client.get_log_levels(GetLogLevelsRequest {}).await;
                answer.map(|answer| answer.into_inner()).map(|answer| (answer.replica, answer.levels))
            }
            Command::Set { levels } => set(&mut client, levels.clone()).await,
            Command::Reset => set(&mut client, String::new()).await,
        };
        let (replica, levels) = asked.map_err(|status| refused("log levels", &status))?;
        rows.push(vec![replica, levels]);
    }
    match operator.output {
        Output::Json => rows
            .iter()
            .try_for_each(|row| output::line(&json!({ "replica": row[0], "levels": row[1] }).to_string())),
        Output::Table => output::line(output::table(&["REPLICA", "LEVELS"], &rows).trim_end()),
    }
}

async fn set(
    client: &mut LogServiceClient<tonic::transport::Channel>,
    levels: String,
) -> Result<(String, String), tonic::Status> {
    let answer = client.set_log_levels(SetLogLevelsRequest { levels }).await?.into_inner();
    Ok((answer.replica, answer.levels))
}
