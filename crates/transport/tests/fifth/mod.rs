//! A fifth transport, in one file and with nothing but the crate's public interface: length-prefixed frames over Unix
//! sockets. `docs/transports.md` shows it; the conformance suite runs over it.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self as unix};
use std::sync::atomic::{AtomicU16, Ordering};

use jump_transport::exchange::{Acceptor, Exchange, ExchangeLimits, Link};
use jump_transport::health::TransportKind;
use jump_transport::path::CloseReason;
use jump_transport::poll::Waker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;

/// Opens paths.
pub(super) fn connector(runtime: Handle, waker: Waker) -> Exchange {
    let dial = move |link: Link| {
        runtime.spawn(async move {
            let reason = match connect(link.path().peer) {
                Ok(stream) => {
                    link.opened();
                    carry(&link, stream).await
                }
                Err(_) => CloseReason::Unreachable,
            };
            link.close(reason);
        });
    };
    Exchange::new(TransportKind::Memory, None, ExchangeLimits::default(), waker, Some(Box::new(dial)))
}

/// Accepts paths, at an address of its own.
pub(super) fn listener(runtime: &Handle, waker: Waker) -> io::Result<Exchange> {
    static PORT: AtomicU16 = AtomicU16::new(1);
    let local = SocketAddr::from(([127, 0, 0, 1], PORT.fetch_add(1, Ordering::Relaxed)));
    let socket = unix::UnixListener::bind_addr(&name(local)?)?;
    socket.set_nonblocking(true)?;
    let _inside = runtime.enter();
    let listener = UnixListener::from_std(socket)?;
    let limits = ExchangeLimits::default();
    let mut exchange = Exchange::new(TransportKind::Memory, Some(local), limits, waker, None);
    let task = runtime.spawn(accept(listener, local, exchange.acceptor()));
    exchange.own(task.abort_handle());
    Ok(exchange)
}

async fn accept(listener: UnixListener, local: SocketAddr, acceptor: Acceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let Some(link) = acceptor.accept(local, Some(local.ip())) else { continue };
        tokio::spawn(async move {
            let reason = carry(&link, stream).await;
            link.close(reason);
        });
    }
}

fn name(address: SocketAddr) -> io::Result<unix::SocketAddr> {
    let name = format!("jump-fifth-{}-{}", std::process::id(), address.port());
    unix::SocketAddr::from_abstract_name(name)
}

fn connect(address: SocketAddr) -> io::Result<UnixStream> {
    let stream = unix::UnixStream::connect_addr(&name(address)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Carries one connection to its end.
async fn carry(link: &Link, stream: UnixStream) -> CloseReason {
    let (mut reader, mut writer) = stream.into_split();
    let receive = async {
        let mut datagram = Vec::new();
        while let Ok(len) = reader.read_u16().await {
            datagram.resize(usize::from(len), 0);
            if reader.read_exact(&mut datagram).await.is_err() {
                break;
            }
            link.deliver(&datagram).await;
        }
    };
    let send = async {
        loop {
            let frame = link.outgoing().await;
            let len = u16::try_from(frame.bytes().len()).expect("a frame is at most 4096 bytes");
            let sent = async {
                writer.write_u16(len).await?;
                writer.write_all(frame.bytes()).await
            };
            if sent.await.is_err() {
                break;
            }
            link.recycle(frame);
        }
    };
    tokio::select! {
        () = receive => CloseReason::Peer,
        () = send => CloseReason::Peer,
        () = link.close_requested() => CloseReason::Requested,
    }
}
