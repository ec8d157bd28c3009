//! What the worker's tasks share.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use jump_crypto::handshake::Responder;
use jump_crypto::ids::{Epoch, Incarnation, NodeId, SessionId};
use jump_session::path::Door;
use jump_transport::poll::Waker;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::dataplane::engine::Shared;
use crate::dataplane::{Carried, Command, StopCause};
use crate::lease::Guard;
use crate::places::Places;

/// The queue of orders to the data plane, with the bell that wakes it.
#[derive(Clone)]
pub struct Orders {
    queue: mpsc::Sender<Command>,
    waker: Waker,
}

/// The data plane's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data plane has ended")]
pub struct DataPlaneEnded;

impl Orders {
    /// Wraps the queue and the bell.
    pub fn new(queue: mpsc::Sender<Command>, waker: Waker) -> Self {
        Self { queue, waker }
    }

    /// How many orders wait.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Gives an order; waits while the queue is full. Cancel safe: the order is given or not.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn give(&self, command: Command) -> Result<(), DataPlaneEnded> {
        self.queue.send(command).await.map_err(|_| DataPlaneEnded)?;
        self.waker.wake();
        Ok(())
    }

    /// Gives an order from a thread outside the runtime.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub fn give_blocking(&self, command: Command) -> Result<(), DataPlaneEnded> {
        self.queue.blocking_send(command).map_err(|_| DataPlaneEnded)?;
        self.waker.wake();
        Ok(())
    }

    /// Ends the data plane's thread at once, or as soon as it has room for the order.
    fn shut_down(&self) {
        // A full queue belongs to a thread that nobody gives orders any more: it ends with its process.
        let _ = self.queue.try_send(Command::Shutdown);
        self.waker.wake();
    }

    /// Stops a session in `epoch` and every earlier one; returns once nothing of it is forwarded any more, with the ages of
    /// the path switches that this gateway made of it within the last minute.
    ///
    /// # Errors
    /// When the data plane has ended (then nothing is forwarded either).
    pub async fn stop(
        &self,
        session: SessionId,
        epoch: Epoch,
        cause: StopCause,
    ) -> Result<Vec<Duration>, DataPlaneEnded> {
        let (done, stopped) = oneshot::channel();
        self.give(Command::Stop { session, epoch, cause, done: Some(done) }).await?;
        stopped.await.map_err(|_| DataPlaneEnded)
    }

    /// Inner addresses of the sessions that were given up here and may have flows that this gateway translates.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn anchored(&self) -> Result<Vec<IpAddr>, DataPlaneEnded> {
        let (answer, addresses) = oneshot::channel();
        self.give(Command::Anchored(answer)).await?;
        addresses.await.map_err(|_| DataPlaneEnded)
    }

    /// The sessions carried now.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn list(&self) -> Result<Vec<Carried>, DataPlaneEnded> {
        let (answer, list) = oneshot::channel();
        self.give(Command::List(answer)).await?;
        list.await.map_err(|_| DataPlaneEnded)
    }
}

/// Ends forwarding and the data plane's thread when dropped, however the worker ends.
pub struct Ending {
    guard: Guard,
    orders: Orders,
}

impl Ending {
    /// Ends what `guard` and `orders` belong to.
    pub fn new(guard: Guard, orders: Orders) -> Self {
        Self { guard, orders }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.guard.revoke();
        self.orders.shut_down();
    }
}

/// Other gateways as clients see them, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster {
    /// Live gateways that take sessions, this one excluded.
    pub others: Vec<SocketAddr>,
    /// This gateway's own addresses.
    pub own: Vec<SocketAddr>,
}

impl Roster {
    /// At most `max` addresses: the others first, this gateway last.
    pub fn list(&self, max: usize) -> Vec<SocketAddr> {
        let others = self.others.iter().take(max.saturating_sub(self.own.len().min(1)));
        others.chain(&self.own).take(max).copied().collect()
    }
}

/// One run of a gateway: what its tasks share.
pub struct Context {
    /// The node.
    pub node: NodeId,
    /// This run.
    pub incarnation: Incarnation,
    /// Control's replicas.
    pub control: Control,
    /// Orders to the data plane.
    pub orders: Orders,
    /// The authority to forward.
    pub guard: Guard,
    /// What the data plane shows.
    pub shared: Arc<Shared>,
    /// Answers handshakes.
    pub responder: Arc<RwLock<Responder>>,
    /// Claims under way at control, as many as it allows.
    pub claim_places: Places,
    /// The other gateways.
    pub roster: ArcSwap<Roster>,
    /// Where clients find the other transports.
    pub doors: Vec<Door>,
    /// Time to live of the node's lease.
    pub lease_ttl: Duration,
    /// True while an operator drains this node.
    pub operator_drain: Arc<AtomicBool>,
    /// True once this process was told to end.
    pub terminating: AtomicBool,
    /// Rung when either of them changes.
    pub drain_changed: Notify,
    /// Rung when control should hear at once what the next renewal would say.
    pub renew_now: Notify,
    /// Cancelled once control has heard that this process ends.
    pub ending_told: CancellationToken,
    /// Ends the tasks.
    pub cancel: CancellationToken,
}

impl Context {
    /// Claims that may be under way where control says nothing.
    pub const CLAIMS_MAX: usize = 256;

    /// True while no new sessions are taken.
    pub fn is_draining(&self) -> bool {
        self.operator_drain.load(Ordering::Acquire) || self.terminating.load(Ordering::Acquire)
    }

    /// Notes whether an operator drains this node.
    pub fn set_operator_drain(&self, drain: bool) {
        if self.operator_drain.swap(drain, Ordering::AcqRel) != drain {
            self.drain_changed.notify_one();
        }
    }

    /// Notes that this process was told to end.
    pub fn set_terminating(&self) {
        self.terminating.store(true, Ordering::Release);
        self.drain_changed.notify_one();
        self.renew_now.notify_one();
    }
}
