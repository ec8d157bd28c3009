//! What survives what behind gateways that masquerade (docs/egress.md).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jump_tests::lab::cluster::{Cluster, Plan, gateway_name};
use jump_tests::lab::download::{Download, WebServer, expected_digest};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::network::{POOL, POOL6};
use jump_tests::lab::ownership::Ownership;
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::lab::programs::metric;
use jump_tests::support::{self, SOON};

const BYTES_PER_SECOND: u64 = 500_000;
const SEED: u64 = 5;

/// A cluster whose gateways masquerade, with its device up and a web server behind the gateways.
struct Lab {
    cluster: Cluster,
    web: WebServer,
    session: Ownership,
}

impl Lab {
    fn start(label: &'static str, gateways: usize, settings: &str) -> Result<Self> {
        Self::start_as(&Plan { gateways, gateway_settings: settings.to_owned(), ..Plan::small(label) })
    }

    fn start_as(plan: &Plan) -> Result<Self> {
        let mut cluster = Cluster::start(plan)?;
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/egress/masquerade.nft");
        for gateway in &cluster.network.gateways {
            let loaded = gateway.namespace.command("nft".as_ref()).arg("-f").arg(&rules).status()?;
            ensure!(loaded.success(), "nft: {loaded}");
        }
        // Nothing but a gateway's own address leads back.
        cluster.network.inner.namespace.ip(&format!("route del {POOL}"))?;
        let inner = &cluster.network.inner;
        let address = if plan.dual_stack {
            inner.namespace.ip(&format!("route del {POOL6}"))?;
            inner.lan6_socket(8080)
        } else {
            inner.lan_socket(8080)
        };
        let web = WebServer::start_at(inner, address, BYTES_PER_SECOND)?;
        let session = cluster.up(0)?;
        Ok(Self { cluster, web, session })
    }

    fn owner(&self) -> Result<usize> {
        let owner =
            self.cluster.ownership(&self.session.session)?.owner.context("nobody owns the session")?;
        self.cluster.gateway_number(&owner)
    }

    fn others(&self) -> Result<Vec<usize>> {
        let owner = self.owner()?;
        Ok((0..self.cluster.gateways.len()).filter(|gateway| *gateway != owner).collect())
    }

    fn wait_for_owner(&self, gateway: usize) -> Result<()> {
        let what = format!("{} owns the session", gateway_name(gateway));
        wait_until(&what, SOON, || self.owner().is_ok_and(|owner| owner == gateway))
    }

    /// A planned move, by an operator's order.
    fn move_to(&self, gateway: usize) -> Result<()> {
        let (to, session) = (gateway_name(gateway), &self.session.session);
        let control = &self.cluster.network.controls[0];
        self.cluster.operator.json(control, &["sessions", "move", session, "--to", &to])?;
        self.wait_for_owner(gateway)?;
        let after = self.cluster.ownership(session)?;
        ensure!(after.inner_text() == self.session.inner_text(), "another inner address: {after:?}");
        Ok(())
    }

    fn download(&self, length: u64) -> Result<Download> {
        Download::start(&self.cluster.network.devices[0], self.web.address(), SEED, length)
    }

    /// A whole download by a connection of its own.
    fn fresh_download_works(&self) -> Result<()> {
        let fresh = self.download(BYTES_PER_SECOND)?.finish(SOON * 2)?;
        ensure!(fresh.digest == expected_digest(SEED, BYTES_PER_SECOND), "other bytes came");
        Ok(())
    }

    /// Connections to the web server that each of these gateways' kernels translates and that are established.
    fn translated_at(&self, gateways: &[usize]) -> Result<Vec<usize>> {
        let port = format!("dport={} ", self.web.address().port());
        let count = |gateway: &usize| {
            let host = &self.cluster.network.gateways[*gateway];
            let table =
                host.namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))??;
            Ok(table.lines().filter(|line| line.contains("ESTABLISHED") && line.contains(&port)).count())
        };
        gateways.iter().map(count).collect()
    }

    /// One of a gateway's counted events.
    fn counted(&self, gateway: usize, event: &str) -> Result<f64> {
        let host = &self.cluster.network.gateways[gateway];
        metric(host, "jump_gateway_events_total", &format!("event=\"{event}\""))
    }
}

#[test]
fn without_anchored_egress_a_move_keeps_the_session_and_ends_the_connections_that_were_open() {
    let _one = support::one_at_a_time().unwrap();
    let lab = Lab::start("masquerade", 2, "").unwrap();
    let echo = EchoServer::start(&lab.cluster.network.inner, 7).unwrap();
    let probe = Probe::start(&lab.cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(20, SOON).unwrap();
    let open = lab.download(6 * BYTES_PER_SECOND).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    lab.move_to(lab.others().unwrap()[0]).unwrap();
    // Datagrams go on: each gateway translates them anew.
    probe.wait_for_echoes(100, SOON).unwrap();
    // The server answers the other gateway's address with a reset.
    let ended = open.finish(SOON + Duration::from_secs(30)).unwrap_err();
    assert!(format!("{ended:#}").contains("reset"), "{ended:#}");
    lab.fresh_download_works().unwrap();
}

const ANCHORED: &str = "[egress]\nanchored = true\n";

#[test]
fn an_anchored_connection_survives_planned_moves_and_new_ones_leave_by_the_new_owner() {
    let _one = support::one_at_a_time().unwrap();
    let lab = Lab::start("anchored", 3, ANCHORED).unwrap();
    let (first, others) = (lab.owner().unwrap(), lab.others().unwrap());
    let (second, third) = (others[0], others[1]);
    let length = 20 * BYTES_PER_SECOND;
    let open = lab.download(length).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    lab.move_to(second).unwrap();
    // A connection of the second owner's, open as well when the session goes on.
    let later = lab.download(length).unwrap();
    later.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    assert_eq!(lab.translated_at(&[first, second, third]).unwrap(), [1, 1, 0]);
    lab.move_to(third).unwrap();
    later.wait_for(2 * BYTES_PER_SECOND, SOON).unwrap();
    let newest = lab.download(length).unwrap();
    newest.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    assert_eq!(lab.translated_at(&[first, second, third]).unwrap(), [1, 1, 1]);
    lab.move_to(first).unwrap();
    lab.fresh_download_works().unwrap();
    for download in [open, later, newest] {
        let downloaded = download.finish(SOON * 2 + Duration::from_secs(20)).unwrap();
        assert_eq!(downloaded.digest, expected_digest(SEED, length));
        assert!(downloaded.longest_stall < Duration::from_secs(5), "{:?}", downloaded.longest_stall);
        println!("longest time without a byte: {:?}", downloaded.longest_stall);
    }
    for gateway in [first, second, third] {
        assert_eq!(lab.counted(gateway, "anchors_missed").unwrap(), 0.0, "a list did not come in time");
        assert_eq!(lab.counted(gateway, "anchors_unknown").unwrap(), 0.0, "a kernel did not tell its flows");
        assert!(
            lab.counted(gateway, "anchored_in").unwrap() > 0.0,
            "{} carried nothing",
            gateway_name(gateway)
        );
    }
}

#[test]
fn over_ipv6_an_anchored_connection_survives_a_planned_move_as_well() {
    let _one = support::one_at_a_time().unwrap();
    let settings = ANCHORED.to_owned();
    let plan = Plan { gateway_settings: settings, dual_stack: true, ..Plan::small("anchored6") };
    let lab = Lab::start_as(&plan).unwrap();
    assert!(lab.web.address().is_ipv6());
    let (first, second) = (lab.owner().unwrap(), lab.others().unwrap()[0]);
    let length = 8 * BYTES_PER_SECOND;
    let open = lab.download(length).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    lab.move_to(second).unwrap();
    lab.fresh_download_works().unwrap();
    assert_eq!(lab.translated_at(&[first]).unwrap(), [1]);
    let downloaded = open.finish(SOON * 2).unwrap();
    assert_eq!(downloaded.digest, expected_digest(SEED, length));
    assert!(lab.counted(first, "anchored_in").unwrap() > 0.0);
}

#[test]
fn when_the_gateway_that_translates_a_connection_is_killed_the_connection_breaks_and_the_session_lives() {
    let _one = support::one_at_a_time().unwrap();
    let mut lab = Lab::start("anchor-lost", 2, ANCHORED).unwrap();
    let (first, second) = (lab.owner().unwrap(), lab.others().unwrap()[0]);
    let open = lab.download(40 * BYTES_PER_SECOND).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    lab.move_to(second).unwrap();
    open.wait_for(2 * BYTES_PER_SECOND, SOON).unwrap();
    lab.cluster.kill_gateway(first).unwrap();
    // What is on its way arrives; then the server speaks to an address that nobody translates any more.
    std::thread::sleep(Duration::from_secs(5));
    let (received, _) = open.progress();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(open.progress().0, received, "the connection outlived the gateway that translated it");
    assert_eq!(lab.owner().unwrap(), second);
    lab.fresh_download_works().unwrap();
}

#[test]
fn a_gateway_that_ends_waits_for_the_connections_that_it_translates() {
    let _one = support::one_at_a_time().unwrap();
    let mut lab = Lab::start("anchor-hold", 2, ANCHORED).unwrap();
    let (first, second) = (lab.owner().unwrap(), lab.others().unwrap()[0]);
    let length = 6 * BYTES_PER_SECOND;
    let open = lab.download(length).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    lab.cluster.gateways[first].signal(rustix::process::Signal::TERM).unwrap();
    lab.wait_for_owner(second).unwrap();
    let downloaded = open.finish(SOON * 2).unwrap();
    assert_eq!(downloaded.digest, expected_digest(SEED, length));
    let ended = lab.cluster.gateways[first].wait_end(SOON).unwrap();
    assert!(ended.success(), "{ended}");
    lab.fresh_download_works().unwrap();
}

#[test]
fn an_anchored_connection_outlives_a_later_owner_that_is_killed() {
    let _one = support::one_at_a_time().unwrap();
    let mut lab = Lab::start("anchor-owner-lost", 3, ANCHORED).unwrap();
    let second = lab.others().unwrap()[0];
    let length = 20 * BYTES_PER_SECOND;
    let open = lab.download(length).unwrap();
    open.wait_for(BYTES_PER_SECOND, SOON).unwrap();
    lab.move_to(second).unwrap();
    open.wait_for(2 * BYTES_PER_SECOND, SOON).unwrap();
    lab.cluster.kill_gateway(second).unwrap();
    let downloaded = open.finish(SOON * 3).unwrap();
    assert_eq!(downloaded.digest, expected_digest(SEED, length));
    assert_ne!(lab.owner().unwrap(), second);
    lab.fresh_download_works().unwrap();
}
