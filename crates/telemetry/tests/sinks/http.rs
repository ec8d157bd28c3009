//! An HTTP collector that can be told how to answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::support::{distinct, emit, epochs, eventually, free_address, listen, start, stats};

#[derive(Debug, Default)]
struct State {
    /// `None` takes the events; otherwise this status is answered and they are thrown away.
    refuse: Option<StatusCode>,
    accepted: Vec<String>,
    authorizations: Vec<String>,
    requests: u64,
}

struct Collector {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start(address: SocketAddr, refuse: Option<StatusCode>) -> Self {
        let state = Arc::new(Mutex::new(State { refuse, ..State::default() }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = listen(&runtime, address);
        let seen = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                let answer = service_fn(move |request| answer(request, Arc::clone(&seen)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
                );
            }
        });
        Self { state, address, _runtime: runtime }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn epochs(&self) -> Vec<u64> {
        epochs(self.state().accepted.iter().flat_map(|body| body.lines()))
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let authorization = authorization.unwrap_or_default().to_owned();
    assert_eq!(request.uri().path(), "/ingest");
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut state = state.lock().expect("no panic");
    state.requests += 1;
    state.authorizations.push(authorization);
    let mut response = Response::new(Full::new(Bytes::from_static(b"thank you\n")));
    match state.refuse {
        None => state.accepted.push(String::from_utf8(body.to_vec()).expect("text")),
        Some(status) => *response.status_mut() = status,
    }
    Ok(response)
}

fn sink(address: SocketAddr, more: &str) -> String {
    format!("[[sinks]]\nkind = \"http\"\nname = \"lake\"\nurl = \"http://{address}/ingest\"\n{more}")
}

#[test]
fn a_collector_gets_batches_with_the_token_and_again_after_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "Bearer abc\n").expect("writable");
    let collector = Collector::start(free_address(), Some(StatusCode::SERVICE_UNAVAILABLE));
    let (audit, guard) = start(&sink(collector.address, &format!("authorization_file = {token:?}")));
    emit(&audit, 0..1200);
    eventually("the sink is turned away", || stats(&guard, "lake").failures >= 2);
    assert_eq!(stats(&guard, "lake").sent, 0);
    collector.state().refuse = None;
    assert!(guard.close(Duration::from_secs(20)), "not everything was delivered");
    assert_eq!(collector.epochs(), (0..1200).collect::<Vec<_>>());
    let state = collector.state();
    assert!(state.accepted.len() <= 20, "1200 events in {} requests", state.accepted.len());
    assert!(state.authorizations.iter().all(|value| value == "Bearer abc"));
}

#[test]
fn a_batch_that_the_collector_will_never_take_is_dropped_and_counted() {
    let collector = Collector::start(free_address(), Some(StatusCode::UNPROCESSABLE_ENTITY));
    let (audit, guard) = start(&sink(collector.address, ""));
    emit(&audit, 0..10);
    eventually("the batch is given up", || stats(&guard, "lake").dropped_rejected == 10);
    collector.state().refuse = None;
    emit(&audit, 10..20);
    eventually("the next one is delivered", || stats(&guard, "lake").sent == 10);
    assert_eq!(collector.epochs(), (10..20).collect::<Vec<_>>());
}

#[test]
fn a_spool_carries_events_over_an_outage_and_a_restart_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("spool");
    let settings = format!("spool = {{ directory = {spool:?} }}\nbatch_events_max = 50");
    let address = free_address();
    let (audit, guard) = start(&sink(address, &settings));
    emit(&audit, 0..200);
    eventually("the events are on disk", || {
        let stats = stats(&guard, "lake");
        stats.queue_events == 0 && stats.spool_bytes > 0
    });
    assert!(guard.close(Duration::from_secs(5)), "what is on disk is not lost");

    let collector = Collector::start(address, None);
    let (audit, guard) = start(&sink(address, &settings));
    emit(&audit, 200..300);
    eventually("the collector has all", || collector.epochs().len() == 300);
    assert_eq!(collector.epochs(), (0..300).collect::<Vec<_>>());
    let stats = stats(&guard, "lake");
    assert_eq!((stats.sent, stats.spool_bytes), (300, 0));
    assert_eq!(std::fs::read_dir(&spool).expect("readable").count(), 0);
}

#[test]
fn a_full_spool_drops_the_newest_and_counts_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("spool");
    let settings = format!(
        "spool = {{ directory = {spool:?}, bytes_max = 40000 }}\nbatch_events_max = 10\nbatch_wait = \"0s\""
    );
    let address = free_address();
    let (audit, guard) = start(&sink(address, &settings));
    emit(&audit, 0..500);
    eventually("the queue is empty", || {
        let stats = stats(&guard, "lake");
        stats.queued == 500 && stats.queue_events == 0
    });
    let full = stats(&guard, "lake");
    assert!(full.spool_bytes <= 40_000 && full.dropped_spool_full > 0, "{full:?}");

    let collector = Collector::start(address, None);
    eventually("the spool is empty", || stats(&guard, "lake").spool_bytes == 0);
    let after = stats(&guard, "lake");
    assert_eq!(after.sent + after.dropped_spool_full, 500);
    assert_eq!(distinct(&collector.epochs()).len() as u64, after.sent);
}
