//! Keys of gateway-to-gateway links (`docs/protocol.md` §7).
//!
//! Each worker makes an X25519 mesh key at start, in memory only, and registers the public half with control. A link's
//! two record keys come from HKDF over the static-static secret, bound to both incarnations and the direction, so no
//! handshake is needed and no (key, nonce) pair outlives a worker. For the same reason a link's keys are handed out
//! once: deriving them again would start the counters again.

use core::fmt;
use std::collections::BTreeMap;

use crate::entropy::{Entropy, EntropyError};
use crate::ids::{Incarnation, NodeNumber, ReceiverIndex};
use crate::keys::DhSecret;
use crate::mac::derive;
use crate::record::{Aead, OpeningKey, RecordKey, SealingKey};
use crate::wire::DatagramType;

/// A worker's mesh key. Erased on drop.
pub struct MeshSecret {
    secret: DhSecret,
    /// The newest run that was linked, by own end and the peer's number: runs of one number follow each other.
    linked: BTreeMap<(MeshEnd, NodeNumber), Incarnation>,
}

/// One end of a link, as registered with control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeshEnd {
    /// The node's number: the receiver index of records *from* it is this number with local part 0, so that their
    /// receiver finds the link.
    pub number: NodeNumber,
    /// The node's run.
    pub incarnation: Incarnation,
    /// The mesh public key of that run.
    pub public: [u8; 32],
}

impl MeshEnd {
    fn bytes(&self) -> [u8; 42] {
        let mut bytes = [0; 42];
        bytes[..2].copy_from_slice(&self.number.0.to_be_bytes());
        bytes[2..10].copy_from_slice(&self.incarnation.0.to_be_bytes());
        bytes[10..].copy_from_slice(&self.public);
        bytes
    }
}

/// A link's keys cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer's public key is a point of small order.
    #[error("the peer's mesh key is degenerate")]
    DegenerateKey,
    /// The peer is this worker itself, or `own` names another key than this one.
    #[error("a mesh link needs two different ends, one of them this worker")]
    WrongEnds,
    /// The keys of this link, or of one to a later run of the peer's number, were handed out before. Keep them for as long as
    /// the peer's incarnation lives.
    #[error("the keys of this mesh link were already handed out")]
    AlreadyLinked,
}

impl MeshSecret {
    /// Makes a key.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        Ok(Self { secret: DhSecret::generate(entropy)?, linked: BTreeMap::new() })
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        *self.secret.public()
    }

    /// Derives the keys of the link between `own` and `peer`, once.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn link(&mut self, own: &MeshEnd, peer: &MeshEnd) -> Result<(SealingKey, OpeningKey), LinkError> {
        if own.public != *self.secret.public() || peer.public == own.public || peer.number == own.number {
            return Err(LinkError::WrongEnds);
        }
        let shared = self.secret.agree(&peer.public).ok_or(LinkError::DegenerateKey)?;
        let newest = self.linked.entry((*own, peer.number)).or_insert(Incarnation(0));
        if peer.incarnation <= *newest {
            return Err(LinkError::AlreadyLinked);
        }
        *newest = peer.incarnation;
        let key = |from: &MeshEnd, to: &MeshEnd| {
            let raw = derive("jumping-vpn mesh link v1", &shared[..], &[&from.bytes(), &to.bytes()]);
            RecordKey::new(Aead::ChaCha20Poly1305, raw)
        };
        let index = |from: &MeshEnd| ReceiverIndex::of_node(from.number, 0);
        Ok((
            SealingKey::new(key(own, peer), DatagramType::Mesh, index(own)),
            OpeningKey::new(key(peer, own), DatagramType::Mesh, index(peer), 0),
        ))
    }
}

impl fmt::Debug for MeshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshSecret({} links)", self.linked.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Content, HEADER_LEN, OVERHEAD, OpenError};
    use crate::testing::SeededEntropy;

    fn end(number: u16, incarnation: u64, secret: &MeshSecret) -> MeshEnd {
        MeshEnd { number: NodeNumber(number), incarnation: Incarnation(incarnation), public: secret.public() }
    }

    fn secrets() -> (MeshSecret, MeshSecret) {
        let mut entropy = SeededEntropy::new(4);
        (MeshSecret::generate(&mut entropy).unwrap(), MeshSecret::generate(&mut entropy).unwrap())
    }

    fn sealed(key: &mut SealingKey) -> Vec<u8> {
        let mut record = vec![1; OVERHEAD + 3];
        record[HEADER_LEN..HEADER_LEN + 3].copy_from_slice(b"abc");
        key.seal(Content::Packet, &mut record, 3).unwrap();
        record
    }

    #[test]
    fn each_end_opens_what_the_other_seals_and_never_its_own() {
        let (mut a, mut b) = secrets();
        let (end_a, end_b) = (end(1, 10, &a), end(2, 20, &b));
        let (mut seal_a, mut open_a) = a.link(&end_a, &end_b).unwrap();
        let (mut seal_b, mut open_b) = b.link(&end_b, &end_a).unwrap();
        let record = sealed(&mut seal_a);
        assert_eq!(record[4..8], ReceiverIndex::of_node(NodeNumber(1), 0).0.to_be_bytes());
        assert_eq!(open_b.open(&mut record.clone()).unwrap().plaintext, b"abc");
        let mut reflected = record;
        reflected[4..8].copy_from_slice(&open_a.receiver().0.to_be_bytes());
        assert_eq!(open_a.open(&mut reflected), Err(OpenError::Authentication));
        assert_eq!(open_a.open(&mut sealed(&mut seal_b)).unwrap().plaintext, b"abc");
    }

    #[test]
    fn a_links_keys_are_handed_out_once() {
        let (mut a, b) = secrets();
        let (end_a, end_b) = (end(1, 10, &a), end(2, 20, &b));
        a.link(&end_a, &end_b).unwrap();
        assert_eq!(a.link(&end_a, &end_b).unwrap_err(), LinkError::AlreadyLinked);
    }

    #[test]
    fn what_is_remembered_of_links_does_not_grow_with_the_peers_runs_and_no_earlier_run_is_linked_again() {
        let (mut a, b) = secrets();
        let end_a = end(1, 10, &a);
        for run in 20..1020 {
            a.link(&end_a, &end(2, run, &b)).unwrap();
        }
        assert_eq!(a.linked.len(), 1);
        for run in [20, 1018, 1019] {
            assert_eq!(a.link(&end_a, &end(2, run, &b)).unwrap_err(), LinkError::AlreadyLinked);
        }
    }

    #[test]
    fn another_number_or_incarnation_of_either_end_is_another_key() {
        let (mut a, mut b) = secrets();
        let (end_a, end_b) = (end(1, 10, &a), end(2, 20, &b));
        let (mut seal, _) = a.link(&end_a, &end_b).unwrap();
        let record = sealed(&mut seal);
        for (own, peer) in [(end(2, 21, &b), end_a), (end(3, 20, &b), end_a), (end_b, end(1, 11, &a))] {
            let (_, mut open) = b.link(&own, &peer).unwrap();
            assert_eq!(open.open(&mut record.clone()), Err(OpenError::Authentication), "{own:?} {peer:?}");
        }
    }

    #[test]
    fn degenerate_or_confused_ends_make_no_link() {
        let (mut a, b) = secrets();
        let (end_a, end_b) = (end(1, 10, &a), end(2, 20, &b));
        let degenerate = MeshEnd { public: [0; 32], ..end_b };
        assert_eq!(a.link(&end_a, &degenerate).unwrap_err(), LinkError::DegenerateKey);
        assert_eq!(a.link(&end_a, &end_a).unwrap_err(), LinkError::WrongEnds);
        assert_eq!(a.link(&end_b, &end_a).unwrap_err(), LinkError::WrongEnds);
        let same_number = MeshEnd { number: NodeNumber(1), ..end_b };
        assert_eq!(a.link(&end_a, &same_number).unwrap_err(), LinkError::WrongEnds);
    }
}
