//! What goes to clients: packets of the inner network, and what other gateways relay.

use std::net::IpAddr;

use jump_crypto::ids::SessionId;
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, RecordHeader};
use jump_session::frame::MTU_MAX;
use jump_session::gateway::Nanos;
use jump_transport::tun::{TOO_BIG_LEN_MAX, ecn_of, fragment_ipv4, packet_too_big};

use super::anchors::Exit;
use super::egress::Exits;
use super::inner::{self, InnerHeader};
use super::links::{Kind, Links, SOURCE_LEN, decode_source};
use super::parking::Packets;
use super::policy::Way;
use super::route::{NodeRef, Target};
use super::session::{Entry, Session};
use super::uplink::{Arrival, deliver, refusal};
use super::{Count, Counters, DataPlane, DropReason, Place, Tick, Wire, seal_to_client};

impl DataPlane {
    /// A packet of the inner network. The caller has checked the guard for the batch.
    pub fn handle_inner<W: Wire>(&mut self, tick: Tick, packet: &[u8], wire: &mut W) {
        let Some(header) = InnerHeader::parse(packet) else {
            return self.counters.drop(DropReason::InnerMalformed);
        };
        self.send_down(tick, header, packet, Kind::InnerPacket, wire);
    }

    /// Sends `packet` towards the client with its inner destination: sealed to it, relayed to its owner as `kind`, or
    /// parked until there is one.
    fn send_down<W: Wire>(
        &mut self,
        tick: Tick,
        header: InnerHeader,
        packet: &[u8],
        kind: Kind,
        wire: &mut W,
    ) {
        let destination = header.destination;
        match self.routes.get(destination).map(|route| route.target) {
            Some(Target::Local(local)) => self.send_to_client(tick, local, header.source, packet, wire),
            Some(Target::Node(node)) => match self.links.get_mut(node) {
                Some(link) => {
                    if link.send(kind, &[], packet, wire, &mut self.counters) {
                        self.counters.add(Count::RelayedOut);
                    }
                }
                // The owner's run is over: wait for the next owner.
                None => self.park(Place::Down(destination), packet, tick.now),
            },
            Some(Target::Nobody) => self.park(Place::Down(destination), packet, tick.now),
            None if !self.routes.complete && self.routes.in_pools(destination) => {
                self.park(Place::Down(destination), packet, tick.now);
            }
            None => self.counters.drop(DropReason::NoRoute),
        }
    }

    fn send_to_client<W: Wire>(
        &mut self,
        tick: Tick,
        local: u32,
        source: IpAddr,
        packet: &[u8],
        wire: &mut W,
    ) {
        let Some(Entry::Session(session)) = self.entries.get_mut(local) else {
            return self.counters.drop(DropReason::NotActive);
        };
        if !session.machine.forwards() {
            return self.counters.drop(DropReason::NotActive);
        }
        // What a device may not reach does not reach it either; routers on the way may still say what went wrong.
        if !session.may_reach(source)
            && !inner::quoted_destination(packet).is_some_and(|asked| session.may_reach(asked))
        {
            return self.counters.drop(DropReason::InnerDestination);
        }
        if packet.len() > usize::from(session.machine.mtu()) {
            return send_too_big(session, packet, tick.now, &mut self.links, wire, &mut self.counters);
        }
        if !session.takes(Way::ToClient, packet.len(), tick.now) {
            return self.counters.drop(DropReason::RateLimit);
        }
        let sent = if session.machine.has_candidate() {
            seal_to_both(session, packet, wire, &mut self.counters)
        } else {
            let path = session.machine.path();
            seal_to_client(&mut session.sealing, Content::Packet, path, packet, wire, &mut self.counters)
        };
        if sent {
            self.counters.add(Count::PacketsDown);
            self.counters.add_many(Count::BytesDown, packet.len() as u64);
            session.traffic.packets_down += 1;
            session.traffic.bytes_down += packet.len() as u64;
        }
    }

    pub(super) fn park(&mut self, place: Place, packet: &[u8], now: Nanos) {
        match self.parking.park(place, packet, now) {
            Ok(()) => self.counters.add(Count::Parked),
            Err(reason) => self.counters.drop(reason),
        }
    }

    /// A datagram on the gateways' socket. The caller has checked the guard for the batch.
    pub fn handle_mesh<W: Wire>(&mut self, tick: Tick, datagram: &mut [u8], wire: &mut W) {
        let Some(header) = RecordHeader::parse_mesh(datagram) else {
            return self.counters.drop(DropReason::Malformed);
        };
        let Some(link) = self.links.by_number_mut(header.receiver.node()) else {
            return self.counters.drop(DropReason::UnknownNode);
        };
        let from = link.node;
        let opened = match link.opening.open(datagram) {
            Ok(opened) => opened,
            Err(error) => return self.counters.drop(refusal(error)),
        };
        let Some((kind, body)) = opened.plaintext.split_first_mut() else {
            return self.counters.drop(DropReason::Malformed);
        };
        match Kind::of(*kind) {
            Some(kind @ (Kind::InnerPacket | Kind::ForwardedPacket)) => {
                self.handle_relayed_packet(tick, kind, body, wire);
            }
            Some(Kind::UplinkPacket) => self.handle_relayed_uplink(tick, body, wire),
            Some(Kind::AnchoredPacket) => self.handle_anchored_packet(tick, from, body, wire),
            Some(Kind::Anchors) => self.handle_anchors(tick, from, body, wire),
            Some(Kind::StrayRecord) => match body.split_first_chunk_mut::<SOURCE_LEN>() {
                Some((source, record)) => match decode_source(source) {
                    Some(source) => {
                        self.counters.add(Count::StraysIn);
                        self.handle_record(tick, source.into(), record, Arrival::Relayed, wire);
                    }
                    None => self.counters.drop(DropReason::Malformed),
                },
                None => self.counters.drop(DropReason::Malformed),
            },
            None => self.counters.drop(DropReason::Malformed),
        }
    }

    /// An inner packet that another gateway relayed: forwarded only by the active owner. An owner-to-be keeps it for a
    /// moment; an old owner hands it on once.
    fn handle_relayed_packet<W: Wire>(&mut self, tick: Tick, kind: Kind, packet: &[u8], wire: &mut W) {
        let Some(header) = InnerHeader::parse(packet) else {
            return self.counters.drop(DropReason::InnerMalformed);
        };
        match self.routes.get(header.destination).map(|route| route.target) {
            Some(Target::Local(local)) => {
                self.counters.add(Count::RelayedIn);
                self.send_to_client(tick, local, header.source, packet, wire);
            }
            Some(Target::Node(_)) if kind == Kind::InnerPacket => {
                self.send_down(tick, header, packet, Kind::ForwardedPacket, wire);
            }
            // Whoever handed it on may have heard of this gateway's ownership before the gateway itself.
            Some(Target::Nobody | Target::Node(_)) => {
                self.park(Place::Down(header.destination), packet, tick.now);
            }
            None => self.counters.drop(DropReason::NotOwner),
        }
    }

    /// An inner packet from a client that its old owner opened.
    fn handle_relayed_uplink<W: Wire>(&mut self, tick: Tick, packet: &[u8], wire: &mut W) {
        let Some(header) = InnerHeader::parse(packet) else {
            return self.counters.drop(DropReason::InnerMalformed);
        };
        match self.routes.get(header.source).map(|route| route.target) {
            Some(Target::Local(local)) => {
                if let Some(Entry::Session(session)) = self.entries.get_mut(local) {
                    self.counters.add(Count::RelayedIn);
                    let exits = Exits { links: &mut self.links, parking: &mut self.parking };
                    deliver(session, packet, tick.now, exits, wire, &mut self.counters);
                }
            }
            // Accepted in the store, not yet here: the old owner may have heard of it before this one.
            Some(Target::Nobody | Target::Node(_)) => self.park(Place::Up(header.source), packet, tick.now),
            None => self.counters.drop(DropReason::NotOwner),
        }
    }

    /// The way to `address` has changed: sends on what waited for it.
    pub(super) fn release_parked<W: Wire>(&mut self, tick: Tick, address: IpAddr, wire: &mut W) {
        if let Some(packets) = self.parking.take(Place::Down(address)) {
            packets.for_each(|packet| {
                if let Some(header) = InnerHeader::parse(packet) {
                    self.send_down(tick, header, packet, Kind::ForwardedPacket, wire);
                }
            });
        }
        if let Some(packets) = self.parking.take(Place::Up(address)) {
            self.release_uplink(tick, address, &packets, wire);
        }
    }

    pub(super) fn release_uplink<W: Wire>(
        &mut self,
        tick: Tick,
        address: IpAddr,
        packets: &Packets,
        wire: &mut W,
    ) {
        match self.routes.get(address).map(|route| route.target) {
            Some(Target::Local(local)) => {
                if let Some(Entry::Session(session)) = self.entries.get_mut(local) {
                    packets.for_each(|packet| {
                        let exits = Exits { links: &mut self.links, parking: &mut self.parking };
                        deliver(session, packet, tick.now, exits, wire, &mut self.counters);
                    });
                }
            }
            Some(Target::Node(node)) => {
                if let Some(link) = self.links.get_mut(node) {
                    packets.for_each(|packet| {
                        if link.send(Kind::UplinkPacket, &[], packet, wire, &mut self.counters) {
                            self.counters.add(Count::RelayedOut);
                        }
                    });
                }
            }
            Some(Target::Nobody) | None => self.counters.drop(DropReason::NoRoute),
        }
    }

    /// A link came up: sends on what waited for that owner.
    pub(super) fn release_parked_for<W: Wire>(&mut self, tick: Tick, node: NodeRef, wire: &mut W) {
        let waiting: Vec<IpAddr> = self
            .parking
            .places()
            .filter_map(|place| match place {
                Place::Down(address) | Place::Up(address) => Some(address),
                Place::Claim(_) => None,
            })
            .filter(|address| {
                self.routes.get(*address).is_some_and(|route| route.target == Target::Node(node))
            })
            .collect();
        for address in waiting {
            self.release_parked(tick, address, wire);
        }
    }

    /// Packets that rode along with a claim go out once it is a session.
    pub(super) fn release_claim_packets<W: Wire>(&mut self, local: u32, tick: Tick, wire: &mut W) {
        if let Some(packets) = self.parking.take(Place::Claim(local))
            && let Some(Entry::Session(session)) = self.entries.get_mut(local)
        {
            packets.for_each(|packet| {
                let exits = Exits { links: &mut self.links, parking: &mut self.parking };
                deliver(session, packet, tick.now, exits, wire, &mut self.counters);
            });
        }
    }

    /// The session that this data plane carries, by its id.
    pub(super) fn carried(&self, session: SessionId) -> Option<u32> {
        self.by_session.get(&session).copied()
    }
}

/// A packet that is larger than the client takes: cut, where it may be; otherwise dropped, and its sender is told.
#[cold]
fn send_too_big<W: Wire>(
    session: &mut Session,
    packet: &[u8],
    now: Nanos,
    links: &mut Links,
    wire: &mut W,
    counters: &mut Counters,
) {
    let (mtu, path) = (session.machine.mtu(), session.machine.path());
    let sealing = &mut session.sealing;
    let mut fragment = [0; MTU_MAX as usize];
    let cut = fragment_ipv4(packet, mtu, &mut fragment, &mut |fragment| {
        seal_to_client(sealing, Content::Packet, path, fragment, wire, counters);
    });
    if cut {
        counters.add(Count::Fragmented);
        counters.add(Count::PacketsDown);
        counters.add_many(Count::BytesDown, packet.len() as u64);
        session.traffic.packets_down += 1;
        session.traffic.bytes_down += packet.len() as u64;
        return;
    }
    counters.drop(DropReason::TooBig);
    let mut error = [0; TOO_BIG_LEN_MAX];
    if let Some(len) = packet_too_big(packet, mtu, &mut error)
        && session.errors.take(now)
    {
        let error = &error[..len];
        // Whoever translates the flow translates what is said about it.
        let link = match (session.anchors.as_mut(), InnerHeader::parse(error)) {
            (Some(anchors), Some(header)) => match anchors.exit(error, &header, now, links) {
                Exit::At(link) => Some(link),
                Exit::Here | Exit::Unknown => None,
            },
            (Some(_), None) | (None, _) => None,
        };
        if let Some(link) = link {
            link.send(Kind::AnchoredPacket, &[], error, wire, counters);
        } else {
            wire.to_inner(error);
        }
        counters.add(Count::TooBigTold);
    }
}

/// Seals a packet to a client whose new path has not proved itself yet: to the old path, and the same record to the new
/// one within its budget. Whichever the client receives first counts; a replay window drops the other.
fn seal_to_both<W: Wire>(
    session: &mut Session,
    packet: &[u8],
    wire: &mut W,
    counters: &mut Counters,
) -> bool {
    let (old, len) = (session.machine.path(), packet.len() + OVERHEAD);
    let copy = (len <= COPY_LEN_MAX).then(|| session.machine.copy_to(len)).flatten();
    let Some(new) = copy else {
        return seal_to_client(&mut session.sealing, Content::Packet, old, packet, wire, counters);
    };
    let mut record = [0; COPY_LEN_MAX];
    let record = &mut record[..len];
    record[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(packet);
    if session.sealing.seal(Content::Packet, record, packet.len()).is_err() {
        counters.drop(DropReason::SealLimit);
        return false;
    }
    for path in [old, new] {
        wire.mark_next(ecn_of(packet));
        wire.to_client(path, len).copy_from_slice(record);
    }
    counters.add(Count::Copied);
    true
}

/// The longest record that is sent over two paths, in bytes.
const COPY_LEN_MAX: usize = 2048;
