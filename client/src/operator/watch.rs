//! Watches that outlive a control replica: a broken stream is taken up again, at the next replica where there are several.

use std::time::Duration;

use tonic::Code;
use tonic::Status;

use crate::failure::Failure;

/// Pauses between attempts: short at first, so that a killed replica costs a moment only.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Calls `attempt` with 0, 1, 2, … until it says that the watch is over.
///
/// # Errors
/// The first failure that another attempt would meet again.
pub(super) async fn keep(mut attempt: impl AsyncFnMut(usize) -> Result<(), Broken>) -> Result<(), Failure> {
    let mut pause = PAUSE;
    for turn in 0.. {
        match attempt(turn).await {
            Ok(()) => return Ok(()),
            Err(Broken::Final(failure)) => return Err(failure),
            // The very first connection must work: a wrong address should not look like an outage.
            Err(Broken::Lost { failure, progressed: false }) if turn == 0 => return Err(failure),
            Err(Broken::Lost { failure, progressed }) => {
                if progressed {
                    pause = PAUSE;
                }
                eprintln!("jumpctl: {failure}; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
    Ok(())
}

/// Why a watch broke.
pub(super) enum Broken {
    /// Asking again would bring the same.
    Final(Failure),
    /// The connection is gone; `progressed` says that something had arrived on it.
    Lost { failure: Failure, progressed: bool },
}

impl Broken {
    /// Sorts a status.
    pub(super) fn of(what: &str, status: &Status, progressed: bool) -> Self {
        let failure = crate::channel::refused(what, status);
        match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            | Code::Aborted
            | Code::DeadlineExceeded => Self::Lost { failure, progressed },
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => Self::Final(failure),
        }
    }
}
