//! Runs fuzz targets on stable: the committed corpus as it is, then mutations of it, a fixed number of them or for
//! `JUMP_FUZZ_SECONDS` per target. `JUMP_WRITE_CORPUS=1` writes the seeds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Mutated inputs per target in an ordinary test run.
const MUTATIONS: u64 = 300;

/// One target: its name, its function, and well-formed inputs to begin from.
pub(crate) struct Target {
    /// The name of the corpus directory.
    pub(crate) name: &'static str,
    /// Runs one input; panics when something must not be.
    pub(crate) run: fn(&[u8]),
    /// Inputs that get past the first checks.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// Replays and mutates the corpora of `targets`, which lie in `fuzz/corpus` of the tree at `root`.
pub(crate) fn run(root: &str, targets: &[Target]) {
    let budget = std::env::var("JUMP_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    for target in targets {
        let directory = PathBuf::from(root).join("fuzz/corpus").join(target.name);
        if std::env::var_os("JUMP_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(&directory).unwrap();
            for (at, seed) in (target.seeds)().into_iter().chain([Vec::new()]).enumerate() {
                std::fs::write(directory.join(format!("seed-{at}")), seed).unwrap();
            }
        }
        let files =
            std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(corpus.len() >= 2, "{} has no corpus", target.name);
        corpus.iter().for_each(|input| try_input(target, input));
        let end = budget.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut round = 0;
        while end.map_or(round < MUTATIONS, |end| Instant::now() < end) {
            let mut input = corpus[dice.below(corpus.len())].clone();
            for _ in 0..=dice.below(4) {
                dice.mutate(&mut input, &corpus);
            }
            try_input(target, &input);
            round += 1;
        }
        println!("{}: {} of the corpus, {round} mutations", target.name, corpus.len());
    }
}

fn try_input(target: &Target, input: &[u8]) {
    let outcome = std::panic::catch_unwind(|| (target.run)(input));
    assert!(outcome.is_ok(), "{} breaks on {input:02x?}", target.name);
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

/// Inputs that are several messages: each has its length (two bytes, big-endian) before it; the last may be cut short.
#[allow(dead_code, clippy::allow_attributes, reason = "not every user of this file has such inputs")]
pub(crate) fn split(mut input: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((len, rest)) = input.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (message, rest) = rest.split_at(len);
        messages.push(message);
        input = rest;
    }
    messages
}

/// The inverse of [`split`].
#[allow(dead_code, clippy::allow_attributes, reason = "not every user of this file has such inputs")]
pub(crate) fn join(messages: &[Vec<u8>]) -> Vec<u8> {
    messages
        .iter()
        .flat_map(|message| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat())
        .collect()
}
