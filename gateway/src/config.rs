//! Configuration: flags over environment over a TOML file, all errors reported together.

mod settings;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use jump_crypto::ids::NodeId;
use jump_session::path::{Door, Transport};
use jump_telemetry::log::Format;
use jump_telemetry::settings::Observability;

use crate::dataplane::{ENTRIES_MAX, Limits, Rate};
use settings::Settings;
pub use settings::{ConfigErrors, Flags};

/// A gateway's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The node's name.
    pub node: NodeId,
    /// The clients' socket.
    pub listen: SocketAddr,
    /// Where clients reach it.
    pub advertise: Vec<SocketAddr>,
    /// The clients' ways in besides UDP.
    pub doorways: Vec<Doorway>,
    /// The gateways' socket.
    pub mesh_listen: SocketAddr,
    /// Where other gateways reach it.
    pub mesh_advertise: SocketAddr,
    /// Metrics and health over HTTP.
    pub metrics_listen: SocketAddr,
    /// Control replicas: `https://host:port`.
    pub control: Vec<String>,
    /// Files of the node's identity.
    pub tls: Tls,
    /// The TUN device.
    pub tun: TunConfig,
    /// The lease.
    pub lease: LeaseConfig,
    /// Silence of the worker after which the supervisor kills it.
    pub heartbeat_timeout: Duration,
    /// The drain.
    pub drain: DrainConfig,
    /// Anchored egress.
    pub egress: EgressConfig,
    /// Bounds of the data plane.
    pub limits: Limits,
    /// Threads that answer handshakes.
    pub handshake_threads: usize,
    /// Socket buffers to ask for, in bytes; 0 leaves the kernel's default.
    pub socket_buffer_bytes: usize,
    /// Logs.
    pub log: LogOptions,
    /// Audit events and traces.
    pub observability: Observability,
}

/// Files of the node's mTLS identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The CA that control's certificates chain to, PEM.
    pub ca: PathBuf,
    /// The node's certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// A way in besides UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doorway {
    /// TCP, TLS or QUIC.
    pub transport: Transport,
    /// The socket.
    pub listen: SocketAddr,
    /// The port that clients find it at.
    pub port: u16,
}

impl Doorway {
    /// What clients are told of it.
    pub fn door(&self) -> Door {
        Door { transport: self.transport, port: self.port }
    }
}

/// The TUN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunConfig {
    /// Interface name.
    pub name: String,
    /// Addresses with prefix length; may be empty.
    pub addresses: Vec<IpNet>,
    /// Largest inner packet that this gateway takes, in bytes; each session begins with control's MTU and finds out how much
    /// of this its path carries.
    pub mtu: u16,
    /// Segmentation offload.
    pub offload: bool,
    /// Route the inner pools to the device.
    pub routes: bool,
}

/// The lease; what is not set is as control says at registration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Time between renewals.
    pub renew_interval: Option<Duration>,
    /// How long before the lease's end the authority ends.
    pub guard_margin: Option<Duration>,
}

/// The drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// How long sessions may take to move.
    pub deadline: Duration,
    /// How long packets are still relayed after the last session has moved.
    pub linger: Duration,
}

/// Anchored egress: where this gateway's kernel translates what leaves (docs/egress.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressConfig {
    /// Whether flows that it translates go on through it when their session moves.
    pub anchored: bool,
    /// How long a gateway that was told to end waits, after its last session has moved, for the end of such flows.
    pub hold: Duration,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Levels, as `tracing` writes them.
    pub filter: String,
    /// How lines look.
    pub format: Format,
}

impl Config {
    /// Reads flags, environment (through the flags) and file.
    ///
    /// # Errors
    /// Everything that is wrong, together.
    pub fn load(flags: &Flags) -> Result<Self, ConfigErrors> {
        let mut settings = Settings::load(flags);
        let config = Self::read(&mut settings);
        settings.finish(config)
    }

    /// How long a worker that was told to end may take for its sessions and their connections.
    pub fn ending_max(&self) -> Duration {
        let hold = if self.egress.anchored { self.egress.hold } else { Duration::ZERO };
        self.drain.deadline.saturating_add(self.drain.linger).saturating_add(hold)
    }

    fn read(settings: &mut Settings) -> Option<Self> {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let node = settings.required("node", "a node name such as gw-1");
        let listen = settings.or("listen", "an address such as 0.0.0.0:51820", any(51820));
        let mesh_listen = settings.or("mesh_listen", "an address such as 0.0.0.0:51821", any(51821));
        let metrics_listen = settings.or(
            "metrics_listen",
            "an address such as 127.0.0.1:9090",
            SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
        );
        let doorways = doorways(settings, listen);
        let advertise = advertised(settings, "advertise", "listen", listen);
        let mesh_advertise = advertised(settings, "mesh_advertise", "mesh_listen", mesh_listen);
        let control = control_endpoints(settings);
        let path = "the path of a PEM file";
        let tls = (
            settings.required::<PathBuf>("tls.ca", path),
            settings.required::<PathBuf>("tls.certificate", path),
            settings.required::<PathBuf>("tls.key", path),
        );
        let tun = TunConfig {
            name: settings.or("tun.name", "an interface name", "jump0".to_owned()),
            addresses: settings.list("tun.addresses", "addresses with prefix length such as 10.64.0.1/16"),
            mtu: settings.or("tun.mtu", "a number from 1280 to 9000", Limits::default().mtu_max),
            offload: settings.or("tun.offload", "true or false", true),
            routes: settings.or("tun.routes", "true or false", true),
        };
        settings.check(!tun.name.is_empty() && tun.name.len() <= 15, "tun.name must have 1 to 15 bytes");
        settings.check((1280..=9000).contains(&tun.mtu), "tun.mtu must lie between 1280 and 9000");
        let lease = LeaseConfig {
            renew_interval: settings.optional_duration("lease.renew_interval"),
            guard_margin: settings.optional_duration("lease.guard_margin"),
        };
        settings.check(
            lease.renew_interval.is_none_or(|interval| interval >= MOMENT),
            "lease.renew_interval must be at least 50ms",
        );
        let heartbeat_timeout = settings.duration("supervisor.heartbeat_timeout", Duration::from_secs(1));
        settings
            .check(heartbeat_timeout >= MOMENT * 6, "supervisor.heartbeat_timeout must be at least 300ms");
        let drain = DrainConfig {
            deadline: settings.duration("drain.deadline", Duration::from_secs(10)),
            linger: settings.duration("drain.linger", Duration::from_millis(500)),
        };
        let egress = EgressConfig {
            anchored: settings.or("egress.anchored", "true or false", false),
            hold: settings.duration("egress.hold", Duration::from_secs(20)),
        };
        let limits = Limits { mtu_max: tun.mtu, ..limits(settings) };
        let handshake_threads = settings.or("limits.handshake_threads", "a number from 1 to 64", 1usize);
        settings.check(
            (1..=64).contains(&handshake_threads),
            "limits.handshake_threads must lie between 1 and 64",
        );
        let log = LogOptions {
            filter: settings.or("log.level", "a level or filter such as info", "info".to_owned()),
            format: settings.or("log.format", "json or human", Format::Json),
        };
        Some(Self {
            node: node?,
            listen,
            advertise: advertise?,
            doorways,
            mesh_listen,
            mesh_advertise: mesh_advertise?.first().copied()?,
            metrics_listen,
            control,
            tls: Tls { ca: tls.0?, certificate: tls.1?, key: tls.2? },
            tun,
            lease,
            heartbeat_timeout,
            drain,
            egress,
            limits,
            handshake_threads,
            socket_buffer_bytes: settings.or("socket_buffer_bytes", "a number of bytes", 4 << 20),
            log,
            observability: settings.observability(),
        })
    }
}

/// The shortest sensible time between two beats of anything.
const MOMENT: Duration = Duration::from_millis(50);

fn limits(settings: &mut Settings) -> Limits {
    let default = Limits::default();
    let number = "a number";
    let limits = Limits {
        handshakes_max: settings.or("limits.handshakes_max", number, default.handshakes_max),
        claims_max: settings.or("limits.claims_max", number, default.claims_max),
        sessions_max: settings.or("limits.sessions_max", number, default.sessions_max),
        source_rate: Rate {
            per_second: settings.or("limits.attach_per_second", number, default.source_rate.per_second),
            burst: settings.or("limits.attach_burst", number, default.source_rate.burst),
        },
        cookie_above_per_second: settings.or(
            "limits.cookie_above_per_second",
            number,
            default.cookie_above_per_second,
        ),
        hint_rate: default.hint_rate,
        timing: default.timing,
        mtu_max: default.mtu_max,
    };
    settings.check(
        limits.sessions_max + limits.handshakes_max + limits.claims_max <= ENTRIES_MAX,
        "limits.sessions_max, limits.handshakes_max and limits.claims_max together must not exceed 131071",
    );
    limits
}

/// The ways in besides UDP. TCP shares the number of the UDP port; QUIC, which needs a UDP port of its own, is two
/// numbers above it (the mesh is between); TLS is off.
fn doorways(settings: &mut Settings, listen: SocketAddr) -> Vec<Doorway> {
    let above = |n| Some(SocketAddr::new(listen.ip(), listen.port().checked_add(n)?));
    [
        (Transport::Quic, "transports.quic", "transports.quic_port", above(2)),
        (Transport::Tcp, "transports.tcp", "transports.tcp_port", above(0)),
        (Transport::Tls, "transports.tls", "transports.tls_port", None),
    ]
    .into_iter()
    .filter_map(|(transport, key, port_key, default)| {
        let given: Option<Listen> = settings.optional(key, "off, or an address such as 0.0.0.0:443");
        let listen = match given {
            None => default?,
            Some(Listen::Off) => return None,
            Some(Listen::At(address)) => address,
        };
        let port = settings.or(port_key, "a port from 1 to 65535", listen.port());
        Some(Doorway { transport, listen, port })
    })
    .collect()
}

/// An address to listen on, or none.
enum Listen {
    Off,
    At(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::At) }
    }
}

/// The advertised addresses; by default the one that is listened on, if it names a host.
fn advertised(
    settings: &mut Settings,
    key: &'static str,
    listen_key: &str,
    listen: SocketAddr,
) -> Option<Vec<SocketAddr>> {
    let given: Vec<SocketAddr> = settings.list(key, "addresses such as 203.0.113.5:51820");
    let unusable = |address: &SocketAddr| is_unspecified(address.ip()) || address.port() == 0;
    if given.is_empty() {
        if is_unspecified(listen.ip()) {
            settings.error(format!(
                "{key} is missing: {listen_key} is {listen}, so say at which address others reach this node"
            ));
            return None;
        }
        return Some(vec![listen]);
    }
    if let Some(bad) = given.iter().find(|a| unusable(a)) {
        settings.error(format!("{key} names {bad}, which nobody can reach"));
        return None;
    }
    Some(given)
}

fn is_unspecified(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

fn control_endpoints(settings: &mut Settings) -> Vec<String> {
    let given: Vec<String> = settings.list("control", "control addresses such as https://control:7443");
    if given.is_empty() && !settings.is_faulty("control") {
        settings.error("control is missing: name at least one replica such as https://control:7443".into());
    }
    given
        .into_iter()
        .filter_map(|endpoint| {
            let url = if endpoint.contains("://") { endpoint.clone() } else { format!("https://{endpoint}") };
            let authority = url.strip_prefix("https://").unwrap_or_default().trim_end_matches('/');
            let valid = authority.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !valid {
                settings
                    .error(format!("control: {endpoint:?} is not an address such as https://control:7443"));
                return None;
            }
            Some(format!("https://{authority}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str) -> Result<Config, String> {
        let mut settings = Settings::from_parts(&Flags::default(), Some(file));
        let config = Config::read(&mut settings);
        settings.finish(config).map_err(|errors| errors.to_string())
    }

    const WHOLE: &str = r#"
        node = "gw-1"
        listen = "192.0.2.1:51820"
        mesh_listen = "192.0.2.1:51821"
        control = ["https://192.0.2.9:7443", "control.example:7443"]
        [tls]
        ca = "/c/ca.pem"
        certificate = "/c/gw.pem"
        key = "/c/gw-key.pem"
    "#;

    #[test]
    fn a_minimal_file_is_enough() {
        let config = load(WHOLE).unwrap();
        assert_eq!(config.advertise, ["192.0.2.1:51820".parse().unwrap()]);
        assert_eq!(config.control, ["https://192.0.2.9:7443", "https://control.example:7443"]);
        assert_eq!(config.lease, LeaseConfig::default());
    }

    #[test]
    fn flows_are_anchored_only_where_that_is_asked_for() {
        let egress = |more: &str| load(&format!("{WHOLE}{more}")).unwrap().egress;
        assert!(!egress("").anchored);
        let on = EgressConfig { anchored: true, hold: Duration::from_secs(90) };
        assert_eq!(load(WHOLE).unwrap().ending_max(), Duration::from_millis(10_500));
        assert_eq!(egress("[egress]\nanchored = true\nhold = \"90s\""), on);
    }

    #[test]
    fn every_error_is_reported_at_once() {
        let errors = load(
            r#"
            nod = "gw-1"
            listen = "everywhere"
            control = ["ftp://x"]
            [tun]
            mtu = 100
            [lease]
            renew_interval = "soon"
            "#,
        )
        .unwrap_err();
        for part in [
            "unknown setting nod (did you mean node?)",
            "node is missing",
            "listen",
            "\"ftp://x\"",
            "tls.ca is missing",
            "tls.key is missing",
            "tun.mtu must",
            "lease.renew_interval",
        ] {
            assert!(errors.contains(part), "{part} is not in:\n{errors}");
        }
    }

    #[test]
    fn every_other_transport_is_told_where_to_listen_or_to_be_off() {
        let doorways = |more: &str| {
            let doorways = load(&format!("{WHOLE}{more}")).unwrap().doorways;
            doorways.iter().map(|d| format!("{} {} {}", d.transport, d.listen, d.port)).collect::<Vec<_>>()
        };
        assert_eq!(doorways(""), ["quic 192.0.2.1:51822 51822", "tcp 192.0.2.1:51820 51820"]);
        assert_eq!(doorways("[transports]\nquic = \"off\"\ntcp = \"off\""), [""; 0]);
        assert_eq!(
            doorways("[transports]\nquic = \"[::]:443\"\ntcp = \"off\"\ntls = \"[::]:4443\"\ntls_port = 443"),
            ["quic [::]:443 443", "tls [::]:4443 443"]
        );
        assert!(load(&format!("{WHOLE}[transports]\ntcp = \"on\"")).unwrap_err().contains("transports.tcp"));
    }

    #[test]
    fn a_wildcard_address_cannot_be_advertised() {
        let errors = load(&WHOLE.replace("192.0.2.1:51820", "0.0.0.0:51820")).unwrap_err();
        assert!(errors.contains("advertise is missing"), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }

    #[test]
    fn flags_override_the_file() {
        let flags = Flags { node: Some("gw-2".into()), ..Flags::default() };
        let mut settings = Settings::from_parts(&flags, Some(WHOLE));
        let config = Config::read(&mut settings);
        assert_eq!(settings.finish(config).unwrap().node.as_str(), "gw-2");
    }
}
