//! What can happen, and the order in which it does.

use std::cmp::Ordering;
use std::net::SocketAddr;

use jump_gateway::dataplane::InitJob;
use jump_session::client::{PathId, Ticket};
use jump_session::ids::NodeId;
use jump_session::ownership::SessionRecord;

use crate::control::{Answer, Operation};
use crate::faults::Fault;
use crate::store::NodeKey;
use crate::world::Nanos;

/// Something that happens at a time.
pub(crate) enum Event {
    // At a gateway's worker; void when its life is over, delayed while it is paused.
    Boot {
        at: usize,
        boot: u64,
    },
    RegisterAgain {
        at: usize,
        boot: u64,
    },
    Renew {
        at: usize,
        boot: u64,
    },
    Answer {
        at: usize,
        boot: u64,
        id: u64,
        answer: Answer,
    },
    CallTimeout {
        at: usize,
        boot: u64,
        id: u64,
    },
    Handshake {
        at: usize,
        boot: u64,
        job: Box<InitJob>,
    },
    PlaneTimer {
        at: usize,
        boot: u64,
    },
    OpenStream {
        at: usize,
        boot: u64,
    },
    Stream {
        at: usize,
        boot: u64,
        is_snapshot: bool,
        records: Vec<SessionRecord>,
        nodes: Vec<(NodeId, Option<NodeKey>)>,
    },
    // At a gateway's sockets.
    FromClient {
        at: usize,
        path: Route,
        source: SocketAddr,
        datagram: Vec<u8>,
    },
    FromMesh {
        at: usize,
        datagram: Vec<u8>,
    },
    FromInner {
        at: usize,
        packet: Vec<u8>,
    },
    // At the supervisor.
    Reap {
        at: usize,
        boot: u64,
    },
    // At the device.
    ToClient {
        to: SocketAddr,
        datagram: Vec<u8>,
    },
    Icmp {
        route: Route,
    },
    DeviceTimer {
        life: u64,
    },
    DiskDone {
        life: u64,
        ticket: Ticket,
    },
    DeviceStarts,
    Upload,
    Download,
    // At control and the store.
    Step(Box<Operation>),
    LeaseCheck {
        node: NodeId,
    },
    Sweep,
    // The weather.
    Fault(Fault, Nanos),
    Heal(Fault),
}

/// One socket of one life of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) life: u64,
    pub(crate) path: PathId,
}

pub(crate) struct Entry {
    pub(crate) at: Nanos,
    pub(crate) order: u64,
    pub(crate) event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
