//! The store over a cluster of real etcd members that are killed, stopped, locked with TLS and passwords, and filled up.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use jump_control::pki::{Pair, Subject, make_ca, make_certificate};
use jump_control::store::etcd::{EtcdConfig, EtcdTls, MemberStatus, inspect};
use jump_control::store::{
    Compare, EtcdStore, Event, GroupCommit, LeaseId, Op, Outcome, Store, StoreError, Txn,
};
use jump_session::ids::Revision;
use tempfile::TempDir;

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Members of one cluster on loopback, with the documented settings; ended when dropped.
struct Cluster {
    dir: TempDir,
    members: Vec<Member>,
    scheme: &'static str,
    extra: Vec<String>,
    tls: Option<EtcdTls>,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Cluster {
    fn start(size: usize) -> Self {
        Self::start_with(size, "http", Vec::new(), None)
    }

    fn start_with(size: usize, scheme: &'static str, extra: Vec<String>, tls: Option<EtcdTls>) -> Self {
        let members =
            (0..size).map(|_| Member { client: free_port(), peer: free_port(), child: None }).collect();
        let mut cluster = Self { dir: tempfile::tempdir().unwrap(), members, scheme, extra, tls };
        for index in 0..size {
            cluster.spawn(index);
        }
        cluster
    }

    fn spawn(&mut self, index: usize) {
        let peer = |index: usize| format!("http://127.0.0.1:{}", self.members[index].peer);
        let all: Vec<String> = (0..self.members.len()).map(|i| format!("m{i}={}", peer(i))).collect();
        let client = self.endpoint(index);
        let child = Command::new("etcd")
            .args(["--name", &format!("m{index}"), "--data-dir"])
            .arg(self.dir.path().join(format!("m{index}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer(index), "--initial-advertise-peer-urls", &peer(index)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--max-txn-ops", "1024"])
            .args(["--grpc-keepalive-min-time", "500ms", "--unsafe-no-fsync", "--log-level", "error"])
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.expect("cannot start etcd: install it with `apt-get install etcd-server`");
        self.members[index].child = Some(child);
    }

    fn endpoint(&self, index: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[index].client)
    }

    /// Settings for the members in this order of preference.
    fn config(&self, order: &[usize]) -> EtcdConfig {
        EtcdConfig {
            tls: self.tls.clone(),
            keepalive_interval: Duration::from_millis(500),
            keepalive_timeout: Duration::from_secs(2),
            ..EtcdConfig::new(order.iter().map(|index| self.endpoint(*index)).collect())
        }
    }

    /// Connects once the cluster answers.
    async fn connect(&self, config: &EtcdConfig) -> EtcdStore {
        for _ in 0..20 {
            if let Ok(store) = EtcdStore::connect(config.clone()).await {
                return store;
            }
        }
        EtcdStore::connect(config.clone()).await.unwrap()
    }

    /// The member that leads.
    async fn leader(&self) -> usize {
        for _ in 0..200 {
            for index in (0..self.members.len()).filter(|index| self.members[*index].child.is_some()) {
                let Ok(mut client) = etcd_client::Client::connect([self.endpoint(index)], None).await else {
                    continue;
                };
                let Ok(status) = client.status().await else { continue };
                if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                    return index;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no member says that it leads")
    }

    fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops a member as a hung machine would: its sockets stay open, nothing answers.
    fn signal(&self, index: usize, signal: &str) {
        let pid = self.members[index].child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].child.is_some() {
                self.signal(index, "-CONT");
            }
            self.kill(index);
        }
    }
}

fn put(key: &str, value: &str) -> Txn {
    Txn { compares: vec![], ops: vec![Op::put(key, value.as_bytes().to_vec())] }
}

/// Adds one to a counter by compare-and-swap, settling unknown outcomes by reading, until it is done.
async fn add_one(store: &dyn Store, key: &str, name: &str) {
    loop {
        let Ok(snapshot) = store.read(&[key.to_owned()]).await else { continue };
        let (value, at) = match &snapshot.values[0] {
            Some(stored) => (String::from_utf8(stored.value.clone()).unwrap(), stored.mod_revision),
            None => (String::new(), Revision(0)),
        };
        if value.split(' ').any(|done| done == name) {
            return;
        }
        let op = Op::put(key, format!("{value} {name}").into_bytes());
        let txn = Txn { compares: vec![Compare::Modified(key.to_owned(), at)], ops: vec![op] };
        if let Ok(Outcome::Committed(_)) = store.commit(txn).await {
            return;
        }
    }
}

/// A lease of three seconds with a key, as a gateway has it.
async fn node(store: &dyn Store) -> LeaseId {
    let lease = store.grant_lease(Duration::from_secs(3)).await.unwrap();
    let op = Op::Put { key: "nodes/a".to_owned(), value: vec![1], lease: Some(lease.id) };
    let _ = store.commit(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
    lease.id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_no_write_and_no_lease() {
    let mut cluster = Cluster::start(3);
    // The client prefers the member that is about to die.
    let leader = cluster.leader().await;
    let order = [leader, (leader + 1) % 3, (leader + 2) % 3];
    let store = GroupCommit::new(cluster.connect(&cluster.config(&order)).await);
    let lease = node(&store).await;
    let created =
        store.read(&["nodes/a".to_owned()]).await.unwrap().values[0].as_ref().unwrap().create_revision;
    let stop = Arc::new(AtomicBool::new(false));
    let renewing = {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match store.keep_alive(lease).await {
                    Ok(()) | Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => {}
                    Err(error) => panic!("the lease: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        })
    };
    let done = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, done) = (store.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                for round in 0..40 {
                    add_one(&store, &format!("counter/{}", writer % 4), &format!("{writer}.{round}")).await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while done.load(Ordering::Relaxed) < 40 {
        tokio::task::yield_now().await;
    }
    cluster.kill(leader);
    for writer in writers {
        tokio::time::timeout(Duration::from_secs(60), writer).await.expect("a writer is stuck").unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    renewing.await.unwrap();
    let keys: Vec<String> = (0..4).map(|i| format!("counter/{i}")).collect();
    let mut names: Vec<String> = Vec::new();
    for value in store.read(&keys).await.unwrap().values {
        let text = String::from_utf8(value.unwrap().value).unwrap();
        names.extend(text.split_whitespace().map(ToOwned::to_owned));
    }
    names.sort();
    let written = names.len();
    names.dedup();
    assert_eq!((written, names.len()), (320, 320), "a write was lost or done twice");
    let node = store.read(&["nodes/a".to_owned()]).await.unwrap().values[0].clone();
    assert_eq!(node.map(|node| node.create_revision), Some(created), "the node lost its key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_hangs_or_is_dead_is_left_and_taken_back_when_it_answers() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader().await;
    let (hung, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    let store = cluster.connect(&cluster.config(&[hung, leader, dead])).await;
    let mut watch = store.watch("w/", store.read(&[]).await.unwrap().revision);
    cluster.signal(hung, "-STOP");
    // The first write may have been given to the member that hangs: unknown, and settled by reading.
    for round in 0..5 {
        add_one(&store, "w/counter", &format!("hung{round}")).await;
    }
    cluster.signal(hung, "-CONT");
    cluster.kill(dead);
    for round in 0..5 {
        add_one(&store, "w/counter", &format!("dead{round}")).await;
    }
    // The other two must do without the one that was preferred all the time.
    cluster.spawn(dead);
    cluster.kill(leader);
    for round in 0..5 {
        add_one(&store, "w/counter", &format!("left{round}")).await;
    }
    let mut seen = String::new();
    while !seen.ends_with("left4") {
        let batch =
            tokio::time::timeout(Duration::from_secs(60), watch.next()).await.expect("the watch is silent");
        for event in batch.unwrap().unwrap().events {
            let Event::Put(value) = event else { panic!("nothing is deleted here") };
            let text = String::from_utf8(value.value).unwrap();
            assert!(text.len() > seen.len() && text.starts_with(&seen), "{seen:?} then {text:?}");
            seen = text;
        }
    }
    assert_eq!(seen.split_whitespace().count(), 15);
}

/// A certificate for etcd on loopback, or for its client, in files.
fn issue(ca: &Pair, dir: &TempDir, name: &str) -> (String, String) {
    let hosts = ["127.0.0.1".to_owned()];
    let subject = Subject { identity: None, name, hosts: &hosts, validity: Duration::from_secs(3600) };
    let pair = make_certificate(ca, &subject).unwrap();
    let path = |kind: &str| dir.path().join(format!("{name}{kind}.pem")).display().to_string();
    std::fs::write(path(""), &pair.certificate).unwrap();
    std::fs::write(path("-key"), &*pair.key).unwrap();
    (path(""), path("-key"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_client_certificates_and_a_password_are_needed_and_suffice() {
    let (ca, dir) = (make_ca().unwrap(), tempfile::tempdir().unwrap());
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, &ca.certificate).unwrap();
    let (cert, key) = issue(&ca, &dir, "server");
    let (client_cert, client_key) = issue(&ca, &dir, "client");
    let extra = ["--cert-file", &cert, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file"];
    let mut extra: Vec<String> = extra.into_iter().map(ToOwned::to_owned).collect();
    extra.push(ca_file.display().to_string());
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let tls = EtcdTls {
        ca: String::from_utf8(ca.certificate.clone().into()).unwrap(),
        identity: Some((read(&client_cert), read(&client_key))),
    };
    let mut cluster = Cluster::start_with(1, "https", extra, Some(tls.clone()));
    let config = cluster.config(&[0]);
    let store = cluster.connect(&config).await;
    let _ = store.commit(put("a", "1")).await.unwrap();

    let anonymous = EtcdTls { identity: None, ..tls.clone() };
    let refused = EtcdStore::connect(EtcdConfig { tls: Some(anonymous), ..config.clone() }).await;
    assert!(refused.is_err(), "no client certificate was asked for");
    let stranger =
        EtcdTls { ca: String::from_utf8(make_ca().unwrap().certificate.into()).unwrap(), ..tls.clone() };
    let refused = EtcdStore::connect(EtcdConfig { tls: Some(stranger), ..config.clone() }).await;
    assert!(refused.is_err(), "the server of another CA was trusted");

    // Passwords: root must exist before authentication can be switched on.
    let options = etcd_client::ConnectOptions::new().with_tls(
        etcd_client::TlsOptions::new()
            .ca_certificate(etcd_client::Certificate::from_pem(&tls.ca))
            .identity(etcd_client::Identity::from_pem(read(&client_cert), read(&client_key))),
    );
    let mut admin = etcd_client::Client::connect([cluster.endpoint(0)], Some(options)).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("control", "word", None).await.unwrap();
    admin.role_add("jump").await.unwrap();
    let whole = etcd_client::Permission::read_write("/jump/").with_prefix();
    admin.role_grant_permission("jump", whole).await.unwrap();
    admin.user_grant_role("control", "jump").await.unwrap();
    admin.auth_enable().await.unwrap();
    let with = |password: &str| EtcdConfig { user: Some(("root".into(), password.into())), ..config.clone() };
    // Inspection needs no administrator.
    let control = EtcdConfig { user: Some(("control".into(), "word".into())), ..config.clone() };
    let seen = inspect(&control).await.remove(0).member.unwrap();
    assert_eq!((seen.errors, seen.largest_request), (vec![], Ok(())));
    assert!(inspect(&with("guess")).await[0].member.is_err());
    assert!(matches!(EtcdStore::connect(with("guess")).await, Err(StoreError::Refused(_))));
    let store = cluster.connect(&with("secret")).await;
    let _ = store.commit(put("a", "2")).await.unwrap();
    // A member that restarts forgets the tokens that it gave.
    cluster.kill(0);
    cluster.spawn(0);
    for round in 0..3 {
        add_one(&store, "counter", &format!("after{round}")).await;
    }
    let value = store.read(&["counter".to_owned()]).await.unwrap().values.remove(0).unwrap();
    assert_eq!(String::from_utf8(value.value).unwrap().split_whitespace().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_etcd_says_what_to_do_still_reads_and_takes_writes_again_once_that_is_done() {
    let quota = ["--quota-backend-bytes".to_owned(), (4 * 1024 * 1024).to_string()];
    let cluster = Cluster::start_with(1, "http", quota.to_vec(), None);
    let store = cluster.connect(&cluster.config(&[0])).await;
    let filler = "x".repeat(512 * 1024);
    let refusal = loop {
        match store.commit(put("filler", &filler)).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let StoreError::Refused(text) = refusal else { panic!("{refusal:?}") };
    for advice in ["compact", "defragment", "etcdctl alarm disarm"] {
        assert!(text.contains(advice), "{text:?} does not say to {advice}");
    }
    let seen = inspect(&cluster.config(&[0])).await.remove(0).member.unwrap();
    assert!(seen.errors.iter().any(|error| error.contains("NOSPACE")), "{seen:?}");
    let snapshot = store.read(&["filler".to_owned()]).await.unwrap();
    assert!(snapshot.values[0].is_some());
    let mut admin = etcd_client::Client::connect([cluster.endpoint(0)], None).await.unwrap();
    admin.compact(i64::try_from(snapshot.revision.0).unwrap(), None).await.unwrap();
    admin.defragment().await.unwrap();
    let alarm = etcd_client::AlarmType::Nospace;
    let alarms = admin.alarm(etcd_client::AlarmAction::Get, alarm, None).await.unwrap();
    for member in alarms.alarms() {
        let mut options = etcd_client::AlarmOptions::new();
        options.with_member(member.member_id());
        admin.alarm(etcd_client::AlarmAction::Deactivate, alarm, Some(options)).await.unwrap();
    }
    let _ = store.commit(put("after", "1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn inspection_tells_members_that_answer_from_those_that_do_not_and_a_lost_leader() {
    let mut cluster = Cluster::start(3);
    let config = cluster.config(&[0, 1, 2]);
    let _ = cluster.connect(&config).await;
    let leader = cluster.leader().await;
    // Two followers, so that nobody is elected meanwhile.
    let (gone, left) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(gone);
    let seen: Vec<_> = inspect(&config).await.into_iter().map(|one| one.member).collect();
    assert!(seen[gone].is_err(), "{seen:?}");
    let answered: Vec<&MemberStatus> = seen.iter().filter_map(|member| member.as_ref().ok()).collect();
    assert_eq!(answered.len(), 2, "{seen:?}");
    assert_eq!(answered[0].cluster, answered[1].cluster);
    for member in answered {
        assert!(member.version.starts_with("3.") && member.file_bytes >= member.used_bytes, "{member:?}");
        assert_eq!((&member.errors, &member.largest_request), (&vec![], &Ok(())));
    }
    cluster.kill(leader);
    // The last one hears of no leader within an election.
    let lost = async {
        loop {
            match &inspect(&cluster.config(&[left])).await[0].member {
                Ok(member) if !member.has_leader => break,
                Ok(_) | Err(_) => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), lost).await.expect("a lonely member still tells of itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn inspection_finds_a_bound_on_operations_that_is_too_low() {
    let bound = ["--max-txn-ops".to_owned(), "100".to_owned()];
    let cluster = Cluster::start_with(1, "http", bound.to_vec(), None);
    let _ = cluster.connect(&cluster.config(&[0])).await;
    let seen = inspect(&cluster.config(&[0])).await.remove(0).member.unwrap();
    let refusal = seen.largest_request.expect_err("120 operations are more than 100");
    assert!(refusal.contains("too many operations"), "{refusal}");
}
