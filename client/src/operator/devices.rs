//! `jumpctl devices`.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Subcommand;
use jump_proto::control_v1::device_service_client::DeviceServiceClient;
use jump_proto::control_v1::{
    CreateEnrolmentTokenRequest, Device, EnrolDeviceRequest, ListDevicesRequest, RequireRotationRequest,
    RevokeDeviceRequest, SetDevicePolicyRequest,
};
use jump_session::ids::DeviceKey;
use prost_types::Timestamp;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use serde_json::json;
use time::OffsetDateTime;

use super::policy::{self, Bounds};
use super::{Operator, confirm, request_id, view, wire_duration};
use crate::channel::refused;
use crate::failure::{Exit, Failure};
use crate::output::{self, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a one-time token for `jump enroll`; on a terminal also as a QR code
    #[command(alias = "token", alias = "enrol-token")]
    EnrollToken {
        /// The device's name
        name: String,
        /// How long the token can be used, for example 1h
        #[arg(long, value_parser = humantime::parse_duration, default_value = "1h")]
        ttl: Duration,
        /// How long the enrolled device stays valid, for example 90d; without it, until revoked
        #[arg(long, value_parser = humantime::parse_duration)]
        device_ttl: Option<Duration>,
        #[command(flatten)]
        bounds: Bounds,
        /// No QR code
        #[arg(long)]
        no_qr: bool,
    },
    /// Enrol a device whose public key is known
    #[command(alias = "enrol")]
    Enroll {
        /// The device's X25519 public key, 64 hexadecimal digits
        device: DeviceKey,
        /// The device's name
        name: String,
        /// How long the device stays valid, for example 90d; without it, until revoked
        #[arg(long, value_parser = humantime::parse_duration)]
        device_ttl: Option<Duration>,
        #[command(flatten)]
        bounds: Bounds,
    },
    /// List devices
    List,
    /// Set what bounds a device: it replaces what did before, for live sessions too
    Policy {
        /// The device's key, 64 hexadecimal digits
        device: DeviceKey,
        #[command(flatten)]
        bounds: Bounds,
        /// Bound nothing any more
        #[arg(long, conflicts_with_all = ["allowed", "rate"])]
        unbounded: bool,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Make a device rotate its key (`jump rotate-key`): its present key ends after a time
    Rotate {
        /// The device's key, 64 hexadecimal digits
        device: DeviceKey,
        /// How long the present key still serves, for example 7d
        #[arg(long, value_parser = humantime::parse_duration, default_value = "7d")]
        within: Duration,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Revoke a device: its sessions end at once, and it cannot attach again
    Revoke {
        /// The device's key, 64 hexadecimal digits
        device: DeviceKey,
        /// Shown in the audit trail
        #[arg(long, default_value = "")]
        comment: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

const HEADINGS: [&str; 7] = ["DEVICE", "STATE", "KEY", "ENROLLED", "VALID UNTIL", "ROTATE BY", "POLICY"];

pub(super) async fn run(operator: &Operator, command: Command) -> Result<(), Failure> {
    match command {
        Command::EnrollToken { name, ttl, device_ttl, bounds, no_qr } => {
            make_token(operator, name, ttl, device_ttl, &bounds, !no_qr).await
        }
        Command::Enroll { device, name, device_ttl, bounds } => {
            let request = EnrolDeviceRequest {
                device_key: device.to_string(),
                name,
                not_after: device_ttl.map(from_now).transpose()?,
                request_id: request_id(),
                policy: bounds.message(),
            };
            let response = DeviceServiceClient::new(operator.channel().await?)
                .enrol_device(request)
                .await
                .map_err(|status| refused(&format!("enrolling device {device}"), &status))?;
            show(operator, &response.into_inner().device.into_iter().collect::<Vec<_>>())
        }
        Command::List => list(operator).await,
        Command::Policy { device, bounds, unbounded, comment } => {
            let policy = bounds.message();
            if policy.is_none() && !unbounded {
                let problem = "say what bounds the device (--allow, --rate), or --unbounded";
                return Err(Failure::new(Exit::Usage, problem));
            }
            let request = SetDevicePolicyRequest { device_key: device.to_string(), policy, comment };
            let response = DeviceServiceClient::new(operator.channel().await?)
                .set_device_policy(request)
                .await
                .map_err(|status| refused(&format!("bounding device {device}"), &status))?;
            show(operator, &response.into_inner().device.into_iter().collect::<Vec<_>>())
        }
        Command::Rotate { device, within, comment } => {
            let request = RequireRotationRequest {
                device_key: device.to_string(),
                within: wire_duration(within),
                comment,
            };
            let response = DeviceServiceClient::new(operator.channel().await?)
                .require_rotation(request)
                .await
                .map_err(|status| refused(&format!("asking device {device} to rotate its key"), &status))?;
            show(operator, &response.into_inner().device.into_iter().collect::<Vec<_>>())
        }
        Command::Revoke { device, comment, yes } => {
            confirm(&format!("Revoke device {device} and end its sessions?"), yes)?;
            let request = RevokeDeviceRequest { device_key: device.to_string(), comment };
            let response = DeviceServiceClient::new(operator.channel().await?)
                .revoke_device(request)
                .await
                .map_err(|status| refused(&format!("revoking device {device}"), &status))?
                .into_inner();
            match operator.output {
                Output::Json => {
                    let device = response.device.as_ref().map(view::device);
                    let line =
                        json!({ "device": device, "terminated_sessions": response.terminated_sessions });
                    output::line(&line.to_string())
                }
                Output::Table => output::line(&format!(
                    "revoked {}; {} sessions ended",
                    response.device.map_or_else(|| device.to_string(), |device| device.name),
                    response.terminated_sessions
                )),
            }
        }
    }
}

async fn make_token(
    operator: &Operator,
    name: String,
    ttl: Duration,
    device_ttl: Option<Duration>,
    bounds: &Bounds,
    qr: bool,
) -> Result<(), Failure> {
    let request = CreateEnrolmentTokenRequest {
        name,
        ttl: wire_duration(ttl),
        device_ttl: device_ttl.and_then(wire_duration),
        request_id: request_id(),
        policy: bounds.message(),
    };
    let response = DeviceServiceClient::new(operator.channel().await?)
        .create_enrolment_token(request)
        .await
        .map_err(|status| refused("making an enrolment token", &status))?
        .into_inner();
    let expires = view::time(response.expire_time.as_ref());
    match operator.output {
        Output::Json => output::line(&json!({ "token": response.token, "expire_time": expires }).to_string()),
        Output::Table => {
            if qr && io::stdout().is_terminal() {
                output::line(&qr_code(&response.token)?)?;
            }
            output::line(&response.token)?;
            eprintln!(
                "usable once, until {}; on the device: jump enroll --token-file FILE",
                expires.as_deref().unwrap_or("it expires")
            );
            Ok(())
        }
    }
}

fn qr_code(token: &str) -> Result<String, Failure> {
    let code = QrCode::with_error_correction_level(token, EcLevel::L).map_err(|error| {
        Failure::other(format!("the token does not fit a QR code ({error}): use --no-qr"))
    })?;
    Ok(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

async fn list(operator: &Operator) -> Result<(), Failure> {
    let mut client = DeviceServiceClient::new(operator.channel().await?);
    let mut request = ListDevicesRequest::default();
    let mut devices = Vec::new();
    loop {
        let page = client
            .list_devices(request.clone())
            .await
            .map_err(|status| refused("listing devices", &status))?
            .into_inner();
        devices.extend(page.devices);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    show(operator, &devices)
}

fn show(operator: &Operator, devices: &[Device]) -> Result<(), Failure> {
    match operator.output {
        Output::Json => devices.iter().try_for_each(|device| output::line(&view::device(device).to_string())),
        Output::Table => {
            let rows: Vec<_> = devices.iter().map(row).collect();
            output::line(output::table(&HEADINGS, &rows).trim_end())
        }
    }
}

fn row(device: &Device) -> Vec<String> {
    vec![
        device.name.clone(),
        view::device_state(device),
        current_key(device),
        view::time(device.enrol_time.as_ref()).unwrap_or_else(|| "-".to_owned()),
        view::time(device.not_after.as_ref()).unwrap_or_else(|| "-".to_owned()),
        view::time(device.rotate_by.as_ref()).unwrap_or_else(|| "-".to_owned()),
        policy::cell(device.policy.as_ref()),
    ]
}

/// The key in use; its first one from a control that does not tell.
fn current_key(device: &Device) -> String {
    let key = if device.current_key.is_empty() { &device.device_key } else { &device.current_key };
    key.clone()
}

fn from_now(duration: Duration) -> Result<Timestamp, Failure> {
    let seconds = i64::try_from(duration.as_secs()).ok();
    let at = seconds.and_then(|seconds| OffsetDateTime::now_utc().unix_timestamp().checked_add(seconds));
    let seconds = at.ok_or_else(|| Failure::new(Exit::Usage, "--device-ttl is too long"))?;
    Ok(Timestamp { seconds, nanos: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_with_a_certificate_fits_a_qr_code() {
        let token = format!("jump1.{}", "A".repeat(900));
        assert!(qr_code(&token).is_ok());
    }
}
