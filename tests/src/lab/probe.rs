//! A UDP probe through the tunnel: a numbered datagram every few milliseconds, echoed by the inner server; tells how
//! long nothing came through.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::network::Host;

/// Time between two probes.
pub const INTERVAL: Duration = Duration::from_millis(5);
/// How long a blocked receive waits before it looks whether to stop.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// A probe of a longer run than this stops by itself: 30 minutes.
const PROBES_MAX: usize = 360_000;

/// Echoes datagrams until dropped, and notes when each numbered one arrived.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    arrivals: Arc<Mutex<Vec<(u64, Instant)>>>,
    worker: Worker,
}

impl EchoServer {
    /// Starts on the inner address of `host`.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_at(host, host.lan_socket(port))
    }

    /// Starts on any address of `host`.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn start_at(host: &Host, address: SocketAddr) -> Result<Self> {
        let socket = host.namespace.enter(|| UdpSocket::bind(address))?.context("opening the echo socket")?;
        socket.set_read_timeout(Some(STOP_CHECK))?;
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&arrivals);
        let worker = Worker::start("echo", move |stop| {
            let mut bytes = [0u8; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                let _ = socket.send_to(&bytes[..length], from);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(number) = number(&bytes[..length])
                    && seen.len() < PROBES_MAX
                {
                    seen.push((number, Instant::now()));
                }
            }
        })?;
        Ok(Self { address, arrivals, worker })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The times at which datagrams reached the server.
    pub fn arrivals(&self) -> Vec<Instant> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, at)| *at).collect()
    }

    /// Forgets what arrived so far.
    pub fn forget(&self) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Stops.
    pub fn stop(self) {
        drop(self.worker);
    }
}

/// Sends a probe every [`INTERVAL`] until stopped.
#[derive(Debug)]
pub struct Probe {
    record: Arc<Mutex<Record>>,
    local: SocketAddr,
    sender: Worker,
    receiver: Worker,
}

#[derive(Debug, Default)]
struct Record {
    sent: Vec<Instant>,
    /// Number of the probe and when its echo came, in the order of arrival.
    echoes: Vec<(u64, Instant)>,
    send_errors: usize,
}

/// What a probe saw.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    /// Datagrams sent.
    pub sent: usize,
    /// Echoes received, duplicates left out.
    pub answered: usize,
    /// Echoes received more than once.
    pub duplicates: usize,
    /// Sends that the device's own stack refused.
    pub send_errors: usize,
    /// The longest time between two echoes.
    pub longest_gap: Duration,
    /// When the longest gap began.
    pub gap_start: Option<Instant>,
}

impl Probe {
    /// Starts from inside the device's namespace towards `server`.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn start(device: &Host, server: SocketAddr) -> Result<Self> {
        let socket = device.namespace.enter(|| {
            let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(server)?;
            Ok::<_, std::io::Error>(socket)
        })?;
        let socket = socket.context("opening the probe socket (is the route to the inner network up?)")?;
        socket.set_read_timeout(Some(STOP_CHECK))?;
        let local = socket.local_addr()?;
        let record = Arc::new(Mutex::new(Record::default()));
        let (sending, receiving) = (socket.try_clone()?, socket);
        let noted = Arc::clone(&record);
        let sender = Worker::start("probe-send", move |stop| {
            let start = Instant::now();
            for number in 0..PROBES_MAX as u64 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let mut bytes = [0u8; 64];
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                let sent = sending.send(&bytes);
                {
                    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    noted.sent.push(Instant::now());
                    noted.send_errors += usize::from(sent.is_err());
                }
                let due = start + INTERVAL * u32::try_from(number + 1).unwrap_or(u32::MAX);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        })?;
        let noted = Arc::clone(&record);
        let receiver = Worker::start("probe-receive", move |stop| {
            let mut bytes = [0u8; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok(length) = receiving.recv(&mut bytes) else { continue };
                if let Some(number) = number(&bytes[..length]) {
                    noted
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .echoes
                        .push((number, Instant::now()));
                }
            }
        })?;
        Ok(Self { record, local, sender, receiver })
    }

    /// The probe's own address: the session's inner address once the route is up.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// How many echoes have come so far.
    pub fn answered(&self) -> usize {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).echoes.len()
    }

    /// Waits until `more` further echoes have come.
    ///
    /// # Errors
    /// When they have not after `timeout`.
    pub fn wait_for_echoes(&self, more: usize, timeout: Duration) -> Result<()> {
        let goal = self.answered() + more;
        super::etcd::wait_until("the probe's echoes come back", timeout, || self.answered() >= goal)
    }

    /// Probes sent between two instants whose echo has not come.
    pub fn lost_between(&self, from: Instant, to: Instant) -> usize {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answered = vec![false; record.sent.len()];
        for (number, _) in &record.echoes {
            if let Some(slot) = usize::try_from(*number).ok().and_then(|number| answered.get_mut(number)) {
                *slot = true;
            }
        }
        let sent = record.sent.iter().zip(answered);
        sent.filter(|(at, answered)| (from..=to).contains(*at) && !answered).count()
    }

    /// The median time from a probe to its echo.
    pub fn round_trip(&self) -> Duration {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = |number: u64| record.sent.get(usize::try_from(number).ok()?);
        let mut times: Vec<Duration> = record
            .echoes
            .iter()
            .filter_map(|(number, at)| Some(at.saturating_duration_since(*sent(*number)?)))
            .collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    /// What it saw since `from` (the whole run when `None`), without stopping it.
    pub fn report_since(&self, from: Option<Instant>) -> ProbeReport {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |at: &Instant| from.is_none_or(|from| *at >= from);
        let mut numbers: Vec<_> = record.echoes.iter().filter(|(_, at)| since(at)).map(|(n, _)| *n).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        // The last echo before `from` begins the first gap.
        let mut times: Vec<_> = record.echoes.iter().map(|(_, at)| *at).collect();
        let first = times.iter().position(since).unwrap_or(times.len()).saturating_sub(1);
        times.drain(..first);
        let (longest_gap, gap_start) = longest_gap(&times);
        ProbeReport {
            sent: record.sent.iter().filter(|at| since(at)).count(),
            answered: numbers.len(),
            duplicates: all - numbers.len(),
            send_errors: record.send_errors,
            longest_gap,
            gap_start,
        }
    }

    /// Stops and tells what it saw.
    pub fn stop(self) -> ProbeReport {
        let report = self.report_since(None);
        drop(self.sender);
        drop(self.receiver);
        report
    }
}

/// The longest time between neighbours, and where it began.
pub fn longest_gap(times: &[Instant]) -> (Duration, Option<Instant>) {
    times
        .windows(2)
        .map(|pair| (pair[1].saturating_duration_since(pair[0]), Some(pair[0])))
        .max_by_key(|(gap, _)| *gap)
        .unwrap_or((Duration::ZERO, None))
}

fn number(datagram: &[u8]) -> Option<u64> {
    datagram.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A thread that is told to stop, and joined, when dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(name: &str, body: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(&told))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// True until its body has returned.
    pub(crate) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
