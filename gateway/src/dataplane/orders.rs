//! The orders of the rest of the worker, carried out between batches.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Command, DataPlane, DropReason, Tick, Wire};

/// What is left to do once the output of the orders has been flushed.
#[derive(Debug)]
pub enum After {
    /// Nothing.
    Nothing,
    /// Say that nothing of the stopped session is forwarded any more, and the ages of its path switches here.
    Acknowledge(oneshot::Sender<Vec<Duration>>, Vec<Duration>),
    /// End the thread.
    Shutdown,
}

impl DataPlane {
    /// Carries out one order. `authority` says whether this node may send to clients at this moment; orders are
    /// carried out either way, because most of them take something away.
    pub fn handle_command<W: Wire>(
        &mut self,
        tick: Tick,
        command: Command,
        authority: bool,
        wire: &mut W,
    ) -> After {
        match command {
            Command::Answered(answered) => {
                // An answer that would come too late is not sent: the client has gone elsewhere by then.
                if authority {
                    self.handle_answered(*answered, tick.now, wire);
                } else {
                    self.handle_refused(answered.keys.own_index, DropReason::RefusedInit, tick.now);
                }
            }
            Command::Refused { index, reason } => self.handle_refused(index, reason, tick.now),
            Command::Decide { index, verdict } => {
                if authority {
                    self.handle_verdict(tick, index, *verdict, wire);
                }
            }
            Command::Stop { session, epoch, cause, done } => {
                self.handle_stop(tick, session, epoch, cause, authority, wire);
                let ages = self.switch_ages(session, tick.now);
                return done.map_or(After::Nothing, |done| After::Acknowledge(done, ages));
            }
            Command::Bindings(updates) => {
                for update in &updates {
                    self.handle_binding(tick, update, authority, wire);
                }
            }
            Command::SnapshotBegins => {
                self.routes.begin_snapshot();
                self.snapshot_due = None;
            }
            Command::SnapshotComplete => {
                self.routes.complete_snapshot();
                self.forget_left();
                self.snapshot_due = Some(tick.now.saturating_add(super::SNAPSHOT_GRACE));
            }
            Command::Link(link) => {
                let node = link.node;
                self.links.add(*link);
                if authority {
                    self.release_parked_for(tick, node, wire);
                }
            }
            Command::Unlink(node) => {
                self.links.remove(node);
                if authority {
                    self.forget_awaited(node, tick, wire);
                }
            }
            Command::Gates(gates) => self.gates = gates,
            Command::Drain { reason, targets } => self.handle_drain(tick, reason, targets, wire),
            Command::Move { session, epoch, targets, carried } => {
                let found = self.handle_move(tick, session, epoch, &targets, wire);
                // Nobody waits once a newer order has taken this one's place.
                let _ = carried.send(found);
            }
            Command::Undrain => self.draining = None,
            Command::Flows(answers) => self.handle_flows(answers, tick.now),
            Command::Anchored(answer) => {
                // As with the list below.
                let _ = answer.send(self.anchored());
            }
            Command::List(answer) => {
                // The asker may have gone; then nobody wants the list.
                let _ = answer.send(self.list());
            }
            Command::Usage { from, answer } => {
                // As with the list.
                let _ = answer.send(self.usage(from));
            }
            Command::Shutdown => return After::Shutdown,
        }
        After::Nothing
    }
}
