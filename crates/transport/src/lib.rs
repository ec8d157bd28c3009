//! Sockets and TUN: the transport interface, its adapters, packet batches and health telemetry.
//!
//! Knows nothing of sessions, keys or control: it moves datagrams and inner packets.

pub mod batch;
pub mod clock;
pub mod exchange;
pub mod health;
pub mod memory;
pub mod network;
pub mod path;
pub mod poll;
pub mod quic;
#[expect(unsafe_code, reason = "batched socket calls and TUN ioctls have no safe wrapper; they are all here")]
mod sys;
pub mod tcp;
pub mod tls;
pub mod tun;
pub mod udp;
