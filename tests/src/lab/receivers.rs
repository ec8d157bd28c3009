//! Receivers of audit events that fail, each in its own way, and the sinks that send to them.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

use super::network::Host;

/// Sinks (TOML) to a receiver that never reads, one that refuses, and one that dies in the middle of each batch.
pub const BROKEN: &str = r#"
[audit]
queue_events_max = 4096
[[audit.sinks]]
kind = "syslog"
name = "stalled"
transport = "tcp"
address = "127.0.0.1:6601"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "otlp"
name = "refused"
endpoint = "http://127.0.0.1:6602"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "syslog"
name = "killed"
transport = "tcp"
address = "127.0.0.1:6603"
queue = { events_max = 16 }
"#;

/// The receivers for [`BROKEN`] inside one host.
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
        // The kernel accepts, nobody reads.
        let stalled = bind(6601)?;
        let killed = bind(6603)?;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = killed.accept() {
                let _ = stream.read(&mut [0; 100]);
            }
        });
        Ok(Self { _stalled: stalled })
    }
}
