//! Receivers of audit events that fail, each in its own way, and the sinks that send to them.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

use super::network::Host;

/// Sinks (TOML) of every kind that leaves the machine to a receiver that never reads, one that refuses, and one that dies
/// in the middle of each batch.
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
name = "stalled-otlp"
endpoint = "http://127.0.0.1:6601"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "http"
name = "stalled-http"
url = "http://127.0.0.1:6601/ingest"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "syslog"
name = "refused-syslog"
transport = "tcp"
address = "127.0.0.1:6602"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "otlp"
name = "refused"
endpoint = "http://127.0.0.1:6602"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "http"
name = "refused-http"
url = "http://127.0.0.1:6602/ingest"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "syslog"
name = "killed"
transport = "tcp"
address = "127.0.0.1:6603"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "otlp"
name = "killed-otlp"
endpoint = "http://127.0.0.1:6603"
queue = { events_max = 16 }
[[audit.sinks]]
kind = "http"
name = "killed-http"
url = "http://127.0.0.1:6603/ingest"
queue = { events_max = 16 }
"#;

/// The names of the sinks of [`BROKEN`].
pub const BROKEN_SINKS: [&str; 9] = [
    "stalled",
    "stalled-otlp",
    "stalled-http",
    "refused-syslog",
    "refused",
    "refused-http",
    "killed",
    "killed-otlp",
    "killed-http",
];

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
