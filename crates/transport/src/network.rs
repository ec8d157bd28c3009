//! News of the machine's own network: links, addresses and routes that come and go (rtnetlink).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// Messages read per [`NetworkChanges::drain`], so that a storm of changes cannot hold the thread.
const MESSAGES_BUDGET: usize = 64;

// Multicast groups of rtnetlink(7), as bits.
const GROUP_LINK: u32 = 1 << 0;
const GROUP_IPV4_ADDRESS: u32 = 1 << 4;
const GROUP_IPV4_ROUTE: u32 = 1 << 6;
const GROUP_IPV6_ADDRESS: u32 = 1 << 8;
const GROUP_IPV6_ROUTE: u32 = 1 << 10;

/// What changed since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkChange {
    /// An interface appeared, vanished, or went up or down.
    pub link: bool,
    /// An address was added or removed.
    pub address: bool,
    /// A route was added or removed.
    pub route: bool,
}

impl NetworkChange {
    /// True when anything changed.
    pub fn any(self) -> bool {
        self.link || self.address || self.route
    }
}

/// A subscription to changes of links, addresses and routes in this network namespace. Wait for its descriptor with
/// [`crate::poll::wait`], then [`NetworkChanges::drain`]. Our own changes are reported too.
#[derive(Debug)]
pub struct NetworkChanges {
    fd: OwnedFd,
    buffer: Box<[u8]>,
}

/// Subscribes to changes of the machine's network. Needs no privilege.
///
/// # Errors
/// The system's error.
pub fn network_changes() -> io::Result<NetworkChanges> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol number is NETLINK_ROUTE, which is 0.
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let groups = GROUP_LINK | GROUP_IPV4_ADDRESS | GROUP_IPV4_ROUTE | GROUP_IPV6_ADDRESS | GROUP_IPV6_ROUTE;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    Ok(NetworkChanges { fd, buffer: vec![0; 64 * 1024].into_boxed_slice() })
}

impl NetworkChanges {
    /// Reads what waits, without blocking, and sums it up.
    ///
    /// # Errors
    /// The system's error. An overrun of the kernel's queue is not one: everything may have changed then.
    pub fn drain(&mut self) -> io::Result<NetworkChange> {
        let mut change = NetworkChange::default();
        for _ in 0..MESSAGES_BUDGET {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => note_messages(&self.buffer[..len], &mut change),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::NOBUFS) => {
                    change = NetworkChange { link: true, address: true, route: true };
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(change)
    }
}

impl AsFd for NetworkChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Walks `nlmsghdr`s: length, type, … in machine byte order, aligned to four bytes.
fn note_messages(bytes: &[u8], change: &mut NetworkChange) {
    let mut rest = bytes;
    while let Some(header) = rest.first_chunk::<16>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => change.link = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => change.address = true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => change.route = true,
            _ => {}
        }
        rest = match rest.get(len.next_multiple_of(4)..) {
            Some(next) if len >= 16 => next,
            _ => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.next_multiple_of(4)];
        bytes[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn every_message_of_a_read_counts_also_at_odd_lengths() {
        let mut change = NetworkChange::default();
        let bytes =
            [message(libc::RTM_NEWADDR, 21), message(libc::RTM_DELROUTE, 16), message(1, 20)].concat();
        note_messages(&bytes, &mut change);
        assert!(change.address && change.route && !change.link && change.any());
    }

    proptest::proptest! {
        #[test]
        fn garbage_from_the_kernel_never_panics(bytes in proptest::collection::vec(0u8.., 0..200)) {
            note_messages(&bytes, &mut NetworkChange::default());
        }
    }

    #[test]
    fn nothing_waits_on_a_quiet_subscription_but_drain_never_blocks() {
        network_changes().unwrap().drain().unwrap();
    }
}
