//! What bounds a device, as operators write it.

use clap::Args;
use ipnet::IpNet;
use jump_proto::control_v1::DevicePolicy;

/// Bounds of a device. What is not given is not bounded.
#[derive(Debug, Args)]
pub(super) struct Bounds {
    /// A network that the device may reach and be reached from, for example 10.1.0.0/16; may be given several times
    #[arg(long = "allow", value_name = "NETWORK")]
    allowed: Vec<IpNet>,
    /// Most bits per second of each of its sessions, in each direction, for example 20M
    #[arg(long, value_name = "BITS", value_parser = parse_bits)]
    rate: Option<u64>,
}

impl Bounds {
    /// As a message; `None` when nothing is bounded.
    pub(super) fn message(&self) -> Option<DevicePolicy> {
        let bounded = !self.allowed.is_empty() || self.rate.is_some();
        bounded.then(|| DevicePolicy {
            allowed_destinations: self.allowed.iter().map(ToString::to_string).collect(),
            bytes_per_second: self.rate.map_or(0, |bits| bits.div_ceil(8)),
        })
    }
}

/// Bits per second, with k, M or G for thousands, millions and thousands of millions.
fn parse_bits(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(digits) if text.ends_with('k') => (digits, 1_000),
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (text, 1),
    };
    let bits = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bits.filter(|bits| *bits > 0).ok_or_else(|| "must be a number of bits such as 500k, 20M or 1G".to_owned())
}

/// In a cell of a table.
pub(super) fn cell(policy: Option<&DevicePolicy>) -> String {
    let Some(policy) = policy else { return "-".to_owned() };
    let mut parts = policy.allowed_destinations.clone();
    if policy.bytes_per_second > 0 {
        parts.push(format!("{} bit/s", policy.bytes_per_second.saturating_mul(8)));
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_take_a_suffix_and_no_nonsense() {
        assert_eq!(parse_bits("800"), Ok(800));
        assert_eq!(parse_bits("500k"), Ok(500_000));
        assert_eq!(parse_bits("20M"), Ok(20_000_000));
        assert_eq!(parse_bits("1G"), Ok(1_000_000_000));
        for nonsense in ["", "0", "M", "-1", "20m", "20 M", "99999999999999G"] {
            assert!(parse_bits(nonsense).is_err(), "{nonsense:?}");
        }
    }
}
