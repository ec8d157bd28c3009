//! The Internet checksum (RFC 1071), in the machine's byte order: sums of memory words, stored back as memory words.

/// Adds the 16-bit words of `bytes` to `initial`. Not folded.
pub(super) fn sum(bytes: &[u8], initial: u64) -> u64 {
    let mut total = initial;
    let mut blocks = bytes.chunks_exact(64);
    for block in &mut blocks {
        // Independent lanes, so that the compiler uses vector registers; a u32 in a u64 lane cannot overflow here.
        let mut lanes = [0u64; 4];
        for (i, word) in block.chunks_exact(4).enumerate() {
            let word: [u8; 4] = word.try_into().expect("chunks of four");
            lanes[i % 4] += u64::from(u32::from_ne_bytes(word));
        }
        total += lanes.iter().sum::<u64>();
    }
    let mut words = blocks.remainder().chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// Folds a sum to 16 bits.
pub(super) fn fold(sum: u64) -> u16 {
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    u16::try_from(folded).expect("folded to 16 bits")
}

/// Sum of the pseudo header: the addresses as they stand in the IP header, protocol and upper-layer length.
pub(super) fn pseudo_sum(addresses: &[u8], protocol: u8, len: usize) -> u64 {
    let len = u16::try_from(len).expect("an upper-layer packet is below 64 KiB");
    let words = [0, protocol, len.to_be_bytes()[0], len.to_be_bytes()[1]];
    sum(&words, sum(addresses, 0))
}

/// Writes the checksum of an IPv4 header into it.
pub(super) fn write_ipv4_header(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !fold(sum(header, 0));
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
}

#[cfg(test)]
pub(super) mod reference {
    /// RFC 1071 as its text reads: big-endian words, one at a time.
    pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
        let bytes = parts.concat();
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum += word;
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_fast_sum_agrees_with_the_plain_one(bytes in proptest::collection::vec(0u8.., 0..400)) {
            let fast = !fold(sum(&bytes, 0));
            proptest::prop_assert_eq!(u16::from_be_bytes(fast.to_ne_bytes()), reference::checksum(&[&bytes]));
        }
    }

    #[test]
    fn the_largest_packet_of_ones_does_not_overflow() {
        assert_eq!(fold(sum(&[0xff; 65_536], u64::from(u32::MAX))), 0xffff);
    }
}
