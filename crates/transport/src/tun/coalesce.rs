//! Batched writes to a TUN device: runs of one flow become one superpacket.

use std::io::{self, IoSlice};

use super::Tun;
use super::checksum;
use super::flow::{self, Class, FlowKey, Shape};
use super::vnet::{Gso, VnetHeader};

/// Flows that can have a run open at the same time.
const RUNS: usize = 16;
/// Largest superpacket, in bytes.
const RUN_LEN_MAX: usize = 65_535;
/// Most packets of one UDP run (the kernel's limit).
const UDP_SEGMENTS_MAX: usize = 64;

/// Collects inner packets for the device and writes runs of one TCP or UDP flow as one superpacket (GRO). Packets of one
/// flow keep their order. Made once; pushing allocates nothing. A packet is copied in.
///
/// A packet joins a run only when its transport checksum is right, so a run never makes a damaged packet look whole.
pub struct TunSendBatch {
    runs: Box<[Run; RUNS]>,
    /// Digest of each open run's flow; meaningful where `open` says so.
    digests: [u32; RUNS],
    /// One bit per open run.
    open: u32,
    /// The run to evict next when all are open.
    next_eviction: usize,
    written: Written,
}

/// What a flush of inner packets did, writes since the last flush included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Packets handed to the kernel.
    pub packets: u64,
    /// Packets that the device refused.
    pub dropped: u64,
    /// System calls that took the packets: fewer than packets where runs were coalesced.
    pub writes: u64,
}

/// Where packets and superpackets go.
pub(super) trait Sink {
    /// Which runs the device takes: TCP, UDP.
    fn coalesces(&self) -> (bool, bool);
    /// Writes one packet with its vnet header.
    fn write(&self, header: VnetHeader, packet: &[u8]) -> io::Result<()>;
}

struct Run {
    bytes: Box<[u8]>,
    len: usize,
    key: FlowKey,
    shape: Shape,
    /// Payload bytes of every packet but the last.
    segment_len: usize,
    segments: usize,
    /// No packet may follow: the last one was shorter or pushed.
    ended: bool,
    /// The first packet's checksum was found right.
    verified: bool,
}

impl TunSendBatch {
    /// Room for a full batch: 1 MiB of address space, of which only what is used becomes resident.
    pub fn new() -> Self {
        let run = |_| Run {
            bytes: vec![0; RUN_LEN_MAX].into_boxed_slice(),
            len: 0,
            key: FlowKey::NONE,
            shape: Shape::NONE,
            segment_len: 0,
            segments: 0,
            ended: false,
            verified: false,
        };
        Self {
            runs: Box::new(std::array::from_fn(run)),
            digests: [0; RUNS],
            open: 0,
            next_eviction: 0,
            written: Written::default(),
        }
    }

    /// Adds a packet; writes to `tun` by itself when full. What does not coalesce is written at once.
    pub fn push(&mut self, tun: &Tun, packet: &[u8]) {
        self.push_to(tun, packet);
    }

    /// Writes everything.
    pub fn flush(&mut self, tun: &Tun) -> Written {
        self.flush_to(tun)
    }

    pub(super) fn push_to(&mut self, sink: &dyn Sink, packet: &[u8]) {
        let (tcp, udp) = sink.coalesces();
        if !tcp && !udp {
            self.write_single(sink, packet);
            return;
        }
        match flow::classify(packet) {
            Class::Payload(key, shape) if (shape.tcp && tcp) || (!shape.tcp && udp) => {
                self.push_payload(sink, &key, &shape, packet);
            }
            Class::Payload(key, _) | Class::Single(key) => {
                if let Some(i) = self.find(&key, key.digest()) {
                    self.write_run(sink, i);
                }
                self.write_single(sink, packet);
            }
            Class::Other(addresses) => {
                for i in 0..RUNS {
                    if self.is_open(i) && self.runs[i].key.addresses == addresses {
                        self.write_run(sink, i);
                    }
                }
                self.write_single(sink, packet);
            }
            Class::NotIp => self.written.dropped += 1,
        }
    }

    pub(super) fn flush_to(&mut self, sink: &dyn Sink) -> Written {
        while self.open != 0 {
            self.write_run(sink, self.open.trailing_zeros() as usize);
        }
        std::mem::take(&mut self.written)
    }

    fn push_payload(&mut self, sink: &dyn Sink, key: &FlowKey, shape: &Shape, packet: &[u8]) {
        let digest = key.digest();
        if let Some(i) = self.find(key, digest) {
            if self.runs[i].join(shape, packet) {
                return;
            }
            self.write_run(sink, i);
            self.start(i, key, digest, shape, packet);
            return;
        }
        let free = (!self.open).trailing_zeros() as usize;
        let i = if free < RUNS {
            free
        } else {
            let evicted = self.next_eviction;
            self.next_eviction = (evicted + 1) % RUNS;
            self.write_run(sink, evicted);
            evicted
        };
        self.start(i, key, digest, shape, packet);
    }

    fn start(&mut self, i: usize, key: &FlowKey, digest: u32, shape: &Shape, packet: &[u8]) {
        let run = &mut self.runs[i];
        run.bytes[..packet.len()].copy_from_slice(packet);
        run.len = packet.len();
        run.key = *key;
        run.shape = *shape;
        run.segment_len = packet.len() - shape.headers_len;
        run.segments = 1;
        run.ended = flow::pushes(shape, packet);
        run.verified = false;
        self.digests[i] = digest;
        self.open |= 1 << i;
    }

    fn find(&self, key: &FlowKey, digest: u32) -> Option<usize> {
        (0..RUNS).find(|&i| self.digests[i] == digest && self.is_open(i) && self.runs[i].key == *key)
    }

    fn is_open(&self, i: usize) -> bool {
        self.open & (1 << i) != 0
    }

    fn write_run(&mut self, sink: &dyn Sink, i: usize) {
        self.open &= !(1 << i);
        let run = &mut self.runs[i];
        let header = run.finish();
        let packets = run.segments as u64;
        match sink.write(header, &run.bytes[..run.len]) {
            Ok(()) => {
                self.written.packets += packets;
                self.written.writes += 1;
            }
            Err(_) => self.written.dropped += packets,
        }
    }

    fn write_single(&mut self, sink: &dyn Sink, packet: &[u8]) {
        match sink.write(VnetHeader::PLAIN, packet) {
            Ok(()) => {
                self.written.packets += 1;
                self.written.writes += 1;
            }
            Err(_) => self.written.dropped += 1,
        }
    }
}

impl Default for TunSendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl Run {
    /// Appends the packet's payload when the run allows it.
    fn join(&mut self, shape: &Shape, packet: &[u8]) -> bool {
        let payload = packet.get(shape.headers_len..).unwrap_or(&[]);
        let first = &self.bytes[..self.len];
        let fits = !self.ended
            && *shape == self.shape
            && payload.len() <= self.segment_len
            && self.len + payload.len() <= RUN_LEN_MAX
            && (shape.tcp || self.segments < UDP_SEGMENTS_MAX)
            && flow::continues(shape, first, self.len - shape.headers_len, self.segments, packet);
        if !fits {
            return false;
        }
        if !self.verified {
            self.verified = shape.checksum_holds(first);
        }
        if !self.verified || !shape.checksum_holds(packet) {
            return false;
        }
        self.bytes[self.len..self.len + payload.len()].copy_from_slice(payload);
        self.len += payload.len();
        self.segments += 1;
        let pushes = flow::pushes(shape, packet);
        if pushes {
            flow::set_push(shape, &mut self.bytes);
        }
        self.ended = pushes || payload.len() < self.segment_len;
        true
    }

    /// Makes the headers those of the whole run, and says so in the vnet header.
    fn finish(&mut self) -> VnetHeader {
        if self.segments == 1 {
            return VnetHeader::PLAIN;
        }
        let shape = self.shape;
        let packet = &mut self.bytes[..self.len];
        let wire = |len: usize| u16::try_from(len).expect("a run is at most 65535 bytes").to_be_bytes();
        let len = packet.len();
        let transport_len = len - shape.transport;
        if shape.ipv6 {
            packet[4..6].copy_from_slice(&wire(len - 40));
        } else {
            packet[2..4].copy_from_slice(&wire(len));
            checksum::write_ipv4_header(&mut packet[..20]);
        }
        if !shape.tcp {
            let at = shape.transport + 4;
            packet[at..at + 2].copy_from_slice(&wire(transport_len));
        }
        let pseudo = checksum::pseudo_sum(shape.addresses(packet), shape.protocol(), transport_len);
        let field = shape.transport + shape.checksum_offset();
        packet[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        let header_field = |len: usize| u16::try_from(len).expect("headers and segments are below 64 KiB");
        VnetHeader {
            needs_checksum: true,
            gso: match (shape.tcp, shape.ipv6) {
                (true, false) => Gso::Tcp4,
                (true, true) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            headers_len: header_field(shape.headers_len),
            segment_len: header_field(self.segment_len),
            checksum_start: header_field(shape.transport),
            checksum_offset: header_field(shape.checksum_offset()),
        }
    }
}

impl Sink for Tun {
    fn coalesces(&self) -> (bool, bool) {
        (self.has_tcp_offload(), self.has_udp_offload())
    }

    fn write(&self, header: VnetHeader, packet: &[u8]) -> io::Result<()> {
        let mut bytes = [0; super::VNET_HEADER_LEN_MAX];
        bytes[..super::vnet::HEADER_LEN].copy_from_slice(&header.to_bytes());
        let parts = [IoSlice::new(&bytes[..self.header_len]), IoSlice::new(packet)];
        loop {
            match rustix::io::writev(&self.fd, &parts) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
