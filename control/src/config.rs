//! `jump-control serve`'s settings: flags over environment over file, all errors at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jump_crypto::key_ring::RingPolicy;
use jump_session::policy::SessionPolicy;
use jump_telemetry::log::Format;
use jump_telemetry::settings::Observability;

use crate::addresses::usable;
use crate::rebalancer::RebalanceSettings;

mod read;

pub use read::{ConfigErrors, Layers};

/// Where the state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// A file on this machine.
    Embedded {
        /// The file.
        path: PathBuf,
    },
    /// An etcd cluster.
    Etcd {
        /// URLs of its members.
        endpoints: Vec<String>,
        /// The CA of its servers, PEM.
        ca: Option<PathBuf>,
        /// The client certificate and key, PEM.
        identity: Option<(PathBuf, PathBuf)>,
        /// User name and the file with the password.
        user: Option<(String, PathBuf)>,
        /// Time between HTTP/2 pings.
        keepalive_interval: Duration,
    },
}

/// Everything that `serve` needs, valid together.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// `host:port` under which devices reach control; goes into enrolment tokens.
    pub advertise: String,
    /// The server certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The CA of every client certificate and of `cert`, PEM.
    pub ca: PathBuf,
    /// Where the state is.
    pub store: StoreConfig,
    /// Inner address pools: one IPv4, one IPv6, or both.
    pub pools: Vec<IpNet>,
    /// Time to live of a node's lease.
    pub lease_ttl: Duration,
    /// How often gateways renew.
    pub renew_interval: Duration,
    /// How long before the end of its lease a gateway stops.
    pub guard_margin: Duration,
    /// How long an attach waits for a live owner to stop.
    pub handover_wait: Duration,
    /// The bounds of sessions.
    pub policy: SessionPolicy,
    /// How keys overlap, and of what kind they are.
    pub keys: KeySettings,
    /// Whether and how fast sessions are spread over the gateways.
    pub rebalance: RebalanceSettings,
    /// Networks that clients send into the tunnel.
    pub routes: Vec<IpNet>,
    /// DNS servers inside.
    pub dns: Vec<IpAddr>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// Where metrics are served, if at all.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether gRPC reflection answers.
    pub reflection: bool,
    /// Logs.
    pub log: LogOptions,
    /// Audit events and traces.
    pub observability: Observability,
}

/// How keys overlap when they are rotated, and of what kind they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySettings {
    /// Of the cluster's and the grant keys.
    pub ring: RingPolicy,
    /// How long a device's old key serves beside its new one.
    pub device_overlap: Duration,
    /// Whether devices are told to use the hybrid suites.
    pub hybrid: bool,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Levels, as `tracing` writes them.
    pub filter: String,
    /// How lines look.
    pub format: Format,
}

/// Every setting with its default (`-` for none) and what it says.
pub const SETTINGS: &[(&str, &str, &str)] = &[
    ("listen", "0.0.0.0:7443", "address and port to listen on"),
    (
        "advertise",
        "",
        "host:port under which devices reach control, as in its certificate [default: listen, where that names one address]",
    ),
    ("tls.certificate", "-", "server certificate (PEM file)"),
    ("tls.key", "-", "key of the server certificate (PEM file)"),
    ("tls.ca", "-", "CA certificate of the cluster (PEM file)"),
    ("store.kind", "-", "embedded or etcd"),
    ("store.path", "", "file of the embedded store"),
    ("store.endpoints", "", "URLs of the etcd members"),
    ("store.ca", "", "CA certificate of the etcd servers (PEM file)"),
    ("store.certificate", "", "client certificate for etcd (PEM file)"),
    ("store.key", "", "key of the client certificate for etcd (PEM file)"),
    ("store.user", "", "etcd user name"),
    ("store.password_file", "", "file with the password of the etcd user"),
    ("store.keepalive_interval", "5s", "time between pings; at least etcd's --grpc-keepalive-min-time"),
    ("pools", "10.77.0.0/16", "inner address pools (CIDR): one IPv4, one IPv6, or both"),
    ("lease.ttl", "3s", "time to live of a gateway's lease; whole seconds with etcd"),
    ("lease.renew_interval", "1s", "how often gateways renew"),
    ("lease.guard_margin", "300ms", "how long before the end of its lease a gateway stops forwarding"),
    ("handover_wait", "1500ms", "how long an attach waits for a live owner to stop"),
    ("policy.session_lifetime", "24h", "longest life of a session"),
    ("policy.idle_transport_max", "2m", "longest time of a session without any transport"),
    ("policy.recovery_window", "2m", "how long a session without an owner waits for its client"),
    ("policy.switches_per_minute_max", "20", "owner changes and path switches per minute"),
    ("policy.switch_cooldown", "100ms", "shortest time between two switches"),
    ("policy.sessions_per_device_max", "4", "live sessions per device"),
    ("policy.address_quarantine", "5m", "how long an inner address rests before another session gets it"),
    ("keys.announce", "10m", "how long a new cluster or grant key is announced before it comes into use"),
    ("keys.overlap", "30d", "how long a replaced cluster or grant key is still accepted"),
    ("keys.device_overlap", "1h", "how long a device's old key serves beside its new one"),
    (
        "keys.hybrid",
        "false",
        "whether devices use the hybrid suites (X25519 and ML-KEM-768); set it once every gateway knows them",
    ),
    (
        "rebalance.moves_per_second",
        "0",
        "sessions moved per second from full gateways to empty ones, by all replicas together; 0 for none",
    ),
    ("rebalance.tolerance", "10", "percent around the mean within which gateways count as even"),
    ("routes", "", "networks that clients send into the tunnel (CIDR); the pools always are"),
    ("dns", "", "DNS servers that clients use"),
    ("mtu", "1280", "largest inner packet, in bytes"),
    ("metrics_listen", "", "address and port of the Prometheus endpoint; empty for none"),
    ("reflection", "true", "whether gRPC reflection answers"),
    ("log.level", "info", "levels of log lines, as info or info,jump_control=debug"),
    ("log.format", "json", "how log lines look: json or human"),
    (
        "audit.file",
        "",
        "file for audit events; more sinks in the file's [audit] table (docs/audit-events.md)",
    ),
    (
        "trace.endpoint",
        "",
        "collector of traces (OTLP over gRPC), such as http://127.0.0.1:4317; empty for none",
    ),
    ("trace.ratio", "0.1", "share of traces that are recorded, 0 to 1; the same on every program"),
];

impl Config {
    /// Reads the settings from their layers.
    ///
    /// # Errors
    /// [`ConfigErrors`] lists everything that is wrong.
    pub fn from_layers(layers: Layers) -> Result<Self, ConfigErrors> {
        let mut reader = read::Reader::new(layers, SETTINGS);
        let listen: SocketAddr = reader.parse("listen", "an address and port, for example 0.0.0.0:7443");
        let config = Self {
            listen,
            advertise: advertised(&mut reader, listen),
            cert: reader.path("tls.certificate"),
            key: reader.path("tls.key"),
            ca: reader.path("tls.ca"),
            store: store(&mut reader),
            pools: reader.list("pools", "a network, for example 10.77.0.0/16"),
            lease_ttl: reader.duration("lease.ttl"),
            renew_interval: reader.duration("lease.renew_interval"),
            guard_margin: reader.duration("lease.guard_margin"),
            handover_wait: reader.duration("handover_wait"),
            policy: SessionPolicy {
                session_lifetime: reader.duration("policy.session_lifetime"),
                idle_transport_max: reader.duration("policy.idle_transport_max"),
                recovery_window: reader.duration("policy.recovery_window"),
                switches_per_minute_max: reader.parse("policy.switches_per_minute_max", "a number"),
                switch_cooldown: reader.duration("policy.switch_cooldown"),
                sessions_per_device_max: reader.parse("policy.sessions_per_device_max", "a number"),
                address_quarantine: reader.duration("policy.address_quarantine"),
            },
            keys: KeySettings {
                ring: RingPolicy {
                    announce_seconds: reader.duration("keys.announce").as_secs(),
                    overlap_seconds: reader.duration("keys.overlap").as_secs(),
                },
                device_overlap: reader.duration("keys.device_overlap"),
                hybrid: reader.parse("keys.hybrid", "true or false"),
            },
            rebalance: RebalanceSettings {
                moves_per_second: reader.parse("rebalance.moves_per_second", "a number"),
                tolerance_percent: reader.parse("rebalance.tolerance", "a number"),
            },
            routes: reader.list("routes", "a network, for example 192.168.0.0/16"),
            dns: reader.list("dns", "an IP address"),
            mtu: reader.parse("mtu", "a number of bytes"),
            metrics_listen: reader.list("metrics_listen", "an address and port").pop(),
            reflection: reader.parse("reflection", "true or false"),
            log: LogOptions {
                filter: reader.text("log.level"),
                format: reader.parse("log.format", "json or human"),
            },
            observability: reader.observability(),
        };
        config.check(&mut reader);
        reader.finish(config)
    }

    /// What must hold between settings.
    fn check(&self, reader: &mut read::Reader) {
        let second = Duration::from_secs(1);
        if self.lease_ttl < second || self.lease_ttl > second * 60 {
            reader.wrong("lease.ttl", "must be between 1s and 60s");
        }
        if self.renew_interval.is_zero() || self.renew_interval * 2 + self.guard_margin > self.lease_ttl {
            let least = format_duration(self.renew_interval * 2 + self.guard_margin);
            reader.wrong(
                "lease.ttl",
                &format!("must be at least two lease.renew_interval plus lease.guard_margin ({least}), so that one lost renewal stops nobody"),
            );
        }
        if self.keys.ring.announce_seconds < self.lease_ttl.as_secs() {
            reader.wrong(
                "keys.announce",
                "must be at least lease.ttl, so that every gateway knows a key before it is used",
            );
        }
        let bits = |pool: &IpNet| pool.addr().is_ipv4();
        if self.pools.is_empty() {
            reader.wrong("pools", "must name at least one network");
        }
        for family in [true, false] {
            if self.pools.iter().filter(|pool| bits(pool) == family).count() > 1 {
                reader.wrong("pools", "must name at most one network of each address family");
            }
        }
        for pool in self.pools.iter().filter(|pool| usable(**pool) == 0) {
            reader.wrong("pools", &format!("{pool} has no room for any session"));
        }
        if !self.advertise.is_empty()
            && self
                .advertise
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            reader.wrong("advertise", "must be host:port");
        }
        if self.mtu < 576 {
            reader.wrong("mtu", "must be at least 576, and 1280 where IPv6 is used");
        }
        if self.policy.switches_per_minute_max == 0 || self.policy.sessions_per_device_max == 0 {
            reader.wrong(
                "policy.switches_per_minute_max",
                "and policy.sessions_per_device_max must be at least 1",
            );
        }
        if self.policy.recovery_window > self.policy.session_lifetime {
            reader.wrong("policy.recovery_window", "must not be longer than policy.session_lifetime");
        }
        if self.rebalance.moves_per_second > 1000 {
            reader.wrong("rebalance.moves_per_second", "must be at most 1000");
        }
        if self.handover_wait > second * 30 {
            reader.wrong("handover_wait", "must be at most 30s");
        }
    }
}

fn advertised(reader: &mut read::Reader, listen: SocketAddr) -> String {
    let text = reader.text("advertise");
    if !text.is_empty() {
        return text;
    }
    if listen.ip().is_unspecified() {
        reader.wrong("advertise", "is missing: say under which host:port devices reach control");
    }
    listen.to_string()
}

fn store(reader: &mut read::Reader) -> StoreConfig {
    let kind = reader.text("store.kind");
    let path = reader.path("store.path");
    let endpoints: Vec<String> = reader.list("store.endpoints", "a URL");
    let keepalive_interval = reader.duration("store.keepalive_interval");
    let optional = |reader: &mut read::Reader, name| Some(reader.path(name)).filter(|p| *p != Path::new(""));
    let ca = optional(reader, "store.ca");
    let certificate = optional(reader, "store.certificate");
    let key = optional(reader, "store.key");
    let user = reader.text("store.user");
    let password = optional(reader, "store.password_file");
    if certificate.is_some() != key.is_some() {
        reader.wrong("store.certificate", "and store.key must be given together");
    }
    if user.is_empty() == password.is_some() {
        reader.wrong("store.user", "and store.password_file must be given together");
    }
    match kind.as_str() {
        "embedded" => {
            if path == Path::new("") {
                reader.wrong("store.path", "is missing: name the file of the embedded store");
            }
            StoreConfig::Embedded { path }
        }
        "etcd" => {
            if endpoints.is_empty() {
                reader.wrong("store.endpoints", "is missing: name the URLs of the etcd members");
            }
            for url in &endpoints {
                let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
                if rest.is_none_or(str::is_empty) {
                    reader.wrong(
                        "store.endpoints",
                        &format!("{url:?} must be a URL such as http://10.0.0.1:2379"),
                    );
                }
            }
            let secure = endpoints.iter().filter(|url| url.starts_with("https://")).count();
            if secure != 0 && ca.is_none() {
                reader.wrong("store.ca", "must be given for https:// endpoints");
            }
            if secure != 0 && secure != endpoints.len() {
                reader.wrong("store.endpoints", "must not mix http:// and https://");
            }
            StoreConfig::Etcd {
                endpoints,
                ca: ca.filter(|_| secure != 0),
                identity: certificate.zip(key).filter(|_| secure != 0),
                user: Some(user).filter(|user| !user.is_empty()).zip(password),
                keepalive_interval,
            }
        }
        other => {
            if !other.is_empty() {
                reader.wrong("store.kind", &format!("must be embedded or etcd, not {other:?}"));
            }
            StoreConfig::Embedded { path }
        }
    }
}

fn format_duration(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(duration)
}

/// The settings in the environment: `JUMP_CONTROL_<SETTING>`, with `_` for each `.`.
pub fn from_environment(variables: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let variable = |setting: &str| format!("JUMP_CONTROL_{}", setting.to_ascii_uppercase().replace('.', "_"));
    variables
        .filter(|(name, _)| name.starts_with("JUMP_CONTROL_") && name != "JUMP_CONTROL_CONFIG")
        // Kubernetes describes a service called jump-control in variables of this form.
        .filter(|(name, _)| {
            !name.starts_with("JUMP_CONTROL_SERVICE_") && !name.starts_with("JUMP_CONTROL_PORT")
        })
        .map(|(name, value)| {
            let known = SETTINGS.iter().find(|(setting, _, _)| variable(setting) == name);
            (known.map_or(name, |(setting, _, _)| (*setting).to_owned()), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(file: &str, flags: &[(&str, &str)]) -> Layers {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Layers {
            file: Some(("control.toml".into(), file.to_owned())),
            environment: BTreeMap::new(),
            flags: map(flags),
        }
    }

    const GOOD: &str = "advertise = 'c.example:7443'\npools = ['10.1.0.0/16', 'fd00::/64']\n\
                        tls = { certificate = 'c.pem', key = 'k.pem', ca = 'ca.pem' }\n\
                        store = { kind = 'embedded', path = '/tmp/x' }\n";

    #[test]
    fn flags_override_environment_overrides_the_file() {
        let mut layers = layers(
            &format!("{GOOD}mtu = 1300\nlease.ttl = '5s'\n[policy]\nswitch_cooldown = '1s'\n"),
            &[("mtu", "1400")],
        );
        layers.environment.insert("mtu".into(), "1350".into());
        layers.environment.insert("lease.ttl".into(), "4s".into());
        let config = Config::from_layers(layers).unwrap();
        assert_eq!((config.mtu, config.lease_ttl), (1400, Duration::from_secs(4)));
        assert_eq!(config.policy.switch_cooldown, Duration::from_secs(1));
        assert_eq!(config.pools.len(), 2);
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        let file = "listen = 'nowhere'\nlease.tll = '3s'\npools = ['10.0.0.0/8', '10.1.0.0/16', '10.2.0.0/31']\nlease.ttl = '2s'\n";
        let errors = Config::from_layers(layers(file, &[("store.kind", "redis")])).unwrap_err().to_string();
        for part in [
            "listen",
            "unknown setting lease.tll",
            "did you mean lease.ttl",
            "at most one network",
            "no room",
            "two lease.renew_interval",
            "store.kind",
            "advertise",
            "tls.certificate",
        ] {
            assert!(errors.contains(part), "{part:?} is not in:\n{errors}");
        }
    }

    #[test]
    fn etcd_needs_urls_and_trust_that_fit_together() {
        let flags = |endpoints| layers(GOOD, &[("store.kind", "etcd"), ("store.endpoints", endpoints)]);
        let config = Config::from_layers(flags("http://a:2379,http://b:2379")).unwrap();
        assert!(matches!(config.store, StoreConfig::Etcd { endpoints, .. } if endpoints.len() == 2));
        for bad in ["", "a:2379", "https://a:2379", "http://a,https://b"] {
            assert!(Config::from_layers(flags(bad)).is_err(), "{bad}");
        }
    }
}
