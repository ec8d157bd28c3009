//! Syslog: RFC 5424 messages over UDP (RFC 5426), TCP (RFC 6587, octet-counted) and TLS (RFC 5425).
//!
//! Syslog acknowledges nothing: an event counts as sent once the operating system took it.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::UdpSocket;

use super::config::{SyslogConfig, SyslogTransport};
use super::net::{Connector, Stream};
use super::worker::{Deliver, Verdict};
use super::{Record, SinkError};
use crate::audit::Identity;

const BATCH_EVENTS_MAX: usize = 64;

const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Sends each event as one message.
#[derive(Debug)]
pub(super) struct SyslogSink {
    config: SyslogConfig,
    /// Everything between the timestamp and the message id.
    sender: String,
    version: String,
    connector: Connector,
    link: Link,
    message: String,
}

enum Link {
    Down,
    Udp(UdpSocket),
    Stream(Box<dyn Stream>),
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Down => "Down",
            Self::Udp(_) => "Udp",
            Self::Stream(_) => "Stream",
        })
    }
}

impl SyslogSink {
    pub(super) fn new(config: SyslogConfig, identity: &Identity) -> Result<Self, SinkError> {
        if config.facility > 23 {
            let problem = format!("{} is not 0 to 23", config.facility);
            return Err(SinkError::Setting { setting: "facility", problem });
        }
        if config.tls.is_some() != (config.transport == SyslogTransport::Tls) {
            let problem = "needed for, and only for, transport = \"tls\"".to_owned();
            return Err(SinkError::Setting { setting: "tls", problem });
        }
        let connector = Connector::new(&config.address, config.tls.as_ref())?;
        let host = if identity.node.is_empty() { "-".to_owned() } else { printable(&identity.node, 255) };
        let sender = format!(
            "{host} {} {}",
            printable(&format!("jump-{}", identity.component), 48),
            std::process::id()
        );
        Ok(Self {
            config,
            sender,
            version: printable(&identity.version, 32),
            connector,
            link: Link::Down,
            message: String::new(),
        })
    }

    /// Writes the RFC 5424 form of the event into `self.message`.
    fn format(&mut self, record: &Record) {
        let priority = u16::from(self.config.facility) * 8 + u16::from(record.definition.severity.syslog());
        let timestamp = OffsetDateTime::from(record.time).format(TIMESTAMP).unwrap_or_else(|_| "-".into());
        // RFC 5424 §7.3.1: from 1 to 2147483647, then again from 1.
        let sequence = (record.sequence - 1) % 2_147_483_647 + 1;
        self.message.clear();
        let _ = write!(
            self.message,
            "<{priority}>1 {timestamp} {} {} [origin software=\"jumping-vpn\" swVersion=\"{}\"][meta sequenceId=\"{sequence}\"] {}",
            self.sender, record.definition.name, self.version, record.json,
        );
    }

    async fn send(&mut self, record: &Record) -> std::io::Result<()> {
        if matches!(self.link, Link::Down) {
            self.link = self.connect().await?;
        }
        self.format(record);
        match &mut self.link {
            Link::Down => Err(std::io::ErrorKind::NotConnected.into()),
            Link::Udp(socket) => socket.send(self.message.as_bytes()).await.map(drop),
            Link::Stream(stream) => {
                closed_by_peer(stream).await?;
                let frame = format!("{} {}", self.message.len(), self.message);
                stream.write_all(frame.as_bytes()).await?;
                stream.flush().await
            }
        }
    }

    async fn connect(&self) -> std::io::Result<Link> {
        if self.config.transport != SyslogTransport::Udp {
            return self.connector.connect().await.map(Link::Stream);
        }
        let address = tokio::net::lookup_host(&self.config.address)
            .await?
            .next()
            .ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(local).await?;
        socket.connect(address).await?;
        Ok(Link::Udp(socket))
    }
}

impl Deliver for SyslogSink {
    fn batch(&self) -> (usize, Duration) {
        (BATCH_EVENTS_MAX, Duration::ZERO)
    }

    async fn deliver(&mut self, batch: &[Arc<Record>]) -> Verdict {
        for (sent, record) in batch.iter().enumerate() {
            let timeout = self.config.timeout;
            let result = tokio::time::timeout(timeout, self.send(record)).await;
            let cause = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no progress within {timeout:?}"),
            };
            // Half a frame may be out: only a new connection starts clean.
            self.link = Link::Down;
            return Verdict::Retry { sent, after: None, cause };
        }
        Verdict::Sent { rejected: 0 }
    }
}

/// Notices a connection that the receiver closed while it was idle: the first write would still succeed, and be lost.
async fn closed_by_peer(stream: &mut Box<dyn Stream>) -> std::io::Result<()> {
    let mut ignored = [0; 256];
    loop {
        let read = std::future::poll_fn(|context| {
            let mut buffer = tokio::io::ReadBuf::new(&mut ignored);
            match std::pin::Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                std::task::Poll::Ready(Ok(())) => std::task::Poll::Ready(Ok(Some(buffer.filled().len()))),
                std::task::Poll::Ready(Err(error)) => std::task::Poll::Ready(Err(error)),
                std::task::Poll::Pending => std::task::Poll::Ready(Ok(None)),
            }
        });
        match read.await? {
            None => return Ok(()),
            Some(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
    }
}

/// Keeps printable ASCII without spaces, as header fields need; `-` for nothing.
fn printable(text: &str, length_max: usize) -> String {
    let kept: String =
        text.chars().filter(|c| c.is_ascii_graphic() && !"\"\\]".contains(*c)).take(length_max).collect();
    if kept.is_empty() { "-".into() } else { kept }
}
