//! A paced TCP download over HTTP/1.1, with a checksum that the server knows before the first byte leaves.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ring::digest::{Context as Digest, SHA256};

use super::network::Host;
use super::probe::Worker;
use super::rng::Rng;

const CHUNK: usize = 16 * 1024;
/// A download without a byte for this long has stalled for good.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Serves `GET /SEED/LENGTH`: that many bytes from the generator with that seed, at a capped rate.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    bytes_per_second: Arc<AtomicU64>,
    worker: Option<Worker>,
}

impl WebServer {
    /// Starts on the inner address of `host`.
    ///
    /// # Errors
    /// When the port cannot be opened.
    pub fn start(host: &Host, port: u16, bytes_per_second: u64) -> Result<Self> {
        Self::start_at(host, host.lan_socket(port), bytes_per_second)
    }

    /// Starts on any address of `host`.
    ///
    /// # Errors
    /// When the port cannot be opened.
    pub fn start_at(host: &Host, address: SocketAddr, bytes_per_second: u64) -> Result<Self> {
        let listener =
            host.namespace.enter(|| TcpListener::bind(address))?.context("opening the web server")?;
        listener.set_nonblocking(true)?;
        let bytes_per_second = Arc::new(AtomicU64::new(bytes_per_second));
        let pace = Arc::clone(&bytes_per_second);
        let worker = Worker::start("web", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let pace = Arc::clone(&pace);
                        std::thread::spawn(move || {
                            let _ = serve(stream, &pace);
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        })?;
        Ok(Self { address, bytes_per_second, worker: Some(worker) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the pace, of downloads under way too.
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Stops taking connections.
    pub fn stop(&mut self) {
        self.worker = None;
    }
}

fn serve(stream: TcpStream, bytes_per_second: &AtomicU64) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL_MAX))?;
    stream.set_write_timeout(Some(STALL_MAX))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let path = request.split(' ').nth(1).context("no path")?;
    let (seed, length) = path.trim_start_matches('/').split_once('/').context("not /SEED/LENGTH")?;
    let (seed, length) = (seed.parse()?, length.parse::<u64>()?);
    let mut out = stream;
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    let mut source = Rng::new(seed);
    let mut chunk = vec![0u8; CHUNK];
    let (mut due, mut sent) = (Instant::now(), 0u64);
    while sent < length {
        let take = chunk.len().min(usize::try_from(length - sent)?);
        source.fill(&mut chunk);
        out.write_all(&chunk[..take])?;
        sent += take as u64;
        let pace = bytes_per_second.load(Ordering::Relaxed).max(1);
        due += Duration::from_secs_f64(take as f64 / pace as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// The SHA-256 of what [`WebServer`] sends for a seed and a length.
pub fn expected_digest(seed: u64, length: u64) -> [u8; 32] {
    let mut digest = Digest::new(&SHA256);
    let mut source = Rng::new(seed);
    let mut chunk = vec![0u8; CHUNK];
    let mut left = length;
    while left > 0 {
        source.fill(&mut chunk);
        let take = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        digest.update(&chunk[..take]);
        left -= take as u64;
    }
    to_array(digest)
}

fn to_array(digest: Digest) -> [u8; 32] {
    let mut out = [0u8; 32];
    out.copy_from_slice(digest.finish().as_ref());
    out
}

/// A running download over one TCP connection.
#[derive(Debug)]
pub struct Download {
    progress: Arc<Progress>,
    expected: u64,
    result: mpsc::Receiver<Result<Downloaded>>,
}

#[derive(Debug, Default)]
struct Progress {
    received: AtomicU64,
    finished: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

/// A download that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes of the body.
    pub length: u64,
    /// SHA-256 of the body.
    pub digest: [u8; 32],
    /// The longest time in which no byte came.
    pub longest_stall: Duration,
    /// The connection's own address: the session's inner address.
    pub local: SocketAddr,
    /// From connect to the last byte.
    pub took: Duration,
}

impl Download {
    /// Connects from inside the device's namespace and downloads on a thread of its own.
    ///
    /// # Errors
    /// When the connection is not made.
    pub fn start(device: &Host, server: SocketAddr, seed: u64, length: u64) -> Result<Self> {
        let stream =
            device.namespace.enter(|| TcpStream::connect_timeout(&server, Duration::from_secs(10)))?;
        let stream = stream.with_context(|| format!("connecting to {server} through the tunnel"))?;
        let progress = Arc::new(Progress::default());
        let (done, result) = mpsc::sync_channel(1);
        let noted = Arc::clone(&progress);
        std::thread::Builder::new().name("download".into()).spawn(move || {
            let outcome = fetch(stream, seed, length, &noted);
            let _ = done.send(outcome);
            noted.finished.store(true, Ordering::Release);
            noted.changed.notify_all();
        })?;
        Ok(Self { progress, expected: length, result })
    }

    /// Bytes received so far, of how many.
    pub fn progress(&self) -> (u64, u64) {
        (self.progress.received.load(Ordering::Relaxed), self.expected)
    }

    /// Whether it has come to its end, good or bad.
    pub fn has_ended(&self) -> bool {
        self.progress.finished.load(Ordering::Acquire)
    }

    /// Waits until that many bytes have come.
    ///
    /// # Errors
    /// When the download ends or `timeout` passes first.
    pub fn wait_for(&self, bytes: u64, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut guard = self.progress.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.progress.received.load(Ordering::Relaxed) < bytes {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !self.progress.finished.load(Ordering::Acquire),
                "the download ended before byte {bytes}"
            );
            ensure!(!left.is_zero(), "byte {bytes} did not come within {timeout:?}");
            guard = self.progress.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the connection was reset, closed early, stalled for a minute, or lasts longer than `timeout`.
    pub fn finish(self, timeout: Duration) -> Result<Downloaded> {
        let (received, expected) = self.progress();
        match self.result.recv_timeout(timeout) {
            Ok(result) => result,
            Err(_) => bail!("the download stands at {received} of {expected} bytes after {timeout:?}"),
        }
    }
}

fn fetch(stream: TcpStream, seed: u64, length: u64, progress: &Progress) -> Result<Downloaded> {
    let start = Instant::now();
    let local = stream.local_addr()?;
    stream.set_read_timeout(Some(STALL_MAX))?;
    (&stream).write_all(format!("GET /{seed}/{length} HTTP/1.1\r\nHost: inner\r\n\r\n").as_bytes())?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let mut announced = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).context("reading the response")?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            announced = value.trim().parse::<u64>().ok();
        }
        match line.trim_end() {
            "" => break,
            _ => ensure!(line.ends_with('\n'), "the response ended in its header"),
        }
    }
    ensure!(announced == Some(length), "the server announced {announced:?} bytes");
    let mut digest = Digest::new(&SHA256);
    let mut buffer = vec![0u8; 64 * 1024];
    let (mut received, mut last, mut longest_stall) = (0u64, Instant::now(), Duration::ZERO);
    while received < length {
        let count = match reader.read(&mut buffer) {
            Ok(0) => bail!("the connection was closed at byte {received} of {length}"),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("at byte {received} of {length}")),
        };
        digest.update(&buffer[..count]);
        received += count as u64;
        longest_stall = longest_stall.max(last.elapsed());
        last = Instant::now();
        progress.received.store(received, Ordering::Relaxed);
        drop(progress.lock.lock().unwrap_or_else(PoisonError::into_inner));
        progress.changed.notify_all();
    }
    Ok(Downloaded { length: received, digest: to_array(digest), longest_stall, local, took: start.elapsed() })
}
