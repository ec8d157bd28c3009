//! The bounds of a session and of the machines around it, with their defaults.

use std::time::Duration;

use ipnet::IpNet;

/// Bounds that arbitration and owners enforce. Exceeding one is a transition with a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Longest life of a session.
    pub session_lifetime: Duration,
    /// Longest time without any transport before the owner ends the session.
    pub idle_transport_max: Duration,
    /// How long a session without an owner waits for its client.
    pub recovery_window: Duration,
    /// Owner changes and path switches per minute.
    pub switches_per_minute_max: u32,
    /// Shortest time between two switches.
    pub switch_cooldown: Duration,
    /// Live sessions per device.
    pub sessions_per_device_max: u32,
    /// How long an inner address rests before another session gets it.
    pub address_quarantine: Duration,
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self {
            session_lifetime: Duration::from_secs(24 * 3600),
            idle_transport_max: Duration::from_secs(120),
            recovery_window: Duration::from_secs(120),
            switches_per_minute_max: 20,
            switch_cooldown: Duration::from_millis(100),
            sessions_per_device_max: 4,
            address_quarantine: Duration::from_secs(300),
        }
    }
}

/// Most allowed destinations of one device.
pub const ALLOWED_DESTINATIONS_MAX: usize = 64;

/// What an operator bounds one device by. The default bounds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DevicePolicy {
    /// Networks that the device may reach and be reached from; empty for all.
    pub allowed_destinations: Vec<IpNet>,
    /// Inner bytes per second of each of its sessions, in each direction; 0 for no bound.
    pub bytes_per_second: u64,
}
