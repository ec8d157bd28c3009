//! The device client `jump` and the operators' CLI `jumpctl`: the I/O around the pure client machine of `jump-session`.

pub mod channel;
pub mod daemon;
pub mod doctor;
pub mod enrol;
pub mod failure;
pub mod hex;
pub mod metrics;
pub mod operator;
pub mod output;
pub mod rotate;
pub mod state_dir;
