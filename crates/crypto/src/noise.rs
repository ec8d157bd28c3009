//! The Noise state machine of `snow`, fed with this crate's primitives where they are stricter: X25519 that refuses
//! points of small order and erases its keys, and an ephemeral key that comes from [`Entropy`](crate::entropy::Entropy)
//! alone.

use std::sync::{Arc, OnceLock};

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::handshake::Suite;
use crate::keys::DhSecret;

/// Where a handshake finds the private half of its one ephemeral key; filled before the message that needs it.
pub(crate) type EphemeralSlot = Arc<OnceLock<Zeroizing<[u8; 32]>>>;

/// One side's long-lived inputs.
pub(crate) struct Inputs<'a> {
    pub(crate) suite: Suite,
    pub(crate) local: &'a [u8; 32],
    pub(crate) prologue: &'a [u8],
    pub(crate) ephemeral: EphemeralSlot,
    /// The `psk2` slot: a secret mixed in before the payload of message 2.
    pub(crate) psk: Option<&'a [u8; 32]>,
}

fn builder<'a>(inputs: &'a Inputs<'a>) -> Result<Builder<'a>, snow::Error> {
    let name = match (inputs.suite, inputs.psk.is_some()) {
        (Suite::ChaChaPolyBlake2s, false) => "Noise_IK_25519_ChaChaPoly_BLAKE2s",
        (Suite::AesGcmSha256, false) => "Noise_IK_25519_AESGCM_SHA256",
        (Suite::ChaChaPolyBlake2s, true) => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        (Suite::AesGcmSha256, true) => "Noise_IKpsk2_25519_AESGCM_SHA256",
    };
    let params: NoiseParams = name.parse()?;
    let resolver = Resolver { ephemeral: Arc::clone(&inputs.ephemeral) };
    let builder = Builder::with_resolver(params, Box::new(resolver))
        .local_private_key(inputs.local)?
        .prologue(inputs.prologue)?;
    match inputs.psk {
        Some(psk) => builder.psk(2, psk),
        None => Ok(builder),
    }
}

/// The client's state before message 1.
pub(crate) fn initiator(inputs: &Inputs<'_>, remote: &[u8; 32]) -> Result<HandshakeState, snow::Error> {
    builder(inputs)?.remote_public_key(remote)?.build_initiator()
}

/// The gateway's state before message 1.
pub(crate) fn responder(inputs: &Inputs<'_>) -> Result<HandshakeState, snow::Error> {
    builder(inputs)?.build_responder()
}

struct Resolver {
    ephemeral: EphemeralSlot,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneKey { ephemeral: Arc::clone(&self.ephemeral), taken: false }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives out the slot's key once: a Noise `IK` side makes exactly one ephemeral key.
struct OneKey {
    ephemeral: EphemeralSlot,
    taken: bool,
}

impl Random for OneKey {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let key = self
            .ephemeral
            .get()
            .filter(|key| !self.taken && key.len() == dest.len())
            .ok_or(snow::Error::Rng)?;
        self.taken = true;
        dest.copy_from_slice(&key[..]);
        Ok(())
    }
}

/// X25519 with erased keys and a check of the shared secret.
#[derive(Default)]
struct X25519(Option<DhSecret>);

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        self.0 = privkey.try_into().ok().map(DhSecret::from_bytes);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut bytes[..])?;
        self.0 = Some(DhSecret::from_bytes(*bytes));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.0.as_ref().map_or(&[0; 32][..], |key| &key.public()[..])
    }

    fn privkey(&self) -> &[u8] {
        self.0.as_ref().map_or(&[0; 32][..], |key| &key.expose()[..])
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let secret = self.0.as_ref().ok_or(snow::Error::Dh)?;
        let peer = pubkey.first_chunk::<32>().ok_or(snow::Error::Dh)?;
        let shared = secret.agree(peer).ok_or(snow::Error::Dh)?;
        out.first_chunk_mut::<32>().ok_or(snow::Error::Dh)?.copy_from_slice(&shared[..]);
        Ok(())
    }
}
