//! Long-lived keys and their lifecycle.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use curve25519_dalek::edwards::EdwardsBasepointTable;
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::traits::BasepointTable as _;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use subtle::ConstantTimeEq as _;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::certificate::VerifyError;
use crate::entropy::{Entropy, EntropyError};
use crate::ids::DeviceKey;
use crate::mac::derive;

/// Names a cluster handshake key on the wire: the first 4 bytes of SHA-256 of its public half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKeyId(pub [u8; 4]);

/// Names a grant key: the first 4 bytes of SHA-256 of its public half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GrantKeyId(pub [u8; 4]);

/// The name of an X25519 or Ed25519 public key: the first 4 bytes of its SHA-256.
fn short_id(public: &[u8; 32]) -> [u8; 4] {
    let hash = digest(&SHA256, public);
    let mut id = [0; 4];
    id.copy_from_slice(&hash.as_ref()[..4]);
    id
}

impl GrantKeyId {
    /// The name of a grant public key.
    pub fn of(public: &[u8; 32]) -> Self {
        Self(short_id(public))
    }
}

/// An X25519 private key, erased on drop, with its public half.
pub(crate) struct DhSecret {
    secret: StaticSecret,
    public: [u8; 32],
}

impl DhSecret {
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let secret = StaticSecret::from(*bytes);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    pub(crate) fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(&mut bytes[..])?;
        Ok(Self::from_bytes(*bytes))
    }

    pub(crate) fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        self.secret.as_bytes()
    }

    /// The shared secret, or `None` when `peer` is a point of small order: then the secret would not depend on
    /// this key (RFC 7748 §6.1).
    pub(crate) fn agree(&self, peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*peer));
        shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
    }
}

/// A long-lived X25519 key as a handshake uses it, with what is known of its peer already.
#[derive(Clone)]
pub(crate) struct StaticKey {
    secret: Arc<DhSecret>,
    known: Option<Arc<Agreement>>,
}

/// The secret that two long-lived keys share: a constant of the two, so it is computed once.
struct Agreement {
    peer: [u8; 32],
    shared: Zeroizing<[u8; 32]>,
    /// For the agreements of fresh keys with the same peer.
    multiples: Option<Arc<Multiples>>,
}

/// Multiples of a public key's point, from which an agreement with it is as cheap as a key pair: what every X25519
/// library does for the base point, done for the cluster's key. 30 KiB and a millisecond, once.
struct Multiples {
    of: [u8; 32],
    table: EdwardsBasepointTable,
}

impl Multiples {
    /// `None` for a key on the curve's twist, which has no Edwards form: agreements with it take their usual time.
    fn new(of: &[u8; 32]) -> Option<Self> {
        // Either sign does: the result's u-coordinate is the same.
        let point = MontgomeryPoint(*of).to_edwards(0)?;
        Some(Self { of: *of, table: EdwardsBasepointTable::create(&point) })
    }

    /// The multiples of this key; all devices of a process share those of the last one.
    fn shared(of: &[u8; 32]) -> Option<Arc<Self>> {
        static LAST: Mutex<Option<Arc<Multiples>>> = Mutex::new(None);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|multiples| multiples.of != *of) {
            *last = Self::new(of).map(Arc::new);
        }
        last.clone()
    }

    /// What [`DhSecret::agree`] gives, in constant time.
    fn agree(&self, secret: &DhSecret) -> Option<Zeroizing<[u8; 32]>> {
        let point = Zeroizing::new(self.table.mul_base_clamped(*secret.expose()));
        let shared = Zeroizing::new(point.to_montgomery().to_bytes());
        (!bool::from(shared.ct_eq(&[0; 32]))).then_some(shared)
    }
}

impl StaticKey {
    fn new(secret: DhSecret) -> Self {
        Self { secret: Arc::new(secret), known: None }
    }

    pub(crate) fn secret(&self) -> &DhSecret {
        &self.secret
    }

    /// The shared secret, as [`DhSecret::agree`] gives it.
    pub(crate) fn agree(&self, peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        match &self.known {
            Some(known) if known.peer == *peer => Some(known.shared.clone()),
            Some(_) | None => self.secret.agree(peer),
        }
    }

    /// The shared secret of a fresh key of this side, as [`DhSecret::agree`] gives it.
    pub(crate) fn agree_fresh(&self, fresh: &DhSecret, peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        match self.known.as_ref().and_then(|known| known.multiples.as_ref()) {
            Some(multiples) if multiples.of == *peer => multiples.agree(fresh),
            Some(_) | None => fresh.agree(peer),
        }
    }
}

/// A device's X25519 key pair. Erased on drop; never printed.
pub struct DeviceSecret {
    key: StaticKey,
    /// The agreement with the cluster key that was used last.
    agreed: Mutex<Option<Arc<Agreement>>>,
}

impl DeviceSecret {
    /// Makes a key pair.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        DhSecret::generate(entropy).map(Self::of)
    }

    /// Restores a key pair from its private half.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self::of(DhSecret::from_bytes(bytes))
    }

    fn of(secret: DhSecret) -> Self {
        Self { key: StaticKey::new(secret), agreed: Mutex::new(None) }
    }

    /// The private half, for the device's own key file.
    pub fn expose(&self) -> &[u8; 32] {
        self.key.secret.expose()
    }

    /// The secret shared with `peer`; `None` when that is a point of small order.
    pub(crate) fn agree(&self, peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        self.key.secret.agree(peer)
    }

    /// Computes ahead of the first handshake under `cluster` what is constant in all of them, so that no attach has to:
    /// the agreement of the two keys, and multiples of the cluster's. Takes about a millisecond. A point of small order is
    /// left to the handshake to refuse.
    pub fn prepare(&self, cluster: &ClusterPublic) {
        let Some(known) = self.key_for(cluster).and_then(|key| key.known) else { return };
        if known.multiples.is_none() {
            let (peer, shared) = (known.peer, known.shared.clone());
            let prepared = Agreement { peer, shared, multiples: Multiples::shared(&peer) };
            *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(prepared));
        }
    }

    /// The key with its agreement with `cluster`; `None` when that is a point of small order.
    pub(crate) fn key_for(&self, cluster: &ClusterPublic) -> Option<StaticKey> {
        let mut agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match agreed.take() {
            Some(known) if known.peer == cluster.0 => known,
            Some(_) | None => {
                let shared = self.agree(&cluster.0)?;
                Arc::new(Agreement { peer: cluster.0, shared, multiples: None })
            }
        };
        *agreed = Some(Arc::clone(&known));
        Some(StaticKey { secret: Arc::clone(&self.key.secret), known: Some(known) })
    }

    /// The public half.
    pub fn public(&self) -> DeviceKey {
        DeviceKey::from_bytes(*self.key.secret.public())
    }
}

impl fmt::Debug for DeviceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSecret(public {})", self.public())
    }
}

/// The cluster handshake key with everything derived from it: cookie secrets, hint tokens and the MAC of first messages.
/// Gateways hold it in memory only.
#[derive(Clone)]
pub struct ClusterSecret(StaticKey);

/// The public half of a cluster handshake key, as clients hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterPublic(pub [u8; 32]);

impl ClusterPublic {
    /// Its name on the wire.
    pub fn id(&self) -> ClusterKeyId {
        ClusterKeyId(short_id(&self.0))
    }
}

impl ClusterSecret {
    /// Makes a key.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        DhSecret::generate(entropy).map(|secret| Self(StaticKey::new(secret)))
    }

    /// Restores it from its private half.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticKey::new(DhSecret::from_bytes(bytes)))
    }

    /// The private half: control stores it, and hands it to gateways over mTLS.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.secret.expose()
    }

    pub(crate) fn key(&self) -> &StaticKey {
        &self.0
    }

    /// The public half.
    pub fn public(&self) -> ClusterPublic {
        ClusterPublic(*self.0.secret.public())
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterSecret({:?})", self.public().id())
    }
}

/// An Ed25519 key pair made from a seed. The seed is erased on drop, and the expanded key overwritten.
pub(crate) struct SigningPair {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

fn expand_seed(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32-byte string is an Ed25519 seed")
}

impl SigningPair {
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        Self { pair: expand_seed(seed), seed: Zeroizing::new(*seed) }
    }

    pub(crate) fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        let mut seed = Zeroizing::new([0; 32]);
        entropy.fill(&mut seed[..])?;
        Ok(Self::from_seed(&seed))
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        public
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl Drop for SigningPair {
    fn drop(&mut self) {
        // ring offers no erasure: write another key over this one, and keep the optimiser from dropping the write.
        self.pair = expand_seed(&[0; 32]);
        core::hint::black_box(&self.pair);
    }
}

/// Verifies an Ed25519 signature of `message` by `key`.
pub(crate) fn signature_is_good(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

/// Control's Ed25519 key for grants and node certificates.
pub struct GrantSigner(SigningPair);

impl GrantSigner {
    /// Makes a key from a fresh 32-byte seed.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        SigningPair::generate(entropy).map(Self)
    }

    /// Restores it from its seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningPair::from_seed(seed))
    }

    /// The seed, for control's key store.
    pub fn expose_seed(&self) -> &[u8; 32] {
        &self.0.seed
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.0.public()
    }

    /// Its name in what it signs.
    pub fn id(&self) -> GrantKeyId {
        GrantKeyId(short_id(&self.public()))
    }

    /// The secret of the enrolment token that `request` asks for: the same for the same request, and unknown to whoever does
    /// not hold this key (HKDF-SHA256 of the seed), so that the answer to a repeated request need not be stored.
    pub fn token_secret(&self, request: &[u8; 16]) -> [u8; 32] {
        *derive("jumping-vpn enrolment token v1", &self.0.seed[..], &[request])
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message)
    }
}

impl fmt::Debug for GrantSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantSigner({:?})", self.id())
    }
}

/// The grant keys that a client or gateway accepts (current, next and retiring).
#[derive(Debug, Clone, Default)]
pub struct GrantVerifier {
    keys: Vec<(GrantKeyId, [u8; 32])>,
    /// Statements that were good under these keys, newest last.
    remembered: Arc<Mutex<Remembered>>,
}

/// SHA-256 of key, message and signature of the last few good statements.
#[derive(Debug, Default)]
struct Remembered {
    digests: [[u8; 32]; Self::STATEMENTS_MAX],
    next: usize,
}

impl Remembered {
    const STATEMENTS_MAX: usize = 8;
}

impl GrantVerifier {
    /// Accepts signatures by any of `keys` (Ed25519 public keys).
    pub fn new(keys: &[[u8; 32]]) -> Self {
        let keys = keys.iter().map(|key| (GrantKeyId(short_id(key)), *key)).collect();
        Self { keys, remembered: Arc::default() }
    }

    /// The names of the accepted keys.
    pub fn ids(&self) -> impl Iterator<Item = GrantKeyId> + '_ {
        self.keys.iter().map(|(id, _)| *id)
    }

    /// Verifies `signature` of `message` by the key named `id`.
    pub(crate) fn verify(
        &self,
        id: GrantKeyId,
        message: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), VerifyError> {
        self.verify_by(id, |key| signature_is_good(key, message, signature))
    }

    /// Like [`verify`](Self::verify), for statements that are shown again and again: a good one is not computed twice
    /// while it is among the last 8. A bad one is never remembered.
    pub(crate) fn verify_again(
        &self,
        id: GrantKeyId,
        message: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), VerifyError> {
        self.verify_by(id, |key| {
            let mut digest = ring::digest::Context::new(&SHA256);
            [&key[..], signature, message].into_iter().for_each(|part| digest.update(part));
            let digest = digest.finish();
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.digests.iter().any(|known| known == digest.as_ref()) {
                return true;
            }
            let good = signature_is_good(key, message, signature);
            if good {
                let place = remembered.next;
                remembered.digests[place].copy_from_slice(digest.as_ref());
                remembered.next = (place + 1) % Remembered::STATEMENTS_MAX;
            }
            good
        })
    }

    fn verify_by(
        &self,
        id: GrantKeyId,
        mut is_good: impl FnMut(&[u8; 32]) -> bool,
    ) -> Result<(), VerifyError> {
        let mut known = false;
        // Ids are short: two accepted keys may share one, so every key of that name is tried.
        for (_, key) in self.keys.iter().filter(|(name, _)| *name == id) {
            known = true;
            if is_good(key) {
                return Ok(());
            }
        }
        Err(if known { VerifyError::Signature } else { VerifyError::UnknownKey })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agreement_made_ahead_is_the_one_that_the_handshake_uses() {
        let device = DeviceSecret::from_bytes([1; 32]);
        let cluster = ClusterPublic([9; 32]);
        device.prepare(&cluster);
        let ahead = device.agreed.lock().unwrap().clone().unwrap();
        let used = device.key_for(&cluster).unwrap().known.unwrap();
        assert!(Arc::ptr_eq(&ahead, &used), "the handshake computed it again");
    }

    #[test]
    fn a_tokens_secret_depends_on_the_key_and_the_request_and_on_nothing_else() {
        let (one, other) = (GrantSigner::from_seed(&[1; 32]), GrantSigner::from_seed(&[2; 32]));
        assert_eq!(one.token_secret(&[3; 16]), GrantSigner::from_seed(&[1; 32]).token_secret(&[3; 16]));
        assert_ne!(one.token_secret(&[3; 16]), one.token_secret(&[4; 16]));
        assert_ne!(one.token_secret(&[3; 16]), other.token_secret(&[3; 16]));
    }

    #[test]
    fn an_agreement_by_multiples_is_the_one_of_the_ladder_for_every_point_and_scalar() {
        let mut on_the_curve = 0;
        for seed in 0..200_u8 {
            // Half of all strings are on the twist, which has no table.
            let peer: [u8; 32] = digest(&SHA256, &[seed]).as_ref().try_into().unwrap();
            let secret = DhSecret::from_bytes(digest(&SHA256, &[seed, 1]).as_ref().try_into().unwrap());
            if let Some(multiples) = Multiples::new(&peer) {
                on_the_curve += 1;
                assert_eq!(multiples.agree(&secret), secret.agree(&peer), "seed {seed}");
            }
        }
        assert!((50..150).contains(&on_the_curve), "{on_the_curve}");
        // Points of small order that have an Edwards form: of order 2 and 4.
        for small in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
            let multiples = Multiples::new(&small).expect("a point of the curve");
            assert_eq!(multiples.agree(&DhSecret::from_bytes([3; 32])), None);
        }
    }

    #[test]
    fn a_prepared_key_agrees_with_the_cluster_and_with_others_as_one_that_is_not_prepared() {
        let device = DeviceSecret::from_bytes([1; 32]);
        let cluster = ClusterSecret::from_bytes([2; 32]).public();
        device.prepare(&cluster);
        let key = device.key_for(&cluster).unwrap();
        assert!(key.known.as_ref().unwrap().multiples.is_some(), "a real key is on the curve");
        let fresh = DhSecret::from_bytes([5; 32]);
        let next = ClusterSecret::from_bytes([6; 32]).public();
        for peer in [cluster.0, next.0] {
            assert_eq!(key.agree_fresh(&fresh, &peer), fresh.agree(&peer));
        }
        device.prepare(&next);
        let known = device.key_for(&next).unwrap().known.unwrap();
        assert_eq!(known.multiples.as_ref().unwrap().of, next.0, "the key has changed");
    }

    #[test]
    fn a_point_of_small_order_is_not_remembered_when_prepared() {
        let device = DeviceSecret::from_bytes([1; 32]);
        device.prepare(&ClusterPublic([0; 32]));
        assert!(device.agreed.lock().unwrap().is_none());
    }
}
