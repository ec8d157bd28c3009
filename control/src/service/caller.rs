//! What a caller may do, by the identity in its certificate.

use jump_session::ids::NodeId;
use tonic::Request;

use super::ServiceError;
use crate::identity::{Identity, Role};

/// The caller of a request.
fn identity<T>(request: &Request<T>) -> Result<Identity, ServiceError> {
    let certificates = request.peer_certs().ok_or_else(|| {
        ServiceError::Unauthenticated(
            "this call needs a client certificate: make one with `jump-control pki issue`".to_owned(),
        )
    })?;
    let leaf = certificates.first().map_or(&[][..], |leaf| leaf.as_ref());
    Identity::from_der(leaf).map_err(|error| ServiceError::Unauthenticated(error.to_string()))
}

/// The caller, if it may change things.
pub(super) fn operator<T>(request: &Request<T>) -> Result<Identity, ServiceError> {
    with_role(request, &[Role::Operator])
}

/// The caller, if it may read.
pub(super) fn reader<T>(request: &Request<T>) -> Result<Identity, ServiceError> {
    with_role(request, &[Role::Operator, Role::Reader])
}

/// The caller, if it is the gateway `node`.
pub(super) fn gateway<T>(request: &Request<T>, node: &str) -> Result<Identity, ServiceError> {
    let identity = with_role(request, &[Role::Gateway])?;
    // What is no node id is for the parser to complain about, field by field.
    let own = node.parse::<NodeId>().map_or(node.is_empty(), |node| identity.may_speak_for(&node));
    if own {
        return Ok(identity);
    }
    Err(ServiceError::Forbidden(format!("{identity} may speak only for itself, not for {node:?}")))
}

fn with_role<T>(request: &Request<T>, roles: &[Role]) -> Result<Identity, ServiceError> {
    let identity = identity(request)?;
    if roles.contains(&identity.role()) {
        return Ok(identity);
    }
    let needed: Vec<&str> = roles.iter().map(|role| role.word()).collect();
    Err(ServiceError::Forbidden(format!("this call needs the role {}", needed.join(" or "))))
}
