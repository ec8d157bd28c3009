//! The audit sinks against real receivers, and against receivers that stall, refuse and die.

mod broken;
mod files;
mod http;
mod otlp;
mod sandbox;
mod support;
mod syslog;
