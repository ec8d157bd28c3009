//! Writes the session, and the keys of the cluster, to disk on a thread of its own, so that a slow disk never holds a packet.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jump_crypto::key_set::KeySetClaims;
use jump_session::client::{Stored, Ticket};
use tracing::{error, info};

use super::mailbox::{Command, Mailbox};
use crate::failure::Failure;
use crate::state_dir::StateDir;

/// A failed write is repeated after this long: a full disk may be emptied.
const RETRY: Duration = Duration::from_secs(1);

enum Write {
    Session(Ticket, Stored),
    Keys(KeySetClaims),
}

/// The writer.
pub(super) struct Disk {
    sender: Option<Sender<Write>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    pub(super) fn start(state: StateDir, mailbox: Mailbox) -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("jump-disk".to_owned())
            .spawn(move || write_all(&state, &mailbox, &receiver))
            .map_err(|error| {
                Failure::because(crate::failure::Exit::Failed, "cannot start a thread", &error)
            })?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Queues a write; later ones replace those that wait.
    pub(super) fn write(&self, ticket: Ticket, stored: Stored) {
        if let Some(sender) = &self.sender {
            // The thread ends only after this sender is gone.
            let _ = sender.send(Write::Session(ticket, stored));
        }
    }

    /// Queues the cluster's new keys for the profile.
    pub(super) fn write_keys(&self, keys: KeySetClaims) {
        if let Some(sender) = &self.sender {
            // As above.
            let _ = sender.send(Write::Keys(keys));
        }
    }
}

impl Drop for Disk {
    /// Waits for the writes that were queued.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keys that cannot be written come again with the next attach or rekey of a later start.
fn write_keys(state: &StateDir, keys: &KeySetClaims) {
    let written = state.profile().and_then(|profile| state.write_profile(&profile.with_keys(keys)));
    if let Err(failure) = written {
        error!("the cluster's new keys cannot be saved: {failure}");
    }
}

fn write_all(state: &StateDir, mailbox: &Mailbox, receiver: &Receiver<Write>) {
    let mut failing = false;
    while let Ok(first) = receiver.recv() {
        let mut latest = match first {
            Write::Session(ticket, stored) => (ticket, stored),
            Write::Keys(keys) => {
                write_keys(state, &keys);
                continue;
            }
        };
        let take = |write: Write, latest: &mut (Ticket, Stored)| match write {
            Write::Session(ticket, stored) => *latest = (ticket, stored),
            Write::Keys(keys) => write_keys(state, &keys),
        };
        loop {
            while let Ok(later) = receiver.try_recv() {
                take(later, &mut latest);
            }
            match state.write_session(&latest.1) {
                Ok(()) => break,
                Err(failure) if !failing => {
                    error!("the session cannot be saved, and no attempt is made until it is: {failure}");
                    failing = true;
                }
                Err(_) => {}
            }
            match receiver.recv_timeout(RETRY) {
                Ok(later) => take(later, &mut latest),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if core::mem::take(&mut failing) {
            info!("the session can be saved again");
        }
        if !mailbox.send(Command::Persisted(latest.0, latest.1)) {
            return;
        }
    }
}
