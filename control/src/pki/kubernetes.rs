//! Certificates for a release in Kubernetes without cert-manager: `jump-control pki kubernetes`.
//!
//! Runs as a job of the chart. It makes a CA once and a Secret for each part, and issues a certificate again when the one
//! that is there has lived two thirds of its time, names other hosts, or comes from another CA. What is good stays as it
//! is, so it can run at any time and any number of times. The CA is never replaced: devices trust it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::{Pair, RoleArg, Subject, make_ca, make_certificate};
use crate::identity::Identity;

mod api;

/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[derive(Debug, Args)]
pub(super) struct KubernetesArgs {
    /// Secret of the CA; made if it does not exist, never changed
    #[arg(long, value_name = "SECRET")]
    ca: String,
    /// A certificate: the Secret to keep it in, and who the holder is; repeat for several
    #[arg(long = "issue", value_name = "SECRET=ROLE:NAME[@HOST,HOST...]", required = true)]
    wanted: Vec<Wanted>,
    /// Label of every Secret, for example app.kubernetes.io/instance=vpn; repeat for several
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_and_value)]
    labels: Vec<(String, String)>,
    /// What to restart when a certificate has changed, for example deployments/vpn-control; repeat for several
    #[arg(long = "restart", value_name = "KIND/NAME")]
    restart: Vec<String>,
    /// How long certificates are valid
    #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
    validity: Duration,
    /// Address of the API server; by default the cluster's own
    #[arg(long, value_name = "HOST:PORT")]
    api_server: Option<String>,
    /// Directory with the account's `token`, `ca.crt` and `namespace`
    #[arg(long, value_name = "DIR", default_value = ACCOUNT)]
    account: PathBuf,
}

/// One certificate that must exist.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    secret: String,
    role: RoleArg,
    name: String,
    hosts: Vec<String>,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text:?} must be SECRET=ROLE:NAME or SECRET=ROLE:NAME@HOST,HOST");
        let (secret, holder) = text.split_once('=').ok_or_else(malformed)?;
        let (role, rest) = holder.split_once(':').ok_or_else(malformed)?;
        let (name, hosts) = rest.split_once('@').unwrap_or((rest, ""));
        if secret.is_empty() || name.is_empty() {
            return Err(malformed());
        }
        let role = <RoleArg as clap::ValueEnum>::from_str(role, false)?;
        let hosts = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        Ok(Self { secret: secret.to_owned(), role, name: name.to_owned(), hosts })
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} must be KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A Secret as the API server keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Secret {
    data: BTreeMap<String, String>,
    /// The revision that was read; none for a new one.
    revision: Option<String>,
}

/// What is needed of the API server.
trait Cluster {
    /// Reads a Secret; `None` when it does not exist.
    fn get(&mut self, name: &str) -> impl Future<Output = anyhow::Result<Option<Secret>>>;
    /// Writes a Secret if it is still at the revision that it names; `false` when another was quicker.
    fn put(
        &mut self,
        name: &str,
        secret: &Secret,
        labels: &[(String, String)],
    ) -> impl Future<Output = anyhow::Result<bool>>;
    /// Makes the pods of a workload start again, one by one.
    fn restart(&mut self, workload: &str) -> impl Future<Output = anyhow::Result<()>>;
}

pub(super) fn run(args: &KubernetesArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut cluster = api::ApiServer::new(args.api_server.as_deref(), &args.account)?;
        let changed = reconcile(&mut cluster, args, OffsetDateTime::now_utc()).await?;
        if !changed.is_empty() {
            for workload in &args.restart {
                cluster.restart(workload).await?;
                println!("{workload}: restarting");
            }
        }
        Ok(())
    })
}

/// Brings every Secret to what it must be; returns those that an earlier certificate was in.
async fn reconcile(
    cluster: &mut impl Cluster,
    args: &KubernetesArgs,
    now: OffsetDateTime,
) -> anyhow::Result<Vec<String>> {
    let ca = certificate_authority(cluster, &args.ca, &args.labels).await?;
    let mut replaced = Vec::new();
    for wanted in &args.wanted {
        let existing = cluster.get(&wanted.secret).await?;
        let reason = match &existing {
            None => "is new",
            Some(secret) => match fault(secret, &ca.certificate, wanted, now) {
                None => {
                    println!("{}: good", wanted.secret);
                    continue;
                }
                Some(reason) => reason,
            },
        };
        let pair = issue(&ca, wanted, args.validity)?;
        let secret = Secret {
            data: BTreeMap::from([
                ("ca.crt".to_owned(), ca.certificate.clone()),
                ("tls.crt".to_owned(), pair.certificate),
                ("tls.key".to_owned(), pair.key),
            ]),
            revision: existing.as_ref().and_then(|secret| secret.revision.clone()),
        };
        if !cluster.put(&wanted.secret, &secret, &args.labels).await? {
            bail!("Secret {} was changed by somebody else meanwhile: run this again", wanted.secret);
        }
        println!("{}: issued, as it {reason}", wanted.secret);
        if existing.is_some() {
            replaced.push(wanted.secret.clone());
        }
    }
    Ok(replaced)
}

async fn certificate_authority(
    cluster: &mut impl Cluster,
    name: &str,
    labels: &[(String, String)],
) -> anyhow::Result<Pair> {
    // The second look finds the CA of whoever was quicker.
    for _ in 0..2 {
        if let Some(secret) = cluster.get(name).await? {
            let part = |key: &str| {
                secret.data.get(key).cloned().with_context(|| {
                    format!("Secret {name} has no {key}: give it back, or delete the Secret to start with a new CA that devices must enrol with again")
                })
            };
            return Ok(Pair { certificate: part("ca.crt")?, key: part("ca.key")? });
        }
        let ca = make_ca()?;
        let data = BTreeMap::from([
            ("ca.crt".to_owned(), ca.certificate.clone()),
            ("ca.key".to_owned(), ca.key.clone()),
        ]);
        if cluster.put(name, &Secret { data, revision: None }, labels).await? {
            println!("{name}: made a private CA");
            return Ok(ca);
        }
    }
    Err(anyhow!("Secret {name} comes and goes: run this again"))
}

fn issue(ca: &Pair, wanted: &Wanted, validity: Duration) -> anyhow::Result<Pair> {
    let identity = identity(wanted)?;
    let subject = Subject { identity: identity.as_ref(), name: &wanted.name, hosts: &wanted.hosts, validity };
    make_certificate(ca, &subject)
}

fn identity(wanted: &Wanted) -> anyhow::Result<Option<Identity>> {
    let name = |_| anyhow!("{:?} cannot be the name of a holder", wanted.name);
    wanted.role.role().map(|role| Identity::new(role, &wanted.name).map_err(name)).transpose()
}

/// Why a Secret does not do, or `None`.
fn fault(secret: &Secret, ca: &str, wanted: &Wanted, now: OffsetDateTime) -> Option<&'static str> {
    let part = |key: &str| secret.data.get(key).map_or("", String::as_str);
    if part("ca.crt") != ca {
        return Some("came from another CA");
    }
    let Ok((_, pem)) = parse_x509_pem(part("tls.crt").as_bytes()) else {
        return Some("was no certificate");
    };
    let Ok(certificate) = pem.parse_x509() else {
        return Some("was no certificate");
    };
    if part("tls.key").is_empty() {
        return Some("had no key");
    }
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if to - now.unix_timestamp() < (to - from) / 3 {
        return Some("was near its end");
    }
    let names = match certificate.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().filter_map(text).collect(),
        Ok(None) | Err(_) => BTreeSet::new(),
    };
    let identity = identity(wanted).ok().flatten().map(|identity| identity.uri());
    let expected: BTreeSet<String> = wanted.hosts.iter().cloned().chain(identity).collect();
    (names != expected).then_some("had other names")
}

fn text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
            _other => None,
        },
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An API server that keeps its Secrets in memory and numbers their revisions.
    #[derive(Default)]
    struct Memory {
        secrets: BTreeMap<String, Secret>,
        writes: Vec<String>,
        /// Somebody else writes this just before our first write.
        rival: Option<(String, Secret)>,
    }

    impl Cluster for Memory {
        async fn get(&mut self, name: &str) -> anyhow::Result<Option<Secret>> {
            Ok(self.secrets.get(name).cloned())
        }

        async fn put(&mut self, name: &str, secret: &Secret, _: &[(String, String)]) -> anyhow::Result<bool> {
            if let Some((name, secret)) = self.rival.take() {
                self.secrets.insert(name, secret);
            }
            if self.secrets.get(name).and_then(|old| old.revision.clone()) != secret.revision {
                return Ok(false);
            }
            self.writes.push(name.to_owned());
            let revision = Some(self.writes.len().to_string());
            self.secrets.insert(name.to_owned(), Secret { data: secret.data.clone(), revision });
            Ok(true)
        }

        async fn restart(&mut self, _: &str) -> anyhow::Result<()> {
            Ok(())
        }
    }

    fn args(control_hosts: &str) -> KubernetesArgs {
        let wanted =
            |text: &str| text.parse::<Wanted>().unwrap_or_else(|problem| panic!("{text}: {problem}"));
        KubernetesArgs {
            ca: "ca".to_owned(),
            wanted: vec![
                wanted(&format!("control-tls=control:vpn@{control_hosts}")),
                wanted("gateway-tls=gateway:vpn-gateway-*"),
                wanted("etcd-tls=etcd:vpn-etcd@etcd-0,127.0.0.1,::1"),
            ],
            labels: Vec::new(),
            restart: Vec::new(),
            validity: Duration::from_secs(90 * 24 * 3600),
            api_server: None,
            account: PathBuf::new(),
        }
    }

    async fn runs(cluster: &mut Memory, hosts: &str, after_days: i64) -> anyhow::Result<Vec<String>> {
        let now = OffsetDateTime::now_utc() + time::Duration::days(after_days);
        cluster.writes.clear();
        reconcile(cluster, &args(hosts), now).await
    }

    #[tokio::test]
    async fn the_first_run_makes_everything_and_the_second_changes_nothing() {
        let mut cluster = Memory::default();
        assert_eq!(runs(&mut cluster, "c.svc,10.0.0.1", 0).await.unwrap(), Vec::<String>::new());
        assert_eq!(cluster.writes, ["ca", "control-tls", "gateway-tls", "etcd-tls"]);
        runs(&mut cluster, "c.svc,10.0.0.1", 0).await.unwrap();
        assert_eq!(cluster.writes, Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_issued_certificate_speaks_for_its_holder_and_chains_to_the_ca() {
        let mut cluster = Memory::default();
        runs(&mut cluster, "c.svc", 0).await.unwrap();
        let secret = &cluster.secrets["gateway-tls"].data;
        assert_eq!(secret["ca.crt"], cluster.secrets["ca"].data["ca.crt"]);
        let (_, pem) = parse_x509_pem(secret["tls.crt"].as_bytes()).unwrap();
        assert_eq!(Identity::from_der(&pem.contents).unwrap().name(), "vpn-gateway-*");
        assert!(!secret.contains_key("ca.key"), "a part holds the key of the CA");
    }

    #[tokio::test]
    async fn a_certificate_is_issued_again_only_when_its_names_or_its_time_are_over() {
        let mut cluster = Memory::default();
        runs(&mut cluster, "c.svc", 0).await.unwrap();
        assert_eq!(runs(&mut cluster, "c.svc,c.example", 0).await.unwrap(), ["control-tls"]);
        assert_eq!(cluster.writes, ["control-tls"]);
        assert_eq!(runs(&mut cluster, "c.svc,c.example", 59).await.unwrap(), Vec::<String>::new());
        assert_eq!(runs(&mut cluster, "c.svc,c.example", 61).await.unwrap().len(), 3);
        assert!(!cluster.writes.contains(&"ca".to_owned()));
    }

    #[tokio::test]
    async fn of_two_that_start_together_one_ca_stays() {
        let mut other = Memory::default();
        runs(&mut other, "c.svc", 0).await.unwrap();
        let theirs = other.secrets["ca"].clone();
        let mut cluster = Memory { rival: Some(("ca".to_owned(), theirs.clone())), ..Memory::default() };
        runs(&mut cluster, "c.svc", 0).await.unwrap();
        assert_eq!(cluster.secrets["ca"], theirs);
        assert_eq!(cluster.secrets["control-tls"].data["ca.crt"], theirs.data["ca.crt"]);
    }

    #[tokio::test]
    async fn a_ca_without_its_key_is_an_error_and_not_replaced() {
        let mut cluster = Memory::default();
        let half = Secret { data: BTreeMap::new(), revision: Some("7".to_owned()) };
        cluster.secrets.insert("ca".to_owned(), half.clone());
        let error = runs(&mut cluster, "c.svc", 0).await.unwrap_err();
        assert!(error.to_string().contains("enrol"), "{error}");
        assert_eq!(cluster.secrets["ca"], half);
    }

    #[test]
    fn a_malformed_request_says_how_to_write_it() {
        for bad in ["", "x", "x=control", "=control:a", "x=king:a", "x=control:"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
        let good: Wanted = "x=control:a@h,1.2.3.4,fd00::1".parse().unwrap();
        assert_eq!(good.hosts, ["h", "1.2.3.4", "fd00::1"]);
    }
}
