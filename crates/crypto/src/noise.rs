//! The Noise state machine of `snow`, fed with this crate's primitives where they are stricter: X25519 that refuses
//! points of small order and erases its keys, and an ephemeral key that comes from [`Entropy`](crate::entropy::Entropy)
//! alone.

use std::sync::{Arc, OnceLock};

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::handshake::Suite;
use crate::keys::{DhSecret, StaticKey};

/// Where a handshake finds the private half of its one ephemeral key; filled before the message that needs it.
pub(crate) type EphemeralSlot = Arc<OnceLock<Zeroizing<[u8; 32]>>>;

/// One side's long-lived inputs.
pub(crate) struct Inputs<'a> {
    pub(crate) suite: Suite,
    pub(crate) local: &'a StaticKey,
    pub(crate) prologue: &'a [u8],
    pub(crate) ephemeral: EphemeralSlot,
}

fn builder<'a>(inputs: &'a Inputs<'a>) -> Result<Builder<'a>, snow::Error> {
    // A hybrid suite's secret is set (`set_psk(2, …)`) before message 2, which cannot be written or read without it.
    let params: NoiseParams = match inputs.suite {
        Suite::ChaChaPolyBlake2s => "Noise_IK_25519_ChaChaPoly_BLAKE2s",
        Suite::AesGcmSha256 => "Noise_IK_25519_AESGCM_SHA256",
        Suite::HybridChaChaPolyBlake2s => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        Suite::HybridAesGcmSha256 => "Noise_IKpsk2_25519_AESGCM_SHA256",
    }
    .parse()?;
    let resolver = Resolver { local: inputs.local.clone(), ephemeral: Arc::clone(&inputs.ephemeral) };
    Builder::with_resolver(params, Box::new(resolver))
        .local_private_key(inputs.local.secret().expose())?
        .prologue(inputs.prologue)
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
    local: StaticKey,
    ephemeral: EphemeralSlot,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneKey { ephemeral: Arc::clone(&self.ephemeral), taken: false }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519)
            .then(|| Box::new(X25519::new(self.local.clone())) as Box<dyn Dh>)
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

/// X25519 with erased keys and a check of the shared secret. The static key comes with its public half and what it
/// agreed before, so that neither is computed again.
struct X25519 {
    local: StaticKey,
    held: Held,
}

enum Held {
    Nothing,
    Static,
    Ephemeral(DhSecret),
}

impl X25519 {
    fn new(local: StaticKey) -> Self {
        Self { local, held: Held::Nothing }
    }

    fn key(&self) -> Option<&DhSecret> {
        match &self.held {
            Held::Nothing => None,
            Held::Static => Some(self.local.secret()),
            Held::Ephemeral(key) => Some(key),
        }
    }
}

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

    /// The builder's way to give the static key: any other is refused, and then there is no key.
    fn set(&mut self, privkey: &[u8]) {
        let same = bool::from(self.local.secret().expose().ct_eq(privkey));
        self.held = if same { Held::Static } else { Held::Nothing };
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut bytes[..])?;
        self.held = Held::Ephemeral(DhSecret::from_bytes(*bytes));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.key().map_or(&[0; 32][..], |key| &key.public()[..])
    }

    fn privkey(&self) -> &[u8] {
        self.key().map_or(&[0; 32][..], |key| &key.expose()[..])
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let peer = pubkey.first_chunk::<32>().ok_or(snow::Error::Dh)?;
        let shared = match &self.held {
            Held::Nothing => None,
            Held::Static => self.local.agree(peer),
            Held::Ephemeral(key) => self.local.agree_fresh(key, peer),
        };
        let shared = shared.ok_or(snow::Error::Dh)?;
        out.first_chunk_mut::<32>().ok_or(snow::Error::Dh)?.copy_from_slice(&shared[..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ClusterPublic, ClusterSecret, DeviceSecret};

    fn slot(byte: u8) -> EphemeralSlot {
        let slot = EphemeralSlot::default();
        slot.set(Zeroizing::new([byte; 32])).expect("a new slot is empty");
        slot
    }

    /// Runs both messages with these secrets in the `psk2` slot; returns what each side derives.
    fn exchange(
        suite: Suite,
        client_psk: Option<[u8; 32]>,
        gateway_psk: Option<[u8; 32]>,
    ) -> Option<[[u8; 32]; 2]> {
        let cluster = ClusterSecret::from_bytes([2; 32]);
        let device = DeviceSecret::from_bytes([1; 32]).key_for(&cluster.public()).unwrap();
        let inputs = |local, ephemeral| Inputs { suite, local, prologue: b"p", ephemeral };
        let mut client = initiator(&inputs(&device, slot(3)), &cluster.public().0).unwrap();
        let mut gateway = responder(&inputs(cluster.key(), slot(4))).unwrap();
        let (mut message, mut payload) = ([0; 256], [0; 256]);
        let len = client.write_message(b"intent", &mut message).unwrap();
        gateway.read_message(&message[..len], &mut payload).ok()?;
        for (side, psk) in [(&mut client, client_psk), (&mut gateway, gateway_psk)] {
            if let Some(psk) = psk {
                side.set_psk(2, &psk).unwrap();
            }
        }
        let len = gateway.write_message(b"roster", &mut message).ok()?;
        client.read_message(&message[..len], &mut payload).ok()?;
        Some([client.dangerously_get_raw_split().0, gateway.dangerously_get_raw_split().0])
    }

    #[test]
    fn a_hybrid_suite_needs_the_same_secret_in_the_psk2_slot_on_both_sides_and_its_keys_depend_on_it() {
        for suite in Suite::ALL.into_iter().filter(|suite| suite.is_hybrid()) {
            let [one, same] = exchange(suite, Some([9; 32]), Some([9; 32])).unwrap();
            assert_eq!(one, same);
            let [other, _] = exchange(suite, Some([8; 32]), Some([8; 32])).unwrap();
            assert_ne!(one, other);
            assert_eq!(exchange(suite, Some([9; 32]), Some([8; 32])), None);
            assert_eq!(exchange(suite, None, Some([9; 32])), None);
            assert_eq!(exchange(suite, Some([9; 32]), None), None, "no message 2 without a secret");
        }
    }

    #[test]
    fn a_known_agreement_is_the_one_that_would_be_computed_and_serves_no_other_peer() {
        let cluster = ClusterSecret::from_bytes([2; 32]);
        let device = DeviceSecret::from_bytes([1; 32]);
        let known = device.key_for(&cluster.public()).unwrap();
        let other = *DhSecret::from_bytes([3; 32]).public();
        for peer in [cluster.public().0, other] {
            assert_eq!(known.agree(&peer), DhSecret::from_bytes([1; 32]).agree(&peer));
        }
        let changed = device.key_for(&ClusterPublic(other)).unwrap();
        assert_eq!(changed.agree(&other), DhSecret::from_bytes([1; 32]).agree(&other));
        assert!(device.key_for(&ClusterPublic([0; 32])).is_none());
    }

    #[test]
    fn an_ephemeral_key_is_given_out_once_and_only_whole() {
        let mut rng = OneKey { ephemeral: slot(5), taken: false };
        assert!(rng.try_fill_bytes(&mut [0; 31]).is_err());
        let mut key = [0; 32];
        rng.try_fill_bytes(&mut key).unwrap();
        assert_eq!(key, [5; 32]);
        assert!(rng.try_fill_bytes(&mut key).is_err());
        assert!(
            OneKey { ephemeral: EphemeralSlot::default(), taken: false }.try_fill_bytes(&mut key).is_err()
        );
    }

    #[test]
    fn secrets_held_by_the_crate_erase_themselves() {
        fn erases<T: zeroize::Zeroize>() -> bool {
            core::mem::needs_drop::<T>()
        }
        // `derive(Zeroize)` with `zeroize(drop)`: a drop of this type is the erasure.
        assert!(erases::<x25519_dalek::StaticSecret>());
        assert!(core::mem::needs_drop::<Zeroizing<[u8; 32]>>());
    }

    #[test]
    fn a_peers_point_of_small_order_ends_the_agreement() {
        let x25519 = || X25519::new(ClusterSecret::from_bytes([7; 32]).key().clone());
        let mut dh = x25519();
        dh.set(&[7; 32]);
        // 0, 1 and the two points of order 8 (RFC 7748 §6.1, Curve25519's cofactor is 8).
        let order_8 = [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ];
        let parse = |hex: &str| -> [u8; 32] {
            std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        };
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one, parse(order_8[0]), parse(order_8[1])] {
            assert!(dh.dh(&point, &mut [0; 32]).is_err());
        }
        assert!(dh.dh(DhSecret::from_bytes([8; 32]).public(), &mut [0; 32]).is_ok());
        assert!(dh.dh(&[9; 31], &mut [0; 32]).is_err());
        assert!(x25519().dh(&[9; 32], &mut [0; 32]).is_err(), "no key yet");
        dh.set(&[8; 32]);
        assert!(dh.dh(&[9; 32], &mut [0; 32]).is_err(), "not the key that the handshake is of");
    }
}
