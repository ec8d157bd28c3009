//! Explicit congestion notification across a tunnel (RFC 6040, normal mode).
//!
//! Inwards, the outer header takes over the inner packet's ECN bits ([`ecn_of`]); a router on the way may mark it instead of
//! dropping it. Outwards, [`apply_outer_ecn`] carries that mark to the inner packet. DSCP is not touched: the outer header
//! says nothing of what is inside (the pipe model of RFC 2983).

use super::checksum;

/// Not ECN-capable, and congestion experienced (RFC 3168); the other two values are ECT(1) and ECT(0).
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The ECN bits of an IP packet, for the outer header; 0 when it is none.
#[inline]
pub fn ecn_of(packet: &[u8]) -> u8 {
    match packet {
        [version, traffic_class, ..] if version >> 4 == 4 => traffic_class & CE,
        [version, traffic_class, ..] if version >> 4 == 6 => traffic_class >> 4 & CE,
        _ => NOT_ECT,
    }
}

/// Carries the outer header's ECN bits over to the inner packet. False: the packet must be dropped, because it was
/// marked as having met congestion, and its sender would not understand that mark.
#[inline]
#[must_use]
pub fn apply_outer_ecn(packet: &mut [u8], outer: u8) -> bool {
    match (outer & CE, ecn_of(packet)) {
        (NOT_ECT | ECT_0, _) | (_, CE) | (ECT_1, NOT_ECT | ECT_1) => true,
        (CE, NOT_ECT) => false,
        (CE, _) => set_ecn(packet, CE),
        (_, _) => set_ecn(packet, ECT_1),
    }
}

/// Sets the ECN bits; a packet too short for its header is left to those who check it.
#[cold]
fn set_ecn(packet: &mut [u8], ecn: u8) -> bool {
    if packet.first().is_some_and(|version| version >> 4 == 6) {
        packet[1] = packet[1] & !(CE << 4) | ecn << 4;
        return true;
    }
    let header_len = usize::from(packet[0] & 0xf) * 4;
    packet[1] = packet[1] & !CE | ecn;
    if let Some(header) = packet.get_mut(..header_len)
        && header_len >= 20
    {
        checksum::write_ipv4_header(header);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(ecn: u8) -> Vec<u8> {
        let mut packet =
            vec![0x45, 0b1011_1000 | ecn, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        checksum::write_ipv4_header(&mut packet);
        packet
    }

    fn v6(ecn: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x6b;
        packet[1] = ecn << 4 | 0x5;
        packet
    }

    /// RFC 6040, figure 4: rows are the inner bits, columns the outer ones, both in the order Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn every_pair_of_inner_and_outer_bits_comes_out_as_the_table_says() {
        const ORDER: [u8; 4] = [NOT_ECT, ECT_0, ECT_1, CE];
        const TABLE: [[Option<u8>; 4]; 4] = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in ORDER.iter().zip(TABLE) {
            for (outer, expected) in ORDER.iter().zip(row) {
                for mut packet in [v4(*inner), v6(*inner)] {
                    let kept = apply_outer_ecn(&mut packet, *outer);
                    assert_eq!(
                        kept.then(|| ecn_of(&packet)),
                        expected,
                        "inner {inner:02b} outer {outer:02b}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_mark_changes_nothing_but_the_bits_and_the_header_checksum() {
        let mut packet = v4(ECT_0);
        assert!(apply_outer_ecn(&mut packet, CE));
        assert_eq!(packet, v4(CE), "DSCP, the rest or the checksum differ");
        let mut packet = v6(ECT_0);
        assert!(apply_outer_ecn(&mut packet, CE));
        assert_eq!(packet, v6(CE), "version, DSCP or flow label differ");
    }

    #[test]
    fn what_is_no_packet_is_left_alone() {
        for bytes in [&mut [][..], &mut [0x45][..], &mut [0x46, ECT_0][..], &mut [0xff; 3][..]] {
            let _ = apply_outer_ecn(bytes, CE);
        }
    }
}
