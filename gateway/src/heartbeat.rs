//! The pipe by which a worker shows its supervisor that it makes progress, and which run it is.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jump_crypto::ids::Incarnation;

use crate::dataplane::engine::Shared;

/// Time between two beats.
pub const INTERVAL: Duration = Duration::from_millis(100);

const BEAT: u8 = b'b';
const INCARNATION: u8 = b'i';

/// The worker's end.
#[derive(Debug, Clone)]
pub struct Heart(Option<Arc<OwnedFd>>);

impl Heart {
    /// Beats into `pipe`.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn new(pipe: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self(Some(Arc::new(pipe))))
    }

    /// A worker without a supervisor.
    pub fn unwatched() -> Self {
        Self(None)
    }

    fn write(&self, message: &[u8]) {
        if let Some(pipe) = &self.0 {
            // A full pipe means that the supervisor stands still; a broken one, that it is gone and this process with it.
            let _ = rustix::io::write(pipe, message);
        }
    }

    /// Shows one sign of life.
    pub fn beat(&self) {
        self.write(&[BEAT]);
    }

    /// Says which run this is.
    pub fn announce(&self, incarnation: Incarnation) {
        let mut message = [INCARNATION; 9];
        message[1..].copy_from_slice(&incarnation.0.to_be_bytes());
        self.write(&message);
    }

    /// Beats for as long as the runtime turns and, once it runs, the data plane makes passes.
    pub async fn keep_beating(self, shared: Arc<Shared>, dataplane_runs: Arc<AtomicBool>) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut passes = 0;
        loop {
            interval.tick().await;
            let now = shared.passes.load(Ordering::Relaxed);
            if now != passes || !dataplane_runs.load(Ordering::Acquire) {
                self.beat();
            }
            passes = now;
        }
    }
}

/// What the supervisor hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The worker makes progress.
    Beat,
    /// The worker is this run.
    Incarnation(Incarnation),
}

/// Reads signs from the bytes of the pipe, however they are cut.
#[derive(Debug, Default)]
pub struct Ear {
    partial: Vec<u8>,
}

impl Ear {
    /// Takes bytes in and calls `each` for every sign.
    pub fn hear(&mut self, bytes: &[u8], mut each: impl FnMut(Sign)) {
        for byte in bytes {
            if self.partial.is_empty() {
                match *byte {
                    INCARNATION => self.partial.push(*byte),
                    BEAT => each(Sign::Beat),
                    // Not from a worker of this version.
                    _ => {}
                }
                continue;
            }
            self.partial.push(*byte);
            if let Ok(number) = <[u8; 8]>::try_from(&self.partial[1..]) {
                self.partial.clear();
                each(Sign::Incarnation(Incarnation(u64::from_be_bytes(number))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_heard_however_the_bytes_are_cut() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let heart = Heart::new(writer).unwrap();
        heart.beat();
        heart.announce(Incarnation(0x6261_6262_6962_6200));
        heart.beat();
        drop(heart);
        let mut bytes = [0; 100];
        let len = rustix::io::read(&reader, &mut bytes[..]).unwrap();
        for chunk in [1, 3, len] {
            let mut ear = Ear::default();
            let mut signs = vec![];
            for part in bytes[..len].chunks(chunk) {
                ear.hear(part, |sign| signs.push(sign));
            }
            assert_eq!(
                signs,
                [Sign::Beat, Sign::Incarnation(Incarnation(0x6261_6262_6962_6200)), Sign::Beat]
            );
        }
    }
}
