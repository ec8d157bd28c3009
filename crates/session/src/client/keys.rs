//! Keeping up with keys: the cluster's, as control rotates them, and the device's own.

use jump_crypto::certificate::VerifyError;
use jump_crypto::key_set::KeySet;
use jump_crypto::keys::{DeviceSecret, GrantVerifier};

use super::{Client, Event, Now};
use crate::reason::Reason;

impl Client {
    /// The owner handed on a key set. Control's signature counts, not the gateway's word.
    pub(super) fn take_key_set(&mut self, encoded: &[u8]) {
        let opened = KeySet::parse(encoded)
            .and_then(|key_set| key_set.open(&self.config.verifier, self.config.key_set));
        match opened {
            Ok(claims) => {
                self.config.cluster_keys.clone_from(&claims.cluster);
                self.config.verifier = GrantVerifier::new(&claims.grant);
                self.config.key_set = claims.serial;
                self.config.suite = self.config.suite.with_hybrid(claims.hybrid);
                self.prepare_keys();
                self.events.push_back(Event::KeysChanged(claims));
            }
            // The one that it has, or an older one on its way from before.
            Err(VerifyError::Expired) => {}
            Err(
                VerifyError::Malformed
                | VerifyError::UnknownKey
                | VerifyError::Signature
                | VerifyError::Mismatch(_),
            ) => self.drops.bad_key_set += 1,
        }
    }

    /// Attaches again under another device key, which control knows as this device's. The path of the old key serves
    /// until then.
    pub fn replace_device(&mut self, now: Now, device: DeviceSecret) {
        self.config.device = device;
        self.prepare_keys();
        // What is under way was made with the old key: its grant would name a key that is not this one.
        self.end_campaign(None);
        if self.link.as_ref().is_some_and(|link| link.usable) {
            self.leave_link(now.at, Reason::ClientRequest, &[]);
        } else {
            self.begin_campaign(now.at, self.state_reason, &[], now.at);
        }
        self.drive(now);
    }

    /// Does now what the next attach would otherwise have to do first.
    pub(super) fn prepare_keys(&self) {
        if let Some(cluster) = self.config.cluster_keys.first() {
            self.config.device.prepare(cluster);
        }
    }
}
