//! Key rotation: control takes a new key for this device, which proves that it holds the old one and the new one.
//!
//! The order on disk makes it safe to stop anywhere: the new key is written before control hears of it, and takes the old
//! one's place only after control has taken it. Asked again with the same two keys, control gives the same answer.

use std::time::Duration;

use jump_crypto::entropy::OsEntropy;
use jump_crypto::ids::DeviceKey;
use jump_crypto::keys::DeviceSecret;
use jump_crypto::rotation::answer;
use jump_proto::client_v1::enrolment_service_client::EnrolmentServiceClient;
use jump_proto::client_v1::{
    RotateKeyRequest, Rotated as WireRotated, RotationKeys, rotate_key_request, rotate_key_response,
};
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::channel;
use crate::daemon::{Request, ask};
use crate::enrol::{bad_profile, profile_from};
use crate::failure::{Exit, Failure};
use crate::state_dir::{Profile, StateDir};

/// A finished rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The device's key now.
    pub key: DeviceKey,
    /// How long the old one still serves.
    pub overlap: Duration,
    /// Whether a running client goes on under the new key already.
    pub reloaded: bool,
}

impl Rotated {
    /// For people.
    pub fn to_text(&self) -> String {
        let running = if self.reloaded { "; the running session goes on under it" } else { "" };
        let overlap = humantime::format_duration(self.overlap);
        format!("the device's key is now {}; the old one serves for {overlap}{running}", self.key)
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        json!({
            "device_key": self.key.to_string(),
            "overlap_ms": u64::try_from(self.overlap.as_millis()).unwrap_or(u64::MAX),
            "reloaded": self.reloaded,
        })
        .to_string()
    }
}

/// Rotates the device's key, or finishes a rotation that was interrupted.
///
/// # Errors
/// A line that says what to do.
pub async fn rotate(state: &StateDir) -> Result<Rotated, Failure> {
    let profile = state.profile()?;
    let _lock = state.lock_rotation()?;
    let old = state.device_key()?;
    let mut entropy = OsEntropy::new()
        .map_err(|error| Failure::because(Exit::Failed, "cannot make a device key", &error))?;
    let new = state.rotated_key(&mut entropy)?;
    let rotated = ask_control(&profile, &old, &new).await?;
    state.finish_rotation()?;
    let fresh = rotated.profile.ok_or_else(|| bad_profile("it is empty"))?;
    state.write_profile(&profile_from(fresh, &profile.control, &profile.control_ca)?)?;
    let reloaded = ask(state, Request::ReloadKey, |_| Ok(false)).await.is_ok();
    Ok(Rotated { key: new.public(), overlap: Duration::from_millis(rotated.overlap_ms), reloaded })
}

async fn ask_control(
    profile: &Profile,
    old: &DeviceSecret,
    new: &DeviceSecret,
) -> Result<WireRotated, Failure> {
    if profile.control_ca.is_empty() {
        return Err(Failure::new(
            Exit::NotEnrolled,
            "the profile does not hold control's CA certificate: enrol the device again (jump enroll --force)",
        ));
    }
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&profile.control_ca));
    let mut client = EnrolmentServiceClient::new(channel::connect(&profile.control, tls).await?);
    let failed = |status: tonic::Status| channel::refused("key rotation", &status);
    let (steps, stream) = tokio::sync::mpsc::channel(2);
    let send = |step| {
        // A stream that has ended says why when it is read.
        let _ = steps.try_send(RotateKeyRequest { step: Some(step) });
    };
    let keys = RotationKeys { old: old.public().as_bytes().to_vec(), new: new.public().as_bytes().to_vec() };
    send(rotate_key_request::Step::Keys(keys));
    let mut answers = client.rotate_key(ReceiverStream::new(stream)).await.map_err(failed)?.into_inner();
    let Some(rotate_key_response::Step::Challenge(challenge)) = next(&mut answers).await? else {
        return Err(Failure::other("control sent no challenge: does its version fit this program's?"));
    };
    let proof = challenge.as_slice().try_into().ok().and_then(|challenge| answer(old, new, challenge));
    let proof = proof.ok_or_else(|| Failure::other("control sent an unusable challenge"))?;
    send(rotate_key_request::Step::Answer(proof.to_vec()));
    match next(&mut answers).await? {
        Some(rotate_key_response::Step::Rotated(rotated)) => Ok(rotated),
        Some(rotate_key_response::Step::Challenge(_)) | None => {
            Err(Failure::other("control did not confirm the rotation: run jump rotate-key again"))
        }
    }
}

async fn next(
    answers: &mut Streaming<jump_proto::client_v1::RotateKeyResponse>,
) -> Result<Option<rotate_key_response::Step>, Failure> {
    let message = answers.message().await.map_err(|status| channel::refused("key rotation", &status))?;
    Ok(message.and_then(|message| message.step))
}
