//! How the demo tells its story: a line per event, a progress bar while it waits; plain lines when piped.

use std::cell::RefCell;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::report::Report;
use crate::lab::download::Download;
use crate::lab::ownership::Ownership;

const BAR_WIDTH: usize = 32;
/// Time between two paintings of the bar.
const PAINT_INTERVAL: Duration = Duration::from_millis(100);

/// Where the story goes.
#[derive(Debug)]
pub struct Terminal {
    start: Instant,
    colour: bool,
    bar: bool,
    quiet: bool,
    owner_said: RefCell<String>,
}

impl Terminal {
    /// Tells it on stdout; says nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            start: Instant::now(),
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
            bar: terminal && !quiet,
            quiet,
            owner_said: RefCell::default(),
        }
    }

    /// One thing that happened.
    pub fn event(&self, subject: &str, text: &str) {
        let style = match subject {
            "kill" => "1;31",
            "owner" => "1;36",
            _ => "2",
        };
        let at = self.start.elapsed().as_secs_f64();
        self.line(&format!("{at:7.2} s  {} {text}", self.paint(style, &format!("{subject:<9}"))));
    }

    /// Who owns the session now; said once.
    pub fn owner(&self, o: &Ownership) {
        let owner = o.owner.as_deref().unwrap_or("nobody");
        let what = match &o.handover_to {
            Some(to) => format!("{} to {to}", o.phase),
            None => o.phase.clone(),
        };
        let text = format!("{owner}  epoch {}  {what}  ({})", o.epoch, o.reason);
        if self.owner_said.replace(text.clone()) != text {
            self.event("owner", &text);
        }
    }

    /// A line as it is.
    pub fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        let clear = if self.bar { "\r\x1b[2K" } else { "" };
        println!("{clear}{text}");
    }

    /// Waits until `bytes` have come, painting the progress.
    ///
    /// # Errors
    /// When the download ends early or no byte comes for `stall_max`.
    pub fn follow(&self, download: &Download, bytes: u64, stall_max: Duration) -> Result<()> {
        let (mut seen, mut since) = (download.progress().0, Instant::now());
        while download.wait_for(bytes, PAINT_INTERVAL).is_err() {
            let (now, total) = download.progress();
            if download.has_ended() {
                break;
            }
            if now > seen {
                (seen, since) = (now, Instant::now());
            }
            ensure!(
                since.elapsed() < stall_max,
                "the download stands at byte {now} of {total} for {stall_max:?}"
            );
            self.progress(now, total);
        }
        if self.bar {
            print!("\r\x1b[2K");
            let _ = std::io::stdout().flush();
        }
        Ok(())
    }

    fn progress(&self, now: u64, total: u64) {
        if !self.bar {
            return;
        }
        let part = now as f64 / total.max(1) as f64;
        let full = (part * BAR_WIDTH as f64) as usize;
        let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR_WIDTH - full.min(BAR_WIDTH)));
        print!("\r\x1b[2K           {bar} {:5.1} MiB", now as f64 / f64::from(1 << 20));
        let _ = std::io::stdout().flush();
    }

    /// The report of a run.
    pub fn report(&self, report: &Report) {
        self.line("");
        let row = |name: &str, value: String| {
            self.line(&format!("  {} {value}", self.paint("2", &format!("{name:<16}"))))
        };
        let pair = |[before, after]: &[String; 2]| {
            if before == after {
                format!("{before}  (the same before and after)")
            } else {
                format!("{before} -> {after}")
            }
        };
        row("session id", pair(&report.session));
        row("inner address", pair(&report.inner_address));
        row("owner", format!("{} -> {}  ({})", report.owner[0], report.owner[1], report.reason));
        row("epoch", format!("{} -> {}", report.epoch[0], report.epoch[1]));
        row(
            "gap",
            format!(
                "{:.0} ms  (5 ms probe; {} of {} echoes since the kill)",
                report.gap_ms, report.probes[1], report.probes[0]
            ),
        );
        row(
            "download",
            format!("{} MiB, longest stall {:.0} ms", report.download_bytes >> 20, report.download_stall_ms),
        );
        row("SHA-256", report.sha256.clone());
        self.line("");
        for check in &report.checks {
            let verdict = if check.holds { self.paint("32", "true ") } else { self.paint("1;31", "FALSE") };
            let seen = if check.holds { String::new() } else { format!(": {}", check.seen) };
            self.line(&format!("  {verdict}  {}{seen}", check.name));
        }
        self.line("");
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
