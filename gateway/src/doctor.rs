//! `jump-gateway doctor`: whether this machine and these settings can carry sessions.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jump_doctor::{Finding, Report, file, host};
use jump_session::path::Transport;

use crate::config::{Config, ConfigErrors, Doorway, Flags};
use crate::{conntrack, identity};

/// The release that the wall clock must not lie before: 2026-01-01.
const RELEASED: u64 = 1_767_225_600;
/// What devices must at least be able to carry.
const INNER_MTU: u16 = 1280;
const MAKE: &str = "jump-control pki issue --role gateway --name NODE";

/// Looks at the machine, and at the settings as far as they can be read. Blocks while it tries control's addresses and reads the kernel's
/// connection tracking table.
pub fn examine(flags: &Flags) -> Report {
    let mut report = Report::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let config = match Config::load(flags) {
        Ok(config) => {
            report.push(Finding::fine("settings", "every setting is valid"));
            Some(config)
        }
        Err(errors) => {
            report.push(settings(&errors));
            None
        }
    };
    for finding in [
        host::tun(),
        host::net_admin(),
        host::udp_offload(),
        host::forwarding(),
        host::clocks(now, RELEASED),
        host::entropy(),
        host::mtu(config.as_ref().map_or(INNER_MTU, |config| config.tun.mtu)),
    ] {
        report.push(finding);
    }
    if let Some(config) = config {
        examine_settings(&config, now, &mut report);
    }
    report
}

fn settings(errors: &ConfigErrors) -> Finding {
    let all: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    Finding::problem(
        "settings",
        all.join("; "),
        "correct them; the checks below use defaults where they need a setting",
    )
}

fn door_port(doorway: &Doorway) -> Finding {
    match doorway.transport {
        Transport::Udp => host::udp_port("client-port", doorway.listen),
        Transport::Quic => host::udp_port("quic-port", doorway.listen),
        Transport::Tcp => host::tcp_port("tcp-port", doorway.listen),
        Transport::Tls => host::tcp_port("tls-port", doorway.listen),
    }
}

/// Anchored egress reads which flows the kernel translates.
fn connection_table(looked: io::Result<usize>, took: Duration) -> Finding {
    match looked {
        Ok(_) if took > conntrack::LOOK_MAX => Finding::warning(
            "connection-table",
            format!("a look at the connection tracking table takes {} ms", took.as_millis()),
            "keep the table small (timeouts of the node's other traffic): flows that are not found within 100 ms are not anchored",
        ),
        Ok(_) => Finding::fine("connection-table", "the connection tracking table can be read"),
        Err(error) => Finding::problem(
            "connection-table",
            format!("the connection tracking table cannot be read, so no flow would be anchored: {error}"),
            "load the module nf_conntrack_netlink and grant CAP_NET_ADMIN, or set egress.anchored = false",
        ),
    }
}

fn examine_settings(config: &Config, now: u64, report: &mut Report) {
    let make = MAKE.replace("NODE", config.node.as_str());
    report.push(file::secret("node-key", &config.tls.key, &make));
    report.push(file::certificate("node-certificate", &config.tls.certificate, now, &make));
    let ca = "copy ca.pem from where `jump-control pki init` made it";
    report.push(file::certificate("ca-certificate", &config.tls.ca, now, ca));
    report.push(match identity::load(&config.tls, &config.node) {
        Ok(_) => Finding::fine("identity", format!("the certificate names this node, {}", config.node)),
        Err(errors) => Finding::problem("identity", errors.to_string().replace('\n', "; "), make),
    });
    report.push(host::udp_port("client-port", config.listen));
    report.push(host::udp_port("mesh-port", config.mesh_listen));
    for doorway in &config.doorways {
        report.push(door_port(doorway));
    }
    report.push(host::tcp_port("metrics-port", config.metrics_listen));
    if config.egress.anchored {
        let began = Instant::now();
        let looked = conntrack::open_flows(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        report.push(connection_table(looked, began.elapsed()));
    }
    for endpoint in &config.control {
        report.push(host::reachable("control", endpoint));
    }
}

#[cfg(test)]
mod tests {
    use jump_doctor::Level;

    use super::*;

    #[test]
    fn a_connection_table_that_cannot_be_read_is_a_problem_with_a_way_out() {
        let refused = Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let finding = connection_table(refused, Duration::ZERO);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.fix.contains("egress.anchored"), "{}", finding.fix);
        assert_eq!(connection_table(Ok(0), conntrack::LOOK_MAX).level, Level::Fine);
        assert_eq!(connection_table(Ok(0), conntrack::LOOK_MAX * 2).level, Level::Warning);
    }

    #[test]
    fn each_door_is_tried_by_the_protocol_that_carries_it() -> io::Result<()> {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let listen = taken.local_addr()?;
        let found = |transport| door_port(&Doorway { transport, listen, port: listen.port() });
        for (transport, check) in [(Transport::Tcp, "tcp-port"), (Transport::Tls, "tls-port")] {
            assert_eq!((found(transport).check, found(transport).level), (check, Level::Warning));
        }
        let held = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let listen = held.local_addr()?;
        let quic = door_port(&Doorway { transport: Transport::Quic, listen, port: listen.port() });
        assert_eq!((quic.check, quic.level), ("quic-port", Level::Warning));
        Ok(())
    }
}
