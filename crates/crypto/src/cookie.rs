//! Denial-of-service gates of first messages: `mac1`, the stateless cookie, `Busy`, and the reattach hint
//! (`docs/protocol.md` §6). All derive from the cluster key, so any replica can check what another issued.

use core::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ring::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::handshake::is_init_len;
use crate::ids::ReceiverIndex;
use crate::keys::{ClusterKeyId, ClusterPublic, ClusterSecret};
use crate::mac::{MAC_LEN, derive, hmac_full, mac, mac_key};
use crate::record::Aead;
use crate::wire::{DatagramType, VERSION};

/// Seconds for which one cookie secret is in use; the previous bucket is accepted too.
pub const COOKIE_BUCKET_SECONDS: u64 = 120;

/// Length of a reattach hint token, in bytes.
pub const HINT_LEN: usize = 16;

/// Length of a `CookieReply`, in bytes.
pub const COOKIE_REPLY_LEN: usize = 56;

/// Length of a `ReattachHint` datagram, in bytes: shorter than the shortest record.
pub const HINT_DATAGRAM_LEN: usize = 24;

/// Length of a `Busy` datagram, in bytes.
pub const BUSY_LEN: usize = 24;

/// Length of `mac1` and `mac2`, which end every `AttachInit`.
pub(crate) const MACS_LEN: usize = 2 * MAC_LEN;
const REPLY_HEADER_LEN: usize = 24;

/// Checks first messages; held by every gateway. Constant work, no allocation.
pub struct Gate {
    key_id: ClusterKeyId,
    mac1: hmac::Key,
    reply: hmac::Key,
    busy: hmac::Key,
    cookie: Zeroizing<[u8; 32]>,
    hint: Zeroizing<[u8; 32]>,
}

/// What the gate says of a first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Not a first message for this cluster key: drop it.
    BadMac,
    /// `mac1` is right and no valid cookie is shown.
    NoCookie,
    /// `mac1` is right and the cookie proves the source address.
    Cookie,
}

fn mac1_key(cluster: &ClusterPublic) -> hmac::Key {
    mac_key(&derive("jumping-vpn mac1 v1", &cluster.0, &[])[..])
}

fn reply_key(cluster: &ClusterPublic) -> hmac::Key {
    mac_key(&derive("jumping-vpn cookie reply v1", &cluster.0, &[])[..])
}

fn busy_key(cluster: &ClusterPublic) -> hmac::Key {
    mac_key(&derive("jumping-vpn busy v1", &cluster.0, &[])[..])
}

/// The authenticator of a `Busy` with this header, for the `AttachInit` that it answers.
fn busy_mac(key: &hmac::Key, header: &[u8], init: &[u8]) -> [u8; MAC_LEN] {
    let (mac1_at, mac2_at) = macs_at(init);
    mac(key, &[header, &init[mac1_at..mac2_at]])
}

/// Writes `mac1` and `mac2` at the end of an `AttachInit` whose other bytes are complete.
pub(crate) fn write_macs(cluster: &ClusterPublic, cookie: Option<&[u8; 16]>, init: &mut [u8]) {
    let (mac1_at, mac2_at) = macs_at(init);
    let mac1 = mac(&mac1_key(cluster), &[&init[..mac1_at]]);
    init[mac1_at..mac2_at].copy_from_slice(&mac1);
    let mac2 = cookie.map_or([0; MAC_LEN], |cookie| mac(&mac_key(cookie), &[&init[..mac2_at]]));
    init[mac2_at..].copy_from_slice(&mac2);
}

/// Where `mac1` and `mac2` begin in a whole `AttachInit`.
fn macs_at(init: &[u8]) -> (usize, usize) {
    (init.len() - 2 * MAC_LEN, init.len() - MAC_LEN)
}

/// What identifies an `AttachInit`: its `mac1`, which covers all but the cookie's proof. To be trusted once
/// [`Gate::admit`] has accepted the message.
pub fn identity(init: &[u8]) -> Option<[u8; MAC_LEN]> {
    let mac1_at = init.len().checked_sub(MACS_LEN)?;
    init[mac1_at..].first_chunk().copied()
}

/// An address as the cookie binds it: 16 bytes (IPv4 as a mapped address) and the port.
fn source_bytes(source: SocketAddr) -> [u8; 18] {
    let ip = match source.ip().to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&source.port().to_be_bytes());
    bytes
}

impl Gate {
    /// Derives the gate's keys.
    pub fn new(cluster: &ClusterSecret) -> Self {
        let public = cluster.public();
        Self {
            key_id: public.id(),
            mac1: mac1_key(&public),
            reply: reply_key(&public),
            busy: busy_key(&public),
            cookie: derive("jumping-vpn cookie v1", cluster.expose(), &[]),
            hint: derive("jumping-vpn reattach hint v1", cluster.expose(), &[]),
        }
    }

    /// The cluster key that this gate belongs to.
    pub fn key_id(&self) -> ClusterKeyId {
        self.key_id
    }

    /// Judges an `AttachInit` datagram from `source` at `now` (seconds since the Unix epoch).
    pub fn admit(&self, datagram: &[u8], source: SocketAddr, now: u64) -> Admission {
        let Some(init) = self.with_good_mac1(datagram) else { return Admission::BadMac };
        let (_, mac2_at) = macs_at(init);
        let shown = &init[mac2_at..];
        if shown == [0; MAC_LEN] {
            return Admission::NoCookie;
        }
        let bucket = now / COOKIE_BUCKET_SECONDS;
        let valid = [Some(bucket), bucket.checked_sub(1)].into_iter().flatten().any(|bucket| {
            let expected = mac(&mac_key(&self.cookie(source, bucket)), &[&init[..mac2_at]]);
            expected.ct_eq(shown).into()
        });
        if valid { Admission::Cookie } else { Admission::NoCookie }
    }

    /// The datagram as an `AttachInit` under this gate's key.
    fn with_good_mac1<'a>(&self, init: &'a [u8]) -> Option<&'a [u8]> {
        if !is_init_len(init.len())
            || init[..2] != [DatagramType::AttachInit as u8, VERSION]
            || init[4..8] != self.key_id.0
        {
            return None;
        }
        let (mac1_at, mac2_at) = macs_at(init);
        let expected = mac(&self.mac1, &[&init[..mac1_at]]);
        bool::from(expected.ct_eq(&init[mac1_at..mac2_at])).then_some(init)
    }

    /// The cookie of `source` in a time bucket. Its secret is the same on every replica.
    fn cookie(&self, source: SocketAddr, bucket: u64) -> [u8; MAC_LEN] {
        let secret = Zeroizing::new(hmac_full(&mac_key(&self.cookie[..]), &[&bucket.to_be_bytes()]));
        mac(&mac_key(&secret[..]), &[&source_bytes(source)])
    }

    /// Writes a `CookieReply` to `init` into `out`; returns its length. Never longer than `init`.
    /// `nonce` must be fresh random bytes. `None` when `init` fails [`admit`](Self::admit) or `out` is shorter than
    /// [`COOKIE_REPLY_LEN`].
    pub fn cookie_reply(
        &self,
        init: &[u8],
        source: SocketAddr,
        now: u64,
        nonce: [u8; 16],
        out: &mut [u8],
    ) -> Option<usize> {
        let init = self.with_good_mac1(init)?;
        let out = out.first_chunk_mut::<COOKIE_REPLY_LEN>()?;
        out[..4].copy_from_slice(&[DatagramType::CookieReply as u8, VERSION, 0, 0]);
        out[4..8].copy_from_slice(&init[8..12]);
        out[8..REPLY_HEADER_LEN].copy_from_slice(&nonce);
        let (header, sealed) = out.split_at_mut(REPLY_HEADER_LEN);
        let (text, tag) = sealed.split_at_mut(MAC_LEN);
        text.copy_from_slice(&self.cookie(source, now / COOKIE_BUCKET_SECONDS));
        let (mac1_at, mac2_at) = macs_at(init);
        let key = cookie_reply_cipher(&self.reply, &nonce, &init[mac1_at..mac2_at]);
        let aead = Aead::ChaCha20Poly1305;
        let sealed_tag = key
            .seal_in_place_separate_tag(aead.nonce(0), ring::aead::Aad::from(&*header), text)
            .expect("16 bytes are within the AEAD's length limit");
        tag.copy_from_slice(sealed_tag.as_ref());
        Some(COOKIE_REPLY_LEN)
    }

    /// The `Busy` answer to `init`: ask again, by the same message, after `after` (whole milliseconds, at most 65.535 s).
    /// `None` when `init` fails [`admit`](Self::admit).
    pub fn busy(&self, init: &[u8], after: Duration) -> Option<[u8; BUSY_LEN]> {
        let init = self.with_good_mac1(init)?;
        let after = u16::try_from(after.as_millis()).unwrap_or(u16::MAX);
        let mut out = [0; BUSY_LEN];
        let (header, tag) = out.split_at_mut(BUSY_LEN - MAC_LEN);
        header[..2].copy_from_slice(&[DatagramType::Busy as u8, VERSION]);
        header[2..4].copy_from_slice(&after.to_be_bytes());
        header[4..].copy_from_slice(&init[8..12]);
        tag.copy_from_slice(&busy_mac(&self.busy, header, init));
        Some(out)
    }

    /// The reattach hint token of `index`.
    pub fn hint(&self, index: ReceiverIndex) -> [u8; HINT_LEN] {
        mac(&mac_key(&self.hint[..]), &[&index.0.to_be_bytes()])
    }

    /// The `ReattachHint` datagram of `index`.
    pub fn hint_datagram(&self, index: ReceiverIndex) -> [u8; HINT_DATAGRAM_LEN] {
        let mut out = [0; HINT_DATAGRAM_LEN];
        out[..2].copy_from_slice(&[DatagramType::ReattachHint as u8, VERSION]);
        out[4..8].copy_from_slice(&index.0.to_be_bytes());
        out[8..].copy_from_slice(&self.hint(index));
        out
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({:?})", self.key_id)
    }
}

/// A one-use key: bound to the random nonce of the reply and to the message that it answers.
fn cookie_reply_cipher(reply: &hmac::Key, nonce: &[u8], mac1: &[u8]) -> ring::aead::LessSafeKey {
    let key = Zeroizing::new(hmac_full(reply, &[nonce, mac1]));
    let key = ring::aead::UnboundKey::new(Aead::ChaCha20Poly1305.algorithm(), &key[..])
        .expect("ChaCha20-Poly1305 takes 32-byte keys");
    ring::aead::LessSafeKey::new(key)
}

/// Opens a `CookieReply` to the client's own `init`; `None` when it is not a reply to it.
pub fn open_cookie_reply(cluster: &ClusterPublic, init: &[u8], reply: &[u8]) -> Option<[u8; 16]> {
    if !is_init_len(init.len()) {
        return None;
    }
    let mut reply: [u8; COOKIE_REPLY_LEN] = reply.try_into().ok()?;
    if reply[..4] != [DatagramType::CookieReply as u8, VERSION, 0, 0] || reply[4..8] != init[8..12] {
        return None;
    }
    let (header, sealed) = reply.split_at_mut(REPLY_HEADER_LEN);
    let (mac1_at, mac2_at) = macs_at(init);
    let key = cookie_reply_cipher(&reply_key(cluster), &header[8..], &init[mac1_at..mac2_at]);
    let nonce = Aead::ChaCha20Poly1305.nonce(0);
    let cookie = key.open_in_place(nonce, ring::aead::Aad::from(&*header), sealed).ok()?;
    (&*cookie).try_into().ok()
}

/// Opens a `Busy` to the client's own `init`: when to ask again. `None` when it is not an answer to it.
pub fn open_busy(cluster: &ClusterPublic, init: &[u8], datagram: &[u8]) -> Option<Duration> {
    if !is_init_len(init.len()) {
        return None;
    }
    let datagram: &[u8; BUSY_LEN] = datagram.try_into().ok()?;
    let (header, tag) = datagram.split_at(BUSY_LEN - MAC_LEN);
    if header[..2] != [DatagramType::Busy as u8, VERSION] || header[4..] != init[8..12] {
        return None;
    }
    let expected = busy_mac(&busy_key(cluster), header, init);
    let after = Duration::from_millis(u16::from_be_bytes([header[2], header[3]]).into());
    bool::from(expected.ct_eq(tag)).then_some(after)
}

/// A parsed `ReattachHint`: the sender does not know `index`. Worth nothing until its token is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReattachHint {
    /// The index that the client's record carried.
    pub index: ReceiverIndex,
    token: [u8; HINT_LEN],
}

impl ReattachHint {
    /// Parses a `ReattachHint`; `None` when it is not one.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let datagram: &[u8; HINT_DATAGRAM_LEN] = datagram.try_into().ok()?;
        let (head, token) = datagram.split_last_chunk::<HINT_LEN>()?;
        let [kind, VERSION, 0, 0, i0, i1, i2, i3] = head else { return None };
        (*kind == DatagramType::ReattachHint as u8)
            .then_some(Self { index: ReceiverIndex(u32::from_be_bytes([*i0, *i1, *i2, *i3])), token: *token })
    }

    /// True when the hint carries the `token` that the handshake announced. Compares in constant time.
    pub fn carries(&self, token: &[u8; HINT_LEN]) -> bool {
        self.token.ct_eq(token).into()
    }
}

impl fmt::Debug for ReattachHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReattachHint({:?})", self.index)
    }
}

#[cfg(test)]
mod tests;
