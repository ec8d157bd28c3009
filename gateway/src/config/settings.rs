//! Where settings come from: one table of names for flags, environment and file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jump_telemetry::settings::{Observability, Overrides};

/// The settings as flags; each can be given as an environment variable too, or in the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file (TOML); flags and environment override it
    #[arg(long, env = "JUMP_GATEWAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// The node's name, unique in the cluster
    #[arg(long, env = "JUMP_GATEWAY_NODE", value_name = "VALUE")]
    pub node: Option<String>,
    /// UDP address for clients [default: 0.0.0.0:51820]
    #[arg(long, env = "JUMP_GATEWAY_LISTEN", value_name = "VALUE")]
    pub listen: Option<String>,
    /// Addresses at which clients reach this node, comma-separated [default: the listen address]
    #[arg(long, env = "JUMP_GATEWAY_ADVERTISE", value_name = "VALUE")]
    pub advertise: Option<String>,
    /// TCP address for clients whose network blocks UDP, or off [default: the listen address]
    #[arg(long, env = "JUMP_GATEWAY_TRANSPORTS_TCP", value_name = "VALUE")]
    pub transports_tcp: Option<String>,
    /// Port at which clients find it [default: its own]
    #[arg(long, env = "JUMP_GATEWAY_TRANSPORTS_TCP_PORT", value_name = "VALUE")]
    pub transports_tcp_port: Option<String>,
    /// The same inside TLS, for networks that let only that through, or off [default: off]
    #[arg(long, env = "JUMP_GATEWAY_TRANSPORTS_TLS", value_name = "VALUE")]
    pub transports_tls: Option<String>,
    /// Port at which clients find it [default: its own]
    #[arg(long, env = "JUMP_GATEWAY_TRANSPORTS_TLS_PORT", value_name = "VALUE")]
    pub transports_tls_port: Option<String>,
    /// QUIC address (UDP) for clients, or off [default: the listen address, its port plus two]
    #[arg(long, env = "JUMP_GATEWAY_TRANSPORTS_QUIC", value_name = "VALUE")]
    pub transports_quic: Option<String>,
    /// Port at which clients find it [default: its own]
    #[arg(long, env = "JUMP_GATEWAY_TRANSPORTS_QUIC_PORT", value_name = "VALUE")]
    pub transports_quic_port: Option<String>,
    /// UDP address for other gateways [default: 0.0.0.0:51821]
    #[arg(long, env = "JUMP_GATEWAY_MESH_LISTEN", value_name = "VALUE")]
    pub mesh_listen: Option<String>,
    /// Address at which other gateways reach this node [default: the mesh listen address]
    #[arg(long, env = "JUMP_GATEWAY_MESH_ADVERTISE", value_name = "VALUE")]
    pub mesh_advertise: Option<String>,
    /// HTTP address of /metrics, /healthz and /readyz, and for this machine alone /sessions [default: 127.0.0.1:9090]
    #[arg(long, env = "JUMP_GATEWAY_METRICS_LISTEN", value_name = "VALUE")]
    pub metrics_listen: Option<String>,
    /// Control replicas such as https://control:7443, comma-separated
    #[arg(long, env = "JUMP_GATEWAY_CONTROL", value_name = "VALUE")]
    pub control: Option<String>,
    /// PEM file of the CA that control's certificates chain to
    #[arg(long, env = "JUMP_GATEWAY_TLS_CA", value_name = "VALUE")]
    pub tls_ca: Option<String>,
    /// PEM file of this node's certificate
    #[arg(long, env = "JUMP_GATEWAY_TLS_CERTIFICATE", value_name = "VALUE")]
    pub tls_certificate: Option<String>,
    /// PEM file of this node's private key
    #[arg(long, env = "JUMP_GATEWAY_TLS_KEY", value_name = "VALUE")]
    pub tls_key: Option<String>,
    /// Name of the TUN interface [default: jump0]
    #[arg(long, env = "JUMP_GATEWAY_TUN_NAME", value_name = "VALUE")]
    pub tun_name: Option<String>,
    /// Addresses of the TUN interface with prefix length, comma-separated [default: none]
    #[arg(long, env = "JUMP_GATEWAY_TUN_ADDRESSES", value_name = "VALUE")]
    pub tun_addresses: Option<String>,
    /// Largest inner packet that path MTU discovery may find, in bytes [default: 1360]
    #[arg(long, env = "JUMP_GATEWAY_TUN_MTU", value_name = "VALUE")]
    pub tun_mtu: Option<String>,
    /// Segmentation offload of the TUN interface [default: true]
    #[arg(long, env = "JUMP_GATEWAY_TUN_OFFLOAD", value_name = "VALUE")]
    pub tun_offload: Option<String>,
    /// Route the inner pools to the TUN interface [default: true]
    #[arg(long, env = "JUMP_GATEWAY_TUN_ROUTES", value_name = "VALUE")]
    pub tun_routes: Option<String>,
    /// Time between renewals of the node's lease [default: as control says]
    #[arg(long, env = "JUMP_GATEWAY_LEASE_RENEW_INTERVAL", value_name = "VALUE")]
    pub lease_renew_interval: Option<String>,
    /// How long before the lease's end forwarding stops [default: as control says]
    #[arg(long, env = "JUMP_GATEWAY_LEASE_GUARD_MARGIN", value_name = "VALUE")]
    pub lease_guard_margin: Option<String>,
    /// Silence after which the worker is killed [default: 1s]
    #[arg(long, env = "JUMP_GATEWAY_SUPERVISOR_HEARTBEAT_TIMEOUT", value_name = "VALUE")]
    pub supervisor_heartbeat_timeout: Option<String>,
    /// How long sessions may take to move away on SIGTERM [default: 10s]
    #[arg(long, env = "JUMP_GATEWAY_DRAIN_DEADLINE", value_name = "VALUE")]
    pub drain_deadline: Option<String>,
    /// How long packets are still relayed once all sessions have moved [default: 500ms]
    #[arg(long, env = "JUMP_GATEWAY_DRAIN_LINGER", value_name = "VALUE")]
    pub drain_linger: Option<String>,
    /// Whether connections that this gateway translates go on through it when their session moves; for masquerading
    /// gateways, the same on all of them [default: false]
    #[arg(long, env = "JUMP_GATEWAY_EGRESS_ANCHORED", value_name = "VALUE")]
    pub egress_anchored: Option<String>,
    /// How long a gateway that was told to end waits for the end of such connections [default: 20s]
    #[arg(long, env = "JUMP_GATEWAY_EGRESS_HOLD", value_name = "VALUE")]
    pub egress_hold: Option<String>,
    /// Unconfirmed handshakes kept [default: 4096]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_HANDSHAKES_MAX", value_name = "VALUE")]
    pub limits_handshakes_max: Option<String>,
    /// Confirmed handshakes that may wait for control [default: 1024]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_CLAIMS_MAX", value_name = "VALUE")]
    pub limits_claims_max: Option<String>,
    /// Sessions carried here [default: 100000]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_SESSIONS_MAX", value_name = "VALUE")]
    pub limits_sessions_max: Option<String>,
    /// First messages per second and source prefix [default: 500]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_ATTACH_PER_SECOND", value_name = "VALUE")]
    pub limits_attach_per_second: Option<String>,
    /// First messages at once per source prefix [default: 1000]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_ATTACH_BURST", value_name = "VALUE")]
    pub limits_attach_burst: Option<String>,
    /// First messages per second above which cookies are asked for [default: 1000]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_COOKIE_ABOVE_PER_SECOND", value_name = "VALUE")]
    pub limits_cookie_above_per_second: Option<String>,
    /// Threads that answer handshakes [default: 1]
    #[arg(long, env = "JUMP_GATEWAY_LIMITS_HANDSHAKE_THREADS", value_name = "VALUE")]
    pub limits_handshake_threads: Option<String>,
    /// Socket buffers to ask for, in bytes; 0 for the kernel's default [default: 4194304]
    #[arg(long, env = "JUMP_GATEWAY_SOCKET_BUFFER_BYTES", value_name = "VALUE")]
    pub socket_buffer_bytes: Option<String>,
    /// Log level or filter [default: info]
    #[arg(long, env = "JUMP_GATEWAY_LOG_LEVEL", value_name = "VALUE")]
    pub log_level: Option<String>,
    /// Log format: json or human [default: json]
    #[arg(long, env = "JUMP_GATEWAY_LOG_FORMAT", value_name = "VALUE")]
    pub log_format: Option<String>,
    /// File for audit events; more sinks in the file's [audit] table [default: none]
    #[arg(long, env = "JUMP_GATEWAY_AUDIT_FILE", value_name = "FILE")]
    pub audit_file: Option<String>,
    /// Collector of traces (OTLP over gRPC), such as http://127.0.0.1:4317 [default: none]
    #[arg(long, env = "JUMP_GATEWAY_TRACE_ENDPOINT", value_name = "URL")]
    pub trace_endpoint: Option<String>,
    /// Share of traces that are recorded, 0 to 1; the same on every program [default: 0.1]
    #[arg(long, env = "JUMP_GATEWAY_TRACE_RATIO", value_name = "VALUE")]
    pub trace_ratio: Option<String>,
}

impl Flags {
    fn entries(&self) -> [(&'static str, &Option<String>); 38] {
        [
            ("node", &self.node),
            ("listen", &self.listen),
            ("advertise", &self.advertise),
            ("mesh_listen", &self.mesh_listen),
            ("mesh_advertise", &self.mesh_advertise),
            ("metrics_listen", &self.metrics_listen),
            ("control", &self.control),
            ("tls.ca", &self.tls_ca),
            ("tls.certificate", &self.tls_certificate),
            ("tls.key", &self.tls_key),
            ("transports.tcp", &self.transports_tcp),
            ("transports.tcp_port", &self.transports_tcp_port),
            ("transports.tls", &self.transports_tls),
            ("transports.tls_port", &self.transports_tls_port),
            ("transports.quic", &self.transports_quic),
            ("transports.quic_port", &self.transports_quic_port),
            ("tun.name", &self.tun_name),
            ("tun.addresses", &self.tun_addresses),
            ("tun.mtu", &self.tun_mtu),
            ("tun.offload", &self.tun_offload),
            ("tun.routes", &self.tun_routes),
            ("lease.renew_interval", &self.lease_renew_interval),
            ("lease.guard_margin", &self.lease_guard_margin),
            ("supervisor.heartbeat_timeout", &self.supervisor_heartbeat_timeout),
            ("drain.deadline", &self.drain_deadline),
            ("drain.linger", &self.drain_linger),
            ("egress.anchored", &self.egress_anchored),
            ("egress.hold", &self.egress_hold),
            ("limits.handshakes_max", &self.limits_handshakes_max),
            ("limits.claims_max", &self.limits_claims_max),
            ("limits.sessions_max", &self.limits_sessions_max),
            ("limits.attach_per_second", &self.limits_attach_per_second),
            ("limits.attach_burst", &self.limits_attach_burst),
            ("limits.cookie_above_per_second", &self.limits_cookie_above_per_second),
            ("limits.handshake_threads", &self.limits_handshake_threads),
            ("socket_buffer_bytes", &self.socket_buffer_bytes),
            ("log.level", &self.log_level),
            ("log.format", &self.log_format),
        ]
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Values by name while they are read, with the errors so far.
pub(super) struct Settings {
    values: BTreeMap<String, Vec<String>>,
    errors: Vec<String>,
    faulty: Vec<&'static str>,
    observability: Observability,
}

impl Settings {
    pub(super) fn load(flags: &Flags) -> Self {
        let Some(path) = &flags.config else { return Self::from_parts(flags, None) };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_parts(flags, Some(&text)),
            Err(error) => {
                let mut settings = Self::from_parts(flags, None);
                settings.errors.insert(0, format!("cannot read {}: {error}", path.display()));
                settings
            }
        }
    }

    pub(super) fn from_parts(flags: &Flags, file: Option<&str>) -> Self {
        let mut settings = Self {
            values: BTreeMap::new(),
            errors: Vec::new(),
            faulty: Vec::new(),
            observability: Observability::default(),
        };
        let known: Vec<&'static str> = flags.entries().map(|(key, _)| key).to_vec();
        match file.map(str::parse::<toml::Table>).transpose() {
            Ok(table) => {
                let mut table = table.unwrap_or_default();
                let overrides = Overrides {
                    audit_file: flags.audit_file.as_deref().map(Path::new),
                    trace_endpoint: flags.trace_endpoint.as_deref(),
                    trace_ratio: flags.trace_ratio.as_deref(),
                };
                let (observability, problems) = Observability::take(&mut table, overrides);
                settings.observability = observability;
                settings.errors.extend(problems);
                settings.flatten("", table, &known);
            }
            Err(error) => {
                let first = error.message().lines().next().unwrap_or("not valid TOML").to_owned();
                let text = file.unwrap_or_default();
                let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
                settings.errors.push(format!("configuration file, line {line}: {first}"));
            }
        }
        for (key, value) in flags.entries() {
            if let Some(value) = value {
                let items = value.split(',').map(|item| item.trim().to_owned()).collect();
                settings.values.insert(key.to_owned(), items);
            }
        }
        settings
    }

    fn flatten(&mut self, prefix: &str, table: toml::Table, known: &[&'static str]) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            let items = match value {
                toml::Value::Table(table) if !known.contains(&key.as_str()) => {
                    self.flatten(&key, table, known);
                    continue;
                }
                toml::Value::Array(items) => items.into_iter().map(text).collect(),
                toml::Value::Table(_)
                | toml::Value::String(_)
                | toml::Value::Integer(_)
                | toml::Value::Float(_)
                | toml::Value::Boolean(_)
                | toml::Value::Datetime(_) => vec![text(value)],
            };
            if known.contains(&key.as_str()) {
                self.values.insert(key, items);
            } else {
                let nearest =
                    known.iter().min_by_key(|name| distance(name, &key)).copied().unwrap_or_default();
                self.error(format!("unknown setting {key} (did you mean {nearest}?)"));
            }
        }
    }

    pub(super) fn observability(&mut self) -> Observability {
        std::mem::take(&mut self.observability)
    }

    pub(super) fn error(&mut self, error: String) {
        self.errors.push(error);
    }

    pub(super) fn check(&mut self, holds: bool, rule: &str) {
        if !holds {
            self.error(rule.to_owned());
        }
    }

    pub(super) fn is_faulty(&self, key: &str) -> bool {
        self.faulty.contains(&key)
    }

    fn parse<T: FromStr>(&mut self, key: &'static str, item: &str, expected: &str) -> Option<T> {
        let value = item.parse().ok();
        if value.is_none() {
            self.faulty.push(key);
            self.error(format!("{key}: {item:?} is not {expected}"));
        }
        value
    }

    pub(super) fn optional<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        let items = self.values.get(key).cloned()?;
        match items.as_slice() {
            [item] => self.parse(key, item, expected),
            _ => {
                self.faulty.push(key);
                self.error(format!("{key}: expected {expected}, not a list"));
                None
            }
        }
    }

    pub(super) fn required<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        let value = self.optional(key, expected);
        if value.is_none() && !self.is_faulty(key) {
            let variable = format!("JUMP_GATEWAY_{}", key.replace('.', "_").to_uppercase());
            self.error(format!("{key} is missing: set it to {expected} in the file or as {variable}"));
        }
        value
    }

    pub(super) fn or<T: FromStr>(&mut self, key: &'static str, expected: &str, default: T) -> T {
        self.optional(key, expected).unwrap_or(default)
    }

    pub(super) fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        self.optional_duration(key).unwrap_or(default)
    }

    pub(super) fn optional_duration(&mut self, key: &'static str) -> Option<Duration> {
        let expected = "a duration such as 300ms or 30s";
        self.optional::<humantime::Duration>(key, expected).map(Duration::from)
    }

    pub(super) fn list<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Vec<T> {
        let items = self.values.get(key).cloned().unwrap_or_default();
        items.iter().filter(|i| !i.is_empty()).filter_map(|item| self.parse(key, item, expected)).collect()
    }

    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            Some(_) | None => Err(ConfigErrors(self.errors)),
        }
    }
}

fn text(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => value.to_string(),
    }
}

/// The edit distance of two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
