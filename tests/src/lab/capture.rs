//! Packet capture on one interface: `tcpdump` writes, this module reads.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::network::Host;

/// Packets kept; later ones are counted only by their absence, so checks state how many they expect at most.
const PACKETS_MAX: usize = 500_000;
const NANOSECOND_MAGIC: u32 = 0xa1b2_3c4d;
/// How many bytes of a frame are kept: all of any datagram that the outer network carries unfragmented.
pub const BYTES_MAX: usize = 2048;
/// Ethernet header before the IP packet.
const LINK_HEADER: usize = 14;

/// One captured frame.
#[derive(Debug, Clone)]
pub struct Captured {
    /// When the kernel saw it.
    pub at: SystemTime,
    /// Its bytes from the link header on, cut at [`BYTES_MAX`].
    pub bytes: Vec<u8>,
}

impl Captured {
    /// The IPv4 source and destination, when it is an IPv4 packet.
    pub fn ipv4(&self) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
        let ip = self.bytes.get(LINK_HEADER..LINK_HEADER + 20)?;
        let address = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).ok().map(std::net::Ipv4Addr::from);
        (ip[0] >> 4 == 4).then_some(())?;
        Some((address(12)?, address(16)?))
    }

    /// The link-layer source.
    pub fn link_source(&self) -> Option<[u8; 6]> {
        self.bytes.get(6..12)?.first_chunk().copied()
    }

    /// UDP ports, source and destination.
    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        let ip = self.bytes.get(LINK_HEADER..)?;
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let port = |at: usize| ip.get(header + at..)?.first_chunk().map(|port| u16::from_be_bytes(*port));
        (*ip.get(9)? == 17).then(|| Some((port(0)?, port(2)?)))?
    }

    /// The payload of an unfragmented IPv4 UDP datagram.
    pub fn udp_payload(&self) -> Option<&[u8]> {
        let ip = self.bytes.get(LINK_HEADER..)?;
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let udp = (ip.first()? >> 4 == 4 && *ip.get(9)? == 17).then(|| ip.get(header..))??;
        let length = usize::from(u16::from_be_bytes(*udp.get(4..6)?.first_chunk()?));
        udp.get(8..length)
    }
}

/// A running capture that keeps what it saw.
#[derive(Debug)]
pub struct Capture {
    tap: Tap,
    packets: Arc<Mutex<Vec<Captured>>>,
}

impl Capture {
    /// Captures what `host` sends and receives on `link`, of what `filter` (pcap syntax) selects; returns once the
    /// capture runs.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(host: &Host, link: &str, filter: &str) -> Result<Self> {
        let packets = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&packets);
        let tap = Tap::start(host, link, filter, BYTES_MAX, move |packet| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < PACKETS_MAX {
                kept.push(packet);
            }
        })?;
        Ok(Self { tap, packets })
    }

    /// What was captured so far.
    pub fn packets(&self) -> Vec<Captured> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the capture and returns all of it.
    pub fn stop(mut self) -> Vec<Captured> {
        self.tap.end();
        std::mem::take(&mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running capture that hands each frame on.
#[derive(Debug)]
pub struct Tap {
    child: Child,
    reader: Option<JoinHandle<()>>,
    notes: Option<JoinHandle<String>>,
    told: String,
}

impl Tap {
    /// Hands every frame that `filter` selects on `link` of `host` to `sink`, cut at `bytes`; returns once it runs.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(
        host: &Host,
        link: &str,
        filter: &str,
        bytes: usize,
        mut sink: impl FnMut(Captured) + Send + 'static,
    ) -> Result<Self> {
        let mut command = host.namespace.command("tcpdump".as_ref());
        command
            .args(["-i", link, "-U", "-w", "-", "--immediate-mode", "-n", "-B", "16384"])
            .args(["-s", &bytes.to_string(), "--time-stamp-precision", "nano", "-Z", "root"])
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("running tcpdump")?;
        let mut notes = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let count = notes.read_line(&mut line)?;
            ensure!(count > 0, "tcpdump did not start: run scripts/install-deps.sh test");
        }
        let notes = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = notes.read_to_string(&mut text);
            text
        });
        let stream = child.stdout.take().context("no stdout")?;
        let reader = std::thread::spawn(move || {
            let _ = read_pcap(BufReader::new(stream), &mut sink);
        });
        Ok(Self { child, reader: Some(reader), notes: Some(notes), told: String::new() })
    }

    /// Ends the capture; all frames have been handed on when it returns.
    pub fn end(&mut self) {
        // SIGINT lets tcpdump write what it still holds.
        let pid = rustix::process::Pid::from_child(&self.child);
        if self.reader.is_some() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if let Some(notes) = self.notes.take() {
            self.told = notes.join().unwrap_or_default();
        }
    }

    /// How many frames the kernel dropped because the capture was too slow; known after [`Self::end`].
    pub fn dropped(&self) -> Option<u64> {
        let line = self.told.lines().find(|line| line.contains("dropped by kernel"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads the classic pcap format in this machine's byte order.
fn read_pcap(mut stream: impl Read, sink: &mut impl FnMut(Captured)) -> Result<()> {
    let mut header = [0u8; 24];
    stream.read_exact(&mut header)?;
    let word = |bytes: &[u8], i: usize| -> Result<u32> {
        Ok(u32::from_ne_bytes(bytes[4 * i..4 * i + 4].try_into().context("a word has four bytes")?))
    };
    ensure!(word(&header, 0)? == NANOSECOND_MAGIC, "not the pcap format that was asked for");
    loop {
        let mut record = [0u8; 16];
        stream.read_exact(&mut record)?;
        let length = usize::try_from(word(&record, 2)?)?;
        ensure!(length <= 65_536, "a record of {length} bytes");
        let mut bytes = vec![0u8; length];
        stream.read_exact(&mut bytes)?;
        let at = UNIX_EPOCH + Duration::new(word(&record, 0)?.into(), word(&record, 1)?);
        sink(Captured { at, bytes });
    }
}
