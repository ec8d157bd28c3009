//! Splitting and coalescing without a device, for benchmarks and fuzzing. Not part of the interface.

use std::cell::RefCell;
use std::io;

use super::coalesce::{Sink, TunSendBatch, Written};
use super::split;
use super::vnet::VnetHeader;

/// Length of a vnet header in bytes.
pub const HEADER_LEN: usize = super::vnet::HEADER_LEN;

/// Splits the superpacket at `buffer[HEADROOM..][..packet_len]` as a read with this vnet header would; `None` when
/// they contradict each other.
///
/// # Panics
/// When the buffer has no `TAILROOM` behind the packet.
pub fn split_superpacket(
    buffer: &mut [u8],
    packet_len: usize,
    vnet_header: &[u8; HEADER_LEN],
    each: &mut dyn FnMut(&mut [u8]),
) -> Option<usize> {
    let header = VnetHeader::parse(vnet_header)?;
    split::split(buffer, packet_len, &header, each).ok()
}

/// A batch that hands its superpackets to a function instead of a device.
pub struct Coalescer {
    batch: TunSendBatch,
}

/// Takes a vnet header and a packet.
pub type Write<'a> = dyn FnMut(&[u8; HEADER_LEN], &[u8]) + 'a;

impl Coalescer {
    /// As [`TunSendBatch::new`].
    pub fn new() -> Self {
        Self { batch: TunSendBatch::new() }
    }

    /// As [`TunSendBatch::push`].
    pub fn push(&mut self, write: &mut Write<'_>, packet: &[u8]) {
        self.batch.push_to(&FunctionSink(RefCell::new(write)), packet);
    }

    /// As [`TunSendBatch::flush`].
    pub fn flush(&mut self, write: &mut Write<'_>) -> Written {
        self.batch.flush_to(&FunctionSink(RefCell::new(write)))
    }
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

struct FunctionSink<'a, 'b>(RefCell<&'a mut Write<'b>>);

impl Sink for FunctionSink<'_, '_> {
    fn coalesces(&self) -> (bool, bool) {
        (true, true)
    }

    fn write(&self, header: VnetHeader, packet: &[u8]) -> io::Result<()> {
        (self.0.borrow_mut())(&header.to_bytes(), packet);
        Ok(())
    }
}
