//! The one place to read to believe the tunnel: handshake, grants, records, replay window, keys, cookies, entropy.
//!
//! Everything here is a value or a total function. No clock, socket, file or async runtime is reachable from this
//! crate; time is passed in as seconds since the Unix epoch and randomness as a [`entropy::Entropy`] generator.
//!
//! The byte layouts are in `docs/protocol.md`; sections are cited beside the code.
#![forbid(unsafe_code)]

pub mod certificate;
mod codec;
pub mod cookie;
pub mod entropy;
pub mod grant;
pub mod handshake;
pub mod ids;
mod kem;
pub mod key_ring;
pub mod key_set;
pub mod keys;
mod mac;
pub mod mesh;
mod noise;
pub mod record;
pub mod replay_window;
pub mod rotation;
mod statement;
#[cfg(test)]
mod testing;
pub mod wire;
