//! Control's replicas: any of them can serve any request, so a call moves on to the next when one does not answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jump_proto::control_v1::gateway_service_client::GatewayServiceClient;
use jump_telemetry::Correlation;
use jump_telemetry::trace::{TraceInterceptor, set_correlation};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A client of one replica; its requests carry the trace that they belong to.
pub type Client = GatewayServiceClient<InterceptedService<Channel, TraceInterceptor>>;

/// All replicas. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    replicas: Arc<[(String, Channel)]>,
    current: Arc<AtomicUsize>,
}

/// The TLS files cannot be used for a connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the TLS files for {endpoint}")]
pub struct ConnectError {
    endpoint: String,
    source: tonic::transport::Error,
}

impl Control {
    /// Prepares connections; they are made on first use and again whenever they break.
    ///
    /// # Errors
    /// When an endpoint or the TLS files are unusable.
    pub fn new(endpoints: &[String], tls: &ClientTlsConfig) -> Result<Self, ConnectError> {
        let connect = |endpoint: &String| {
            let channel = Endpoint::from_shared(endpoint.clone())
                .and_then(|builder| builder.tls_config(tls.clone()))
                .map_err(|source| ConnectError { endpoint: endpoint.clone(), source })?
                .connect_timeout(Duration::from_millis(800))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true)
                .connect_lazy();
            Ok((endpoint.clone(), channel))
        };
        let replicas = endpoints.iter().map(connect).collect::<Result<_, ConnectError>>()?;
        Ok(Self { replicas, current: Arc::new(AtomicUsize::new(0)) })
    }

    /// Asks one replica after the other, each for at most `patience`, until one answers. An answer is anything but
    /// "unavailable" and silence.
    ///
    /// Cancel safe if the request is idempotent, which all of the gateway's are.
    ///
    /// # Errors
    /// The last replica's refusal.
    pub async fn call<T, F, Fut>(&self, patience: Duration, mut request: F) -> Result<T, Status>
    where
        F: FnMut(Client) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut last = Status::unavailable("no control replica is configured");
        for _ in 0..self.replicas.len() {
            let (at, endpoint, client) = self.replica();
            let answer = tokio::time::timeout(patience, request(client)).await;
            last = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) if !moves_on(&status) => return Err(status),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {patience:?}")),
            };
            tracing::debug!(endpoint, error = %explain(&last), "control replica did not answer");
            self.next_after(at);
        }
        Err(last)
    }

    /// The replica in use, with its position.
    pub fn replica(&self) -> (usize, &str, Client) {
        let at = self.current.load(Ordering::Relaxed) % self.replicas.len().max(1);
        let (endpoint, channel) = &self.replicas[at];
        (at, endpoint, GatewayServiceClient::with_interceptor(channel.clone(), TraceInterceptor))
    }

    /// Leaves the replica at `at`, unless another call has left it meanwhile.
    pub fn next_after(&self, at: usize) {
        let next = (at + 1) % self.replicas.len().max(1);
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Every replica.
    pub fn all(&self) -> impl Iterator<Item = (&str, Client)> {
        self.replicas.iter().map(|(endpoint, channel)| {
            (endpoint.as_str(), GatewayServiceClient::with_interceptor(channel.clone(), TraceInterceptor))
        })
    }

    /// Opens the connections that are not open. Whatever the replicas answer, the connections stand.
    pub async fn warm_up(&self) {
        let mut checks = tokio::task::JoinSet::new();
        for (_, channel) in self.replicas.iter() {
            let mut health = HealthClient::new(channel.clone());
            checks.spawn(async move {
                let check = health.check(HealthCheckRequest { service: String::new() });
                // A replica that does not answer is warmed up the next time.
                let _ = tokio::time::timeout(Duration::from_secs(1), check).await;
            });
        }
        while checks.join_next().await.is_some() {}
    }

    /// The endpoints, for messages.
    pub fn endpoints(&self) -> String {
        let names: Vec<&str> = self.replicas.iter().map(|(endpoint, _)| endpoint.as_str()).collect();
        names.join(", ")
    }
}

/// A request about one session, with the session's correlation id in its metadata where it is known.
pub fn about<T>(request: T, correlation: Option<Correlation>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    if let Some(correlation) = correlation {
        set_correlation(request.metadata_mut(), correlation);
    }
    request
}

/// True when another replica may know better.
pub fn moves_on(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// The status with what caused it, in one line.
pub fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if text.is_empty() {
        text = format!("{:?}", status.code());
    }
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}
