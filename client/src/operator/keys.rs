//! `jumpctl keys`.

use clap::{Subcommand, ValueEnum};
use jump_proto::control_v1::key_service_client::KeyServiceClient;
use jump_proto::control_v1::{
    Key, KeyPurpose, KeyState, ListKeysRequest, RetireKeyRequest, RotateKeyRequest,
};

use super::{Operator, confirm, view};
use crate::channel::refused;
use crate::failure::Failure;
use crate::output::{self, Output};

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Purpose {
    /// The key that every gateway answers handshakes under
    Cluster,
    /// The key by which control signs grants and node certificates
    Grant,
}

impl Purpose {
    fn wire(self) -> i32 {
        match self {
            Self::Cluster => KeyPurpose::Cluster,
            Self::Grant => KeyPurpose::Grant,
        }
        .into()
    }

    fn text(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Grant => "grant",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the cluster and grant keys and where they stand
    List,
    /// Announce a new key; it comes into use by itself, and the present one is accepted until its overlap ends
    Rotate {
        /// Which key
        purpose: Purpose,
        /// The present key leaked: replace it now and refuse it at once. Devices that do not know the new key yet must
        /// enrol again
        #[arg(long)]
        leaked: bool,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Refuse a next or retiring key from now on
    Retire {
        /// Which key
        purpose: Purpose,
        /// Its id, 8 hexadecimal digits, as listed
        id: String,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

const HEADINGS: [&str; 6] = ["PURPOSE", "ID", "STATE", "SINCE", "UNTIL", "MADE"];

pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => {
            let mut client = KeyServiceClient::new(operator.channel().await?);
            let answer = client.list_keys(ListKeysRequest {}).await;
            show(operator, &answer.map_err(|status| refused("listing keys", &status))?.into_inner().keys)
        }
        Command::Rotate { purpose, leaked, comment, yes } => {
            if leaked {
                let question = format!(
                    "Refuse the current {} key at once? Devices that do not know its successor must enrol again.",
                    purpose.text()
                );
                confirm(&question, yes)?;
            }
            let request = RotateKeyRequest { purpose: purpose.wire(), leaked, comment };
            let mut client = KeyServiceClient::new(operator.channel().await?);
            let answer = client.rotate_key(request).await;
            let what = format!("rotating the {} key", purpose.text());
            show(operator, &answer.map_err(|status| refused(&what, &status))?.into_inner().keys)
        }
        Command::Retire { purpose, id, comment, yes } => {
            confirm(&format!("Refuse {} key {id} from now on?", purpose.text()), yes)?;
            let what = format!("retiring {} key {id}", purpose.text());
            let request = RetireKeyRequest { purpose: purpose.wire(), key_id: id, comment };
            let mut client = KeyServiceClient::new(operator.channel().await?);
            let answer = client.retire_key(request).await;
            show(operator, &answer.map_err(|status| refused(&what, &status))?.into_inner().keys)
        }
    }
}

fn show(operator: &Operator, keys: &[Key]) -> Result<(), Failure> {
    match operator.output {
        Output::Json => keys.iter().try_for_each(|key| output::line(&json(key).to_string())),
        Output::Table => {
            let rows: Vec<_> = keys.iter().map(row).collect();
            output::line(output::table(&HEADINGS, &rows).trim_end())
        }
    }
}

fn purpose(key: &Key) -> &'static str {
    match key.purpose() {
        KeyPurpose::Cluster => "cluster",
        KeyPurpose::Grant => "grant",
        KeyPurpose::Unspecified => "?",
    }
}

fn state(key: &Key) -> &'static str {
    match key.state() {
        KeyState::Next => "NEXT",
        KeyState::Current => "CURRENT",
        KeyState::Retiring => "RETIRING",
        KeyState::Retired => "RETIRED",
        KeyState::Unspecified => "?",
    }
}

fn row(key: &Key) -> Vec<String> {
    let time = |at| view::time(at).unwrap_or_else(|| "-".to_owned());
    vec![
        purpose(key).to_owned(),
        key.key_id.clone(),
        state(key).to_owned(),
        time(key.change_time.as_ref()),
        time(key.due_time.as_ref()),
        time(key.create_time.as_ref()),
    ]
}

fn json(key: &Key) -> serde_json::Value {
    serde_json::json!({
        "purpose": purpose(key),
        "key_id": key.key_id,
        "public_key": crate::hex::encode(&key.public_key),
        "state": state(key),
        "change_time": view::time(key.change_time.as_ref()),
        "due_time": view::time(key.due_time.as_ref()),
        "create_time": view::time(key.create_time.as_ref()),
    })
}
