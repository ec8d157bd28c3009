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

#[cfg(test)]
mod tests {
    use super::*;

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
        let (device, cluster) = ([1; 32], DhSecret::from_bytes([2; 32]));
        let inputs = |local, ephemeral, psk| Inputs { suite, local, prologue: b"p", ephemeral, psk };
        let client = inputs(&device, slot(3), client_psk.as_ref());
        let mut client = initiator(&client, cluster.public()).unwrap();
        let gateway = inputs(cluster.expose(), slot(4), gateway_psk.as_ref());
        let mut gateway = responder(&gateway).unwrap();
        let (mut message, mut payload) = ([0; 256], [0; 256]);
        let len = client.write_message(b"intent", &mut message).unwrap();
        gateway.read_message(&message[..len], &mut payload).ok()?;
        let len = gateway.write_message(b"roster", &mut message).unwrap();
        client.read_message(&message[..len], &mut payload).ok()?;
        Some([client.dangerously_get_raw_split().0, gateway.dangerously_get_raw_split().0])
    }

    #[test]
    fn a_secret_in_the_psk2_slot_changes_the_keys_and_must_be_the_same_on_both_sides() {
        for suite in [Suite::ChaChaPolyBlake2s, Suite::AesGcmSha256] {
            let [plain, same] = exchange(suite, None, None).unwrap();
            assert_eq!(plain, same);
            let [mixed, same] = exchange(suite, Some([9; 32]), Some([9; 32])).unwrap();
            assert_eq!(mixed, same);
            assert_ne!(mixed, plain);
            assert_eq!(exchange(suite, Some([9; 32]), Some([8; 32])), None);
            assert_eq!(exchange(suite, Some([9; 32]), None), None);
        }
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
        let mut dh = X25519::default();
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
        assert!(X25519::default().dh(&[9; 32], &mut [0; 32]).is_err());
    }
}
