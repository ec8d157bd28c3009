//! The lab's hosts and the two networks between them.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::namespace::Namespace;

/// The outer network: devices, gateways, control and the store.
const WAN: [u8; 3] = [10, 90, 0];
/// The inner network behind the gateways.
const LAN: [u8; 3] = [10, 91, 0];
/// The same networks in IPv6, of a lab that has both; hosts have the same numbers.
const WAN6: u16 = 0xfd90;
const LAN6: u16 = 0xfd91;
/// The inner IPv6 pool of such a lab, and its inner network.
pub const POOL6: &str = "fd77::/64";
/// The inner IPv6 network as a route for clients.
pub const LAN6_NETWORK: &str = "fd91::/64";
/// The pool of the devices' inner addresses.
pub const POOL: &str = "10.77.0.0/16";
/// The inner network as a route for clients.
pub const LAN_NETWORK: &str = "10.91.0.0/24";
/// The interface that every host has on the outer network.
pub const WAN_LINK: &str = "wan";
/// The interface that gateways and the inner server have on the inner network.
pub const LAN_LINK: &str = "lan";

/// Which way the inner server sends packets for the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReturnRoute {
    /// All through one gateway, counted from 0.
    Gateway(usize),
    /// Spread over all gateways by flow (ECMP, layer 4 hash).
    Ecmp,
}

/// A host: one namespace with its links.
#[derive(Debug)]
pub struct Host {
    /// The namespace it lives in.
    pub namespace: Namespace,
    /// Its address on the outer network; unspecified when it has none.
    pub wan: Ipv4Addr,
    /// Its address on the inner network; unspecified when it has none.
    pub lan: Ipv4Addr,
}

impl Host {
    /// A socket address on the outer network.
    pub fn wan_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.wan), port)
    }

    /// The same over IPv6, in a lab that has both.
    pub fn wan6_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(v6(WAN6, self.wan)), port)
    }

    /// A socket address on the inner network over IPv6, in a lab that has both.
    pub fn lan6_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(v6(LAN6, self.lan)), port)
    }

    /// A socket address on the inner network.
    pub fn lan_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.lan), port)
    }
}

/// How many hosts of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Devices.
    pub devices: usize,
    /// Gateways.
    pub gateways: usize,
    /// Control replicas.
    pub controls: usize,
    /// Store nodes; 0 with the embedded store.
    pub stores: usize,
}

/// All hosts. The fields drop before the switch, so links go with their ends.
#[derive(Debug)]
pub struct Network {
    /// Devices.
    pub devices: Vec<Host>,
    /// Gateways.
    pub gateways: Vec<Host>,
    /// Control replicas.
    pub controls: Vec<Host>,
    /// Store nodes.
    pub stores: Vec<Host>,
    /// The server on the inner network.
    pub inner: Host,
    switch: Namespace,
    prefix: String,
}

impl Network {
    /// Makes all hosts and links; names start with `prefix`.
    ///
    /// # Errors
    /// When the caller is not root or `ip` fails; what was made before is removed.
    pub fn create(prefix: &str, shape: Shape) -> Result<Self> {
        let switch = Namespace::create(&format!("{prefix}-switch"))?;
        // A bridge that asks netfilter about frames would obey rules that were not made for it.
        switch.ip("link add wan type bridge\nlink add lan type bridge\nlink set wan up\nlink set lan up")?;
        let builder = Builder { prefix, switch: &switch };
        let group = |role: &str, count: usize, wan: u8, lan: Option<u8>| -> Result<Vec<Host>> {
            (0..count)
                .map(|i| {
                    let n = u8::try_from(i)?;
                    builder.host(&format!("{role}{}", i + 1), Some(wan + n), lan.map(|l| l + n))
                })
                .collect()
        };
        let devices = group("dev", shape.devices, 100, None)?;
        let gateways = group("gw", shape.gateways, 10, Some(10))?;
        let controls = group("ctl", shape.controls, 20, None)?;
        let stores = group("etcd", shape.stores, 30, None)?;
        let inner = builder.host("inner", None, Some(80))?;
        for gateway in &gateways {
            let namespace = &gateway.namespace;
            namespace.sysctl("net/ipv4/ip_forward", "1")?;
            namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            // The inner server may answer through another gateway than the one it was asked by.
            namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
            namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
            namespace.sysctl("net/ipv4/conf/lan/rp_filter", "0")?;
            // A packet for the pool may come in by `lan` and leave by it when another gateway's route is better.
            namespace.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
            namespace.sysctl("net/ipv4/conf/lan/send_redirects", "0")?;
        }
        inner.namespace.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        Ok(Self { devices, gateways, controls, stores, inner, switch, prefix: prefix.to_owned() })
    }

    /// What the names of its namespaces start with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Connects a namespace to the outer network by `port` of the switch; inside, the link is `link`, without an address.
    pub(super) fn plug(&self, namespace: &Namespace, port: &str, link: &str) -> Result<()> {
        self.switch.ip(&format!(
            "link add {port} type veth peer name {link} netns {}\nlink set {port} master {WAN_LINK} up",
            namespace.name(),
        ))
    }

    /// Gives every host IPv6 addresses besides the others, and the inner server a way back to the IPv6 pool through the
    /// first gateway.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_ipv6(&self) -> Result<()> {
        let groups = [&self.devices, &self.gateways, &self.controls];
        for host in groups.into_iter().flatten().chain([&self.inner]) {
            for (link, net, address) in [(WAN_LINK, WAN6, host.wan), (LAN_LINK, LAN6, host.lan)] {
                if !address.is_unspecified() {
                    host.namespace.ip(&format!("addr add {}/64 dev {link} nodad", v6(net, address)))?;
                }
            }
        }
        let gateway = self.gateways.first().context("no gateway")?;
        self.inner.namespace.ip(&format!("route replace {POOL6} via {}", v6(LAN6, gateway.lan)))
    }

    /// Sets the inner server's way back to the pool.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn route_back(&self, route: ReturnRoute) -> Result<()> {
        let hops = match route {
            ReturnRoute::Gateway(i) => format!("via {}", self.gateways[i].lan),
            ReturnRoute::Ecmp => self.gateways.iter().map(|g| format!("nexthop via {} ", g.lan)).collect(),
        };
        self.inner.namespace.ip(&format!("route replace {POOL} {hops}"))
    }

    /// Sets the inner server's way back to the pool: spread over the gateways that `uses` names, as a routing protocol
    /// does that has withdrawn the others.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn route_back_among(&self, uses: &[bool]) -> Result<()> {
        let hops: String = self
            .gateways
            .iter()
            .zip(uses)
            .filter(|(_, used)| **used)
            .map(|(gateway, _)| format!("nexthop via {} ", gateway.lan))
            .collect();
        if hops.is_empty() {
            return self.route_back(ReturnRoute::Ecmp);
        }
        self.inner.namespace.ip(&format!("route replace {POOL} {hops}"))
    }

    /// Cuts `host` off from `others` with a packet filter, both ways; replaces what was cut off before.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub fn cut_off(&self, host: &Host, others: &[Ipv4Addr]) -> Result<()> {
        let list = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.mend(host)?;
        nft(
            &host.namespace,
            &format!(
                "table ip cut {{ chain in {{ type filter hook input priority 0; ip saddr {{ {list} }} drop; }}; \
                 chain out {{ type filter hook output priority 0; ip daddr {{ {list} }} drop; }}; }}\n"
            ),
        )
    }

    /// Ends what [`Self::cut_off`] did.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub fn mend(&self, host: &Host) -> Result<()> {
        // Deleting needs the table to exist; declaring it first makes sure.
        nft(&host.namespace, "table ip cut\ndelete table ip cut\n")
    }

    /// Filters what `host` takes in by rules in nft's syntax, instead of those before; none lets everything in.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub fn wall(&self, host: &Host, rules: &[&str]) -> Result<()> {
        wall(&host.namespace, "input", rules)
    }

    /// Takes a host's outer link down or up at the switch, as if its cable were pulled.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_wan_cable(&self, host: &Host, plugged: bool) -> Result<()> {
        self.switch.ip(&format!("link set w{} {}", host.wan.octets()[3], if plugged { "up" } else { "down" }))
    }

    /// Makes the switch lose what is longer than `mtu` bytes on a host's outer link, both ways and without a word. The host
    /// itself sees no other MTU; it must cut its segmented sends before they leave, as a network card would.
    ///
    /// The kernel leaves room for a VLAN tag: up to 4 bytes more may pass.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_wan_mtu(&self, host: &Host, mtu: u16) -> Result<()> {
        let port = format!("w{}", host.wan.octets()[3]);
        for other in self.devices.iter().chain(&self.gateways) {
            other.namespace.ip(&format!("link set {WAN_LINK} gso_max_segs 1"))?;
        }
        self.switch.ip(&format!("link set {port} mtu {mtu} gso_max_segs 1"))
    }

    /// Takes a host's inner link down or up at the switch.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_lan_cable(&self, host: &Host, plugged: bool) -> Result<()> {
        self.switch.ip(&format!("link set l{} {}", host.lan.octets()[3], if plugged { "up" } else { "down" }))
    }
}

fn v6(net: u16, host: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, u16::from(host.octets()[3]))
}

/// Replaces the filter of a namespace at `hook` by these rules.
pub(super) fn wall(namespace: &Namespace, hook: &str, rules: &[&str]) -> Result<()> {
    let rules: String = rules.iter().map(|rule| format!("  {rule}\n")).collect();
    nft(
        namespace,
        &format!(
            "table inet wall\ndelete table inet wall\ntable inet wall {{\n chain pass {{\n  \
             type filter hook {hook} priority 0;\n{rules} }}\n}}\n"
        ),
    )
}

/// Applies a rule set inside a namespace.
pub(crate) fn nft(namespace: &Namespace, rules: &str) -> Result<()> {
    let mut child = namespace
        .command("nft".as_ref())
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running nft (package nftables)")?;
    child.stdin.take().context("nft has no stdin")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

struct Builder<'a> {
    prefix: &'a str,
    switch: &'a Namespace,
}

impl Builder<'_> {
    fn host(&self, role: &str, wan: Option<u8>, lan: Option<u8>) -> Result<Host> {
        let namespace = Namespace::create(&format!("{}-{role}", self.prefix))?;
        let address = |net: [u8; 3], host: Option<u8>| {
            host.map_or(Ipv4Addr::UNSPECIFIED, |h| Ipv4Addr::new(net[0], net[1], net[2], h))
        };
        let host = Host { namespace, wan: address(WAN, wan), lan: address(LAN, lan) };
        for (link, letter, number, address) in
            [(WAN_LINK, 'w', wan, host.wan), (LAN_LINK, 'l', lan, host.lan)]
        {
            let Some(number) = number else { continue };
            let port = format!("{letter}{number}");
            self.switch.ip(&format!(
                "link add {port} type veth peer name {link} netns {}\nlink set {port} master {link} up",
                host.namespace.name(),
            ))?;
            host.namespace.ip(&format!("addr add {address}/24 dev {link}\nlink set {link} up"))?;
        }
        Ok(host)
    }
}
