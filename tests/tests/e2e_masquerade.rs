//! What survives what behind gateways that masquerade (docs/egress.md).

use std::path::Path;
use std::time::Duration;

use jump_tests::lab::cluster::{Cluster, Plan, gateway_name};
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::lab::network::POOL;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::support::{self, SOON};

const BYTES_PER_SECOND: u64 = 500_000;
const LENGTH: u64 = 3_000_000;
const SEED: u64 = 5;

#[test]
fn behind_masquerading_gateways_a_move_keeps_the_session_and_ends_the_connections_that_were_open() {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&Plan::small("masquerade")).unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/egress/masquerade.nft");
    for gateway in &cluster.network.gateways {
        let loaded = gateway.namespace.command("nft".as_ref()).arg("-f").arg(&rules).status().unwrap();
        assert!(loaded.success(), "nft: {loaded}");
    }
    // Nothing but a gateway's own address leads back.
    cluster.network.inner.namespace.ip(&format!("route del {POOL}")).unwrap();
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let web = WebServer::start(&cluster.network.inner, 8080, BYTES_PER_SECOND).unwrap();
    let before = cluster.up(0).unwrap();
    let device = &cluster.network.devices[0];
    let probe = Probe::start(device, echo.address()).unwrap();
    probe.wait_for_echoes(20, SOON).unwrap();
    let open = Download::start(device, web.address(), SEED, LENGTH).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();

    let owner = cluster.gateway_number(before.owner.as_ref().unwrap()).unwrap();
    let other = gateway_name(1 - owner);
    cluster
        .operator
        .json(&cluster.network.controls[0], &["sessions", "move", &before.session, "--to", &other])
        .unwrap();
    let after = cluster.ownership(&before.session).unwrap();
    assert_eq!((after.owner.as_deref(), after.inner_text()), (Some(other.as_str()), before.inner_text()));
    // Datagrams go on: each gateway translates them anew.
    probe.wait_for_echoes(100, SOON).unwrap();
    // The server answers the other gateway's address with a reset.
    let ended = open.finish(SOON + Duration::from_secs(30)).unwrap_err();
    assert!(format!("{ended:#}").contains("reset"), "{ended:#}");
    let fresh = Download::start(&cluster.network.devices[0], web.address(), SEED, LENGTH).unwrap();
    assert_eq!(fresh.finish(SOON * 2).unwrap().digest, expected_digest(SEED, LENGTH));
}
