//! `jump-control pki kubernetes` against an API server that knows Secrets, tokens and revisions.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up should fail at that line")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

const TOKEN: &str = "a-token-of-the-account";

#[derive(Default)]
struct Server {
    secrets: BTreeMap<String, Value>,
    restarts: Vec<String>,
    writes: usize,
    forbid_writes: bool,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, token: &str, body: &[u8]) -> (StatusCode, Value) {
        let message = |text: &str| json!({ "kind": "Status", "message": text });
        if token != format!("Bearer {TOKEN}") {
            return (StatusCode::UNAUTHORIZED, message("Unauthorized"));
        }
        if let Some(workload) = path.strip_prefix("/apis/apps/v1/namespaces/jump/") {
            assert_eq!(method, Method::PATCH);
            self.restarts.push(workload.to_owned());
            return (StatusCode::OK, json!({}));
        }
        let Some(name) = path.strip_prefix("/api/v1/namespaces/jump/secrets") else {
            return (StatusCode::NOT_FOUND, message("no such path"));
        };
        let name = name.trim_start_matches('/').to_owned();
        if method == Method::GET {
            return match self.secrets.get(&name) {
                Some(secret) => (StatusCode::OK, secret.clone()),
                None => (StatusCode::NOT_FOUND, message("not found")),
            };
        }
        if self.forbid_writes {
            return (StatusCode::FORBIDDEN, message("secrets is forbidden"));
        }
        let mut secret: Value = serde_json::from_slice(body).unwrap();
        let key = secret["metadata"]["name"].as_str().unwrap().to_owned();
        let current = self.secrets.get(&key).map(|old| old["metadata"]["resourceVersion"].clone());
        let named = Some(secret["metadata"]["resourceVersion"].clone()).filter(|r| !r.is_null());
        if current != named {
            return (StatusCode::CONFLICT, message("the object has been modified"));
        }
        self.writes += 1;
        secret["metadata"]["resourceVersion"] = json!(self.writes.to_string());
        self.secrets.insert(key, secret.clone());
        (StatusCode::CREATED, secret)
    }
}

/// Serves over TLS on a port of loopback; writes what a pod finds of its account.
async fn start(account: &Path) -> (Arc<Mutex<Server>>, String) {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(account.join("ca.crt"), certified.cert.pem()).unwrap();
    std::fs::write(account.join("token"), format!("{TOKEN}\n")).unwrap();
    std::fs::write(account.join("namespace"), "jump").unwrap();
    let certificate = CertificateDer::from_pem_slice(certified.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(certified.signing_key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Arc::new(Mutex::new(Server::default()));
    let shared = Arc::clone(&server);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(socket).await else { continue };
            let shared = Arc::clone(&shared);
            let serve = service_fn(move |request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let token = head.headers["authorization"].to_str().unwrap();
                    let (status, answer) =
                        shared.lock().unwrap().answer(&head.method, head.uri.path(), token, &body);
                    let answer = Full::new(Bytes::from(answer.to_string()));
                    Ok::<_, Infallible>(Response::builder().status(status).body(answer).unwrap())
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve),
            );
        }
    });
    (server, address)
}

/// Runs the job as the chart does.
async fn job(address: &str, account: &Path, hosts: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jump-control"));
    command.args(["pki", "kubernetes", "--ca", "vpn-ca", "--api-server", address, "--account"]);
    command.arg(account).arg("--issue").arg(format!("vpn-control-tls=control:vpn@{hosts}"));
    command.args(["--issue", "vpn-gateway-tls=gateway:vpn-gateway-*"]);
    command.args(["--label", "app.kubernetes.io/instance=vpn", "--restart", "deployments/vpn-control"]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_makes_secrets_that_a_server_can_use_and_restarts_only_what_had_an_older_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (server, address) = start(dir.path()).await;
    let first = job(&address, dir.path(), "control.svc").await;
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    {
        let server = server.lock().unwrap();
        assert_eq!(server.secrets.len(), 3);
        assert_eq!(server.secrets["vpn-ca"]["type"], "Opaque");
        assert_eq!(server.secrets["vpn-control-tls"]["type"], "kubernetes.io/tls");
        assert_eq!(server.secrets["vpn-ca"]["metadata"]["labels"]["app.kubernetes.io/instance"], "vpn");
        assert_eq!(server.restarts, Vec::<String>::new());
    }
    let second = job(&address, dir.path(), "control.svc").await;
    assert!(second.status.success());
    assert_eq!(server.lock().unwrap().writes, 3);
    let third = job(&address, dir.path(), "control.svc,control.example").await;
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));
    let server = server.lock().unwrap();
    assert_eq!(server.writes, 4);
    assert_eq!(server.restarts, ["deployments/vpn-control"]);
    let everything = [first.stdout, second.stdout, third.stdout, third.stderr].concat();
    assert!(!String::from_utf8_lossy(&everything).contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_write_is_told_which_right_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, address) = start(dir.path()).await;
    server.lock().unwrap().forbid_writes = true;
    let run = job(&address, dir.path(), "control.svc").await;
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains("may not write Secret vpn-ca"), "{said}");
}
