//! The bytes of control frames (`docs/protocol.md` §5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{
    Accepted, AttachResult, DNS_MAX, DOORS_MAX, FRAME_LEN_MAX, Frame, INNER_MAX, MTU_ANSWER_LEN_MIN, MTU_MIN,
    MTU_PROBE_LEN_MIN, MalformedFrame, ROSTER_MAX, ROUTES_MAX,
};
use crate::ids::{AttachSeq, Epoch, SessionId};
use crate::path::{Door, Transport};
use crate::reason::Reason;
use jump_crypto::grant::Grant;
use jump_crypto::key_set::KeySet;

const CONFIRM: u8 = 1;
const ATTACH_RESULT: u8 = 2;
const PING: u8 = 3;
const PONG: u8 = 4;
const PATH_CHALLENGE: u8 = 5;
const PATH_RESPONSE: u8 = 6;
const MIGRATE: u8 = 7;
const TERMINATED: u8 = 8;
const CLOSE: u8 = 9;
const MTU_PROBE: u8 = 10;
const BOUND: u8 = 11;
const KEYS: u8 = 12;
const PENDING: u8 = 13;
const MTU_ANSWER: u8 = 14;

const ACCEPTED: u8 = 1;
const REJECTED: u8 = 2;

impl Frame {
    /// Writes the frame to the start of `out` and returns its length; `None` when it is longer than `out` or than
    /// [`FRAME_LEN_MAX`], or when a list or number in it is beyond its bound. Never panics and never allocates.
    ///
    /// Durations are written in whole milliseconds; IPv6 scope and flow label are not written.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let bound = match self {
            Self::MtuProbe { len, .. } | Self::MtuAnswer { len, .. } => usize::from(*len),
            Self::Confirm
            | Self::Pending
            | Self::AttachResult(_)
            | Self::Ping { .. }
            | Self::Pong { .. }
            | Self::PathChallenge { .. }
            | Self::PathResponse { .. }
            | Self::Migrate { .. }
            | Self::Terminated { .. }
            | Self::Close { .. }
            | Self::Bound { .. }
            | Self::Keys { .. } => FRAME_LEN_MAX.min(out.len()),
        };
        let mut writer = Writer { out: out.get_mut(..bound)?, len: 0 };
        writer.frame(self)?;
        Some(writer.len)
    }

    /// Reads one frame that fills `bytes` exactly. Never panics; allocates no more than the frame's bounds allow.
    ///
    /// # Errors
    /// [`MalformedFrame`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedFrame> {
        let mut reader = Reader { rest: bytes };
        reader.frame(bytes.len()).ok_or(MalformedFrame)
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn frame(&mut self, frame: &Frame) -> Option<()> {
        match frame {
            Frame::Confirm => self.u8(CONFIRM),
            Frame::Pending => self.u8(PENDING),
            Frame::AttachResult(result) => {
                self.u8(ATTACH_RESULT)?;
                match &**result {
                    AttachResult::Accepted(accepted) => self.accepted(accepted),
                    AttachResult::Rejected { reason, current_epoch, current_attach_seq, retry_after } => {
                        self.u8(REJECTED)?;
                        self.reason(*reason)?;
                        self.u64(current_epoch.0)?;
                        self.u64(current_attach_seq.0)?;
                        self.duration(*retry_after)
                    }
                }
            }
            Frame::Ping { id } => self.tagged(PING, &id.to_be_bytes()),
            Frame::Pong { id, received, newest } => {
                self.u8(PONG)?;
                self.u64(*id)?;
                self.u64(*received)?;
                self.u64(*newest)
            }
            Frame::PathChallenge { token } => self.tagged(PATH_CHALLENGE, token),
            Frame::PathResponse { token } => self.tagged(PATH_RESPONSE, token),
            Frame::Migrate { reason, targets } => {
                self.u8(MIGRATE)?;
                self.reason(*reason)?;
                self.list(targets, ROSTER_MAX, Self::socket_address)
            }
            Frame::Terminated { reason } => self.tagged(TERMINATED, &reason.number().to_be_bytes()),
            Frame::Close { reason } => self.tagged(CLOSE, &reason.number().to_be_bytes()),
            Frame::MtuProbe { id, mtu: 0, len } if *len >= MTU_PROBE_LEN_MIN => {
                self.tagged(MTU_PROBE, &id.to_be_bytes())?;
                self.padding()
            }
            Frame::MtuProbe { id, mtu, len } if *len >= MTU_ANSWER_LEN_MIN && *mtu >= MTU_MIN => {
                self.tagged(MTU_PROBE, &id.to_be_bytes())?;
                self.u16(*mtu)?;
                self.padding()
            }
            Frame::MtuAnswer { id, mtu_max, len } if *len >= MTU_ANSWER_LEN_MIN && *mtu_max >= MTU_MIN => {
                self.tagged(MTU_ANSWER, &id.to_be_bytes())?;
                self.u16(*mtu_max)?;
                self.padding()
            }
            Frame::MtuProbe { .. } | Frame::MtuAnswer { .. } => None,
            Frame::Bound { binding } => self.tagged(BOUND, &binding.to_be_bytes()),
            Frame::Keys { key_set } if key_set.len() <= KeySet::LEN_MAX => {
                self.u8(KEYS)?;
                self.u16(u16::try_from(key_set.len()).ok()?)?;
                self.bytes(key_set)
            }
            Frame::Keys { .. } => None,
        }
    }

    fn accepted(&mut self, accepted: &Accepted) -> Option<()> {
        if accepted.grant.len() > Grant::LEN_MAX || accepted.mtu < MTU_MIN {
            return None;
        }
        self.u8(ACCEPTED)?;
        self.bytes(&accepted.session.to_bytes())?;
        self.u64(accepted.epoch.0)?;
        self.bytes(&accepted.correlation)?;
        self.u16(accepted.mtu)?;
        self.u16(accepted.switches_per_minute_max)?;
        self.duration(accepted.switch_cooldown)?;
        self.duration(accepted.recovery_window)?;
        self.duration(accepted.expires_in)?;
        self.duration(accepted.lease)?;
        self.u16(u16::try_from(accepted.grant.len()).ok()?)?;
        self.bytes(&accepted.grant)?;
        self.list(&accepted.inner, INNER_MAX, Self::address)?;
        self.list(&accepted.routes, ROUTES_MAX, |writer, (address, prefix_len)| {
            if *prefix_len > prefix_len_max(*address) {
                return None;
            }
            writer.address(address)?;
            writer.u8(*prefix_len)
        })?;
        self.list(&accepted.dns, DNS_MAX, Self::address)?;
        self.list(&accepted.roster, ROSTER_MAX, Self::socket_address)?;
        self.list(&accepted.doors, DOORS_MAX, |writer, door| {
            writer.u8(door.transport.number())?;
            writer.u16(door.port)
        })
    }

    fn list<T>(
        &mut self,
        items: &[T],
        max: usize,
        mut write: impl FnMut(&mut Self, &T) -> Option<()>,
    ) -> Option<()> {
        if items.len() > max {
            return None;
        }
        self.u8(u8::try_from(items.len()).ok()?)?;
        items.iter().try_for_each(|item| write(self, item))
    }

    fn socket_address(&mut self, address: &SocketAddr) -> Option<()> {
        self.address(&address.ip())?;
        self.u16(address.port())
    }

    fn address(&mut self, address: &IpAddr) -> Option<()> {
        match address {
            IpAddr::V4(v4) => self.tagged(4, &v4.octets()),
            IpAddr::V6(v6) => self.tagged(6, &v6.octets()),
        }
    }

    fn duration(&mut self, duration: Duration) -> Option<()> {
        self.u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    fn reason(&mut self, reason: Reason) -> Option<()> {
        self.u16(reason.number())
    }

    /// Zeros to the end of the frame.
    fn padding(&mut self) -> Option<()> {
        self.out.get_mut(self.len..)?.fill(0);
        self.len = self.out.len();
        Some(())
    }

    fn tagged(&mut self, tag: u8, body: &[u8]) -> Option<()> {
        self.u8(tag)?;
        self.bytes(body)
    }

    fn u8(&mut self, value: u8) -> Option<()> {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> Option<()> {
        self.bytes(&value.to_be_bytes())
    }

    fn u64(&mut self, value: u64) -> Option<()> {
        self.bytes(&value.to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.out.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn frame(&mut self, len: usize) -> Option<Frame> {
        let tag = self.u8()?;
        if !matches!(tag, MTU_PROBE | MTU_ANSWER) && len > FRAME_LEN_MAX {
            return None;
        }
        let frame = match tag {
            CONFIRM => Frame::Confirm,
            PENDING => Frame::Pending,
            ATTACH_RESULT => Frame::AttachResult(Box::new(self.attach_result()?)),
            PING => Frame::Ping { id: self.u64()? },
            PONG => Frame::Pong { id: self.u64()?, received: self.u64()?, newest: self.u64()? },
            PATH_CHALLENGE => Frame::PathChallenge { token: self.array()? },
            PATH_RESPONSE => Frame::PathResponse { token: self.array()? },
            MIGRATE => Frame::Migrate {
                reason: self.reason()?,
                targets: self.list(ROSTER_MAX, Self::socket_address)?,
            },
            TERMINATED => Frame::Terminated { reason: self.reason()? },
            CLOSE => Frame::Close { reason: self.reason()? },
            MTU_PROBE => {
                let id = self.u64()?;
                // Padding of a peer that tells none is zero.
                let mtu = if self.rest.len() < 2 { 0 } else { self.u16()? };
                self.rest = &[];
                let known = mtu == 0 || mtu >= MTU_MIN;
                known.then_some(Frame::MtuProbe { id, mtu, len: u16::try_from(len).ok()? })?
            }
            MTU_ANSWER => {
                let id = self.u64()?;
                let mtu_max = self.u16().filter(|mtu| *mtu >= MTU_MIN)?;
                self.rest = &[];
                Frame::MtuAnswer { id, mtu_max, len: u16::try_from(len).ok()? }
            }
            BOUND => Frame::Bound { binding: self.u64()? },
            KEYS => {
                let len = self.u16().map(usize::from).filter(|len| *len <= KeySet::LEN_MAX)?;
                Frame::Keys { key_set: self.take(len)?.to_vec() }
            }
            _ => return None,
        };
        self.rest.is_empty().then_some(frame)
    }

    fn attach_result(&mut self) -> Option<AttachResult> {
        match self.u8()? {
            ACCEPTED => self.accepted().map(AttachResult::Accepted),
            REJECTED => Some(AttachResult::Rejected {
                reason: self.reason()?,
                current_epoch: Epoch(self.u64()?),
                current_attach_seq: AttachSeq(self.u64()?),
                retry_after: self.duration()?,
            }),
            _ => None,
        }
    }

    fn accepted(&mut self) -> Option<Accepted> {
        let session = SessionId::from_bytes(self.array()?);
        let epoch = Epoch(self.u64()?);
        let correlation = self.array()?;
        let mtu = self.u16().filter(|mtu| *mtu >= MTU_MIN)?;
        let switches_per_minute_max = self.u16()?;
        let switch_cooldown = self.duration()?;
        let recovery_window = self.duration()?;
        let expires_in = self.duration()?;
        let lease = self.duration()?;
        let grant_len = self.u16().map(usize::from).filter(|len| *len <= Grant::LEN_MAX)?;
        let grant = self.take(grant_len)?.to_vec();
        let inner = self.list(INNER_MAX, Self::address)?;
        let routes = self.list(ROUTES_MAX, |reader| {
            let address = reader.address()?;
            let prefix_len = reader.u8()?;
            (prefix_len <= prefix_len_max(address)).then_some((address, prefix_len))
        })?;
        let dns = self.list(DNS_MAX, Self::address)?;
        let roster = self.list(ROSTER_MAX, Self::socket_address)?;
        let doors = self.list(DOORS_MAX, |reader| {
            let transport = Transport::from_number(reader.u8()?)?;
            Some(Door { transport, port: reader.u16()? })
        })?;
        Some(Accepted {
            session,
            epoch,
            inner,
            grant,
            routes,
            dns,
            mtu,
            expires_in,
            lease,
            roster,
            doors,
            correlation,
            switches_per_minute_max,
            switch_cooldown,
            recovery_window,
        })
    }

    fn list<T>(&mut self, max: usize, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::from(self.u8()?);
        if count > max {
            return None;
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn socket_address(&mut self) -> Option<SocketAddr> {
        let address = self.address()?;
        Some(SocketAddr::new(address, self.u16()?))
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.u8()? {
            4 => self.array().map(|octets: [u8; 4]| IpAddr::V4(Ipv4Addr::from(octets))),
            6 => self.array().map(|octets: [u8; 16]| IpAddr::V6(Ipv6Addr::from(octets))),
            _ => None,
        }
    }

    fn duration(&mut self) -> Option<Duration> {
        self.u64().map(Duration::from_millis)
    }

    fn reason(&mut self) -> Option<Reason> {
        Reason::from_number(self.u16()?)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }
}

fn prefix_len_max(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
