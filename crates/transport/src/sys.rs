//! The system calls that no safe wrapper offers. All unsafe code of this crate is here.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use libc::{c_int, c_uint, c_void};

/// Most messages of one batched call, in either direction.
pub(crate) const MESSAGES_MAX: usize = 64;

/// What the kernel said about one received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Bytes in the message's buffer.
    pub(crate) len: usize,
    /// Length of every datagram of a GRO run but the last; `len` when there is one datagram.
    pub(crate) segment_len: usize,
    pub(crate) source: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) ecn: u8,
    /// The message did not fit its buffer.
    pub(crate) truncated: bool,
}

impl Received {
    pub(crate) const NONE: Self = Self {
        len: 0,
        segment_len: 0,
        source: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
        local: None,
        ecn: 0,
        truncated: false,
    };
}

/// One message to send: `len` bytes of the shared buffer from `start`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing {
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// Where the kernel cuts the message into datagrams; 0 sends it as one.
    pub(crate) segment_len: usize,
    /// In the socket's family.
    pub(crate) destination: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) ecn: u8,
}

/// Space for the control messages of one received message: GRO, packet info of both families, TOS, traffic class.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct ReceiveControl([u8; 192]);

/// Space for the control messages of one sent message: segment size, source address, TOS.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct SendControl([u8; 96]);

const CONTROL_HEADER_LEN: usize = mem::size_of::<libc::cmsghdr>();
const SOCKADDR_LEN: usize = mem::size_of::<libc::sockaddr_in6>();

/// Receives up to `received.len()` messages without blocking, message `i` into `buffers[i * stride..][..stride]`.
/// Returns how many.
///
/// # Panics
/// When the buffers are too few, or more than [`MESSAGES_MAX`] are asked for.
pub(crate) fn receive_messages(
    fd: BorrowedFd<'_>,
    buffers: &mut [u8],
    stride: usize,
    received: &mut [Received],
) -> io::Result<usize> {
    let count = received.len();
    assert!(count <= MESSAGES_MAX && buffers.len() >= count * stride);
    let mut names = [MaybeUninit::<libc::sockaddr_in6>::uninit(); MESSAGES_MAX];
    let mut controls = [MaybeUninit::<ReceiveControl>::uninit(); MESSAGES_MAX];
    let mut vectors = [MaybeUninit::<libc::iovec>::uninit(); MESSAGES_MAX];
    let mut headers = [MaybeUninit::<libc::mmsghdr>::uninit(); MESSAGES_MAX];
    for (i, buffer) in buffers.chunks_exact_mut(stride).take(count).enumerate() {
        let vector = vectors[i].write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: stride });
        // A zeroed name reads as "no address" when the kernel leaves it alone.
        // SAFETY: sockaddr_in6 is plain integers, for which zero bytes are a value.
        let name = names[i].write(unsafe { mem::zeroed() });
        // SAFETY: mmsghdr is plain integers and pointers, for which zero bytes are a value.
        let header = headers[i].write(unsafe { mem::zeroed() });
        header.msg_hdr.msg_name = ptr(name);
        header.msg_hdr.msg_namelen = SOCKADDR_LEN as u32;
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = controls[i].as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = mem::size_of::<ReceiveControl>();
    }
    // SAFETY: the first `count` headers were written above; each points to a name, a control area and an I/O vector
    // in arrays that outlive the call, and each vector to its own `stride` bytes of `buffers`, borrowed mutably here.
    let result = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let got = result as usize;
    for i in 0..got {
        // SAFETY: `got` is at most `count`, and the first `count` headers are initialised.
        let header = unsafe { headers[i].assume_init_ref() };
        // SAFETY: initialised above, and the kernel only wrote integers into it.
        let name = unsafe { names[i].assume_init_ref() };
        let control_len = header.msg_hdr.msg_controllen.min(mem::size_of::<ReceiveControl>());
        // SAFETY: the kernel wrote `msg_controllen` bytes into this control area, capped to its size here.
        let control = unsafe { std::slice::from_raw_parts(controls[i].as_ptr().cast::<u8>(), control_len) };
        received[i] =
            parse_received(header.msg_len as usize, header.msg_hdr.msg_flags, read_address(name), control);
    }
    Ok(got)
}

/// Sends up to [`MESSAGES_MAX`] messages without blocking; returns how many left.
///
/// # Errors
/// The error of the first message, when that one could not leave.
pub(crate) fn send_messages(fd: BorrowedFd<'_>, bytes: &[u8], messages: &[Outgoing]) -> io::Result<usize> {
    let count = messages.len().min(MESSAGES_MAX);
    let mut names = [MaybeUninit::<libc::sockaddr_in6>::uninit(); MESSAGES_MAX];
    let mut controls = [MaybeUninit::<SendControl>::uninit(); MESSAGES_MAX];
    let mut vectors = [MaybeUninit::<libc::iovec>::uninit(); MESSAGES_MAX];
    let mut headers = [MaybeUninit::<libc::mmsghdr>::uninit(); MESSAGES_MAX];
    for (i, message) in messages.iter().take(count).enumerate() {
        let payload = &bytes[message.start..message.start + message.len];
        let vector = vectors[i]
            .write(libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() });
        let (name, name_len) = write_address(message.destination);
        let name = names[i].write(name);
        // SAFETY: mmsghdr is plain integers and pointers, for which zero bytes are a value.
        let header = headers[i].write(unsafe { mem::zeroed() });
        header.msg_hdr.msg_name = ptr(name);
        header.msg_hdr.msg_namelen = name_len;
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        let mut writer = ControlWriter::new();
        if message.segment_len != 0 {
            let segment_len = u16::try_from(message.segment_len).expect("a datagram is at most 65507 bytes");
            writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment_len.to_ne_bytes());
        }
        push_source(&mut writer, message);
        push_ecn(&mut writer, message);
        if writer.len > 0 {
            header.msg_hdr.msg_controllen = writer.len;
            header.msg_hdr.msg_control = ptr(controls[i].write(writer.control));
        }
    }
    // SAFETY: the first `count` headers were written above; names, control areas and I/O vectors live in arrays that
    // outlive the call, and every vector points into `bytes`, which the kernel only reads.
    let result = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as usize)
}

/// Takes one entry off the socket's error queue; returns its error number, `None` when the queue is empty.
pub(crate) fn take_queued_error(fd: BorrowedFd<'_>) -> Option<i32> {
    let mut control = MaybeUninit::<ReceiveControl>::uninit();
    // SAFETY: msghdr is plain integers and pointers, for which zero bytes are a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of::<ReceiveControl>();
    // SAFETY: the header has no name and no I/O vector, and its control area outlives the call.
    let result =
        unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if result < 0 {
        return None;
    }
    let len = header.msg_controllen.min(mem::size_of::<ReceiveControl>());
    // SAFETY: the kernel wrote `msg_controllen` bytes into the control area, capped to its size here.
    let control = unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), len) };
    let error = controls(control)
        .find(|c| {
            (c.level, c.kind) == (libc::SOL_IP, libc::IP_RECVERR)
                || (c.level, c.kind) == (libc::SOL_IPV6, libc::IPV6_RECVERR)
        })
        .and_then(|c| c.data.first_chunk::<4>())
        .map_or(0, |errno| i32::from_ne_bytes(*errno));
    Some(error)
}

/// Sets an integer socket option.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the value is a live c_int and its exact size is passed.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<c_int>() as u32,
        )
    };
    check(result)
}

/// Reads an integer socket option.
pub(crate) fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = mem::size_of::<c_int>() as u32;
    // SAFETY: the value is a live c_int, and `len` tells the kernel its size.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len) };
    check(result).map(|()| value)
}

/// The kernel's smoothed round-trip time of a TCP socket and its variation.
pub(crate) fn tcp_rtt(fd: BorrowedFd<'_>) -> io::Result<(Duration, Duration)> {
    // SAFETY: tcp_info is plain integers, for which zero bytes are a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of::<libc::tcp_info>() as u32;
    // SAFETY: the value is a live tcp_info, and `len` tells the kernel its size.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut len)
    };
    check(result)?;
    let micros = |m: u32| Duration::from_micros(m.into());
    Ok((micros(info.tcpi_rtt), micros(info.tcpi_rttvar)))
}

/// Name and flags (`IFF_*`) of the TUN interface behind a descriptor.
pub(crate) fn tun_interface(fd: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    // SAFETY: ifreq is plain integers and pointers, for which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, and `request` is one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) };
    check(result)?;
    let name: Vec<u8> =
        request.ifr_name.iter().take_while(|c| **c != 0).map(|c| c.to_ne_bytes()[0]).collect();
    // SAFETY: TUNGETIFF fills the flags member of the union, and any bit pattern is a c_short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((String::from_utf8_lossy(&name).into_owned(), c_int::from(flags) & 0xffff))
}

/// Length of the vnet header of a TUN descriptor, in bytes.
pub(crate) fn tun_header_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut len: c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one c_int, and `len` is one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ as _, &raw mut len) };
    check(result).map(|()| usize::try_from(len).unwrap_or(0))
}

/// Sets the length of the vnet header of a TUN descriptor.
pub(crate) fn set_tun_header_len(fd: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one c_int, and `len` is one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) };
    check(result)
}

/// Tells the kernel which offloads (`TUN_F_*`) the reader of a TUN descriptor understands.
pub(crate) fn set_tun_offloads(fd: BorrowedFd<'_>, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result =
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) };
    check(result)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn ptr<T>(value: &mut T) -> *mut c_void {
    (&raw mut *value).cast()
}

/// One control message.
struct Control<'a> {
    level: c_int,
    kind: c_int,
    data: &'a [u8],
}

/// Walks control messages as `CMSG_NXTHDR` does, but within a slice.
fn controls(bytes: &[u8]) -> impl Iterator<Item = Control<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.get(..CONTROL_HEADER_LEN)?;
        let (len, kinds) = header.split_first_chunk::<{ mem::size_of::<usize>() }>()?;
        let len = usize::from_ne_bytes(*len);
        let level = c_int::from_ne_bytes(*kinds.first_chunk()?);
        let kind = c_int::from_ne_bytes(*kinds.last_chunk()?);
        let data = rest.get(CONTROL_HEADER_LEN..len)?;
        rest = rest.get(aligned(len)..).unwrap_or(&[]);
        Some(Control { level, kind, data })
    })
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(mem::size_of::<usize>())
}

/// Builds the control messages of one sent message.
struct ControlWriter {
    control: SendControl,
    len: usize,
}

impl ControlWriter {
    fn new() -> Self {
        Self { control: SendControl([0; 96]), len: 0 }
    }

    fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let len = CONTROL_HEADER_LEN + data.len();
        let out = &mut self.control.0[self.len..self.len + len];
        out[..8].copy_from_slice(&len.to_ne_bytes());
        out[8..12].copy_from_slice(&level.to_ne_bytes());
        out[12..16].copy_from_slice(&kind.to_ne_bytes());
        out[16..].copy_from_slice(data);
        self.len += aligned(len);
    }
}

fn push_source(writer: &mut ControlWriter, message: &Outgoing) {
    match (message.destination, message.local) {
        (SocketAddr::V4(_), Some(IpAddr::V4(local))) => {
            let mut info = [0; 12]; // in_pktinfo: interface index, address to send from, header destination
            info[4..8].copy_from_slice(&local.octets());
            writer.push(libc::SOL_IP, libc::IP_PKTINFO, &info);
        }
        (SocketAddr::V6(_), Some(local)) => {
            let local = match local {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let mut info = [0; 20]; // in6_pktinfo: address to send from, interface index
            info[..16].copy_from_slice(&local.octets());
            writer.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
        }
        (SocketAddr::V4(_), Some(IpAddr::V6(_))) | (_, None) => {}
    }
}

fn push_ecn(writer: &mut ControlWriter, message: &Outgoing) {
    if message.ecn == 0 {
        return;
    }
    let tos = c_int::from(message.ecn & 3).to_ne_bytes();
    let v4 = match message.destination {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().is_some(),
    };
    if v4 {
        writer.push(libc::SOL_IP, libc::IP_TOS, &tos);
    } else {
        writer.push(libc::SOL_IPV6, libc::IPV6_TCLASS, &tos);
    }
}

fn parse_received(len: usize, flags: c_int, source: SocketAddr, control: &[u8]) -> Received {
    let mut received = Received {
        len,
        segment_len: len,
        source,
        local: None,
        ecn: 0,
        truncated: flags & libc::MSG_TRUNC != 0,
    };
    for c in controls(control) {
        match (c.level, c.kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) = c.data.first_chunk() {
                    let size = usize::try_from(c_int::from_ne_bytes(*size)).unwrap_or(0);
                    if size > 0 {
                        received.segment_len = size.min(len);
                    }
                }
            }
            (libc::SOL_IP, libc::IP_TOS) | (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                // One byte for IPv4, a c_int for IPv6: on a little-endian machine the first byte holds it in both.
                let tos = match c.data.first_chunk::<4>() {
                    Some(wide) => c_int::from_ne_bytes(*wide) as u8,
                    None => c.data.first().copied().unwrap_or(0),
                };
                received.ecn = tos & 3;
            }
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                if let Some(octets) = c.data.get(4..8).and_then(|o| o.first_chunk::<4>()) {
                    received.local = Some(IpAddr::V4(Ipv4Addr::from(*octets)));
                }
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(octets) = c.data.first_chunk::<16>() {
                    received.local = Some(IpAddr::V6(Ipv6Addr::from(*octets)).to_canonical());
                }
            }
            _ => {}
        }
    }
    received
}

/// Reads an address of either family from the space for the larger one; IPv4-mapped addresses come out as IPv4.
fn read_address(name: &libc::sockaddr_in6) -> SocketAddr {
    if c_int::from(name.sin6_family) == libc::AF_INET6 {
        let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
        let port = u16::from_be(name.sin6_port);
        return match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, port)),
            None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)),
        };
    }
    // sockaddr_in has its port where sockaddr_in6 has it, and its address where that has the flow information.
    let ip = Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes());
    SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.sin6_port)))
}

fn write_address(address: SocketAddr) -> (libc::sockaddr_in6, u32) {
    // SAFETY: sockaddr_in6 is plain integers, for which zero bytes are a value.
    let mut name: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    name.sin6_port = address.port().to_be();
    match address {
        SocketAddr::V4(v4) => {
            // As in read_address: sockaddr_in laid over the front of sockaddr_in6.
            name.sin6_family = libc::AF_INET as _;
            name.sin6_flowinfo = u32::from_ne_bytes(v4.ip().octets());
            (name, mem::size_of::<libc::sockaddr_in>() as u32)
        }
        SocketAddr::V6(v6) => {
            name.sin6_family = libc::AF_INET6 as _;
            name.sin6_addr.s6_addr = v6.ip().octets();
            name.sin6_scope_id = v6.scope_id();
            (name, SOCKADDR_LEN as u32)
        }
    }
}
