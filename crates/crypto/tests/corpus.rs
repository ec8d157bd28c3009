//! Fuzzes the crypto module on stable: committed corpora and mutations of them (`fuzz/src/crypto.rs`).
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, read files and look at the clock"
)]

#[path = "../../../fuzz/src/crypto.rs"]
mod crypto;
#[path = "../../../fuzz/src/harness.rs"]
mod harness;

use harness::Target;

#[test]
fn no_mutation_of_a_corpus_breaks_the_crypto_module() {
    let targets = [
        Target { name: "crypto_attach_init", run: crypto::attach_init, seeds: crypto::attach_init_seeds },
        Target { name: "crypto_attach_reply", run: crypto::attach_reply, seeds: crypto::attach_reply_seeds },
        Target { name: "crypto_record", run: crypto::record, seeds: crypto::record_seeds },
        Target { name: "crypto_statement", run: crypto::statement, seeds: crypto::statement_seeds },
        Target { name: "crypto_gate", run: crypto::gate, seeds: crypto::gate_seeds },
    ];
    harness::run(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), &targets);
}
