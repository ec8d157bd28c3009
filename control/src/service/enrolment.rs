//! What a device asks before it has a session: the only service that answers without a client certificate.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jump_crypto::rotation::Challenge;
use jump_proto::client_v1 as wire;
use jump_proto::client_v1::enrolment_service_server::EnrolmentService;
use jump_proto::client_v1::{rotate_key_request, rotate_key_response};
use jump_proto::convert::Fields;
use jump_session::ids::DeviceKey;
use jump_session::steering;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Context, ServiceError};
use crate::audit;
use crate::devices::DeviceError;

/// How many enrolments may be worked on at a time; the caller is unknown until its token is found.
const CONCURRENT_MAX: usize = 32;

/// How long a rotation may take, from the first message to the last.
const ROTATION_MAX: Duration = Duration::from_secs(10);

/// `EnrolmentService`.
#[derive(Debug)]
pub struct EnrolmentApi {
    context: Arc<Context>,
    slots: Arc<Semaphore>,
}

impl EnrolmentApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, slots: Arc::new(Semaphore::new(CONCURRENT_MAX)) }
    }
}

#[tonic::async_trait]
impl EnrolmentService for EnrolmentApi {
    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::EnrolResponse>, Status> {
        let _slot = self
            .slots
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many enrolments at once: try again"))?;
        let from = request.remote_addr();
        let request = request.into_inner();
        let mut fields = Fields::default();
        let secret = fields.bytes("secret", &request.secret);
        let key = fields.bytes("device_key", &request.device_key).map(DeviceKey::from_bytes);
        let (secret, key) = fields.finish(|| Some((secret?, key?))).map_err(ServiceError::from)?;
        let device = match self.context.devices.enrol_with_token(&secret, key).await {
            Ok(device) => device,
            Err(error) => {
                tracing::warn!(client = from.map(tracing::field::display), %error, "enrolment refused");
                audit::enrolment_refused(key, &error, from);
                return Err(ServiceError::from(error).into());
            }
        };
        tracing::info!(
            device = device.record.name,
            key = %key,
            client = from.map(tracing::field::display),
            "device enrolled with a token"
        );
        audit::device_enrolled(key, &device.record.name, None, from);
        Ok(Response::new(wire::EnrolResponse {
            profile: Some(profile(&self.context, &key, device.record.name)),
        }))
    }

    type RotateKeyStream = ReceiverStream<Result<wire::RotateKeyResponse, Status>>;

    async fn rotate_key(
        &self,
        request: Request<Streaming<wire::RotateKeyRequest>>,
    ) -> Result<Response<Self::RotateKeyStream>, Status> {
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many enrolments at once: try again"))?;
        let from = request.remote_addr();
        let mut steps = request.into_inner();
        let (answers, stream) = mpsc::channel(1);
        let context = Arc::clone(&self.context);
        tokio::spawn(async move {
            let _slot = slot;
            let rotation = rotate(&context, &mut steps, &answers, from);
            let outcome = tokio::time::timeout(ROTATION_MAX, rotation).await;
            let last = match outcome {
                Ok(Ok(rotated)) => {
                    Ok(wire::RotateKeyResponse { step: Some(rotate_key_response::Step::Rotated(rotated)) })
                }
                Ok(Err(status)) => {
                    tracing::warn!(
                        client = from.map(tracing::field::display),
                        error = status.message(),
                        "key rotation refused"
                    );
                    Err(status)
                }
                Err(_) => Err(Status::deadline_exceeded("the device did not answer the challenge in time")),
            };
            // A device that has gone asks again, and gets the same answer.
            let _ = answers.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// What the device with this key must know to attach. Gateways that take sessions, in the device's own order of them.
fn profile(context: &Context, key: &DeviceKey, device_name: String) -> wire::Profile {
    let keys = context.keys.load();
    let nodes = context.bindings.nodes();
    let live = nodes.iter().filter(|(_, drained)| !drained);
    let endpoints = live.flat_map(|(node, _)| &node.record.endpoints);
    let mut gateways: Vec<SocketAddr> = endpoints.filter_map(|endpoint| endpoint.parse().ok()).collect();
    steering::rank(key, &mut gateways);
    wire::Profile {
        device_name,
        cluster_keys: keys.claims.cluster.iter().map(|key| key.0.to_vec()).collect(),
        grant_keys: keys.claims.grant.iter().map(|key| key.to_vec()).collect(),
        gateways: gateways.iter().map(ToString::to_string).collect(),
        key_set_serial: keys.claims.serial,
        hybrid: keys.claims.hybrid,
    }
}

async fn next_step(
    steps: &mut Streaming<wire::RotateKeyRequest>,
) -> Result<Option<rotate_key_request::Step>, Status> {
    Ok(steps.message().await?.and_then(|message| message.step))
}

/// Both steps of a rotation. Nothing is read from the store before the device has proved both keys.
async fn rotate(
    context: &Context,
    steps: &mut Streaming<wire::RotateKeyRequest>,
    answers: &mpsc::Sender<Result<wire::RotateKeyResponse, Status>>,
    from: Option<SocketAddr>,
) -> Result<wire::Rotated, Status> {
    let Some(rotate_key_request::Step::Keys(keys)) = next_step(steps).await? else {
        return Err(Status::invalid_argument("the first message must name both keys"));
    };
    let mut fields = Fields::default();
    let old = fields.bytes("old", &keys.old).map(DeviceKey::from_bytes);
    let new = fields.bytes("new", &keys.new).map(DeviceKey::from_bytes);
    let (old, new) = fields.finish(|| Some((old?, new?))).map_err(ServiceError::from)?;
    let challenge = {
        let mut entropy = context.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        Challenge::generate(entropy.as_mut()).map_err(|error| ServiceError::from(DeviceError::from(error)))?
    };
    let step = rotate_key_response::Step::Challenge(challenge.public().to_vec());
    let sent = answers.send(Ok(wire::RotateKeyResponse { step: Some(step) })).await;
    sent.map_err(|_| Status::cancelled("the device has gone"))?;
    let Some(rotate_key_request::Step::Answer(answer)) = next_step(steps).await? else {
        return Err(Status::invalid_argument("the second message must answer the challenge"));
    };
    let mut fields = Fields::default();
    let answer = fields.bytes("answer", &answer);
    let answer = fields.finish(|| answer).map_err(ServiceError::from)?;
    if !challenge.proved_by(old, new, &answer) {
        return Err(ServiceError::Forbidden("the device does not hold both keys".to_owned()).into());
    }
    let device = context.devices.rotate(old, new).await.map_err(ServiceError::from)?;
    tracing::info!(device = %device.key, %old, %new, client = from.map(tracing::field::display), "device key rotated");
    audit::device_rotated(&device, old, new, from);
    let overlap = context.devices.overlap.as_millis();
    Ok(wire::Rotated {
        overlap_ms: u64::try_from(overlap).unwrap_or(u64::MAX),
        profile: Some(profile(context, &new, device.record.name)),
    })
}
