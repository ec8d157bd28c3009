//! The members of the cluster, and which of them to ask.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, ResponseHeader, WatchClient};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::super::StoreError;
use super::failure::Failure;
use super::{ANSWER_BYTES_MAX, EtcdConfig};

/// How long a member that failed is passed over, at first and at most.
const PASS_OVER_MIN: Duration = Duration::from_millis(200);
const PASS_OVER_MAX: Duration = Duration::from_secs(5);

/// Pause before all members are tried once more.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// How many requests are in flight at a time.
const REQUESTS_MAX: usize = 256;

/// The share of the request timeout that the first try of an idempotent request gets; each further try gets twice as
/// much. A member that hangs, or that waits for a leader which is gone, costs this much.
const FIRST_TRY_SHARE: u32 = 4;

/// The share of the request timeout after which a write that is not answered makes its member prove that it works,
/// and the share that the proof may take.
const DOUBT_SHARE: u32 = 8;
const PROOF_SHARE: u32 = 4;

/// How many request timeouts an idempotent request may take in all.
const IDEMPOTENT_TIMEOUTS: u32 = 3;

/// The members, with a preference that moves away from failing ones.
#[derive(Debug)]
pub(super) struct Pool {
    members: Vec<Arc<Member>>,
    preferred: AtomicUsize,
    request_timeout: Duration,
    /// Requests in flight: what a member cannot take in time would only time out, with an unknown outcome.
    slots: Semaphore,
    started: Instant,
}

/// One member. Each has a channel of its own, so that a dead one cannot be chosen behind our back.
pub(super) struct Member {
    endpoint: String,
    options: ConnectOptions,
    client: Mutex<Option<Client>>,
    /// Milliseconds since the pool's start until which the member is passed over; 0 for not at all.
    passed_over_until: AtomicU64,
    failures: AtomicU64,
    /// The raft term in the member's last answer.
    term: AtomicU64,
    /// Whether it is asked for a proof right now.
    proving: AtomicBool,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member({})", self.endpoint)
    }
}

impl Member {
    async fn client(&self) -> Result<Client, Failure> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = Client::connect([&self.endpoint], Some(self.options.clone())).await?;
        Ok(slot.insert(client).clone())
    }

    /// Forgets the connection, so that the next one asks for a new token.
    async fn sign_in_again(&self) {
        *self.client.lock().await = None;
    }

    pub(super) async fn kv(&self) -> Result<KvClient, Failure> {
        Ok(self.client().await?.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(super) async fn lease(&self) -> Result<LeaseClient, Failure> {
        Ok(self.client().await?.lease_client())
    }

    pub(super) async fn watch(&self) -> Result<WatchClient, Failure> {
        Ok(self.client().await?.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The term that the member was last seen in.
    pub(super) fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// Remembers the term of an answer and returns it.
    pub(super) fn note(&self, header: Option<&ResponseHeader>) -> u64 {
        let term = header.map_or(0, ResponseHeader::raft_term);
        self.term.fetch_max(term, Ordering::AcqRel);
        term
    }
}

/// A proof under way.
struct Proving<'a>(&'a AtomicBool);

impl Drop for Proving<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Pool {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let members = config
            .endpoints
            .iter()
            .map(|endpoint| {
                Arc::new(Member {
                    endpoint: endpoint.clone(),
                    options: config.options(),
                    client: Mutex::new(None),
                    passed_over_until: AtomicU64::new(0),
                    failures: AtomicU64::new(0),
                    term: AtomicU64::new(0),
                    proving: AtomicBool::new(false),
                })
            })
            .collect();
        Self {
            members,
            preferred: AtomicUsize::new(0),
            request_timeout: config.request_timeout,
            slots: Semaphore::new(REQUESTS_MAX),
            started: Instant::now(),
        }
    }

    /// Runs a request that may be repeated, on one member after the other.
    pub(super) async fn idempotent<T, F>(&self, request: impl Fn(Arc<Member>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + self.request_timeout * IDEMPOTENT_TIMEOUTS;
        let mut tried = 0;
        let mut patience = self.request_timeout / FIRST_TRY_SHARE;
        loop {
            let member = self.choose();
            let answer = self.within(patience, member, request(Arc::clone(member))).await;
            patience = (patience * 2).min(self.request_timeout);
            let failure = match answer {
                Ok(answer) => return Ok(answer),
                Err(failure @ (Failure::LeaseNotFound | Failure::Compacted | Failure::Refused(_))) => {
                    return Err(failure.into());
                }
                Err(Failure::NotDone(text) | Failure::Unknown(text) | Failure::SignedOut(text)) => text,
            };
            tried += 1;
            if tried >= self.members.len().max(2) && Instant::now() + ROUND_PAUSE >= deadline {
                return Err(self.unreachable(&failure));
            }
            if tried % self.members.len() == 0 {
                if Instant::now() >= deadline {
                    return Err(self.unreachable(&failure));
                }
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    /// Runs a request that must not be repeated once it may have been sent.
    pub(super) async fn write<T, F>(&self, request: impl Fn(Arc<Member>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut last = String::new();
        for _ in 0..self.members.len().max(2) {
            let member = self.choose();
            let answer = tokio::select! {
                answer = self.once(member, request(Arc::clone(member))) => answer,
                doubt = self.doubt(member) => {
                    self.pass_over(member);
                    Err(Failure::Unknown(doubt))
                }
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Failure::NotDone(text) | Failure::SignedOut(text)) => last = text,
                Err(
                    failure @ (Failure::Unknown(_)
                    | Failure::LeaseNotFound
                    | Failure::Compacted
                    | Failure::Refused(_)),
                ) => return Err(failure.into()),
            }
        }
        Err(self.unreachable(&last))
    }

    /// Runs one request on one member, within the bound, and remembers how the member did.
    pub(super) async fn once<T>(
        &self,
        member: &Member,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.within(self.request_timeout, member, request).await
    }

    /// As [`once`](Self::once), with a bound of its own.
    async fn within<T>(
        &self,
        patience: Duration,
        member: &Member,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let result = timeout(patience, request).await.unwrap_or_else(|_| {
            Err(Failure::Unknown(format!("{} did not answer in {patience:?}", member.endpoint)))
        });
        if let Err(Failure::SignedOut(_)) = &result {
            member.sign_in_again().await;
        }
        match &result {
            Err(Failure::SignedOut(_)) => {}
            Err(Failure::NotDone(_) | Failure::Unknown(_)) => self.pass_over(member),
            Ok(_) | Err(Failure::LeaseNotFound | Failure::Compacted | Failure::Refused(_)) => {
                member.failures.store(0, Ordering::Relaxed);
                member.passed_over_until.store(0, Ordering::Relaxed);
            }
        }
        result
    }

    /// Completes, with the reason, once it is doubtful that a write which was given to `member` is ever answered: the
    /// member hangs, or the leader changed under it. A proposal that was on its way to a dead leader is lost without a
    /// word; its caller waits for etcd's own timeout of seconds otherwise.
    async fn doubt(&self, member: &Member) -> String {
        let sent_in = member.term();
        loop {
            tokio::time::sleep(self.request_timeout / DOUBT_SHARE).await;
            if member.proving.swap(true, Ordering::AcqRel) {
                continue;
            }
            // Reset also when the write is answered while the proof is under way.
            let proving = Proving(&member.proving);
            let proof =
                timeout(self.request_timeout / PROOF_SHARE, super::EtcdStore::confirm_term(member)).await;
            drop(proving);
            match proof {
                Ok(Ok(term)) if sent_in == 0 || term == sent_in => {}
                Ok(Ok(_)) => return "the cluster changed its leader".to_owned(),
                Ok(Err(_)) | Err(_) => return format!("{} hangs, or has no leader", member.endpoint),
            }
        }
    }

    /// The preferred member, or the next one that is not passed over, or the one that is due soonest.
    pub(super) fn choose(&self) -> &Arc<Member> {
        let now = self.now();
        let preferred = self.preferred.load(Ordering::Relaxed);
        let rank = |offset: usize| {
            let until = self.members[(preferred + offset) % self.members.len()]
                .passed_over_until
                .load(Ordering::Relaxed);
            (until.saturating_sub(now), offset)
        };
        let offset = (0..self.members.len()).min_by_key(|offset| rank(*offset)).unwrap_or(0);
        &self.members[(preferred + offset) % self.members.len()]
    }

    pub(super) fn pass_over(&self, member: &Member) {
        let failures = member.failures.fetch_add(1, Ordering::Relaxed).min(8);
        let pause = (PASS_OVER_MIN * (1 << failures)).min(PASS_OVER_MAX);
        let until = self.now() + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        member.passed_over_until.store(until, Ordering::Relaxed);
        let index =
            self.members.iter().position(|other| std::ptr::eq(Arc::as_ptr(other), member)).unwrap_or(0);
        // Whoever sees the failure first moves the preference.
        let _ = self.preferred.compare_exchange(
            index,
            (index + 1) % self.members.len(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn unreachable(&self, last: &str) -> StoreError {
        let endpoints: Vec<&str> = self.members.iter().map(|member| member.endpoint()).collect();
        StoreError::Unavailable(format!("no etcd member of {} answers ({last})", endpoints.join(", ")))
    }
}
