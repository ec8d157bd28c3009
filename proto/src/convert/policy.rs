//! What bounds a device, on the wire and in the store.

use ipnet::IpNet;
use jump_session::policy::{ALLOWED_DESTINATIONS_MAX, DevicePolicy};

use super::Fields;
use crate::{control_v1, store_v1};

impl Fields {
    /// Reads a device's policy; unset bounds nothing.
    pub fn device_policy(
        &mut self,
        field: &str,
        message: Option<&control_v1::DevicePolicy>,
    ) -> Option<DevicePolicy> {
        let Some(message) = message else { return Some(DevicePolicy::default()) };
        self.policy(field, &message.allowed_destinations, message.bytes_per_second)
    }

    /// Reads a device's policy as it is stored.
    pub fn stored_policy(
        &mut self,
        field: &str,
        record: Option<&store_v1::DevicePolicy>,
    ) -> Option<DevicePolicy> {
        let Some(record) = record else { return Some(DevicePolicy::default()) };
        self.policy(field, &record.allowed_destinations, record.bytes_per_second)
    }

    fn policy(&mut self, field: &str, networks: &[String], bytes_per_second: u64) -> Option<DevicePolicy> {
        let field = &format!("{field}.allowed_destinations");
        if networks.len() > ALLOWED_DESTINATIONS_MAX {
            self.bad(field, format_args!("must have at most {ALLOWED_DESTINATIONS_MAX} networks"));
            return None;
        }
        // A network that cannot be read must not widen what the device may reach.
        let read = |network: &String| {
            let parsed = network.parse::<IpNet>().map_err(|_| format!("{network:?} is no network in CIDR"));
            self.take(field, parsed).map(|network| network.trunc())
        };
        let allowed_destinations = networks.iter().map(read).collect::<Option<_>>()?;
        Some(DevicePolicy { allowed_destinations, bytes_per_second })
    }
}

fn networks(policy: &DevicePolicy) -> Vec<String> {
    policy.allowed_destinations.iter().map(ToString::to_string).collect()
}

/// A policy for the wire; unset when it bounds nothing.
pub fn device_policy(policy: &DevicePolicy) -> Option<control_v1::DevicePolicy> {
    (*policy != DevicePolicy::default()).then(|| control_v1::DevicePolicy {
        allowed_destinations: networks(policy),
        bytes_per_second: policy.bytes_per_second,
    })
}

/// A policy for the store; unset when it bounds nothing.
pub fn stored_policy(policy: &DevicePolicy) -> Option<store_v1::DevicePolicy> {
    (*policy != DevicePolicy::default()).then(|| store_v1::DevicePolicy {
        allowed_destinations: networks(policy),
        bytes_per_second: policy.bytes_per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(networks: &[&str]) -> Result<DevicePolicy, crate::convert::BadFields> {
        let message = control_v1::DevicePolicy {
            allowed_destinations: networks.iter().map(ToString::to_string).collect(),
            bytes_per_second: 1000,
        };
        let mut fields = Fields::default();
        let policy = fields.device_policy("policy", Some(&message));
        fields.finish(|| policy)
    }

    #[test]
    fn a_policy_survives_the_wire_and_names_whole_networks() {
        let policy = read(&["10.1.2.3/16", "fd00::/8"]).unwrap();
        assert_eq!(networks(&policy), ["10.1.0.0/16", "fd00::/8"]);
        let mut fields = Fields::default();
        assert_eq!(fields.device_policy("policy", device_policy(&policy).as_ref()), Some(policy.clone()));
        assert_eq!(fields.stored_policy("policy", stored_policy(&policy).as_ref()), Some(policy));
    }

    #[test]
    fn a_network_that_cannot_be_read_refuses_the_whole_policy() {
        assert!(read(&["10.0.0.0/8", "10.0.0.0/33"]).is_err());
        assert!(read(&["example.net"]).is_err());
        assert!(read(&["10.0.0.0/8"; ALLOWED_DESTINATIONS_MAX + 1]).is_err());
    }

    #[test]
    fn what_bounds_nothing_is_not_written() {
        assert_eq!(device_policy(&DevicePolicy::default()), None);
        assert_eq!(stored_policy(&DevicePolicy::default()), None);
    }
}
