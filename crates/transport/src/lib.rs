//! Sockets and TUN: the transport interface, its adapters, packet batches and health telemetry.
//!
//! Knows nothing of sessions, keys or control: it moves datagrams and inner packets.

pub mod batch;
pub mod clock;
pub mod health;
pub mod network;
pub mod poll;
#[expect(unsafe_code, reason = "batched socket calls and TUN ioctls have no safe wrapper; they are all here")]
mod sys;
pub mod tun;
pub mod udp;
