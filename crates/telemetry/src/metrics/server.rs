//! A small HTTP server: `/metrics`, `/healthz` (the process runs) and `/readyz` (it can serve).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{MetricDef, MetricsError, Registry, install};

/// Connections served at once; a further one is closed.
const CONNECTIONS_MAX: usize = 64;

/// The longest life of one connection.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// How long a client may take to send its request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often fresh observations are folded in when nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Makes a page's text, or says what was wrong with the query.
type Page =
    Arc<dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync>;

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What [`serve`] needs.
#[derive(Clone)]
pub struct ServeConfig {
    addr: SocketAddr,
    definitions: Vec<&'static [MetricDef]>,
    alive: Check,
    ready: Check,
    local: Vec<(&'static str, Page)>,
}

impl ServeConfig {
    /// Serves on `addr` (port 0 for any free one); always alive and ready until told otherwise.
    pub fn new(addr: SocketAddr) -> Self {
        let fine: Check = Arc::new(|| Ok(()));
        Self { addr, definitions: Vec::new(), alive: Arc::clone(&fine), ready: fine, local: Vec::new() }
    }

    /// Adds a crate's metrics.
    #[must_use]
    pub fn metrics(mut self, definitions: &'static [MetricDef]) -> Self {
        self.definitions.push(definitions);
        self
    }

    /// Decides `/readyz`: `Err` with what is missing answers 503. Called per request; must not block.
    #[must_use]
    pub fn ready(mut self, ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.ready = Arc::new(ready);
        self
    }

    /// Decides `/healthz` in the same way; the default is always alive.
    #[must_use]
    pub fn alive(mut self, alive: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.alive = Arc::new(alive);
        self
    }
}

impl ServeConfig {
    /// Adds a page that only callers on the machine itself may see: `make` gets the query and answers the text.
    #[must_use]
    pub fn local_page<F>(
        mut self,
        path: &'static str,
        make: impl Fn(Option<String>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        self.local.push((path, Arc::new(move |query| Box::pin(make(query)))));
        self
    }
}

impl std::fmt::Debug for ServeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeConfig").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Why the endpoint could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The registry could not start.
    #[error("could not start the metrics registry")]
    Metrics(#[from] MetricsError),
    /// The address could not be bound.
    #[error("could not listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The running endpoint; dropping it stops it.
#[derive(Debug)]
pub struct MetricsServer {
    addr: SocketAddr,
    registry: Registry,
    tasks: [JoinHandle<()>; 2],
}

impl MetricsServer {
    /// Returns the address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the registry that it serves.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Installs the registry and serves it, with health pages, until the returned value is dropped.
///
/// # Errors
/// [`ServeError`]: the address is taken, a definition is unusable.
pub async fn serve(config: ServeConfig) -> Result<MetricsServer, ServeError> {
    let registry = install(&config.definitions)?;
    let listen = |source| ServeError::Listen { addr: config.addr, source };
    let listener = TcpListener::bind(config.addr).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let accept = {
        let ServeConfig { alive, ready, local, .. } = config;
        let pages = Pages { registry: registry.clone(), alive, ready, local: local.into(), near: false };
        tokio::spawn(accept(listener, pages))
    };
    let upkeep = tokio::spawn(upkeep(registry.clone()));
    Ok(MetricsServer { addr, registry, tasks: [accept, upkeep] })
}

async fn upkeep(registry: Registry) {
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tick.tick().await;
        registry.upkeep();
    }
}

async fn accept(listener: TcpListener, pages: Pages) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors, most likely: leave the rest of the process room to recover.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let pages = Pages { near: peer.ip().to_canonical().is_loopback(), ..pages.clone() };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_LIFETIME, serve_connection(stream, pages)).await;
            drop(place);
        });
    }
}

async fn serve_connection(stream: TcpStream, pages: Pages) {
    let answer = service_fn(|request: Request<Incoming>| {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&method, uri.path(), uri.query()).await) }
    });
    // A client that misbehaves or leaves is its own problem.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

#[derive(Clone)]
struct Pages {
    registry: Registry,
    alive: Check,
    ready: Check,
    local: Arc<[(&'static str, Page)]>,
    /// The caller is on this machine.
    near: bool,
}

impl Pages {
    async fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        }
        match path {
            "/metrics" => page(StatusCode::OK, self.registry.render()),
            "/healthz" => health(&self.alive, "alive\n"),
            "/readyz" => health(&self.ready, "ready\n"),
            path if self.near
                && let Some((_, make)) = self.local.iter().find(|(known, _)| *known == path) =>
            {
                match make(query.map(str::to_owned)).await {
                    Ok(text) => page(StatusCode::OK, text),
                    Err(problem) => page(StatusCode::BAD_REQUEST, format!("{problem}\n")),
                }
            }
            _ => page(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n".into()),
        }
    }
}

fn health(check: &Check, fine: &str) -> Response<Full<Bytes>> {
    match check() {
        Ok(()) => page(StatusCode::OK, fine.into()),
        Err(missing) => page(StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
    }
}

fn page(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::{Kind, Unit};
    use super::*;

    const WAITS: MetricDef = MetricDef {
        name: "jump_test_wait_seconds",
        kind: Kind::Histogram(&[0.1, 1.0]),
        unit: Unit::Seconds,
        help: "Waiting.",
        labels: &["cause"],
    };
    const ALL: &[MetricDef] = &[WAITS];

    async fn get(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("the server listens");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers and closes");
        answer
    }

    fn request(method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn the_endpoint_serves_metrics_health_and_a_readiness_that_can_change() {
        let ready = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ready);
        let addr = "127.0.0.1:0".parse().expect("an address");
        let config = ServeConfig::new(addr)
            .metrics(ALL)
            .ready(move || if seen.load(Ordering::Relaxed) { Ok(()) } else { Err("no lease yet".into()) });
        let server = serve(config).await.expect("a free port");
        WAITS.histogram(&[("cause", "node_lost")]).record(0.5);

        let metrics = get(server.addr(), &request("GET", "/metrics")).await;
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("# HELP jump_test_wait_seconds Waiting."), "{metrics}");
        assert!(
            metrics.contains("jump_test_wait_seconds_bucket{cause=\"node_lost\",le=\"1\"} 1"),
            "{metrics}"
        );
        assert!(get(server.addr(), &request("GET", "/healthz")).await.starts_with("HTTP/1.1 200"));

        let missing = get(server.addr(), &request("GET", "/readyz")).await;
        assert!(missing.starts_with("HTTP/1.1 503") && missing.contains("no lease yet"), "{missing}");
        ready.store(true, Ordering::Relaxed);
        assert!(get(server.addr(), &request("GET", "/readyz")).await.starts_with("HTTP/1.1 200"));

        assert!(get(server.addr(), &request("POST", "/metrics")).await.starts_with("HTTP/1.1 405"));
        assert!(get(server.addr(), &request("GET", "/")).await.starts_with("HTTP/1.1 404"));
        assert!(get(server.addr(), "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    }

    #[tokio::test]
    async fn a_local_page_gets_its_query_and_is_not_there_for_others() {
        let page: Page =
            Arc::new(|query| Box::pin(async move { query.ok_or_else(|| "no query".to_owned()) }));
        let fine: Check = Arc::new(|| Ok(()));
        let registry = install(&[]).expect("a registry");
        let local = Arc::from([("/sessions", page)]);
        let near = Pages { registry, alive: Arc::clone(&fine), ready: fine, local, near: true };
        let far = Pages { near: false, ..near.clone() };
        assert_eq!(near.answer(&Method::GET, "/sessions", Some("from=7")).await.status(), StatusCode::OK);
        assert_eq!(near.answer(&Method::GET, "/sessions", None).await.status(), StatusCode::BAD_REQUEST);
        assert_eq!(near.answer(&Method::GET, "/session", None).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(
            far.answer(&Method::GET, "/sessions", Some("from=7")).await.status(),
            StatusCode::NOT_FOUND
        );
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_that_names_it() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = taken.local_addr().expect("bound");
        let error = serve(ServeConfig::new(addr)).await.expect_err("the port is taken");
        assert_eq!(error.to_string(), format!("could not listen on {addr}"));
    }
}
