//! The post-quantum half of the hybrid suites: ML-KEM-768 (FIPS 203), whose secret goes into Noise's `psk2` slot
//! (`docs/protocol.md` §3.8).
//!
//! The client's key pair is made for one handshake and gone after it, so a recorded session stays closed to whoever
//! learns every long-term key and breaks X25519 later.

use core::fmt;

use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use ml_kem::{Decapsulate as _, KeyExport as _};
use zeroize::{Zeroize as _, Zeroizing};

use crate::entropy::{Entropy, EntropyError};
use crate::mac::derive;

/// Length of an encapsulation key, in bytes.
pub(crate) const PUBLIC_LEN: usize = 1184;
/// Length of a ciphertext, in bytes.
pub(crate) const CIPHERTEXT_LEN: usize = 1088;

/// An encoded encapsulation key.
pub(crate) type KemPublic = [u8; PUBLIC_LEN];
/// An encapsulated secret.
pub(crate) type KemCiphertext = [u8; CIPHERTEXT_LEN];

/// The client's key pair of one handshake. Erased on drop; never printed.
pub(crate) struct KemSecret(Box<DecapsulationKey>);

impl KemSecret {
    pub(crate) fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        let mut seed = Zeroizing::new([0; 64]);
        entropy.fill(&mut seed[..])?;
        Ok(Self(Box::new(DecapsulationKey::from_seed((*seed).into()))))
    }

    pub(crate) fn public(&self) -> KemPublic {
        self.0.encapsulation_key().to_bytes().into()
    }

    /// The secret for the `psk2` slot. A ciphertext that was not made for this key gives a secret that nobody knows
    /// (implicit rejection), so Noise's next tag is what refuses it.
    pub(crate) fn open(&self, ciphertext: &KemCiphertext) -> Zeroizing<[u8; 32]> {
        slot_secret(self.0.decapsulate(&Ciphertext::from(*ciphertext)).into(), ciphertext)
    }
}

impl fmt::Debug for KemSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KemSecret")
    }
}

/// Why nothing was encapsulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncapsulateError {
    /// The key is not an encoding of an encapsulation key (FIPS 203 §7.2).
    Key,
    /// The generator refused.
    Entropy(EntropyError),
}

/// Encapsulates a fresh secret to `public`; returns the ciphertext with the secret for the `psk2` slot.
pub(crate) fn encapsulate(
    public: &KemPublic,
    entropy: &mut dyn Entropy,
) -> Result<(KemCiphertext, Zeroizing<[u8; 32]>), EncapsulateError> {
    let public = EncapsulationKey::new(&(*public).into()).map_err(|_| EncapsulateError::Key)?;
    let mut coins = Zeroizing::new([0; 32]);
    entropy.fill(&mut coins[..]).map_err(EncapsulateError::Entropy)?;
    let (ciphertext, shared) = public.encapsulate_deterministic(&(*coins).into());
    let ciphertext: KemCiphertext = ciphertext.into();
    Ok((ciphertext, slot_secret(shared.into(), &ciphertext)))
}

/// Binds the ciphertext, which travels outside the Noise message, to the secret and through it to the transcript.
fn slot_secret(mut shared: [u8; 32], ciphertext: &KemCiphertext) -> Zeroizing<[u8; 32]> {
    let secret = derive("jumping-vpn hybrid v1", &shared, &[ciphertext]);
    shared.zeroize();
    secret
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{RefusingEntropy, SeededEntropy};

    #[test]
    fn both_sides_derive_the_same_secret_and_another_handshake_another() {
        let mut entropy = SeededEntropy::new(1);
        let secret = KemSecret::generate(&mut entropy).unwrap();
        let (ciphertext, sent) = encapsulate(&secret.public(), &mut entropy).unwrap();
        assert_eq!(secret.open(&ciphertext), sent);
        let (_, again) = encapsulate(&secret.public(), &mut entropy).unwrap();
        assert_ne!(again, sent);
        let other = KemSecret::generate(&mut entropy).unwrap();
        assert_ne!(other.open(&ciphertext), sent);
    }

    #[test]
    fn every_byte_of_the_ciphertext_counts() {
        let mut entropy = SeededEntropy::new(1);
        let secret = KemSecret::generate(&mut entropy).unwrap();
        let (ciphertext, sent) = encapsulate(&secret.public(), &mut entropy).unwrap();
        for at in 0..CIPHERTEXT_LEN {
            let mut damaged = ciphertext;
            damaged[at] ^= 1;
            assert_ne!(secret.open(&damaged), sent, "byte {at}");
        }
    }

    #[test]
    fn a_key_with_a_coefficient_beyond_the_modulus_is_refused() {
        // 12 bits of ones are 4095, and the modulus is 3329.
        for at in [0, 1, 600, 1149] {
            let mut public = KemSecret::generate(&mut SeededEntropy::new(1)).unwrap().public();
            public[at..at + 3].fill(0xff);
            assert_eq!(encapsulate(&public, &mut SeededEntropy::new(1)).unwrap_err(), EncapsulateError::Key);
        }
    }

    #[test]
    fn without_randomness_there_is_neither_a_key_nor_a_ciphertext() {
        assert_eq!(KemSecret::generate(&mut RefusingEntropy).unwrap_err(), EntropyError::Source);
        let public = KemSecret::generate(&mut SeededEntropy::new(1)).unwrap().public();
        let refused = encapsulate(&public, &mut RefusingEntropy).unwrap_err();
        assert_eq!(refused, EncapsulateError::Entropy(EntropyError::Source));
    }

    #[test]
    fn secrets_erase_themselves_and_never_print() {
        fn erases<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let secret = KemSecret::generate(&mut SeededEntropy::new(1)).unwrap();
        erases(&*secret.0);
        assert_eq!(format!("{secret:?}"), "KemSecret");
    }
}
