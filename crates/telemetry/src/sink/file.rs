//! A file of JSON lines, rotated by size.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::config::FileConfig;
use super::worker::{Deliver, Verdict};
use super::{Record, SinkError};

const BATCH_EVENTS_MAX: usize = 256;

/// Appends to a file. Writing blocks this sink's own thread and nothing else.
#[derive(Debug)]
pub(super) struct FileSink {
    config: FileConfig,
    open: Option<Open>,
    text: String,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// The file's identity, to notice that someone else moved it away.
    inode: (u64, u64),
    /// Where the last whole line ends.
    length: u64,
}

impl FileSink {
    pub(super) fn open(config: FileConfig) -> Result<Self, SinkError> {
        if config.rotate_bytes < 64 * 1024 {
            let problem = "must be at least 65536".to_owned();
            return Err(SinkError::Setting { setting: "rotate_bytes", problem });
        }
        let path = config.path.display().to_string();
        let mut sink = Self { config, open: None, text: String::new() };
        sink.open = Some(sink.reopen().map_err(|source| SinkError::Path { path, source })?);
        Ok(sink)
    }

    /// Writes the events up to the next rotation, at least one. Returns how many.
    fn write(&mut self, batch: &[Arc<Record>]) -> std::io::Result<usize> {
        let mut open = match self.open.take() {
            Some(open) if self.in_place(&open) => open,
            Some(_) | None => self.reopen()?,
        };
        if open.length > 0 && !self.fits(open.length, &batch[0]) {
            drop(open);
            self.rotate()?;
            open = self.reopen()?;
        }
        self.text.clear();
        let mut count = 0;
        for record in batch {
            if count > 0 && !self.fits(open.length + self.text.len() as u64, record) {
                break;
            }
            self.text.push_str(&record.json);
            self.text.push('\n');
            count += 1;
        }
        if let Err(error) = open.file.write_all(self.text.as_bytes()) {
            // Half a line must not stay: all of them are written again.
            let _ = open.file.set_len(open.length);
            return Err(error);
        }
        open.length += self.text.len() as u64;
        self.open = Some(open);
        Ok(count)
    }

    fn fits(&self, length: u64, record: &Record) -> bool {
        length + (record.json.len() as u64) < self.config.rotate_bytes
    }

    fn in_place(&self, open: &Open) -> bool {
        std::fs::metadata(&self.config.path).is_ok_and(|found| (found.dev(), found.ino()) == open.inode)
    }

    fn reopen(&self) -> std::io::Result<Open> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.config.path)?;
        let metadata = file.metadata()?;
        let mut length = metadata.len();
        if length > 0 && !ends_with_newline(&self.config.path, length)? {
            // An earlier run died inside a line.
            file.write_all(b"\n")?;
            length += 1;
        }
        Ok(Open { file, inode: (metadata.dev(), metadata.ino()), length })
    }

    fn rotate(&self) -> std::io::Result<()> {
        let numbered = |n: u32| {
            let mut name = self.config.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        if self.config.keep_files == 0 {
            return std::fs::remove_file(&self.config.path);
        }
        for n in (1..self.config.keep_files).rev() {
            if numbered(n).exists() {
                std::fs::rename(numbered(n), numbered(n + 1))?;
            }
        }
        std::fs::rename(&self.config.path, numbered(1))
    }
}

impl Deliver for FileSink {
    fn batch(&self) -> (usize, Duration) {
        (BATCH_EVENTS_MAX, Duration::ZERO)
    }

    async fn deliver(&mut self, batch: &[Arc<Record>]) -> Verdict {
        let mut sent = 0;
        while sent < batch.len() {
            match self.write(&batch[sent..]) {
                Ok(written) => sent += written,
                Err(error) => return Verdict::Retry { sent, after: None, cause: error.to_string() },
            }
        }
        Verdict::Sent { rejected: 0 }
    }
}

fn ends_with_newline(path: &std::path::Path, length: u64) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, length - 1)?;
    Ok(last == *b"\n")
}
