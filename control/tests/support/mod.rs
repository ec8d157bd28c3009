//! What the tests start: stores of both kinds, on free ports and in directories that vanish.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jump_control::store::etcd::{EtcdConfig, EtcdStore};
use jump_control::store::{EmbeddedStore, GroupCommit, SharedStore};
use tempfile::TempDir;

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A single etcd node on loopback; killed when dropped.
pub(crate) struct Etcd {
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
    /// Whether writes reach the disk before they are answered.
    durable: bool,
}

impl Etcd {
    pub(crate) fn start() -> Self {
        Self::start_as(false)
    }

    /// One that syncs its writes to disk, as in production, or one that does not.
    pub(crate) fn start_as(durable: bool) -> Self {
        let mut etcd = Self {
            durable,
            dir: tempfile::tempdir().unwrap(),
            client_port: free_port(),
            peer_port: free_port(),
            child: None,
        };
        etcd.spawn();
        etcd
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn spawn(&mut self) {
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let child = Command::new("etcd")
            .args(["--name", "test", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--max-txn-ops", "1024"])
            .args(["--grpc-keepalive-min-time", "500ms", "--log-level", "error"])
            .args(["--quota-backend-bytes", "8589934592"])
            .args((!self.durable).then_some("--unsafe-no-fsync"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("cannot start etcd: install it with `apt-get install etcd-server`"));
    }

    pub(crate) fn config(&self) -> EtcdConfig {
        EtcdConfig {
            keepalive_interval: Duration::from_millis(500),
            keepalive_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            ..EtcdConfig::new(vec![self.endpoint()])
        }
    }

    /// Connects once the server answers.
    pub(crate) async fn connect(&self) -> EtcdStore {
        for _ in 0..20 {
            if let Ok(store) = EtcdStore::connect(self.config()).await {
                return store;
            }
        }
        EtcdStore::connect(self.config()).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A store under test with what it takes to hurt it.
pub(crate) enum Harness {
    Embedded { dir: TempDir },
    Etcd(Box<Etcd>),
}

/// How many revisions the embedded store under test looks back on.
pub(crate) const HISTORY_REVISIONS: usize = 64;

impl Harness {
    pub(crate) fn embedded() -> Self {
        Self::Embedded { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn etcd() -> Self {
        Self::Etcd(Box::new(Etcd::start()))
    }

    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Embedded { dir } => Some(dir.path().join("store.redb")),
            Self::Etcd(_) => None,
        }
    }

    /// Opens the store; for the embedded one every other handle must be gone.
    pub(crate) async fn open(&self) -> SharedStore {
        match self {
            Self::Embedded { .. } => {
                let path = self.path().unwrap();
                Arc::new(EmbeddedStore::open_with_history(&path, HISTORY_REVISIONS).unwrap())
            }
            Self::Etcd(etcd) => Arc::new(GroupCommit::new(etcd.connect().await)),
        }
    }
}
