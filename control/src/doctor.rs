//! `jump-control doctor`: whether this machine and these settings can serve.

use std::path::Path;

use jump_doctor::{Finding, Report, file, host};

use crate::clock;
use crate::config::{Config, StoreConfig};
use crate::serve;
use crate::store::etcd::{self as store, EtcdConfig};

mod etcd;

/// The release that the wall clock must not lie before: 2026-01-01.
const RELEASED: u64 = 1_767_225_600;
/// Room that an embedded store should have.
const STORE_ROOM: u64 = 256 << 20;
const MAKE: &str = "jump-control pki issue --role control --name NAME --host HOST";

/// Looks at the machine, and at the settings unless they cannot be read. Blocks while it asks etcd's members.
///
/// # Panics
/// Inside an asynchronous runtime: it brings one of its own.
pub fn examine(config: Result<Config, String>) -> Report {
    let mut report = Report::default();
    let now = clock::unix_seconds();
    report.push(host::clocks(now, RELEASED));
    report.push(host::entropy());
    let config = match config {
        Ok(config) => {
            report.push(Finding::fine("settings", "every setting is valid"));
            config
        }
        Err(errors) => {
            let fix = "correct them: jump-control serve --list-settings";
            report.push(Finding::problem("settings", errors, fix));
            return report;
        }
    };
    report.push(file::secret("server-key", &config.key, MAKE));
    report.push(file::certificate("server-certificate", &config.cert, now, MAKE));
    let make = "jump-control pki init, or copy the ca.pem of the cluster";
    report.push(file::certificate("ca-certificate", &config.ca, now, make));
    report.push(ca_key_beside(&config.ca));
    report.push(host::tcp_port("port", config.listen));
    if let Some(address) = config.metrics_listen {
        report.push(host::tcp_port("metrics-port", address));
    }
    examine_store(&config.store, now, &mut report);
    report
}

/// The CA's key is needed to issue certificates, not to serve.
fn ca_key_beside(ca: &Path) -> Finding {
    let key = ca.with_file_name("ca-key.pem");
    if key.exists() {
        return Finding::warning(
            "ca-key",
            format!("{} lies on this machine: whoever takes it can be anybody", key.display()),
            "keep it elsewhere, and issue certificates there",
        );
    }
    Finding::fine("ca-key", "the CA's key is not here")
}

fn examine_store(store: &StoreConfig, now: u64, report: &mut Report) {
    match store {
        StoreConfig::Embedded { path } => {
            let (file, directory) = if path.is_dir() {
                (path.join("control.redb"), path.clone())
            } else {
                (
                    path.clone(),
                    path.parent()
                        .filter(|dir| !dir.as_os_str().is_empty())
                        .map_or_else(|| ".".into(), Path::to_owned),
                )
            };
            if file.exists() {
                report.push(file::secret("store", &file, "run as the store's owner"));
            } else {
                report.push(Finding::fine("store", format!("{} will be made", file.display())));
            }
            if directory.exists() {
                report.push(host::room("store-room", &directory, STORE_ROOM));
            }
        }
        StoreConfig::Etcd { endpoints, ca, identity, user, keepalive_interval } => {
            let config = serve::etcd_config(
                endpoints,
                ca.as_deref(),
                identity.as_ref(),
                user.as_ref(),
                *keepalive_interval,
            );
            match config {
                Ok(config) => report.findings.extend(ask(&config)),
                // A file cannot be read: which one, is said below.
                Err(_) => {
                    report
                        .findings
                        .extend(endpoints.iter().map(|endpoint| host::reachable("store", endpoint)));
                }
            }
            report.push(members(endpoints.len()));
            report.push(match (ca, endpoints.iter().all(|endpoint| endpoint.starts_with("https://"))) {
                (Some(_), true) => Finding::fine("store-tls", "etcd is reached over TLS"),
                (_, _) => Finding::warning(
                    "store-tls",
                    "etcd is reached without TLS: whoever reads the wire reads the cluster's keys",
                    "use https:// endpoints and store.ca",
                ),
            });
            report.push(match (identity, user) {
                (None, None) => Finding::warning(
                    "store-access",
                    "neither a certificate nor a user is given: anybody who reaches etcd can be control",
                    "set store.certificate and store.key, or store.user",
                ),
                (_, _) => Finding::fine("store-access", "control authenticates itself to etcd"),
            });
            let make = "jump-control pki issue --role etcd --name NAME --host HOST";
            if let Some(ca) = ca {
                report.push(file::certificate("store-ca", ca, now, make));
            }
            if let Some((certificate, key)) = identity {
                report.push(file::certificate("store-certificate", certificate, now, make));
                report.push(file::secret("store-key", key, make));
            }
            if let Some((_, password)) = user {
                report.push(file::secret("store-password", password, "write the password to this file"));
            }
        }
    }
}

/// Asks the members of etcd.
fn ask(config: &EtcdConfig) -> Vec<Finding> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => etcd::judge(&runtime.block_on(store::inspect(config))),
        Err(error) => {
            let seen = format!("etcd cannot be asked: {error}");
            vec![Finding::problem("store", seen, "raise the limit of open files")]
        }
    }
}

fn members(count: usize) -> Finding {
    match count {
        0 | 1 => Finding::warning(
            "store-members",
            "one etcd member: its machine's end is the cluster's",
            "use three",
        ),
        even if even % 2 == 0 => Finding::warning(
            "store-members",
            format!("{even} etcd members stand no more failures than {}", even - 1),
            "use three or five",
        ),
        odd => Finding::fine("store-members", format!("{odd} etcd members")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jump_doctor::Level;

    use super::*;
    use crate::config::Layers;

    fn config(dir: &Path, settings: &[(&str, &str)]) -> Result<Config, String> {
        let file = |name: &str| dir.join(name).display().to_string();
        let mut flags: BTreeMap<String, String> = BTreeMap::from([
            ("listen".to_owned(), "127.0.0.1:0".to_owned()),
            ("advertise".to_owned(), "127.0.0.1:7443".to_owned()),
            ("tls.certificate".to_owned(), file("c.pem")),
            ("tls.key".to_owned(), file("k.pem")),
            ("tls.ca".to_owned(), file("ca.pem")),
            ("store.kind".to_owned(), "embedded".to_owned()),
            ("store.path".to_owned(), file("store.redb")),
        ]);
        flags.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::from_layers(Layers { flags, ..Layers::default() }).map_err(|errors| errors.to_string())
    }

    fn found<'a>(report: &'a Report, check: &str) -> &'a Finding {
        report.findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check}"))
    }

    #[test]
    fn missing_files_a_ca_key_beside_them_and_a_lonely_etcd_are_found_with_their_fixes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca-key.pem"), "k").unwrap();
        let report = examine(config(dir.path(), &[("listen", "nowhere")]));
        assert_eq!((found(&report, "settings").level, report.exit_code()), (Level::Problem, 1));
        let report = examine(config(dir.path(), &[]));
        assert_eq!(found(&report, "server-key").level, Level::Problem);
        assert_eq!(found(&report, "ca-key").level, Level::Warning);
        assert_eq!(found(&report, "store").level, Level::Fine);
        for finding in &report.findings {
            assert_eq!(finding.fix.is_empty(), finding.level == Level::Fine, "{finding:?}");
        }
        let levels = [1, 2, 3].map(|count| members(count).level);
        assert_eq!(levels, [Level::Warning, Level::Warning, Level::Fine]);
    }
}
