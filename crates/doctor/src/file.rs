//! Files and certificates.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use x509_parser::pem::Pem;

use crate::Finding;

/// A certificate that ends sooner than this is a warning.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// The same where the whole life is short: a third of it.
const SHORT_LIFE_SHARE: i64 = 3;

/// A secret that its owner alone may read.
pub fn secret(check: &'static str, path: &Path, make: &str) -> Finding {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Finding::problem(check, format!("cannot read {shown}: {error}"), make),
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Finding::problem(
            check,
            format!("{shown} has mode {mode:04o}: others on this machine can read it"),
            format!("chmod 600 {shown}"),
        );
    }
    if let Err(error) = fs::File::open(path) {
        return Finding::problem(
            check,
            format!("cannot open {shown}: {error}"),
            format!("run as the user {} that owns it, or give it to this user", metadata.uid()),
        );
    }
    Finding::fine(check, format!("{shown} is this user's alone"))
}

/// A directory that only its owner may enter; one that does not exist yet is fine.
pub fn private_directory(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::fine(check, format!("{shown} does not exist yet"))
        }
        Err(error) => Finding::problem(
            check,
            format!("cannot look at {shown}: {error}"),
            "run as its owner, or choose another directory",
        ),
        Ok(metadata) if !metadata.is_dir() => {
            Finding::problem(check, format!("{shown} is not a directory"), "choose another")
        }
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            Finding::problem(check, format!("{shown} can be entered by others"), format!("chmod 700 {shown}"))
        }
        Ok(_) => Finding::fine(check, format!("{shown} is this user's alone")),
    }
}

/// A certificate that is valid at `now` (seconds since the Unix epoch) and for a while longer.
pub fn certificate(check: &'static str, path: &Path, now: u64, make: &str) -> Finding {
    let shown = path.display();
    match fs::read(path) {
        Ok(pem) => judge(check, &shown.to_string(), &pem, now, make),
        Err(error) => Finding::problem(check, format!("cannot read {shown}: {error}"), make),
    }
}

fn judge(check: &'static str, shown: &str, pem: &[u8], now: u64, make: &str) -> Finding {
    let first = Pem::iter_from_buffer(pem).flatten().find(|block| block.label == "CERTIFICATE");
    let Some(block) = first else {
        return Finding::problem(check, format!("{shown} holds no certificate in PEM form"), make);
    };
    let Ok(parsed) = block.parse_x509() else {
        return Finding::problem(check, format!("{shown} is damaged"), make);
    };
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let left = ends.saturating_sub(now);
    if left <= 0 {
        return Finding::problem(check, format!("{shown} expired on {}", validity.not_after), make);
    }
    if begins > now {
        return Finding::problem(
            check,
            format!("{shown} is not valid before {}", validity.not_before),
            "set this machine's clock, or wait",
        );
    }
    let soon = i64::try_from(ENDS_SOON.as_secs()).unwrap_or(i64::MAX).min((ends - begins) / SHORT_LIFE_SHARE);
    let days = left / (24 * 3600);
    if left < soon {
        return Finding::warning(
            check,
            format!("{shown} ends on {} ({days} days)", validity.not_after),
            make,
        );
    }
    Finding::fine(check, format!("{shown} is valid for {days} more days"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    /// Valid from 2026-01-01 to 2026-04-01, self-signed.
    const PEM: &str = include_str!("../testdata/certificate.pem");
    const BEGINS: u64 = 1_767_225_600;
    const DAY: u64 = 24 * 3600;

    #[test]
    fn a_certificate_is_judged_by_its_time_and_every_finding_but_a_good_one_has_a_fix() {
        for (now, level) in [
            (BEGINS - 1, Level::Problem),
            (BEGINS + DAY, Level::Fine),
            (BEGINS + 80 * DAY, Level::Warning),
            (BEGINS + 91 * DAY, Level::Problem),
        ] {
            let finding = judge("certificate", "c.pem", PEM.as_bytes(), now, "issue another");
            assert_eq!(finding.level, level, "{finding:?}");
            assert_eq!(finding.fix.is_empty(), level == Level::Fine);
        }
        for bad in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(judge("certificate", "c.pem", bad, BEGINS, "issue one").level, Level::Problem);
        }
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_missing_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert_eq!(secret("key", &path, "make one").level, Level::Problem);
        fs::write(&path, "k").unwrap();
        for (mode, level) in [(0o644, Level::Problem), (0o640, Level::Problem), (0o600, Level::Fine)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(secret("key", &path, "make one").level, level, "{mode:o}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(private_directory("dir", dir.path()).level, Level::Problem);
        assert_eq!(private_directory("dir", &path).level, Level::Problem);
        assert_eq!(private_directory("dir", &dir.path().join("none")).level, Level::Fine);
    }
}
