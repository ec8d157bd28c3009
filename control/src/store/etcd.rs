//! The store of a cluster: etcd 3.4 or newer.
//!
//! What the client library leaves to its user is done here: failover between endpoints that does not stick to a dead
//! one, telling a write that was never sent from one whose outcome is unknown, watches that reconnect and resume, and
//! renewals that only the cluster's real leader can confirm.
//!
//! `docs/etcd-layout.md` lists the server settings.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    CompareOp, ConnectOptions, GetOptions, GetResponse, PutOptions, ResponseHeader, TxnOp, TxnOpResponse,
};
use jump_session::ids::Revision;
use tokio_stream::wrappers::ReceiverStream;

use super::group::Many;
use super::{
    Compare, KeyValue, Lease, LeaseId, Op, Outcome, Page, RANGE_LIMIT_MAX, Snapshot, Store, StoreError, Txn,
    WatchStream,
};

mod failure;
mod inspect;
mod pool;
mod watch;

use failure::Failure;
pub use inspect::{Inspected, MemberStatus, inspect};
use pool::{Member, Pool};

/// The largest answer that is accepted, in bytes; the library's default of 4 MiB is too small for a full page.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many times a renewal is repeated when the cluster's term changes under it.
const RENEWAL_ATTEMPTS_MAX: usize = 3;

/// How many batches a watch may be ahead of its reader.
const WATCH_QUEUE_BATCHES: usize = 64;

/// Where the cluster is and how patient to be.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// URLs (`http://` or `https://`), each naming one member (not a load balancer).
    pub endpoints: Vec<String>,
    /// Trust and identity for `https://` endpoints.
    pub tls: Option<EtcdTls>,
    /// User name and password, where the cluster has authentication on.
    pub user: Option<(String, String)>,
    /// Bound on connecting to one endpoint.
    pub connect_timeout: Duration,
    /// Bound on one request to one endpoint.
    pub request_timeout: Duration,
    /// Time between HTTP/2 pings; not shorter than the server's `--grpc-keepalive-min-time`.
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is given up.
    pub keepalive_timeout: Duration,
}

/// PEM texts for TLS to etcd.
#[derive(Clone)]
pub struct EtcdTls {
    /// The certificate authority of the servers.
    pub ca: String,
    /// The client's certificate and key, where the servers ask for one.
    pub identity: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl EtcdConfig {
    /// The defaults for these endpoints.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            user: None,
            connect_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(1),
        }
    }

    fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(self.keepalive_interval, self.keepalive_timeout)
            .with_keep_alive_while_idle(true)
            .with_tcp_keepalive(self.keepalive_interval)
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            let mut with =
                etcd_client::TlsOptions::new().ca_certificate(etcd_client::Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(etcd_client::Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        options
    }
}

/// A store in an etcd cluster. Clones share the connections.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    pool: Arc<Pool>,
}

impl EtcdStore {
    /// Connects, and makes sure that the cluster answers a linearizable read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] naming the endpoints when none answers, [`StoreError::Refused`] when the
    /// configuration cannot work.
    pub async fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        if config.endpoints.is_empty() {
            return Err(StoreError::Refused("no etcd endpoint is configured".to_owned()));
        }
        let store = Self { pool: Arc::new(Pool::new(&config)) };
        store.read(&["/jump/probe".to_owned()]).await?;
        Ok(store)
    }

    /// A linearizable read of nothing: the term in which the leader was confirmed after this call began.
    async fn confirm_term(member: &Member) -> Result<u64, Failure> {
        let options = GetOptions::new().with_count_only();
        let answer = member.kv().await?.get("/jump/probe", Some(options)).await?;
        Ok(member.note(answer.header()))
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.pool
            .idempotent(|member| {
                let keys = keys.to_vec();
                async move {
                    let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
                    // A transaction may not be empty; it reads the probe key then.
                    let gets = if gets.is_empty() { vec![TxnOp::get("/jump/probe", None)] } else { gets };
                    let answer = member.kv().await?.txn(etcd_client::Txn::new().and_then(gets)).await?;
                    member.note(answer.header());
                    let mut values: Vec<Option<KeyValue>> = Vec::with_capacity(keys.len());
                    for response in answer.op_responses() {
                        if let TxnOpResponse::Get(found) = response {
                            values.push(found.kvs().first().map(key_value).transpose()?);
                        }
                    }
                    values.truncate(keys.len());
                    Ok(Snapshot { revision: revision_of(answer.header()), values })
                }
            })
            .await
    }

    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, RANGE_LIMIT_MAX);
        let start = if after >= prefix { [after.as_bytes(), b"\0"].concat() } else { prefix.into() };
        let options = GetOptions::new()
            .with_range(prefix_end(prefix))
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(at.map_or(0, |at| signed(at.0)));
        self.pool
            .idempotent(|member| {
                let (start, options) = (start.clone(), options.clone());
                async move {
                    let answer: GetResponse = member.kv().await?.get(start, Some(options)).await?;
                    member.note(answer.header());
                    let values = answer.kvs().iter().map(key_value).collect::<Result<Vec<_>, _>>()?;
                    let revision = at.unwrap_or_else(|| revision_of(answer.header()));
                    Ok(Page { revision, values, more: answer.more() })
                }
            })
            .await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let request = encode(&txn);
        self.pool
            .write(|member| {
                let request = request.clone();
                async move {
                    let answer = member.kv().await?.txn(request).await?;
                    member.note(answer.header());
                    Ok(match answer.succeeded() {
                        true => Outcome::Committed(revision_of(answer.header())),
                        false => Outcome::Conflict,
                    })
                }
            })
            .await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        self.pool
            .write(move |member| async move {
                let answer = member.lease().await?.grant(signed(seconds.max(1)), None).await?;
                let granted = u64::try_from(answer.ttl()).unwrap_or(0);
                Ok(Lease { id: LeaseId(answer.id()), ttl: Duration::from_secs(granted) })
            })
            .await
    }

    /// A deposed leader that does not know it yet may answer a renewal from its own memory (etcd before 3.4.29 and
    /// 3.5.11), while its successor counts from its own election. So the renewal counts only if the member that
    /// passed it on was in one and the same term before it and in a confirmed read after it.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pool
            .idempotent(move |member| async move {
                let mut before = member.term();
                for _ in 0..RENEWAL_ATTEMPTS_MAX {
                    member.lease().await?.keep_alive(lease.0).await?;
                    let after = Self::confirm_term(&member).await?;
                    if before == after {
                        return Ok(());
                    }
                    before = after;
                }
                Err(Failure::NotDone("the cluster keeps changing its leader".to_owned()))
            })
            .await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoked = self
            .pool
            .idempotent(move |member| async move {
                member.lease().await?.revoke(lease.0).await?;
                Ok(())
            })
            .await;
        match revoked {
            Err(StoreError::LeaseNotFound) => Ok(()),
            other => other,
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        let (batches, reader) = tokio::sync::mpsc::channel(WATCH_QUEUE_BATCHES);
        tokio::spawn(watch::follow(Arc::clone(&self.pool), prefix.to_owned(), after, batches));
        Box::pin(ReceiverStream::new(reader))
    }
}

#[async_trait]
impl Many for EtcdStore {
    async fn commit_many(&self, txns: &[Txn]) -> Result<Vec<Outcome>, StoreError> {
        let nested: Vec<TxnOp> = txns.iter().map(|txn| TxnOp::txn(encode(txn))).collect();
        let request = etcd_client::Txn::new().and_then(nested);
        self.pool
            .write(|member| {
                let request = request.clone();
                async move {
                    let answer = member.kv().await?.txn(request).await?;
                    member.note(answer.header());
                    // The inner answers carry no revision of their own.
                    let revision = revision_of(answer.header());
                    let outcome = |response: TxnOpResponse| match response {
                        TxnOpResponse::Txn(inner) if inner.succeeded() => Ok(Outcome::Committed(revision)),
                        TxnOpResponse::Txn(_) => Ok(Outcome::Conflict),
                        TxnOpResponse::Get(_) | TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) => {
                            Err(Failure::Unknown("an answer to something else".to_owned()))
                        }
                    };
                    let outcomes: Vec<Outcome> =
                        answer.op_responses().into_iter().map(outcome).collect::<Result<_, _>>()?;
                    if outcomes.len() == txns.len() {
                        Ok(outcomes)
                    } else {
                        Err(Failure::Unknown("answers are missing".to_owned()))
                    }
                }
            })
            .await
    }
}

fn encode(txn: &Txn) -> etcd_client::Txn {
    let compares: Vec<etcd_client::Compare> = txn
        .compares
        .iter()
        .map(|compare| match compare {
            Compare::Created(key, revision) => {
                etcd_client::Compare::create_revision(key.as_str(), CompareOp::Equal, signed(revision.0))
            }
            Compare::NotCreated(key, revision) => {
                etcd_client::Compare::create_revision(key.as_str(), CompareOp::NotEqual, signed(revision.0))
            }
            Compare::Modified(key, revision) => {
                etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, signed(revision.0))
            }
        })
        .collect();
    let ops: Vec<TxnOp> = txn
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(key.as_str(), value.as_slice(), options)
            }
            Op::Delete { key } => TxnOp::delete(key.as_str(), None),
        })
        .collect();
    etcd_client::Txn::new().when(compares).and_then(ops)
}

fn key_value(found: &etcd_client::KeyValue) -> Result<KeyValue, Failure> {
    let key = found.key_str().map_err(|_| Failure::Refused("a key of the store is not text".to_owned()))?;
    Ok(KeyValue {
        key: key.to_owned(),
        value: found.value().to_vec(),
        create_revision: Revision(unsigned(found.create_revision())),
        mod_revision: Revision(unsigned(found.mod_revision())),
        lease: (found.lease() != 0).then_some(LeaseId(found.lease())),
    })
}

fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| unsigned(header.revision())))
}

/// The first key after every key that starts with `prefix`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
