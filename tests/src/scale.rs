//! Clusters that no machine here holds: a million sessions and a thousand gateways on virtual time.
//!
//! What runs is what is shipped: every birth, attach and fence is decided by `birth`, `arbitrate` and `change` of
//! `crates/session` over whole records, every gateway's authority is [`Authority`](jump_session::ownership::Authority),
//! and transactions ride together by control's numbers. What is modelled: the store ([`store`], fitted to measured
//! latencies), the work of a control replica and of a handshake (measured per piece), networks, and clients, who only
//! notice, search and ask. One thread, one seed, one result (`docs/scaling.md`).

mod client;
mod cluster;
mod control;
mod fault;
pub mod store;
mod table;

pub use cluster::{Cluster, Size, Totals};
pub use fault::{Fault, Recovered};
pub use table::{Row, SIZES, SIZES_SHORT, markdown, run};

/// Before the table in a document.
pub const BEGIN: &str = "<!-- sizing table begin: make scale -->";
/// After it.
pub const END: &str = "<!-- sizing table end -->";

/// Virtual nanoseconds.
pub type Nanos = u64;

/// A millisecond.
pub const MILLISECOND: Nanos = 1_000_000;

/// A second.
pub const SECOND: Nanos = 1000 * MILLISECOND;
