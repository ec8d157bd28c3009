//! Logs, audit events, SIEM export, metrics and traces.
//!
//! Everything here is bounded and lossy with counters: a dead disk, collector or terminal costs observations, never a
//! packet, a decision or a caller's time (design.md G8).
#![forbid(unsafe_code)]

pub mod audit;
mod correlation;
pub mod docs;
pub mod entropy;
pub mod log;
pub mod metrics;
pub mod recovery;
pub mod settings;
pub mod sink;
mod thread;
pub mod timeline;
pub mod trace;

pub use correlation::{CORRELATION_KEY, Correlation, InvalidCorrelation};
