//! The one place where refusals become gRPC statuses.

use std::collections::HashMap;

use jump_crypto::key_ring::RingError;
use jump_proto::convert::BadFields;
use jump_session::ownership::Refusal;
use jump_session::reason::Reason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::arbiter::ArbiterError;
use crate::devices::DeviceError;
use crate::keyring::KeyRingError;
use crate::layout::BadValue;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// The domain of every `ErrorInfo`.
pub(super) const ERROR_DOMAIN: &str = "jumping-vpn";

/// Why a call is not answered with a result.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Fields that cannot be used.
    #[error("invalid request: {0}")]
    BadFields(#[from] BadFields),
    /// The caller did not say who it is.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller may not.
    #[error("{0}")]
    Forbidden(String),
    /// Something named in the request does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The current state does not allow it.
    #[error("{0}")]
    Precondition(String),
    /// Arbitration refused or failed.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The registry refused or failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The device could not be enrolled or revoked.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The keys could not be read or changed.
    #[error(transparent)]
    Keys(#[from] KeyRingError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The status code of each reason, should it be the answer to a call.
pub(super) const fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::UnknownSession | Reason::UnknownDevice => Code::NotFound,
        Reason::KeyRevoked | Reason::KeyExpired | Reason::WrongDevice => Code::PermissionDenied,
        Reason::StoreUnavailable | Reason::ControlUnavailable => Code::Unavailable,
        Reason::Conflict | Reason::HandoverPending | Reason::SupersededAttempt => Code::Aborted,
        Reason::SwitchRateExceeded
        | Reason::SwitchCooldown
        | Reason::AddressPoolExhausted
        | Reason::SessionLimit
        | Reason::AttemptsExceeded => Code::ResourceExhausted,
        Reason::StaleAttempt
        | Reason::StaleEpoch
        | Reason::SessionTerminated
        | Reason::NodeNotRegistered
        | Reason::NodeDraining
        | Reason::LifetimeExceeded
        | Reason::RecoveryWindowExceeded => Code::FailedPrecondition,
        // Not refusals: should one ever be given as one, the caller did nothing wrong.
        Reason::Birth
        | Reason::GatewayUnresponsive
        | Reason::PathRefused
        | Reason::ReattachHint
        | Reason::GatewayDraining
        | Reason::NetworkChanged
        | Reason::TransportChanged
        | Reason::Resumed
        | Reason::ClientRestarted
        | Reason::OperatorMove
        | Reason::NatRebind
        | Reason::ClientRequest
        | Reason::Rekey
        | Reason::TransportLost
        | Reason::ClientClosed
        | Reason::OperatorTerminated
        | Reason::Superseded
        | Reason::Drained
        | Reason::KeyLimitReached
        | Reason::NodeLost
        | Reason::NodeDrained
        | Reason::Fenced
        | Reason::GuardTripped
        | Reason::GuardRecovered
        | Reason::Accepted
        | Reason::PathValidated
        | Reason::PathReverted
        | Reason::PathDegraded
        | Reason::PathRecovered => Code::Internal,
    }
}

fn with_info(code: Code, message: String, reason: &str, metadata: HashMap<String, String>) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata))
}

fn refused(refusal: &Refusal) -> Status {
    let metadata = HashMap::from([
        ("current_epoch".to_owned(), refusal.current_epoch.0.to_string()),
        ("current_attach_seq".to_owned(), refusal.current_attach_seq.0.to_string()),
    ]);
    let mut details = ErrorDetails::with_error_info(refusal.reason.code(), ERROR_DOMAIN, metadata);
    if !refusal.retry_after.is_zero() {
        details.set_retry_info(Some(refusal.retry_after));
    }
    Status::with_error_details(code_of(refusal.reason), refusal.reason.code(), details)
}

fn store(error: &StoreError) -> Status {
    let code = match error {
        StoreError::Unavailable(_) | StoreError::Unknown(_) => Code::Unavailable,
        StoreError::LeaseNotFound | StoreError::Compacted => Code::Aborted,
        StoreError::Refused(_) => Code::Internal,
    };
    with_info(code, error.to_string(), Reason::StoreUnavailable.code(), HashMap::new())
}

fn value(error: &BadValue) -> Status {
    with_info(Code::DataLoss, error.to_string(), "BAD_STORED_VALUE", HashMap::new())
}

fn arbiter(error: &ArbiterError) -> Status {
    match error {
        ArbiterError::Refused(refusal) => refused(refusal),
        ArbiterError::Store(error) => store(error),
        ArbiterError::Value(error) => value(error),
    }
}

fn registry(error: &RegistryError) -> Status {
    let (code, reason) = match error {
        RegistryError::Store(error) => return store(error),
        RegistryError::Value(error) => return value(error),
        RegistryError::Registered { .. } => (Code::AlreadyExists, "NODE_REGISTERED"),
        RegistryError::NoNumber => (Code::ResourceExhausted, "NODE_NUMBERS_EXHAUSTED"),
        RegistryError::NotRegistered(_) => (Code::FailedPrecondition, Reason::NodeNotRegistered.code()),
        RegistryError::Busy => (Code::Aborted, Reason::Conflict.code()),
    };
    with_info(code, error.to_string(), reason, HashMap::new())
}

fn device(error: &DeviceError) -> Status {
    let (code, reason) = match error {
        DeviceError::Store(error) => return store(error),
        DeviceError::Value(error) => return value(error),
        DeviceError::Session(error) => return arbiter(error),
        DeviceError::Entropy(_) => (Code::Internal, "ENTROPY_FAILED"),
        DeviceError::BadToken => (Code::PermissionDenied, "BAD_TOKEN"),
        DeviceError::RequestReused => (Code::AlreadyExists, "REQUEST_REUSED"),
        DeviceError::KeyInUse => (Code::AlreadyExists, "KEY_IN_USE"),
        DeviceError::UnknownDevice => (Code::NotFound, Reason::UnknownDevice.code()),
        DeviceError::KeySuperseded => (Code::FailedPrecondition, "KEY_SUPERSEDED"),
        DeviceError::NotActive(reason) => (code_of(*reason), reason.code()),
        DeviceError::Busy => (Code::Aborted, Reason::Conflict.code()),
    };
    with_info(code, error.to_string(), reason, HashMap::new())
}

fn keys(error: &KeyRingError) -> Status {
    let (code, reason) = match error {
        KeyRingError::Store(error) => return store(error),
        KeyRingError::Value(error) => return value(error),
        KeyRingError::NoCurrentKey(_) => (Code::DataLoss, "BAD_STORED_VALUE"),
        KeyRingError::Entropy(_) => (Code::Internal, "ENTROPY_FAILED"),
        KeyRingError::Refused(RingError::Unknown) => (Code::NotFound, "UNKNOWN_KEY"),
        KeyRingError::Refused(_) => (Code::FailedPrecondition, "KEY_STATE"),
        KeyRingError::Full => (Code::ResourceExhausted, "TOO_MANY_KEYS"),
        KeyRingError::Busy => (Code::Aborted, Reason::Conflict.code()),
    };
    with_info(code, error.to_string(), reason, HashMap::new())
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let text = error.to_string();
        match &error {
            ServiceError::BadFields(BadFields(fields)) => {
                let mut details =
                    ErrorDetails::with_error_info("INVALID_ARGUMENT", ERROR_DOMAIN, HashMap::new());
                for bad in fields {
                    details.add_bad_request_violation(bad.field.as_str(), bad.description.as_str());
                }
                Status::with_error_details(Code::InvalidArgument, text, details)
            }
            ServiceError::Unauthenticated(_) => {
                with_info(Code::Unauthenticated, text, "UNAUTHENTICATED", HashMap::new())
            }
            ServiceError::Forbidden(_) => {
                with_info(Code::PermissionDenied, text, "FORBIDDEN", HashMap::new())
            }
            ServiceError::NotFound(_) => with_info(Code::NotFound, text, "NOT_FOUND", HashMap::new()),
            ServiceError::Precondition(_) => {
                with_info(Code::FailedPrecondition, text, "FAILED_PRECONDITION", HashMap::new())
            }
            ServiceError::Arbiter(error) => arbiter(error),
            ServiceError::Registry(error) => registry(error),
            ServiceError::Device(error) => device(error),
            ServiceError::Keys(error) => keys(error),
            ServiceError::Store(error) => store(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jump_session::ids::{AttachSeq, Epoch};
    use std::time::Duration;

    /// What `ErrorInfo` says of a call that failed for no reason of a session's: the rest of the table that callers see.
    const CALLS: &[(&str, &str)] = &[
        ("INVALID_ARGUMENT", "Fields cannot be used; `BadRequest` names each."),
        ("UNAUTHENTICATED", "The caller has no certificate of the cluster's CA."),
        ("FORBIDDEN", "The caller's role may not make the call, or not for another node."),
        ("NOT_FOUND", "What the call names does not exist."),
        ("FAILED_PRECONDITION", "The state of what the call names does not allow it."),
        ("BAD_STORED_VALUE", "A value in the store cannot be read."),
        ("NODE_REGISTERED", "An earlier run of the node is still registered."),
        ("NODE_NUMBERS_EXHAUSTED", "Every node number is in use, or rests."),
        ("ENTROPY_FAILED", "The random generator failed its health tests; no key or token is made."),
        ("BAD_TOKEN", "The enrolment token is unknown, used or too old."),
        ("KEY_IN_USE", "The device key belongs to another device."),
        ("KEY_SUPERSEDED", "The device has replaced this key."),
        ("REQUEST_REUSED", "The `request_id` was used for another token."),
        ("UNKNOWN_KEY", "The ring has no key of this name."),
        ("KEY_STATE", "The key's state does not allow the change."),
        ("TOO_MANY_KEYS", "Too many keys are accepted at once."),
    ];

    #[test]
    fn every_reason_and_its_status_are_documented() {
        let mut reasons = String::from("| Number | Code | gRPC status | Meaning |\n|---|---|---|---|\n");
        for reason in Reason::ALL {
            let code = code_of(*reason);
            let status = if code == Code::Internal { "–".to_owned() } else { format!("`{code:?}`") };
            let (number, meaning) = (reason.number(), reason.meaning());
            reasons += &format!("| {number} | `{}` | {status} | {meaning} |\n", reason.code());
        }
        jump_telemetry::docs::assert_section("docs/reasons.md", "reasons", &reasons);

        let mut calls = String::from("| `reason` | Meaning |\n|---|---|\n");
        for (reason, meaning) in CALLS {
            calls += &format!("| `{reason}` | {meaning} |\n");
        }
        jump_telemetry::docs::assert_section("docs/reasons.md", "calls", &calls);
    }

    /// The texts of this file that are written as reasons are.
    #[test]
    fn no_answer_has_a_reason_that_is_in_no_table() {
        let (code, _) = include_str!("status.rs").split_once("#[cfg(test)]").expect("tests");
        let is_reason =
            |text: &&str| text.len() > 3 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let used: Vec<&str> = code.split('"').skip(1).step_by(2).filter(is_reason).collect();
        assert!(used.len() >= CALLS.len(), "the scan found only {used:?}");
        for reason in used {
            assert!(CALLS.iter().any(|(listed, _)| *listed == reason), "{reason} is in no table");
            assert_eq!(Reason::from_code(reason), None, "{reason} is in both tables");
        }
    }

    #[test]
    fn a_refusal_carries_its_reason_its_epoch_and_when_to_ask_again() {
        let refusal = Refusal {
            reason: Reason::HandoverPending,
            current_epoch: Epoch(7),
            current_attach_seq: AttachSeq(9),
            retry_after: Duration::from_millis(250),
        };
        let status = Status::from(ServiceError::from(ArbiterError::from(refusal)));
        let details = status.get_error_details();
        let info = details.error_info().expect("an ErrorInfo");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("HANDOVER_PENDING", ERROR_DOMAIN));
        assert_eq!(info.metadata["current_epoch"], "7");
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_millis(250)));
    }
}
