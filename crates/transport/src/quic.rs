//! The QUIC adapter: one datagram per QUIC DATAGRAM frame (RFC 9221), under an ALPN of its own.
//!
//! An experiment: for networks that know UDP only as HTTP/3. QUIC's congestion control applies to the datagrams, and
//! its connections migrate when a client's address changes ([`Connector::rebind`]).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, SendDatagramError,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use tokio::runtime::Handle;
use tokio::time::{interval, timeout};
use tokio_rustls::rustls;

use crate::exchange::{Acceptor, Exchange, ExchangeLimits, FRAME_LEN_MAX, Link};
use crate::health::TransportKind;
use crate::path::CloseReason;
use crate::poll::Waker;

/// The application protocol that both sides name.
pub const ALPN: &[u8] = b"jump/1";

/// Size of the first QUIC packets: an inner packet of 1280 bytes with our record and QUIC's headers fits. A path that
/// cannot carry it is found out by quinn's black-hole detection.
const INITIAL_MTU: u16 = 1400;
/// Bytes of datagrams that quinn may hold unsent. Small: what waits belongs into the path's queue, where the oldest
/// goes first and is counted.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of received datagrams that quinn may hold.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;

/// Bounds of QUIC paths.
#[derive(Debug, Clone, Copy)]
pub struct QuicLimits {
    /// Connections and queues.
    pub exchange: ExchangeLimits,
    /// A handshake takes at most this long.
    pub connect_timeout: Duration,
    /// A connection over which nothing comes for this long is closed.
    pub idle_timeout: Duration,
}

impl Default for QuicLimits {
    fn default() -> Self {
        Self {
            exchange: ExchangeLimits::default(),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// Moves a connector's connections to another local port.
#[derive(Clone)]
pub struct Connector {
    endpoint: Endpoint,
    mark: Option<u32>,
    runtime: Handle,
}

impl Connector {
    /// Goes on from a new local port: after a change of network. Connections migrate; their paths stay.
    ///
    /// # Errors
    /// The system's error.
    pub fn rebind(&self, local: SocketAddr) -> io::Result<()> {
        let socket = socket(local, self.mark)?;
        let _inside = self.runtime.enter();
        self.endpoint.rebind(socket)
    }
}

/// A transport that opens paths over QUIC from `local` (packets marked with `mark`, where given), as a TLS client of the server `name`. The ALPN of `tls` is
/// replaced by ours. Its tasks run on `runtime`; `waker` wakes the thread that owns the transport.
///
/// # Errors
/// The system's error; `InvalidInput` when `tls` cannot do QUIC (no TLS 1.3).
pub fn connector(
    local: SocketAddr,
    mark: Option<u32>,
    tls: rustls::ClientConfig,
    name: String,
    limits: QuicLimits,
    runtime: Handle,
    waker: Waker,
) -> io::Result<(Exchange, Connector)> {
    let mut tls = tls;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).map_err(invalid)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport_config(&limits)?);
    let endpoint = endpoint(local, mark, None, &runtime)?;
    let local = endpoint.local_addr()?;
    let dialling = endpoint.clone();
    let connector = Connector { endpoint, mark, runtime: runtime.clone() };
    let dial = move |link: Link| {
        let (endpoint, config, name) = (dialling.clone(), config.clone(), name.clone());
        runtime.spawn(async move {
            let reason = dial(&link, &endpoint, config, &name, &limits).await;
            link.close(reason);
        });
    };
    let exchange =
        Exchange::new(TransportKind::Quic, Some(local), limits.exchange, waker, Some(Box::new(dial)));
    Ok((exchange, connector))
}

/// A transport that accepts paths over QUIC at `address`. The ALPN of `tls` is replaced by ours.
///
/// # Errors
/// The system's error; `InvalidInput` when `tls` cannot do QUIC (no TLS 1.3).
pub fn listener(
    address: SocketAddr,
    tls: rustls::ServerConfig,
    limits: QuicLimits,
    runtime: &Handle,
    waker: Waker,
) -> io::Result<Exchange> {
    let mut tls = tls;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).map_err(invalid)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport_config(&limits)?);
    let endpoint = endpoint(address, None, Some(config), runtime)?;
    let local = endpoint.local_addr()?;
    let mut exchange = Exchange::new(TransportKind::Quic, Some(local), limits.exchange, waker, None);
    let task = runtime.spawn(accept(endpoint, limits, exchange.acceptor()));
    exchange.own(task.abort_handle());
    Ok(exchange)
}

fn endpoint(
    local: SocketAddr,
    mark: Option<u32>,
    config: Option<ServerConfig>,
    runtime: &Handle,
) -> io::Result<Endpoint> {
    let socket = socket(local, mark)?;
    let _inside = runtime.enter();
    Endpoint::new(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime))
}

fn socket(local: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    Ok(socket)
}

fn transport_config(limits: &QuicLimits) -> io::Result<Arc<TransportConfig>> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_send_buffer_size(SEND_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES))
        .initial_mtu(INITIAL_MTU)
        .max_idle_timeout(Some(limits.idle_timeout.try_into().map_err(invalid)?))
        .congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()));
    Ok(Arc::new(config))
}

async fn accept(endpoint: Endpoint, limits: QuicLimits, acceptor: Acceptor) {
    while let Some(incoming) = endpoint.accept().await {
        let peer = incoming.remote_address();
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // An address that has not proved itself gets a stateless token first, and costs nothing until it returns it.
        if !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        match acceptor.accept(peer, incoming.local_ip().map(|ip| ip.to_canonical())) {
            Some(link) => {
                tokio::spawn(serve(link, incoming, limits));
            }
            None => incoming.refuse(),
        }
    }
}

async fn serve(link: Link, incoming: Incoming, limits: QuicLimits) {
    let reason = match timeout(limits.connect_timeout, incoming).await {
        Ok(Ok(connection)) => exchange_datagrams(&link, &connection).await,
        Ok(Err(error)) => close_reason(&error),
        Err(_) => CloseReason::TimedOut,
    };
    link.close(reason);
}

async fn dial(
    link: &Link,
    endpoint: &Endpoint,
    config: ClientConfig,
    name: &str,
    limits: &QuicLimits,
) -> CloseReason {
    let Ok(connecting) = endpoint.connect_with(config, link.path().peer, name) else {
        return CloseReason::Unreachable;
    };
    let connected = tokio::select! {
        connected = timeout(limits.connect_timeout, connecting) => connected,
        () = link.close_requested() => return CloseReason::Requested,
    };
    match connected {
        Ok(Ok(connection)) => {
            link.opened();
            exchange_datagrams(link, &connection).await
        }
        Ok(Err(error)) => close_reason(&error),
        Err(_) => CloseReason::TimedOut,
    }
}

/// Carries datagrams until the connection ends, and says why it did.
async fn exchange_datagrams(link: &Link, connection: &Connection) -> CloseReason {
    let reason = tokio::select! {
        reason = read_datagrams(link, connection) => reason,
        reason = write_datagrams(link, connection) => reason,
        reason = watch(link, connection) => reason,
        () = link.close_requested() => CloseReason::Requested,
    };
    connection.close(VarInt::from_u32(0), b"");
    reason
}

async fn read_datagrams(link: &Link, connection: &Connection) -> CloseReason {
    loop {
        match connection.read_datagram().await {
            Ok(datagram) if datagram.len() > FRAME_LEN_MAX => return CloseReason::Protocol,
            Ok(datagram) => link.deliver_now(&datagram),
            Err(error) => return close_reason(&error),
        }
    }
}

async fn write_datagrams(link: &Link, connection: &Connection) -> CloseReason {
    loop {
        let frame = link.outgoing().await;
        let datagram = Bytes::copy_from_slice(frame.bytes());
        link.recycle(frame);
        match connection.send_datagram_wait(datagram).await {
            Ok(()) => {}
            // Longer than the path's MTU allows now: lost, as on any path, and counted.
            Err(SendDatagramError::TooLarge) => link.lost_outgoing(),
            Err(SendDatagramError::ConnectionLost(error)) => return close_reason(&error),
            Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => {
                return CloseReason::Protocol;
            }
        }
    }
}

/// Reports QUIC's round-trip time.
async fn watch(link: &Link, connection: &Connection) -> CloseReason {
    let mut tick = interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        link.note_rtt(connection.rtt(), Duration::ZERO);
    }
}

fn close_reason(error: &ConnectionError) -> CloseReason {
    match error {
        ConnectionError::LocallyClosed => CloseReason::Requested,
        ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => CloseReason::Peer,
        ConnectionError::ConnectionClosed(close) => {
            if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED {
                CloseReason::Refused
            } else {
                CloseReason::Peer
            }
        }
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::VersionMismatch | ConnectionError::TransportError(_) => CloseReason::Protocol,
        ConnectionError::CidsExhausted => CloseReason::Limit,
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
