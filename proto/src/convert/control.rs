//! The messages of `jump.control.v1`.

use std::time::Duration;

use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Revision, SessionId};
use jump_session::ownership::{
    AttachRequest, HistoryEntry, MoveOrder, Owner, Phase, RECENT_SWITCHES_MAX, Refusal, SessionRecord,
};
use jump_session::policy::SessionPolicy;
use uuid::Uuid;

use super::{BadFields, Fields, device_policy, duration, timestamp};
use crate::control_v1 as wire;

/// The longest accepted client address, in bytes: `[v6%scope]:port` fits.
const CLIENT_ADDRESS_LEN_MAX: usize = 64;

/// How many grant keys of an attach are looked at.
const GRANT_KEYS_MAX: usize = 4;

/// A gateway's attach, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachAsk {
    /// What arbitration decides on.
    pub request: AttachRequest,
    /// The session to go on with; `None` for a new one.
    pub session: Option<SessionId>,
    /// The last epoch that the client accepted.
    pub last_epoch: Epoch,
    /// What the grant is bound to.
    pub handshake_hash: [u8; 32],
    /// Where the client was seen; for audit.
    pub client_address: String,
    /// Names of the grant keys that the device says it accepts.
    pub grant_keys: Vec<[u8; 4]>,
}

impl AttachAsk {
    /// The session that is asked for, or the one that this attempt gives birth to.
    pub fn session_id(&self) -> SessionId {
        self.session.unwrap_or_else(|| SessionId::born_of(&self.request.device, self.request.attempt))
    }
}

impl TryFrom<wire::AttachRequest> for AttachAsk {
    type Error = BadFields;

    fn try_from(message: wire::AttachRequest) -> Result<Self, BadFields> {
        let mut fields = Fields::default();
        let claimant = fields.owner(&message.node_id, message.incarnation);
        let device = fields.bytes("device_key", &message.device_key).map(DeviceKey::from_bytes);
        let session = match message.session_id.as_str() {
            "" => None,
            text => fields.id::<SessionId>("session_id", text),
        };
        let attempt = fields.id::<AttemptId>("attempt_id", &message.attempt_id);
        let reason = fields.reason("reason", &message.reason);
        let handshake_hash = fields.bytes("handshake_hash", &message.handshake_hash);
        if message.client_address.len() > CLIENT_ADDRESS_LEN_MAX {
            fields.bad("client_address", "must be an address with a port");
        }
        let grant_keys = message
            .grant_key_ids
            .iter()
            .take(GRANT_KEYS_MAX)
            .filter_map(|id| fields.bytes("grant_key_ids", id))
            .collect();
        fields.finish(|| {
            Some(Self {
                request: AttachRequest {
                    claimant: claimant?,
                    device: device?,
                    attach_seq: AttachSeq(message.attach_seq),
                    attempt: attempt?,
                    reason: reason?,
                    switch_ages: switch_ages(&message.switch_ages_ms),
                },
                session,
                last_epoch: Epoch(message.last_epoch),
                handshake_hash: handshake_hash?,
                client_address: message.client_address,
                grant_keys,
            })
        })
    }
}

/// Ages of switches as a gateway tells them; no more than are ever counted.
pub fn switch_ages(millis: &[u32]) -> Vec<Duration> {
    let newest = millis.len().saturating_sub(RECENT_SWITCHES_MAX);
    millis.iter().skip(newest).map(|age| Duration::from_millis(u64::from(*age))).collect()
}

/// Ages of switches as they are told.
pub fn switch_ages_ms(ages: &[Duration]) -> Vec<u32> {
    ages.iter().map(|age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX)).collect()
}

impl From<&Owner> for wire::Owner {
    fn from(owner: &Owner) -> Self {
        Self { node_id: owner.node.to_string(), incarnation: owner.incarnation.0 }
    }
}

impl TryFrom<wire::Owner> for Owner {
    type Error = BadFields;

    fn try_from(owner: wire::Owner) -> Result<Self, BadFields> {
        let mut fields = Fields::default();
        let parsed = fields.owner(&owner.node_id, owner.incarnation);
        fields.finish(|| parsed)
    }
}

impl From<&Phase> for wire::SessionPhase {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Released { .. } => Self::Released,
            Phase::Owned { .. } => Self::Owned,
            Phase::Handover { .. } => Self::Handover,
            Phase::Terminated { .. } => Self::Terminated,
        }
    }
}

fn handover_to(phase: &Phase) -> Option<wire::Owner> {
    match phase {
        Phase::Handover { to, .. } => Some((&to.owner).into()),
        Phase::Released { .. } | Phase::Owned { .. } | Phase::Terminated { .. } => None,
    }
}

fn inner(record: &SessionRecord) -> Vec<String> {
    record.inner.iter().map(ToString::to_string).collect()
}

fn history(record: &SessionRecord) -> Vec<wire::OwnershipEntry> {
    let entry = |entry: &HistoryEntry| wire::OwnershipEntry {
        epoch: entry.epoch.0,
        owner: Some((&entry.owner).into()),
        since_time: Some(timestamp(entry.since)),
        reason: entry.reason.code().to_owned(),
    };
    record.history.iter().map(entry).collect()
}

fn owner_since(record: &SessionRecord) -> Option<prost_types::Timestamp> {
    record.owner().and(record.history.first()).map(|entry| timestamp(entry.since))
}

fn correlation(record: &SessionRecord) -> String {
    Uuid::from_bytes(record.correlation).to_string()
}

impl wire::Session {
    /// The record as of `revision`, which becomes its etag.
    pub fn of(record: &SessionRecord, revision: Revision) -> Self {
        Self {
            session_id: record.id.to_string(),
            device_key: record.device.to_string(),
            device_name: record.device_name.clone(),
            phase: wire::SessionPhase::from(&record.phase).into(),
            epoch: record.epoch.0,
            attach_seq: record.attach_seq.0,
            owner: record.owner().map(Into::into),
            handover_to: handover_to(&record.phase),
            inner_addresses: inner(record),
            create_time: Some(timestamp(record.created)),
            owner_since: owner_since(record),
            expire_time: Some(timestamp(record.expires)),
            last_reason: record.reason.code().to_owned(),
            history: history(record),
            etag: revision.0.to_string(),
            correlation_id: correlation(record),
            r#move: record.moving.as_ref().map(Into::into),
        }
    }
}

impl wire::Ownership {
    /// Who owns the session of `record`, read at `revision`, and whether its node key existed then.
    pub fn of(record: &SessionRecord, owner_registered: bool, revision: Revision) -> Self {
        let lease_state = match (record.owner(), owner_registered) {
            (None, _) => wire::LeaseState::None,
            (Some(_), true) => wire::LeaseState::Held,
            (Some(_), false) => wire::LeaseState::Expired,
        };
        Self {
            session_id: record.id.to_string(),
            phase: wire::SessionPhase::from(&record.phase).into(),
            epoch: record.epoch.0,
            owner: record.owner().map(Into::into),
            handover_to: handover_to(&record.phase),
            owner_since: owner_since(record),
            lease_state: lease_state.into(),
            last_reason: record.reason.code().to_owned(),
            history: history(record),
            revision: revision.0,
            inner_addresses: inner(record),
            correlation_id: correlation(record),
        }
    }
}

impl From<&SessionRecord> for wire::Binding {
    fn from(record: &SessionRecord) -> Self {
        Self {
            session_id: record.id.to_string(),
            epoch: record.epoch.0,
            phase: wire::SessionPhase::from(&record.phase).into(),
            owner: record.owner().map(Into::into),
            handover_to: handover_to(&record.phase),
            inner_addresses: inner(record),
            reason: record.reason.code().to_owned(),
            r#move: record.moving.as_ref().map(Into::into),
            correlation_id: correlation(record),
            policy: device_policy(&record.policy),
        }
    }
}

impl From<&MoveOrder> for wire::MoveOrder {
    fn from(order: &MoveOrder) -> Self {
        Self {
            node_id: order.to.as_ref().map(ToString::to_string).unwrap_or_default(),
            since_time: Some(timestamp(order.since)),
        }
    }
}

impl From<&Refusal> for wire::attach_response::Rejected {
    fn from(refusal: &Refusal) -> Self {
        Self {
            reason: refusal.reason.code().to_owned(),
            current_epoch: refusal.current_epoch.0,
            current_attach_seq: refusal.current_attach_seq.0,
            retry_after: Some(duration(refusal.retry_after)),
        }
    }
}

impl wire::SessionPolicy {
    /// What bounds the session of `record` under `policy`.
    pub fn of(policy: &SessionPolicy, record: &SessionRecord) -> Self {
        let device = device_policy(&record.policy).unwrap_or_default();
        Self {
            session_lifetime: Some(duration(policy.session_lifetime)),
            idle_transport_max: Some(duration(policy.idle_transport_max)),
            recovery_window: Some(duration(policy.recovery_window)),
            switches_per_minute_max: policy.switches_per_minute_max,
            switch_cooldown: Some(duration(policy.switch_cooldown)),
            allowed_destinations: device.allowed_destinations,
            bytes_per_second: device.bytes_per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_field_of_an_attach_is_listed() {
        let message = wire::AttachRequest {
            node_id: "no/slash".to_owned(),
            session_id: "x".to_owned(),
            device_key: vec![1; 31],
            reason: "BECAUSE".to_owned(),
            ..wire::AttachRequest::default()
        };
        let BadFields(bad) = AttachAsk::try_from(message).unwrap_err();
        let names: Vec<&str> = bad.iter().map(|bad| bad.field.as_str()).collect();
        assert_eq!(
            names,
            ["node_id", "incarnation", "device_key", "session_id", "attempt_id", "reason", "handshake_hash"]
        );
    }
}
