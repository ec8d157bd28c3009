//! The supervisor: keeps the TUN device, starts the worker, and says so to control the moment the worker is dead.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use jump_crypto::ids::Incarnation;
use jump_session::reason::Reason;
use jump_transport::tun::{Tun, TunError, TunOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::config::Config;
use crate::control::{ConnectError, Control};
use crate::heartbeat::{Ear, Sign};
use crate::identity::{self, IdentityErrors};
use crate::registration::deregister;

/// The exit code of a worker that cannot start before somebody has changed something (`EX_CONFIG` of sysexits).
pub const EXIT_LASTING: u8 = 78;
/// How long a worker may take to its first beat.
const FIRST_BEAT: Duration = Duration::from_secs(5);
/// How long a worker must live for its death not to count towards a crash loop.
const LONG_LIFE: Duration = Duration::from_secs(1);
/// The longest pause after a worker that never registered: most likely the next one cannot either.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The longest pause after a worker that did: its sessions' return packets wait for the next one.
const PAUSE_AFTER_SERVICE_MAX: Duration = Duration::from_millis(100);
/// How long control is asked to take a dead worker's deregistration.
const DEREGISTER_PATIENCE: Duration = Duration::from_secs(5);

/// Why the supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The TUN device cannot be made.
    #[error("{}", tun_problem(.0))]
    Tun(#[from] TunError),
    /// The node's identity is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityErrors),
    /// A connection cannot be prepared.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The worker cannot start; it has said why.
    #[error("the worker could not start")]
    WorkerFailed,
    /// The worker died while it drained.
    #[error("the worker died before it had drained")]
    DiedDraining,
    /// A system call failed.
    #[error("cannot run a worker: {0}")]
    System(#[from] io::Error),
}

fn tun_problem(error: &TunError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What the worker is started with.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<std::ffi::OsString>,
}

/// The environment variable by which a worker knows its supervisor's process and the run that was reaped.
pub const ENVIRONMENT: &str = "JUMP_GATEWAY_WORKER_OF";

/// Runs workers, one after the other, until told to stop. Must run on the process's main thread: the worker dies with
/// the thread that started it.
///
/// # Errors
/// [`SupervisorError`] when no worker can run, or the last one died while it drained.
pub async fn supervise(config: &Config, command: &WorkerCommand) -> Result<(), SupervisorError> {
    let tls = identity::load(&config.tls, &config.node)?;
    let control = Control::new(&config.control, &tls)?;
    let tun = Tun::create(&TunOptions {
        name: config.tun.name.clone(),
        addresses: config.tun.addresses.clone(),
        mtu: config.tun.mtu,
        offload: config.tun.offload,
        queue_packets: 1000,
    })?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let warm = tokio::spawn(keep_warm(control.clone()));
    let mut reaped = Incarnation(0);
    let mut quick_deaths = 0;
    let result = loop {
        let started = Instant::now();
        let mut worker = Worker::start(command, &tun, reaped)?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let end = worker.watch(config, stop).await?;
        if let Some(incarnation) = worker.incarnation {
            reaped = incarnation;
            if !(end.asked && end.status.success()) {
                tracing::error!(
                    incarnation = incarnation.0,
                    status = %end.status,
                    reason = %Reason::NodeLost,
                    killed = end.silent,
                    "the worker is dead; revoking its lease and starting another"
                );
                let (control, node) = (control.clone(), config.node.to_string());
                let revoking = async move {
                    deregister(&control, &node, incarnation, Reason::NodeLost, DEREGISTER_PATIENCE).await
                };
                if end.asked {
                    revoking.await;
                } else {
                    // The next worker does not wait for it: its registration names the dead run as well.
                    tokio::spawn(revoking);
                }
            }
        }
        if end.asked {
            break if end.status.success() { Ok(()) } else { Err(SupervisorError::DiedDraining) };
        }
        if end.status.code() == Some(EXIT_LASTING.into()) && worker.incarnation.is_none() {
            break Err(SupervisorError::WorkerFailed);
        }
        quick_deaths = if started.elapsed() < LONG_LIFE { quick_deaths + 1 } else { 0 };
        let pause_max = if worker.incarnation.is_some() { PAUSE_AFTER_SERVICE_MAX } else { PAUSE_MAX };
        let pause = pause_after(quick_deaths).min(pause_max);
        if !pause.is_zero() {
            tracing::warn!(
                deaths = quick_deaths,
                pause_ms = pause.as_millis() as u64,
                "the worker keeps dying"
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
            }
        }
    };
    warm.abort();
    result
}

/// The pause before the next worker: none after the first quick death, then doubling.
fn pause_after(quick_deaths: u32) -> Duration {
    match quick_deaths {
        0 | 1 => Duration::ZERO,
        n => Duration::from_millis(100).saturating_mul(1 << (n - 2).min(10)).min(PAUSE_MAX),
    }
}

/// Keeps a connection to every replica open, so that a dead worker's lease is revoked without a TLS handshake.
async fn keep_warm(control: Control) {
    loop {
        control.warm_up().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

struct Worker {
    child: Child,
    signs: pipe::Receiver,
    ear: Ear,
    incarnation: Option<Incarnation>,
}

struct End {
    status: ExitStatus,
    /// The worker was told to end.
    asked: bool,
    /// It was killed because it was silent.
    silent: bool,
}

impl Worker {
    fn start(command: &WorkerCommand, tun: &Tun, reaped: Incarnation) -> io::Result<Self> {
        let (signs, heart) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let tun: OwnedFd = tun.as_fd().try_clone_to_owned()?;
        let own = rustix::process::getpid();
        let child = Command::new(&command.program)
            .args(&command.arguments)
            .env(ENVIRONMENT, format!("{}:{}", own.as_raw_nonzero(), reaped.0))
            // The TUN device and the pipe are the worker's standard input and output; it prints on neither.
            .stdin(Stdio::from(tun))
            .stdout(Stdio::from(heart))
            .kill_on_drop(true)
            .spawn()?;
        let signs = pipe::Receiver::from_owned_fd(signs)?;
        Ok(Self { child, signs, ear: Ear::default(), incarnation: None })
    }

    /// Waits for the worker's end; kills it when it falls silent, tells it to end when `stop` completes.
    async fn watch(&mut self, config: &Config, stop: impl Future<Output = ()>) -> io::Result<End> {
        tokio::pin!(stop);
        let mut silence_ends = Instant::now() + FIRST_BEAT.max(config.heartbeat_timeout);
        let mut give_up = None;
        let (mut asked, mut silent, mut open) = (false, false, true);
        let (mut more, mut normal) =
            (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
        let mut again = signal(SignalKind::hangup())?;
        let mut buffer = [0; 256];
        loop {
            let deadline = give_up.map_or(silence_ends, |give_up: Instant| give_up.min(silence_ends));
            tokio::select! {
                biased;
                status = self.child.wait() => {
                    let status = status?;
                    // What the worker said last may still be in the pipe.
                    while let Ok(len @ 1..) = self.signs.try_read(&mut buffer) {
                        self.hear(&buffer[..len]);
                    }
                    return Ok(End { status, asked, silent });
                }
                () = &mut stop, if !asked => {
                    asked = true;
                    give_up = Some(Instant::now() + config.ending_max() + PAUSE_MAX);
                    self.signal(Signal::TERM);
                }
                // The worker writes the log lines that matter: its levels change with ours.
                _ = more.recv() => self.signal(Signal::USR1),
                _ = normal.recv() => self.signal(Signal::USR2),
                _ = again.recv() => self.signal(Signal::HUP),
                readable = self.signs.readable(), if open => {
                    readable?;
                    match self.signs.try_read(&mut buffer) {
                        Ok(0) => open = false,
                        Ok(len) => {
                            if self.hear(&buffer[..len]) {
                                silence_ends = Instant::now() + config.heartbeat_timeout;
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                () = tokio::time::sleep_until(deadline), if !silent => {
                    silent = true;
                    self.signal(Signal::KILL);
                }
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> bool {
        let mut beaten = false;
        let incarnation = &mut self.incarnation;
        self.ear.hear(bytes, |sign| match sign {
            Sign::Beat => beaten = true,
            Sign::Incarnation(run) => *incarnation = Some(run),
        });
        beaten
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            // The child has not been waited for, so the number is still its own; it may be dead already.
            let _ = kill_process(pid, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_quick_death_costs_no_pause_and_a_crash_loop_backs_off_to_a_bound() {
        let pauses: Vec<u128> = (0..20).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(pauses[..5], [0, 0, 100, 200, 400]);
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX.as_millis()));
        assert_eq!(pauses[19], PAUSE_MAX.as_millis());
    }
}
