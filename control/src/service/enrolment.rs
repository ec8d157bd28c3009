//! What a device asks before it has a session: the only service that answers without a client certificate.

use std::sync::Arc;

use jump_proto::client_v1 as wire;
use jump_proto::client_v1::enrolment_service_server::EnrolmentService;
use jump_proto::convert::Fields;
use jump_session::ids::DeviceKey;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{Context, ServiceError};
use crate::audit;

/// How many enrolments may be worked on at a time; the caller is unknown until its token is found.
const CONCURRENT_MAX: usize = 32;

/// `EnrolmentService`.
#[derive(Debug)]
pub struct EnrolmentApi {
    context: Arc<Context>,
    slots: Semaphore,
}

impl EnrolmentApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, slots: Semaphore::new(CONCURRENT_MAX) }
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
        let keys = self.context.keys.load();
        let nodes = self.context.bindings.nodes();
        let live = nodes.iter().filter(|(_, drained)| !drained);
        Ok(Response::new(wire::EnrolResponse {
            profile: Some(wire::Profile {
                device_name: device.record.name,
                cluster_keys: keys.cluster.iter().map(|key| key.public().0.to_vec()).collect(),
                grant_keys: keys.grant_public.iter().map(|key| key.to_vec()).collect(),
                gateways: live.flat_map(|(node, _)| node.record.endpoints.clone()).collect(),
            }),
        }))
    }
}
