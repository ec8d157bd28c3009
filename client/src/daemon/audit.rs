//! What the device tells auditors and traces: its decisions, its transitions, and how long the user was without service.

use std::time::{Duration, SystemTime};

use jump_session::client::{Attached, Event as News, Status};
use jump_session::ids::{Binding, DeviceKey, SessionId};
use jump_session::path::Transport;
use jump_session::reason::Reason;
use jump_telemetry::audit::{
    Actor, Event, Identity, Path, RecoveryDurations, SecurityAction, SessionAction, emit,
};
use jump_telemetry::{Correlation, recovery};

use crate::metrics;

/// Who emits: this device.
pub fn instance(device_name: &str) -> Identity {
    Identity {
        component: "client".to_owned(),
        node: device_name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Turns the machine's news into events, metrics and spans.
pub(super) struct Teller {
    device: DeviceKey,
    name: String,
    correlation: Option<Correlation>,
    /// An acceptance whose first byte has not come yet, and when it was.
    pending: Option<(Box<Attached>, SystemTime)>,
}

impl Teller {
    /// Tells of `device`, and of the session that it goes on with, if it goes on with one.
    pub(super) fn new(device: DeviceKey, name: String, session: Option<SessionId>) -> Self {
        let correlation = session.map(|session| session.correlation().into());
        Self { device, name, correlation, pending: None }
    }

    /// The session's correlation id as text. Only before the first attempt at its birth it has none.
    pub(super) fn correlation(&self) -> Option<String> {
        self.correlation.map(|correlation| correlation.to_string())
    }

    /// The device goes on under another key.
    pub(super) fn replace_device(&mut self, device: DeviceKey) {
        self.device = device;
    }

    /// Tells one piece of news; `status` is the machine's after it.
    pub(super) fn tell(&mut self, news: &News, status: &Status) {
        match news {
            // Control has told auditors of the one, the generator of the other.
            News::KeysChanged(_) | News::NoEntropy(_) => {}
            News::OpenPath { .. }
            | News::ClosePath { .. }
            | News::Persist { .. }
            | News::MtuChanged { .. } => {}
            News::StateChanged { from, to, reason } => {
                self.session(SessionAction::StateChanged, status, |event| {
                    event.reason(*reason).states(from.code(), to.code())
                });
            }
            News::PathChanged { from, to, reason, .. } => {
                metrics::count_path_change(*reason);
                let path = |transport: &Transport| Some(Path { transport: transport.name(), client: None });
                self.session(SessionAction::PathSwitched, status, |event| {
                    event.reason(*reason).binding(Binding(status.binding)).paths(path(from), path(to))
                });
            }
            News::Bound { .. } => {}
            News::Attempted { gateway, attach_seq, attempt, reason, .. } => {
                let session = status.session.unwrap_or_else(|| SessionId::born_of(&self.device, *attempt));
                if status.session.is_none() || self.correlation.is_none() {
                    // A new session: its id is not the last one's.
                    self.correlation = Some(session.correlation().into());
                }
                self.session(SessionAction::ReattachStarted, status, |event| {
                    event.reason(*reason).detail(format!("attempt {} at {gateway}", attach_seq.0))
                });
            }
            News::Attached(attached) => {
                metrics::count_attach("accepted", attached.reason);
                self.correlation = Some(attached.accepted.correlation.into());
                self.recovered(Duration::ZERO);
                self.pending = Some((attached.clone(), SystemTime::now()));
            }
            News::FirstByte { after, .. } => self.recovered(*after),
            News::Rekeyed { .. } => {
                self.session(SessionAction::Rekeyed, status, |event| event.reason(Reason::Rekey));
            }
            News::Rejected { gateway, reason, current_epoch, .. } => {
                metrics::count_attach("rejected", *reason);
                self.session(SessionAction::AttemptRejected, status, |event| {
                    event.epoch(*current_epoch).reason(*reason).detail(format!("by {gateway}"))
                });
            }
            News::Untrusted { gateway, error } => {
                let event = self.security(SecurityAction::BadGrant, status);
                emit(event.source(*gateway).detail(error.to_string()));
            }
            News::Terminated { reason } => {
                self.recovered(Duration::ZERO);
                self.session(SessionAction::Ended, status, |event| event.reason(*reason));
            }
        }
    }

    /// Ends what the last acceptance began: with its first byte, or without one when something else comes first.
    fn recovered(&mut self, first_byte: Duration) {
        let Some((attached, accepted_at)) = self.pending.take() else { return };
        let timings = attached.timings;
        let durations = RecoveryDurations {
            detect: timings.detect,
            handshake: timings.handshake,
            commit: timings.commit,
            first_byte,
        };
        recovery::completed(
            attached.attempt,
            attached.reason,
            accepted_at,
            durations,
            attached.accepted.correlation.into(),
        );
        let accepted = &attached.accepted;
        if !attached.born {
            let event = Event::session(SessionAction::Recovered, accepted.session)
                .correlation(accepted.correlation)
                .epoch(accepted.epoch)
                .reason(attached.reason)
                .on_node(&attached.node)
                .recovery(durations)
                .detail(format!("attempt {} at {}", attached.attempt, attached.gateway));
            emit(self.by_device(event));
        }
    }

    fn session(&self, action: SessionAction, status: &Status, add: impl FnOnce(Event) -> Event) {
        // Before its birth is accepted a session has no name; the gateways' and control's events tell of it.
        let Some(session) = status.session else { return };
        let event = self.by_device(Event::session(action, session)).epoch(status.epoch);
        emit(add(self.correlated(event)));
    }

    fn security(&self, action: SecurityAction, status: &Status) -> Event {
        let event = self.by_device(Event::security(action)).epoch(status.epoch);
        self.correlated(match status.session {
            Some(session) => event.with_session(session),
            None => event,
        })
    }

    fn by_device(&self, event: Event) -> Event {
        event.device(self.device, self.name.clone()).actor(Actor::Device(self.device))
    }

    fn correlated(&self, event: Event) -> Event {
        match self.correlation {
            Some(correlation) => event.correlation(correlation),
            None => event,
        }
    }
}
