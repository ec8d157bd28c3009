//! `jump doctor`: whether this machine and the enrolment can bring a session up.

use std::time::{SystemTime, UNIX_EPOCH};

use jump_doctor::{Finding, Report, file, host};

use crate::state_dir::StateDir;

/// The release that the wall clock must not lie before: 2026-01-01.
const RELEASED: u64 = 1_767_225_600;
const INNER_MTU: u16 = 1280;

/// Looks at the machine and the state directory. Blocks while it tries control's address.
pub fn examine(state: &StateDir) -> Report {
    let mut report = Report::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for finding in [
        host::tun(),
        host::net_admin(),
        host::udp_offload(),
        host::clocks(now, RELEASED),
        host::entropy(),
        host::mtu(INNER_MTU),
        file::private_directory("state-directory", state.path()),
    ] {
        report.push(finding);
    }
    if !state.is_enrolled() {
        let fix = "jump enroll, with a token from the operator";
        report.push(Finding::problem("enrolment", "this device is not enrolled", fix));
        return report;
    }
    let fix = "jump enroll --force, with a new token from the operator";
    report.push(file::secret("device-key", &state.key(), fix));
    match state.profile() {
        Ok(profile) => {
            let gateways = profile.gateways.len();
            report.push(match (profile.cluster().and(profile.verifier().map(|_| ())), gateways) {
                (Ok(()), 0) => Finding::problem("profile", "the profile names no gateway", fix),
                (Ok(()), 1) => Finding::warning(
                    "profile",
                    "one gateway: without it there is no service",
                    "run more than one; clients learn of them by themselves",
                ),
                (Ok(()), _) => {
                    Finding::fine("profile", format!("{} knows {gateways} gateways", profile.device_name))
                }
                (Err(failure), _) => Finding::problem("profile", failure.text, fix),
            });
            // Sessions do not need it once the device is enrolled.
            let control = host::reachable("control", &profile.control);
            report.push(match control.level {
                jump_doctor::Level::Problem => Finding::warning("control", control.seen, control.fix),
                jump_doctor::Level::Fine | jump_doctor::Level::Warning => control,
            });
        }
        Err(failure) => report.push(Finding::problem("profile", failure.text, fix)),
    }
    if let Err(failure) = state.session() {
        let fix = "remove session.json; a new session begins";
        report.push(Finding::problem("session", failure.text, fix));
    }
    report
}

#[cfg(test)]
mod tests {
    use jump_doctor::Level;

    use super::*;

    #[test]
    fn a_device_without_enrolment_is_told_to_enrol() {
        let dir = tempfile::tempdir().unwrap();
        let report = examine(&StateDir::new(dir.path()));
        let last = report.findings.last().unwrap();
        assert_eq!((last.check, last.level, report.exit_code()), ("enrolment", Level::Problem, 1));
        assert!(last.fix.contains("jump enroll"));
    }
}
