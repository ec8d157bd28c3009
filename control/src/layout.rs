//! The keys of the store (`docs/etcd-layout.md`), and reading and writing their values.

use std::net::IpAddr;

use jump_proto::store_v1 as wire;
use jump_session::ids::{DeviceKey, Incarnation, NodeId, NodeNumber, Revision, SessionId};
use jump_session::ownership::{Owner, SessionRecord};
use prost::Message;

use crate::store::{KeyValue, LeaseId};

/// What every key starts with.
pub const ROOT: &str = "/jump/v1/";
/// Sessions, in 256 buckets by their first byte.
pub const SESSIONS: &str = "/jump/v1/sessions/";
/// Runs of gateway nodes.
pub const NODES: &str = "/jump/v1/nodes/";
/// Numbers in use by nodes.
pub const NUMBERS: &str = "/jump/v1/numbers/";
/// The number that was given last.
pub const LAST_NUMBER: &str = "/jump/v1/last-number";
/// Nodes that an operator drains.
pub const DRAINS: &str = "/jump/v1/drains/";
/// Inner addresses in use or in quarantine.
pub const ADDRESSES: &str = "/jump/v1/addresses/";
/// Enrolled devices.
pub const DEVICES: &str = "/jump/v1/devices/";
/// Keys that devices rotated to.
pub const DEVICE_KEYS: &str = "/jump/v1/device-keys/";
/// Enrolment tokens.
pub const TOKENS: &str = "/jump/v1/tokens/";
/// The cluster handshake keys.
pub const CLUSTER_KEYS: &str = "/jump/v1/keys/cluster";
/// The grant keys.
pub const GRANT_KEYS: &str = "/jump/v1/keys/grant";

/// Changes with every batch of moves that evens out the gateways.
pub const REBALANCE_TURN: &str = "/jump/v1/rebalance-turn";

/// The bucket prefixes of sessions, in order.
pub fn session_buckets() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|bucket| format!("{SESSIONS}{bucket:02x}/"))
}

/// The key of a session.
pub fn session(id: SessionId) -> String {
    format!("{SESSIONS}{:02x}/{id}", id.to_bytes()[0])
}

/// The key of a node's run.
pub fn node(id: &NodeId) -> String {
    format!("{NODES}{id}")
}

/// The key of a node number.
pub fn number(number: NodeNumber) -> String {
    format!("{NUMBERS}{:04}", number.0)
}

/// The key that says that a node is drained.
pub fn drain(id: &NodeId) -> String {
    format!("{DRAINS}{id}")
}

/// The key of an inner address.
pub fn address(address: IpAddr) -> String {
    format!("{ADDRESSES}{address}")
}

/// The key of a device.
pub fn device(key: &DeviceKey) -> String {
    format!("{DEVICES}{key}")
}

/// The key that says which device rotated to `key`.
pub fn device_key(key: &DeviceKey) -> String {
    format!("{DEVICE_KEYS}{key}")
}

/// One of 256 prefixes that the tokens spread over evenly: their keys are digests.
pub fn token_bucket(bucket: u8) -> String {
    format!("{TOKENS}{bucket:02x}")
}

/// The key of an enrolment token.
pub fn token(secret_digest: &[u8; 32]) -> String {
    // A device key prints as 64 hexadecimal digits, as a digest does.
    format!("{TOKENS}{}", DeviceKey::from_bytes(*secret_digest))
}

/// A value of the store that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the value of {key}: {reason}")]
pub struct BadValue {
    /// The key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// Decodes a value.
///
/// # Errors
/// [`BadValue`].
pub fn decode<M: Message + Default>(stored: &KeyValue) -> Result<M, BadValue> {
    M::decode(stored.value.as_slice()).map_err(|error| bad(stored, &error))
}

fn bad(stored: &KeyValue, reason: &dyn std::fmt::Display) -> BadValue {
    BadValue { key: stored.key.clone(), reason: reason.to_string() }
}

/// A session's record with the revision that last changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// The record.
    pub record: SessionRecord,
    /// The revision that last changed it.
    pub modified: Revision,
}

impl StoredSession {
    /// Reads a session's value.
    ///
    /// # Errors
    /// [`BadValue`].
    pub fn read(stored: &KeyValue) -> Result<Self, BadValue> {
        let record = decode::<wire::SessionRecord>(stored)?;
        let record = SessionRecord::try_from(record).map_err(|fields| bad(stored, &fields))?;
        Ok(Self { record, modified: stored.mod_revision })
    }
}

/// The value of a session's key.
pub fn session_value(record: &SessionRecord) -> Vec<u8> {
    wire::SessionRecord::from(record).encode_to_vec()
}

/// A registered run of a gateway node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The node.
    pub id: NodeId,
    /// Its run: the revision that created the key.
    pub incarnation: Incarnation,
    /// Its steering number.
    pub number: NodeNumber,
    /// The lease that the key is attached to.
    pub lease: LeaseId,
    /// Everything that the gateway said about itself.
    pub record: wire::NodeRecord,
}

impl Node {
    /// Reads a node's value.
    ///
    /// # Errors
    /// [`BadValue`].
    pub fn read(stored: &KeyValue) -> Result<Self, BadValue> {
        let record: wire::NodeRecord = decode(stored)?;
        let id = record.node_id.parse().map_err(|error| bad(stored, &error))?;
        let number = u16::try_from(record.number).map_err(|error| bad(stored, &error))?;
        Ok(Self {
            id,
            incarnation: Incarnation(stored.create_revision.0),
            number: NodeNumber(number),
            lease: LeaseId(record.lease_id),
            record,
        })
    }

    /// The run, as records name it.
    pub fn owner(&self) -> Owner {
        Owner { node: self.id.clone(), incarnation: self.incarnation }
    }
}

/// Says whether a node's run told that it is about to end.
pub fn is_ending(stored: &KeyValue) -> bool {
    decode::<wire::NodeRecord>(stored).is_ok_and(|record| record.draining)
}

/// Says whether a node's key is there with exactly this run.
pub fn is_run(stored: Option<&KeyValue>, owner: &Owner) -> bool {
    stored.is_some_and(|stored| stored.create_revision.0 == owner.incarnation.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lies_in_the_bucket_of_its_first_byte() {
        let id = SessionId::from_bytes([0xab; 16]);
        let key = session(id);
        assert_eq!(key, "/jump/v1/sessions/ab/abababab-abab-abab-abab-abababababab");
        assert_eq!(session_buckets().filter(|bucket| key.starts_with(bucket)).count(), 1);
    }

    #[test]
    fn a_token_lies_in_exactly_one_bucket() {
        for first in 0..=u8::MAX {
            let key = token(&[first; 32]);
            let buckets: Vec<u8> =
                (0..=u8::MAX).filter(|bucket| key.starts_with(&token_bucket(*bucket))).collect();
            assert_eq!(buckets, [first]);
        }
    }
}
