//! What a stranger's connection may cost.

use std::time::Duration;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::session_service_client::SessionServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{Pki, Server};
use crate::support::Harness;

#[tokio::test(flavor = "multi_thread")]
async fn who_never_finishes_the_tls_handshake_is_cut_off() {
    let pki = Pki::new();
    let server = Server::start(&pki, Harness::embedded().open().await, &[]).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // The first byte of a handshake record, and nothing after it.
    silent.write_all(&[22]).await.unwrap();
    let mut sessions = SessionServiceClient::new(server.channel(&pki, Some("reader-eye")).await);
    sessions.list_sessions(wire::ListSessionsRequest::default()).await.unwrap();
    let cut_off = tokio::time::timeout(Duration::from_secs(120), silent.read(&mut [0; 64])).await;
    // An alert may come before the end, or a reset instead of one.
    assert!(cut_off.is_ok(), "the connection is still open");
}
