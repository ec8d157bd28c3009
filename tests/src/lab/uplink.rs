//! A device's way to the outer network through a home router: a namespace with a real NAT (nftables) that can be given
//! another address, lose its table without a word, and block what it likes.

use std::io;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink};

use super::etcd::wait_until;
use super::namespace::Namespace;
use super::network::{Host, Network, WAN_LINK, nft, wall};

/// The router's link to the device.
const HOME_LINK: &str = "home";

/// A home router between a device and the outer network.
#[derive(Debug)]
pub struct Uplink {
    router: Namespace,
    device: String,
    link: String,
    gateway: Ipv4Addr,
    metric: u32,
    /// The NAT's addresses; it uses one of them.
    outer: [Ipv4Addr; 2],
    /// Which mapping is in use: it decides the address and the range of ports.
    mapping: usize,
}

impl Uplink {
    /// Makes the router `number` (1 to 9) of a device and the device's default route through it; the lower number is
    /// preferred. The device's own link to the outer network goes down.
    ///
    /// # Errors
    /// When `ip` or `nft` fails.
    pub fn create(network: &Network, device: &Host, number: u8) -> Result<Self> {
        ensure!((1..=9).contains(&number), "uplinks are numbered from 1 to 9");
        let router = Namespace::create(&format!("{}-nat{number}", network.prefix()))?;
        let outer = [200, 220].map(|base| Ipv4Addr::new(10, 90, 0, base + number));
        network.plug(&router, &format!("n{number}"), WAN_LINK)?;
        let link = format!("up{number}");
        router.ip(&format!(
            "link add {HOME_LINK} type veth peer name {link} netns {}\naddr add 192.168.{number}.1/24 dev {HOME_LINK}\n\
             addr add {}/24 dev {WAN_LINK}\naddr add {}/24 dev {WAN_LINK}\nlink set {HOME_LINK} up\nlink set {WAN_LINK} up",
            device.namespace.name(),
            outer[0],
            outer[1],
        ))?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        let uplink = Self {
            router,
            device: device.namespace.name().to_owned(),
            link,
            gateway: Ipv4Addr::new(192, 168, number, 1),
            metric: 100 * u32::from(number),
            outer,
            mapping: 0,
        };
        device
            .namespace
            .ip(&format!("link set {WAN_LINK} down\naddr add 192.168.{number}.2/24 dev {}", uplink.link))?;
        device.namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        uplink.plug(device, true)?;
        uplink.map()?;
        Ok(uplink)
    }

    /// Takes the device's end of the link up, with its default route, or down. Returns once both ends carry packets: the
    /// kernel takes its time to start the queues of a link that comes up.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn plug(&self, device: &Host, plugged: bool) -> Result<()> {
        ensure!(device.namespace.name() == self.device, "another device's uplink");
        if plugged {
            let Self { link, gateway, metric, .. } = self;
            device.namespace.ip(&format!("link set {link} up"))?;
            wait_until("the link to the router is up", Duration::from_secs(10), || {
                is_up(&device.namespace, link) && is_up(&self.router, HOME_LINK)
            })?;
            device.namespace.ip(&format!("route replace default via {gateway} dev {link} metric {metric}"))
        } else {
            device.namespace.ip(&format!("link set {} down", self.link))
        }
    }

    /// Makes the device prefer this uplink, or not any more; the link stays up either way.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn prefer(&self, device: &Host, preferred: bool) -> Result<()> {
        let Self { link, gateway, .. } = self;
        let verb = if preferred { "replace" } else { "del" };
        device.namespace.ip(&format!("route {verb} default via {gateway} dev {link} metric 10"))
    }

    /// The router loses its table and maps what comes from now on to other ports, and to another address if asked.
    /// Nobody is told.
    ///
    /// # Errors
    /// When `nft` fails or the kernel does not let go of its table.
    pub fn rebind(&mut self, another_address: bool) -> Result<()> {
        self.mapping += if another_address { 1 } else { self.outer.len() };
        self.map()?;
        let flushed = self.router.enter(flush_connections)?;
        flushed.context("flushing the connections of the NAT")
    }

    fn map(&self) -> Result<()> {
        let address = self.outer[self.mapping % self.outer.len()];
        let low = 20_000 + 100 * (self.mapping % 400);
        let high = low + 99;
        nft(
            &self.router,
            &format!(
                "table ip nat\ndelete table ip nat\ntable ip nat {{\n chain post {{\n  \
                 type nat hook postrouting priority 100;\n  \
                 oifname \"{WAN_LINK}\" ip protocol {{ tcp, udp }} snat to {address}:{low}-{high}\n  \
                 oifname \"{WAN_LINK}\" snat to {address}\n }}\n}}\n"
            ),
        )
    }

    /// Filters what passes by rules in nft's syntax, instead of those before; none lets everything pass. What comes in
    /// answer to packets from the device passes the same rules.
    ///
    /// # Errors
    /// When `nft` refuses them.
    pub fn filter(&self, rules: &[&str]) -> Result<()> {
        wall(&self.router, "forward", rules)
    }
}

fn is_up(namespace: &Namespace, link: &str) -> bool {
    let shown = Command::new("ip").args(["-n", namespace.name(), "-o", "link", "show", "dev", link]).output();
    shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains(" state UP "))
}

/// Deletes every tracked connection of the current namespace (ctnetlink): what `conntrack -F` does.
///
/// # Errors
/// When the kernel does not let go of its table.
pub fn flush_connections() -> io::Result<()> {
    /// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
    const DELETE: u16 = 1 << 8 | 2;
    /// `NLM_F_REQUEST | NLM_F_ACK`.
    const FLAGS: u16 = 1 | 4;
    const LEN: u32 = 20;
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))?;
    // nlmsghdr: length, type, flags, sequence, port; nfgenmsg: family, version, resource.
    let mut message = Vec::with_capacity(LEN as usize);
    message.extend(LEN.to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 12]);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 256];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // An nlmsgerr: its error number, negative, follows the header.
    match answer[..length].get(16..20).and_then(|code| <[u8; 4]>::try_from(code).ok()).map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}
