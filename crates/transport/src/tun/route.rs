//! Addresses and routes, by netlink. Needs a tokio runtime.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{AddressMessageBuilder, Handle, RouteMessageBuilder};

/// Adds a route for `destination` through interface `index`; replaces an equal one.
///
/// # Errors
/// The kernel's answer.
pub async fn add_route(destination: IpNet, index: u32, metric: Option<u32>) -> io::Result<()> {
    let message = route_message(destination, index, metric);
    with_netlink(|netlink| async move { netlink.route().add(message).replace().execute().await }).await
}

/// Deletes the route for `destination` through interface `index`. A route that is not there counts as deleted.
///
/// # Errors
/// The kernel's answer.
pub async fn delete_route(destination: IpNet, index: u32, metric: Option<u32>) -> io::Result<()> {
    let message = route_message(destination, index, metric);
    absent_is_fine(with_netlink(|netlink| async move { netlink.route().del(message).execute().await }).await)
}

/// Adds an address to interface `index`; one that is there already is kept.
///
/// # Errors
/// The kernel's answer.
pub async fn add_address(address: IpNet, index: u32) -> io::Result<()> {
    with_netlink(|netlink| async move {
        let request = netlink.address().add(index, address.addr(), address.prefix_len());
        request.replace().execute().await
    })
    .await
}

/// Deletes an address from interface `index`. An address that is not there counts as deleted.
///
/// # Errors
/// The kernel's answer.
pub async fn delete_address(address: IpNet, index: u32) -> io::Result<()> {
    let message = match address.addr() {
        IpAddr::V4(v4) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, address.prefix_len()).build()
        }
        IpAddr::V6(v6) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, address.prefix_len()).build()
        }
    };
    absent_is_fine(
        with_netlink(|netlink| async move { netlink.address().del(message).execute().await }).await,
    )
}

fn route_message(destination: IpNet, index: u32, metric: Option<u32>) -> RouteMessage {
    match destination.trunc() {
        IpNet::V4(v4) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4.addr(), v4.prefix_len())
                .output_interface(index);
            if let Some(metric) = metric {
                builder = builder.priority(metric);
            }
            builder.build()
        }
        IpNet::V6(v6) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6.addr(), v6.prefix_len())
                .output_interface(index);
            if let Some(metric) = metric {
                builder = builder.priority(metric);
            }
            builder.build()
        }
    }
}

/// Runs one request on a netlink connection of its own.
async fn with_netlink<F>(request: impl FnOnce(Handle) -> F) -> io::Result<()>
where
    F: Future<Output = Result<(), rtnetlink::Error>>,
{
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

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EADDRNOTAVAIL)) => Ok(()),
        other => other,
    }
}
