//! Devices: enrolment by one-time tokens, validity, key rotation, revocation.

use std::time::Duration;

use jump_crypto::entropy::EntropyError;
use jump_proto::convert::stored_policy;
use jump_proto::store_v1::{self, DeviceAliasRecord, DeviceRecord, TokenRecord};
use jump_session::ids::{DeviceKey, Revision, SessionId};
use jump_session::ownership::{Change, DeviceStanding, UnixMillis};
use jump_session::policy::DevicePolicy;
use jump_session::reason::Reason;
use prost::Message;
use ring::digest;

use crate::arbiter::{Arbiter, ArbiterError};
use crate::clock;
use crate::layout::{self, BadValue};
use crate::store::{Compare, KeyValue, Op, Outcome, SharedStore, StoreError, Txn};

/// The longest device name, in characters.
pub const NAME_CHARS_MAX: usize = 63;

mod policy;
mod rotation;

pub(crate) use policy::policy;

/// How often a lost compare-and-swap is repeated.
const CONFLICTS_MAX: usize = 16;

/// A device's standing at `now`.
pub fn standing(record: Option<&DeviceRecord>, now: UnixMillis) -> DeviceStanding {
    let Some(record) = record else { return DeviceStanding::Unknown };
    if record.revoked_ms != 0 {
        return DeviceStanding::Revoked;
    }
    if now < record.not_before_ms || (record.not_after_ms != 0 && now >= record.not_after_ms) {
        return DeviceStanding::Expired;
    }
    DeviceStanding::Active
}

/// A device's standing at `now` when it attaches with `key`: one of its keys, and not past its overlap.
pub fn standing_with(record: Option<&DeviceRecord>, key: &DeviceKey, now: UnixMillis) -> DeviceStanding {
    let standing = standing(record, now);
    let Some(record) = record.filter(|_| standing == DeviceStanding::Active) else { return standing };
    if serves(record, key, now) { DeviceStanding::Active } else { DeviceStanding::Expired }
}

fn serves(record: &DeviceRecord, key: &DeviceKey, now: UnixMillis) -> bool {
    if record.keys.is_empty() {
        return record.device_key == key.as_bytes();
    }
    let mut of_device = record.keys.iter().filter(|known| known.key == key.as_bytes());
    of_device.any(|known| known.until_ms == 0 || now < known.until_ms)
}

/// Which device a stored alias names.
///
/// # Errors
/// [`BadValue`].
pub(crate) fn read_alias(stored: &KeyValue) -> Result<DeviceKey, BadValue> {
    let alias: DeviceAliasRecord = layout::decode(stored)?;
    let key = <[u8; 32]>::try_from(alias.device_key.as_slice())
        .map_err(|_| BadValue { key: stored.key.clone(), reason: "no device key".to_owned() })?;
    Ok(DeviceKey::from_bytes(key))
}

/// A device with the revision that last changed it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDevice {
    /// Its key.
    pub key: DeviceKey,
    /// Its record.
    pub record: DeviceRecord,
    /// The revision that last changed it.
    pub modified: Revision,
}

impl StoredDevice {
    /// Reads a device's value.
    ///
    /// # Errors
    /// [`BadValue`].
    pub fn read(stored: &KeyValue) -> Result<Self, BadValue> {
        let record: DeviceRecord = layout::decode(stored)?;
        let key = <[u8; 32]>::try_from(record.device_key.as_slice())
            .map_err(|_| BadValue { key: stored.key.clone(), reason: "no device key".to_owned() })?;
        Ok(Self { key: DeviceKey::from_bytes(key), record, modified: stored.mod_revision })
    }
}

/// Why a device was not enrolled, listed or revoked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored value cannot be read.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// A session of the device could not be ended.
    #[error(transparent)]
    Session(#[from] ArbiterError),
    /// The random generator refused.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The token is unknown, used up by another device, or too old.
    #[error("the enrolment token is unknown, used or expired: ask the operator for a new one")]
    BadToken,
    /// The key is enrolled already, or was revoked: a key is never enrolled twice.
    #[error("the device key is enrolled or was revoked: make a new key pair")]
    KeyInUse,
    /// No such device.
    #[error("no device with this key is enrolled")]
    UnknownDevice,
    /// The device has replaced the key already, by another than the one that is asked for.
    #[error("this key is not the device's present one: it was rotated before")]
    KeySuperseded,
    /// The device or its key may not be used any more.
    #[error("the device may not rotate its key [{}]", .0.code())]
    NotActive(Reason),
    /// The request's id was used for another token.
    #[error("the request_id was used for another token: use a new one")]
    RequestReused,
    /// Others keep changing the same keys.
    #[error("too many concurrent changes: try again")]
    Busy,
}

/// Enrols, lists and revokes devices.
#[derive(Debug, Clone)]
pub struct Devices {
    /// The store.
    pub store: SharedStore,
    /// Ends the sessions of revoked devices.
    pub arbiter: Arbiter,
    /// How long a device's old key serves beside its new one.
    pub overlap: Duration,
}

impl Devices {
    /// Makes a one-time token for a device called `name`; returns its secret.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn create_token(
        &self,
        secret: &[u8; 32],
        name: &str,
        ttl: Duration,
        device_ttl: Duration,
        policy: &DevicePolicy,
    ) -> Result<UnixMillis, DeviceError> {
        let expires_ms = clock::unix_millis().saturating_add(millis(ttl));
        let record = TokenRecord {
            name: name.to_owned(),
            expires_ms,
            device_ttl_ms: millis(device_ttl),
            device_key: Vec::new(),
            policy: stored_policy(policy),
        };
        let key = token_key(secret);
        let txn =
            Txn { compares: vec![Compare::absent(&key)], ops: vec![Op::put(&key, record.encode_to_vec())] };
        if self.committed(txn).await?.is_some() {
            return Ok(expires_ms);
        }
        // It exists: the answer to the same request was lost, or the request's id serves for another one.
        let snapshot = self.store.read(&[key]).await?;
        let stored = snapshot.values[0].as_ref().ok_or(DeviceError::Busy)?;
        let stored: TokenRecord = layout::decode(stored)?;
        let asked = (&record.name, record.device_ttl_ms, &record.policy);
        if (&stored.name, stored.device_ttl_ms, &stored.policy) == asked {
            Ok(stored.expires_ms)
        } else {
            Err(DeviceError::RequestReused)
        }
    }

    /// Trades a token for an enrolled key. The same token with the same key gets the same answer.
    ///
    /// # Errors
    /// [`DeviceError::BadToken`], [`DeviceError::KeyInUse`], and the store's.
    pub async fn enrol_with_token(
        &self,
        secret: &[u8; 32],
        key: DeviceKey,
    ) -> Result<StoredDevice, DeviceError> {
        let keys = [token_key(secret), layout::device(&key), layout::device_key(&key)];
        for _ in 0..CONFLICTS_MAX {
            let snapshot = self.store.read(&keys).await?;
            let now = clock::unix_millis();
            let Some(stored_token) = &snapshot.values[0] else { return Err(DeviceError::BadToken) };
            let mut token: TokenRecord = layout::decode(stored_token)?;
            if token.device_key == key.as_bytes() {
                let stored = snapshot.values[1].as_ref().ok_or(DeviceError::BadToken)?;
                return Ok(StoredDevice::read(stored)?);
            }
            if !token.device_key.is_empty() || token.expires_ms <= now {
                return Err(DeviceError::BadToken);
            }
            if snapshot.values[1].is_some() || snapshot.values[2].is_some() {
                return Err(DeviceError::KeyInUse);
            }
            let not_after_ms = match token.device_ttl_ms {
                0 => 0,
                ttl => now.saturating_add(ttl),
            };
            let record = new_record(key, &token.name, now, not_after_ms, token.policy.clone());
            token.device_key = key.as_bytes().to_vec();
            let txn = Txn {
                compares: vec![
                    Compare::Modified(keys[0].clone(), stored_token.mod_revision),
                    Compare::absent(&keys[1]),
                    Compare::absent(&keys[2]),
                ],
                ops: vec![
                    Op::put(&keys[0], token.encode_to_vec()),
                    Op::put(&keys[1], record.encode_to_vec()),
                ],
            };
            if let Some(modified) = self.committed(txn).await? {
                return Ok(StoredDevice { key, record, modified });
            }
        }
        Err(DeviceError::Busy)
    }

    /// Enrols a key that the operator vouches for. Enrolling the same key with the same name again is no error.
    ///
    /// # Errors
    /// [`DeviceError::KeyInUse`] and the store's.
    pub async fn enrol(
        &self,
        key: DeviceKey,
        name: &str,
        not_after_ms: UnixMillis,
        policy: &DevicePolicy,
    ) -> Result<StoredDevice, DeviceError> {
        let path = layout::device(&key);
        let policy = stored_policy(policy);
        for _ in 0..CONFLICTS_MAX {
            if let Some(stored) = self.device_of(&key).await? {
                let same = stored.record.name == name
                    && stored.record.not_after_ms == not_after_ms
                    && stored.record.policy == policy
                    && stored.record.revoked_ms == 0;
                return if same { Ok(stored) } else { Err(DeviceError::KeyInUse) };
            }
            let record = new_record(key, name, clock::unix_millis(), not_after_ms, policy.clone());
            let txn = Txn {
                compares: vec![Compare::absent(&path), Compare::absent(layout::device_key(&key))],
                ops: vec![Op::put(&path, record.encode_to_vec())],
            };
            if let Some(modified) = self.committed(txn).await? {
                return Ok(StoredDevice { key, record, modified });
            }
        }
        Err(DeviceError::Busy)
    }

    /// Revokes a device, then ends its sessions. From the first write on, no attach of the device can commit.
    ///
    /// # Errors
    /// [`DeviceError::UnknownDevice`] and the store's; asking again finishes what was left.
    pub async fn revoke(&self, key: DeviceKey) -> Result<(StoredDevice, u32), DeviceError> {
        let revoke = |record: &mut DeviceRecord| {
            let is_new = record.revoked_ms == 0;
            if is_new {
                record.revoked_ms = clock::unix_millis();
            }
            is_new
        };
        let stored = self.update(&key, revoke).await?;
        let mut ended = 0;
        for id in stored.record.sessions.iter().filter_map(|bytes| bytes.as_slice().try_into().ok()) {
            let terminate = Change::Terminate { by: None, reason: Reason::KeyRevoked };
            match self.arbiter.change(SessionId::from_bytes(id), &terminate).await {
                Ok(session) => ended += u32::from(session.record.reason == Reason::KeyRevoked),
                // Ended and forgotten long ago.
                Err(ArbiterError::Refused(refusal)) if refusal.reason == Reason::UnknownSession => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((stored, ended))
    }

    /// Writes what `change` makes of a device's record, anew for as long as others come first. Nothing is written when it says
    /// that there is nothing to change.
    async fn update(
        &self,
        key: &DeviceKey,
        change: impl Fn(&mut DeviceRecord) -> bool + Send,
    ) -> Result<StoredDevice, DeviceError> {
        for _ in 0..CONFLICTS_MAX {
            let mut stored = self.device_of(key).await?.ok_or(DeviceError::UnknownDevice)?;
            if !change(&mut stored.record) {
                return Ok(stored);
            }
            let path = layout::device(&stored.key);
            let txn = Txn {
                compares: vec![Compare::Modified(path.clone(), stored.modified)],
                ops: vec![Op::put(path, stored.record.encode_to_vec())],
            };
            if let Some(modified) = self.committed(txn).await? {
                stored.modified = modified;
                return Ok(stored);
            }
        }
        Err(DeviceError::Busy)
    }

    /// One page of devices after the store key `after`, and whether there are more.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn list(&self, after: &str, limit: usize) -> Result<(Vec<StoredDevice>, bool), DeviceError> {
        let page = self.store.range(layout::DEVICES, after, limit, None).await?;
        let devices = page.values.iter().map(StoredDevice::read).collect::<Result<_, _>>()?;
        Ok((devices, page.more))
    }

    /// The device that `key` is or was a key of.
    async fn device_of(&self, key: &DeviceKey) -> Result<Option<StoredDevice>, DeviceError> {
        let snapshot = self.store.read(&[layout::device(key), layout::device_key(key)]).await?;
        let stored = match (&snapshot.values[0], &snapshot.values[1]) {
            (Some(stored), _) => Some(stored.clone()),
            (None, Some(alias)) => {
                let first = layout::device(&read_alias(alias)?);
                self.store.read(&[first]).await?.values.remove(0)
            }
            (None, None) => None,
        };
        Ok(stored.as_ref().map(StoredDevice::read).transpose()?)
    }

    /// The revision, or `None` when it must be decided anew: lost, or unknown and to be read again.
    async fn committed(&self, txn: Txn) -> Result<Option<Revision>, DeviceError> {
        match self.store.commit(txn).await {
            Ok(Outcome::Committed(revision)) => Ok(Some(revision)),
            Ok(Outcome::Conflict) | Err(StoreError::Unknown(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn new_record(
    key: DeviceKey,
    name: &str,
    now: UnixMillis,
    not_after_ms: UnixMillis,
    policy: Option<store_v1::DevicePolicy>,
) -> DeviceRecord {
    DeviceRecord {
        device_key: key.as_bytes().to_vec(),
        name: name.to_owned(),
        enrolled_ms: now,
        not_before_ms: 0,
        not_after_ms,
        revoked_ms: 0,
        sessions: Vec::new(),
        keys: Vec::new(),
        policy,
    }
}

/// The key that stands for a token: its hash.
pub(crate) fn token_key(secret: &[u8; 32]) -> String {
    let digest = digest::digest(&digest::SHA256, secret);
    let (bytes, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    layout::token(bytes)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
