//! Packets that are larger than the tunnel: the ICMP errors that tell their senders so (RFC 1191, RFC 8201), and fragments
//! of those IPv4 packets that may be cut (RFC 791).

use super::checksum;

/// The longest ICMP error that is written: what every IPv6 path carries.
pub const TOO_BIG_LEN_MAX: usize = 1280;
/// The longest IPv4 one: what every IPv4 host accepts (RFC 1812).
const TOO_BIG_V4_LEN_MAX: usize = 576;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const DONT_FRAGMENT: u8 = 0x40;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Extension headers of one packet that are looked through.
const EXTENSIONS_MAX: usize = 8;

/// Writes the ICMP "fragmentation needed" or ICMPv6 "packet too big" that answers `packet` with `mtu`, and returns its
/// length. It comes from the packet's destination, which is where routers send such answers on to.
///
/// `None` where there must be no answer: to a packet that may be cut, to an ICMP error, to a later fragment, from or to what
/// is not one host's address, and to what is no IP packet.
pub fn packet_too_big(packet: &[u8], mtu: u16, out: &mut [u8; TOO_BIG_LEN_MAX]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => too_big_v4(packet, mtu, out),
        6 => too_big_v6(packet, mtu, out),
        _ => None,
    }
}

fn too_big_v4(packet: &[u8], mtu: u16, out: &mut [u8; TOO_BIG_LEN_MAX]) -> Option<usize> {
    const HEADERS_LEN: usize = 28;
    let header = packet.first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let later = u16::from_be_bytes([header[6], header[7]]) & OFFSET != 0;
    if header[6] & DONT_FRAGMENT == 0 || later || header_len < 20 || packet.len() < header_len {
        return None;
    }
    // Echo, timestamp and their replies are no errors; everything else may be one.
    if header[9] == ICMP && !matches!(packet.get(header_len)?, 0 | 8 | 13 | 14) {
        return None;
    }
    let (source, destination) = (&header[12..16], &header[16..20]);
    if !is_host_v4(source) || !is_host_v4(destination) {
        return None;
    }
    let quoted = packet.len().min(TOO_BIG_V4_LEN_MAX - HEADERS_LEN);
    let len = HEADERS_LEN + quoted;
    let out = &mut out[..len];
    // Precedence "internetwork control" (RFC 1812), time to live 64.
    out[..12].copy_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, ICMP, 0, 0]);
    out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    out[12..16].copy_from_slice(destination);
    out[16..20].copy_from_slice(source);
    checksum::write_ipv4_header(&mut out[..20]);
    out[20..26].copy_from_slice(&[3, 4, 0, 0, 0, 0]);
    out[26..28].copy_from_slice(&mtu.to_be_bytes());
    out[28..].copy_from_slice(&packet[..quoted]);
    let sum = !checksum::fold(checksum::sum(&out[20..], 0));
    out[22..24].copy_from_slice(&sum.to_ne_bytes());
    Some(len)
}

fn too_big_v6(packet: &[u8], mtu: u16, out: &mut [u8; TOO_BIG_LEN_MAX]) -> Option<usize> {
    const HEADERS_LEN: usize = 48;
    let header = packet.first_chunk::<40>()?;
    let (source, destination) = (&header[8..24], &header[24..40]);
    if !is_host_v6(source) || !is_host_v6(destination) || is_icmpv6_error(packet)? {
        return None;
    }
    let quoted = packet.len().min(TOO_BIG_LEN_MAX - HEADERS_LEN);
    let len = HEADERS_LEN + quoted;
    let out = &mut out[..len];
    out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, ICMPV6, 64]);
    out[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    out[8..24].copy_from_slice(destination);
    out[24..40].copy_from_slice(source);
    out[40..44].copy_from_slice(&[2, 0, 0, 0]);
    out[44..48].copy_from_slice(&u32::from(mtu).to_be_bytes());
    out[48..].copy_from_slice(&packet[..quoted]);
    let pseudo = checksum::pseudo_sum(&out[8..40], ICMPV6, len - 40);
    let sum = !checksum::fold(checksum::sum(&out[40..], pseudo));
    out[42..44].copy_from_slice(&sum.to_ne_bytes());
    Some(len)
}

fn is_host_v4(address: &[u8]) -> bool {
    !matches!(address[0], 0 | 127 | 224..)
}

fn is_host_v6(address: &[u8]) -> bool {
    address[0] != 0xff && address.iter().any(|byte| *byte != 0)
}

/// `None` when the chain of headers cannot be followed, or leads to a later fragment.
fn is_icmpv6_error(packet: &[u8]) -> Option<bool> {
    let (mut next, mut at) = (packet[6], 40);
    for _ in 0..EXTENSIONS_MAX {
        match next {
            ICMPV6 => return packet.get(at).map(|kind| *kind < 128 || *kind == 137),
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                let len = usize::from(*packet.get(at + 1)?) * 8 + 8;
                (next, at) = (packet[at], at + len);
            }
            44 => {
                let fragment = packet.get(at..)?.first_chunk::<8>()?;
                if u16::from_be_bytes([fragment[2], fragment[3]]) & !7 != 0 {
                    return None;
                }
                (next, at) = (fragment[0], at + 8);
            }
            _ => return Some(false),
        }
    }
    None
}

/// Cuts an IPv4 packet that may be cut into fragments of at most `mtu` bytes, each written to `out` and given to `each`.
/// False, and nothing done, when it may not: IPv6, "don't fragment", or options in the header (they are rare, and most
/// networks drop them).
pub fn fragment_ipv4(packet: &[u8], mtu: u16, out: &mut [u8], each: &mut dyn FnMut(&[u8])) -> bool {
    let Some(header) = packet.first_chunk::<20>() else { return false };
    let room = usize::from(mtu).min(out.len()).saturating_sub(20) & !7;
    if header[0] != 0x45 || header[6] & DONT_FRAGMENT != 0 || room == 0 {
        return false;
    }
    let word = u16::from_be_bytes([header[6], header[7]]);
    let payload = &packet[20..];
    for (at, piece) in payload.chunks(room).enumerate() {
        let last = at * room + piece.len() == payload.len();
        let Ok(offset) = u16::try_from(at * room / 8) else { return true };
        let more = if last { word & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let fragment = &mut out[..20 + piece.len()];
        fragment[..20].copy_from_slice(header);
        fragment[2..4].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
        fragment[6..8]
            .copy_from_slice(&((word & OFFSET).saturating_add(offset) & OFFSET | more).to_be_bytes());
        checksum::write_ipv4_header(&mut fragment[..20]);
        fragment[20..].copy_from_slice(piece);
        each(fragment);
    }
    true
}

/// How often ICMP errors are sent on behalf of one session (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f): 50 a second, 10 at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorPace {
    /// When the bucket is empty again, in nanoseconds.
    empty_at: u64,
}

impl ErrorPace {
    const COST_NANOS: u64 = 20_000_000;
    const BURST: u64 = 10;

    /// Takes one, at `now` in nanoseconds of any clock that does not go back.
    pub fn take(&mut self, now: u64) -> bool {
        let empty_at = self.empty_at.max(now).saturating_add(Self::COST_NANOS);
        let allowed = empty_at <= now.saturating_add(Self::COST_NANOS * Self::BURST);
        if allowed {
            self.empty_at = empty_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::checksum::reference;
    use super::*;

    fn v4(protocol: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet =
            vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0, 10, 64, 0, 1, 192, 0, 2, 9];
        packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        checksum::write_ipv4_header(&mut packet);
        packet.extend(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        packet.extend(payload);
        packet
    }

    fn answer(packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xaa; TOO_BIG_LEN_MAX];
        packet_too_big(packet, 1280, &mut out).map(|len| out[..len].to_vec())
    }

    #[test]
    fn an_ipv4_packet_that_may_not_be_cut_is_answered_as_rfc_1191_says() {
        let packet = v4(17, 0x4000, &[7; 1380]);
        let told = answer(&packet).unwrap();
        assert_eq!(told.len(), 576);
        assert_eq!((&told[12..16], &told[16..20]), (&packet[16..20], &packet[12..16]), "from and to");
        assert_eq!((told[9], told[20], told[21], &told[24..28]), (ICMP, 3, 4, &[0, 0, 5, 0][..]));
        assert_eq!(&told[28..], &packet[..548]);
        assert_eq!(reference::checksum(&[&told[..20]]), 0, "header checksum");
        assert_eq!(reference::checksum(&[&told[20..]]), 0, "ICMP checksum");
    }

    #[test]
    fn an_ipv6_packet_is_answered_as_rfc_4443_says() {
        let packet = v6(17, &[7; 1400]);
        let told = answer(&packet).unwrap();
        assert_eq!(told.len(), 1280);
        assert_eq!((&told[8..24], &told[24..40]), (&packet[24..40], &packet[8..24]), "from and to");
        assert_eq!((told[6], told[40], told[41], &told[44..48]), (ICMPV6, 2, 0, &[0, 0, 5, 0][..]));
        assert_eq!(&told[48..], &packet[..1232]);
        let len = (told.len() as u32 - 40).to_be_bytes();
        assert_eq!(reference::checksum(&[&told[8..40], &len, &[0, 0, 0, ICMPV6], &told[40..]]), 0);
    }

    #[test]
    fn errors_later_fragments_and_packets_of_no_single_host_are_not_answered() {
        for kind in [3, 4, 5, 11, 12] {
            assert_eq!(answer(&v4(ICMP, 0x4000, &[kind; 1400])), None, "ICMP type {kind}");
        }
        for kind in [1, 2, 3, 4, 137] {
            assert_eq!(answer(&v6(ICMPV6, &[kind; 1400])), None, "ICMPv6 type {kind}");
            let mut hidden = vec![ICMPV6, 0, 0, 0, 0, 0, 0, 0];
            hidden.extend([kind; 1400]);
            assert_eq!(answer(&v6(60, &hidden)), None, "ICMPv6 type {kind} behind an option");
        }
        assert!(answer(&v4(ICMP, 0x4000, &[8; 1400])).is_some(), "echo");
        assert!(answer(&v6(ICMPV6, &[128; 1400])).is_some(), "echo");
        assert_eq!(answer(&v4(17, 0x4001, &[7; 1400])), None, "a later fragment");
        let mut later = vec![17, 0, 0, 8, 0, 0, 0, 1];
        later.extend([7; 1400]);
        assert_eq!(answer(&v6(44, &later)), None, "a later fragment");
        for (at, bytes) in [(12, [0, 0, 0, 0]), (12, [224, 0, 0, 1]), (16, [255; 4]), (16, [239, 0, 0, 1])] {
            let mut packet = v4(17, 0x4000, &[7; 1400]);
            packet[at..at + 4].copy_from_slice(&bytes);
            assert_eq!(answer(&packet), None, "{bytes:?} at {at}");
        }
        for (at, bytes) in [(8, [0; 16]), (8, [0xff; 16]), (24, [0xff; 16])] {
            let mut packet = v6(17, &[7; 1400]);
            packet[at..at + 16].copy_from_slice(&bytes);
            assert_eq!(answer(&packet), None, "{bytes:?} at {at}");
        }
    }

    #[test]
    fn a_packet_that_may_be_cut_is_cut_and_not_answered() {
        let packet = v4(17, 0, &[7; 1400]);
        assert_eq!(answer(&packet), None);
        assert!(!fragment_ipv4(&v4(17, 0x4000, &[7; 1400]), 1280, &mut [0; 1500], &mut |_| panic!()));
        assert!(!fragment_ipv4(&v6(17, &[7; 1400]), 1280, &mut [0; 1500], &mut |_| panic!()));
    }

    #[test]
    fn errors_come_at_a_pace_of_ten_at_once_and_fifty_a_second() {
        let mut pace = ErrorPace::default();
        let second = 1_000_000_000;
        assert_eq!((0..100).filter(|_| pace.take(second)).count(), 10);
        let more = (0..1000).filter(|ms| pace.take(second + ms * 1_000_000)).count();
        assert_eq!(more, 49);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_no_answer_is_longer_than_its_bound(
            mut bytes in proptest::collection::vec(0u8.., 0..1500), version in 0..2usize, mtu in 0u16..
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = [0x40, 0x60][version] | *first & 0xf;
            }
            let mut out = [0; TOO_BIG_LEN_MAX];
            let _ = packet_too_big(&bytes, mtu, &mut out);
            fragment_ipv4(&bytes, mtu, &mut [0; 9000], &mut |fragment| assert!(fragment.len() <= usize::from(mtu)));
        }

        #[test]
        fn fragments_carry_every_byte_once_and_fit(
            payload in proptest::collection::vec(0u8.., 1..3000), mtu in 28..1500u16, first in 0..4000u16, more in 0..2u16
        ) {
            let word = first | (more * MORE_FRAGMENTS);
            let packet = v4(17, word, &payload);
            let mut whole = vec![None; payload.len()];
            let mut last = 0;
            let cut = fragment_ipv4(&packet, mtu, &mut [0; 1500], &mut |fragment| {
                assert!(fragment.len() <= usize::from(mtu));
                assert_eq!(usize::from(u16::from_be_bytes([fragment[2], fragment[3]])), fragment.len());
                assert_eq!(reference::checksum(&[&fragment[..20]]), 0);
                assert_eq!((&fragment[4..6], &fragment[8..10], &fragment[12..20]),
                    (&packet[4..6], &packet[8..10], &packet[12..20]));
                let word = u16::from_be_bytes([fragment[6], fragment[7]]);
                let at = usize::from((word & OFFSET) - first) * 8;
                for (i, byte) in fragment[20..].iter().enumerate() {
                    assert!(whole[at + i].replace(*byte).is_none());
                }
                last = word & MORE_FRAGMENTS;
            });
            prop_assert!(cut);
            prop_assert_eq!(last, more * MORE_FRAGMENTS, "the last one ends where the packet did");
            prop_assert_eq!(whole.into_iter().collect::<Option<Vec<_>>>(), Some(payload));
        }
    }
}
