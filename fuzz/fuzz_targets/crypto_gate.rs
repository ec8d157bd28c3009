#![no_main]

#[path = "../src/crypto.rs"]
mod crypto;

libfuzzer_sys::fuzz_target!(|input: &[u8]| crypto::gate(input));
