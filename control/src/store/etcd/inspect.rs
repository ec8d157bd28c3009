//! What the members of a cluster say of themselves, for `jump-control doctor`. Reads only.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, GetOptions, Txn, TxnOp};
use tokio::time::timeout;

use super::super::group::READ_KEYS_MAX;
use super::failure::Failure;
use super::{EtcdConfig, unsigned};

/// One endpoint's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The endpoint.
    pub endpoint: String,
    /// What is there, or why nobody answers.
    pub member: Result<MemberStatus, String>,
}

/// What a member says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its cluster.
    pub cluster: u64,
    /// Its release, `3.5.9`.
    pub version: String,
    /// Whether it knows a leader.
    pub has_leader: bool,
    /// Size of its file, in bytes: what the quota bounds.
    pub file_bytes: u64,
    /// How much of that is in use, in bytes.
    pub used_bytes: u64,
    /// The quota, in bytes; told by etcd 3.6 and newer.
    pub quota_bytes: Option<u64>,
    /// What it finds wrong itself: the cluster's alarms, with their names.
    pub errors: Vec<String>,
    /// Whether it takes a request as large as control's largest.
    pub largest_request: Result<(), String>,
}

/// Asks every endpoint by itself.
pub async fn inspect(config: &EtcdConfig) -> Vec<Inspected> {
    let mut all = Vec::new();
    for endpoint in &config.endpoints {
        // To connect, to sign in, to ask twice.
        let bound = config.connect_timeout + 3 * config.request_timeout;
        let member = in_time(bound, status(endpoint, config)).await;
        all.push(Inspected { endpoint: endpoint.clone(), member });
    }
    all
}

async fn in_time<T>(bound: Duration, asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(bound, asked).await.unwrap_or_else(|_| Err(format!("no answer within {bound:?}")))
}

async fn status(endpoint: &str, config: &EtcdConfig) -> Result<MemberStatus, String> {
    // A member without a leader has something to say, too.
    let options = config.options().with_require_leader(false);
    let client = Client::connect([endpoint], Some(options)).await.map_err(clause)?;
    let status = client.maintenance_client().status().await.map_err(clause)?;
    let quota = unsigned(status.db_size_quota());
    Ok(MemberStatus {
        cluster: status.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
        version: status.version().to_owned(),
        has_leader: status.leader() != 0,
        file_bytes: unsigned(status.db_size()),
        used_bytes: unsigned(status.raft_used_db_size()),
        quota_bytes: (quota != 0).then_some(quota),
        errors: status.errors().to_vec(),
        largest_request: in_time(config.request_timeout, largest_request(&client)).await,
    })
}

/// The one clause of an error that says why, without the library's account of it.
fn clause(error: etcd_client::Error) -> String {
    match Failure::from(error) {
        Failure::NotDone(text)
        | Failure::SignedOut(text)
        | Failure::Unknown(text)
        | Failure::Refused(text) => text,
        Failure::LeaseNotFound | Failure::Compacted => "an answer to something else".to_owned(),
    }
}

/// Reads nothing as often as control's largest request has operations.
async fn largest_request(client: &Client) -> Result<(), String> {
    let get = || TxnOp::get("/jump/probe", Some(GetOptions::new().with_count_only()));
    let request = Txn::new().and_then((0..READ_KEYS_MAX).map(|_| get()).collect::<Vec<_>>());
    client.kv_client().txn(request).await.map(|_| ()).map_err(clause)
}
