//! News of the bindings: where inner addresses live, and what this gateway owns no longer. A watch may take a session
//! away; it never gives one.

use jump_crypto::ids::{Epoch, SessionId};

use jump_session::reason::Reason;

use super::route::{NodeRef, Target};
use super::session::Entry;
use super::{BindingPhase, BindingUpdate, Carried, DataPlane, Policy, StopCause, Tick, Wire};

impl DataPlane {
    /// One binding, in the stream's order.
    pub(super) fn handle_binding<W: Wire>(
        &mut self,
        tick: Tick,
        update: &BindingUpdate,
        authority: bool,
        wire: &mut W,
    ) {
        let id = update.session;
        let Some(cause) = self.verdict_on_own(update) else {
            // What is carried here is at least as new.
            if update.phase == BindingPhase::Owned(NodeRef::OWN) {
                self.bound(update);
            }
            for address in &update.inner {
                self.routes.touch(*address);
                if let BindingPhase::Owned(node) = update.phase
                    && node != NodeRef::OWN
                {
                    self.routes.note_before(*address, id, node);
                }
            }
            return;
        };
        if update.phase == BindingPhase::Owned(NodeRef::OWN) && self.claims > 0 {
            // The answer to the claim is under way, and may be older.
            self.remember_policy(update);
        }
        if let Some(cause) = cause {
            self.handle_stop(tick, id, update.epoch, cause, authority, wire);
        } else if self.claims > 0
            && let Some(over) = over(update)
        {
            // The answer to a claim may be under way that this news has overtaken (docs/ownership.md, O3).
            let ended = matches!(update.phase, BindingPhase::Terminated(_));
            self.remember_given_up(id, over, ended, tick.now);
        }
        let target = match update.phase {
            BindingPhase::Owned(node) if node != NodeRef::OWN => Target::Node(node),
            BindingPhase::Owned(_) | BindingPhase::Handover { .. } | BindingPhase::Released(_) => {
                Target::Nobody
            }
            BindingPhase::Terminated(_) => {
                self.follow_left(update, None, tick.now);
                for address in &update.inner {
                    self.routes.remove(*address, id);
                }
                return;
            }
        };
        self.follow_left(update, Some(target), tick.now);
        for address in &update.inner {
            let stale = self
                .routes
                .get(*address)
                .is_some_and(|route| route.session == id && route.epoch > update.epoch);
            if stale {
                continue;
            }
            self.routes.set(*address, id, update.epoch, target);
            if target != Target::Nobody && authority {
                self.release_parked(tick, *address, wire);
            }
        }
    }

    /// Bounds a session that is carried here in the update's epoch.
    fn bound(&mut self, update: &BindingUpdate) {
        let Some(local) = self.carried(update.session) else { return };
        match self.entries.get_mut(local) {
            Some(Entry::Session(session)) if session.machine.epoch() == update.epoch => {
                session.rebound(&update.policy);
            }
            // A later epoch: its claim's answer is under way.
            Some(Entry::Session(_)) if self.claims > 0 => self.remember_policy(update),
            Some(Entry::Session(_) | Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => {}
        }
    }

    fn remember_policy(&mut self, update: &BindingUpdate) {
        if self.early_policies.len() >= self.limits.claims_max {
            // Left over from claims that nobody answered.
            self.early_policies.clear();
        }
        self.early_policies.insert(update.session, (update.epoch, update.policy.clone()));
    }

    /// The policy of a session that is accepted in `epoch`, if the stream has told it before control's answer came: then
    /// the stream's is at least as new.
    pub(super) fn newest_policy(&mut self, id: SessionId, epoch: Epoch) -> Option<Policy> {
        let early = self.early_policies.remove(&id).filter(|(of, _)| *of == epoch);
        if self.claims == 0 {
            self.early_policies.clear();
        }
        early.map(|(_, policy)| policy)
    }

    /// What `update` means for a session that is carried here: `None` to ignore it, otherwise whether and why the
    /// session stops.
    fn verdict_on_own(&self, update: &BindingUpdate) -> Option<Option<StopCause>> {
        let Some(epoch) = self.carried_epoch(update.session) else { return Some(None) };
        if update.epoch < epoch {
            return None;
        }
        match update.phase {
            BindingPhase::Terminated(reason) => Some(Some(StopCause::Terminated(reason))),
            // This run owns it. If in a later epoch, then the answer to the claim is under way and brings the new keys.
            BindingPhase::Owned(NodeRef::OWN) => None,
            // An order to stop comes as a command, so that it can be acknowledged; until then this run is the owner.
            BindingPhase::Handover { from: NodeRef::OWN } if update.epoch == epoch => None,
            BindingPhase::Owned(_) | BindingPhase::Handover { .. } | BindingPhase::Released(_) => {
                Some(Some(StopCause::Moved))
            }
        }
    }

    /// Stops the sessions that neither the last snapshot nor the news since then mention: a snapshot leaves out what has
    /// ended, and their end may have come while no stream was open.
    pub(super) fn stop_unmentioned<W: Wire>(&mut self, tick: Tick, wire: &mut W) {
        for Carried { session: id, epoch, .. } in self.list() {
            let mentioned = self.carried(id).is_some_and(|local| match self.entries.get(local) {
                Some(Entry::Session(session)) => {
                    session.inner.iter().any(|address| self.routes.is_current(address))
                }
                Some(Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => true,
            });
            if !mentioned {
                let cause = StopCause::Terminated(Reason::SessionTerminated);
                self.handle_stop(tick, id, epoch, cause, true, wire);
            }
        }
    }

    pub(super) fn carried_epoch(&self, id: SessionId) -> Option<Epoch> {
        let local = self.carried(id)?;
        match self.entries.get(local) {
            Some(Entry::Session(session)) => Some(session.machine.epoch()),
            Some(Entry::Reserved | Entry::Handshake(_) | Entry::Retired(_)) | None => None,
        }
    }
}

/// The newest epoch that this run cannot own any more, by what `update` says.
fn over(update: &BindingUpdate) -> Option<Epoch> {
    match update.phase {
        BindingPhase::Owned(NodeRef::OWN) | BindingPhase::Handover { from: NodeRef::OWN } => None,
        BindingPhase::Owned(_) | BindingPhase::Handover { .. } => update.epoch.0.checked_sub(1).map(Epoch),
        BindingPhase::Released(_) | BindingPhase::Terminated(_) => Some(update.epoch),
    }
}
