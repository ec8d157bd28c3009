//! What the tests of the sinks share.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use jump_session::ids::{Epoch, SessionId};
use jump_session::reason::Reason;
use jump_telemetry::audit::{self, Audit, AuditConfig, AuditGuard, Event, Identity, SessionAction};
use jump_telemetry::sink::{SinkConfig, SinkStats};

pub(crate) const SESSION: SessionId = SessionId::from_bytes([0xab; 16]);

/// Starts auditing with the sinks of a TOML text.
pub(crate) fn start(sinks: &str) -> (Audit, AuditGuard) {
    #[derive(serde::Deserialize)]
    struct Page {
        sinks: Vec<SinkConfig>,
    }
    let page: Page = toml::from_str(sinks).expect("valid settings");
    let identity = Identity { component: "gateway".into(), node: "gw1".into(), version: "0.1.0".into() };
    audit::start(
        identity,
        AuditConfig { queue_events_max: 65_536, sinks: page.sinks, ..AuditConfig::default() },
    )
    .expect("the sinks start")
}

/// The n-th event of a test.
pub(crate) fn event(n: u64) -> Event {
    Event::session(SessionAction::OwnerChanged, SESSION)
        .correlation([7; 16])
        .epoch(Epoch(n))
        .reason(Reason::NodeLost)
        .detail(format!("event {n}, with \"quotes\", ünïcödé and a\nnewline"))
}

/// Emits events `from..to`.
pub(crate) fn emit(audit: &Audit, numbers: std::ops::Range<u64>) {
    numbers.for_each(|n| audit.emit(event(n)));
}

/// Returns the epochs of OCSF objects, one JSON text each; panics on anything that is not one.
pub(crate) fn epochs<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<u64> {
    lines
        .into_iter()
        .map(|line| {
            let event: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            event["unmapped"]["epoch"].as_u64().expect("an epoch")
        })
        .collect()
}

/// The numbers without repetitions, in order.
pub(crate) fn distinct(numbers: &[u64]) -> Vec<u64> {
    numbers.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
}

/// The counters of one sink.
pub(crate) fn stats(guard: &AuditGuard, name: &str) -> SinkStats {
    guard.sinks().into_iter().find(|(sink, _)| sink == name).expect("a sink of that name").1
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A loopback address whose port was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}

/// Listens on an address that was in use a moment ago, inside a runtime.
pub(crate) fn listen(runtime: &tokio::runtime::Runtime, address: SocketAddr) -> tokio::net::TcpListener {
    let mut bound = None;
    eventually("the port is free", || {
        bound = runtime.block_on(tokio::net::TcpListener::bind(address)).ok();
        bound.is_some()
    });
    bound.expect("just seen")
}

/// Writes `ca.pem`, `server.pem` and `server-key.pem` for `localhost`, and `other-ca.pem` of a stranger.
pub(crate) fn pki(directory: &std::path::Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("randomness")).expect("a certificate")
    };
    let ca = authority("test authority");
    let key = KeyPair::generate().expect("randomness");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let server = params.signed_by(&key, &ca).expect("a certificate");
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).expect("writable");
    write("ca.pem", ca.pem());
    write("server.pem", server.pem());
    write("server-key.pem", key.serialize_pem());
    write("other-ca.pem", authority("a stranger").pem());
}
