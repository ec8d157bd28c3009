//! The pure machines of Jumping VPN: sessions, ownership, paths, balance, policy and reason codes.
//!
//! Nothing here reads a clock, randomness, a file or a socket: time and generators are arguments. The model checker,
//! the simulation and production run the same functions.
#![forbid(unsafe_code)]

pub mod balance;
pub mod client;
pub mod frame;
pub mod gateway;
pub mod ownership;
pub mod path;
pub mod policy;
pub mod reason;
pub mod steering;

pub use jump_crypto::ids;
