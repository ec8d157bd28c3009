//! Bounds on connections: the port is public, because devices enrol through it, so most of who connects is a stranger.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};

use crate::metrics;

/// How long a TLS handshake may take.
pub(crate) const TLS_HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections at a time, of everybody.
const CONNECTIONS_MAX: usize = 8192;
/// Connections at a time of one IPv4 address or IPv6 /64. Gateways and devices may share one behind a NAT.
const CONNECTIONS_PER_SOURCE_MAX: usize = 512;

/// Connections that are open, by source.
#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Accepts connections within the bounds; others are closed at once and counted.
#[derive(Debug)]
pub(crate) struct Connections {
    incoming: TcpIncoming,
    open: Arc<Mutex<Open>>,
}

impl Connections {
    pub(crate) fn new(incoming: TcpIncoming) -> Self {
        Self { incoming, open: Arc::default() }
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let stream = match ready!(Pin::new(&mut self.incoming).poll_next(context)) {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            // One that is gone already has no address.
            let Ok(peer) = stream.peer_addr() else { continue };
            match Place::take(&self.open, source_of(peer.ip())) {
                Some(place) => return Poll::Ready(Some(Ok(Connection { stream, _place: place }))),
                None => metrics::count_refused_connection(),
            }
        }
    }
}

/// The share of the address space that one caller has at least.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// A connection's place under the bounds, until it is dropped.
#[derive(Debug)]
struct Place {
    open: Arc<Mutex<Open>>,
    source: IpAddr,
}

impl Place {
    fn take(open: &Arc<Mutex<Open>>, source: IpAddr) -> Option<Self> {
        let mut all = open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = all.by_source.get(&source).copied().unwrap_or(0);
        if all.all >= CONNECTIONS_MAX || of_source >= CONNECTIONS_PER_SOURCE_MAX {
            return None;
        }
        all.all += 1;
        all.by_source.insert(source, of_source + 1);
        metrics::show_connections(all.all);
        Some(Self { open: Arc::clone(open), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        all.all -= 1;
        if let Some(of_source) = all.by_source.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                all.by_source.remove(&self.source);
            }
        }
        metrics::show_connections(all.all);
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_takes_no_more_than_its_share_and_gives_it_back() {
        let open = Arc::new(Mutex::new(Open::default()));
        let source = |text: &str| source_of(text.parse().unwrap());
        let mut places: Vec<_> = (0..CONNECTIONS_PER_SOURCE_MAX)
            .map(|n| Place::take(&open, source(&format!("2001:db8::{n:x}"))).unwrap())
            .collect();
        assert!(Place::take(&open, source("2001:db8::ffff:1")).is_none(), "another address of the same /64");
        assert!(Place::take(&open, source("2001:db8:0:1::1")).is_some());
        assert!(Place::take(&open, source("192.0.2.1")).is_some());
        places.pop();
        assert!(Place::take(&open, source("2001:db8::1")).is_some());
        drop(places);
        let open = open.lock().unwrap();
        assert_eq!((open.all, open.by_source.len()), (0, 0));
    }

    #[test]
    fn all_sources_together_are_bounded() {
        let open = Arc::new(Mutex::new(Open::default()));
        let places: Vec<_> = (0..=CONNECTIONS_MAX as u32)
            .filter_map(|n| Place::take(&open, IpAddr::from(n.to_be_bytes())))
            .collect();
        assert_eq!(places.len(), CONNECTIONS_MAX);
    }

    #[test]
    fn an_address_of_both_families_is_one_source() {
        assert_eq!(source_of("::ffff:192.0.2.1".parse().unwrap()), IpAddr::from([192, 0, 2, 1]));
    }
}
