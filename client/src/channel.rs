//! TLS connections to control, and its errors in words.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::failure::{Exit, Failure, chain};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The files of an operator's identity.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The CA certificate that control's certificate chains to, PEM.
    pub ca: PathBuf,
    /// The caller's certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Connects to the first of `controls` that answers, under a client certificate.
///
/// # Errors
/// A line that says what to do.
pub async fn connect_as(controls: &[String], files: &IdentityFiles) -> Result<Channel, Failure> {
    let read = |path: &Path, option: &str| {
        std::fs::read(path).map_err(|error| {
            Failure::because(Exit::Failed, format_args!("cannot read {} ({option})", path.display()), &error)
        })
    };
    let ca = Certificate::from_pem(read(&files.ca, "--ca")?);
    let identity = Identity::from_pem(read(&files.cert, "--cert")?, read(&files.key, "--key")?);
    let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity);
    let mut failure = Failure::new(Exit::Usage, "no control address: give --control or set JUMPCTL_CONTROL");
    for control in controls {
        match connect(control, tls.clone()).await {
            Ok(channel) => return Ok(channel),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Connects to control at `host:port` (with or without `https://`).
///
/// # Errors
/// A line that says what to do.
pub async fn connect(control: &str, tls: ClientTlsConfig) -> Result<Channel, Failure> {
    let address = control.strip_prefix("https://").unwrap_or(control).trim_end_matches('/');
    let bad = || {
        Failure::new(
            Exit::Usage,
            format!("{control} is no address of control: expected host:port, for example control:7443"),
        )
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    port.parse::<u16>().map_err(|_| bad())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| bad())?
        .tls_config(tls.domain_name(host))
        .map_err(|error| {
            Failure::because(Exit::Failed, "the certificate or key files cannot be used", &error)
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    endpoint.connect().await.map_err(|error| unreachable(control, &error))
}

/// Says why a connection could not be made.
fn unreachable(control: &str, error: &dyn Error) -> Failure {
    let text = chain(error);
    if let Some(failure) = tls_failure(control, &text) {
        return failure;
    }
    let hint = "check the address, that control runs, and that a firewall lets TCP through";
    Failure::new(Exit::Unreachable, format!("control at {control} cannot be reached ({text}): {hint}"))
}

/// What TLS complained about, if the text names a complaint of TLS.
fn tls_failure(control: &str, text: &str) -> Option<Failure> {
    let lower = text.to_ascii_lowercase();
    let ours = lower.contains("received fatal alert");
    let (what, to_do) = if ours && lower.contains("certificateexpired") {
        ("your certificate has expired", "issue a new one with jump-control pki issue")
    } else if ours
        && (lower.contains("unknownca") || lower.contains("badcertificate") || lower.contains("decrypterror"))
    {
        ("control does not trust your certificate", "use one that the cluster's CA issued (--cert, --key)")
    } else if ours && lower.contains("certificaterequired") {
        ("control wants a certificate", "give --cert and --key")
    } else if lower.contains("expired") {
        (
            "control's certificate has expired",
            "issue a new one with jump-control pki issue and restart control",
        )
    } else if lower.contains("unknownissuer") || lower.contains("badsignature") {
        ("control's certificate is not from the given CA", "check --ca, and that this is the right cluster")
    } else if lower.contains("notvalidforname") || lower.contains("not valid for name") {
        (
            "control's certificate is for another name",
            "use the name it was issued for, or issue it with --host",
        )
    } else {
        return None;
    };
    Some(Failure::new(Exit::Refused, format!("{what} ({control}): {to_do}")))
}

/// Puts a refusal of control in words. `what` is what was asked for.
pub fn refused(what: &str, status: &Status) -> Failure {
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let mut text = chain(status.source().unwrap_or(status));
    if !status.message().is_empty() {
        text = status.message().to_owned();
    }
    if let Some(failure) = status.source().and_then(|source| tls_failure("control", &chain(source))) {
        return failure;
    }
    let named = if reason.is_empty() || text.contains(&reason) { text } else { format!("{text} [{reason}]") };
    match status.code() {
        Code::NotFound => Failure::new(
            Exit::NotFound,
            match reason.as_str() {
                "UNKNOWN_SESSION" => {
                    format!("{what}: not found; jumpctl sessions list shows those that exist [{reason}]")
                }
                "UNKNOWN_DEVICE" => {
                    format!("{what}: not found; jumpctl devices list shows those that exist [{reason}]")
                }
                _ => format!("{what}: {named}"),
            },
        ),
        Code::Unauthenticated => Failure::new(
            Exit::Refused,
            format!("{what}: {named}: control wants a certificate of the cluster's CA (--cert, --key)"),
        ),
        Code::PermissionDenied => Failure::new(Exit::Refused, format!("{what}: {named}")),
        Code::Unavailable => Failure::new(
            Exit::Unreachable,
            format!("{what}: {named}: control or its store is not available; try again"),
        ),
        Code::DeadlineExceeded => {
            Failure::new(Exit::Unreachable, format!("{what}: control did not answer in time; try again"))
        }
        Code::FailedPrecondition | Code::AlreadyExists => {
            Failure::new(Exit::Refused, format!("{what}: {named}"))
        }
        Code::InvalidArgument => Failure::new(Exit::Usage, format!("{what}: {named}")),
        Code::Unimplemented => Failure::other(format!("{what}: this control does not support it")),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss => Failure::other(format!("{what}: {named}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_complaint_of_tls_says_what_to_do() {
        let cases = [
            ("received fatal alert: CertificateExpired", "your certificate has expired"),
            ("received fatal alert: UnknownCA", "does not trust your certificate"),
            ("invalid peer certificate: Expired", "control's certificate has expired"),
            ("invalid peer certificate: UnknownIssuer", "check --ca"),
            ("invalid peer certificate: certificate not valid for name \"x\"", "another name"),
        ];
        for (text, expected) in cases {
            let failure = tls_failure("c:1", text).expect("a TLS complaint");
            assert!(failure.text.contains(expected), "{text}: {failure}");
        }
        assert_eq!(tls_failure("c:1", "connection refused"), None);
    }

    #[tokio::test]
    async fn an_address_without_a_port_is_a_usage_error() {
        let failure = connect("control", ClientTlsConfig::new()).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
    }

    #[tokio::test]
    async fn an_unreachable_control_is_named() {
        let failure = connect("127.0.0.1:1", ClientTlsConfig::new()).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.text.contains("127.0.0.1:1"));
    }
}
