//! The machine-readable journal: one JSON object per line for each change, to files, standard output and watchers.
//!
//! Every line has `time` (RFC 3339, UTC), `at_ms` (milliseconds on a clock that counts suspended time, since start) and
//! `event`. Fields of each event are stable; new ones may be added. Lines that a slow reader does not take are dropped
//! and counted in the next line's `dropped`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jump_session::client::{Attached, Event, Status};
use jump_session::reason::Reason;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc::Sender;

use crate::failure::{Exit, Failure};

/// Lines that may wait for a slow file or pipe.
const LINES_MAX: usize = 1024;

/// Collects lines and hands them to their readers without ever waiting for one.
pub(super) struct Journal {
    sinks: Vec<Sink>,
    watchers: Vec<Sender<String>>,
}

struct Sink {
    sender: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
    dropped: u64,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { sinks: Vec::new(), watchers: Vec::new() }
    }

    /// Appends lines to a file; `-` is standard output.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), Failure> {
        if path.as_os_str() == "-" {
            return self.add_sink(Box::new(io::stdout()));
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
            Failure::because(Exit::Failed, format_args!("cannot write events to {}", path.display()), &error)
        })?;
        self.add_sink(Box::new(file))
    }

    fn add_sink(&mut self, mut writer: Box<dyn Write + Send>) -> Result<(), Failure> {
        let (sender, receiver) = sync_channel::<String>(LINES_MAX);
        let write = move || {
            while let Ok(line) = receiver.recv() {
                if writer.write_all(line.as_bytes()).and_then(|()| writer.flush()).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("jump-journal".to_owned())
            .spawn(write)
            .map_err(|error| Failure::because(Exit::Failed, "cannot start a thread", &error))?;
        self.sinks.push(Sink { sender: Some(sender), thread: Some(thread), dropped: 0 });
        Ok(())
    }

    pub(super) fn add_watcher(&mut self, watcher: Sender<String>) {
        self.watchers.push(watcher);
    }

    /// Writes one line about `event` with `fields`.
    pub(super) fn note(&mut self, at: Duration, event: &str, fields: Value) {
        let mut line = Map::new();
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        line.insert("time".to_owned(), Value::String(time));
        line.insert("at_ms".to_owned(), milliseconds(at));
        line.insert("event".to_owned(), Value::String(event.to_owned()));
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        let line = Value::Object(line);
        for sink in &mut self.sinks {
            sink.send(&line);
        }
        let text = line.to_string();
        self.watchers.retain(|watcher| {
            !matches!(watcher.try_send(text.clone()), Err(tokio::sync::mpsc::error::TrySendError::Closed(_)))
        });
    }
}

impl Sink {
    fn send(&mut self, line: &Value) {
        let Some(sender) = &self.sender else { return };
        let mut text = line.to_string();
        if self.dropped > 0 {
            let mut line = line.clone();
            line["dropped"] = json!(self.dropped);
            text = line.to_string();
        }
        text.push('\n');
        match sender.try_send(text) {
            Ok(()) => self.dropped = 0,
            Err(TrySendError::Full(_)) => self.dropped += 1,
            Err(TrySendError::Disconnected(_)) => self.sender = None,
        }
    }
}

impl Drop for Journal {
    /// Waits for the lines that were queued.
    fn drop(&mut self) {
        for sink in &mut self.sinks {
            sink.sender = None;
            if let Some(thread) = sink.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// The journal's name and fields of a machine event; `None` for events that only concern sockets and the disk.
pub(super) fn line_of(event: &Event, status: &Status) -> Option<(&'static str, Value)> {
    let session = status.session.map(|session| session.to_string());
    let line = match event {
        Event::OpenPath { .. } | Event::ClosePath { .. } | Event::Persist { .. } => return None,
        Event::StateChanged { from, to, reason } => (
            "state",
            json!({ "session_id": session, "epoch": status.epoch.0, "from": from.code(), "to": to.code(),
                    "reason": reason.code() }),
        ),
        Event::PathChanged { from, to, reason, .. } => (
            "path",
            json!({ "session_id": session, "epoch": status.epoch.0, "from": from.name(), "to": to.name(),
                    "reason": reason.code() }),
        ),
        Event::MtuChanged { from, to } => {
            ("mtu", json!({ "session_id": session, "epoch": status.epoch.0, "from": from, "to": to }))
        }
        Event::Bound { binding, implicit } => {
            let reason = if *implicit { Reason::NatRebind } else { Reason::PathValidated };
            (
                "bound",
                json!({ "session_id": session, "epoch": status.epoch.0, "binding": binding, "reason": reason.code() }),
            )
        }
        Event::Attempted { gateway, transport, attach_seq, reason, .. } => (
            "attempt",
            json!({ "session_id": session, "gateway": gateway, "transport": transport.name(),
                    "attach_seq": attach_seq.0, "reason": reason.code() }),
        ),
        Event::Attached(attached) => ("attached", attached_fields(attached)),
        Event::FirstByte { epoch, after } => (
            "first_byte",
            json!({ "session_id": session, "epoch": epoch.0, "first_byte_ms": milliseconds(*after) }),
        ),
        Event::Rekeyed { epoch } => ("rekeyed", json!({ "session_id": session, "epoch": epoch.0 })),
        Event::Rejected { gateway, reason, current_epoch, retry_after } => (
            "rejected",
            json!({ "session_id": session, "gateway": gateway, "reason": reason.code(),
                    "current_epoch": current_epoch.0, "retry_after_ms": milliseconds(*retry_after) }),
        ),
        Event::Untrusted { gateway, error } => {
            ("untrusted", json!({ "session_id": session, "gateway": gateway, "error": error.to_string() }))
        }
        Event::KeysChanged(keys) => ("keys", json!({ "serial": keys.serial })),
        Event::Terminated { reason } => {
            ("terminated", json!({ "session_id": session, "epoch": status.epoch.0, "reason": reason.code() }))
        }
        Event::NoEntropy(error) => ("no_entropy", json!({ "error": error.to_string() })),
    };
    Some(line)
}

fn attached_fields(attached: &Attached) -> Value {
    let timings = attached.timings;
    json!({
        "session_id": attached.accepted.session.to_string(),
        "epoch": attached.accepted.epoch.0,
        "node_id": attached.node.as_str(),
        "incarnation": attached.incarnation.0,
        "gateway": attached.gateway,
        "transport": attached.transport.name(),
        "reason": attached.reason.code(),
        "born": attached.born,
        "inner_addresses": attached.accepted.inner,
        "detect_ms": milliseconds(timings.detect),
        "handshake_ms": milliseconds(timings.handshake),
        "commit_ms": milliseconds(timings.commit),
        "total_ms": milliseconds(timings.detect + timings.handshake + timings.commit),
    })
}

/// Milliseconds with three decimals.
pub(super) fn milliseconds(duration: Duration) -> Value {
    let micros = duration.as_micros() as f64;
    json!((micros / 1000.0 * 1000.0).round() / 1000.0)
}
