//! What a client does about each rejection.

use crate::reason::Reason;

/// How to go on after a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// The claim is recorded: ask again with the same attempt, at the same gateway.
    SameClaim,
    /// Ask the same gateway with a new attempt.
    SameGateway,
    /// Ask another gateway.
    NextGateway,
    /// The session cannot go on.
    End,
}

/// The course for a rejection with `reason`.
pub(crate) const fn course(reason: Reason) -> Course {
    use Reason as R;
    match reason {
        R::HandoverPending => Course::SameClaim,
        R::StaleAttempt | R::SwitchRateExceeded | R::SwitchCooldown | R::Conflict | R::SupersededAttempt => {
            Course::SameGateway
        }
        R::NodeNotRegistered
        | R::NodeDraining
        | R::StoreUnavailable
        | R::ControlUnavailable
        | R::AddressPoolExhausted
        | R::SessionLimit
        | R::StaleEpoch => Course::NextGateway,
        R::UnknownSession
        | R::UnknownDevice
        | R::KeyRevoked
        | R::KeyExpired
        | R::WrongDevice
        | R::SessionTerminated
        | R::LifetimeExceeded
        | R::RecoveryWindowExceeded
        | R::TransportLost
        | R::ClientClosed
        | R::OperatorTerminated
        | R::Superseded
        | R::AttemptsExceeded => Course::End,
        // Not reasons of a rejection; another gateway may do better.
        R::Birth
        | R::GatewayUnresponsive
        | R::PathRefused
        | R::ReattachHint
        | R::GatewayDraining
        | R::NetworkChanged
        | R::TransportChanged
        | R::Resumed
        | R::ClientRestarted
        | R::OperatorMove
        | R::NatRebind
        | R::ClientRequest
        | R::Rekey
        | R::Drained
        | R::KeyLimitReached
        | R::NodeLost
        | R::NodeDrained
        | R::Fenced
        | R::GuardTripped
        | R::GuardRecovered
        | R::Accepted
        | R::PathValidated
        | R::PathReverted
        | R::PathDegraded
        | R::PathRecovered => Course::NextGateway,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_no_gateway_can_change_end_the_session() {
        let ends: Vec<_> =
            Reason::ALL.iter().filter(|reason| course(**reason) == Course::End).map(|r| r.code()).collect();
        assert_eq!(
            ends,
            [
                "UNKNOWN_SESSION",
                "UNKNOWN_DEVICE",
                "KEY_REVOKED",
                "KEY_EXPIRED",
                "WRONG_DEVICE",
                "SESSION_TERMINATED",
                "LIFETIME_EXCEEDED",
                "RECOVERY_WINDOW_EXCEEDED",
                "TRANSPORT_LOST",
                "CLIENT_CLOSED",
                "OPERATOR_TERMINATED",
                "SUPERSEDED",
                "ATTEMPTS_EXCEEDED",
            ]
        );
    }
}
