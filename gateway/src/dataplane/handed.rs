//! The list of flows that a gateway tells the session's next owner (`docs/protocol.md` §7.5).

use jump_crypto::ids::{Epoch, Incarnation, NodeNumber, SessionId};

use super::flow::Flow;

/// Most flows of one session that are anchored.
pub const FLOWS_MAX: usize = 1024;
/// Most parts of one list: enough for [`FLOWS_MAX`] flows of IPv6 at [`ANCHORS_MAX`] gateways.
pub(super) const PARTS_MAX: usize = 64;
/// Most gateways at which flows of one session are anchored.
pub(super) const ANCHORS_MAX: usize = 16;
/// Most bytes of flows in one part: every path between gateways carries it whole.
const PART_BYTES_MAX: usize = 1_100;
/// Bytes before the flows.
const HEAD_LEN: usize = 36;

/// The gateway that translates a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnchorName {
    pub(super) number: NodeNumber,
    pub(super) incarnation: Incarnation,
}

/// One part of a list: flows of one session that leave by one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) session: SessionId,
    /// Of the owner that is told.
    pub(super) epoch: Epoch,
    /// Which part, from 0.
    pub(super) number: u8,
    /// How many there are, at least one.
    pub(super) parts: u8,
    pub(super) anchor: AnchorName,
    flows: &'a [u8],
}

impl<'a> Part<'a> {
    /// Reads a part; `None` when it is not exactly one, with at most [`FLOWS_MAX`] flows.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let (session, rest) = body.split_first_chunk::<16>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (&[number, parts], rest) = rest.split_first_chunk::<2>()?;
        let (node, rest) = rest.split_first_chunk::<2>()?;
        let (incarnation, flows) = rest.split_first_chunk::<8>()?;
        let node = u16::from_be_bytes(*node);
        let counted = number < parts && usize::from(parts) <= PARTS_MAX;
        if !counted || !(1..=NodeNumber::MAX.0).contains(&node) {
            return None;
        }
        let (mut rest, mut count) = (flows, 0);
        while !rest.is_empty() {
            (_, rest) = Flow::decode(rest)?;
            count += 1;
        }
        if count > FLOWS_MAX {
            return None;
        }
        let incarnation = Incarnation(u64::from_be_bytes(*incarnation));
        Some(Self {
            session: SessionId::from_bytes(*session),
            epoch: Epoch(u64::from_be_bytes(*epoch)),
            number,
            parts,
            anchor: AnchorName { number: NodeNumber(node), incarnation },
            flows,
        })
    }

    /// The flows, in order.
    pub(super) fn flows(&self) -> impl Iterator<Item = Flow> + use<'a> {
        let mut rest = self.flows;
        std::iter::from_fn(move || {
            let (flow, after) = Flow::decode(rest)?;
            rest = after;
            Some(flow)
        })
    }
}

/// Encodes a list in parts; one without flows when there are none, so that nobody waits for it. What is beyond the bounds is
/// left out, the last first.
pub(super) fn encode(
    session: SessionId,
    epoch: Epoch,
    own: AnchorName,
    flows: &[(Flow, AnchorName)],
) -> Vec<Vec<u8>> {
    let flows = &flows[..flows.len().min(FLOWS_MAX)];
    let mut anchors: Vec<AnchorName> = Vec::new();
    for (_, anchor) in flows {
        if !anchors.contains(anchor) && anchors.len() < ANCHORS_MAX {
            anchors.push(*anchor);
        }
    }
    let head = |anchor: AnchorName| {
        let mut part = Vec::with_capacity(HEAD_LEN + PART_BYTES_MAX);
        part.extend(session.to_bytes());
        part.extend(epoch.0.to_be_bytes());
        part.extend([0, 0]);
        part.extend(anchor.number.0.to_be_bytes());
        part.extend(anchor.incarnation.0.to_be_bytes());
        part
    };
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for anchor in anchors {
        let mut part = head(anchor);
        for (flow, _) in flows.iter().filter(|(_, of)| *of == anchor) {
            // A flow takes 22 bytes at most.
            if part.len() + 22 > HEAD_LEN + PART_BYTES_MAX {
                parts.push(std::mem::replace(&mut part, head(anchor)));
            }
            flow.encode(&mut part);
        }
        parts.push(part);
    }
    if parts.is_empty() {
        parts.push(head(own));
    }
    parts.truncate(PARTS_MAX);
    let count = parts.len() as u8;
    for (number, part) in (0..).zip(&mut parts) {
        part[24] = number;
        part[25] = count;
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::flow::TCP;
    use super::*;

    fn anchor(number: u16) -> AnchorName {
        AnchorName { number: NodeNumber(number), incarnation: Incarnation(u64::from(number) << 32) }
    }

    fn flow(n: u32) -> Flow {
        let destination =
            if n.is_multiple_of(2) { IpAddr::V6(u128::from(n).into()) } else { IpAddr::V4(n.into()) };
        Flow::new(TCP, n as u16, destination, 443).unwrap()
    }

    fn read(parts: &[Vec<u8>]) -> Vec<(Flow, AnchorName)> {
        let read = |(number, body): (usize, &Vec<u8>)| {
            let part = Part::parse(body).unwrap();
            assert_eq!((usize::from(part.number), usize::from(part.parts)), (number, parts.len()));
            assert_eq!((part.session, part.epoch), (SessionId::from_bytes([7; 16]), Epoch(9)));
            part.flows().map(|flow| (flow, part.anchor)).collect::<Vec<_>>()
        };
        parts.iter().enumerate().flat_map(read).collect()
    }

    #[test]
    fn a_list_comes_back_whole_from_its_parts_which_fit_any_path() {
        let flows: Vec<_> = (0..FLOWS_MAX as u32).map(|n| (flow(n), anchor(1 + (n / 500) as u16))).collect();
        let parts = encode(SessionId::from_bytes([7; 16]), Epoch(9), anchor(1), &flows);
        assert!(parts.len() <= PARTS_MAX && parts.iter().all(|part| part.len() <= 1_150));
        assert_eq!(read(&parts), flows);
    }

    #[test]
    fn the_worst_list_has_no_more_parts_than_its_bound() {
        let flows: Vec<_> =
            (0..FLOWS_MAX as u32).map(|n| (flow(n * 2), anchor(1 + (n % 20) as u16))).collect();
        let parts = encode(SessionId::from_bytes([7; 16]), Epoch(9), anchor(1), &flows);
        assert!(parts.len() <= PARTS_MAX);
        let at_known: Vec<_> = flows.iter().filter(|(_, of)| of.number.0 <= ANCHORS_MAX as u16).collect();
        assert_eq!(read(&parts).len(), at_known.len());
    }

    #[test]
    fn an_empty_list_is_one_part_without_flows() {
        let parts = encode(SessionId::from_bytes([7; 16]), Epoch(9), anchor(3), &[]);
        assert_eq!(parts.len(), 1);
        assert_eq!(read(&parts), []);
    }

    #[test]
    fn what_is_cut_short_or_contradicts_itself_is_no_part() {
        let flows = [(flow(1), anchor(1)), (flow(2), anchor(1))];
        let parts = encode(SessionId::from_bytes([7; 16]), Epoch(9), anchor(1), &flows);
        let [whole] = &parts[..] else { panic!("more parts") };
        let ends = [HEAD_LEN, HEAD_LEN + 10];
        for len in 0..whole.len() {
            assert_eq!(Part::parse(&whole[..len]).is_some(), ends.contains(&len), "{len} bytes");
        }
        for (at, value) in [(24, 1), (25, 0), (25, 65), (26, 0xff), (27, 0), (HEAD_LEN, 5), (HEAD_LEN + 1, 1)]
        {
            let mut wrong = whole.clone();
            wrong[at] = value;
            assert_eq!(Part::parse(&wrong), None, "byte {at}");
        }
    }
}
