//! The node's mTLS identity, checked before anybody is asked with it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jump_crypto::ids::NodeId;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use x509_parser::pem::Pem;
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::config::Tls;

/// What is wrong with the identity; each line says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct IdentityErrors(Vec<String>);

/// Reads and checks the files; returns what a connection to control needs.
///
/// # Errors
/// Everything that is wrong, together: unreadable files, another role or node, a certificate out of its time.
pub fn load(tls: &Tls, node: &NodeId) -> Result<ClientTlsConfig, IdentityErrors> {
    let mut errors = Vec::new();
    let mut read = |what: &str, path: &Path| {
        std::fs::read(path)
            .map_err(|error| errors.push(format!("cannot read the {what} {}: {error}", path.display())))
            .ok()
    };
    let ca = read("CA certificate", &tls.ca);
    let certificate = read("node certificate", &tls.certificate);
    let key = read("node key", &tls.key);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as i64;
    if let Some(pem) = &ca {
        errors.extend(examine(pem, now).err().map(|wrong| {
            format!(
                "the CA certificate {} {wrong}: use the ca.pem of `jump-control pki init`",
                tls.ca.display()
            )
        }));
    }
    if let Some(pem) = &certificate {
        let wrong = examine(pem, now).and_then(|names| speaks_for(&names, node));
        errors.extend(wrong.err().map(|wrong| {
            format!(
                "the node certificate {} {wrong}: issue one with `jump-control pki issue --role gateway --name {node}`",
                tls.certificate.display()
            )
        }));
    }
    if let Some(pem) = &key
        && !pem.windows(b"PRIVATE KEY-----".len()).any(|part| part == b"PRIVATE KEY-----")
    {
        errors.push(format!("the node key {} is not a private key in PEM form", tls.key.display()));
    }
    match (ca, certificate, key) {
        (Some(ca), Some(certificate), Some(key)) if errors.is_empty() => Ok(ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(certificate, key))),
        _ => Err(IdentityErrors(errors)),
    }
}

/// The URI names of the first certificate in `pem`, if it is valid at `now`.
fn examine(pem: &[u8], now: i64) -> Result<Vec<String>, String> {
    let first = Pem::iter_from_buffer(pem).flatten().find(|block| block.label == "CERTIFICATE");
    let block = first.ok_or("holds no certificate in PEM form")?;
    let certificate: X509Certificate<'_> = block.parse_x509().map_err(|_| "cannot be parsed")?;
    let validity = certificate.validity();
    if validity.not_after.timestamp() <= now {
        return Err(format!("has expired ({})", validity.not_after));
    }
    if validity.not_before.timestamp() > now {
        return Err(format!("is not valid before {} (is this machine's clock right?)", validity.not_before));
    }
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None })
        .collect())
}

fn speaks_for(names: &[String], node: &NodeId) -> Result<(), String> {
    const ROLE: &str = "spiffe://jumping-vpn/gateway/";
    match names.iter().find_map(|name| name.strip_prefix(ROLE)) {
        Some(named) if named == node.as_str() => Ok(()),
        // Pods that share a certificate: a name may end in `*`.
        Some(named) if named.strip_suffix('*').is_some_and(|prefix| node.as_str().starts_with(prefix)) => {
            Ok(())
        }
        Some(other) => Err(format!("names gateway {other:?}, but this node is {node:?}")),
        None => Err("is not one of the gateway role".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errors of loading an identity with this role name, valid until the first day of `year`.
    fn errors_of(role: &str, year: i32) -> String {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["gw-1".to_owned()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(role.try_into().unwrap()));
        let ca = params.self_signed(&key).unwrap().pem();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let tls = Tls {
            ca: dir.path().join("ca.pem"),
            certificate: dir.path().join("gw.pem"),
            key: dir.path().join("gw-key.pem"),
        };
        std::fs::write(&tls.ca, ca).unwrap();
        std::fs::write(&tls.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&tls.key, key.serialize_pem()).unwrap();
        load(&tls, &"gw-1".parse().unwrap()).err().map(|errors| errors.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_certificate_of_this_node_is_taken() {
        assert_eq!(errors_of("spiffe://jumping-vpn/gateway/gw-1", 4000), "");
        assert_eq!(errors_of("spiffe://jumping-vpn/gateway/gw-*", 4000), "");
    }

    #[test]
    fn an_expired_certificate_one_of_another_node_and_one_of_another_role_are_refused_with_advice() {
        for (role, year, part) in [
            ("spiffe://jumping-vpn/gateway/gw-1", 2021, "has expired"),
            ("spiffe://jumping-vpn/gateway/gw-2", 4000, "names gateway \"gw-2\""),
            ("spiffe://jumping-vpn/gateway/x*", 4000, "names gateway \"x*\""),
            ("spiffe://jumping-vpn/operator/gw-1", 4000, "not one of the gateway role"),
        ] {
            let errors = errors_of(role, year);
            assert!(errors.contains(part) && errors.contains("jump-control pki issue"), "{errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
    }

    #[test]
    fn all_missing_files_are_reported_together() {
        let missing = || "/nonexistent/file.pem".into();
        let tls = Tls { ca: missing(), certificate: missing(), key: missing() };
        let errors = load(&tls, &"gw-1".parse().unwrap()).unwrap_err();
        assert_eq!(errors.to_string().lines().count(), 3);
    }
}
