//! A lab on one machine: network namespaces, real programs inside them, real traffic through them.
//!
//! ```text
//!                      ctl1  ctl2   etcd1 etcd2 etcd3
//!                        │    │       │     │     │
//!  device1..D ───────────┴────┴─ wan ─┴─────┴─────┴──── gw1..N ─── lan ─── inner (web server, echo)
//! ```
//!
//! Everything is made inside namespaces named `jv-<pid>-…`; the machine's own network is never touched. Whatever a lab
//! makes goes away when its value is dropped, when the program is interrupted (SIGINT, SIGTERM, SIGHUP) and, for the
//! programs it started, even when it is killed.

pub mod bare_device;
pub mod capture;
pub mod cleanup;
pub mod cluster;
pub mod download;
pub mod enrol;
pub mod etcd;
pub mod fleet;
pub mod flood;
pub mod histogram;
pub mod history;
pub mod namespace;
pub mod network;
pub mod overhead;
pub mod ownership;
pub mod paired;
pub mod probe;
pub mod process;
pub mod programs;
pub mod reader;
pub mod receivers;
pub mod relay;
pub mod rewriter;
pub mod rng;
pub mod run_dir;
pub mod stream;
pub mod uplink;
pub mod witness;
