//! Keys as hexadecimal text.

/// 64 digits.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads 64 digits; `None` for anything else.
pub fn decode_key(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_form_and_nothing_else_is_read() {
        let key: [u8; 32] = core::array::from_fn(|i| (i * 9) as u8);
        assert_eq!(decode_key(&encode(&key)), Some(key));
        for bad in ["", "zz", &"g".repeat(64), &"é".repeat(32), &"0".repeat(63)] {
            assert_eq!(decode_key(bad), None);
        }
    }
}
