//! Whole-system tests of Jumping VPN: the lab that the end-to-end tests, the demo and the benchmarks run in.

pub mod dataplane;
pub mod demo;
pub mod document;
pub mod failover;
pub mod lab;
pub mod moves;
pub mod scale;
pub mod scenario;
pub mod support;
