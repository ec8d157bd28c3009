//! A small private CA for clusters without cert-manager: `jump-control pki init` and `pki issue`; inside Kubernetes
//! `pki kubernetes`.
//!
//! Files in the directory: `ca.pem`, `ca-key.pem`, `<role>-<name>.pem`, `<role>-<name>-key.pem`. Keys are ECDSA P-256 and
//! readable by their owner alone.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::identity::{Identity, Role};

mod kubernetes;

/// How long the CA certificate is valid.
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates count from a little in the past, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Makes a private CA and certificates for the parts.
#[derive(Debug, Args)]
pub struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Makes a CA: ca.pem and ca-key.pem
    Init {
        /// Directory for the files; made if it does not exist
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Issues a certificate and key for one part
    Issue(IssueArgs),
    /// Keeps a CA and certificates in the Secrets of a Kubernetes namespace; run by the chart
    Kubernetes(kubernetes::KubernetesArgs),
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// Directory of the CA; the certificate and key are written there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// What the holder may be
    #[arg(long, value_enum)]
    role: RoleArg,
    /// The holder's name; a gateway's must be its node name, or a prefix and `*` for nodes that share the certificate
    #[arg(long)]
    name: String,
    /// DNS name or IP address at which the holder is reached; repeat for several. Needed for control
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// How long the certificate is valid
    #[arg(long, alias = "valid-for", default_value = "90d", value_parser = humantime::parse_duration)]
    validity: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    Gateway,
    Control,
    Operator,
    Reader,
    /// An etcd member: server and client certificate without a role here
    Etcd,
}

impl RoleArg {
    /// The role in the certificate; none for etcd, which knows no roles of ours.
    fn role(self) -> Option<Role> {
        match self {
            Self::Gateway => Some(Role::Gateway),
            Self::Control => Some(Role::Control),
            Self::Operator => Some(Role::Operator),
            Self::Reader => Some(Role::Reader),
            Self::Etcd => None,
        }
    }
}

/// Runs a `pki` subcommand.
///
/// # Errors
/// With what to do about it.
pub fn run(args: &PkiArgs) -> anyhow::Result<()> {
    match &args.command {
        PkiCommand::Init { dir } => init(dir),
        PkiCommand::Issue(args) => issue(args),
        PkiCommand::Kubernetes(args) => kubernetes::run(args),
    }
}

/// A certificate with its key, PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// What is certified about a holder.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The role and name, if the holder calls control.
    pub identity: Option<&'a Identity>,
    /// The common name, for people.
    pub name: &'a str,
    /// DNS names and IP addresses at which it is reached.
    pub hosts: &'a [String],
    /// How long.
    pub validity: Duration,
}

/// Makes a CA.
///
/// # Errors
/// When no key can be made.
pub fn make_ca() -> anyhow::Result<Pair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Jumping VPN private CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(CA_VALIDITY);
    let key = KeyPair::generate().context("cannot make the CA's key")?;
    let certificate = params.self_signed(&key).context("cannot sign the CA's certificate")?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Issues a certificate under `ca`.
///
/// # Errors
/// For a CA or host name that cannot be used.
pub fn make_certificate(ca: &Pair, subject: &Subject<'_>) -> anyhow::Result<Pair> {
    let ca_key = KeyPair::from_pem(&ca.key).context("cannot read the CA's key")?;
    let issuer =
        Issuer::from_ca_cert_pem(&ca.certificate, ca_key).context("cannot read the CA's certificate")?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, subject.name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.hosts.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    for host in subject.hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                Ia5String::try_from(host.as_str())
                    .with_context(|| format!("--host {host} is neither an IP address nor a DNS name"))?,
            ),
        });
    }
    if let Some(identity) = subject.identity {
        let uri = Ia5String::try_from(identity.uri()).context("the name cannot stand in a certificate")?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    (params.not_before, params.not_after) = validity(subject.validity);
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = params.signed_by(&key, &issuer).context("cannot sign the certificate")?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn init(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make directory {}", dir.display()))?;
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
    if key.exists() || certificate.exists() {
        bail!("{} already has a CA: use it with `pki issue`, or choose another directory", dir.display());
    }
    let ca = make_ca()?;
    write_private(&key, &ca.key)?;
    write_public(&certificate, &ca.certificate)?;
    println!("{}", certificate.display());
    Ok(())
}

fn issue(args: &IssueArgs) -> anyhow::Result<()> {
    let role = args.role.role();
    let word = role.map_or("etcd", Role::word);
    if matches!(args.role, RoleArg::Control | RoleArg::Etcd) && args.hosts.is_empty() {
        bail!("a {word} certificate needs --host: the DNS names and IP addresses at which it is reached");
    }
    let identity = match role {
        Some(role) => Some(Identity::new(role, &args.name).map_err(|_| {
            anyhow::anyhow!("--name must be 1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-'")
        })?),
        None => None,
    };
    let ca = Pair { certificate: read(&args.dir.join("ca.pem"))?, key: read(&args.dir.join("ca-key.pem"))? };
    let subject = Subject {
        identity: identity.as_ref(),
        name: &args.name,
        hosts: &args.hosts,
        validity: args.validity,
    };
    let pair = make_certificate(&ca, &subject)?;
    let stem = format!("{word}-{}", args.name.trim_end_matches('*').trim_end_matches('-'));
    let certificate = args.dir.join(format!("{stem}.pem"));
    write_private(&args.dir.join(format!("{stem}-key.pem")), &pair.key)?;
    write_public(&certificate, &pair.certificate)?;
    println!("{}", certificate.display());
    Ok(())
}

fn validity(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + length)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| {
        format!("cannot read {}: make a CA first with `jump-control pki init`", path.display())
    })
}

fn write_public(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        // A leftover with wider permissions would keep them.
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _removed_or_absent => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    fn issue_in(dir: &Path, role: RoleArg, name: &str, hosts: &[&str]) -> anyhow::Result<()> {
        issue(&IssueArgs {
            dir: dir.to_owned(),
            role,
            name: name.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            validity: Duration::from_secs(3600),
        })
    }

    #[test]
    fn an_issued_certificate_carries_its_role_and_a_private_key_file() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path()).unwrap();
        issue_in(dir.path(), RoleArg::Gateway, "gw1", &[]).unwrap();
        let pem = fs::read(dir.path().join("gateway-gw1.pem")).unwrap();
        let der = CertificateDer::from_pem_slice(&pem).unwrap();
        let identity = Identity::from_der(&der).unwrap();
        assert_eq!((identity.role(), identity.name()), (Role::Gateway, "gw1"));
        let mode = fs::metadata(dir.path().join("gateway-gw1-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_ca_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path()).unwrap();
        let before = fs::read(dir.path().join("ca-key.pem")).unwrap();
        assert!(init(dir.path()).is_err());
        assert_eq!(fs::read(dir.path().join("ca-key.pem")).unwrap(), before);
    }

    #[test]
    fn control_without_a_host_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path()).unwrap();
        let error = issue_in(dir.path(), RoleArg::Control, "c1", &[]).unwrap_err();
        assert!(error.to_string().contains("--host"), "{error}");
    }
}
