//! The table of audited actions and their places in OCSF. `docs/audit-events.md` is generated from it.

use std::fmt::Write as _;

/// The OCSF event class of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Class {
    /// A security control noticed something: 2004.
    DetectionFinding = 2004,
    /// A device proved its key, or failed to: 3002.
    Authentication = 3002,
    /// A device, token or key was changed: 3004.
    EntityManagement = 3004,
    /// Traffic was refused: 4001.
    NetworkActivity = 4001,
    /// A session's tunnel opened, changed or closed: 4014.
    TunnelActivity = 4014,
    /// A node or replica started, stopped or lost its authority: 6002.
    ApplicationLifecycle = 6002,
    /// An operator called the API: 6003.
    ApiActivity = 6003,
}

impl Class {
    /// The class number.
    pub const fn uid(self) -> u16 {
        self as u16
    }

    /// The category number: the class number's thousands.
    pub const fn category_uid(self) -> u16 {
        self.uid() / 1000
    }

    /// The class's caption in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DetectionFinding => "Detection Finding",
            Self::Authentication => "Authentication",
            Self::EntityManagement => "Entity Management",
            Self::NetworkActivity => "Network Activity",
            Self::TunnelActivity => "Tunnel Activity",
            Self::ApplicationLifecycle => "Application Lifecycle",
            Self::ApiActivity => "API Activity",
        }
    }

    /// The category's caption in the schema.
    pub const fn category_name(self) -> &'static str {
        match self {
            Self::DetectionFinding => "Findings",
            Self::Authentication | Self::EntityManagement => "Identity & Access Management",
            Self::NetworkActivity | Self::TunnelActivity => "Network Activity",
            Self::ApplicationLifecycle | Self::ApiActivity => "Application Activity",
        }
    }
}

/// How much an event matters, as OCSF numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Severity {
    /// No action needed.
    Informational = 1,
    /// Worth a look when there are many.
    Low = 2,
    /// Worth a look.
    Medium = 3,
    /// Look soon.
    High = 4,
    /// Look now.
    Critical = 5,
}

impl Severity {
    /// The caption in the schema.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Informational => "Informational",
            Self::Low => "Low",
            Self::Medium => "Medium",
            Self::High => "High",
            Self::Critical => "Critical",
        }
    }

    /// The severity of RFC 5424: 6 (informational) to 2 (critical).
    pub const fn syslog(self) -> u8 {
        7 - self as u8
    }

    /// The severity number of OpenTelemetry logs: INFO, INFO2, WARN, ERROR, FATAL.
    pub const fn opentelemetry(self) -> i32 {
        match self {
            Self::Informational => 9,
            Self::Low => 10,
            Self::Medium => 13,
            Self::High => 17,
            Self::Critical => 21,
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActionDef {
    /// The stable name, `snake_case`.
    pub name: &'static str,
    /// The OCSF class.
    pub class: Class,
    /// The activity number within the class.
    pub activity: u8,
    /// The activity's caption.
    pub activity_name: &'static str,
    /// The severity.
    pub severity: Severity,
    /// Whether the action is a failure by its nature.
    pub failure: bool,
    /// What happened, for people.
    pub meaning: &'static str,
}

impl ActionDef {
    /// The OCSF type number: class × 100 + activity.
    pub const fn type_uid(&self) -> u32 {
        self.class.uid() as u32 * 100 + self.activity as u32
    }
}

macro_rules! actions {
    ($(#[$doc:meta])* $group:ident {
        $($variant:ident = $name:literal, $class:ident, $activity:literal $activity_name:literal, $severity:ident, $outcome:ident, $meaning:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $group {
            $(#[doc = $meaning] $variant,)*
        }

        impl $group {
            /// Every action of the group.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the action's row.
            pub const fn definition(self) -> &'static ActionDef {
                match self {
                    $(Self::$variant => const { &ActionDef {
                        name: $name,
                        class: Class::$class,
                        activity: $activity,
                        activity_name: $activity_name,
                        severity: Severity::$severity,
                        failure: outcome!($outcome),
                        meaning: $meaning,
                    } },)*
                }
            }
        }
    };
}

macro_rules! outcome {
    (ok) => {
        false
    };
    (fails) => {
        true
    };
}

actions! {
    /// What happens to a session.
    SessionAction {
        Born = "session_born", TunnelActivity, 1 "Open", Informational, ok, "A session began and got its first owner.";
        ReattachStarted = "session_reattach_started", TunnelActivity, 99 "Other", Informational, ok, "The client decided to attach again.";
        HandoverStarted = "session_handover_started", TunnelActivity, 99 "Other", Informational, ok, "A live owner was asked to stop for another.";
        Fenced = "session_fenced", TunnelActivity, 99 "Other", Informational, ok, "The old owner stopped forwarding.";
        OwnerChanged = "session_owner_changed", TunnelActivity, 3 "Renew", Informational, ok, "Another node became the owner in a new epoch.";
        Activated = "session_activated", TunnelActivity, 99 "Other", Informational, ok, "The owner forwards for the session.";
        Released = "session_released", TunnelActivity, 99 "Other", Low, ok, "The owner gave the session up; anyone may claim it.";
        Terminated = "session_terminated", TunnelActivity, 2 "Close", Informational, ok, "The session ended for good.";
        StateChanged = "session_state_changed", TunnelActivity, 99 "Other", Informational, ok, "The session's state machine changed its state.";
        PathSwitched = "session_path_switched", TunnelActivity, 3 "Renew", Informational, ok, "The session moved to another address or transport inside its epoch.";
        PathRejected = "session_path_rejected", TunnelActivity, 99 "Other", Low, fails, "A new path failed its validation; the last good one stayed.";
        Rekeyed = "session_rekeyed", TunnelActivity, 3 "Renew", Informational, ok, "Fresh keys inside the epoch.";
        AttemptRejected = "session_attempt_rejected", TunnelActivity, 99 "Other", Low, fails, "The client was told that its attempt was rejected.";
        Ended = "session_ended", TunnelActivity, 99 "Other", Informational, ok, "The client learned that the session is over, or ended it.";
        Recovered = "session_recovered", TunnelActivity, 3 "Renew", Informational, ok, "Service is back; the durations say how long it was gone and why.";
    }
}

actions! {
    /// How an attach attempt ended.
    AttachAction {
        Accepted = "attach_accepted", Authentication, 1 "Logon", Informational, ok, "A device proved its key and the attach was accepted.";
        Rejected = "attach_rejected", Authentication, 1 "Logon", Low, fails, "An attach was rejected; the reason says why.";
    }
}

actions! {
    /// What happens to a node or replica.
    NodeAction {
        Started = "node_started", ApplicationLifecycle, 3 "Start", Informational, ok, "A node registered a new run.";
        Stopped = "node_stopped", ApplicationLifecycle, 4 "Stop", Informational, ok, "A node deregistered.";
        Lost = "node_lost", ApplicationLifecycle, 4 "Stop", High, fails, "A node's lease ended or its supervisor reported its death.";
        Gone = "node_gone", ApplicationLifecycle, 4 "Stop", Low, ok, "A replica saw a node's registration vanish: its lease ended, or another replica was told.";
        WorkerRestarted = "node_worker_restarted", ApplicationLifecycle, 5 "Restart", Medium, ok, "A supervisor replaced its worker.";
        Draining = "node_draining", ApplicationLifecycle, 8 "Update", Informational, ok, "A node began to hand its sessions over.";
        Undrained = "node_undrained", ApplicationLifecycle, 8 "Update", Informational, ok, "A node takes sessions again.";
        GuardTripped = "node_guard_tripped", ApplicationLifecycle, 7 "Disable", High, fails, "A node's authority ran out: it forwards nothing until renewed.";
        GuardRecovered = "node_guard_recovered", ApplicationLifecycle, 6 "Enable", Informational, ok, "A node's authority was renewed after a trip.";
    }
}

actions! {
    /// What happens to devices, tokens and keys.
    EntityAction {
        TokenIssued = "token_issued", EntityManagement, 1 "Create", Informational, ok, "An enrolment token was issued.";
        DeviceEnrolled = "device_enrolled", EntityManagement, 1 "Create", Informational, ok, "A device enrolled with a token.";
        EnrolmentRefused = "device_enrolment_refused", EntityManagement, 1 "Create", Medium, fails, "An enrolment was refused.";
        DeviceRotated = "device_rotated", EntityManagement, 3 "Update", Informational, ok, "A device replaced its key.";
        DeviceRevoked = "device_revoked", EntityManagement, 4 "Delete", Medium, ok, "A device's key was revoked; its sessions end.";
        KeyRotated = "key_rotated", EntityManagement, 3 "Update", Informational, ok, "A cluster or grant key was rotated.";
        PolicyChanged = "policy_changed", EntityManagement, 3 "Update", Low, ok, "A policy was changed.";
    }
}

actions! {
    /// What an operator or reader asks the API for.
    ApiAction {
        Create = "api_create", ApiActivity, 1 "Create", Informational, ok, "An operator created something.";
        Read = "api_read", ApiActivity, 2 "Read", Informational, ok, "An operator or reader looked.";
        Update = "api_update", ApiActivity, 3 "Update", Informational, ok, "An operator changed something.";
        Delete = "api_delete", ApiActivity, 4 "Delete", Low, ok, "An operator ended or removed something.";
        Denied = "api_denied", ApiActivity, 99 "Other", Medium, fails, "A call was refused for lack of permission.";
    }
}

actions! {
    /// What a policy refused to carry.
    TrafficAction {
        Refused = "traffic_refused", NetworkActivity, 5 "Refuse", Low, fails, "Packets were refused by the device's policy.";
    }
}

actions! {
    /// What looks like an attack or a broken part.
    SecurityAction {
        Replay = "security_replay", DetectionFinding, 1 "Create", Medium, ok, "Records or attach messages were played again; nothing changed.";
        Spoof = "security_spoof", DetectionFinding, 1 "Create", High, ok, "An authenticated client sent from addresses that are not its own.";
        Flood = "security_flood", DetectionFinding, 1 "Create", Medium, ok, "More unauthenticated messages than the node serves; cookies are on.";
        Forgery = "security_forgery", DetectionFinding, 1 "Create", Medium, ok, "Messages failed their authentication.";
        BadGrant = "security_bad_grant", DetectionFinding, 1 "Create", Critical, ok, "A gateway showed a certificate or grant that does not verify.";
        EntropyFailed = "security_entropy_failed", DetectionFinding, 1 "Create", Critical, ok, "The generator failed its health test; no keys are made.";
    }
}

/// Every group's heading and rows, in the order of the documentation.
pub fn groups() -> Vec<(&'static str, Vec<&'static ActionDef>)> {
    macro_rules! rows {
        ($group:ident) => {
            $group::ALL.iter().map(|action| action.definition()).collect()
        };
    }
    vec![
        ("Sessions", rows!(SessionAction)),
        ("Attach attempts", rows!(AttachAction)),
        ("Nodes", rows!(NodeAction)),
        ("Devices, tokens and keys", rows!(EntityAction)),
        ("API calls", rows!(ApiAction)),
        ("Traffic", rows!(TrafficAction)),
        ("Security", rows!(SecurityAction)),
    ]
}

/// Renders the table of `docs/audit-events.md`.
pub fn table() -> String {
    let mut text = String::new();
    for (heading, rows) in groups() {
        let _ = writeln!(text, "### {heading}\n");
        text.push_str("| Action | OCSF class | Activity | `type_uid` | Severity | Outcome | Meaning |\n");
        text.push_str("|---|---|---|---|---|---|---|\n");
        for row in rows {
            let ActionDef { name, class, activity, activity_name, severity, failure, meaning } = row;
            let outcome = if *failure { "failure" } else { "success" };
            let _ = writeln!(
                text,
                "| `{name}` | {} ({}) | {activity_name} ({activity}) | {} | {} | {outcome} | {meaning} |",
                class.name(),
                class.uid(),
                row.type_uid(),
                severity.name(),
            );
        }
        text.push('\n');
    }
    text
}
