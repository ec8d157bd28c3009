//! The bounded queue between callers, which never wait, and a thread that may wait for ever on its output.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::thread::COMPANY;

/// The longest queue, in lines. A line that finds it full is dropped and counted.
pub(super) const QUEUE_LINES_MAX: usize = 8192;

/// The longest queue, in bytes, under the same policy.
pub(super) const QUEUE_BYTES_MAX: usize = 4 << 20;

/// The most lines in one write.
const WRITE_LINES_MAX: usize = 256;

/// The length after which a write is long enough, in bytes.
const WRITE_BYTES: usize = 64 * 1024;

/// What a queue did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStats {
    /// Lines accepted.
    pub queued: u64,
    /// Lines dropped: the queue was full or the output failed.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    queued: AtomicU64,
    dropped: AtomicU64,
    bytes: AtomicUsize,
}

enum Message {
    Line(String),
    Flush(SyncSender<()>),
}

/// Accepts lines without ever blocking; a thread of its own writes them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QueueWriter {
    queue: SyncSender<Message>,
    counters: Arc<Counters>,
}

impl QueueWriter {
    /// Starts the thread that writes to `output`. It ends when the last clone is dropped.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE_LINES_MAX);
        let counters = Arc::new(Counters::default());
        let written = Arc::clone(&counters);
        crate::thread::spawn("jump-log".into(), move || write_lines(&lines, &written, output))?;
        Ok(Self { queue, counters })
    }

    /// Queues a line (with its newline), or drops it and counts that.
    pub fn push(&self, line: String) {
        let length = line.len();
        let before = self.counters.bytes.fetch_add(length, Ordering::Relaxed);
        let sent = before + length <= QUEUE_BYTES_MAX && self.queue.try_send(Message::Line(line)).is_ok();
        if sent {
            self.counters.queued.fetch_add(1, Ordering::Relaxed);
        } else {
            self.counters.bytes.fetch_sub(length, Ordering::Relaxed);
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything queued before is written, at most for `timeout`. Says whether it was.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => return wait.recv_timeout(deadline - Instant::now().min(deadline)).is_ok(),
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    message = back;
                    thread::sleep(Duration::from_millis(5));
                }
                Err(TrySendError::Full(_)) => return false,
            }
        }
    }

    /// Returns what was queued and dropped so far.
    pub fn stats(&self) -> LogStats {
        LogStats {
            queued: self.counters.queued.load(Ordering::Relaxed),
            dropped: self.counters.dropped.load(Ordering::Relaxed),
        }
    }
}

fn write_lines(lines: &Receiver<Message>, counters: &Counters, mut output: impl Write) {
    let mut text = String::new();
    let mut is_behind = false;
    while let Ok(first) = lines.recv() {
        // What did not fit into the last write has waited already.
        if !is_behind {
            thread::sleep(COMPANY);
        }
        let mut flushes = Vec::new();
        let mut count = 0;
        for message in std::iter::once(first).chain(lines.try_iter()) {
            match message {
                Message::Line(line) => {
                    text.push_str(&line);
                    count += 1;
                }
                Message::Flush(done) => flushes.push(done),
            }
            is_behind = count == WRITE_LINES_MAX || text.len() >= WRITE_BYTES;
            if is_behind || !flushes.is_empty() {
                break;
            }
        }
        if output.write_all(text.as_bytes()).is_err() {
            counters.dropped.fetch_add(count as u64, Ordering::Relaxed);
        }
        counters.bytes.fetch_sub(text.len(), Ordering::Relaxed);
        text.clear();
        // A line of many megabytes does not keep its memory.
        text.shrink_to(2 * WRITE_BYTES);
        for done in flushes {
            let _ = output.flush();
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
pub(super) fn memory() -> (impl Write + Send + 'static, Arc<std::sync::Mutex<Vec<String>>>) {
    struct Lines(Arc<std::sync::Mutex<Vec<String>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let text = String::from_utf8_lossy(bytes);
            self.0.lock().expect("no panic").extend(text.split_inclusive('\n').map(str::to_owned));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::default();
    (Lines(Arc::clone(&lines)), lines)
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// An output that writes nothing until it is opened, as a pipe whose reader sleeps.
    #[derive(Clone, Default)]
    struct Stalled(Arc<(Mutex<bool>, Condvar)>);

    impl Stalled {
        fn open(&self) {
            *self.0.0.lock().expect("no panic") = true;
            self.0.1.notify_all();
        }
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let open = self.0.0.lock().expect("no panic");
            let _open = self.0.1.wait_while(open, |open| !*open).expect("no panic");
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_output_costs_lines_but_neither_time_nor_unbounded_memory() {
        let output = Stalled::default();
        let writer = QueueWriter::start(output.clone()).expect("a thread starts");
        let pushed = 3 * QUEUE_LINES_MAX as u64;
        (0..pushed).for_each(|i| writer.push(format!("line {i}\n")));
        let stats = writer.stats();
        assert_eq!(stats.queued + stats.dropped, pushed);
        assert!(stats.queued <= (QUEUE_LINES_MAX + WRITE_LINES_MAX) as u64, "{stats:?}");
        assert!(!writer.flush(Duration::from_millis(10)));
        output.open();
        assert!(writer.flush(Duration::from_secs(10)));
        assert_eq!(writer.counters.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn lines_that_come_together_are_written_together_and_in_their_order() {
        #[derive(Clone, Default)]
        struct Writes(Arc<Mutex<Vec<String>>>);
        impl Write for Writes {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let text = String::from_utf8(bytes.to_vec()).expect("text");
                self.0.lock().expect("no panic").push(text);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (queue, lines) = sync_channel(QUEUE_LINES_MAX);
        let counters = Counters::default();
        let wanted: Vec<String> = (0..1000).map(|i| format!("line {i}\n")).collect();
        for line in &wanted {
            counters.bytes.fetch_add(line.len(), Ordering::Relaxed);
            queue.try_send(Message::Line(line.clone())).expect("there is room");
        }
        drop(queue);
        let output = Writes::default();
        write_lines(&lines, &counters, output.clone());
        let writes = output.0.lock().expect("no panic").clone();
        assert_eq!(writes.concat(), wanted.concat());
        assert_eq!(writes.len(), wanted.len().div_ceil(WRITE_LINES_MAX));
        assert_eq!(counters.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn few_but_huge_lines_are_bounded_by_their_bytes() {
        let output = Stalled::default();
        let writer = QueueWriter::start(output.clone()).expect("a thread starts");
        (0..100).for_each(|_| writer.push("x".repeat(1 << 20)));
        assert!(writer.counters.bytes.load(Ordering::Relaxed) <= QUEUE_BYTES_MAX);
        assert!(writer.stats().dropped >= 95);
        output.open();
    }

    #[test]
    fn a_failing_output_is_counted() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let writer = QueueWriter::start(Broken).expect("a thread starts");
        writer.push("lost\n".into());
        assert!(writer.flush(Duration::from_secs(5)));
        assert_eq!(writer.stats(), LogStats { queued: 1, dropped: 1 });
    }
}
