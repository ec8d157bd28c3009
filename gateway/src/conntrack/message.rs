//! Messages of ctnetlink, as bytes (`linux/netfilter/nfnetlink_conntrack.h`). Total: whatever comes is read or left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dataplane::{Flow, TCP};

/// Message types: `NLMSG_ERROR`, `NLMSG_DONE`, and `IPCTNL_MSG_CT_NEW` and `_GET` of the conntrack subsystem.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const ENTRY: u16 = 0x0100;
const GET: u16 = 0x0101;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x0301;
/// Lengths of `nlmsghdr` and `nfgenmsg`.
const HEADER_LEN: usize = 16;
const FAMILY_LEN: usize = 4;

/// Attributes of an entry.
const TUPLE_ORIGINAL: u16 = 1;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const FILTER: u16 = 25;
/// … of a tuple.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// … of addresses: source and destination of IPv4, then of IPv6.
const SOURCE_V4: u16 = 1;
const DESTINATION_V4: u16 = 2;
const SOURCE_V6: u16 = 3;
const DESTINATION_V6: u16 = 4;
/// … of a protocol.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// … of what is known about a TCP flow.
const TCP_INFO: u16 = 1;
const TCP_STATE: u16 = 1;
/// … of a filter: which parts of the original tuple count, of which the first bit is the source address.
const FILTER_ORIGINAL: u16 = 1;
const FILTER_SOURCE: u32 = 1;
/// The attribute holds attributes.
const NESTED: u16 = 0x8000;

/// Bits of an entry's status: answered, long-lived, source translated.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const SOURCE_NAT: u32 = 1 << 4;

/// One flow that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where its first packet came from.
    pub(crate) source: IpAddr,
    pub(crate) flow: Flow,
    /// Bits of `enum ip_conntrack_status`.
    pub(crate) status: u32,
    /// A value of `enum tcp_conntrack`; 0 for none.
    pub(crate) tcp_state: u8,
}

impl Entry {
    pub(crate) fn is_tcp(&self) -> bool {
        self.flow.protocol == TCP
    }

    /// True when its source is translated and there may be more packets of it.
    pub(crate) fn can_go_on(&self) -> bool {
        let is_alive = if self.is_tcp() {
            // SYN_SENT to LAST_ACK, and SYN_SENT of both sides: neither TIME_WAIT nor CLOSE.
            matches!(self.tcp_state, 1..=6 | 9)
        } else {
            self.status & SEEN_REPLY != 0
        };
        self.status & SOURCE_NAT != 0 && is_alive
    }

    /// True when it is worth waiting for its end.
    pub(crate) fn is_open(&self) -> bool {
        // Not LAST_ACK: both sides have finished.
        let is_going_on = if self.is_tcp() { self.tcp_state != 6 } else { self.status & ASSURED != 0 };
        self.can_go_on() && is_going_on
    }
}

/// One message of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    Entry(Entry),
    /// There is no more.
    Done,
    /// The request failed with this error number.
    Failed(i32),
    /// Nothing that matters here: another protocol, another message.
    Other,
}

/// The messages of one datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER_LEN>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = datagram.get(HEADER_LEN..len)?;
        datagram = datagram.get(aligned(len)..).unwrap_or_default();
        Some(match kind {
            DONE => Message::Done,
            // Zero acknowledges.
            ERROR => match body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
                Some(0) => Message::Done,
                Some(code) => Message::Failed(code.saturating_neg()),
                None => Message::Other,
            },
            ENTRY => body.get(FAMILY_LEN..).and_then(entry).map_or(Message::Other, Message::Entry),
            _ => Message::Other,
        })
    })
}

fn entry(attributes: &[u8]) -> Option<Entry> {
    let (mut tuple, mut status, mut tcp_state) = (None, 0, 0);
    for (kind, value) in read(attributes) {
        match kind {
            TUPLE_ORIGINAL => tuple = original(value),
            STATUS => status = value.first_chunk::<4>().map_or(0, |bits| u32::from_be_bytes(*bits)),
            PROTOCOL_INFO => {
                let tcp = find(value, TCP_INFO).and_then(|tcp| find(tcp, TCP_STATE));
                tcp_state = tcp.and_then(|state| state.first().copied()).unwrap_or(0);
            }
            _ => {}
        }
    }
    let (source, flow) = tuple?;
    Some(Entry { source, flow, status, tcp_state })
}

/// A tuple's source address, and the flow.
fn original(tuple: &[u8]) -> Option<(IpAddr, Flow)> {
    let (addresses, protocol) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTOCOL)?);
    let address = |v4, v6| match find(addresses, v4) {
        Some(bytes) => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        None => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(find(addresses, v6)?).ok()?))),
    };
    let source = address(SOURCE_V4, SOURCE_V6)?;
    let destination = address(DESTINATION_V4, DESTINATION_V6)?;
    let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    let number = *find(protocol, NUMBER)?.first()?;
    Some((source, Flow::new(number, port(SOURCE_PORT)?, destination, port(DESTINATION_PORT)?)?))
}

/// Attributes in order, without the flags of their types; ends at what is no attribute.
fn read(mut attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = attributes.first_chunk::<4>()?;
        let (len, kind) =
            (u16::from_ne_bytes([head[0], head[1]]), u16::from_ne_bytes([head[2], head[3]]) & 0x3fff);
        let value = attributes.get(4..usize::from(len))?;
        attributes = attributes.get(aligned(usize::from(len))..).unwrap_or_default();
        Some((kind, value))
    })
}

fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    read(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// Which entries the kernel is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of IPv4.
    V4,
    /// All of IPv6.
    V6,
    /// Those with this original source. A kernel before 5.8 does not know the filter, and tells all of IPv4.
    From(Ipv4Addr),
}

/// The requests that tell at least the entries with one of these original sources. There is none for one source of IPv6: the
/// kernel's filter leaves out just the address that it is given (seen with Linux 6.18).
pub(crate) fn wanted(sources: &[IpAddr], single_max: usize) -> Vec<Wanted> {
    let v4: Vec<Ipv4Addr> = sources
        .iter()
        .filter_map(|source| match source {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
        .collect();
    let has_v6 = v4.len() < sources.len();
    let mut wanted =
        if v4.len() > single_max { vec![Wanted::V4] } else { v4.into_iter().map(Wanted::From).collect() };
    wanted.extend(has_v6.then_some(Wanted::V6));
    wanted
}

/// Asks for what is wanted.
pub(crate) fn request(wanted: Wanted) -> Vec<u8> {
    let (family, filter) = match wanted {
        Wanted::V4 => (2, Vec::new()),
        Wanted::V6 => (10, Vec::new()),
        Wanted::From(source) => {
            let parts = attribute(FILTER_ORIGINAL, &FILTER_SOURCE.to_ne_bytes());
            let tuple = attribute(NESTED | TUPLE_IP, &attribute(SOURCE_V4, &source.octets()));
            (2, [attribute(NESTED | FILTER, &parts), attribute(NESTED | TUPLE_ORIGINAL, &tuple)].concat())
        }
    };
    let len = (HEADER_LEN + FAMILY_LEN + filter.len()) as u32;
    let mut request = Vec::with_capacity(len as usize);
    request.extend(len.to_ne_bytes());
    request.extend(GET.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    // Sequence number, port: nothing else goes over this socket.
    request.extend([0; 8]);
    // Family, version, resource.
    request.extend([family, 0, 0, 0]);
    request.extend(filter);
    request
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut attribute = Vec::with_capacity(aligned(len));
    attribute.extend((len as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(aligned(len), 0);
    attribute
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What Linux 6.18 says of a TCP and of a UDP flow of 10.77.0.1 that it masquerades as 10.9.0.1 (little-endian).
    const DUMPED: &str = "d400000000010200010000004c760000020000003400018014000180080001000a4d0001080002000a0900021c0002800500010006000000\
        06000200d43b0000060003000050000034000280140001800800\
        01000a090002080002000a0900011c0002800500010006000000060002000050000006000300d43b0000080003000000019e\
        080008000000000008000c0027c5be4508000b00000000010800070000069780300004802c00018005000100030000000500\
        02000a000000050003000a00000006000400230000000600050023000000\
        a400000000010200010000004c760000020000003400018014000180080001000a4d0001080002000a0900021c0002800500\
        01001100000006000200aba8000006000300003500003400028014000180080001000a090002080002000a0900011c000280\
        0500010011000000060002000035000006000300aba800000800030000000198080008000000000008000c00215fe2fd0800\
        0b0000000001080007000000001d";

    pub(crate) fn dumped() -> Vec<u8> {
        let digits: Vec<u8> =
            DUMPED.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn a_dump_of_the_kernel_is_read() {
        let read: Vec<Message> = messages(&dumped()).collect();
        let source = IpAddr::from([10, 77, 0, 1]);
        let flow = |protocol, from, to| Flow::new(protocol, from, IpAddr::from([10, 9, 0, 2]), to).unwrap();
        let (tcp, udp) = (flow(6, 54331, 80), flow(17, 43944, 53));
        let tcp = Entry { source, flow: tcp, status: 0x19e, tcp_state: 3 };
        let udp = Entry { source, flow: udp, status: 0x198, tcp_state: 0 };
        assert_eq!(read, [Message::Entry(tcp), Message::Entry(udp)]);
        assert!(tcp.can_go_on() && tcp.is_open());
        assert!(!udp.can_go_on(), "nobody has answered it");
    }

    #[test]
    fn only_translated_flows_that_have_not_ended_can_go_on() {
        let flow = |protocol| Flow::new(protocol, 1, IpAddr::from([10, 9, 0, 2]), 2).unwrap();
        let source = IpAddr::from([10, 77, 0, 1]);
        let entry = |protocol, status, tcp_state| Entry { source, flow: flow(protocol), status, tcp_state };
        let tcp = |state| entry(6, 0x1e, state);
        let going_on: Vec<u8> = (0..=10).filter(|state| tcp(*state).can_go_on()).collect();
        assert_eq!(going_on, [1, 2, 3, 4, 5, 6, 9]);
        assert!(!entry(6, 0x0e, 3).can_go_on(), "not translated");
        assert!(!tcp(6).is_open() && tcp(5).is_open());
        assert!(entry(17, 0x12, 0).can_go_on() && !entry(17, 0x12, 0).is_open());
        assert!(entry(17, 0x16, 0).is_open());
    }

    #[test]
    fn the_end_and_an_error_are_told_apart() {
        let message = |kind: u16, code: i32| {
            let mut message =
                [20u32.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec(), vec![0; 10]].concat();
            message.extend(code.to_ne_bytes());
            messages(&message).collect::<Vec<_>>()
        };
        assert_eq!(message(DONE, 0), [Message::Done]);
        assert_eq!(message(ERROR, -1), [Message::Failed(1)]);
        assert_eq!(message(ERROR, i32::MIN), [Message::Failed(i32::MAX)]);
        assert_eq!(message(77, 0), [Message::Other]);
    }

    #[test]
    fn no_change_of_a_byte_and_no_cut_breaks_the_reader() {
        let whole = dumped();
        for len in 0..whole.len() {
            assert!(messages(&whole[..len]).count() <= 2);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                assert!(messages(&changed).count() <= 64);
            }
        }
    }

    #[test]
    fn a_request_for_one_address_names_it_and_is_as_long_as_it_says() {
        let asked = request(Wanted::From(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!((asked.len(), asked[16]), (48, 2));
        assert_eq!(asked[..4], 48u32.to_ne_bytes());
        let attributes: Vec<_> = read(&asked[20..]).map(|(kind, _)| kind).collect();
        assert_eq!(attributes, [FILTER, TUPLE_ORIGINAL]);
        assert_eq!(
            [Wanted::V4, Wanted::V6].map(|all| (request(all).len(), request(all)[16])),
            [(20, 2), (20, 10)]
        );
    }

    #[test]
    fn few_addresses_of_ipv4_are_asked_for_one_by_one_and_all_else_by_family() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let six: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(wanted(&[], 1), []);
        assert_eq!(wanted(&[a.into(), six], 1), [Wanted::From(a), Wanted::V6]);
        assert_eq!(wanted(&[a.into(), b.into(), six, six], 1), [Wanted::V4, Wanted::V6]);
        assert_eq!(wanted(&[six], 1), [Wanted::V6]);
    }
}
