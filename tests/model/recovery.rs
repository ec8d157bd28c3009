//! Liveness: from a state, let faults stop and see whether a fresh attempt gets through.

use crate::cluster::{Action, Belief, Cluster, Message, State};
use crate::record::Run;

/// Rounds of "deliver everything" after which an attempt must have been accepted: intent, fence, commit, answer, and as
/// many again for a claim that has to be replaced.
const ROUNDS_MAX: usize = 8;

impl Cluster {
    /// Whether, once faults stop, a fresh attempt at each gateway succeeds: all that is under way is lost, dead runs are
    /// deregistered, every gateway registers or renews and takes sessions, and then messages arrive.
    pub(crate) fn recovers(&self, state: &State) -> bool {
        if state.broken.is_some() || (state.attempts > 0 && state.record.is_none()) {
            return true;
        }
        let calm = self.calmed(state);
        (0..self.sizes.gateways as u8).all(|gateway| self.accepts_attempt(calm.clone(), gateway))
    }

    fn calmed(&self, state: &State) -> State {
        let mut calm = state.clone();
        calm.replicas = [None, None];
        // The fences that are due come again by stream and renewal; everything else may be lost.
        calm.network.retain(|message| matches!(message, Message::Order { .. }));
        for gateway in 0..self.sizes.gateways as u8 {
            let g = calm.gateways[usize::from(gateway)];
            if g.process != 0 && g.process == g.key {
                self.step(&mut calm, &Action::Renew { gateway, sent_ago: 0 });
                self.step(&mut calm, &Action::Undrain { gateway });
            } else {
                self.step(&mut calm, &Action::Deregister { gateway });
                self.step(&mut calm, &Action::Restart { gateway });
            }
        }
        calm
    }

    fn accepts_attempt(&self, mut state: State, gateway: u8) -> bool {
        self.step(&mut state, &Action::Attempt { gateway });
        let seq = state.attempts;
        let run = state.run(gateway);
        for _ in 0..ROUNDS_MAX {
            for message in state.network.clone() {
                self.deliver(&mut state, message);
            }
            if is_accepted(&state, seq, run) && self.forwards(&state.gateways[usize::from(gateway)]) {
                return true;
            }
        }
        false
    }

    fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Attach { .. }
            | Message::Ack { .. }
            | Message::Release { .. }
            | Message::Move { .. }
            | Message::Sweep => {
                self.step(state, &Action::Read { replica: 0, message, belief: Belief::Truth });
                self.step(state, &Action::Commit { replica: 0 });
            }
            Message::Accepted { seq, run, epoch } => self.step(state, &Action::Accept { seq, run, epoch }),
            Message::Order { run, epoch } => self.step(state, &Action::Stop { run, epoch }),
            Message::Init { .. } => {}
        }
    }

    fn step(&self, state: &mut State, action: &Action) {
        if let Some(next) = self.apply(state, action) {
            *state = next;
        }
    }
}

fn is_accepted(state: &State, seq: u8, run: Run) -> bool {
    state
        .network
        .iter()
        .any(|message| matches!(message, Message::Accepted { seq: s, run: r, .. } if *s == seq && *r == run))
}
