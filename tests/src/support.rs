//! What the end-to-end tests share: whose turn it is, how long to wait, how large to go.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};

/// The time within which anything that is supposed to happen happens, on a machine busy with other tests.
pub const SOON: Duration = Duration::from_secs(30);

/// Held while a test uses a whole cluster: with two cores, two clusters at once would measure each other.
#[derive(Debug)]
#[must_use = "the turn ends when the value is dropped"]
pub struct Turn {
    _file: File,
}

/// Waits for this test's turn, over all test programs of the machine.
///
/// # Errors
/// When the lock's file cannot be made.
pub fn one_at_a_time() -> Result<Turn> {
    let path = std::env::temp_dir().join("jump-lab.lock");
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(Turn { _file: file })
}

/// A number that a full run raises: `JUMP_TEST_FULL=1` asks for the one that the promise names.
pub fn scaled(quick: usize, full: usize) -> usize {
    if std::env::var_os("JUMP_TEST_FULL").is_some() { full } else { quick }
}
