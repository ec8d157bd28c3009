//! Keyed hashing: HMAC-SHA256 truncated to 16 bytes, and HKDF-SHA256. All through `ring`.

use ring::{hkdf, hmac};
use zeroize::Zeroizing;

/// Length of every truncated authenticator, in bytes.
pub(crate) const MAC_LEN: usize = 16;

/// Expands `ikm` under a domain `label` and `info` into 32 bytes.
pub(crate) fn derive(label: &str, ikm: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, label.as_bytes())
        .extract(ikm)
        .expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out[..]))
        .expect("32 bytes is one block of HKDF-SHA256");
    out
}

/// HMAC-SHA256 of the concatenated `parts`.
pub(crate) fn hmac_full(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// The first 16 bytes of HMAC-SHA256 of the concatenated `parts`.
pub(crate) fn mac(key: &hmac::Key, parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut out = [0; MAC_LEN];
    out.copy_from_slice(&hmac_full(key, parts)[..MAC_LEN]);
    out
}

/// A key for [`mac`].
pub(crate) fn mac_key(bytes: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}
