//! Key rotation: a device goes on under another key, with its name, its policy and its sessions.
//!
//! A device stays stored under its first key. Each key that it rotates to has an alias that leads there; which keys may
//! attach, and until when, is in the device's own record, so that one compare-and-swap decides.

use std::time::Duration;

use jump_proto::store_v1::{DeviceAliasRecord, DeviceKeyRecord, DeviceRecord};
use jump_session::ids::DeviceKey;
use jump_session::ownership::{DeviceStanding, UnixMillis};
use jump_session::reason::Reason;
use prost::Message;

use super::{CONFLICTS_MAX, DeviceError, Devices, StoredDevice, millis, read_alias, serves, standing};
use crate::clock;
use crate::layout;
use crate::store::{Compare, Op, Txn};

impl StoredDevice {
    /// The key that the device uses now.
    pub fn current_key(&self) -> DeviceKey {
        let newest = self.record.keys.last().and_then(|key| key.key.as_slice().try_into().ok());
        newest.map_or(self.key, DeviceKey::from_bytes)
    }
}

impl Devices {
    /// Replaces the device's present key `old` by `new`; the caller has checked that the device holds both. `old` serves
    /// until the overlap ends, an older key no longer. The same two keys again get the same answer.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn rotate(&self, old: DeviceKey, new: DeviceKey) -> Result<StoredDevice, DeviceError> {
        if old == new {
            return Err(DeviceError::KeyInUse);
        }
        let paths = [layout::device(&new), layout::device_key(&new)];
        for _ in 0..CONFLICTS_MAX {
            let mut stored = self.device_of(&old).await?.ok_or(DeviceError::UnknownDevice)?;
            let taken = self.store.read(&paths).await?.values;
            let rotated_before = match &taken[1] {
                Some(alias) => read_alias(alias)? == stored.key && stored.current_key() == new,
                None => false,
            };
            if rotated_before {
                return Ok(stored);
            }
            if taken.iter().any(Option::is_some) {
                return Err(DeviceError::KeyInUse);
            }
            let now = clock::unix_millis();
            check(&stored, &old, now)?;
            replace(&mut stored.record, &old, &new, now, millis(self.overlap));
            let path = layout::device(&stored.key);
            let alias = DeviceAliasRecord { device_key: stored.key.as_bytes().to_vec() };
            let txn = Txn {
                compares: vec![
                    Compare::Modified(path.clone(), stored.modified),
                    Compare::absent(&paths[0]),
                    Compare::absent(&paths[1]),
                ],
                ops: vec![
                    Op::put(path, stored.record.encode_to_vec()),
                    Op::put(&paths[1], alias.encode_to_vec()),
                ],
            };
            if let Some(modified) = self.committed(txn).await? {
                stored.modified = modified;
                return Ok(stored);
            }
        }
        Err(DeviceError::Busy)
    }

    /// Lets the device's present key end after `within`, unless the device rotates it before.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn require_rotation(
        &self,
        key: DeviceKey,
        within: Duration,
    ) -> Result<StoredDevice, DeviceError> {
        let bound = |record: &mut DeviceRecord| {
            name_keys(record);
            if let Some(present) = record.keys.last_mut() {
                present.until_ms = clock::unix_millis().saturating_add(millis(within));
            }
            true
        };
        self.update(&key, bound).await
    }
}

/// Only an active device rotates, and only its present key.
fn check(stored: &StoredDevice, old: &DeviceKey, now: UnixMillis) -> Result<(), DeviceError> {
    match standing(Some(&stored.record), now) {
        DeviceStanding::Active => {}
        DeviceStanding::Revoked => return Err(DeviceError::NotActive(Reason::KeyRevoked)),
        DeviceStanding::Expired | DeviceStanding::Unknown => {
            return Err(DeviceError::NotActive(Reason::KeyExpired));
        }
    }
    if stored.current_key() != *old {
        return Err(DeviceError::KeySuperseded);
    }
    if serves(&stored.record, old, now) { Ok(()) } else { Err(DeviceError::NotActive(Reason::KeyExpired)) }
}

/// Writes down the first key, which is implied until the first change.
fn name_keys(record: &mut DeviceRecord) {
    if record.keys.is_empty() {
        let first =
            DeviceKeyRecord { key: record.device_key.clone(), since_ms: record.enrolled_ms, until_ms: 0 };
        record.keys.push(first);
    }
}

fn replace(record: &mut DeviceRecord, old: &DeviceKey, new: &DeviceKey, now: UnixMillis, overlap: u64) {
    name_keys(record);
    record.keys.retain(|key| key.key == old.as_bytes());
    for key in &mut record.keys {
        let end = now.saturating_add(overlap);
        key.until_ms = if key.until_ms == 0 { end } else { key.until_ms.min(end) };
    }
    record.keys.push(DeviceKeyRecord { key: new.as_bytes().to_vec(), since_ms: now, until_ms: 0 });
}
