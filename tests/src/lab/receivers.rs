//! Receivers of audit events that fail, each in its own way, and the sinks that send to them.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::network::Host;

/// How receivers fail, each at its port: one never reads, one refuses, one dies in the middle of each batch.
const WAYS: [(&str, u16); 3] = [("stalled", 6601), ("refused", 6602), ("killed", 6603)];
/// The sinks that leave the machine, with where each sends to.
const KINDS: [(&str, &str); 3] = [
    ("syslog", "transport = \"tcp\"\naddress = \"127.0.0.1:PORT\""),
    ("otlp", "endpoint = \"http://127.0.0.1:PORT\""),
    ("http", "url = \"http://127.0.0.1:PORT/ingest\""),
];

/// The names of the sinks of [`broken`]: `stalled-syslog` and so on.
pub fn broken_sinks() -> impl Iterator<Item = String> {
    WAYS.iter().flat_map(|(way, _)| KINDS.iter().map(move |(kind, _)| format!("{way}-{kind}")))
}

/// Settings (TOML) with a sink of every kind for every way in which a receiver fails.
pub fn broken() -> String {
    let mut settings = String::from("\n[audit]\nqueue_events_max = 4096\n");
    for ((way, port), (kind, to)) in WAYS.iter().flat_map(|way| KINDS.iter().map(move |kind| (way, kind))) {
        let to = to.replace("PORT", &port.to_string());
        settings += &format!(
            "[[audit.sinks]]\nkind = \"{kind}\"\nname = \"{way}-{kind}\"\n{to}\nqueue = {{ events_max = 16 }}\n"
        );
    }
    settings
}

/// The receivers for [`broken`] inside one host.
#[derive(Debug)]
pub struct Receivers {
    _stalled: TcpListener,
}

impl Receivers {
    /// Starts them.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(host: &Host) -> Result<Self> {
        let bind = |port: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            host.namespace
                .enter(|| TcpListener::bind(address))?
                .with_context(|| format!("listening on {address}"))
        };
        // The kernel accepts, nobody reads. Connections get small segments and buffers from it, so that they stand still after
        // some hundred events and not after the megabytes that loopback would take.
        let address = SocketAddr::from(([127, 0, 0, 1], WAYS[0].1));
        let stalled = host
            .namespace
            .enter(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.set_recv_buffer_size(4096)?;
                socket.set_tcp_mss(536)?;
                socket.bind(&address.into())?;
                socket.listen(128)?;
                std::io::Result::Ok(TcpListener::from(socket))
            })?
            .with_context(|| format!("listening on {address}"))?;
        let killed = bind(WAYS[2].1)?;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = killed.accept() {
                let _ = stream.read(&mut [0; 100]);
            }
        });
        Ok(Self { _stalled: stalled })
    }
}
