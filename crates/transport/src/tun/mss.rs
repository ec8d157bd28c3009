//! TCP's maximum segment size across a tunnel: what a SYN announces is lowered to what the tunnel carries, so that
//! connections work where the networks on both sides carry more and lose the errors that would say so.

use super::checksum;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Lowers the segment size that a SYN or SYN-ACK announces to what fits inner packets of `mtu` bytes, and corrects the
/// checksum for the difference (RFC 1624). Leaves every other packet alone, and one that announces none.
#[inline]
pub fn clamp_mss(packet: &mut [u8], mtu: u16) {
    let (transport, headers_len) = match packet {
        [version, _, _, _, _, _, high, low, _, TCP, ..] if *version >> 4 == 4 => {
            if *high & 0x1f != 0 || *low != 0 {
                return;
            }
            let header_len = usize::from(*version & 0xf) * 4;
            (header_len.max(20), 40)
        }
        [version, _, _, _, _, _, TCP, ..] if *version >> 4 == 6 => (40, 60),
        _ => return,
    };
    if packet.get(transport + 13).is_some_and(|flags| flags & SYN != 0) {
        clamp_syn(&mut packet[transport..], mtu.saturating_sub(headers_len));
    }
}

#[cold]
fn clamp_syn(segment: &mut [u8], mss_max: u16) {
    let end = (usize::from(segment[12] >> 4) * 4).min(segment.len());
    let mut at = 20;
    while at + 1 < end {
        let len = match segment[at] {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            MAXIMUM_SEGMENT_SIZE if segment[at + 1] == 4 && at + 4 <= end => {
                return set_mss(segment, at + 2, mss_max);
            }
            _ => usize::from(segment[at + 1]).max(2),
        };
        at += len;
    }
}

fn set_mss(segment: &mut [u8], at: usize, mss_max: u16) {
    let old = [segment[at], segment[at + 1]];
    if u16::from_be_bytes(old) <= mss_max {
        return;
    }
    let new = mss_max.to_be_bytes();
    segment[at..at + 2].copy_from_slice(&new);
    // At an odd place the two bytes are halves of two words, which the sum sees the other way round.
    let word = |bytes: [u8; 2]| {
        let word = u16::from_ne_bytes(bytes);
        if at.is_multiple_of(2) { word } else { word.swap_bytes() }
    };
    let before = u16::from_ne_bytes([segment[16], segment[17]]);
    let sum = u64::from(!before) + u64::from(!word(old)) + u64::from(word(new));
    segment[16..18].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::checksum::reference;
    use super::*;

    const SYN_ACK: u8 = 0x12;

    /// A TCP segment with these options (padded) in a packet of the family, its checksum right.
    fn packet(v6: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), END_OF_OPTIONS);
        let mut segment = vec![0x1f, 0x90, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0, flags, 0xff, 0xff, 0, 0, 0, 0];
        segment[12] = ((20 + options.len() as u8) / 4) << 4;
        segment.extend(&options);
        let mut packet =
            if v6 { vec![0x60, 0, 0, 0, 0, 0, TCP, 64] } else { vec![0x45, 0, 0, 0, 0, 0, 0x40, 0] };
        if v6 {
            packet[4..6].copy_from_slice(&(segment.len() as u16).to_be_bytes());
            packet.extend([0xfd; 16]);
            packet.extend([0x20; 16]);
        } else {
            packet[2..4].copy_from_slice(&(20 + segment.len() as u16).to_be_bytes());
            packet.extend([64, TCP, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1]);
            checksum::write_ipv4_header(&mut packet);
        }
        let sum = transport_checksum(&packet, v6, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        packet.extend(&segment);
        packet
    }

    fn transport_checksum(packet: &[u8], v6: bool, segment: &[u8]) -> u16 {
        let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
        let len = (segment.len() as u16).to_be_bytes();
        reference::checksum(&[addresses, &[0, TCP, len[0], len[1]], segment])
    }

    fn holds(packet: &[u8], v6: bool) -> bool {
        transport_checksum(packet, v6, &packet[if v6 { 40 } else { 20 }..]) == 0
    }

    #[test]
    fn syn_and_syn_ack_of_both_families_are_lowered_to_what_fits_and_their_checksums_hold() {
        for v6 in [false, true] {
            for flags in [SYN, SYN_ACK] {
                // First, behind a window scale, and at an odd place.
                for before in [&[][..], &[3, 3, 7, 1], &[1]] {
                    let options = [before, &[2, 4, 0x05, 0xb4]].concat();
                    let mut clamped = packet(v6, flags, &options);
                    clamp_mss(&mut clamped, 1280);
                    let at = if v6 { 60 } else { 40 } + before.len() + 2;
                    let expected: u16 = if v6 { 1220 } else { 1240 };
                    assert_eq!(clamped[at..at + 2], expected.to_be_bytes());
                    assert!(holds(&clamped, v6), "checksum, v6 {v6}, behind {} bytes", before.len());
                }
            }
        }
    }

    #[test]
    fn a_smaller_size_other_segments_and_later_fragments_are_left_alone() {
        let small = packet(false, SYN, &[2, 4, 2, 0]);
        let data = packet(false, 0x10, &[2, 4, 0x05, 0xb4]);
        let none = packet(true, SYN, &[3, 3, 7]);
        let ended = packet(true, SYN, &[0, 2, 4, 0x05, 0xb4]);
        let mut later = packet(false, SYN, &[2, 4, 0x05, 0xb4]);
        later[7] = 1;
        for whole in [small, data, none, ended, later] {
            let mut clamped = whole.clone();
            clamp_mss(&mut clamped, 1280);
            assert_eq!(clamped, whole);
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            mut bytes in proptest::collection::vec(0u8.., 0..120), v6: bool, mtu in 0u16..
        ) {
            if bytes.len() > 10 {
                bytes[0] = if v6 { 0x60 } else { 0x40 } | bytes[0] & 0xf;
                bytes[if v6 { 6 } else { 9 }] = TCP;
            }
            clamp_mss(&mut bytes, mtu);
        }

        #[test]
        fn any_options_leave_the_checksum_right(options in proptest::collection::vec(0u8..5, 0..40), v6: bool) {
            let mut clamped = packet(v6, SYN, &options);
            prop_assert!(holds(&clamped, v6));
            clamp_mss(&mut clamped, 100);
            prop_assert!(holds(&clamped, v6));
        }
    }
}
