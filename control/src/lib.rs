//! `jump-control`: the stateless gRPC service that arbitrates session ownership.

pub mod identity;
pub mod pki;
pub mod store;
