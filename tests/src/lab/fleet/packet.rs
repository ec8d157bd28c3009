//! The inner packet that a virtual device sends through its tunnel: IPv4, UDP, and who sent it when over which path.

use std::net::{Ipv4Addr, SocketAddrV4};

/// IPv4 header, UDP header, and the fields below.
pub const LEN_MIN: usize = IP + UDP + FIELDS;
const IP: usize = 20;
const UDP: usize = 8;
const FIELDS: usize = 36;
const MAGIC: u32 = 0x6a76_6c62;
/// The port that devices send from.
const SOURCE_PORT: u16 = 40_000;
const PROTOCOL_UDP: u8 = 17;

/// What a probe packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The device.
    pub device: u32,
    /// The path that the packet was sealed for; with the device's log this gives gateway and epoch.
    pub path: u32,
    /// Counts up per device.
    pub serial: u64,
    /// When it was made, in nanoseconds of the device's clock.
    pub sent_at: u64,
    /// The epoch that the device had accepted by then.
    pub epoch: u64,
}

impl Probe {
    /// Writes the whole inner packet of `length` bytes (at least [`LEN_MIN`]) to the start of `packet`.
    ///
    /// # Panics
    /// When `packet` is shorter than `length`, or `length` than [`LEN_MIN`].
    pub fn write(&self, packet: &mut [u8], length: usize, from: Ipv4Addr, to: SocketAddrV4) {
        let packet = &mut packet[..length];
        packet.fill(0);
        let total = u16::try_from(length).unwrap_or(u16::MAX);
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = PROTOCOL_UDP;
        packet[12..16].copy_from_slice(&from.octets());
        packet[16..20].copy_from_slice(&to.ip().octets());
        let sum = checksum(&packet[..IP]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[IP..IP + 2].copy_from_slice(&SOURCE_PORT.to_be_bytes());
        packet[IP + 2..IP + 4].copy_from_slice(&to.port().to_be_bytes());
        packet[IP + 4..IP + 6].copy_from_slice(&(total - 20).to_be_bytes());
        let fields = &mut packet[IP + UDP..];
        fields[..4].copy_from_slice(&MAGIC.to_be_bytes());
        fields[4..8].copy_from_slice(&self.device.to_be_bytes());
        fields[8..12].copy_from_slice(&self.path.to_be_bytes());
        fields[12..20].copy_from_slice(&self.serial.to_be_bytes());
        fields[20..28].copy_from_slice(&self.sent_at.to_be_bytes());
        fields[28..36].copy_from_slice(&self.epoch.to_be_bytes());
    }

    /// Reads an inner packet: the probe itself or its echo.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        (packet[0] >> 4 == 4 && *packet.get(9)? == PROTOCOL_UDP).then_some(())?;
        Self::of_payload(packet.get(header + UDP..)?)
    }

    /// Reads the payload of the UDP datagram.
    pub fn of_payload(fields: &[u8]) -> Option<Self> {
        let word = |at: usize| fields.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let long = |at: usize| fields.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        (word(0)? == MAGIC).then_some(())?;
        Some(Self {
            device: word(4)?,
            path: word(8)?,
            serial: long(12)?,
            sent_at: long(20)?,
            epoch: long(28)?,
        })
    }
}

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded to sixteen bits above.
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_back_as_written_and_its_header_sums_to_zero() {
        let probe = Probe { device: 7, path: 3, serial: 1 << 40, sent_at: 99, epoch: 2 };
        let mut packet = [0u8; 128];
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 91, 0, 80), 7);
        probe.write(&mut packet, 100, Ipv4Addr::new(10, 77, 1, 2), to);
        assert_eq!(Probe::of_packet(&packet[..100]), Some(probe));
        assert_eq!(checksum(&packet[..IP]), 0);
        assert_eq!(Probe::of_packet(&packet[..40]), None);
        packet[IP + UDP] ^= 1;
        assert_eq!(Probe::of_packet(&packet[..100]), None);
    }
}
