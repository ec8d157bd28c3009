//! A one-way stream of numbered UDP datagrams at a steady rate: what was lost, what came twice, what overtook what.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::network::Host;
use super::probe::Worker;

/// Bytes of a datagram: with the inner headers it fills most of the smallest inner MTU.
pub const PAYLOAD_LEN: usize = 1200;
/// Time between two bursts, and most datagrams of one.
const BURST_EVERY: Duration = Duration::from_millis(1);
const BURST_MAX: u64 = 32;
const RECEIVE_BUFFER: usize = 32 << 20;
const STOP_CHECK: Duration = Duration::from_millis(50);

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    sent: Arc<AtomicU64>,
    tally: Arc<Mutex<Tally>>,
    sender: Worker,
    _receiver: Worker,
}

#[derive(Debug, Default)]
struct Tally {
    /// One bit per number.
    seen: Vec<u64>,
    received: u64,
    duplicates: u64,
    highest: u64,
    overtaken: u64,
    farthest: u64,
    last: Option<Instant>,
    longest_gap: Duration,
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Numbers that arrived.
    pub received: u64,
    /// Numbers that did not.
    pub lost: u64,
    /// Datagrams that arrived again.
    pub duplicates: u64,
    /// Datagrams that arrived behind one with a higher number.
    pub overtaken: u64,
    /// The most that one was behind, in datagrams.
    pub farthest: u64,
    /// The longest time between two arrivals, in milliseconds.
    pub longest_gap_ms: f64,
}

impl Stream {
    /// Sends from `from` to the socket `to` of `receiver`, so many bits per second of UDP payload.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn start(from: &Host, receiver: &Host, to: SocketAddr, rate_bits: u64) -> Result<Self> {
        ensure!(rate_bits > 0, "a stream needs a rate");
        let receiving = receiver.namespace.enter(|| UdpSocket::bind(to))?.context("opening the sink")?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiving, RECEIVE_BUFFER)?;
        receiving.set_read_timeout(Some(STOP_CHECK))?;
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sending = from.namespace.enter(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            Ok::<_, std::io::Error>(socket)
        })?;
        let sending = sending.context("opening the source (is the route up?)")?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        let noted = Arc::clone(&tally);
        let receiver = Worker::start("stream-receive", move |stop| {
            let mut bytes = [0u8; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok(length) = receiving.recv(&mut bytes) else { continue };
                if let Some(number) = bytes[..length].first_chunk() {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).note(u64::from_be_bytes(*number));
                }
            }
        })?;
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let sender = Worker::start("stream-send", move |stop| {
            let start = Instant::now();
            let per_second = rate_bits as f64 / 8.0 / PAYLOAD_LEN as f64;
            let mut bytes = [0u8; PAYLOAD_LEN];
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // A sender that was kept from running catches up a little at a time, not all at once.
                let due = (start.elapsed().as_secs_f64() * per_second) as u64;
                let until = due.min(number + BURST_MAX);
                while number < until {
                    bytes[..8].copy_from_slice(&number.to_be_bytes());
                    if sending.send(&bytes).is_err() {
                        break;
                    }
                    number += 1;
                }
                counted.store(number, Ordering::Relaxed);
                std::thread::sleep(BURST_EVERY);
            }
        })?;
        Ok(Self { sent, tally, sender, _receiver: receiver })
    }

    /// How many numbers have arrived so far.
    pub fn received(&self) -> u64 {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).received
    }

    /// Waits until `more` further datagrams have arrived.
    ///
    /// # Errors
    /// When they have not after `timeout`.
    pub fn wait_for(&self, more: u64, timeout: Duration) -> Result<()> {
        let goal = self.received() + more;
        super::etcd::wait_until("the stream goes on", timeout, || self.received() >= goal)
    }

    /// Stops sending, lets what is under way arrive, and tells what became of it.
    ///
    /// # Errors
    /// When the worker cannot be stopped.
    pub fn finish(self) -> Result<StreamReport> {
        let Self { sent, tally, sender, _receiver } = self;
        drop(sender);
        let sent = sent.load(Ordering::Relaxed);
        let tally_now = || tally.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = |since: Duration| tally_now().last.is_none_or(|last| last.elapsed() > since);
        // All of it, or nothing more for longer than anything waits on the way.
        super::etcd::wait_until("the stream has run dry", Duration::from_secs(30), || {
            tally_now().received >= sent || silent(Duration::from_secs(3))
        })?;
        let tally = tally_now();
        Ok(StreamReport {
            sent,
            received: tally.received,
            lost: sent.saturating_sub(tally.received),
            duplicates: tally.duplicates,
            overtaken: tally.overtaken,
            farthest: tally.farthest,
            longest_gap_ms: crate::demo::report::millis(tally.longest_gap),
        })
    }
}

impl Tally {
    fn note(&mut self, number: u64) {
        let Ok(word) = usize::try_from(number / 64) else { return };
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if self.seen[word] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        if number < self.highest {
            self.overtaken += 1;
            self.farthest = self.farthest.max(self.highest - number);
        }
        self.highest = self.highest.max(number);
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_tells_what_came_twice_and_what_overtook_what() {
        let mut tally = Tally::default();
        for number in [0, 1, 5, 2, 5, 200, 3] {
            tally.note(number);
        }
        assert_eq!((tally.received, tally.duplicates, tally.overtaken, tally.farthest), (6, 1, 2, 197));
    }
}
