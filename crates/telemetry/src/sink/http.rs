//! Batches over HTTP/1.1: one POST of newline-delimited JSON each, with retries and, if configured, a spool on disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::config::HttpConfig;
use super::net::Connector;
use super::spool::Spool;
use super::worker::{Counters, Deliver, Verdict, jittered};
use super::{Record, SinkError};

/// The most of an answer's body that is read before the connection is given up.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The first and the longest pause between attempts to empty the spool.
const SPOOL_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Posts batches to one URL.
#[derive(Debug)]
pub(super) struct HttpSink {
    batch: (usize, Duration),
    timeout: Duration,
    authorization_file: Option<PathBuf>,
    connector: Connector,
    host: HeaderValue,
    path: String,
    link: Option<Link>,
    spool: Option<Spooled>,
}

#[derive(Debug)]
struct Link {
    requests: SendRequest<Full<Bytes>>,
    authorization: Option<HeaderValue>,
    connection: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        // At once, also where the peer never reads.
        self.connection.abort();
    }
}

#[derive(Debug)]
struct Spooled {
    spool: Spool,
    counters: Arc<Counters>,
    /// No attempt before this.
    not_before: Option<Instant>,
    backoff: Duration,
    /// Said so already, until it takes batches again.
    full: bool,
}

/// How one POST ended.
enum Posted {
    Accepted,
    Later { after: Option<Duration>, cause: String },
    Refused { cause: String },
}

impl HttpSink {
    pub(super) fn new(config: HttpConfig, counters: Arc<Counters>) -> Result<Self, SinkError> {
        let unusable = |setting, problem: &str| SinkError::Setting { setting, problem: problem.to_owned() };
        let uri: Uri = config.url.parse().map_err(|_| unusable("url", "is not a URL"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(unusable("url", "is neither http:// nor https://")),
        };
        if config.tls.is_some() != secure {
            return Err(unusable("tls", "needed for, and only for, an https URL"));
        }
        if config.batch_events_max == 0 {
            return Err(unusable("batch_events_max", "must not be 0"));
        }
        let authority = uri.authority().ok_or_else(|| unusable("url", "names no host"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| unusable("url", "names no host"))?;
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let connector = Connector::new(&format!("{}:{port}", authority.host()), config.tls.as_ref())?;
        let spool = config.spool.as_ref().map(Spool::open).transpose()?.map(|spool| {
            counters.spool_bytes.store(spool.bytes(), Ordering::Relaxed);
            Spooled { spool, counters, not_before: None, backoff: SPOOL_BACKOFF.0, full: false }
        });
        Ok(Self {
            batch: (config.batch_events_max, config.batch_wait),
            timeout: config.timeout,
            authorization_file: config.authorization_file,
            connector,
            host,
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            link: None,
            spool,
        })
    }

    async fn post(&mut self, body: Bytes) -> Posted {
        let timeout = self.timeout;
        let posted = match tokio::time::timeout(timeout, self.try_post(body)).await {
            Ok(Ok(posted)) => posted,
            Ok(Err(cause)) => Posted::Later { after: None, cause },
            Err(_) => Posted::Later { after: None, cause: format!("no answer within {timeout:?}") },
        };
        if !matches!(posted, Posted::Accepted) {
            self.link = None;
        }
        posted
    }

    async fn try_post(&mut self, body: Bytes) -> Result<Posted, String> {
        let mut link = match self.link.take() {
            Some(link) if !link.requests.is_closed() => link,
            Some(_) | None => self.connect().await?,
        };
        link.requests.ready().await.map_err(|error| error.to_string())?;
        let mut request = Request::post(&self.path)
            .header(HOST, self.host.clone())
            .header(CONTENT_TYPE, "application/x-ndjson");
        if let Some(authorization) = &link.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let response = link.requests.send_request(request).await.map_err(|error| error.to_string())?;
        let (posted, response) = judge(response);
        // The body must be read to its end before the connection can be used again.
        if Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.is_ok() {
            self.link = Some(link);
        }
        Ok(posted)
    }

    async fn connect(&self) -> Result<Link, String> {
        let authorization = match &self.authorization_file {
            None => None,
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| format!("authorization_file: {error}"))?;
                let mut value = HeaderValue::from_str(text.trim())
                    .map_err(|_| "authorization_file: not a header value")?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let stream = self.connector.connect().await.map_err(|error| error.to_string())?;
        let (requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Link { requests, authorization, connection })
    }

    /// Sends what waits on disk, oldest first, until it is empty or the receiver fails.
    async fn empty_spool(&mut self) {
        loop {
            let Some(spooled) = &mut self.spool else { return };
            if spooled.not_before.is_some_and(|instant| Instant::now() < instant) {
                return;
            }
            let Some(segment) = spooled.spool.front() else { return };
            let body = match spooled.spool.read(segment) {
                Ok(body) => Bytes::from(body),
                Err(error) => {
                    tracing::warn!(%error, events = segment.events, "a spooled audit batch is lost");
                    spooled.settle(|counters| {
                        counters.spool_full.fetch_add(segment.events, Ordering::Relaxed);
                    });
                    continue;
                }
            };
            let posted = self.post(body).await;
            let Some(spooled) = &mut self.spool else { return };
            match posted {
                Posted::Accepted => spooled.settle(|counters| {
                    counters.sent.fetch_add(segment.events, Ordering::Relaxed);
                }),
                Posted::Refused { cause } => {
                    tracing::warn!(cause, events = segment.events, "a spooled audit batch was refused");
                    spooled.settle(|counters| {
                        counters.failures.fetch_add(1, Ordering::Relaxed);
                        counters.rejected.fetch_add(segment.events, Ordering::Relaxed);
                    });
                }
                Posted::Later { after, cause } => {
                    spooled.counters.failures.fetch_add(1, Ordering::Relaxed);
                    if spooled.backoff == SPOOL_BACKOFF.0 {
                        tracing::warn!(cause, "audit batches wait on disk");
                    }
                    let pause =
                        after.unwrap_or(Duration::ZERO).max(jittered(spooled.backoff)).min(SPOOL_BACKOFF.1);
                    spooled.not_before = Some(Instant::now() + pause);
                    spooled.backoff = (spooled.backoff * 2).min(SPOOL_BACKOFF.1);
                    return;
                }
            }
        }
    }
}

impl Spooled {
    fn settle(&mut self, count: impl FnOnce(&Counters)) {
        self.spool.pop();
        self.backoff = SPOOL_BACKOFF.0;
        self.not_before = None;
        self.counters.spool_bytes.store(self.spool.bytes(), Ordering::Relaxed);
        count(&self.counters);
    }
}

impl Deliver for HttpSink {
    fn batch(&self) -> (usize, Duration) {
        self.batch
    }

    async fn deliver(&mut self, batch: &[Arc<Record>]) -> Verdict {
        let body = body(batch);
        self.empty_spool().await;
        let waiting = self.spool.as_ref().is_some_and(|spooled| spooled.spool.front().is_some());
        if !waiting {
            match self.post(body.clone()).await {
                Posted::Accepted => return Verdict::Sent { rejected: 0 },
                Posted::Refused { cause } => return Verdict::Rejected { cause },
                Posted::Later { after, cause } if self.spool.is_none() => {
                    return Verdict::Retry { sent: 0, after, cause };
                }
                Posted::Later { .. } => {}
            }
        }
        let Some(spooled) = &mut self.spool else { return Verdict::retry("no spool") };
        let kept = spooled.spool.push(&body, batch.len() as u64);
        spooled.counters.spool_bytes.store(spooled.spool.bytes(), Ordering::Relaxed);
        if let Err(error) = &kept {
            spooled.counters.spool_full.fetch_add(batch.len() as u64, Ordering::Relaxed);
            if !spooled.full {
                tracing::warn!(%error, "the audit spool takes no more");
            }
        }
        spooled.full = kept.is_err();
        Verdict::Kept
    }

    fn idle_after(&self) -> Option<Duration> {
        let spooled = self.spool.as_ref()?;
        spooled.spool.front()?;
        let wait =
            spooled.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        Some(wait.max(Duration::from_millis(1)))
    }

    async fn idle(&mut self) {
        self.empty_spool().await;
    }
}

fn judge<B>(response: Response<B>) -> (Posted, Response<B>) {
    let status = response.status();
    let cause = format!("HTTP status {status}");
    let posted = if status.is_success() {
        Posted::Accepted
    } else if status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status == StatusCode::UNAUTHORIZED
        || status == StatusCode::FORBIDDEN
    {
        // A wrong token is put right by an operator; the events are worth keeping until then.
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Posted::Later { after: seconds.map(Duration::from_secs), cause }
    } else {
        Posted::Refused { cause }
    };
    (posted, response)
}

fn body(batch: &[Arc<Record>]) -> Bytes {
    let mut text = String::with_capacity(batch.iter().map(|record| record.json.len() + 1).sum());
    for record in batch {
        text.push_str(&record.json);
        text.push('\n');
    }
    text.into()
}
