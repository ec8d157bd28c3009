//! The daemon's control socket: `jump status`, `jump down` and watchers talk to the tunnel here.
//!
//! One JSON object per line each way. Requests: `{"request":"status"}`, `{"request":"down"}`, `{"request":"watch"}`,
//! `{"request":"reload_key"}`. The
//! socket is in the state directory, which only its owner can enter.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::mailbox::{Command, Mailbox};
use super::report::Report;
use crate::failure::{Exit, Failure};
use crate::state_dir::StateDir;

/// Longest accepted request line, in bytes.
const REQUEST_LEN_MAX: usize = 1024;
/// Journal lines that may wait for a slow watcher.
const WATCH_LINES_MAX: usize = 256;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Answered with one report.
    Status,
    /// Ends the session and the daemon; answered when it has ended.
    Down,
    /// Answered with journal lines until the connection closes.
    Watch,
    /// Reads the device key again and goes on under it; answered when it does.
    ReloadKey,
}

#[derive(Debug, Serialize, Deserialize)]
struct Done {
    done: bool,
}

/// Serves until the runtime ends.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    // The lock is held: a socket that is there is a dead one.
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    UnixListener::bind(path)
}

pub(super) async fn serve(listener: UnixListener, state: StateDir, mailbox: Mailbox) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (state, mailbox) = (state.clone(), mailbox.clone());
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &state, &mailbox).await {
                        debug!("control socket: {error}");
                    }
                });
            }
            Err(error) => {
                debug!("control socket: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, state: &StateDir, mailbox: &Mailbox) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(reader, REQUEST_LEN_MAX as u64));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let gone = || io::Error::other("the tunnel has ended");
    match serde_json::from_str(&line)? {
        Request::Status => {
            let (sender, receiver) = oneshot::channel();
            mailbox.send(Command::Status(sender));
            let report = receiver.await.map_err(|_| gone())?;
            write_line(&mut writer, &serde_json::to_string(&report)?).await
        }
        Request::Down => {
            let (sender, receiver) = oneshot::channel();
            mailbox.send(Command::Down(Some(sender)));
            let done = receiver.await.is_ok();
            write_line(&mut writer, &serde_json::to_string(&Done { done })?).await
        }
        Request::ReloadKey => {
            let device = state.device_key().map_err(|failure| io::Error::other(failure.to_string()))?;
            let (sender, receiver) = oneshot::channel();
            mailbox.send(Command::ReplaceDevice(device, sender));
            let done = receiver.await.is_ok();
            write_line(&mut writer, &serde_json::to_string(&Done { done })?).await
        }
        Request::Watch => {
            let (sender, mut receiver) = mpsc::channel(WATCH_LINES_MAX);
            mailbox.send(Command::Watch(sender));
            while let Some(line) = receiver.recv().await {
                write_line(&mut writer, &line).await?;
            }
            Ok(())
        }
    }
}

async fn write_line(writer: &mut tokio::net::unix::OwnedWriteHalf, line: &str) -> io::Result<()> {
    writer.write_all(line.as_bytes()).await?;
    writer.write_all(b"\n").await
}

/// Asks the daemon of `state`; each answer line goes to `each` until it returns false or the daemon closes.
///
/// # Errors
/// [`Exit::NotRunning`] when no daemon answers.
pub async fn ask(
    state: &StateDir,
    request: Request,
    mut each: impl FnMut(&str) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let not_running = |error: io::Error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Failure::new(
                Exit::Permission,
                format!(
                    "no permission for {}: run as root, or give another --state-dir",
                    state.socket().display()
                ),
            );
        }
        Failure::new(
            Exit::NotRunning,
            format!("jump does not run with {}: start it with jump up", state.path().display()),
        )
    };
    let stream = UnixStream::connect(state.socket()).await.map_err(not_running)?;
    let (reader, mut writer) = stream.into_split();
    let text = serde_json::to_string(&request)
        .map_err(|error| Failure::because(Exit::Failed, "cannot ask the daemon", &error))?;
    write_line(&mut writer, &text).await.map_err(not_running)?;
    let mut lines = BufReader::new(reader).lines();
    let mut answered = false;
    while let Some(line) = lines.next_line().await.map_err(not_running)? {
        answered = true;
        if !each(&line)? {
            return Ok(());
        }
    }
    if answered || request == Request::Down {
        return Ok(());
    }
    Err(Failure::new(Exit::NotRunning, "jump ended before it answered"))
}

/// Reads a report from the daemon's answer.
///
/// # Errors
/// When it is of another version.
pub fn parse_report(line: &str) -> Result<Report, Failure> {
    serde_json::from_str(line)
        .map_err(|error| Failure::because(Exit::Failed, "the daemon's answer is of another version", &error))
}
