//! The layouts of `AttachInit` and `AttachReply` (`docs/protocol.md` §3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{AttachIntent, HYBRID_INIT_LEN, HandshakeError, Holding, INIT_LEN, ROSTER_MAX, Suite};
use crate::codec::{Malformed, Reader};
use crate::cookie::{HINT_LEN, MACS_LEN};
use crate::ids::{AttachSeq, AttemptId, Epoch, ReceiverIndex, SessionId};
use crate::kem::{KemPublic, PUBLIC_LEN};
use crate::keys::{ClusterKeyId, GrantKeyId};
use crate::wire::{DatagramType, VERSION};

/// Bytes before Noise message 1.
pub(super) const INIT_HEADER_LEN: usize = 12;
/// What an `AttachInit` holds beside the payload: header, ephemeral key, sealed static key, tag and MACs.
const INIT_FRAME_LEN: usize = INIT_HEADER_LEN + 32 + (32 + 16) + 16 + MACS_LEN;
/// The longest payload of Noise message 1.
pub(super) const INIT_PAYLOAD_LEN_MAX: usize = HYBRID_INIT_LEN - INIT_FRAME_LEN;
/// Length of an encoded intent.
const INTENT_LEN: usize = 80;
/// Bytes before Noise message 2.
pub(super) const REPLY_HEADER_LEN: usize = 16;
/// The longest payload of Noise message 2.
pub(super) const REPLY_PAYLOAD_LEN_MAX: usize = reply_payload_len(ROSTER_MAX);

const PROLOGUE: &[u8; 22] = b"jumping-vpn attach v1\0";
const PAYLOAD_VERSION: u8 = 1;
const ADDRESS_LEN: usize = 19;
const FLAG_SESSION: u8 = 1;
const FLAG_REKEY: u8 = 2;

/// The clear part of an `AttachInit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InitHeader {
    pub(super) suite: Suite,
    pub(super) cluster: ClusterKeyId,
    pub(super) index: ReceiverIndex,
}

impl InitHeader {
    // protocol.md §3.1
    pub(super) fn encode(&self) -> [u8; INIT_HEADER_LEN] {
        let mut out = [0; INIT_HEADER_LEN];
        out[..4].copy_from_slice(&[DatagramType::AttachInit as u8, VERSION, self.suite as u8, 0]);
        out[4..8].copy_from_slice(&self.cluster.0);
        out[8..].copy_from_slice(&self.index.0.to_be_bytes());
        out
    }

    /// Reads the header of a whole datagram, which must have the length of its suite.
    pub(super) fn decode(datagram: &[u8]) -> Result<Self, HandshakeError> {
        if !is_init_len(datagram.len()) {
            return Err(HandshakeError::Malformed);
        }
        let mut reader = Reader::new(datagram);
        reader.expect(DatagramType::AttachInit as u8)?;
        reader.expect(VERSION)?;
        let suite = Suite::from_wire(reader.u8()?).ok_or(HandshakeError::UnsupportedSuite)?;
        if datagram.len() != suite.init_len() {
            return Err(HandshakeError::Malformed);
        }
        reader.expect(0)?;
        Ok(Self { suite, cluster: ClusterKeyId(reader.array()?), index: ReceiverIndex(reader.u32()?) })
    }

    /// The Noise prologue: both sides must agree on every byte of the header, the version, suite and cluster key
    /// id among them (protocol.md §3.3).
    pub(super) fn prologue(&self) -> [u8; PROLOGUE.len() + INIT_HEADER_LEN] {
        let mut out = [0; PROLOGUE.len() + INIT_HEADER_LEN];
        let (label, header) = out.split_at_mut(PROLOGUE.len());
        label.copy_from_slice(PROLOGUE);
        header.copy_from_slice(&self.encode());
        out
    }
}

/// True for the lengths that an `AttachInit` can have.
pub fn is_init_len(len: usize) -> bool {
    len == INIT_LEN || len == HYBRID_INIT_LEN
}

/// Length of the payload of Noise message 1: what the header, the keys, the tags and the MACs leave.
pub(super) const fn init_payload_len(suite: Suite) -> usize {
    suite.init_len() - INIT_FRAME_LEN
}

/// Length of the payload of Noise message 2 with so many addresses.
pub(super) const fn reply_payload_len(roster: usize) -> usize {
    2 + HINT_LEN + roster * ADDRESS_LEN
}

/// Writes the payload of Noise message 1 over `out`, which is all zero: the intent, then the encapsulation key.
// protocol.md §3.2, §3.8
pub(super) fn encode_init_payload(intent: &AttachIntent, kem: Option<&KemPublic>, out: &mut [u8]) {
    out[..INTENT_LEN].copy_from_slice(&intent.encode());
    if let Some(kem) = kem {
        out[INTENT_LEN..INTENT_LEN + PUBLIC_LEN].copy_from_slice(kem);
    }
}

/// Reads the payload of Noise message 1.
pub(super) fn decode_init_payload(
    suite: Suite,
    payload: &[u8],
) -> Result<(AttachIntent, Option<KemPublic>), Malformed> {
    let mut reader = Reader::new(payload);
    let intent = AttachIntent::decode(reader.bytes(INTENT_LEN)?)?;
    let kem = if suite.is_hybrid() { Some(reader.array()?) } else { None };
    reader.zeros_to_end()?;
    Ok((intent, kem))
}

impl AttachIntent {
    // protocol.md §3.2
    fn encode(&self) -> [u8; INTENT_LEN] {
        let mut out = [0; INTENT_LEN];
        out[0] = PAYLOAD_VERSION;
        out[1] =
            if self.session.is_some() { FLAG_SESSION } else { 0 } | if self.rekey { FLAG_REKEY } else { 0 };
        out[2..4].copy_from_slice(&self.reason.to_be_bytes());
        out[4..8].copy_from_slice(&self.capabilities.to_be_bytes());
        out[8..24].copy_from_slice(&self.session.map_or([0; 16], SessionId::to_bytes));
        out[24..32].copy_from_slice(&self.attach_seq.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.last_epoch.0.to_be_bytes());
        out[40..56].copy_from_slice(&self.attempt.to_bytes());
        out[56..64].copy_from_slice(&self.holding.key_set.to_be_bytes());
        for (slot, id) in out[64..].chunks_exact_mut(4).zip(&self.holding.grant_keys) {
            slot.copy_from_slice(&id.0);
        }
        out
    }

    fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        reader.expect(PAYLOAD_VERSION)?;
        let flags = reader.u8()?;
        if flags & !(FLAG_SESSION | FLAG_REKEY) != 0 {
            return Err(Malformed);
        }
        let reason = reader.u16()?;
        let capabilities = reader.u32()?;
        let session: [u8; 16] = reader.array()?;
        let attach_seq = AttachSeq(reader.u64()?);
        let last_epoch = Epoch(reader.u64()?);
        let attempt = AttemptId::from_bytes(reader.array()?);
        let mut holding = Holding { key_set: reader.u64()?, ..Holding::default() };
        for slot in &mut holding.grant_keys {
            *slot = GrantKeyId(reader.array()?);
        }
        reader.end()?;
        let session = match flags & FLAG_SESSION != 0 {
            true => Some(SessionId::from_bytes(session)),
            false if session == [0; 16] => None,
            false => return Err(Malformed),
        };
        Ok(Self {
            session,
            attach_seq,
            attempt,
            last_epoch,
            reason,
            capabilities,
            rekey: flags & FLAG_REKEY != 0,
            holding,
        })
    }
}

/// The clear part of an `AttachReply`; additional data of the sealed node proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyHeader {
    pub(super) suite: Suite,
    pub(super) receiver: ReceiverIndex,
    pub(super) sender: ReceiverIndex,
    pub(super) noise_len: u16,
}

impl ReplyHeader {
    // protocol.md §3.5
    pub(super) fn encode(&self) -> [u8; REPLY_HEADER_LEN] {
        let mut out = [0; REPLY_HEADER_LEN];
        out[..4].copy_from_slice(&[DatagramType::AttachReply as u8, VERSION, self.suite as u8, 0]);
        out[4..8].copy_from_slice(&self.receiver.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.sender.0.to_be_bytes());
        out[12..14].copy_from_slice(&self.noise_len.to_be_bytes());
        out
    }

    pub(super) fn decode(datagram: &[u8]) -> Result<Self, HandshakeError> {
        let mut reader = Reader::new(datagram);
        reader.expect(DatagramType::AttachReply as u8)?;
        reader.expect(VERSION)?;
        let suite = Suite::from_wire(reader.u8()?).ok_or(HandshakeError::UnsupportedSuite)?;
        reader.expect(0)?;
        let receiver = ReceiverIndex(reader.u32()?);
        let sender = ReceiverIndex(reader.u32()?);
        let noise_len = reader.u16()?;
        reader.expect(0)?;
        reader.expect(0)?;
        Ok(Self { suite, receiver, sender, noise_len })
    }
}

/// The payload of Noise message 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyPayload {
    pub(super) hint: [u8; HINT_LEN],
    pub(super) roster: Vec<SocketAddr>,
}

impl ReplyPayload {
    // protocol.md §3.6
    /// Encodes the first `roster_max` addresses.
    pub(super) fn encode(&self, roster_max: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(REPLY_PAYLOAD_LEN_MAX);
        out.extend_from_slice(&[PAYLOAD_VERSION, 0]);
        out.extend_from_slice(&self.hint);
        for address in self.roster.iter().filter(|address| is_reachable(address)).take(roster_max) {
            out[1] += 1;
            let (family, ip) = match address.ip() {
                IpAddr::V4(ip) => (4, ip.to_ipv6_mapped()),
                IpAddr::V6(ip) => (6, ip),
            };
            out.push(family);
            out.extend_from_slice(&ip.octets());
            out.extend_from_slice(&address.port().to_be_bytes());
        }
        out
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        reader.expect(PAYLOAD_VERSION)?;
        let count = usize::from(reader.u8()?);
        if count > ROSTER_MAX {
            return Err(Malformed);
        }
        let hint = reader.array()?;
        let roster = (0..count).map(|_| read_address(&mut reader)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { hint, roster })
    }
}

fn read_address(reader: &mut Reader<'_>) -> Result<SocketAddr, Malformed> {
    let family = reader.u8()?;
    let ip = Ipv6Addr::from(reader.array::<16>()?);
    let port = reader.u16()?;
    let ip = match family {
        4 => IpAddr::V4(ip.to_ipv4_mapped().ok_or(Malformed)?),
        6 => IpAddr::V6(ip),
        _ => return Err(Malformed),
    };
    let address = SocketAddr::new(ip, port);
    if is_reachable(&address) { Ok(address) } else { Err(Malformed) }
}

/// False for addresses that no gateway can have.
fn is_reachable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

impl From<Malformed> for HandshakeError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn intents() -> impl Strategy<Value = AttachIntent> {
        let ids = (any::<Option<[u8; 16]>>(), any::<[u8; 16]>());
        let numbers = (any::<u64>(), any::<u64>(), any::<u16>(), any::<u32>(), any::<bool>());
        let holding = (any::<u64>(), any::<[[u8; 4]; Holding::GRANT_KEYS_MAX]>());
        (ids, numbers, holding).prop_map(|((session, attempt), numbers, (key_set, grant_keys))| {
            let (seq, epoch, reason, capabilities, rekey) = numbers;
            AttachIntent {
                session: session.map(SessionId::from_bytes),
                attach_seq: AttachSeq(seq),
                attempt: AttemptId::from_bytes(attempt),
                last_epoch: Epoch(epoch),
                reason,
                capabilities,
                rekey,
                holding: Holding { key_set, grant_keys: grant_keys.map(GrantKeyId) },
            }
        })
    }

    fn plain(suite: Suite) -> Vec<u8> {
        let intent = AttachIntent {
            session: None,
            attach_seq: AttachSeq(1),
            attempt: AttemptId::from_bytes([1; 16]),
            last_epoch: Epoch(0),
            reason: 0,
            capabilities: 0,
            rekey: false,
            holding: Holding::default(),
        };
        let mut payload = vec![0; init_payload_len(suite)];
        encode_init_payload(&intent, suite.is_hybrid().then_some(&[7; PUBLIC_LEN]), &mut payload);
        payload
    }

    #[test]
    fn an_intent_of_another_version_or_with_unknown_flags_or_stray_bytes_is_refused() {
        for suite in Suite::ALL {
            let good = plain(suite);
            let (_, kem) = decode_init_payload(suite, &good).unwrap();
            assert_eq!(kem, suite.is_hybrid().then_some([7; PUBLIC_LEN]));
            let padding = if suite.is_hybrid() { INTENT_LEN + PUBLIC_LEN } else { INTENT_LEN };
            for (at, byte, what) in [
                (0, 2, "version"),
                (1, 4, "flag"),
                (8, 1, "session id without its flag"),
                (padding, 1, "padding"),
                (good.len() - 1, 1, "padding"),
            ] {
                let mut payload = good.clone();
                payload[at] = byte;
                assert_eq!(decode_init_payload(suite, &payload), Err(Malformed), "{what}");
            }
            for len in 0..padding {
                assert_eq!(decode_init_payload(suite, &good[..len]), Err(Malformed), "cut at {len}");
            }
        }
    }

    #[test]
    fn unknown_capabilities_are_ignored() {
        let mut payload = plain(Suite::AesGcmSha256);
        payload[4..8].fill(0xff);
        let (intent, _) = decode_init_payload(Suite::AesGcmSha256, &payload).unwrap();
        assert_eq!(intent.capabilities, u32::MAX);
    }

    #[test]
    fn addresses_that_no_gateway_can_have_are_neither_sent_nor_taken() {
        let good: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let bad = ["192.0.2.1:0", "0.0.0.0:1", "[::]:1", "255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1"];
        for bad in bad.map(|text| text.parse::<SocketAddr>().unwrap()) {
            let payload = ReplyPayload { hint: [1; HINT_LEN], roster: vec![bad, good] };
            assert_eq!(ReplyPayload::decode(&payload.encode(ROSTER_MAX)).unwrap().roster, [good]);
            let mut forced = ReplyPayload { hint: [1; HINT_LEN], roster: vec![good] }.encode(ROSTER_MAX);
            let ip = match bad.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            forced[2 + HINT_LEN] = if bad.is_ipv4() { 4 } else { 6 };
            forced[3 + HINT_LEN..19 + HINT_LEN].copy_from_slice(&ip.octets());
            forced[19 + HINT_LEN..].copy_from_slice(&bad.port().to_be_bytes());
            assert_eq!(ReplyPayload::decode(&forced), Err(Malformed), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_intent_survives_its_encoding(intent in intents()) {
            prop_assert_eq!(AttachIntent::decode(&intent.encode()), Ok(intent));
        }

        #[test]
        fn payloads_that_decode_are_the_only_encoding_of_what_they_say(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            count in 0u8..10,
        ) {
            if bytes.len() > 2 {
                bytes[..2].copy_from_slice(&[PAYLOAD_VERSION, count]);
            }
            if let Ok(payload) = ReplyPayload::decode(&bytes) {
                prop_assert_eq!(payload.encode(ROSTER_MAX), bytes);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            let _ = ReplyHeader::decode(&bytes);
            for suite in Suite::ALL {
                let _ = decode_init_payload(suite, &bytes);
                let mut init = bytes.clone();
                init.resize(suite.init_len(), 0);
                let _ = InitHeader::decode(&init);
            }
        }
    }
}
