//! A tunnel that is up, and what its gateway's end costs.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::line::RAW_TARGET;
use crate::lab::process::{Process, children_of};

/// One way from the client to the server.
#[derive(Debug)]
pub struct Tunnel {
    /// Its name in the tables.
    pub name: &'static str,
    /// What it says of itself.
    pub version: String,
    /// The server's address behind it.
    pub target: Ipv4Addr,
    /// The gateway's end: a process with its children.
    gateway: Option<Pid>,
    _processes: Vec<Process>,
}

impl Tunnel {
    /// A tunnel of these processes; the first is the gateway's end.
    pub fn new(name: &'static str, version: String, target: Ipv4Addr, processes: Vec<Process>) -> Self {
        let gateway = processes.first().map(Process::pid);
        Self { name, version, target, gateway, _processes: processes }
    }

    /// No tunnel: the gateway's kernel forwards.
    pub fn raw() -> Self {
        Self::new("raw", String::new(), RAW_TARGET, Vec::new())
    }

    /// CPU seconds that the gateway's end has used so far, in user and kernel, to a hundredth; `None` without one.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_seconds(&self) -> Result<Option<f64>> {
        self.gateway.map(tree_ticks).transpose().map(|ticks| ticks.map(|t| t as f64 / 100.0))
    }

    /// SIGKILL to the process that forwards at the gateway's end: the children of a supervisor, or else the one there is.
    ///
    /// # Errors
    /// When it has ended, or there is none.
    pub fn kill_gateway(&self) -> Result<()> {
        let gateway = self.gateway.context("no process forwards here")?;
        let children = children_of(gateway)?;
        let forwarding = if children.is_empty() { vec![gateway] } else { children };
        forwarding.into_iter().try_for_each(|pid| Ok(kill_process(pid, Signal::KILL)?))
    }
}

/// CPU time of a process and its children, in the kernel's units of 10 ms.
fn tree_ticks(pid: Pid) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may contain anything; user and system time are the 12th and 13th fields behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    ensure!(fields.len() > 12, "/proc/{pid}/stat has fewer fields than expected");
    let mut ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    for child in children_of(pid)? {
        ticks += tree_ticks(child)?;
    }
    Ok(ticks)
}
