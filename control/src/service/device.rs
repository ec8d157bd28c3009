//! Devices for operators.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::device_service_server::DeviceService;
use jump_proto::convert::{Fields, timestamp, unix_millis};
use jump_proto::token::EnrolmentToken;
use jump_session::ids::DeviceKey;
use jump_session::ownership::DeviceStanding;
use tonic::{Request, Response, Status};

use super::session::page_size;
use super::{Context, ServiceError, caller, optional_time};
use crate::audit;
use crate::clock;
use crate::devices::{self, DeviceError, NAME_CHARS_MAX, StoredDevice};

/// How long a token can be used: when nothing is asked for, and at most.
const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(3600);
const TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a device has to rotate its key unless told otherwise.
const ROTATION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// `DeviceService`.
#[derive(Debug)]
pub struct DeviceApi {
    context: Arc<Context>,
}

impl DeviceApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

fn message(device: &StoredDevice) -> wire::Device {
    use wire::device::State;
    let record = &device.record;
    let state = match devices::standing(Some(record), clock::unix_millis()) {
        DeviceStanding::Active => State::Active,
        DeviceStanding::Revoked => State::Revoked,
        DeviceStanding::Expired => State::Expired,
        DeviceStanding::Unknown => State::Unspecified,
    };
    wire::Device {
        device_key: device.key.to_string(),
        name: record.name.clone(),
        enrol_time: Some(timestamp(record.enrolled_ms)),
        not_before: optional_time(record.not_before_ms),
        not_after: optional_time(record.not_after_ms),
        state: state.into(),
        revoke_time: optional_time(record.revoked_ms),
        etag: device.modified.0.to_string(),
        current_key: device.current_key().to_string(),
        rotate_by: optional_time(record.keys.last().map_or(0, |key| key.until_ms)),
        policy: record.policy.as_ref().map(|policy| wire::DevicePolicy {
            allowed_destinations: policy.allowed_destinations.clone(),
            bytes_per_second: policy.bytes_per_second,
        }),
    }
}

fn check_name(fields: &mut Fields, name: &str) {
    let length = name.chars().count();
    if length == 0 || length > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        fields.bad("name", format_args!("must have 1 to {NAME_CHARS_MAX} printable characters"));
    }
}

fn parse_duration(
    fields: &mut Fields,
    field: &str,
    value: Option<prost_types::Duration>,
    default: Duration,
    max: Duration,
) -> Option<Duration> {
    let Some(value) = value else { return Some(default) };
    let parsed = Duration::try_from(value)
        .ok()
        .filter(|parsed| *parsed <= max)
        .ok_or_else(|| format!("must be between 0 and {} seconds", max.as_secs()));
    fields.take(field, parsed)
}

#[tonic::async_trait]
impl DeviceService for DeviceApi {
    async fn create_enrolment_token(
        &self,
        request: Request<wire::CreateEnrolmentTokenRequest>,
    ) -> Result<Response<wire::CreateEnrolmentTokenResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        check_name(&mut fields, &request.name);
        let ttl = parse_duration(&mut fields, "ttl", request.ttl, TOKEN_TTL_DEFAULT, TOKEN_TTL_MAX);
        let device_ttl =
            parse_duration(&mut fields, "device_ttl", request.device_ttl, Duration::ZERO, Duration::MAX);
        let policy = fields.device_policy("policy", request.policy.as_ref());
        let request_id = match request.request_id.as_str() {
            "" => Some(None),
            text => {
                fields.take("request_id", text.parse::<uuid::Uuid>().map(Some).map_err(|_| "must be a UUID"))
            }
        };
        let (ttl, device_ttl, policy, request_id) =
            fields.finish(|| Some((ttl?, device_ttl?, policy?, request_id?))).map_err(ServiceError::from)?;
        let ttl = if ttl.is_zero() { TOKEN_TTL_DEFAULT } else { ttl };
        let Context { devices, entropy, profile, keys, .. } = &*self.context;
        // Drawn for every token: a generator that fails its tests lets none be made.
        let mut fresh = [0; 16];
        entropy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill(&mut fresh)
            .map_err(|error| ServiceError::from(DeviceError::from(error)))?;
        let request_id = request_id.map_or(fresh, uuid::Uuid::into_bytes);
        let secret = keys.load().signers[0].token_secret(&request_id);
        let expires = devices
            .create_token(&secret, &request.name, ttl, device_ttl, &policy)
            .await
            .map_err(ServiceError::from)?;
        audit::token_issued(&devices::token_key(&secret), &request.name, &operator);
        let token = EnrolmentToken { address: profile.advertise.clone(), ca: profile.ca.clone(), secret };
        let text = token.encode().map_err(|_| {
            ServiceError::Precondition(format!(
                "the advertised address {:?} or the CA certificate does not fit into a token",
                profile.advertise
            ))
        })?;
        tracing::info!(device = request.name, operator = operator.name(), "enrolment token created");
        Ok(Response::new(wire::CreateEnrolmentTokenResponse {
            token: text,
            expire_time: Some(timestamp(expires)),
        }))
    }

    async fn enrol_device(
        &self,
        request: Request<wire::EnrolDeviceRequest>,
    ) -> Result<Response<wire::EnrolDeviceResponse>, Status> {
        let operator = caller::operator(&request)?;
        let from = request.remote_addr();
        let request = request.into_inner();
        let mut fields = Fields::default();
        let key = fields.id::<DeviceKey>("device_key", &request.device_key);
        check_name(&mut fields, &request.name);
        let not_after = match request.not_after {
            None => Some(0),
            Some(at) => {
                let future = unix_millis(at).filter(|at| *at > clock::unix_millis());
                fields.take("not_after", future.ok_or("must lie in the future"))
            }
        };
        let policy = fields.device_policy("policy", request.policy.as_ref());
        let (key, not_after, policy) =
            fields.finish(|| Some((key?, not_after?, policy?))).map_err(ServiceError::from)?;
        let devices = &self.context.devices;
        let device =
            devices.enrol(key, &request.name, not_after, &policy).await.map_err(ServiceError::from)?;
        tracing::info!(device = request.name, key = %key, operator = operator.name(), "device enrolled");
        audit::device_enrolled(key, &request.name, Some(&operator), from);
        Ok(Response::new(wire::EnrolDeviceResponse { device: Some(message(&device)) }))
    }

    async fn list_devices(
        &self,
        request: Request<wire::ListDevicesRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        caller::reader(&request)?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let mut fields = Fields::default();
        let after = match request.page_token.as_str() {
            "" => Some(String::new()),
            token => fields.id::<DeviceKey>("page_token", token).map(|key| crate::layout::device(&key)),
        };
        let after = fields.finish(|| after).map_err(ServiceError::from)?;
        let (devices, more) = self.context.devices.list(&after, size).await.map_err(ServiceError::from)?;
        let next = devices.last().filter(|_| more).map(|device| device.key.to_string());
        Ok(Response::new(wire::ListDevicesResponse {
            devices: devices.iter().map(message).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn require_rotation(
        &self,
        request: Request<wire::RequireRotationRequest>,
    ) -> Result<Response<wire::RequireRotationResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let key = fields.id::<DeviceKey>("device_key", &request.device_key);
        let within = parse_duration(&mut fields, "within", request.within, ROTATION_DEFAULT, Duration::MAX);
        let (key, within) = fields.finish(|| Some((key?, within?))).map_err(ServiceError::from)?;
        let device = self.context.devices.require_rotation(key, within).await.map_err(ServiceError::from)?;
        tracing::info!(
            device = device.record.name,
            key = %key,
            within_s = within.as_secs(),
            operator = operator.name(),
            comment = request.comment,
            "device must rotate its key"
        );
        audit::rotation_required(&device, within, &operator);
        Ok(Response::new(wire::RequireRotationResponse { device: Some(message(&device)) }))
    }

    async fn set_device_policy(
        &self,
        request: Request<wire::SetDevicePolicyRequest>,
    ) -> Result<Response<wire::SetDevicePolicyResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let key = fields.id::<DeviceKey>("device_key", &request.device_key);
        let policy = fields.device_policy("policy", request.policy.as_ref());
        let (key, policy) = fields.finish(|| Some((key?, policy?))).map_err(ServiceError::from)?;
        let (device, sessions) =
            self.context.devices.set_policy(key, &policy).await.map_err(ServiceError::from)?;
        tracing::info!(
            device = device.record.name,
            key = %key,
            sessions,
            operator = operator.name(),
            comment = request.comment,
            "device bounded by another policy"
        );
        audit::device_bounded(&device, &policy, sessions, &operator);
        Ok(Response::new(wire::SetDevicePolicyResponse { device: Some(message(&device)), sessions }))
    }

    async fn revoke_device(
        &self,
        request: Request<wire::RevokeDeviceRequest>,
    ) -> Result<Response<wire::RevokeDeviceResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let key = fields.id::<DeviceKey>("device_key", &request.device_key);
        let key = fields.finish(|| key).map_err(ServiceError::from)?;
        let (device, ended) = self.context.devices.revoke(key).await.map_err(ServiceError::from)?;
        tracing::info!(
            device = device.record.name,
            key = %key,
            sessions = ended,
            operator = operator.name(),
            comment = request.comment,
            "device revoked"
        );
        audit::device_revoked(key, &device.record.name, ended, &operator);
        Ok(Response::new(wire::RevokeDeviceResponse {
            device: Some(message(&device)),
            terminated_sessions: ended,
        }))
    }
}
