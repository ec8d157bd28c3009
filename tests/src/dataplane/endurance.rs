//! Full load for a long time while the session moves from gateway to gateway: does memory grow, and does anything stall
//! other than the moves?

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Pid;
use serde_json::json;

use crate::lab::cluster::{Cluster, Plan, gateway_name};
use crate::lab::probe::Worker;
use crate::lab::process::resident_bytes;

/// A pause of the download longer than this is a stall.
const STALL: Duration = Duration::from_millis(50);
/// How long after the owner has changed a pause still belongs to the move: the stream itself notices losses late.
const MOVE_TAIL: Duration = Duration::from_millis(300);
/// Between two moves.
const MOVE_EVERY: Duration = Duration::from_secs(1);
/// Growth of resident memory, in bytes per minute, that is no leak: the allocator's and the counters' own.
const GROWTH_PER_MINUTE_MAX: f64 = 256.0 * 1024.0;
/// Bytes of one read.
const READ_LEN: usize = 256 * 1024;
const PORT: u16 = 8080;

/// What was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Endured {
    /// How long it ran.
    pub seconds: f64,
    /// Payload that arrived.
    pub bytes: u64,
    /// Moves that were made.
    pub moves: usize,
    /// The longest pause in a move, in milliseconds.
    pub move_pause_ms: f64,
    /// The longest other pause, in milliseconds.
    pub other_pause_ms: f64,
    /// Pauses of more than [`STALL`] outside of moves.
    pub stalls: usize,
    /// Growth of each process's memory over the second half, in bytes per minute.
    pub growth_per_minute: Vec<(String, f64)>,
}

impl Endured {
    /// True when nothing leaked and nothing but moves stalled.
    pub fn holds(&self) -> bool {
        self.stalls == 0
            && self.moves > 0
            && self.growth_per_minute.iter().all(|(_, growth)| *growth <= GROWTH_PER_MINUTE_MAX)
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        let growth: serde_json::Map<String, serde_json::Value> = self
            .growth_per_minute
            .iter()
            .map(|(name, growth)| (name.clone(), json!(growth.round())))
            .collect();
        json!({ "seconds": self.seconds, "gbit_per_second": self.bytes as f64 * 8e-9 / self.seconds,
            "moves": self.moves, "longest_pause_of_moves_ms": self.move_pause_ms,
            "longest_other_pause_ms": self.other_pause_ms, "stalls": self.stalls,
            "growth_bytes_per_minute": growth, "holds": self.holds() })
    }
}

/// A pause of the download: when it began and ended.
type Pause = (Instant, Instant);

/// Runs the load and the moves for `time`.
///
/// # Errors
/// When something does not start, a move fails, or the download breaks.
pub fn endure(time: Duration) -> Result<Endured> {
    let plan = Plan {
        // The session moves more often here than an ordinary policy lets it.
        control_settings: "[policy]\nswitches_per_minute_max = 200\nswitch_cooldown = \"0s\"\n".to_owned(),
        ..Plan::small("endurance")
    };
    let mut cluster = Cluster::start(&plan)?;
    let server = serve(&cluster)?;
    let session = cluster.up(0)?;
    let (bytes, pauses) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::<Pause>::new())));
    let download = download(&cluster, &bytes, &pauses)?;
    // Buffers and tables reach their size.
    std::thread::sleep(Duration::from_secs(2));

    let mut processes = Vec::new();
    for i in 0..cluster.gateways.len() {
        processes.push((gateway_name(i), cluster.worker(i)?));
    }
    processes.push(("device".to_owned(), cluster.devices[0].as_ref().context("the device is up")?.pid()));
    let (start, mut moves, mut memory) = (Instant::now(), Vec::new(), Vec::new());
    let before = bytes.load(Ordering::Relaxed);
    while start.elapsed() < time {
        let began = Instant::now();
        let order = ["sessions", "move", &session.session, "--wait", "10s"];
        cluster.operator.json(cluster.operator_host(), &order).inspect_err(|_| cluster.run.keep())?;
        moves.push((began, Instant::now() + MOVE_TAIL));
        memory.push((start.elapsed(), sizes(&processes)?));
        ensure!(download.is_running(), "the download has broken");
        std::thread::sleep(MOVE_EVERY.saturating_sub(began.elapsed()));
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = bytes.load(Ordering::Relaxed) - before;
    drop((download, server));
    let pauses = pauses.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let pauses: Vec<Pause> = pauses.into_iter().filter(|(_, end)| *end > start).collect();
    let (of_moves, others): (Vec<Pause>, Vec<Pause>) =
        pauses.into_iter().partition(|pause| moves.iter().any(|order| overlap(pause, order)));
    let names = processes.iter().map(|(name, _)| name.clone());
    let growth = names.enumerate().map(|(i, name)| {
        let samples: Vec<(f64, f64)> =
            memory.iter().map(|(at, sizes)| (at.as_secs_f64(), sizes[i] as f64)).collect();
        (name, 60.0 * slope(&samples[samples.len() / 2..]))
    });
    Ok(Endured {
        seconds,
        bytes,
        moves: moves.len(),
        move_pause_ms: longest(&of_moves),
        other_pause_ms: longest(&others),
        stalls: others.len(),
        growth_per_minute: growth.collect(),
    })
}

/// Sends zeros to whoever connects, as fast as they go.
fn serve(cluster: &Cluster) -> Result<Worker> {
    let host = &cluster.network.inner;
    let listener = host.namespace.enter(|| TcpListener::bind(host.lan_socket(PORT)))??;
    Worker::start("flood", move |stop| {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let chunk = vec![0; READ_LEN];
        while !stop.load(Ordering::Relaxed) && stream.write_all(&chunk).is_ok() {}
    })
}

/// Reads as fast as it comes and writes down every pause.
fn download(cluster: &Cluster, bytes: &Arc<AtomicU64>, pauses: &Arc<Mutex<Vec<Pause>>>) -> Result<Worker> {
    let address = cluster.network.inner.lan_socket(PORT);
    let device = &cluster.network.devices[0];
    let mut stream = device.namespace.enter(|| TcpStream::connect(address))??;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let (bytes, pauses) = (Arc::clone(bytes), Arc::clone(pauses));
    Worker::start("download", move |stop| {
        let mut buffer = vec![0; READ_LEN];
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(len) if len > 0 => {
                    bytes.fetch_add(len as u64, Ordering::Relaxed);
                    let now = Instant::now();
                    if now - last > STALL {
                        pauses.lock().unwrap_or_else(PoisonError::into_inner).push((last, now));
                    }
                    last = now;
                }
                Ok(_) | Err(_) => return,
            }
        }
    })
}

fn sizes(processes: &[(String, Pid)]) -> Result<Vec<u64>> {
    processes.iter().map(|(_, pid)| resident_bytes(*pid)).collect()
}

fn overlap(pause: &Pause, order: &Pause) -> bool {
    pause.0 <= order.1 && order.0 <= pause.1
}

fn longest(pauses: &[Pause]) -> f64 {
    pauses.iter().map(|(begin, end)| (*end - *begin).as_secs_f64() * 1e3).fold(0.0, f64::max)
}

/// The slope of the line of least squares; 0 for fewer than two points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
    let above: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let below: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_line_is_its_slope_and_of_a_point_none() {
        let line: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 7.0)).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9);
        assert_eq!(slope(&line[..1]).abs(), 0.0);
    }

    #[test]
    fn a_leak_a_stall_or_no_move_at_all_breaks_it() {
        let fine = Endured {
            seconds: 60.0,
            bytes: 1,
            moves: 60,
            move_pause_ms: 80.0,
            other_pause_ms: 0.0,
            stalls: 0,
            growth_per_minute: vec![("gw1".to_owned(), 1000.0)],
        };
        assert!(fine.holds());
        assert!(!Endured { stalls: 1, ..fine.clone() }.holds());
        assert!(!Endured { moves: 0, ..fine.clone() }.holds());
        assert!(!Endured { growth_per_minute: vec![("gw1".to_owned(), 1e7)], ..fine }.holds());
    }
}
