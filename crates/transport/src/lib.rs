//! Sockets and TUN: the transport interface, its adapters, packet batches and health telemetry.
//!
//! Knows nothing of sessions, keys or control: it moves datagrams and inner packets.

pub mod batch;
pub mod clock;
pub mod health;
pub mod poll;
pub mod tun;
pub mod udp;
