//! Every reason code, once: logs, metrics, audit events, gRPC errors and the CLI use this table.

macro_rules! reasons {
    ($(#[doc = $doc:literal] $variant:ident = $number:literal, $code:literal;)*) => {
        /// Why something happened to a session or node. Numbers and codes are stable and never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Reason {
            $(#[doc = $doc] $variant = $number,)*
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable text, UPPER_SNAKE_CASE.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $doc.trim(),)* }
            }

            /// The stable number on the wire and in the store.
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// Reads a number; `None` for one that this version does not know.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Reads a code; `None` for one that this version does not know.
            pub fn from_code(code: &str) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    // 1–19: why a client attaches.
    /// A first attach of a new session.
    Birth = 1, "BIRTH";
    /// The owner stopped answering.
    GatewayUnresponsive = 2, "GATEWAY_UNRESPONSIVE";
    /// The path to the owner was refused (ICMP unreachable).
    PathRefused = 3, "PATH_REFUSED";
    /// A gateway answered that it does not know the index.
    ReattachHint = 4, "REATTACH_HINT";
    /// The owner asked the client to move (drain).
    GatewayDraining = 5, "GATEWAY_DRAINING";
    /// The device's network changed.
    NetworkChanged = 6, "NETWORK_CHANGED";
    /// The transport changed (UDP, TCP, QUIC).
    TransportChanged = 7, "TRANSPORT_CHANGED";
    /// The device resumed from suspend.
    Resumed = 8, "RESUMED";
    /// The client process restarted and goes on with its stored session.
    ClientRestarted = 9, "CLIENT_RESTARTED";
    /// An operator asked for the move.
    OperatorMove = 10, "OPERATOR_MOVE";
    /// The source address changed under the client (NAT rebinding).
    NatRebind = 11, "NAT_REBIND";
    /// The client asked for it without a better reason.
    ClientRequest = 12, "CLIENT_REQUEST";
    /// The keys are due for renewal inside the epoch.
    Rekey = 13, "REKEY";

    // 20–49: why an attach is rejected.
    /// The attach sequence number is not above the stored one.
    StaleAttempt = 20, "STALE_ATTEMPT";
    /// No session with this id exists for this device.
    UnknownSession = 21, "UNKNOWN_SESSION";
    /// The device key is not enrolled.
    UnknownDevice = 22, "UNKNOWN_DEVICE";
    /// The device key was revoked.
    KeyRevoked = 23, "KEY_REVOKED";
    /// The device key is not valid yet or no more.
    KeyExpired = 24, "KEY_EXPIRED";
    /// The session belongs to another device.
    WrongDevice = 25, "WRONG_DEVICE";
    /// The session has ended.
    SessionTerminated = 26, "SESSION_TERMINATED";
    /// More switches than the policy allows.
    SwitchRateExceeded = 27, "SWITCH_RATE_EXCEEDED";
    /// Too soon after the last switch.
    SwitchCooldown = 28, "SWITCH_COOLDOWN";
    /// The claiming gateway's own registration is gone.
    NodeNotRegistered = 29, "NODE_NOT_REGISTERED";
    /// The claiming gateway is draining.
    NodeDraining = 30, "NODE_DRAINING";
    /// The live owner has not stopped within the server's bound; ask again.
    HandoverPending = 31, "HANDOVER_PENDING";
    /// Lost against a concurrent attempt; read again.
    Conflict = 32, "CONFLICT";
    /// No inner address is free.
    AddressPoolExhausted = 33, "ADDRESS_POOL_EXHAUSTED";
    /// The device has as many sessions as the policy allows.
    SessionLimit = 34, "SESSION_LIMIT";
    /// The store could not be reached or did not answer.
    StoreUnavailable = 35, "STORE_UNAVAILABLE";
    /// Control could not be reached by the gateway.
    ControlUnavailable = 36, "CONTROL_UNAVAILABLE";
    /// A rekey was asked for an epoch that is no longer current.
    StaleEpoch = 37, "STALE_EPOCH";
    /// Another attempt's handover is in progress.
    SupersededAttempt = 38, "SUPERSEDED_ATTEMPT";

    // 50–69: why a session is released or ends.
    /// The session lived as long as the policy allows.
    LifetimeExceeded = 50, "LIFETIME_EXCEEDED";
    /// Nobody reattached within the recovery window.
    RecoveryWindowExceeded = 51, "RECOVERY_WINDOW_EXCEEDED";
    /// No transport reached the client for longer than the policy allows.
    TransportLost = 52, "TRANSPORT_LOST";
    /// The client ended it.
    ClientClosed = 53, "CLIENT_CLOSED";
    /// An operator ended it.
    OperatorTerminated = 54, "OPERATOR_TERMINATED";
    /// A newer session of the same device took its place.
    Superseded = 55, "SUPERSEDED";
    /// The owner drained without a target.
    Drained = 56, "DRAINED";
    /// The client made more attempts than the policy allows.
    AttemptsExceeded = 57, "ATTEMPTS_EXCEEDED";
    /// A key reached its hard limit before it could be replaced.
    KeyLimitReached = 58, "KEY_LIMIT_REACHED";

    // 70–89: ownership and nodes.
    /// The owner's node key is gone.
    NodeLost = 70, "NODE_LOST";
    /// The node drained and deregistered.
    NodeDrained = 71, "NODE_DRAINED";
    /// The owner stopped for a handover.
    Fenced = 72, "FENCED";
    /// The node's authority ran out; it forwards nothing until renewed.
    GuardTripped = 73, "GUARD_TRIPPED";
    /// The node's authority was renewed after a trip.
    GuardRecovered = 74, "GUARD_RECOVERED";
    /// The attach was accepted.
    Accepted = 75, "ACCEPTED";
    /// A path was validated.
    PathValidated = 76, "PATH_VALIDATED";
    /// A path failed validation and the last good one is in use again.
    PathReverted = 77, "PATH_REVERTED";
    /// Path quality fell below the policy.
    PathDegraded = 78, "PATH_DEGRADED";
    /// Path quality is good again.
    PathRecovered = 79, "PATH_RECOVERED";
}

impl Reason {
    /// What a client may give as its reason for an attach: what only a client knows, and what its gateway told it.
    /// Anything else counts as [`Self::ClientRequest`], because the reason goes into records and audit events, where a
    /// client's word must not pass for control's own.
    pub const fn as_asked_by_client(self) -> Self {
        const DRAINED: u16 = Reason::Drained.number();
        const KEY_LIMIT_REACHED: u16 = Reason::KeyLimitReached.number();
        match self.number() {
            1..=19 | DRAINED | KEY_LIMIT_REACHED => self,
            _ => Self::ClientRequest,
        }
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_number_and_by_its_code() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(reason.number()), Some(*reason));
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
        }
    }

    #[test]
    fn a_client_cannot_give_a_reason_that_is_controls_to_give() {
        let kept: Vec<u16> = Reason::ALL
            .iter()
            .filter(|reason| reason.as_asked_by_client() == **reason)
            .map(|reason| reason.number())
            .collect();
        assert_eq!(kept, (1..=13).chain([56, 58]).collect::<Vec<_>>());
        assert_eq!(Reason::OperatorTerminated.as_asked_by_client(), Reason::ClientRequest);
    }

    #[test]
    fn codes_are_upper_snake_case() {
        for reason in Reason::ALL {
            assert!(reason.code().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{reason}");
        }
    }
}
