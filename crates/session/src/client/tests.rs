//! The client against gateways that hold real handshake keys, in virtual time.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one kind of event or frame among all")]

mod attach;
mod chaos;
mod hostile;
mod load;
mod mtu;
mod owner;
mod ways;
mod world;
