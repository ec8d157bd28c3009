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

    /// The payload of an unfragmented IPv4 UDP datagram.
    pub fn udp_payload(&self) -> Option<&[u8]> {
        let ip = self.bytes.get(LINK_HEADER..)?;
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let udp = (ip.first()? >> 4 == 4 && *ip.get(9)? == 17).then(|| ip.get(header..))??;
        let length = usize::from(u16::from_be_bytes(*udp.get(4..6)?.first_chunk()?));
        udp.get(8..length)
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    packets: Arc<Mutex<Vec<Captured>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures what `host` sends and receives on `link`, of what `filter` (pcap syntax) selects; returns once the
    /// capture runs.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(host: &Host, link: &str, filter: &str) -> Result<Self> {
        let mut command = host.namespace.command("tcpdump".as_ref());
        command
            .args([
                "-i",
                link,
                "-U",
                "-w",
                "-",
                "--immediate-mode",
                "-n",
                "-s",
                &BYTES_MAX.to_string(),
                "-B",
                "16384",
            ])
            .args(["--time-stamp-precision", "nano", "-Z", "root"])
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
        std::thread::spawn(move || std::io::copy(&mut notes, &mut std::io::sink()));
        let packets = Arc::new(Mutex::new(Vec::new()));
        let stream = child.stdout.take().context("no stdout")?;
        let kept = Arc::clone(&packets);
        let reader = std::thread::spawn(move || {
            let _ = read_pcap(BufReader::new(stream), &kept);
        });
        Ok(Self { child, packets, reader: Some(reader) })
    }

    /// What was captured so far.
    pub fn packets(&self) -> Vec<Captured> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the capture and returns all of it.
    pub fn stop(mut self) -> Vec<Captured> {
        self.end();
        std::mem::take(&mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        // SIGINT lets tcpdump write what it still holds.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads the classic pcap format in this machine's byte order.
fn read_pcap(mut stream: impl Read, packets: &Mutex<Vec<Captured>>) -> Result<()> {
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
        let mut packets = packets.lock().unwrap_or_else(PoisonError::into_inner);
        if packets.len() < PACKETS_MAX {
            packets.push(Captured { at, bytes });
        }
    }
}
