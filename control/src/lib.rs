//! jump-control: the stateless gRPC service that arbitrates session ownership.
//!
//! A replica keeps nothing of its own: every decision is one read and one compare-and-swap on the [`store`], so that
//! any replica can serve any request and may die at any point.

pub mod addresses;
pub mod arbiter;
pub mod audit;
pub mod bindings;
mod clock;
pub mod config;
mod connections;
pub mod devices;
pub mod doctor;
pub mod identity;
pub mod keyring;
pub mod layout;
pub mod metrics;
pub mod pki;
pub mod reaper;
pub mod rebalancer;
pub mod registry;
mod serve;
pub mod service;
pub mod store;

pub use arbiter::{Arbiter, ArbiterError};
pub use serve::{Replica, ServeError, serve};
