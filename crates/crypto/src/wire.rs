//! Datagram types on the client-facing socket (`docs/protocol.md` §2).

/// The protocol version that every message names.
pub const VERSION: u8 = 1;

/// What the first byte of a datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DatagramType {
    /// Client to gateway: Noise message 1.
    AttachInit = 1,
    /// Gateway to client: Noise message 2 and the sealed node proof.
    AttachReply = 2,
    /// Gateway to client: a cookie, under load.
    CookieReply = 3,
    /// Either way: a sealed record.
    Record = 4,
    /// Gateway to client: the index is unknown here.
    ReattachHint = 5,
    /// Gateway to gateway: a sealed mesh record, on the mesh socket only.
    Mesh = 6,
    /// Gateway to client: there is work enough for now, ask again later.
    Busy = 7,
}

impl DatagramType {
    /// Reads the type of a datagram; `None` for an empty one or an unknown type.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        match datagram.first()? {
            1 => Some(Self::AttachInit),
            2 => Some(Self::AttachReply),
            3 => Some(Self::CookieReply),
            4 => Some(Self::Record),
            5 => Some(Self::ReattachHint),
            6 => Some(Self::Mesh),
            7 => Some(Self::Busy),
            _ => None,
        }
    }
}
