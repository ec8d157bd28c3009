//! Replays the committed fuzz corpus, and mutations of it, through the fuzz targets (`fuzz/src/crypto.rs`).
//!
//! `make fuzz-crypto` runs the same mutations for longer.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, read files and look at the clock"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

#[path = "../../../fuzz/src/crypto.rs"]
mod crypto;

use crypto::{TARGETS, Target};

/// Mutated inputs per target in an ordinary test run.
const MUTATIONS: u64 = 300;

#[test]
fn no_committed_input_breaks_its_target() {
    for target in TARGETS {
        let corpus = corpus(&target);
        assert!(corpus.len() >= 2, "{} has no corpus", target.name);
        for input in corpus {
            (target.run)(&input);
        }
    }
}

#[test]
fn no_mutation_of_the_corpus_breaks_its_target() {
    for target in TARGETS {
        mutate(&target, |round| round < MUTATIONS);
    }
}

#[test]
#[ignore = "runs for ten minutes per target"]
fn no_mutation_of_the_corpus_breaks_its_target_in_ten_minutes() {
    std::thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || {
                let end = Instant::now() + Duration::from_secs(600);
                let rounds = mutate(&target, |_| Instant::now() < end);
                println!("{}: {rounds} inputs", target.name);
            });
        }
    });
}

#[test]
#[ignore = "writes the committed corpus"]
fn write_the_committed_corpus() {
    for target in TARGETS {
        std::fs::create_dir_all(directory(&target)).unwrap();
        for (at, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(directory(&target).join(format!("seed-{at}")), seed).unwrap();
        }
        std::fs::write(directory(&target).join("empty"), []).unwrap();
    }
}

fn directory(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        std::fs::read_dir(directory(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Runs mutations while `go_on` says so; returns how many. The same numbers give the same inputs.
fn mutate(target: &Target, go_on: impl Fn(u64) -> bool) -> u64 {
    let corpus = corpus(target);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut round = 0;
    while go_on(round) {
        let mut input = corpus[dice.below(corpus.len())].clone();
        for _ in 0..=dice.below(4) {
            dice.mutate(&mut input, &corpus);
        }
        let outcome = std::panic::catch_unwind(|| (target.run)(&input));
        assert!(outcome.is_ok(), "{} breaks on {input:02x?}", target.name);
        round += 1;
    }
    round
}

/// A small generator (xorshift64*), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    fn mutate(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(7) {
            0 => input.truncate(at),
            1 => input.insert(at, self.next() as u8),
            2 if at < input.len() => input[at] ^= 1 << self.below(8),
            3 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            4 if at < input.len() => {
                input.remove(at);
            }
            5 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let len = self.below(16).min(input.len() - at);
                let bytes: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
                input[at..at + len].copy_from_slice(&bytes);
            }
        }
    }
}
