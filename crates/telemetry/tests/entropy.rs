//! A generator that fails is seen by operators and auditors, whichever program it serves.

use jump_crypto::entropy::{Entropy, EntropyError, Tested};
use jump_telemetry::audit::{self, Identity};
use jump_telemetry::entropy::WatchedEntropy;
use jump_telemetry::metrics;

/// Counts up, until it stands still.
struct Sticking {
    left: usize,
    next: u8,
}

impl Entropy for Sticking {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for byte in bytes {
            if self.left > 0 {
                self.left -= 1;
                self.next = self.next.wrapping_add(1);
            }
            *byte = self.next;
        }
        Ok(())
    }
}

#[test]
fn a_generator_that_fails_while_running_is_metered_and_audited_once_until_it_is_replaced() {
    let registry = metrics::install(&[]).expect("the only recorder");
    let identity =
        Identity { component: "gateway".to_owned(), node: "gw1".to_owned(), version: "1".to_owned() };
    let (process, captured) = audit::capture(identity);
    audit::install(process);
    let good = Tested::new(Sticking { left: usize::MAX, next: 0 }).expect("healthy");
    let _good = WatchedEntropy::watch(good);
    let sticking = Tested::new(Sticking { left: 5000, next: 0 }).expect("healthy at its start");
    let mut entropy = WatchedEntropy::watch(sticking);
    let mut key = [0; 32];
    assert_eq!(entropy.fill(&mut key), Ok(()));
    let page = registry.render();
    assert!(page.contains("\njump_entropy_healthy 1\n"), "{page}");
    assert!(page.contains("jump_entropy_failures_total{test=\"repetition_count\"} 0\n"), "{page}");
    assert_eq!(captured.take().len(), 0);

    for _ in 0..40 {
        let _ = entropy.fill(&mut key);
    }
    assert_eq!(entropy.fill(&mut key), Err(EntropyError::RepetitionCount));
    let page = registry.render();
    assert!(page.contains("\njump_entropy_healthy 0\n"), "{page}");
    assert!(page.contains("jump_entropy_failures_total{test=\"repetition_count\"} 1\n"), "{page}");
    let events = captured.take();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["unmapped"]["action"], "security_entropy_failed");
    assert_eq!(events[0]["unmapped"]["instance"], "gw1");
    assert_eq!(events[0]["severity"], "Critical");

    drop(entropy);
    let page = registry.render();
    assert!(page.contains("\njump_entropy_healthy 1\n"), "what is in use is healthy: {page}");
    assert!(page.contains("jump_entropy_failures_total{test=\"repetition_count\"} 1\n"), "{page}");
}
