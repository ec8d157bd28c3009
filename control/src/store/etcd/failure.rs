//! What a failed request to etcd means: done, not done, or unknown.

use std::error::Error as _;

use tonic::Code;

use super::super::StoreError;

/// Why one request to one endpoint failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Never sent, or refused before it was proposed: safe to send elsewhere.
    NotDone(String),
    /// Refused because the member does not know our token (any more): sign in again, then send again.
    SignedOut(String),
    /// It may have been done.
    Unknown(String),
    /// The lease has ended.
    LeaseNotFound,
    /// The revision is compacted.
    Compacted,
    /// Asking again does not help.
    Refused(String),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotDone(text) | Failure::SignedOut(text) => Self::Unavailable(text),
            Failure::Unknown(text) => Self::Unknown(text),
            Failure::LeaseNotFound => Self::LeaseNotFound,
            Failure::Compacted => Self::Compacted,
            Failure::Refused(text) => Self::Refused(text),
        }
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        use etcd_client::Error;
        match error {
            Error::GRpcStatus(status) => from_status(&status),
            Error::LeaseKeepAliveError(text) if text.contains("lease not found") => Self::LeaseNotFound,
            Error::TransportError(error) => Self::NotDone(error.to_string()),
            Error::InvalidArgs(text) => Self::Refused(text),
            error @ (Error::InvalidUri(_) | Error::InvalidMetadataValue(_) | Error::Utf8Error(_)) => {
                Self::Refused(error.to_string())
            }
            error @ (Error::IoError(_)
            | Error::WatchError(_)
            | Error::LeaseKeepAliveError(_)
            | Error::ElectError(_)
            | Error::EndpointError(_)
            | Error::EndpointsNotManaged
            | Error::Internal(_)) => Self::Unknown(error.to_string()),
        }
    }
}

/// Texts that etcd sends for requests that it refused before proposing them.
const NOT_PROPOSED: [&str; 3] =
    ["etcdserver: no leader", "etcdserver: too many requests", "etcdserver: not capable"];

/// Texts that etcd sends when a token has expired, its member has restarted, or users and roles have changed.
const SIGNED_OUT: [&str; 2] = ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old"];

fn from_status(status: &tonic::Status) -> Failure {
    let text = status.message().to_owned();
    if text.contains("requested lease not found") {
        return Failure::LeaseNotFound;
    }
    if text.contains("required revision has been compacted") {
        return Failure::Compacted;
    }
    if text.contains("database space exceeded") {
        return Failure::Refused(format!(
            "{text}: compact and defragment etcd, then disarm the alarm (etcdctl alarm disarm)"
        ));
    }
    if SIGNED_OUT.iter().any(|refusal| text.contains(refusal)) {
        return Failure::SignedOut(text);
    }
    if NOT_PROPOSED.iter().any(|refusal| text.contains(refusal)) {
        return Failure::NotDone(text);
    }
    if let Some(reason) = never_connected(status) {
        return Failure::NotDone(reason);
    }
    match status.code() {
        Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::NotFound
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::AlreadyExists => Failure::Refused(text),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Unknown(text),
    }
}

/// The reason when the connection was never made, so that nothing can have been sent.
fn never_connected(status: &tonic::Status) -> Option<String> {
    let mut texts = vec![status.message().to_owned()];
    let mut source = status.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    let connecting = |text: &String| {
        [
            "tcp connect error",
            "dns error",
            "invalid peer certificate",
            "tls handshake",
            "connect timeout",
            "deadline has elapsed connecting",
        ]
        .iter()
        .any(|sign| text.to_ascii_lowercase().contains(sign))
    };
    texts.iter().any(connecting).then(|| texts.last().cloned().unwrap_or_default())
}
