//! The enrolment token: the text that an operator gives to a device, once (`docs/protocol.md` §8).
//!
//! `jump1.` ‖ base64url without padding of `address length (1) ‖ address ‖ secret (32) ‖ CA certificate (DER)`.
//! The DER length closes the text, so that a token cut short by a copy is told apart from a wrong one.

use core::fmt;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What every token of this version starts with.
pub const PREFIX: &str = "jump1.";
/// Length of the one-time secret, in bytes.
pub const SECRET_LEN: usize = 32;
/// The longest accepted CA certificate, in bytes.
const CA_LEN_MAX: usize = 4096;

/// A decoded enrolment token. Prints without its secret; [`EnrolmentToken::encode`] makes the text.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Control's `host:port`; the host is the name or address that its certificate carries. 1 to 255 bytes.
    pub address: String,
    /// The CA certificate that control's certificate chains to, DER.
    pub ca: Vec<u8>,
    /// The one-time secret. Control stores only its SHA-256.
    pub secret: [u8; SECRET_LEN],
}

/// The text is not an enrolment token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not start with `jump1.`.
    #[error("not an enrolment token: it must start with jump1.")]
    Prefix,
    /// It starts right, but what follows is cut short or damaged.
    #[error("damaged enrolment token: copy it again in full")]
    Damaged,
}

impl EnrolmentToken {
    /// Makes the token's text.
    ///
    /// # Errors
    /// [`TokenError::Damaged`] when the address or the certificate could not be read back.
    pub fn encode(&self) -> Result<String, TokenError> {
        let address_len = u8::try_from(self.address.len()).map_err(|_| TokenError::Damaged)?;
        if !valid_address(&self.address) || !valid_der(&self.ca) {
            return Err(TokenError::Damaged);
        }
        let mut bytes = Vec::with_capacity(1 + self.address.len() + SECRET_LEN + self.ca.len());
        bytes.push(address_len);
        bytes.extend_from_slice(self.address.as_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.ca);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }
}

impl FromStr for EnrolmentToken {
    type Err = TokenError;

    /// Reads a token's text; surrounding white space is ignored.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let (len, rest) = bytes.split_first().ok_or(TokenError::Damaged)?;
        let (address, rest) = rest.split_at_checked(usize::from(*len)).ok_or(TokenError::Damaged)?;
        let (secret, ca) = rest.split_first_chunk().ok_or(TokenError::Damaged)?;
        let address = core::str::from_utf8(address).map_err(|_| TokenError::Damaged)?;
        if !valid_address(address) || !valid_der(ca) {
            return Err(TokenError::Damaged);
        }
        Ok(Self { address: address.to_owned(), ca: ca.to_vec(), secret: *secret })
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolmentToken").field("address", &self.address).finish_non_exhaustive()
    }
}

/// `host:port`, printable ASCII without spaces.
fn valid_address(address: &str) -> bool {
    address.bytes().all(|b| b.is_ascii_graphic())
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// One DER SEQUENCE that fills `der` exactly.
fn valid_der(der: &[u8]) -> bool {
    let body_len = match der {
        [0x30, short @ 0..=0x7f, body @ ..] => (usize::from(*short), body.len()),
        [0x30, 0x81, a, body @ ..] => (usize::from(*a), body.len()),
        [0x30, 0x82, a, b, body @ ..] => (usize::from(u16::from_be_bytes([*a, *b])), body.len()),
        _ => return false,
    };
    body_len.0 == body_len.1 && der.len() <= CA_LEN_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrolmentToken {
        let mut ca = vec![0x30, 0x82, 1, 0x2c];
        ca.extend((0..300).map(|i| i as u8));
        EnrolmentToken { address: "control.example:7443".to_owned(), ca, secret: [7; SECRET_LEN] }
    }

    #[test]
    fn a_token_survives_its_text_form() {
        let text = token().encode().expect("valid");
        assert!(text.starts_with("jump1."));
        assert_eq!(format!("  {text}\n").parse(), Ok(token()));
    }

    #[test]
    fn a_token_cut_anywhere_is_refused() {
        let text = token().encode().expect("valid");
        for end in 0..text.len() {
            assert!(text[..end].parse::<EnrolmentToken>().is_err(), "cut at {end} was accepted");
        }
        assert_eq!("hello".parse::<EnrolmentToken>(), Err(TokenError::Prefix));
    }

    #[test]
    fn a_token_does_not_print_its_secret() {
        assert_eq!(format!("{:?}", token()), "EnrolmentToken { address: \"control.example:7443\", .. }");
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        for bad in ["control", "control:", ":7443", "control:99999", "con trol:1", ""] {
            assert!(
                EnrolmentToken { address: bad.to_owned(), ..token() }.encode().is_err(),
                "{bad:?} was accepted"
            );
        }
    }
}
