//! What the data plane counts: plain numbers on its own thread, published to shared atomics between batches.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use jump_crypto::ids::{DeviceKey, Epoch, SessionId};
use jump_session::gateway::Nanos;

macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The label in metrics.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

counted! {
    /// Why a datagram or packet was forgotten.
    DropReason {
        /// Not a well-formed datagram of its type.
        Malformed => "malformed",
        /// A type that this socket does not take.
        UnknownType => "unknown_type",
        /// The first MAC is wrong: not meant for this cluster.
        BadMac => "bad_mac",
        /// A cookie was asked for instead.
        NoCookie => "no_cookie",
        /// The source prefix used up its share of handshakes.
        SourceRate => "source_rate",
        /// The queue to the handshake threads is full.
        HandshakeQueue => "handshake_queue",
        /// The first message was told to come again later.
        Busy => "busy",
        /// The first message waited too long for a handshake thread.
        StaleInit => "stale_init",
        /// The same first message is being worked on already.
        RepeatedInit => "repeated_init",
        /// No receiver index is free.
        TableFull => "table_full",
        /// An `AttachInit` was replayed from another address.
        ReplayedInit => "replayed_init",
        /// An `AttachInit` that failed its handshake.
        RefusedInit => "refused_init",
        /// An answered `AttachInit` that nobody confirmed.
        Unconfirmed => "unconfirmed",
        /// No session has the index.
        UnknownIndex => "unknown_index",
        /// The index names a node that is not live.
        UnknownNode => "unknown_node",
        /// The counter was accepted before or is too old.
        Replay => "replay",
        /// The tag did not verify.
        Authentication => "authentication",
        /// This node's authority has run out.
        Guard => "guard",
        /// The inner packet is not one whole IP packet.
        InnerMalformed => "inner_malformed",
        /// The inner source is not the session's.
        InnerSource => "inner_source",
        /// The device may not reach the destination.
        InnerDestination => "inner_destination",
        /// The inner destination is never routed: multicast, broadcast, link-local, loopback, unspecified.
        InnerScope => "inner_scope",
        /// The session had its share of a pass that could not take everything.
        SessionShare => "session_share",
        /// More than the device's policy lets through.
        RateLimit => "rate_limit",
        /// The session is above its policy's rate.
        SessionRate => "session_rate",
        /// The outer header says congestion, and the inner packet's sender would not understand that (RFC 6040).
        Congestion => "congestion",
        /// No session has the inner destination.
        NoRoute => "no_route",
        /// The packet was relayed here, and this node does not own the session.
        NotOwner => "not_owner",
        /// Another gateway sent a packet or a list for flows that are not anchored here.
        NotAnchored => "not_anchored",
        /// The session is not active here.
        NotActive => "not_active",
        /// The parking bound is reached.
        ParkingFull => "parking_full",
        /// Nobody came for a parked packet in time.
        ParkingExpired => "parking_expired",
        /// The control frame is malformed or not one that a client sends.
        UnexpectedFrame => "unexpected_frame",
        /// The sealing key reached its limit.
        SealLimit => "seal_limit",
        /// The packet does not fit a datagram.
        TooLong => "too_long",
        /// The packet is larger than the path to the client carries, and must not be cut.
        TooBig => "too_big",
        /// The kernel took no more datagrams.
        SocketFull => "socket_full",
        /// A TCP, TLS or QUIC path was gone or its queue full.
        DoorFull => "door_full",
        /// The TUN device refused the packet.
        TunRefused => "tun_refused",
    }
}

counted! {
    /// What was done.
    Count {
        /// Inner packets from clients to the inner network.
        PacketsUp => "packets_up",
        /// Their bytes.
        BytesUp => "bytes_up",
        /// Inner packets from the inner network to clients.
        PacketsDown => "packets_down",
        /// Their bytes.
        BytesDown => "bytes_down",
        /// Inner packets relayed to their owner.
        RelayedOut => "relayed_out",
        /// Inner packets that another gateway relayed here and that were forwarded.
        RelayedIn => "relayed_in",
        /// Records relayed to the node of their index.
        StraysOut => "strays_out",
        /// Records that another gateway relayed here.
        StraysIn => "strays_in",
        /// Packets parked during a handover.
        Parked => "parked",
        /// First messages that passed the gate.
        AttachInits => "attach_inits",
        /// Answers to them.
        AttachReplies => "attach_replies",
        /// Handshakes that a client confirmed.
        Confirms => "confirms",
        /// Sessions taken over or born here.
        Accepted => "accepted",
        /// Claims that control rejected.
        Rejected => "rejected",
        /// Sessions stopped for a successor.
        Fenced => "fenced",
        /// Keys renewed inside an epoch.
        Rekeys => "rekeys",
        /// Cookie replies.
        Cookies => "cookies",
        /// Reattach hints.
        Hints => "hints",
        /// Endpoints moved after validation.
        PathMoves => "path_moves",
        /// Moves of an endpoint that were refused.
        PathMovesRefused => "path_moves_refused",
        /// Packets sent over a path and, within its budget, over one that has not proved itself yet.
        Copied => "copied",
        /// ICMP errors that told senders of too large packets what the path to the client carries.
        TooBigTold => "too_big_told",
        /// Packets that were cut into fragments because they were too large, and might be.
        Fragmented => "fragmented",
        /// Packets of anchored flows relayed to the gateway that translates them.
        AnchoredOut => "anchored_out",
        /// Packets of flows anchored here that their owner relayed and that were forwarded.
        AnchoredIn => "anchored_in",
        /// Sessions whose flows were told to their next owner.
        AnchorsTold => "anchors_told",
        /// Flows that were anchored at another gateway by its word.
        AnchorsTaken => "anchors_taken",
        /// Sessions whose packets waited for such a list in vain.
        AnchorsMissed => "anchors_missed",
        /// Sessions that left while the kernel did not tell which flows it translates for them, or not all.
        AnchorsUnknown => "anchors_unknown",
        /// Times that the authority was found to have run out.
        GuardTrips => "guard_trips",
    }
}

/// Somebody whose datagram was refused for a reason that security wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Why it was refused.
    pub reason: DropReason,
    /// The session whose index or addresses it bore, with its correlation id, epoch and device.
    pub session: Option<(SessionId, [u8; 16], Epoch, DeviceKey)>,
    /// Where it came from.
    pub source: SocketAddr,
    /// The inner destination, where the reason is about one.
    pub destination: Option<IpAddr>,
}

/// The first suspect of every reason since they were taken.
type Suspects = [Option<Suspect>; DropReason::ALL.len()];

/// Time between two looks at the suspects, in nanoseconds.
const SUSPECTS_INTERVAL: Nanos = 1_000_000_000;

/// The data plane's own numbers.
#[derive(Debug)]
pub struct Counters {
    suspects: Suspects,
    suspicious: bool,
    suspects_due: Nanos,
    drops: [u64; DropReason::ALL.len()],
    counts: [u64; Count::ALL.len()],
}

impl Counters {
    /// All zero.
    pub(crate) fn new() -> Self {
        Self {
            suspects: [None; DropReason::ALL.len()],
            suspicious: false,
            suspects_due: 0,
            drops: [0; DropReason::ALL.len()],
            counts: [0; Count::ALL.len()],
        }
    }

    /// Counts one dropped datagram or packet, and remembers its sender if it is the first for a while.
    #[cold]
    pub(crate) fn drop_of(&mut self, suspect: Suspect) {
        self.drop(suspect.reason);
        self.suspects[suspect.reason as usize].get_or_insert(suspect);
        self.suspicious = true;
    }

    /// The suspects of the last while, if there are any and it is time to tell them.
    pub(crate) fn take_suspects(&mut self, now: Nanos) -> Option<Suspects> {
        if !self.suspicious || now < self.suspects_due {
            return None;
        }
        self.suspicious = false;
        self.suspects_due = now.saturating_add(SUSPECTS_INTERVAL);
        Some(std::mem::replace(&mut self.suspects, [None; DropReason::ALL.len()]))
    }

    /// Counts one dropped datagram or packet.
    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `n` dropped datagrams or packets.
    pub(crate) fn drop_many(&mut self, reason: DropReason, n: u64) {
        self.drops[reason as usize] += n;
    }

    /// Adds one.
    pub(crate) fn add(&mut self, count: Count) {
        self.add_many(count, 1);
    }

    /// Adds `n`.
    pub(crate) fn add_many(&mut self, count: Count, n: u64) {
        self.counts[count as usize] += n;
    }

    /// How many were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// How often `count` was done.
    pub fn count(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }
}

/// The published numbers, for metrics.
#[derive(Debug)]
pub struct SharedCounters {
    drops: [AtomicU64; DropReason::ALL.len()],
    counts: [AtomicU64; Count::ALL.len()],
}

impl Default for SharedCounters {
    fn default() -> Self {
        Self {
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl SharedCounters {
    /// Publishes `counters`.
    pub(crate) fn publish(&self, counters: &Counters) {
        for (shared, own) in self.drops.iter().zip(counters.drops) {
            shared.store(own, Ordering::Relaxed);
        }
        for (shared, own) in self.counts.iter().zip(counters.counts) {
            shared.store(own, Ordering::Relaxed);
        }
    }

    /// How many were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }

    /// How often `count` was done.
    pub fn count(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }
}
