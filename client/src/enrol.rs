//! Enrolment: a one-time token becomes a device key that control knows, and a profile.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jump_crypto::entropy::OsEntropy;
use jump_proto::client_v1::enrolment_service_client::EnrolmentServiceClient;
use jump_proto::client_v1::{EnrolRequest, Profile as WireProfile};
use jump_proto::token::EnrolmentToken;
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::channel;
use crate::failure::{Exit, Failure};
use crate::hex;
use crate::state_dir::{Profile, StateDir};

/// Enrols the device with `token`. Asked again with the same token, it gets the same answer, so an interrupted
/// enrolment is repeated as it is.
///
/// # Errors
/// A line that says what to do.
pub async fn enrol(state: &StateDir, token: &str, force: bool) -> Result<Profile, Failure> {
    let token: EnrolmentToken =
        token.parse().map_err(|error| Failure::because(Exit::Usage, "the token cannot be used", &error))?;
    state.create()?;
    let _lock = state.lock()?;
    if state.is_enrolled() && !force {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "this device is already enrolled in {}: use --force to replace its key",
                state.path().display()
            ),
        ));
    }
    let mut entropy = OsEntropy::new()
        .map_err(|error| Failure::because(Exit::Failed, "cannot make a device key", &error))?;
    // The old enrolment stays until the new one is accepted.
    let key =
        if force { state.next_device_key(&mut entropy)? } else { state.device_key_or_new(&mut entropy)? };
    let pem = pem_of(&token.ca);
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&pem));
    let channel = channel::connect(&token.address, tls).await?;
    let request =
        EnrolRequest { secret: token.secret.to_vec(), device_key: key.public().as_bytes().to_vec() };
    let response = EnrolmentServiceClient::new(channel)
        .enrol(request)
        .await
        .map_err(|status| channel::refused("enrolment", &status))?;
    let wire = response.into_inner().profile.ok_or_else(|| bad_profile("it is empty"))?;
    let profile = profile_from(wire, &token.address, &pem)?;
    if force {
        state.replace_device()?;
    }
    state.write_profile(&profile)?;
    Ok(profile)
}

/// Reads a profile of the wire.
pub(crate) fn profile_from(wire: WireProfile, control: &str, ca: &str) -> Result<Profile, Failure> {
    let keys = |name: &str, keys: &[Vec<u8>]| {
        if keys.is_empty() || keys.iter().any(|key| key.len() != 32) {
            return Err(bad_profile(&format!("{name} are not keys")));
        }
        Ok(keys.iter().map(|key| hex::encode(key)).collect::<Vec<_>>())
    };
    let gateways: Result<Vec<SocketAddr>, _> = wire.gateways.iter().map(|gateway| gateway.parse()).collect();
    Ok(Profile {
        device_name: wire.device_name,
        control: control.to_owned(),
        cluster_keys: keys("cluster_keys", &wire.cluster_keys)?,
        grant_keys: keys("grant_keys", &wire.grant_keys)?,
        gateways: gateways.map_err(|_| bad_profile("gateways are not addresses"))?,
        key_set_serial: wire.key_set_serial,
        hybrid: wire.hybrid,
        control_ca: ca.to_owned(),
    })
}

pub(crate) fn bad_profile(what: &str) -> Failure {
    Failure::other(format!("control sent an unusable profile ({what}): does its version fit this program's?"))
}

fn pem_of(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_with_a_short_key_or_a_bad_address_is_refused() {
        let good = WireProfile {
            device_name: "laptop".to_owned(),
            cluster_keys: vec![vec![1; 32]],
            grant_keys: vec![vec![2; 32]],
            gateways: vec!["192.0.2.1:51820".to_owned()],
            key_set_serial: 1,
            hybrid: true,
        };
        assert!(profile_from(good.clone(), "c:1", "").is_ok_and(|profile| profile.hybrid));
        let short = WireProfile { cluster_keys: vec![vec![1; 31]], ..good.clone() };
        assert!(profile_from(short, "c:1", "").is_err());
        let none = WireProfile { grant_keys: vec![], ..good.clone() };
        assert!(profile_from(none, "c:1", "").is_err());
        let address = WireProfile { gateways: vec!["gw1".to_owned()], ..good };
        assert!(profile_from(address, "c:1", "").is_err());
    }
}
