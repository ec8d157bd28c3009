//! The TCP adapter: datagrams as frames of a 16-bit big-endian length and that many bytes, with TLS or without.
//!
//! For networks that let nothing else through. A stream that stalls holds back what was already written to it, so as
//! little as possible is: the kernel takes only what it can send soon, the rest waits in the path's queue, where the
//! oldest datagram goes first. Whoever connects must send something within [`TcpLimits::first_datagram_timeout`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{interval, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};

use crate::clock::boottime_nanos;
use crate::exchange::{Acceptor, Exchange, ExchangeLimits, FRAME_LEN_MAX, Link};
use crate::health::TransportKind;
use crate::path::CloseReason;
use crate::poll::Waker;
use crate::sys;

/// Bytes of frames collected for one write, and asked for by one read.
const BLOCK_LEN: usize = 32 * 1024;
/// Bytes that the kernel may hold unsent before we write no more (`TCP_NOTSENT_LOWAT`).
const UNSENT_BYTES_MAX: i32 = 64 * 1024;
/// Longest wait for the end of a connection to be sent.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Length of a frame's length.
const PREFIX_LEN: usize = 2;

/// Bounds of TCP paths.
#[derive(Debug, Clone, Copy)]
pub struct TcpLimits {
    /// Connections and queues.
    pub exchange: ExchangeLimits,
    /// A connection, TLS included, takes at most this long to make.
    pub connect_timeout: Duration,
    /// A peer that connected and sends no datagram for this long is cut off.
    pub first_datagram_timeout: Duration,
    /// A connection over which nothing comes for this long is closed.
    pub idle_timeout: Duration,
    /// A connection whose data the peer does not acknowledge for this long is broken.
    pub unacknowledged_timeout: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            exchange: ExchangeLimits::default(),
            connect_timeout: Duration::from_secs(5),
            first_datagram_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(120),
            unacknowledged_timeout: Duration::from_secs(20),
        }
    }
}

/// How a client connects.
#[derive(Clone, Default)]
pub struct TcpConnectOptions {
    /// Wraps the stream in TLS, as a client of the named server.
    pub tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    /// Marks outgoing packets (`SO_MARK`).
    pub mark: Option<u32>,
    /// Bounds.
    pub limits: TcpLimits,
}

/// A transport that opens paths over TCP. Its tasks run on `runtime`; `waker` wakes the thread that owns the transport.
pub fn connector(options: TcpConnectOptions, runtime: Handle, waker: Waker) -> Exchange {
    let limits = options.limits.exchange;
    let dial = move |link: Link| {
        let options = options.clone();
        runtime.spawn(async move {
            let reason = dial(&link, &options).await;
            link.close(reason);
        });
    };
    Exchange::new(TransportKind::Tcp, None, limits, waker, Some(Box::new(dial)))
}

/// A transport that accepts paths over TCP at `address`, with TLS when `tls` is given.
///
/// # Errors
/// The system's error.
pub fn listener(
    address: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: TcpLimits,
    runtime: &Handle,
    waker: Waker,
) -> io::Result<Exchange> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let _inside = runtime.enter();
    let listener = socket.listen(1024)?;
    let local = listener.local_addr()?;
    let mut exchange = Exchange::new(TransportKind::Tcp, Some(local), limits.exchange, waker, None);
    let task = runtime.spawn(accept(listener, tls.map(TlsAcceptor::from), limits, exchange.acceptor()));
    exchange.own(task.abort_handle());
    Ok(exchange)
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, limits: TcpLimits, acceptor: Acceptor) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most often too many open files: others must close before more can be accepted.
                tracing::warn!(%error, "cannot accept a TCP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let local = stream.local_addr().ok().map(|a| a.ip().to_canonical());
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(link) = acceptor.accept(peer, local) else { continue };
        tokio::spawn(serve(link, stream, tls.clone(), limits));
    }
}

async fn serve(link: Link, stream: TcpStream, tls: Option<TlsAcceptor>, limits: TcpLimits) {
    set_options(&stream, &limits);
    let Ok(control) = stream.as_fd().try_clone_to_owned() else {
        return link.close(CloseReason::Limit);
    };
    let Some(tls) = tls else {
        let reason = exchange_frames(&link, stream, &control, &limits, true).await;
        return link.close(reason);
    };
    let reason = match timeout(limits.connect_timeout, tls.accept(stream)).await {
        Ok(Ok(stream)) => exchange_frames(&link, stream, &control, &limits, true).await,
        Ok(Err(_)) => CloseReason::Protocol,
        Err(_) => CloseReason::TimedOut,
    };
    link.close(reason);
}

async fn dial(link: &Link, options: &TcpConnectOptions) -> CloseReason {
    let limits = &options.limits;
    let connecting = async {
        let stream = connect(link.path().peer, options.mark).await.map_err(|e| close_reason(&e))?;
        set_options(&stream, limits);
        let control = stream.as_fd().try_clone_to_owned().map_err(|_| CloseReason::Limit)?;
        let Some((config, name)) = &options.tls else {
            return Ok((Either::Plain(stream), control));
        };
        let connector = TlsConnector::from(Arc::clone(config));
        match connector.connect(name.clone(), stream).await {
            Ok(stream) => Ok((Either::Tls(Box::new(stream)), control)),
            Err(_) => Err(CloseReason::Protocol),
        }
    };
    let connected = tokio::select! {
        connected = timeout(limits.connect_timeout, connecting) => connected,
        () = link.close_requested() => return CloseReason::Requested,
    };
    let (stream, control) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(reason)) => return reason,
        Err(_) => return CloseReason::TimedOut,
    };
    link.opened();
    match stream {
        Either::Plain(stream) => exchange_frames(link, stream, &control, limits, false).await,
        Either::Tls(stream) => exchange_frames(link, stream, &control, limits, false).await,
    }
}

enum Either {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn connect(peer: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(peer).await
}

/// Best effort: a kernel without one of these still carries the stream.
fn set_options(stream: &TcpStream, limits: &TcpLimits) {
    let _ = stream.set_nodelay(true);
    let fd = stream.as_fd();
    let unacknowledged = i32::try_from(limits.unacknowledged_timeout.as_millis()).unwrap_or(i32::MAX);
    let _ = sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, unacknowledged);
    let _ = sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX);
}

/// Carries frames until the connection ends, and says why it did.
async fn exchange_frames<S: AsyncRead + AsyncWrite>(
    link: &Link,
    stream: S,
    control: &impl AsFd,
    limits: &TcpLimits,
    wants_first: bool,
) -> CloseReason {
    let (reader, mut writer) = tokio::io::split(stream);
    let reason = tokio::select! {
        reason = read_frames(link, reader) => reason,
        reason = write_frames(link, &mut writer) => reason,
        reason = watch(link, control, limits, wants_first) => reason,
        () = link.close_requested() => CloseReason::Requested,
    };
    // Says goodbye (to TLS, that nothing was cut off), unless the peer no longer listens.
    let _ = timeout(GOODBYE_TIMEOUT, writer.shutdown()).await;
    reason
}

async fn read_frames(link: &Link, mut reader: impl AsyncRead + Unpin) -> CloseReason {
    let mut buffer = vec![0; BLOCK_LEN + PREFIX_LEN + FRAME_LEN_MAX].into_boxed_slice();
    let mut filled = 0;
    loop {
        match reader.read(&mut buffer[filled..]).await {
            Ok(0) => return CloseReason::Peer,
            Ok(len) => filled += len,
            Err(error) => return close_reason(&error),
        }
        let mut rest = &buffer[..filled];
        loop {
            match next_frame(rest) {
                Ok(Some((frame, after))) => {
                    link.deliver(frame).await;
                    rest = after;
                }
                Ok(None) => break,
                Err(TooLong) => return CloseReason::Protocol,
            }
        }
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
    }
}

/// The peer announced a frame longer than any datagram.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

type FrameAndRest<'a> = (&'a [u8], &'a [u8]);

/// The first frame and what follows it; `None` while it is incomplete.
fn next_frame(bytes: &[u8]) -> Result<Option<FrameAndRest<'_>>, TooLong> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes(*prefix));
    if len > FRAME_LEN_MAX {
        return Err(TooLong);
    }
    Ok(rest.split_at_checked(len))
}

async fn write_frames(link: &Link, writer: &mut (impl AsyncWrite + Unpin)) -> CloseReason {
    let mut block = Vec::with_capacity(BLOCK_LEN + PREFIX_LEN + FRAME_LEN_MAX);
    loop {
        let mut next = Some(link.outgoing().await);
        while let Some(frame) = next {
            let len = u16::try_from(frame.bytes().len()).expect("a frame is at most 4096 bytes");
            block.extend_from_slice(&len.to_be_bytes());
            block.extend_from_slice(frame.bytes());
            link.recycle(frame);
            next = if block.len() < BLOCK_LEN { link.try_outgoing() } else { None };
        }
        let written = async {
            writer.write_all(&block).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return close_reason(&error);
        }
        block.clear();
    }
}

/// Ends a silent connection, and reports the kernel's round-trip time meanwhile.
async fn watch(link: &Link, control: &impl AsFd, limits: &TcpLimits, wants_first: bool) -> CloseReason {
    let start = boottime_nanos();
    let mut tick = interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        if let Ok((rtt, rtt_var)) = sys::tcp_rtt(control.as_fd()) {
            link.note_rtt(rtt, rtt_var);
        }
        let (since, limit) = match link.received_at_nanos() {
            0 if wants_first => (start, limits.first_datagram_timeout),
            0 => (start, limits.idle_timeout),
            last => (last, limits.idle_timeout),
        };
        if Duration::from_nanos(boottime_nanos().saturating_sub(since)) > limit {
            return CloseReason::TimedOut;
        }
    }
}

fn close_reason(error: &io::Error) -> CloseReason {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        CloseReason::Refused
    } else if error.kind() == io::ErrorKind::TimedOut {
        CloseReason::TimedOut
    } else if matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
    ) {
        CloseReason::Peer
    } else if error.kind() == io::ErrorKind::InvalidData {
        CloseReason::Protocol
    } else {
        CloseReason::Unreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_complete_only_with_its_last_byte() {
        assert_eq!(next_frame(&[]), Ok(None));
        assert_eq!(next_frame(&[0]), Ok(None));
        assert_eq!(next_frame(&[0, 2, 7]), Ok(None));
        assert_eq!(next_frame(&[0, 2, 7, 8, 9]), Ok(Some((&[7, 8][..], &[9][..]))));
        assert_eq!(next_frame(&[0, 0, 1]), Ok(Some((&[][..], &[1][..]))));
        assert_eq!(next_frame(&[0x10, 0x01]), Err(TooLong));
        assert_eq!(next_frame(&[0xff, 0xff]), Err(TooLong));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_frames_or_refused_and_nothing_is_skipped(bytes in proptest::collection::vec(0u8..20, 0..300)) {
            let mut rest = &bytes[..];
            let mut seen = 0;
            while let Ok(Some((frame, after))) = next_frame(rest) {
                seen += PREFIX_LEN + frame.len();
                rest = after;
            }
            proptest::prop_assert_eq!(seen + rest.len(), bytes.len());
        }
    }
}
