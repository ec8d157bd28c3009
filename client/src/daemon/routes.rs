//! Addresses, MTU and routes of the tunnel's interface. Applied at the first acceptance and only changed by differences:
//! nothing that stays the same is touched during a reattach.
//!
//! A route that would carry the tunnel's own datagrams into the tunnel (a default route, or any network that holds a
//! gateway) goes into a routing table of its own, which rules keep from packets that carry the tunnel's mark.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use jump_session::frame::Accepted;
use jump_transport::tun::{Tun, add_address, add_route, delete_address, delete_route};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

/// The mark of the tunnel's own datagrams, and the table that they do not see.
pub const MARK: u32 = 51_820;

/// Rules come before the main table's (32766), this one first.
const RULE_PRIORITY: u32 = 5_180;

/// What is configured now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Configured {
    pub(super) addresses: Vec<IpNet>,
    pub(super) plain: Vec<IpNet>,
    pub(super) guarded: Vec<IpNet>,
    pub(super) mtu: u16,
    rules: bool,
}

/// What an acceptance asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    addresses: Vec<IpNet>,
    plain: Vec<IpNet>,
    guarded: Vec<IpNet>,
}

impl Wanted {
    fn of(accepted: &Accepted, gateways: &[SocketAddr]) -> Self {
        let addresses = accepted.inner.iter().map(|address| IpNet::from(*address)).collect();
        let routes = accepted.routes.iter().filter_map(|(address, len)| IpNet::new(*address, *len).ok());
        let holds_gateway = |route: &IpNet| gateways.iter().any(|gateway| route.contains(&gateway.ip()));
        let (guarded, plain) = routes
            .map(|route| route.trunc())
            .partition(|route| route.prefix_len() == 0 || holds_gateway(route));
        Self { addresses, plain, guarded }
    }
}

impl Configured {
    /// Brings the interface to what `accepted` says, and to `mtu`. Everything is tried; the first error is returned.
    pub(super) async fn apply(
        &mut self,
        tun: &Tun,
        accepted: &Accepted,
        mtu: u16,
        gateways: &[SocketAddr],
    ) -> io::Result<()> {
        let wanted = Wanted::of(accepted, gateways);
        let index = tun.index();
        let mut first_error = self.set_mtu(tun, mtu).await;
        let mut note = |result: io::Result<()>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        for address in wanted.addresses.iter().filter(|address| !self.addresses.contains(address)) {
            note(add_address(*address, index).await);
        }
        for address in self.addresses.iter().filter(|address| !wanted.addresses.contains(address)) {
            note(delete_address(*address, index).await);
        }
        for route in wanted.plain.iter().filter(|route| !self.plain.contains(route)) {
            note(add_route(*route, index, None).await);
        }
        for route in self.plain.iter().filter(|route| !wanted.plain.contains(route)) {
            note(delete_route(*route, index, None).await);
        }
        for route in wanted.guarded.iter().filter(|route| !self.guarded.contains(route)) {
            note(add_guarded_route(*route, index).await);
        }
        for route in self.guarded.iter().filter(|route| !wanted.guarded.contains(route)) {
            note(delete_guarded_route(*route, index).await);
        }
        if !wanted.guarded.is_empty() && !self.rules {
            note(change_rules(true).await);
            self.rules = true;
        }
        self.addresses = wanted.addresses;
        self.plain = wanted.plain;
        self.guarded = wanted.guarded;
        first_error
    }

    /// Gives the interface this MTU.
    pub(super) async fn set_mtu(&mut self, tun: &Tun, mtu: u16) -> io::Result<()> {
        if self.mtu == mtu {
            return Ok(());
        }
        self.mtu = mtu;
        set_mtu(tun.index(), mtu).await
    }

    /// Takes back what does not vanish with the interface.
    pub(super) async fn remove(&mut self) -> io::Result<()> {
        if core::mem::take(&mut self.rules) { change_rules(false).await } else { Ok(()) }
    }

    pub(super) fn routes(&self) -> Vec<String> {
        self.plain.iter().chain(&self.guarded).map(ToString::to_string).collect()
    }
}

async fn set_mtu(index: u32, mtu: u16) -> io::Result<()> {
    with_netlink(async |netlink| {
        netlink.link().change(LinkUnspec::new_with_index(index).mtu(u32::from(mtu)).build()).execute().await
    })
    .await
}

async fn add_guarded_route(route: IpNet, index: u32) -> io::Result<()> {
    let message = guarded_route(route, index);
    with_netlink(async |netlink| netlink.route().add(message).replace().execute().await).await
}

async fn delete_guarded_route(route: IpNet, index: u32) -> io::Result<()> {
    let message = guarded_route(route, index);
    with_netlink(async |netlink| netlink.route().del(message).execute().await).await
}

fn guarded_route(route: IpNet, index: u32) -> rtnetlink::packet_route::route::RouteMessage {
    match route {
        IpNet::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4.addr(), v4.prefix_len())
            .output_interface(index)
            .table_id(MARK)
            .build(),
        IpNet::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6.addr(), v6.prefix_len())
            .output_interface(index)
            .table_id(MARK)
            .build(),
    }
}

/// Two rules per family: first what the main table knows better than by a default route, then, for packets without the
/// mark, the tunnel's table.
async fn change_rules(add: bool) -> io::Result<()> {
    let mut first_error = Ok(());
    for family in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        for guard in [false, true] {
            let changed = with_netlink(async |netlink| change_rule(&netlink, family, guard, add).await).await;
            // Left over from a run that was killed, or gone already: as wanted.
            let settled = changed.as_ref().is_err_and(|error| {
                matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT | libc::EAFNOSUPPORT))
            });
            if !settled && first_error.is_ok() {
                first_error = changed;
            }
        }
    }
    first_error
}

async fn change_rule(
    netlink: &Handle,
    family: IpAddr,
    guard: bool,
    add: bool,
) -> Result<(), rtnetlink::Error> {
    let shape = |message: &mut RuleMessage| {
        if guard {
            message.header.flags |= RuleFlags::Invert;
            message.attributes.push(RuleAttribute::FwMark(MARK));
        } else {
            message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        }
    };
    let priority = RULE_PRIORITY + u32::from(guard);
    let table = if guard { MARK } else { u32::from(libc::RT_TABLE_MAIN) };
    let request = netlink.rule().add().action(RuleAction::ToTable).priority(priority).table_id(table);
    let mut message = match family {
        IpAddr::V4(_) => request.v4().message_mut().clone(),
        IpAddr::V6(_) => request.v6().message_mut().clone(),
    };
    shape(&mut message);
    if add {
        let mut request = netlink.rule().add();
        *request.message_mut() = message;
        request.execute().await
    } else {
        netlink.rule().del(message).execute().await
    }
}

async fn with_netlink(request: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error>) -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let result = request(handle).await;
    driver.abort();
    result.map_err(|error| {
        if let rtnetlink::Error::NetlinkError(message) = error {
            return message.to_io();
        }
        io::Error::other(error)
    })
}
