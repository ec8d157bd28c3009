//! Undoing what the lab made, in the reverse order of making it: when a guard is dropped, and when the program is
//! interrupted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

type Undo = Box<dyn FnOnce() + Send>;

static PENDING: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);
static WATCHER: OnceLock<()> = OnceLock::new();

/// Runs its undo action when dropped, or when a signal ends the program, whichever comes first.
#[derive(Debug)]
#[must_use = "the action runs when the guard is dropped"]
pub struct Guard {
    id: u64,
}

impl Guard {
    /// Registers `undo`.
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        WATCHER.get_or_init(watch_signals);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        PENDING.lock().unwrap_or_else(PoisonError::into_inner).push((id, Box::new(undo)));
        Self { id }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
        let undo = pending.iter().position(|(id, _)| *id == self.id).map(|i| pending.remove(i));
        drop(pending);
        if let Some((_, undo)) = undo {
            undo();
        }
    }
}

/// Runs every undo action that still waits, newest first. The lock is held throughout: whoever drops a guard meanwhile
/// waits, so nothing is undone out of order.
fn undo_all() {
    let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((_, undo)) = pending.pop() {
        undo();
    }
}

fn watch_signals() {
    let spawned = std::thread::Builder::new().name("lab-signals".into()).spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        let number = runtime.block_on(first_signal());
        eprintln!("\ninterrupted: removing what the lab made");
        undo_all();
        std::process::exit(128 + number);
    });
    drop(spawned);
}

/// Waits for SIGINT, SIGTERM or SIGHUP and returns its number.
async fn first_signal() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let streams =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = streams else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        _ = hangup.recv() => SignalKind::hangup().as_raw_value(),
    }
}
