//! The gateway: a stateless data plane that carries sessions over TUN, with the authority of a lease.
//!
//! `jump-gateway run` is a [`supervisor`] and its [`worker`]. The worker's packet state lives on one thread
//! ([`dataplane`]); control is asked over gRPC by tokio tasks. [`worker::run`] is the entry for tests that want a
//! gateway inside their own process.

pub mod attach;
pub mod audit;
pub mod bindings;
pub mod config;
pub mod conntrack;
pub mod context;
pub mod control;
pub mod dataplane;
pub mod doctor;
pub mod drain;
pub mod handshake;
pub mod heartbeat;
pub mod identity;
pub mod lease;
pub mod metrics;
pub mod places;
pub mod readiness;
pub mod registration;
pub mod supervisor;
pub mod usage;
pub mod worker;
