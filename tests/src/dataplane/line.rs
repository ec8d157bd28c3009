//! The three namespaces.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use crate::lab::namespace::{Namespace, run};
use crate::lab::network::Host;

/// Client, gateway and server, in a line. Routed without any tunnel too: that is the ceiling.
#[derive(Debug)]
pub struct Line {
    /// Where the tunnels begin.
    pub client: Host,
    /// Where they end.
    pub gateway: Host,
    /// Whom the client talks to.
    pub server: Host,
}

/// The server's address that is reached without a tunnel.
pub const RAW_TARGET: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 1);

/// The server's address that is reached through tunnel `n`.
pub fn target(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 92, n, 1)
}

impl Line {
    /// Makes namespaces, links and routes; names start with `prefix`.
    ///
    /// # Errors
    /// When the caller is not root or `ip` fails; what was made before is removed.
    pub fn create(prefix: &str) -> Result<Self> {
        let host = |role: &str, wan: [u8; 4], lan: [u8; 4]| -> Result<Host> {
            let namespace = Namespace::create(&format!("{prefix}-{role}"))?;
            Ok(Host { namespace, wan: wan.into(), lan: lan.into() })
        };
        let line = Self {
            client: host("client", [10, 90, 0, 2], [0; 4])?,
            gateway: host("gateway", [10, 90, 0, 1], [10, 91, 0, 1])?,
            server: host("server", [0; 4], [10, 91, 0, 80])?,
        };
        let (client, gateway, server) =
            (&line.client.namespace, &line.gateway.namespace, &line.server.namespace);
        gateway.ip(&format!(
            "link add wan type veth peer name wan netns {}\nlink add lan type veth peer name lan netns {}\n\
             addr add {}/24 dev wan\naddr add {}/24 dev lan\nlink set wan up\nlink set lan up",
            client.name(),
            server.name(),
            line.gateway.wan,
            line.gateway.lan,
        ))?;
        client.ip(&format!(
            "addr add {}/24 dev wan\nlink set wan up\nroute add {RAW_TARGET} via {}",
            line.client.wan, line.gateway.wan,
        ))?;
        server.ip(&format!(
            "addr add {}/24 dev lan\nlink set lan up\nroute add default via {}\naddr add {RAW_TARGET}/32 dev lo",
            line.server.lan, line.gateway.lan,
        ))?;
        gateway.ip(&format!("route add 10.92.0.0/16 via {}", line.server.lan))?;
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(line)
    }

    /// Switches segmentation and aggregation of all links on or off.
    ///
    /// # Errors
    /// When `ethtool` is missing or refuses.
    pub fn set_offloads(&self, on: bool) -> Result<()> {
        let value = if on { "on" } else { "off" };
        let links =
            [(&self.client, "wan"), (&self.gateway, "wan"), (&self.gateway, "lan"), (&self.server, "lan")];
        for (host, link) in links {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", host.namespace.name(), "ethtool", "-K", link]);
            for feature in ["tso", "gso", "gro", "tx-udp-segmentation"] {
                command.args([feature, value]);
            }
            run(&mut command)?;
        }
        Ok(())
    }
}
