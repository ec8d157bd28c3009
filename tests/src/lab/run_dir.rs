//! The directory of one run: logs, keys and state of everything it started.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A fresh directory, removed when dropped unless the run failed or `JUMP_LAB_KEEP` is set.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    serial: u32,
    keep: bool,
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
        Ok(Self { path, serial, keep: std::env::var_os("JUMP_LAB_KEEP").is_some() })
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
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.keep || std::thread::panicking() {
            eprintln!("logs are kept in {}", self.path.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
