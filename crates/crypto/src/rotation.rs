//! Proof that a device holds both its old and its new key, when it replaces one by the other (`docs/protocol.md` §8).
//!
//! A device key is an X25519 key and cannot sign. Control sends a one-time X25519 key; only who holds both private
//! halves can compute the answer. The cluster key has no part in it, so that whoever steals that key cannot take a
//! device over.

use core::fmt;

use subtle::ConstantTimeEq;

use crate::entropy::{Entropy, EntropyError};
use crate::ids::DeviceKey;
use crate::keys::{DeviceSecret, DhSecret};
use crate::mac::derive;

/// Length of an answer, in bytes.
pub const ANSWER_LEN: usize = 32;

/// One question of control to one device. Not `Clone`: it is asked and judged once.
pub struct Challenge(DhSecret);

impl Challenge {
    /// Makes a fresh one.
    ///
    /// # Errors
    /// When the generator refuses.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, EntropyError> {
        DhSecret::generate(entropy).map(Self)
    }

    /// What is sent to the device.
    pub fn public(&self) -> [u8; 32] {
        *self.0.public()
    }

    /// Says whether `answer` proves possession of `old` and of `new`. Compares in constant time; consumes the challenge.
    pub fn proved_by(self, old: DeviceKey, new: DeviceKey, answer: &[u8; ANSWER_LEN]) -> bool {
        let secrets = (self.0.agree(old.as_bytes()), self.0.agree(new.as_bytes()));
        // A key of small order proves nothing: anybody knows its secret.
        let (Some(with_old), Some(with_new)) = secrets else { return false };
        let expected = combine(&with_old, &with_new, &self.public(), old, new);
        expected.ct_eq(answer).into()
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenge")
    }
}

/// The device's answer to a challenge; `None` when the challenge is a point of small order.
pub fn answer(old: &DeviceSecret, new: &DeviceSecret, challenge: &[u8; 32]) -> Option<[u8; ANSWER_LEN]> {
    let (with_old, with_new) = (old.agree(challenge)?, new.agree(challenge)?);
    Some(*combine(&with_old, &with_new, challenge, old.public(), new.public()))
}

fn combine(
    with_old: &[u8; 32],
    with_new: &[u8; 32],
    challenge: &[u8; 32],
    old: DeviceKey,
    new: DeviceKey,
) -> zeroize::Zeroizing<[u8; 32]> {
    let mut secrets = zeroize::Zeroizing::new([0; 64]);
    secrets[..32].copy_from_slice(with_old);
    secrets[32..].copy_from_slice(with_new);
    derive("jumping-vpn device rotation v1", &secrets[..], &[challenge, old.as_bytes(), new.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SeededEntropy;

    fn device(byte: u8) -> DeviceSecret {
        DeviceSecret::from_bytes([byte; 32])
    }

    fn challenge() -> Challenge {
        Challenge::generate(&mut SeededEntropy::new(7)).unwrap()
    }

    #[test]
    fn only_the_holder_of_both_keys_answers() {
        let (old, new, other) = (device(1), device(2), device(3));
        let public = challenge().public();
        let judge = |answer: [u8; 32]| challenge().proved_by(old.public(), new.public(), &answer);
        assert!(judge(answer(&old, &new, &public).unwrap()));
        assert!(!judge(answer(&new, &old, &public).unwrap()), "the keys are not interchangeable");
        assert!(!judge(answer(&old, &other, &public).unwrap()), "the new key is not held");
        assert!(!judge(answer(&other, &new, &public).unwrap()), "the old key is not held");
        assert!(!judge([0; 32]));
    }

    #[test]
    fn an_answer_to_another_challenge_proves_nothing() {
        let (old, new) = (device(1), device(2));
        let earlier = Challenge::generate(&mut SeededEntropy::new(99)).unwrap().public();
        let recorded = answer(&old, &new, &earlier).unwrap();
        assert!(!challenge().proved_by(old.public(), new.public(), &recorded));
    }

    #[test]
    fn a_key_or_a_challenge_of_small_order_is_refused() {
        let zero = DeviceKey::from_bytes([0; 32]);
        assert!(!challenge().proved_by(zero, device(2).public(), &[0; 32]));
        assert!(!challenge().proved_by(device(1).public(), zero, &[0; 32]));
        assert_eq!(answer(&device(1), &device(2), &[0; 32]), None);
    }
}
