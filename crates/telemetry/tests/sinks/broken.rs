//! Receivers that stall, refuse and die: nothing blocks, memory stays bounded, everything is accounted for.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jump_telemetry::sink::SinkStats;

use crate::support::{emit, epochs, eventually, free_address, start, stats};

const EVENTS: u64 = 20_000;
const QUEUE_EVENTS_MAX: u64 = 500;
const QUEUE_BYTES_MAX: u64 = 512 * 1024;

/// A port whose connections are treated badly.
struct Bad {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Bad {
    /// Accepts and never reads.
    fn stalled() -> Self {
        Self::serve(|stream, kept| kept.push(stream))
    }

    /// Reads a little and cuts the connection, with data unread, so that the sender gets a reset.
    fn dying() -> Self {
        Self::serve(|mut stream, _| {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.read(&mut [0; 100]);
        })
    }

    fn serve(treat: impl Fn(TcpStream, &mut Vec<TcpStream>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                treat(stream, &mut kept);
            }
        });
        Self { address, stop }
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// Every network sink pointed at one bad address, beside a healthy file.
fn sinks(address: SocketAddr, file: &std::path::Path) -> String {
    let queue = format!(
        "queue = {{ events_max = {QUEUE_EVENTS_MAX}, bytes_max = {QUEUE_BYTES_MAX} }}\ntimeout = \"300ms\""
    );
    format!(
        "[[sinks]]\nkind = \"syslog\"\nname = \"tcp\"\ntransport = \"tcp\"\naddress = \"{address}\"\n{queue}\n\
         [[sinks]]\nkind = \"syslog\"\nname = \"udp\"\ntransport = \"udp\"\naddress = \"{address}\"\n{queue}\n\
         [[sinks]]\nkind = \"otlp\"\nname = \"otlp\"\nendpoint = \"http://{address}\"\n{queue}\n\
         [[sinks]]\nkind = \"http\"\nname = \"http\"\nurl = \"http://{address}/\"\n{queue}\n\
         [[sinks]]\nkind = \"file\"\nname = \"disk\"\npath = {file:?}\nqueue = {{ events_max = 65536, bytes_max = 268435456 }}\n"
    )
}

fn check_bounds(name: &str, stats: &SinkStats) {
    assert!(stats.queue_bytes <= QUEUE_BYTES_MAX, "{name} holds {} bytes", stats.queue_bytes);
    // One batch may be on its way out of the queue.
    assert!(stats.queue_events <= QUEUE_EVENTS_MAX + 512, "{name} holds {} events", stats.queue_events);
}

/// Emits a burst at sinks that cannot deliver, and settles the account at the end.
fn burst(address: SocketAddr, expect_failures: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("audit.json");
    let (audit, guard) = start(&sinks(address, &file));
    for from in (0..EVENTS).step_by(1000) {
        emit(&audit, from..from + 1000);
        guard
            .sinks()
            .iter()
            .filter(|(name, _)| name != "disk")
            .for_each(|(name, stats)| check_bounds(name, stats));
    }
    assert_eq!(audit.stats().dropped, 0);
    eventually("the healthy sink has everything", || stats(&guard, "disk").sent == EVENTS);
    for name in expect_failures {
        eventually("the sink notices", || stats(&guard, name).failures > 0);
    }
    for (name, stats) in guard.sinks() {
        assert_eq!(stats.queued + stats.dropped_queue_full, EVENTS, "{name}: {stats:?}");
        if name != "disk" {
            check_bounds(&name, &stats);
        }
    }
    for name in ["otlp", "http"] {
        let stats = stats(&guard, name);
        assert_eq!(stats.sent, 0, "{name} counts as sent what nobody acknowledged");
        assert!(stats.dropped_queue_full >= EVENTS - 2 * QUEUE_EVENTS_MAX - 512, "{name}: {stats:?}");
    }
    let found = epochs(std::fs::read_to_string(&file).expect("readable").lines());
    assert_eq!(found, (0..EVENTS).collect::<Vec<_>>());
    assert!(!guard.close(Duration::from_millis(300)), "what is left is not a success");
}

#[test]
fn sinks_whose_receiver_never_reads_block_nobody() {
    let bad = Bad::stalled();
    burst(bad.address, &["otlp", "http"]);
}

#[test]
fn sinks_whose_receiver_refuses_block_nobody() {
    burst(free_address(), &["tcp", "udp", "otlp", "http"]);
}

#[test]
fn sinks_whose_receiver_dies_in_the_middle_block_nobody() {
    let bad = Bad::dying();
    burst(bad.address, &["tcp", "otlp", "http"]);
}

#[test]
fn retries_against_a_receiver_that_never_reads_do_not_pile_up_connections() {
    let bad = Bad::stalled();
    let directory = tempfile::tempdir().expect("a directory");
    let (audit, guard) = start(&sinks(bad.address, &directory.path().join("audit.json")));
    emit(&audit, 0..2000);
    eventually("several attempts failed", || {
        ["otlp", "http"].iter().all(|name| stats(&guard, name).failures >= 6)
    });
    let port = format!(":{:04X} ", bad.address.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("readable");
    // Our ends: the bad port is the remote one (third column), established (01), not closing.
    let open = table
        .lines()
        .filter(|line| {
            let mut columns = line.split_whitespace().skip(2);
            let remote = columns.next().unwrap_or_default().to_owned() + " ";
            remote.ends_with(&port) && columns.next() == Some("01")
        })
        .count();
    assert!((1..=4).contains(&open), "{open} connections for three sinks");
}
