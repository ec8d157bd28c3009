//! Threads that give way: what is told about the work never takes the processor from the work.

use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long the first line or event waits for others, so that a busy program pays for few wake-ups.
pub(crate) const COMPANY: Duration = Duration::from_millis(20);

/// Added to the niceness of the program. A full queue drops and counts, so what starves loses lines and nothing else.
const NICENESS: i32 = 10;

/// Starts a thread that gives way to the program's others.
///
/// # Errors
/// The operating system's, when it gives no thread. A kernel that refuses the lower priority is no error.
pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(move || {
        let _ = rustix::process::nice(NICENESS);
        work();
    })
}
