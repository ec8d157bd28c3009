//! Settings of the sinks: `[[audit.sinks]]` tables, told apart by `kind`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// One `[[audit.sinks]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SinkConfig {
    /// A file, rotated by size.
    File(FileConfig),
    /// Syslog, RFC 5424.
    Syslog(SyslogConfig),
    /// OpenTelemetry logs over gRPC.
    Otlp(OtlpConfig),
    /// Batches over HTTP.
    Http(HttpConfig),
}

impl SinkConfig {
    /// Returns the sink's name.
    pub fn name(&self) -> &str {
        match self {
            Self::File(config) => &config.name,
            Self::Syslog(config) => &config.name,
            Self::Otlp(config) => &config.name,
            Self::Http(config) => &config.name,
        }
    }

    /// Returns the bounds of the sink's queue.
    pub fn queue(&self) -> QueueConfig {
        match self {
            Self::File(config) => config.queue,
            Self::Syslog(config) => config.queue,
            Self::Otlp(config) => config.queue,
            Self::Http(config) => config.queue,
        }
    }
}

/// The bounds of a sink's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// The longest queue, in events.
    pub events_max: usize,
    /// The longest queue, in bytes.
    pub bytes_max: usize,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { events_max: 16_384, bytes_max: 32 << 20 }
    }
}

/// A file, rotated by size: `path`, `path.1`, … `path.N`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The sink's name: 1 to 32 characters of `a-z`, `0-9` and `-`.
    pub name: String,
    /// The file. Created with mode 0640; its directory must exist.
    pub path: PathBuf,
    /// Rotate before the file grows past this, in bytes.
    #[serde(default = "rotate_bytes")]
    pub rotate_bytes: u64,
    /// How many rotated files to keep.
    #[serde(default = "keep_files")]
    pub keep_files: u32,
    /// The bounds of the queue.
    #[serde(default)]
    pub queue: QueueConfig,
}

impl FileConfig {
    /// A file with the default bounds.
    pub fn new(name: &str, path: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            path,
            rotate_bytes: rotate_bytes(),
            keep_files: keep_files(),
            queue: QueueConfig::default(),
        }
    }
}

/// How syslog messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyslogTransport {
    /// One datagram per message (RFC 5426). Nothing tells whether it arrives.
    Udp,
    /// Octet-counted frames (RFC 6587 §3.4.1).
    Tcp,
    /// Octet-counted frames over TLS (RFC 5425).
    Tls,
}

/// Syslog, RFC 5424.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyslogConfig {
    /// The sink's name.
    pub name: String,
    /// How messages travel.
    pub transport: SyslogTransport,
    /// The receiver, `host:port`.
    pub address: String,
    /// The facility number, 0 to 23; 13 is "log audit".
    #[serde(default = "facility")]
    pub facility: u8,
    /// Needed for, and only for, the transport `tls`.
    pub tls: Option<TlsConfig>,
    /// How long connecting or one write may take.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// The bounds of the queue.
    #[serde(default)]
    pub queue: QueueConfig,
}

/// OpenTelemetry logs over gRPC (OTLP).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpConfig {
    /// The sink's name.
    pub name: String,
    /// The collector: `http://host:4317`, or `https://…` with `tls`.
    pub endpoint: String,
    /// Needed for, and only for, an `https` endpoint.
    pub tls: Option<TlsConfig>,
    /// The most events in one request.
    #[serde(default = "batch_events_max")]
    pub batch_events_max: usize,
    /// How long an event may wait for company.
    #[serde(default = "batch_wait", with = "humantime_serde")]
    pub batch_wait: Duration,
    /// How long one request may take.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// The bounds of the queue.
    #[serde(default)]
    pub queue: QueueConfig,
}

/// Batches of newline-delimited JSON, one POST each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// The sink's name.
    pub name: String,
    /// The collector's URL, `http` or `https`.
    pub url: String,
    /// A file that holds the `Authorization` header's value, for example `Bearer …`; read anew for each connection.
    pub authorization_file: Option<PathBuf>,
    /// Needed for, and only for, an `https` URL.
    pub tls: Option<TlsConfig>,
    /// The most events in one request.
    #[serde(default = "batch_events_max")]
    pub batch_events_max: usize,
    /// How long an event may wait for company.
    #[serde(default = "batch_wait", with = "humantime_serde")]
    pub batch_wait: Duration,
    /// How long connecting or one request may take.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// Where batches wait while the collector does not answer; without it they wait in the queue.
    pub spool: Option<SpoolConfig>,
    /// The bounds of the queue.
    #[serde(default)]
    pub queue: QueueConfig,
}

/// A bounded spool on disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolConfig {
    /// The directory, for this sink alone; created if missing. What an earlier run left there is delivered first.
    pub directory: PathBuf,
    /// The most bytes on disk. A batch that finds it full is dropped and counted.
    #[serde(default = "spool_bytes_max")]
    pub bytes_max: u64,
}

/// Who the receiver must be, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificates of the authorities to trust, PEM. No others are trusted.
    pub ca_file: PathBuf,
    /// The name in the receiver's certificate; the host of the address if missing.
    pub server_name: Option<String>,
    /// Our certificate, PEM, if the receiver asks for one.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

fn rotate_bytes() -> u64 {
    64 << 20
}

fn keep_files() -> u32 {
    8
}

fn facility() -> u8 {
    13
}

fn timeout() -> Duration {
    Duration::from_secs(10)
}

fn batch_events_max() -> usize {
    512
}

fn batch_wait() -> Duration {
    Duration::from_millis(200)
}

fn spool_bytes_max() -> u64 {
    256 << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Page {
        sinks: Vec<SinkConfig>,
    }

    #[test]
    fn every_kind_reads_from_toml_and_an_unknown_key_is_refused() {
        let text = r#"
            [[sinks]]
            kind = "file"
            name = "disk"
            path = "/var/log/jump/audit.json"

            [[sinks]]
            kind = "syslog"
            name = "siem"
            transport = "tls"
            address = "siem.example:6514"
            timeout = "3s"
            tls = { ca_file = "/etc/jump/siem-ca.pem" }

            [[sinks]]
            kind = "otlp"
            name = "collector"
            endpoint = "http://127.0.0.1:4317"
            queue = { events_max = 100 }

            [[sinks]]
            kind = "http"
            name = "lake"
            url = "https://lake.example/ingest"
            spool = { directory = "/var/lib/jump/spool" }
        "#;
        let page: Page = toml::from_str(text).expect("valid");
        let names: Vec<_> = page.sinks.iter().map(SinkConfig::name).collect();
        assert_eq!(names, ["disk", "siem", "collector", "lake"]);
        assert_eq!(page.sinks[2].queue(), QueueConfig { events_max: 100, ..QueueConfig::default() });
        let error = toml::from_str::<Page>(&text.replace("path =", "paht =")).expect_err("a typing error");
        assert!(error.to_string().contains("paht"), "{error}");
    }
}
