//! The data plane beside other tunnels: one line of three namespaces, every tunnel up at the same time, measured in turn.
//!
//! ```text
//! client ──veth── gateway ──veth── server
//! ```
//!
//! Every tunnel has a server address of its own, and the client's route to that address chooses the tunnel. So all of
//! them are measured within one minute, round by round, on the same machine in the same state.

pub mod endurance;
pub mod line;
pub mod load;
pub mod peers;
pub mod promises;
pub mod report;
pub mod survival;
pub mod tunnel;
