//! jump-control: the stateless gRPC service that arbitrates session ownership.

pub mod store;
