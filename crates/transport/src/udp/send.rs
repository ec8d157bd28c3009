//! Batched sends: runs of equal-sized datagrams leave as one segmented message, many messages as one system call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Route, UdpSocket};
use crate::sys;

/// Largest UDP payload over IPv4, in bytes; also the most one segmented send carries.
pub const DATAGRAM_LEN_MAX: usize = 65_507;

/// Bytes collected before a batch flushes by itself.
const BATCH_BYTES: usize = 256 * 1024;
/// Datagrams collected before a batch flushes by itself.
const BATCH_DATAGRAMS: usize = 512;
/// Most datagrams of one segmented send (the kernel's `UDP_MAX_SEGMENTS` of its first releases).
const SEGMENTS_MAX: usize = 64;
/// Longest wait of one flush for a full socket to drain before it drops the rest.
const FULL_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// Errors from earlier datagrams (ICMP) that one flush retries after.
const STALE_ERRORS_BUDGET: u32 = 8;

/// Collects outgoing datagrams of one thread and sends them with as few system calls as the kernel allows: consecutive
/// datagrams of equal size to one destination leave as one GSO send. Made once; pushing allocates nothing. One batch
/// serves one socket at a time: flush before changing to another.
pub struct SendBatch {
    bytes: Box<[u8]>,
    used: usize,
    slots: Box<[Slot]>,
    count: usize,
    /// What flushes that happened by themselves did, until the caller's next flush.
    flushed: Flushed,
}

#[derive(Clone, Copy)]
struct Slot {
    start: usize,
    len: usize,
    route: Route,
}

/// What a flush did, flushes that a full batch made by itself included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Datagrams dropped because the socket was full or refused them.
    pub dropped: u64,
    /// Set when the kernel reported that the peer refuses or cannot be reached (on a connected socket).
    pub refused: bool,
    /// Set when the device's own network took no datagram that long, or the kernel was told so by a router.
    pub too_long: bool,
}

impl SendBatch {
    /// Room for a full batch.
    pub fn new() -> Self {
        let slot = Slot { start: 0, len: 0, route: Route::from(SocketAddr::from(([0, 0, 0, 0], 0))) };
        Self {
            bytes: vec![0; BATCH_BYTES].into_boxed_slice(),
            used: 0,
            slots: vec![slot; BATCH_DATAGRAMS].into_boxed_slice(),
            count: 0,
            flushed: Flushed::default(),
        }
    }

    /// A slot of `len` bytes for the next datagram to `destination`: write the datagram there. Flushes by itself into
    /// `socket` when full.
    ///
    /// # Panics
    /// When `len` exceeds [`DATAGRAM_LEN_MAX`].
    pub fn slot(&mut self, socket: &UdpSocket, destination: SocketAddr, len: usize) -> &mut [u8] {
        self.slot_from(socket, Route::from(destination), len)
    }

    /// As [`SendBatch::slot`], with a choice of source address and ECN bits.
    ///
    /// # Panics
    /// When `len` exceeds [`DATAGRAM_LEN_MAX`].
    pub fn slot_from(&mut self, socket: &UdpSocket, route: Route, len: usize) -> &mut [u8] {
        assert!(len <= DATAGRAM_LEN_MAX, "a datagram of {len} bytes");
        if self.count == self.slots.len() || self.used + len > self.bytes.len() {
            self.send_all(socket);
        }
        let start = self.used;
        self.slots[self.count] = Slot { start, len, route };
        self.count += 1;
        self.used += len;
        &mut self.bytes[start..start + len]
    }

    /// Takes back the last slot (the datagram could not be sealed). Does nothing when the batch is empty.
    pub fn cancel(&mut self) {
        if let Some(last) = self.count.checked_sub(1) {
            self.count = last;
            self.used = self.slots[last].start;
        }
    }

    /// Datagrams that wait for a flush.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when no datagram waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sends everything. When the socket is full it waits for at most a millisecond, then drops the rest.
    pub fn flush(&mut self, socket: &UdpSocket) -> Flushed {
        self.send_all(socket);
        std::mem::take(&mut self.flushed)
    }

    fn send_all(&mut self, socket: &UdpSocket) {
        let mut next = 0;
        while next < self.count {
            let mut messages = [EMPTY; sys::MESSAGES_MAX];
            let mut ends = [0; sys::MESSAGES_MAX];
            let mut filled = 0;
            let segmentation = socket.shared.segmentation.load(Ordering::Relaxed);
            let mut at = next;
            while at < self.count && filled < messages.len() {
                let end = run_end(&self.slots[at..self.count], segmentation) + at;
                messages[filled] = self.message(socket, at, end);
                ends[filled] = end;
                filled += 1;
                at = end;
            }
            self.send_round(socket, next, &messages[..filled], &ends[..filled]);
            next = at;
        }
        self.count = 0;
        self.used = 0;
    }

    /// Sends `messages`, which cover the slots from `first`; message `i` ends before slot `ends[i]`.
    fn send_round(&mut self, socket: &UdpSocket, first: usize, messages: &[sys::Outgoing], ends: &[usize]) {
        let mut stale_errors = 0;
        let mut waited = false;
        let mut done = 0;
        while done < messages.len() {
            let start = if done == 0 { first } else { ends[done - 1] };
            let error = match sys::send_messages(socket.as_fd(), &self.bytes, &messages[done..]) {
                Ok(sent) => {
                    let end = ends[done + sent - 1];
                    self.flushed.sent += (end - start) as u64;
                    done += sent;
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error().unwrap_or(0) {
                libc::EINTR => continue,
                libc::EAGAIN | libc::ENOBUFS => {
                    if !waited && wait_writable(socket) {
                        waited = true;
                        continue;
                    }
                    let end = ends[messages.len() - 1];
                    self.flushed.dropped += (end - start) as u64;
                    return;
                }
                // The pending error of an earlier datagram; this one was not tried.
                libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH => {
                    self.flushed.refused |= socket.shared.connected.load(Ordering::Relaxed);
                    stale_errors += 1;
                    if stale_errors <= STALE_ERRORS_BUDGET && error.raw_os_error() == Some(libc::ECONNREFUSED)
                    {
                        continue;
                    }
                    self.flushed.dropped += (ends[done] - start) as u64;
                }
                libc::EIO | libc::EINVAL if messages[done].segment_len != 0 => {
                    self.send_unsegmented(socket, start, ends[done]);
                }
                errno => {
                    self.flushed.too_long |= errno == libc::EMSGSIZE;
                    self.flushed.dropped += (ends[done] - start) as u64;
                }
            }
            done += 1;
        }
    }

    /// Sends the datagrams of a refused run one by one. When they pass, segmentation was at fault and is not used again.
    fn send_unsegmented(&mut self, socket: &UdpSocket, start: usize, end: usize) {
        let mut sent = 0;
        let mut too_long = false;
        for slot in start..end {
            let message = self.message(socket, slot, slot + 1);
            let mut result = sys::send_messages(socket.as_fd(), &self.bytes, &[message]);
            if matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock) && wait_writable(socket) {
                result = sys::send_messages(socket.as_fd(), &self.bytes, &[message]);
            }
            too_long |= matches!(&result, Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE));
            sent += u64::from(result.is_ok());
        }
        self.flushed.too_long |= too_long;
        if sent > 0 && !too_long && socket.shared.segmentation.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "the kernel or the interface refuses UDP segmentation; sending datagrams one by one"
            );
        }
        self.flushed.sent += sent;
        self.flushed.dropped += (end - start) as u64 - sent;
    }

    fn message(&self, socket: &UdpSocket, start: usize, end: usize) -> sys::Outgoing {
        let (first, last) = (&self.slots[start], &self.slots[end - 1]);
        sys::Outgoing {
            start: first.start,
            len: last.start + last.len - first.start,
            segment_len: if end - start > 1 { first.len } else { 0 },
            destination: socket.in_family(first.route.destination),
            local: first.route.local,
            ecn: first.route.ecn,
        }
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

const EMPTY: sys::Outgoing = sys::Outgoing {
    start: 0,
    len: 0,
    segment_len: 0,
    destination: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0)),
    local: None,
    ecn: 0,
};

/// How many of `slots`, from the first, one message carries: equal sizes to one place, the last may be shorter.
fn run_end(slots: &[Slot], segmentation: bool) -> usize {
    let first = slots[0];
    if !segmentation || first.len == 0 {
        return 1;
    }
    let mut bytes = first.len;
    let mut count = 1;
    for slot in &slots[1..] {
        bytes += slot.len;
        if count == SEGMENTS_MAX
            || slot.route != first.route
            || slot.len > first.len
            || slot.len == 0
            || bytes > DATAGRAM_LEN_MAX
        {
            break;
        }
        count += 1;
        if slot.len < first.len {
            break;
        }
    }
    count
}

/// Waits for room in the socket; false when none came in time.
fn wait_writable(socket: &UdpSocket) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)];
    matches!(poll(&mut fds, Some(&FULL_WAIT)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(sizes: &[(u16, usize)]) -> Vec<Slot> {
        sizes
            .iter()
            .map(|&(port, len)| Slot {
                start: 0,
                len,
                route: Route::from(SocketAddr::from(([127, 0, 0, 1], port))),
            })
            .collect()
    }

    #[test]
    fn a_run_ends_after_a_shorter_datagram() {
        assert_eq!(run_end(&slots(&[(1, 9), (1, 9), (1, 4), (1, 4)]), true), 3);
    }

    #[test]
    fn a_run_ends_before_a_longer_datagram_another_peer_and_an_empty_one() {
        assert_eq!(run_end(&slots(&[(1, 9), (1, 10)]), true), 1);
        assert_eq!(run_end(&slots(&[(1, 9), (2, 9)]), true), 1);
        assert_eq!(run_end(&slots(&[(1, 9), (1, 0)]), true), 1);
        assert_eq!(run_end(&slots(&[(1, 0), (1, 0)]), true), 1);
    }

    #[test]
    fn a_run_has_at_most_64_datagrams_and_65507_bytes() {
        assert_eq!(run_end(&slots(&[(1, 100); 100]), true), 64);
        assert_eq!(run_end(&slots(&[(1, 1400); 64]), true), 46);
    }

    #[test]
    fn without_segmentation_every_datagram_is_its_own_message() {
        assert_eq!(run_end(&slots(&[(1, 9), (1, 9)]), false), 1);
    }
}
