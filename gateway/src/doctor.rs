//! `jump-gateway doctor`: whether this machine and these settings can carry sessions.

use std::time::{SystemTime, UNIX_EPOCH};

use jump_doctor::{Finding, Report, file, host};

use crate::config::{Config, ConfigErrors, Flags};
use crate::identity;

/// The release that the wall clock must not lie before: 2026-01-01.
const RELEASED: u64 = 1_767_225_600;
/// What devices must at least be able to carry.
const INNER_MTU: u16 = 1280;
const MAKE: &str = "jump-control pki issue --role gateway --name NODE";

/// Looks at the machine, and at the settings as far as they can be read. Blocks while it tries control's addresses.
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
    report.push(host::tcp_port("metrics-port", config.metrics_listen));
    for endpoint in &config.control {
        report.push(host::reachable("control", endpoint));
    }
}
