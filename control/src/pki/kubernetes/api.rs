//! The few calls of the Kubernetes API that the job makes, with the account of its pod.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::{Cluster, Secret};

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The API server of the cluster that the pod runs in.
pub(super) struct ApiServer {
    host: String,
    port: u16,
    namespace: String,
    token: PathBuf,
    tls: TlsConnector,
}

/// The parts of a Secret that are read and written.
#[derive(Serialize, Deserialize)]
struct Wire {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
}

impl ApiServer {
    pub(super) fn new(address: Option<&str>, account: &Path) -> anyhow::Result<Self> {
        let outside = "this runs as a job inside a cluster; elsewhere use `pki init` and `pki issue`";
        let read = |name: &str| {
            let path = account.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}: {outside}", path.display()))
        };
        let (host, port) = match address {
            Some(address) => {
                let (host, port) = address.rsplit_once(':').context("--api-server must be HOST:PORT")?;
                (host.trim_matches(['[', ']']).to_owned(), port.to_owned())
            }
            None => (
                std::env::var("KUBERNETES_SERVICE_HOST").context(outside)?,
                std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned()),
            ),
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(read("ca.crt")?.as_bytes()) {
            roots
                .add(certificate.context("the cluster's CA is not PEM")?)
                .context("the cluster's CA cannot be used")?;
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("cannot set up TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            host,
            port: port.parse().with_context(|| format!("{port:?} is no port of the API server"))?,
            namespace: read("namespace")?.trim().to_owned(),
            token: account.join("token"),
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: String,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let what = format!("{method} {path}");
        tokio::time::timeout(PATIENCE, self.exchange(method, path, content, body))
            .await
            .map_err(|_| anyhow!("no answer within {PATIENCE:?}"))
            .and_then(|answer| answer)
            .with_context(|| format!("{what} at the API server {}:{}", self.host, self.port))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: String,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let token = Zeroizing::new(std::fs::read_to_string(&self.token)?);
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = self.tls.connect(name, socket).await?;
        let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, content)
            .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Full::new(Bytes::from(body)))?;
        let response = requests.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        connection.abort();
        Ok((status, body.map_err(|error| anyhow!(error))?.to_bytes()))
    }

    fn secrets(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.namespace)
    }
}

/// Turns an unexpected answer into what the API server says about it.
fn unexpected(status: StatusCode, body: &[u8], what: &str) -> anyhow::Error {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = said["message"].as_str().unwrap_or("no message").to_owned();
    if status == StatusCode::FORBIDDEN {
        return anyhow!("the job's account may not {what} ({message}): its Role must allow that");
    }
    anyhow!("cannot {what}: the API server answered {status}: {message}")
}

impl Cluster for ApiServer {
    async fn get(&mut self, name: &str) -> anyhow::Result<Option<Secret>> {
        let path = format!("{}/{name}", self.secrets());
        let (status, body) = self.call(Method::GET, &path, "application/json", String::new()).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _other => return Err(unexpected(status, &body, &format!("read Secret {name}"))),
        }
        let wire: Wire =
            serde_json::from_slice(&body).with_context(|| format!("Secret {name} cannot be understood"))?;
        let decode = |(key, value): (String, String)| {
            let bytes = STANDARD.decode(value).ok()?;
            Some((key, String::from_utf8(bytes).ok()?))
        };
        Ok(Some(Secret {
            data: wire.data.into_iter().filter_map(decode).collect(),
            revision: wire.metadata.resource_version,
        }))
    }

    async fn put(
        &mut self,
        name: &str,
        secret: &Secret,
        labels: &[(String, String)],
    ) -> anyhow::Result<bool> {
        let labels: BTreeMap<_, _> = labels.iter().cloned().collect();
        let data: BTreeMap<_, _> =
            secret.data.iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        let kind = if data.contains_key(&"tls.key".to_owned()) { "kubernetes.io/tls" } else { "Opaque" };
        let body = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": kind,
            "metadata": { "name": name, "labels": labels, "resourceVersion": secret.revision },
            "data": data,
        })
        .to_string();
        let (method, path) = match secret.revision {
            None => (Method::POST, self.secrets()),
            Some(_) => (Method::PUT, format!("{}/{name}", self.secrets())),
        };
        let (status, body) = self.call(method, &path, "application/json", body).await?;
        match status {
            StatusCode::OK | StatusCode::CREATED => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            _other => Err(unexpected(status, &body, &format!("write Secret {name}"))),
        }
    }

    async fn restart(&mut self, workload: &str) -> anyhow::Result<()> {
        let Some((kind, name)) = workload.split_once('/') else {
            bail!("--restart {workload:?} must be KIND/NAME, for example deployments/vpn-control");
        };
        let path = format!("/apis/apps/v1/namespaces/{}/{kind}/{name}", self.namespace);
        let now = crate::clock::unix_seconds().to_string();
        let body = json!({ "spec": { "template": { "metadata": { "annotations": {
            "jumping-vpn/certificates-issued": now
        } } } } });
        let content = "application/merge-patch+json";
        let (status, body) = self.call(Method::PATCH, &path, content, body.to_string()).await?;
        // What is not installed needs no restart.
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        Err(unexpected(status, &body, &format!("restart {workload}")))
    }
}
