//! Outside IPv4 or IPv6, inside both.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::net::SocketAddr;

use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::lab::network::{Host, ReturnRoute};
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::support;

/// Brings a session up over one outer family and uses both inner ones through it.
fn carries_both(label: &'static str, gateway: impl Fn(&Host) -> SocketAddr) {
    let _one = support::one_at_a_time().unwrap();
    let mut cluster = Cluster::start(&Plan {
        gateways: 1,
        dual_stack: true,
        return_route: ReturnRoute::Gateway(0),
        ..Plan::small(label)
    })
    .unwrap();
    let address = gateway(&cluster.network.gateways[0]);
    // Only the family that is meant leads to the gateway.
    let other = if address.is_ipv4() {
        "meta nfproto ipv6 udp dport 51820 drop"
    } else {
        "meta nfproto ipv4 udp dport 51820 drop"
    };
    cluster.network.wall(&cluster.network.gateways[0], &[other]).unwrap();
    let session = cluster.up_with(0, &["--gateway", &address.to_string(), "--transports", "udp"]).unwrap();
    let families: Vec<bool> = session.inner.iter().map(|inner| inner.is_ipv4()).collect();
    assert!(families.contains(&true) && families.contains(&false), "{session:?}");

    let (inner, device) = (&cluster.network.inner, &cluster.network.devices[0]);
    for server in [inner.lan_socket(7), inner.lan6_socket(7)] {
        let echo = EchoServer::start_at(inner, server).unwrap();
        let probe = Probe::start(device, echo.address()).unwrap();
        probe.wait_for_echoes(40, support::SOON).unwrap();
        assert!(session.inner.contains(&probe.local_address().ip()), "not through the tunnel: {probe:?}");
        assert_eq!(probe.stop().duplicates, 0);
    }
    let (seed, length) = (5, 1 << 20);
    for server in [inner.lan_socket(80), inner.lan6_socket(80)] {
        let web = WebServer::start_at(inner, server, 16 << 20).unwrap();
        let done = Download::start(device, web.address(), seed, length).unwrap();
        let done = done.finish(support::SOON).unwrap();
        assert_eq!(done.digest, expected_digest(seed, length));
        assert!(session.inner.contains(&done.local.ip()), "not through the tunnel: {done:?}");
    }
    assert_eq!(cluster.ownership(&session.session).unwrap().epoch, session.epoch);
}

#[test]
fn a_session_over_ipv6_carries_both_families() {
    carries_both("families-v6", |gateway| gateway.wan6_socket(GATEWAY_PORT));
}

#[test]
fn a_session_over_ipv4_carries_both_families() {
    carries_both("families-v4", |gateway| gateway.wan_socket(GATEWAY_PORT));
}
