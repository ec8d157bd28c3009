//! A program inside a namespace: its output captured line by line, its end observed, its life bounded by the lab's.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cleanup::Guard;

/// How many lines of output a process keeps in memory; all of them are in its log file.
const LINES_MAX: usize = 20_000;

/// The lowest scheduling priority.
pub const NICEST: i32 = 19;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    output: Arc<Output>,
    child: Child,
    undo: Option<Guard>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<String>,
    /// How many lines came before the first one kept.
    dropped: usize,
    /// How many of the two streams are still open.
    open: usize,
}

/// A place in a process's output, to wait for what comes after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

impl Process {
    /// Starts a program. Its stdout and stderr go line by line to `dir/name.log` (appended when it exists).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn_on_lasting_thread(command).with_context(|| format!("starting {name}"))?;
        let pid = Pid::from_child(&child);
        let handle = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("watching {name}"))?;
        let undo = Guard::new(move || {
            let _ = pidfd_send_signal(handle, Signal::KILL);
        });
        let output = Arc::new(Output::default());
        output.lines.lock().unwrap_or_else(PoisonError::into_inner).open = 2;
        if let Some(stream) = child.stdout.take() {
            follow(stream, file.try_clone()?, Arc::clone(&output));
        }
        if let Some(stream) = child.stderr.take() {
            follow(stream, file, Arc::clone(&output));
        }
        Ok(Self { name: name.to_owned(), pid, log, output, child, undo: Some(undo) })
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Where its output is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its output so far.
    pub fn mark(&self) -> Mark {
        let lines = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner);
        Mark(lines.dropped + lines.kept.len())
    }

    /// Every line since `mark` that is still kept.
    pub fn lines_since(&self, mark: Mark) -> Vec<String> {
        let lines = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.kept.iter().skip(mark.0.saturating_sub(lines.dropped)).cloned().collect()
    }

    /// Waits for a line after `mark` that `wanted` accepts; returns it with the mark behind it.
    ///
    /// # Errors
    /// When the process closes its output or `timeout` passes first; the message carries the end of the output.
    pub fn wait_for(
        &self,
        what: &str,
        mark: Mark,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(String, Mark)> {
        let deadline = Instant::now() + timeout;
        let mut next = mark.0;
        let mut lines = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            next = next.max(lines.dropped);
            while let Some(line) = lines.kept.get(next - lines.dropped) {
                next += 1;
                if wanted(line) {
                    return Ok((line.clone(), Mark(next)));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.open == 0 || left.is_zero() {
                let why = if lines.open == 0 { "it ended" } else { "time ran out" };
                let tail: Vec<_> = lines.kept.iter().rev().take(12).rev().cloned().collect();
                bail!(
                    "waiting for {} to show {what}: {why}; its last lines:\n  {}",
                    self.name,
                    tail.join("\n  ")
                );
            }
            lines = self.output.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// When it has ended and was reaped.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Lets it work only where nobody else on the machine wants to.
    ///
    /// # Errors
    /// When it has ended.
    pub fn give_way(&self) -> Result<()> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let thread =
                task?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            // Threads made later take after those that make them.
            rustix::process::setpriority_process(thread, NICEST)
                .with_context(|| format!("the priority of {}", self.name))?;
        }
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When it still runs after `timeout`.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let handle = pidfd_open(self.pid, PidfdFlags::empty());
        if let (Ok(None), Ok(handle)) = (self.child.try_wait(), handle) {
            wait_readable(&handle, timeout)?;
        }
        match self.child.try_wait()? {
            Some(status) => Ok(status),
            None => bail!("{} still runs after {timeout:?}", self.name),
        }
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        self.undo = None;
        let _ = self.child.wait();
    }

    /// The pid of its child process, when it has exactly one.
    ///
    /// # Errors
    /// When it has none or several.
    pub fn only_child(&self) -> Result<Pid> {
        let children = children_of(self.pid)?;
        match children.as_slice() {
            [one] => Ok(*one),
            several => bail!("{} has {} child processes, not one", self.name, several.len()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let tail: Vec<_> = self.lines_since(Mark(0)).into_iter().rev().take(25).collect();
            eprintln!("--- the end of {}:", self.log.display());
            for line in tail.iter().rev() {
                eprintln!("    {line}");
            }
        }
    }
}

/// The child processes of a process, over all its threads.
///
/// # Errors
/// When the process is gone.
pub fn children_of(pid: Pid) -> Result<Vec<Pid>> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(list) = std::fs::read_to_string(task?.path().join("children")) else { continue };
        children.extend(list.split_whitespace().filter_map(|p| p.parse().ok().and_then(Pid::from_raw)));
    }
    Ok(children)
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When the process is gone.
pub fn resident_bytes(pid: Pid) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// CPU time that a process's living threads have used so far, in user and kernel, to the nanosecond.
///
/// # Errors
/// When the process is gone, or the kernel keeps no such statistics.
pub fn cpu_time(pid: Pid) -> Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("reading the process's threads")? {
        // A thread that has just ended is none of them any more.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Waits until a pidfd says that its process has ended.
fn wait_readable(handle: &OwnedFd, timeout: Duration) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit =
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            result => {
                result?;
                return Ok(());
            }
        }
    }
}

/// Copies a stream to the log and to memory, line by line, until it closes.
fn follow(stream: impl Read + Send + 'static, mut file: File, output: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let _ = file.write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut lines = output.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.kept.push_back(text);
            if lines.kept.len() > LINES_MAX {
                lines.kept.pop_front();
                lines.dropped += 1;
            }
            output.changed.notify_all();
        }
        output.lines.lock().unwrap_or_else(PoisonError::into_inner).open -= 1;
        output.changed.notify_all();
    });
}

/// Starts the command from a thread that lives as long as the program: children are told to die with the thread that
/// made them, and a test's or a helper's thread may end long before the child should.
fn spawn_on_lasting_thread(command: Command) -> Result<Child> {
    type Job = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            while let Ok((mut command, answer)) = inbox.recv() {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, result) = mpsc::sync_channel(1);
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .context("the spawner is gone")?;
    Ok(result.recv().context("the spawner is gone")??)
}
