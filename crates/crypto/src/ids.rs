//! Identifiers that cross every part: newtypes parsed at the boundary, valid inside.

use core::fmt;
use core::str::FromStr;

use ring::digest;
use uuid::Uuid;

/// Says why a text or byte string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: expected {expected}")]
pub struct InvalidId {
    /// The identifier's kind, for example `session id`.
    pub kind: &'static str,
    /// The accepted form, for example `a UUID`.
    pub expected: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Reads the 16 bytes of the wire form.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Returns the 16 bytes of the wire form.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// Returns the UUID inside.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| InvalidId { kind: $kind, expected: "a UUID" })
            }
        }
    };
}

uuid_id! {
    /// Names one VPN session for its whole life, tombstone included. Never a credential.
    SessionId, "session id"
}

impl SessionId {
    /// The session that `attempt` of `device` gives birth to: the same for every retry, and for everybody who sees it.
    pub fn born_of(device: &DeviceKey, attempt: AttemptId) -> Self {
        let bytes = derive(b"jumping-vpn session v1", &[device.as_bytes(), &attempt.to_bytes()]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The id that everything which is told of the session bears: logs, spans, audit events, calls. It follows from the
    /// session's, so that whoever knows the one knows the other, from the first message on.
    pub fn correlation(self) -> [u8; 16] {
        derive(b"jumping-vpn correlation v2", &[&self.to_bytes()])
    }
}

fn derive(label: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(label);
    parts.iter().for_each(|part| context.update(part));
    let digest = context.finish();
    let (head, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    *head
}

uuid_id! {
    /// Names one attach attempt of a client: asking again with the same id gets the same answer.
    AttemptId, "attempt id"
}

macro_rules! counter_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the next value, or `None` at the end of the range.
            pub fn next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

counter_id! {
    /// Counts changes of owner. Issued by the store alone; 0 means that no owner was ever accepted.
    Epoch
}

counter_id! {
    /// Counts path and transport switches inside one epoch. Issued by the owner.
    Binding
}

counter_id! {
    /// Orders a client's own attach attempts: strictly increasing for the session's life.
    AttachSeq
}

counter_id! {
    /// One registered run of a gateway node: the store revision that created its node key.
    Incarnation
}

counter_id! {
    /// A revision of the store: one per committed transaction, strictly increasing.
    Revision
}

/// A gateway node's name: 1 to 63 characters of `a-z`, `0-9`, `-` and `.`, starting and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(String);

impl NodeId {
    /// The longest accepted name, in bytes.
    pub const LEN_MAX: usize = 63;

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        if bytes.len() <= Self::LEN_MAX
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| inner(*b))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId {
                kind: "node id",
                expected: "1 to 63 characters of a-z, 0-9, - and ., starting and ending with a letter or digit",
            })
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

/// A device's X25519 public key: the device's identity. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey([u8; 32]);

impl DeviceKey {
    /// Wraps the 32 bytes of an X25519 public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for DeviceKey {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId { kind: "device key", expected: "64 hexadecimal digits" };
        if text.len() != 64 || !text.is_ascii() {
            return Err(invalid);
        }
        let mut bytes = [0u8; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = text
                .get(2 * i..2 * i + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| invalid.clone())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({self})")
    }
}

/// A receiver index on the wire: the node's number in the high 12 bits, a slot and its generation in the low 20.
///
/// A client's own indices carry no node number; they are 32 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiverIndex(pub u32);

impl ReceiverIndex {
    /// How many low bits a node numbers freely.
    pub const LOCAL_BITS: u32 = 20;

    /// Builds an index of node `node`.
    pub const fn of_node(node: NodeNumber, local: u32) -> Self {
        Self(((node.0 as u32) << Self::LOCAL_BITS) | (local & ((1 << Self::LOCAL_BITS) - 1)))
    }

    /// Returns the node's number: the steering bits.
    pub const fn node(self) -> NodeNumber {
        NodeNumber((self.0 >> Self::LOCAL_BITS) as u16)
    }

    /// Returns the bits that the node numbers freely.
    pub const fn local(self) -> u32 {
        self.0 & ((1 << Self::LOCAL_BITS) - 1)
    }
}

impl fmt::Debug for ReceiverIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiverIndex({:#010x})", self.0)
    }
}

/// The short number of a live gateway incarnation (1 to 4095), unique among live nodes; the steering bits of its indices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeNumber(pub u16);

impl NodeNumber {
    /// The largest number.
    pub const MAX: Self = Self(4095);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_that_could_break_a_store_key_are_refused() {
        for bad in ["", "a/b", "-a", "a-", "A", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "gw-1", "gw-1.eu", &"a".repeat(63)] {
            assert_eq!(good.parse::<NodeId>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn a_retry_of_an_attempt_names_the_same_session_and_another_attempt_does_not() {
        let (device, attempt) = (DeviceKey::from_bytes([1; 32]), AttemptId::from_bytes([2; 16]));
        let first = SessionId::born_of(&device, attempt);
        assert_eq!(first, SessionId::born_of(&device, attempt));
        assert_ne!(first, SessionId::born_of(&device, AttemptId::from_bytes([3; 16])));
        assert_ne!(first, SessionId::born_of(&DeviceKey::from_bytes([9; 32]), attempt));
        assert_eq!(first.as_uuid().get_version_num(), 8);
        // Parts of different versions must agree on both ids.
        assert_eq!(first.to_string(), "418da45a-d331-8d86-9811-990bd09fe304");
        assert_eq!(Uuid::from_bytes(first.correlation()).to_string(), "a2a7bd35-b9b2-7189-0abd-eb56b073272a");
    }

    #[test]
    fn a_device_key_survives_its_text_form() {
        let key = DeviceKey::from_bytes(core::array::from_fn(|i| (i * 7) as u8));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("zz".repeat(32).parse::<DeviceKey>().is_err());
        assert!("é".repeat(32).parse::<DeviceKey>().is_err());
    }

    #[test]
    fn an_index_gives_back_its_node_and_local_part() {
        let index = ReceiverIndex::of_node(NodeNumber(4095), 0xf_ffff);
        assert_eq!((index.node(), index.local()), (NodeNumber(4095), 0xf_ffff));
    }
}
