//! Packets that wait, bounded, for an owner: during a handover, before control has answered a claim, and before the
//! first snapshot of bindings.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use jump_session::gateway::Nanos;

use super::counters::DropReason;

/// Most packets that wait for one claim: somewhat more than a client lets ride along.
const CLAIM_PACKETS_MAX: usize = 64;
/// Most bytes that wait in one place, however little waits elsewhere: 160 ms of a stream of 100 Mbit/s.
pub const PLACE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What a place may take while much waits elsewhere, in bytes; and the most that waits for one claim.
const PLACE_BYTES_MIN: usize = 128 * 1024;
/// Most bytes that wait in all places together.
pub const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A place takes at most this part of what is free.
const PLACE_SHARE: usize = 32;
/// What a packet costs besides its bytes: where it ends.
const PACKET_COST: usize = size_of::<usize>();
/// Most of these that packets of unanswered claims may take: whoever makes handshakes can send them.
const CLAIMS_BYTES_MAX: usize = TOTAL_BYTES_MAX / 4;
/// How long a packet waits at most, in nanoseconds.
pub const WAIT_MAX: Nanos = 2_000_000_000;

/// Where a packet waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// To the client with this inner address.
    Down(IpAddr),
    /// From the client with this inner address, received by an old owner.
    Up(IpAddr),
    /// From a client whose claim waits for control: the local index of the handshake.
    Claim(u32),
}

/// Packets in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    expires: Nanos,
}

impl Packets {
    fn cost(&self) -> usize {
        self.bytes.len() + self.ends.len() * PACKET_COST
    }

    /// Calls `each` for every packet.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8])) {
        let mut start = 0;
        for end in &self.ends {
            each(&self.bytes[start..*end]);
            start = *end;
        }
    }
}

/// All waiting packets.
#[derive(Debug, Default)]
pub(crate) struct ParkingLot {
    places: HashMap<Place, Packets>,
    order: VecDeque<(Nanos, Place)>,
    bytes: usize,
    /// The part of `bytes` that waits for claims.
    claims_bytes: usize,
}

impl ParkingLot {
    /// Lets a copy of `packet` wait at `place`.
    pub(crate) fn park(&mut self, place: Place, packet: &[u8], now: Nanos) -> Result<(), DropReason> {
        let is_claim = matches!(place, Place::Claim(_));
        let cost = packet.len() + PACKET_COST;
        if self.bytes + cost > TOTAL_BYTES_MAX || (is_claim && self.claims_bytes + cost > CLAIMS_BYTES_MAX) {
            return Err(DropReason::ParkingFull);
        }
        let packets = self.places.entry(place).or_insert_with(|| {
            let expires = now.saturating_add(WAIT_MAX);
            self.order.push_back((expires, place));
            Packets { expires, ..Packets::default() }
        });
        let free = TOTAL_BYTES_MAX - (self.bytes - packets.cost());
        let room = match place {
            Place::Claim(_) => PLACE_BYTES_MIN,
            Place::Down(_) | Place::Up(_) => (free / PLACE_SHARE).clamp(PLACE_BYTES_MIN, PLACE_BYTES_MAX),
        };
        if packets.cost() + cost > room || (is_claim && packets.ends.len() >= CLAIM_PACKETS_MAX) {
            return Err(DropReason::ParkingFull);
        }
        packets.bytes.extend_from_slice(packet);
        packets.ends.push(packets.bytes.len());
        self.bytes += cost;
        self.claims_bytes += if is_claim { cost } else { 0 };
        Ok(())
    }

    /// Takes what waits at `place`.
    pub(crate) fn take(&mut self, place: Place) -> Option<Packets> {
        if self.places.is_empty() {
            return None;
        }
        let packets = self.places.remove(&place)?;
        self.bytes -= packets.cost();
        if let Place::Claim(_) = place {
            self.claims_bytes -= packets.cost();
        }
        Some(packets)
    }

    /// Forgets what has waited too long; returns how many packets.
    pub(crate) fn expire(&mut self, now: Nanos) -> u64 {
        let mut expired = 0;
        while let Some((expires, place)) = self.order.front().copied().filter(|(expires, _)| *expires <= now)
        {
            self.order.pop_front();
            if self.places.get(&place).is_some_and(|packets| packets.expires == expires) {
                expired += self.take(place).map_or(0, |packets| packets.ends.len() as u64);
            }
        }
        expired
    }

    /// The destinations that packets wait for.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.places.keys().copied()
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(n: u8) -> Place {
        Place::Down(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn packets_come_back_once_in_their_order() {
        let mut lot = ParkingLot::default();
        for packet in [&b"one"[..], b"two", b""] {
            lot.park(place(1), packet, 0).unwrap();
        }
        let mut seen = vec![];
        lot.take(place(1)).unwrap().for_each(|packet| seen.push(packet.to_vec()));
        assert_eq!(seen, [b"one".to_vec(), b"two".to_vec(), b"".to_vec()]);
        assert!(lot.take(place(1)).is_none());
        assert_eq!(lot.bytes(), 0);
    }

    #[test]
    fn one_place_holds_no_more_than_its_bound() {
        for (packet, place) in [(&[0; 1200][..], place(1)), (&[0; 1], place(2)), (&[0; 1], Place::Claim(1))] {
            let mut lot = ParkingLot::default();
            let parked = (0..).take_while(|_| lot.park(place, packet, 0).is_ok()).count();
            let expected = match place {
                Place::Claim(_) => CLAIM_PACKETS_MAX,
                Place::Down(_) | Place::Up(_) => PLACE_BYTES_MAX / (packet.len() + PACKET_COST),
            };
            assert_eq!(parked, expected, "{place:?}");
            assert_eq!(lot.park(self::place(3), b"x", 0), Ok(()));
        }
    }

    #[test]
    fn a_few_places_leave_room_for_many() {
        let mut lot = ParkingLot::default();
        let packet = [0; 1200];
        let full: Vec<usize> = (0..=250u8)
            .map(|n| (0..).take_while(|_| lot.park(place(n), &packet, 0).is_ok()).count())
            .collect();
        let least = PLACE_BYTES_MIN / (packet.len() + PACKET_COST);
        assert!(full[..100].iter().all(|packets| *packets >= least), "{full:?}");
    }

    #[test]
    fn all_places_together_hold_no_more_than_their_bound() {
        let mut lot = ParkingLot::default();
        let packet = vec![0; 60_000];
        let mut parked = 0;
        for a in 0..=255u8 {
            for _ in 0..40 {
                parked += usize::from(lot.park(place(a), &packet, 0).is_ok());
            }
        }
        assert!(parked * packet.len() <= TOTAL_BYTES_MAX);
        assert!(lot.bytes() <= TOTAL_BYTES_MAX);
    }

    #[test]
    fn packets_of_unanswered_claims_leave_room_for_those_of_sessions() {
        let mut lot = ParkingLot::default();
        let packet = vec![0; 60_000];
        let parked = (0..1000).filter(|n| lot.park(Place::Claim(*n), &packet, 0).is_ok()).count();
        assert!(parked > 0 && parked * packet.len() <= CLAIMS_BYTES_MAX);
        assert_eq!(lot.park(place(1), b"x", 0), Ok(()));
        (0..1000).for_each(|n| drop(lot.take(Place::Claim(n))));
        assert_eq!((lot.claims_bytes, lot.bytes()), (0, 1 + PACKET_COST));
        assert_eq!(lot.park(Place::Claim(1), &packet, 0), Ok(()));
    }

    #[test]
    fn packets_are_forgotten_after_their_time_and_later_ones_get_their_own() {
        let mut lot = ParkingLot::default();
        lot.park(place(1), b"x", 0).unwrap();
        assert!(lot.take(place(1)).is_some());
        lot.park(place(1), b"y", WAIT_MAX / 2).unwrap();
        assert_eq!(lot.expire(WAIT_MAX), 0);
        assert_eq!(lot.expire(WAIT_MAX + WAIT_MAX / 2), 1);
        assert_eq!((lot.bytes(), lot.places().count(), lot.order.len()), (0, 0, 0));
    }
}
