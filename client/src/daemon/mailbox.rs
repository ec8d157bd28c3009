//! What other threads tell the tunnel's thread.

use std::sync::mpsc::{self, Receiver, Sender};

use jump_crypto::keys::DeviceSecret;
use jump_session::client::{Stored, Ticket};
use jump_transport::poll::Waker;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::report::Report;

/// A message to the tunnel.
pub(super) enum Command {
    /// Answer with a report.
    Status(oneshot::Sender<Report>),
    /// Send every journal line here from now on.
    Watch(async_mpsc::Sender<String>),
    /// End the session and the process; answer when it has ended.
    Down(Option<oneshot::Sender<()>>),
    /// End the process; the session waits for its return.
    Stop,
    /// Go on under this device key.
    ReplaceDevice(DeviceSecret, oneshot::Sender<()>),
    /// A write is on disk.
    Persisted(Ticket, Stored),
}

/// Sends commands and wakes the tunnel.
#[derive(Clone)]
pub(super) struct Mailbox {
    sender: Sender<Command>,
    waker: Waker,
}

impl Mailbox {
    pub(super) fn new(waker: Waker) -> (Self, Receiver<Command>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, waker }, receiver)
    }

    /// Delivers `command`; false when the tunnel is gone.
    pub(super) fn send(&self, command: Command) -> bool {
        let sent = self.sender.send(command).is_ok();
        self.waker.wake();
        sent
    }
}
