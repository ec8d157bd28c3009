//! The demo's verdict: one check per promise.

use std::time::Duration;

use serde::Serialize;

use super::{Kill, Options};
use crate::lab::cluster::Store;
use crate::lab::download::Downloaded;
use crate::lab::ownership::Ownership;
use crate::lab::probe::ProbeReport;

/// A session as its device and the operators see it at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// From `jump status` on the device.
    pub status_session: String,
    /// From `jumpctl ownership get`.
    pub ownership: Ownership,
}

/// Everything that was seen in a run.
#[derive(Debug)]
pub struct Evidence {
    /// How it was run.
    pub options: Options,
    /// The gateway that was killed.
    pub victim: String,
    /// The control replica that was killed.
    pub killed_control: Option<String>,
    /// Just before the kill.
    pub before: View,
    /// After the download's end.
    pub after: View,
    /// From the kill to the sight of the new owner.
    pub committed_after: Duration,
    /// The probe from the kill on.
    pub probe: ProbeReport,
    /// Whether echoes came back again at the end.
    pub probe_recovered: bool,
    /// The download, or why it failed.
    pub downloaded: Result<Downloaded, String>,
    /// What its checksum must be.
    pub expected_digest: [u8; 32],
}

/// The short report of one run. Field names are stable.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `embedded` or `etcd`.
    pub store: &'static str,
    /// What was killed.
    pub kill: Kill,
    /// The gateway that was killed.
    pub killed_gateway: String,
    /// The control replica that was killed.
    pub killed_control: Option<String>,
    /// Session id before and after.
    pub session: [String; 2],
    /// Inner addresses before and after.
    pub inner_address: [String; 2],
    /// Owner before and after.
    pub owner: [String; 2],
    /// Epoch before and after.
    pub epoch: [u64; 2],
    /// Reason code of the move.
    pub reason: String,
    /// The longest time between two echoes of the 5 ms probe, in milliseconds.
    pub gap_ms: f64,
    /// Probes sent since the kill, and answered.
    pub probes: [usize; 2],
    /// From the kill to the sight of the new owner at control, in milliseconds.
    pub new_owner_ms: f64,
    /// Bytes downloaded.
    pub download_bytes: u64,
    /// The download's longest time without a byte, in milliseconds.
    pub download_stall_ms: f64,
    /// SHA-256 of what was downloaded, hexadecimal.
    pub sha256: String,
    /// Every promise and whether it held.
    pub checks: Vec<Check>,
}

/// One promise.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What must be so.
    pub name: &'static str,
    /// Whether it is.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

impl Report {
    /// Holds the evidence against the promises.
    pub fn judge(e: &Evidence) -> Self {
        let (before, after) = (&e.before.ownership, &e.after.ownership);
        let owner = |o: &Ownership| o.owner.clone().unwrap_or_else(|| "nobody".to_owned());
        let done = e.downloaded.as_ref();
        let gap = e.probe.longest_gap;
        let mut checks = Vec::new();
        let mut check = |name, holds, seen: String| checks.push(Check { name, holds, seen });
        check(
            "the session id is the same",
            before.session == after.session && e.before.status_session == e.after.status_session,
            format!("{} -> {}", e.before.status_session, e.after.status_session),
        );
        check(
            "the inner address is the same",
            !before.inner.is_empty()
                && before.inner == after.inner
                && done.map_or(true, |d| before.inner.contains(&d.local.ip())),
            format!("{} -> {}", before.inner_text(), after.inner_text()),
        );
        check(
            "the epoch went up by one",
            after.epoch == before.epoch + 1,
            format!("{} -> {}", before.epoch, after.epoch),
        );
        check(
            "another gateway owns it",
            owner(after) != e.victim && after.phase == "OWNED",
            format!("{} -> {}", owner(before), owner(after)),
        );
        check(
            "the download finished over its one connection",
            done.is_ok(),
            done.map_or_else(Clone::clone, |d| {
                format!("{} bytes from {} in {:.1?}", d.length, d.local.ip(), d.took)
            }),
        );
        check(
            "its checksum is right",
            done.is_ok_and(|d| d.digest == e.expected_digest),
            done.map_or_else(|_| "no checksum".to_owned(), |d| format!("SHA-256 {}", hex(&d.digest))),
        );
        check(
            "the gap is within its bound",
            e.probe_recovered && gap <= e.options.kill.gap_max(),
            format!("{:.0} ms of at most {:.0} ms", millis(gap), millis(e.options.kill.gap_max())),
        );
        Self {
            store: if e.options.store == Store::Etcd { "etcd" } else { "embedded" },
            kill: e.options.kill,
            killed_gateway: e.victim.clone(),
            killed_control: e.killed_control.clone(),
            session: [e.before.status_session.clone(), e.after.status_session.clone()],
            inner_address: [before.inner_text(), after.inner_text()],
            owner: [owner(before), owner(after)],
            epoch: [before.epoch, after.epoch],
            reason: after.reason.clone(),
            gap_ms: millis(gap),
            probes: [e.probe.sent, e.probe.answered],
            new_owner_ms: millis(e.committed_after),
            download_bytes: done.map_or(0, |d| d.length),
            download_stall_ms: done.map_or(0.0, |d| millis(d.longest_stall)),
            sha256: done.map_or_else(|_| String::new(), |d| hex(&d.digest)),
            checks,
        }
    }

    /// Whether every promise held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }
}

/// Milliseconds, to a tenth.
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
