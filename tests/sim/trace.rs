//! What a run did, for whoever has to understand a failure, and its fingerprint.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use crate::world::{Nanos, SECOND};

/// Lines that are kept.
const LINES_MAX: usize = 200;

/// Survives the world that writes it, so that a failed run can be told.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    lines: std::collections::VecDeque<String>,
    hasher: DefaultHasher,
}

impl Trace {
    pub(crate) fn add(&self, now: Nanos, line: &str) {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (now, line).hash(&mut inside.hasher);
        if inside.lines.len() == LINES_MAX {
            inside.lines.pop_front();
        }
        let seconds = now as f64 / SECOND as f64;
        inside.lines.push_back(format!("{seconds:>12.6}  {line}"));
    }

    /// The same for the same run.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hasher.finish()
    }

    pub(crate) fn tail(&self) -> String {
        let inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inside.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}
