//! How many sessions are carried in each state.

use jump_session::gateway::State;

/// Sessions by state, kept as they come, change and go.
#[derive(Debug, Default)]
pub(super) struct Census([u32; State::ALL.len()]);

impl Census {
    /// A session is carried from now on.
    pub(super) fn enter(&mut self, state: State) {
        self.0[state as usize] += 1;
    }

    /// A session in `state` is carried no longer.
    pub(super) fn leave(&mut self, state: State) {
        self.0[state as usize] = self.0[state as usize].saturating_sub(1);
    }

    /// A session went from one state to another.
    pub(super) fn change(&mut self, from: State, to: State) {
        self.leave(from);
        self.enter(to);
    }

    /// How many there are in `state`.
    pub(super) fn count(&self, state: State) -> u32 {
        self.0[state as usize]
    }
}
