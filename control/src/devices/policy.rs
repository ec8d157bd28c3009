//! What bounds a device: allowed destinations and a rate. Kept with the device, copied into each of its sessions by every
//! attach and by every change, from where the stream of bindings takes it to the session's owner.

use jump_proto::convert::{Fields, stored_policy};
use jump_proto::store_v1::DeviceRecord;
use jump_session::ids::{DeviceKey, SessionId};
use jump_session::policy::DevicePolicy;

use super::{DeviceError, Devices, StoredDevice};
use crate::layout::BadValue;

/// What bounds the device of `record`.
///
/// # Errors
/// [`BadValue`].
pub(crate) fn policy(record: &DeviceRecord) -> Result<DevicePolicy, BadValue> {
    let mut fields = Fields::default();
    let policy = fields.stored_policy("policy", record.policy.as_ref());
    fields
        .finish(|| policy)
        .map_err(|error| BadValue { key: format!("the device {:?}", record.name), reason: error.to_string() })
}

impl Devices {
    /// Bounds a device by `policy`, then its live sessions. From the first write on, no attach of the device commits
    /// under the earlier policy. Says how many sessions it bounds.
    ///
    /// # Errors
    /// [`DeviceError::UnknownDevice`] and the store's; asking again finishes what was left.
    pub async fn set_policy(
        &self,
        key: DeviceKey,
        policy: &DevicePolicy,
    ) -> Result<(StoredDevice, u32), DeviceError> {
        let bind = |record: &mut DeviceRecord| {
            record.policy = stored_policy(policy);
            true
        };
        let stored = self.update(&key, bind).await?;
        let mut bounded = 0;
        for id in stored.record.sessions.iter().filter_map(|bytes| bytes.as_slice().try_into().ok()) {
            bounded += u32::from(self.arbiter.bound(SessionId::from_bytes(id), &stored.key).await?);
        }
        Ok((stored, bounded))
    }
}
