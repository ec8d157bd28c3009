//! The usual fleet: one group of enrolled devices at a cluster, attached, probing an echo server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use jump_session::client::Tuning;

use super::{Fleet, FleetPlan, Group, Traffic};
use crate::lab::cluster::Cluster;
use crate::lab::enrol::enrol;
use crate::lab::etcd::wait_until;
use crate::lab::probe::EchoServer;
use crate::lab::programs::GATEWAY_PORT;
use crate::support::SOON;

const ECHO_PORT: u16 = 7;
const PROBE_LEN: usize = 100;
const STARTS_PER_SECOND: f64 = 100.0;

/// Devices at a cluster, with what answers their probes.
#[derive(Debug)]
pub struct Crowd {
    /// The devices.
    pub fleet: Fleet,
    _echo: EchoServer,
}

impl Crowd {
    /// Enrols so many devices, which know the first `gateways` of `cluster` and send a probe `every` so often, and waits
    /// until all of them are attached.
    ///
    /// # Errors
    /// When one cannot be enrolled, or is not attached in time.
    pub fn attach(cluster: &Cluster, devices: usize, gateways: usize, every: Duration) -> Result<Self> {
        let host = &cluster.network.devices[0];
        super::route(host, &cluster.network.gateways)?;
        let keys = enrol(&cluster.network.controls[0], cluster.operator.identity(), devices, |_| ())?;
        let echo = EchoServer::start(&cluster.network.inner, ECHO_PORT)?;
        let SocketAddr::V4(to) = echo.address() else { bail!("the lab's inner network is IPv4") };
        let traffic =
            Traffic { every: Some(every), burst: None, length: PROBE_LEN, to, gap_above: every * 4 };
        let known = cluster.network.gateways.iter().take(gateways);
        let plan = FleetPlan {
            keys,
            profile: cluster.state_dir(0),
            gateways: known.map(|gateway| gateway.wan_socket(GATEWAY_PORT)).collect(),
            via: BTreeMap::new(),
            groups: vec![Group {
                devices,
                starts_per_second: Some(STARTS_PER_SECOND),
                traffic,
                tuning: Tuning::default(),
                aside: false,
            }],
            lanes: 2,
            seed: 1,
        };
        let fleet = Fleet::start(host, plan)?;
        wait_until("every device is attached", SOON, || fleet.counts().born == devices as u64)?;
        Ok(Self { fleet, _echo: echo })
    }

    /// Waits until each device has, on average, heard so many more echoes.
    ///
    /// # Errors
    /// When they have not in time.
    pub fn wait_for_echoes(&self, each: u64) -> Result<()> {
        let goal = self.fleet.counts().answered + each * self.fleet.devices() as u64;
        wait_until("probes come back", SOON, || self.fleet.counts().answered > goal)
    }
}
