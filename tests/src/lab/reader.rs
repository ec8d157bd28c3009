//! Asks control who owns which session, all the time, at every replica: the reads of an ownership history.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jump_proto::control_v1::ownership_service_client::OwnershipServiceClient;
use jump_proto::control_v1::session_service_client::SessionServiceClient;
use jump_proto::control_v1::{GetOwnershipRequest, ListSessionsRequest};

use super::enrol::connect;
use super::history::{Kind, Operation, Owner};
use super::network::Host;
use super::programs::Identity;
use super::rng::Rng;

/// Time between two questions at one replica.
const EVERY: Duration = Duration::from_millis(10);
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

type Reads = Arc<Mutex<Vec<(String, Operation)>>>;

/// Running readers, one per control replica; they stop when dropped.
#[derive(Debug)]
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    reads: Reads,
}

impl Readers {
    /// Reads the owners of `sessions` in random order.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(controls: &[Host], identity: &Identity, sessions: Vec<String>, seed: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let reads = Reads::default();
        let sessions = Arc::new(sessions);
        let mut threads = Vec::new();
        for (i, control) in (0u64..).zip(controls) {
            let target = Target { wan: control.wan, identity: identity.clone() };
            let (stop, reads, sessions) = (Arc::clone(&stop), Arc::clone(&reads), Arc::clone(&sessions));
            let rng = Rng::new(seed.wrapping_add(i));
            // A thread made inside the namespace stays there.
            let thread = control.namespace.enter(|| {
                std::thread::Builder::new()
                    .name("reader".into())
                    .spawn(move || read_on(&target, &sessions, rng, &stop, &reads))
            })??;
            threads.push(thread);
        }
        Ok(Self { stop, threads, reads })
    }

    /// Stops; returns the finished reads by session.
    pub fn stop(mut self) -> BTreeMap<String, Vec<Operation>> {
        self.end();
        let mut by_session: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
        for (session, read) in self.reads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            by_session.entry(session).or_default().push(read);
        }
        by_session
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.end();
    }
}

struct Target {
    wan: std::net::Ipv4Addr,
    identity: Identity,
}

fn read_on(target: &Target, sessions: &[String], mut rng: Rng, stop: &AtomicBool, reads: &Reads) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        while !stop.load(Ordering::Relaxed) {
            let Ok(channel) = connect(target.wan, &target.identity).await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            let mut client = OwnershipServiceClient::new(channel);
            while !stop.load(Ordering::Relaxed) {
                let place = usize::try_from(rng.below(sessions.len().max(1) as u64)).unwrap_or(0);
                let Some(session) = sessions.get(place) else { return };
                let invoked = super::witness::wall_now();
                let request = GetOwnershipRequest { session_id: session.clone() };
                let answer = tokio::time::timeout(ANSWER_MAX, client.get_ownership(request)).await;
                let answered = super::witness::wall_now();
                // A read without an answer tells nothing; the connection may be gone.
                let Ok(Ok(answer)) = answer else { break };
                if let Some(ownership) = answer.into_inner().ownership {
                    let owner = ownership
                        .owner
                        .map(|owner| Owner { node: owner.node_id, incarnation: owner.incarnation });
                    let read =
                        Operation { invoked, answered, kind: Kind::Read, epoch: ownership.epoch, owner };
                    reads.lock().unwrap_or_else(PoisonError::into_inner).push((session.clone(), read));
                }
                tokio::time::sleep(EVERY).await;
            }
        }
    });
}

/// Every session that control knows.
///
/// # Errors
/// When control does not answer.
pub fn sessions(control: &Host, identity: &Identity) -> Result<Vec<String>> {
    let wan = control.wan;
    control.namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = SessionServiceClient::new(connect(wan, identity).await?);
            let (mut all, mut page_token) = (Vec::new(), String::new());
            loop {
                let request =
                    ListSessionsRequest { page_size: 1000, page_token, ..ListSessionsRequest::default() };
                let page = client.list_sessions(request).await.context("listing sessions")?.into_inner();
                all.extend(page.sessions.into_iter().map(|session| session.session_id));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return Ok(all);
                }
            }
        })
    })?
}
