//! A bounded queue of batches on disk: one file per batch, in order, written whole or not at all.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::SinkError;
use super::config::SpoolConfig;

/// One batch on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    number: u64,
    pub(super) bytes: u64,
    pub(super) events: u64,
}

/// The batches that wait.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    bytes_max: u64,
    segments: VecDeque<Segment>,
    bytes: u64,
    next: u64,
}

impl Spool {
    /// Opens the directory and finds what an earlier run left.
    pub(super) fn open(config: &SpoolConfig) -> Result<Self, SinkError> {
        let mut spool = Self {
            directory: config.directory.clone(),
            bytes_max: config.bytes_max,
            segments: VecDeque::new(),
            bytes: 0,
            next: 1,
        };
        spool
            .find()
            .map_err(|source| SinkError::Path { path: config.directory.display().to_string(), source })?;
        Ok(spool)
    }

    fn find(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            // <number>-<events>.ndjson; anything else, a torn temporary file too, is not ours to deliver.
            let Some((number, events)) = name
                .to_str()
                .and_then(|name| name.strip_suffix(".ndjson")?.split_once('-'))
                .and_then(|(number, events)| Some((number.parse().ok()?, events.parse().ok()?)))
            else {
                continue;
            };
            found.push(Segment { number, events, bytes: entry.metadata()?.len() });
        }
        found.sort_by_key(|segment| segment.number);
        self.bytes = found.iter().map(|segment| segment.bytes).sum();
        self.next = found.last().map_or(1, |last| last.number + 1);
        self.segments = found.into();
        Ok(())
    }

    /// Returns the bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the oldest batch.
    pub(super) fn front(&self) -> Option<Segment> {
        self.segments.front().copied()
    }

    /// Appends a batch. `StorageFull` when it would pass the bound.
    pub(super) fn push(&mut self, text: &[u8], events: u64) -> io::Result<()> {
        let bytes = text.len() as u64;
        if self.bytes + bytes > self.bytes_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let segment = Segment { number: self.next, bytes, events };
        let temporary = self.directory.join("writing.tmp");
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(text)?;
            file.sync_data()?;
            fs::rename(&temporary, self.path(segment))
        };
        if let Err(error) = write() {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        self.next += 1;
        self.bytes += bytes;
        self.segments.push_back(segment);
        Ok(())
    }

    /// Reads a batch.
    pub(super) fn read(&self, segment: Segment) -> io::Result<Vec<u8>> {
        fs::read(self.path(segment))
    }

    /// Removes the oldest batch: delivered, or not readable any more.
    pub(super) fn pop(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.bytes -= segment.bytes;
            let _ = fs::remove_file(self.path(segment));
        }
    }

    fn path(&self, segment: Segment) -> PathBuf {
        self.directory.join(format!("{:020}-{}.ndjson", segment.number, segment.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_keeps_its_bound_its_order_and_its_content_over_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = SpoolConfig { directory: directory.path().join("spool"), bytes_max: 10 };
        let mut spool = Spool::open(&config).expect("created");
        spool.push(b"one\n", 1).expect("room");
        spool.push(b"two\n", 2).expect("room");
        let full = spool.push(b"three\n", 1).expect_err("past the bound");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        fs::write(config.directory.join("writing.tmp"), "torn").expect("writable");

        let mut spool = Spool::open(&config).expect("reopened");
        assert_eq!(spool.bytes(), 8);
        let first = spool.front().expect("kept");
        assert_eq!((spool.read(first).expect("readable"), first.events), (b"one\n".to_vec(), 1));
        spool.pop();
        spool.push(b"three\n", 3).expect("room again");
        let order: Vec<_> = std::iter::from_fn(|| {
            let segment = spool.front()?;
            spool.pop();
            Some(segment.events)
        })
        .collect();
        assert_eq!((order, spool.bytes()), (vec![2, 3], 0));
    }
}
