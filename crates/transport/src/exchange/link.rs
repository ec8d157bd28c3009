//! One connection, seen from tokio; and the state that both sides share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;

use super::{ExchangeLimits, FRAME_LEN_MAX};
use crate::clock::boottime_nanos;
use crate::health::{Health, TransportKind};
use crate::path::{CloseReason, PathId};
use crate::poll::Waker;

/// Frames kept for reuse.
const SPARE_FRAMES_MAX: usize = 1024;

/// A buffer with one datagram.
pub struct Frame {
    bytes: Box<[u8; FRAME_LEN_MAX]>,
    len: usize,
}

impl Frame {
    /// The datagram.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The datagram, to be opened in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

/// What all connections of an exchange share.
pub(super) struct Shared {
    limits: ExchangeLimits,
    pub(super) waker: Waker,
    /// Connections that have something for the data-plane thread; each at most once.
    pub(super) ready: ArrayQueue<Arc<Connection>>,
    spare: ArrayQueue<Frame>,
    connections: AtomicUsize,
    next_connection: AtomicU64,
    ended: AtomicBool,
    pub(super) dropped_incoming: AtomicU64,
    pub(super) lost_outgoing: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Shared {
    pub(super) fn new(limits: ExchangeLimits, waker: Waker) -> Self {
        Self {
            limits,
            waker,
            ready: ArrayQueue::new(limits.connections_max.max(1)),
            spare: ArrayQueue::new(SPARE_FRAMES_MAX),
            connections: AtomicUsize::new(0),
            next_connection: AtomicU64::new(1),
            ended: AtomicBool::new(false),
            dropped_incoming: AtomicU64::new(0),
            lost_outgoing: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// A new connection; `None` at the limit.
    pub(super) fn connect(
        &self,
        kind: TransportKind,
        peer: SocketAddr,
        local: Option<IpAddr>,
    ) -> Option<Arc<Connection>> {
        let below = |n: usize| (n < self.limits.connections_max).then_some(n + 1);
        if self.ended.load(Ordering::SeqCst)
            || self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).is_err()
        {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let connection = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let path = PathId { kind, peer, local, connection };
        Some(Arc::new(Connection::new(path, self.limits.queue_datagrams_max)))
    }

    /// Makes room for another connection.
    pub(super) fn disconnect(&self) {
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }

    /// Puts the connection on the ready list, once, and wakes the data-plane thread.
    pub(super) fn schedule(&self, connection: &Arc<Connection>) {
        if connection.scheduled.swap(true, Ordering::SeqCst) {
            return;
        }
        // Every counted connection is on the list at most once, so the list has room.
        let pushed = self.ready.push(Arc::clone(connection)).is_ok();
        debug_assert!(pushed, "more scheduled connections than connections");
        self.waker.wake();
    }

    /// A buffer for `len` bytes, reused where possible.
    pub(super) fn frame(&self, len: usize) -> Frame {
        debug_assert!(len <= FRAME_LEN_MAX);
        let mut frame =
            self.spare.pop().unwrap_or_else(|| Frame { bytes: Box::new([0; FRAME_LEN_MAX]), len: 0 });
        frame.len = len;
        frame
    }

    pub(super) fn recycle(&self, frame: Frame) {
        // A full store of spares means that this one goes back to the allocator.
        let _ = self.spare.push(frame);
    }

    /// Accepts nothing from here on.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// One connection's queues and state.
pub(super) struct Connection {
    pub(super) path: PathId,
    pub(super) outgoing: ArrayQueue<Frame>,
    pub(super) incoming: ArrayQueue<Frame>,
    pub(super) outgoing_ready: Notify,
    pub(super) incoming_room: Notify,
    /// On the ready list.
    pub(super) scheduled: AtomicBool,
    /// On the exchange's list of connections to notify.
    pub(super) dirty: AtomicBool,
    /// `Opened` was reported.
    pub(super) announced: AtomicBool,
    open: AtomicBool,
    close_requested: AtomicBool,
    close_request: Notify,
    /// 0 while the tokio side lives, then 1 + the close reason.
    closed: AtomicU8,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    received_at_nanos: AtomicU64,
    rtt_nanos: AtomicU64,
    rtt_var_nanos: AtomicU64,
}

impl Connection {
    fn new(path: PathId, queue_datagrams_max: usize) -> Self {
        let queue = || ArrayQueue::new(queue_datagrams_max.max(1));
        Self {
            path,
            outgoing: queue(),
            incoming: queue(),
            outgoing_ready: Notify::new(),
            incoming_room: Notify::new(),
            scheduled: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            open: AtomicBool::new(false),
            close_requested: AtomicBool::new(false),
            close_request: Notify::new(),
            closed: AtomicU8::new(0),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            received_at_nanos: AtomicU64::new(0),
            rtt_nanos: AtomicU64::new(0),
            rtt_var_nanos: AtomicU64::new(0),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// True while datagrams may be queued for sending.
    pub(super) fn accepts(&self) -> bool {
        !self.close_requested.load(Ordering::Relaxed) && self.closed.load(Ordering::Relaxed) == 0
    }

    pub(super) fn request_close(&self) {
        self.close_requested.store(true, Ordering::SeqCst);
        self.close_request.notify_one();
    }

    pub(super) fn closed(&self) -> Option<CloseReason> {
        let code = self.closed.load(Ordering::Acquire).checked_sub(1)?;
        CLOSE_REASONS.get(usize::from(code)).copied()
    }

    pub(super) fn health(&self) -> Health {
        let nanos = |n: &AtomicU64| Duration::from_nanos(n.load(Ordering::Relaxed));
        Health {
            rtt: nanos(&self.rtt_nanos),
            rtt_var: nanos(&self.rtt_var_nanos),
            received_at_nanos: self.received_at_nanos.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
        }
    }
}

const CLOSE_REASONS: [CloseReason; 7] = [
    CloseReason::Requested,
    CloseReason::Peer,
    CloseReason::Refused,
    CloseReason::Unreachable,
    CloseReason::TimedOut,
    CloseReason::Protocol,
    CloseReason::Limit,
];

/// Tokio's side of one connection. Dropping it ends the path (as [`CloseReason::Unreachable`] unless
/// [`Link::close`] gave a reason).
pub struct Link {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
}

impl Link {
    pub(super) fn new(connection: Arc<Connection>, shared: Arc<Shared>) -> Self {
        Self { connection, shared }
    }

    /// The path that this connection is.
    pub fn path(&self) -> PathId {
        self.connection.path
    }

    /// Reports that the connection carries datagrams.
    pub fn opened(&self) {
        self.connection.open.store(true, Ordering::Release);
        self.shared.schedule(&self.connection);
    }

    /// The next datagram to send; waits for one. Return the frame with [`Link::recycle`].
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn outgoing(&self) -> Frame {
        loop {
            if let Some(frame) = self.try_outgoing() {
                return frame;
            }
            self.connection.outgoing_ready.notified().await;
        }
    }

    /// The next datagram to send, when one waits.
    pub fn try_outgoing(&self) -> Option<Frame> {
        let frame = self.connection.outgoing.pop()?;
        self.connection.bytes_sent.fetch_add(frame.len as u64, Ordering::Relaxed);
        Some(frame)
    }

    /// Counts a datagram, taken by [`Link::outgoing`], that could not be sent.
    pub fn lost_outgoing(&self) {
        self.shared.lost_outgoing.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a frame back for reuse.
    pub fn recycle(&self, frame: Frame) {
        self.shared.recycle(frame);
    }

    /// Hands a datagram to the data-plane thread, and waits while the queue is full: backpressure, for transports that
    /// can hold their peer back. Empty datagrams are ignored.
    ///
    /// # Cancel safety
    /// The datagram is lost when the future is dropped.
    ///
    /// # Panics
    /// When it is longer than [`FRAME_LEN_MAX`].
    pub async fn deliver(&self, datagram: &[u8]) {
        while self.connection.incoming.is_full() {
            self.connection.incoming_room.notified().await;
        }
        self.deliver_now(datagram);
    }

    /// Hands a datagram to the data-plane thread; a full queue loses its oldest, counted. Empty datagrams are ignored.
    ///
    /// # Panics
    /// When it is longer than [`FRAME_LEN_MAX`].
    pub fn deliver_now(&self, datagram: &[u8]) {
        assert!(datagram.len() <= FRAME_LEN_MAX, "a datagram of {} bytes", datagram.len());
        let connection = &self.connection;
        connection.bytes_received.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        connection.received_at_nanos.store(boottime_nanos(), Ordering::Relaxed);
        if datagram.is_empty() {
            return;
        }
        let mut frame = self.shared.frame(datagram.len());
        frame.bytes_mut().copy_from_slice(datagram);
        if let Some(oldest) = connection.incoming.force_push(frame) {
            self.shared.recycle(oldest);
            self.shared.dropped_incoming.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.schedule(connection);
    }

    /// Returns when the data-plane thread wants the connection closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn close_requested(&self) {
        while !self.connection.close_requested.load(Ordering::SeqCst) {
            self.connection.close_request.notified().await;
        }
        // For the next caller: a permit is taken once.
        self.connection.close_request.notify_one();
    }

    /// Notes what the transport measures itself.
    pub fn note_rtt(&self, rtt: Duration, rtt_var: Duration) {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.connection.rtt_nanos.store(nanos(rtt), Ordering::Relaxed);
        self.connection.rtt_var_nanos.store(nanos(rtt_var), Ordering::Relaxed);
    }

    /// When something last came, in [`boottime_nanos`]; 0 for never.
    pub fn received_at_nanos(&self) -> u64 {
        self.connection.received_at_nanos.load(Ordering::Relaxed)
    }

    /// Ends the path.
    pub fn close(self, reason: CloseReason) {
        self.end(reason);
    }

    fn end(&self, reason: CloseReason) {
        let code = CLOSE_REASONS.iter().position(|r| *r == reason).unwrap_or(0);
        let code = u8::try_from(code + 1).expect("a handful of reasons");
        let first = self.connection.closed.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.shared.schedule(&self.connection);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end(CloseReason::Unreachable);
    }
}
