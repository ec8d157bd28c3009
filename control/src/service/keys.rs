//! The key rings for operators.

use std::sync::Arc;

use jump_crypto::key_ring::KeyState;
use jump_proto::control_v1 as wire;
use jump_proto::control_v1::key_service_server::KeyService;
use jump_proto::convert::{Fields, timestamp};
use tonic::{Request, Response, Status};

use super::{Context, ServiceError, caller};
use crate::identity::Identity;
use crate::keyring::{KeyChange, Purpose, Ring};

/// `KeyService`.
#[derive(Debug)]
pub struct KeyApi {
    context: Arc<Context>,
}

impl KeyApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn messages(&self, ring: &Ring) -> Vec<wire::Key> {
        let purpose = match ring.purpose {
            Purpose::Cluster => wire::KeyPurpose::Cluster,
            Purpose::Grant => wire::KeyPurpose::Grant,
        };
        let message = |key: crate::keyring::PublicKey| wire::Key {
            purpose: purpose.into(),
            key_id: key.id(),
            public_key: key.public.to_vec(),
            state: match key.state {
                KeyState::Next => wire::KeyState::Next,
                KeyState::Current => wire::KeyState::Current,
                KeyState::Retiring { .. } => wire::KeyState::Retiring,
                KeyState::Retired => wire::KeyState::Retired,
            }
            .into(),
            create_time: Some(timestamp(key.created)),
            change_time: Some(timestamp(key.changed)),
            due_time: key.due.map(timestamp),
        };
        ring.keys(self.context.keeper.policy).into_iter().map(message).collect()
    }

    async fn change(
        &self,
        operator: &Identity,
        purpose: i32,
        change: KeyChange,
        comment: &str,
    ) -> Result<Vec<wire::Key>, ServiceError> {
        let mut fields = Fields::default();
        let purpose = match wire::KeyPurpose::try_from(purpose) {
            Ok(wire::KeyPurpose::Cluster) => Some(Purpose::Cluster),
            Ok(wire::KeyPurpose::Grant) => Some(Purpose::Grant),
            Ok(wire::KeyPurpose::Unspecified) | Err(_) => None,
        };
        let purpose = fields.take("purpose", purpose.ok_or("must be CLUSTER or GRANT"));
        let purpose = fields.finish(|| purpose)?;
        let Context { keeper, entropy, .. } = &*self.context;
        let ring = keeper.change(purpose, &change, entropy, Some(operator), comment).await?;
        Ok(self.messages(&ring))
    }
}

#[tonic::async_trait]
impl KeyService for KeyApi {
    async fn list_keys(
        &self,
        request: Request<wire::ListKeysRequest>,
    ) -> Result<Response<wire::ListKeysResponse>, Status> {
        caller::reader(&request)?;
        let rings = self.context.keeper.list().await.map_err(ServiceError::from)?;
        let keys = rings.iter().flat_map(|ring| self.messages(ring)).collect();
        Ok(Response::new(wire::ListKeysResponse { keys }))
    }

    async fn rotate_key(
        &self,
        request: Request<wire::RotateKeyRequest>,
    ) -> Result<Response<wire::RotateKeyResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let change = if request.leaked { KeyChange::ReplaceLeaked } else { KeyChange::Rotate };
        let keys = self.change(&operator, request.purpose, change, &request.comment).await?;
        Ok(Response::new(wire::RotateKeyResponse { keys }))
    }

    async fn retire_key(
        &self,
        request: Request<wire::RetireKeyRequest>,
    ) -> Result<Response<wire::RetireKeyResponse>, Status> {
        let operator = caller::operator(&request)?;
        let request = request.into_inner();
        let change = KeyChange::Retire(request.key_id.to_ascii_lowercase());
        let keys = self.change(&operator, request.purpose, change, &request.comment).await?;
        Ok(Response::new(wire::RetireKeyResponse { keys }))
    }
}
