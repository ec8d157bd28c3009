//! The store's records.

use core::net::IpAddr;

use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, SessionId};
use jump_session::ownership::{Claim, HistoryEntry, MoveOrder, Owner, Phase, SessionRecord};
use jump_session::reason::Reason;

use super::{BadFields, Fields, stored_policy};
use crate::store_v1 as wire;
use crate::store_v1::session_record::Phase as WirePhase;

impl From<&Owner> for wire::Owner {
    fn from(owner: &Owner) -> Self {
        Self { node_id: owner.node.to_string(), incarnation: owner.incarnation.0 }
    }
}

impl From<&SessionRecord> for wire::SessionRecord {
    fn from(record: &SessionRecord) -> Self {
        let phase = match &record.phase {
            Phase::Released { since } => WirePhase::Released(wire::Released { since_ms: *since }),
            Phase::Owned { owner } => WirePhase::Owned(wire::Owned { owner: Some(owner.into()) }),
            Phase::Handover { from, to } => WirePhase::Handover(wire::Handover {
                from: Some(from.into()),
                to: Some((&to.owner).into()),
                attach_seq: to.attach_seq.0,
                attempt_id: to.attempt.to_bytes().to_vec(),
                since_ms: to.since,
                reason: u32::from(to.reason.number()),
                free: !to.charged,
            }),
            Phase::Terminated { at } => WirePhase::Terminated(wire::Terminated { at_ms: *at }),
        };
        let history = record.history.iter().map(|entry| wire::HistoryEntry {
            epoch: entry.epoch.0,
            owner: Some((&entry.owner).into()),
            since_ms: entry.since,
            reason: u32::from(entry.reason.number()),
        });
        Self {
            session_id: record.id.to_bytes().to_vec(),
            device_key: record.device.as_bytes().to_vec(),
            epoch: record.epoch.0,
            attach_seq: record.attach_seq.0,
            attempt_id: record.attempt.to_bytes().to_vec(),
            phase: Some(phase),
            inner_addresses: record.inner.iter().map(address_bytes).collect(),
            created_ms: record.created,
            changed_ms: record.changed,
            expires_ms: record.expires,
            reason: u32::from(record.reason.number()),
            history: history.collect(),
            recent_switches_ms: record.recent_switches.clone(),
            correlation_id: record.correlation.to_vec(),
            device_name: record.device_name.clone(),
            moving: record.moving.as_ref().map(|order| wire::MoveOrder {
                node_id: order.to.as_ref().map(ToString::to_string).unwrap_or_default(),
                since_ms: order.since,
            }),
            policy: stored_policy(&record.policy),
        }
    }
}

impl TryFrom<wire::SessionRecord> for SessionRecord {
    type Error = BadFields;

    fn try_from(record: wire::SessionRecord) -> Result<Self, BadFields> {
        let mut fields = Fields::default();
        let id = fields.bytes("session_id", &record.session_id).map(SessionId::from_bytes);
        let device = fields.bytes("device_key", &record.device_key).map(DeviceKey::from_bytes);
        let attempt = fields.bytes("attempt_id", &record.attempt_id).map(AttemptId::from_bytes);
        let phase = phase(&mut fields, record.phase);
        let inner: Vec<IpAddr> = record
            .inner_addresses
            .iter()
            .filter_map(|bytes| fields.take("inner_addresses", address(bytes)))
            .collect();
        let reason = reason(&mut fields, "reason", record.reason);
        let history: Vec<HistoryEntry> = record
            .history
            .into_iter()
            .filter_map(|entry| {
                let owner = owner(&mut fields, "history.owner", entry.owner);
                let reason = self::reason(&mut fields, "history.reason", entry.reason);
                Some(HistoryEntry {
                    epoch: Epoch(entry.epoch),
                    owner: owner?,
                    since: entry.since_ms,
                    reason: reason?,
                })
            })
            .collect();
        let moving = record.moving.and_then(|order| {
            let to = (!order.node_id.is_empty()).then(|| fields.id("moving.node_id", &order.node_id));
            Some(MoveOrder { to: to.map_or(Some(None), |to| to.map(Some))?, since: order.since_ms })
        });
        let correlation = fields.bytes("correlation_id", &record.correlation_id);
        let policy = fields.stored_policy("policy", record.policy.as_ref());
        fields.finish(|| {
            Some(Self {
                id: id?,
                device: device?,
                device_name: record.device_name,
                epoch: Epoch(record.epoch),
                attach_seq: AttachSeq(record.attach_seq),
                attempt: attempt?,
                phase: phase?,
                inner,
                created: record.created_ms,
                changed: record.changed_ms,
                expires: record.expires_ms,
                reason: reason?,
                history,
                recent_switches: record.recent_switches_ms,
                moving,
                correlation: correlation?,
                policy: policy?,
            })
        })
    }
}

fn phase(fields: &mut Fields, phase: Option<WirePhase>) -> Option<Phase> {
    match phase {
        None => {
            fields.bad("phase", "is missing");
            None
        }
        Some(WirePhase::Released(released)) => Some(Phase::Released { since: released.since_ms }),
        Some(WirePhase::Owned(owned)) => {
            Some(Phase::Owned { owner: owner(fields, "owned.owner", owned.owner)? })
        }
        Some(WirePhase::Handover(handover)) => {
            let from = owner(fields, "handover.from", handover.from);
            let to = owner(fields, "handover.to", handover.to);
            let attempt = fields.bytes("handover.attempt_id", &handover.attempt_id);
            let reason = reason(fields, "handover.reason", handover.reason);
            Some(Phase::Handover {
                from: from?,
                to: Claim {
                    owner: to?,
                    attach_seq: AttachSeq(handover.attach_seq),
                    attempt: AttemptId::from_bytes(attempt?),
                    since: handover.since_ms,
                    reason: reason?,
                    charged: !handover.free,
                },
            })
        }
        Some(WirePhase::Terminated(terminated)) => Some(Phase::Terminated { at: terminated.at_ms }),
    }
}

fn owner(fields: &mut Fields, field: &str, owner: Option<wire::Owner>) -> Option<Owner> {
    let Some(owner) = owner else {
        fields.bad(field, "is missing");
        return None;
    };
    let node = fields.id(field, &owner.node_id);
    Some(Owner { node: node?, incarnation: Incarnation(owner.incarnation) })
}

fn reason(fields: &mut Fields, field: &str, number: u32) -> Option<Reason> {
    let known = u16::try_from(number).ok().and_then(Reason::from_number);
    fields.take(field, known.ok_or_else(|| format!("reason {number} is unknown to this version")))
}

fn address_bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, &'static str> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).map_err(|_| "must have 4 or 16 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jump_session::policy::DevicePolicy;

    fn policy() -> DevicePolicy {
        DevicePolicy {
            allowed_destinations: vec!["10.2.0.0/16".parse().unwrap()],
            bytes_per_second: 1_000_000,
        }
    }

    fn record(phase: Phase) -> SessionRecord {
        let owner = Owner { node: "gw1".parse().unwrap(), incarnation: Incarnation(7) };
        SessionRecord {
            id: SessionId::from_bytes([1; 16]),
            device: DeviceKey::from_bytes([2; 32]),
            device_name: "laptop".to_owned(),
            epoch: Epoch(3),
            attach_seq: AttachSeq(4),
            attempt: AttemptId::from_bytes([5; 16]),
            phase,
            inner: vec!["10.7.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            created: 1,
            changed: 2,
            expires: 3,
            reason: Reason::GatewayUnresponsive,
            history: vec![HistoryEntry { epoch: Epoch(3), owner, since: 9, reason: Reason::Birth }],
            recent_switches: vec![8, 9],
            moving: Some(MoveOrder { to: Some("gw2".parse().unwrap()), since: 12 }),
            correlation: [6; 16],
            policy: policy(),
        }
    }

    #[test]
    fn a_record_in_any_phase_survives_the_store() {
        let run = |n| Owner { node: "gw1".parse().unwrap(), incarnation: Incarnation(n) };
        let claim = Claim {
            owner: run(9),
            attach_seq: AttachSeq(5),
            attempt: AttemptId::from_bytes([9; 16]),
            since: 11,
            reason: Reason::NetworkChanged,
            charged: false,
        };
        for phase in [
            Phase::Released { since: 5 },
            Phase::Owned { owner: run(7) },
            Phase::Handover { from: run(7), to: claim },
            Phase::Terminated { at: 6 },
        ] {
            let record = record(phase);
            assert_eq!(SessionRecord::try_from(wire::SessionRecord::from(&record)), Ok(record));
        }
    }

    #[test]
    fn every_bad_field_of_a_record_is_listed() {
        let mut bad = wire::SessionRecord::from(&record(Phase::Released { since: 1 }));
        bad.session_id = vec![1];
        bad.phase = None;
        bad.reason = 60_000;
        bad.inner_addresses.push(vec![1, 2]);
        let BadFields(listed) = SessionRecord::try_from(bad).unwrap_err();
        let names: Vec<&str> = listed.iter().map(|bad| bad.field.as_str()).collect();
        assert_eq!(names, ["session_id", "phase", "inner_addresses", "reason"]);
    }
}
