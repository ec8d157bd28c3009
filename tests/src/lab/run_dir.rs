//! The directory of one run: logs, keys and state of everything it started.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use super::cleanup::Guard;

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A fresh directory, removed when dropped or interrupted, unless the run failed or `JUMP_LAB_KEEP` is set.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    serial: u32,
    keep: Arc<AtomicBool>,
    _undo: Guard,
}

impl RunDir {
    /// Makes the directory under `JUMP_LAB_DIR`, or under the system's directory for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(label: &str) -> Result<Self> {
        let base = std::env::var_os("JUMP_LAB_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("jump-lab-{}-{serial}-{label}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        let keep = Arc::new(AtomicBool::new(std::env::var_os("JUMP_LAB_KEEP").is_some()));
        let undo = {
            let (path, keep) = (path.clone(), Arc::clone(&keep));
            Guard::new(move || {
                if !keep.load(Ordering::Relaxed) {
                    let _ = std::fs::remove_dir_all(&path);
                }
            })
        };
        Ok(Self { path, serial, keep, _undo: undo })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The prefix of everything in the system's name spaces that belongs to this run.
    pub fn prefix(&self) -> String {
        format!("jv-{}-{}", std::process::id(), self.serial)
    }

    /// Keeps the directory for a look at what went wrong.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
        if self.keep.load(Ordering::Relaxed) {
            eprintln!("logs are kept in {}", self.path.display());
        }
    }
}
