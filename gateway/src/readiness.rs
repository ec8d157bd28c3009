//! Whether this node should be given new sessions: what `/readyz` says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What readiness needs beside the lease.
#[derive(Debug, Default)]
pub struct Readiness {
    /// The data plane runs, and the process was not told to end.
    pub serving: AtomicBool,
    /// The inner pools lead to the TUN device.
    pub routed: AtomicBool,
    /// An operator drains this node: not ready, so that a scale-in takes a drained pod before the others.
    pub operator_drain: Arc<AtomicBool>,
}

impl Readiness {
    /// Says whether the node is ready.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, lease_held: bool) -> Result<(), &'static str> {
        let set = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        if !lease_held {
            Err("no lease is held")
        } else if !set(&self.serving) {
            Err("draining or not yet serving")
        } else if !set(&self.routed) {
            Err("an inner pool is not routed to the TUN device")
        } else if set(&self.operator_drain) {
            Err("drained by an operator")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_routed_serving_node_that_holds_its_lease_and_is_not_drained_is_ready() {
        for bits in 0..16_u8 {
            let [lease, serving, routed, drained] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let readiness = Readiness {
                serving: AtomicBool::new(serving),
                routed: AtomicBool::new(routed),
                operator_drain: Arc::new(AtomicBool::new(drained)),
            };
            let expected = lease && serving && routed && !drained;
            assert_eq!(readiness.check(lease).is_ok(), expected, "{bits:04b}");
        }
    }
}
