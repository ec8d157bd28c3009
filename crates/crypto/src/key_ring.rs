//! The life of a rotated key: next, current, retiring, retired (`docs/crypto.md`, "Key life").
//!
//! ```text
//!             introduce            promote              promote of the next one       overlap over
//!  (no key) ───────────▶ Next ───────────────▶ Current ─────────────────────▶ Retiring ───────────▶ Retired
//!                          │     announced long enough                          │                     ▲
//!                          └──────────────────── withdraw ──────────────────────┴─────────────────────┘
//! ```
//!
//! A ring holds names of keys, never keys. Every operation is a pure function of the ring and the time that it is given;
//! it returns the transitions that it made, for the audit log, or a refusal that changed nothing.

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Announced and accepted, not used yet.
    Next,
    /// Used for everything new.
    Current,
    /// Accepted until its overlap ends, no longer used.
    Retiring {
        /// The end of the overlap, in seconds since the Unix epoch.
        until: u64,
    },
    /// Refused for ever.
    Retired,
}

impl KeyState {
    /// True for a key whose messages or signatures are accepted.
    pub fn is_accepted(self) -> bool {
        match self {
            Self::Next | Self::Current | Self::Retiring { .. } => true,
            Self::Retired => false,
        }
    }
}

/// Why a key changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A new key was announced.
    Introduced,
    /// The next key came into use.
    Promoted,
    /// The key gave way to its successor.
    Superseded,
    /// The overlap ended.
    OverlapEnded,
    /// An operator withdrew the key at once, for example because it leaked.
    Withdrawn,
}

/// One change of state: an audit event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition<K> {
    /// The key's name.
    pub key: K,
    /// Its state before; `None` when it is new to the ring.
    pub from: Option<KeyState>,
    /// Its state now.
    pub to: KeyState,
    /// When, in seconds since the Unix epoch.
    pub at: u64,
    /// Why.
    pub cause: Cause,
}

/// An operation was refused; the ring is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The key is or was in the ring: a name is never used twice.
    #[error("the key is already in the ring")]
    Known,
    /// The ring holds no such key.
    #[error("the ring holds no such key")]
    Unknown,
    /// There is a next key already.
    #[error("another key is already next")]
    NextTaken,
    /// There is no next key to go over to.
    #[error("there is no next key")]
    NoNext,
    /// The next key was not announced for long enough: some verifiers may not know it yet.
    #[error("the next key was announced too recently; it may be promoted in {wait_seconds} s")]
    TooEarly {
        /// What is left of the announcement, in seconds.
        wait_seconds: u64,
    },
    /// The current key cannot be withdrawn before another takes its place.
    #[error("the current key can only be superseded")]
    IsCurrent,
    /// The key is already retired.
    #[error("the key is already retired")]
    AlreadyRetired,
    /// The time given lies before the last transition.
    #[error("time went backwards")]
    TimeWentBack,
}

/// How long keys overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPolicy {
    /// How long a next key is announced before it may be promoted, in seconds: the time to reach every verifier.
    pub announce_seconds: u64,
    /// How long a superseded key is still accepted, in seconds: the life of what it signed or opened.
    pub overlap_seconds: u64,
}

/// One key of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingEntry<K> {
    /// The key's name.
    pub key: K,
    /// Where it stands.
    pub state: KeyState,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
}

/// The keys of one purpose. At most one is current, and at most one is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRing<K> {
    policy: RingPolicy,
    entries: Vec<RingEntry<K>>,
    last_change: u64,
}

impl<K: Copy + Eq> KeyRing<K> {
    /// An empty ring.
    pub fn new(policy: RingPolicy) -> Self {
        Self { policy, entries: Vec::new(), last_change: 0 }
    }

    /// Restores a ring from stored entries; `None` when they break the ring's rules (two current or two next keys, or a
    /// name twice).
    pub fn restore(policy: RingPolicy, entries: Vec<RingEntry<K>>) -> Option<Self> {
        let count = |state| entries.iter().filter(|entry| entry.state == state).count();
        let unique = entries.iter().enumerate().all(|(at, a)| entries[..at].iter().all(|b| a.key != b.key));
        let last_change = entries.iter().map(|entry| entry.since).max().unwrap_or(0);
        (unique && count(KeyState::Current) <= 1 && count(KeyState::Next) <= 1).then_some(Self {
            policy,
            entries,
            last_change,
        })
    }

    /// Every key that the ring remembers, oldest first.
    pub fn entries(&self) -> &[RingEntry<K>] {
        &self.entries
    }

    /// The key in use.
    pub fn current(&self) -> Option<K> {
        self.in_state(KeyState::Current)
    }

    /// The announced key.
    pub fn next(&self) -> Option<K> {
        self.in_state(KeyState::Next)
    }

    /// The keys that are accepted at `now`: a retiring key whose overlap is over is not, whether or not
    /// [`expire`](Self::expire) was called.
    pub fn accepted(&self, now: u64) -> impl Iterator<Item = K> + '_ {
        self.entries
            .iter()
            .filter(move |entry| match entry.state {
                KeyState::Retiring { until } => now < until,
                KeyState::Next | KeyState::Current | KeyState::Retired => entry.state.is_accepted(),
            })
            .map(|entry| entry.key)
    }

    /// Announces a new key.
    ///
    /// # Errors
    /// [`RingError::Known`], [`RingError::NextTaken`], [`RingError::TimeWentBack`].
    pub fn introduce(&mut self, key: K, now: u64) -> Result<Transition<K>, RingError> {
        self.check_time(now)?;
        if self.entries.iter().any(|entry| entry.key == key) {
            return Err(RingError::Known);
        }
        if self.next().is_some() {
            return Err(RingError::NextTaken);
        }
        self.entries.push(RingEntry { key, state: KeyState::Next, since: now });
        self.last_change = now;
        Ok(Transition { key, from: None, to: KeyState::Next, at: now, cause: Cause::Introduced })
    }

    /// Brings the next key into use; the current one begins to retire. The ring's first key needs no announcement.
    ///
    /// # Errors
    /// [`RingError::NoNext`], [`RingError::TooEarly`], [`RingError::TimeWentBack`].
    pub fn promote(&mut self, now: u64) -> Result<Vec<Transition<K>>, RingError> {
        self.replace_current(now, self.policy.announce_seconds, Some(self.policy.overlap_seconds))
    }

    /// Replaces a current key that leaked: the next key comes into use without waiting, and the old one is refused at once.
    ///
    /// # Errors
    /// [`RingError::NoNext`], [`RingError::TimeWentBack`].
    pub fn replace_leaked(&mut self, now: u64) -> Result<Vec<Transition<K>>, RingError> {
        self.replace_current(now, 0, None)
    }

    fn replace_current(
        &mut self,
        now: u64,
        announce_seconds: u64,
        overlap_seconds: Option<u64>,
    ) -> Result<Vec<Transition<K>>, RingError> {
        self.check_time(now)?;
        let next = self.position(KeyState::Next).ok_or(RingError::NoNext)?;
        let current = self.position(KeyState::Current);
        let usable_from = self.entries[next].since.saturating_add(announce_seconds);
        if current.is_some() && now < usable_from {
            return Err(RingError::TooEarly { wait_seconds: usable_from - now });
        }
        let mut transitions = Vec::with_capacity(2);
        if let Some(current) = current {
            let (state, cause) = match overlap_seconds {
                Some(overlap) => {
                    (KeyState::Retiring { until: now.saturating_add(overlap) }, Cause::Superseded)
                }
                None => (KeyState::Retired, Cause::Withdrawn),
            };
            transitions.push(self.change(current, state, now, cause));
        }
        transitions.push(self.change(next, KeyState::Current, now, Cause::Promoted));
        Ok(transitions)
    }

    /// Refuses `key` from now on. Only the current key cannot be withdrawn: see [`replace_leaked`](Self::replace_leaked).
    ///
    /// # Errors
    /// [`RingError::Unknown`], [`RingError::IsCurrent`], [`RingError::AlreadyRetired`], [`RingError::TimeWentBack`].
    pub fn withdraw(&mut self, key: K, now: u64) -> Result<Transition<K>, RingError> {
        self.check_time(now)?;
        let at = self.entries.iter().position(|entry| entry.key == key).ok_or(RingError::Unknown)?;
        match self.entries[at].state {
            KeyState::Current => Err(RingError::IsCurrent),
            KeyState::Retired => Err(RingError::AlreadyRetired),
            KeyState::Next | KeyState::Retiring { .. } => {
                Ok(self.change(at, KeyState::Retired, now, Cause::Withdrawn))
            }
        }
    }

    /// Retires every key whose overlap is over.
    ///
    /// # Errors
    /// [`RingError::TimeWentBack`].
    pub fn expire(&mut self, now: u64) -> Result<Vec<Transition<K>>, RingError> {
        self.check_time(now)?;
        let mut transitions = Vec::new();
        for at in 0..self.entries.len() {
            if matches!(self.entries[at].state, KeyState::Retiring { until } if until <= now) {
                transitions.push(self.change(at, KeyState::Retired, now, Cause::OverlapEnded));
            }
        }
        Ok(transitions)
    }

    fn change(&mut self, at: usize, to: KeyState, now: u64, cause: Cause) -> Transition<K> {
        let entry = &mut self.entries[at];
        let from = Some(entry.state);
        (entry.state, entry.since) = (to, now);
        self.last_change = now;
        Transition { key: entry.key, from, to, at: now, cause }
    }

    fn check_time(&self, now: u64) -> Result<(), RingError> {
        if now < self.last_change { Err(RingError::TimeWentBack) } else { Ok(()) }
    }

    fn position(&self, state: KeyState) -> Option<usize> {
        self.entries.iter().position(|entry| entry.state == state)
    }

    fn in_state(&self, state: KeyState) -> Option<K> {
        self.position(state).map(|at| self.entries[at].key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RingPolicy = RingPolicy { announce_seconds: 2, overlap_seconds: 3 };

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Operation {
        Introduce(u8),
        Promote,
        ReplaceLeaked,
        Withdraw(u8),
        Expire,
    }

    fn apply(
        ring: &mut KeyRing<u8>,
        operation: Operation,
        now: u64,
    ) -> Result<Vec<Transition<u8>>, RingError> {
        match operation {
            Operation::Introduce(key) => ring.introduce(key, now).map(|one| vec![one]),
            Operation::Promote => ring.promote(now),
            Operation::ReplaceLeaked => ring.replace_leaked(now),
            Operation::Withdraw(key) => ring.withdraw(key, now).map(|one| vec![one]),
            Operation::Expire => ring.expire(now),
        }
    }

    /// The edges of the drawing above: nothing else may ever be returned.
    fn is_drawn(transition: &Transition<u8>) -> bool {
        use KeyState::{Current, Next, Retired, Retiring};
        matches!(
            (transition.from, transition.to, transition.cause),
            (None, Next, Cause::Introduced)
                | (Some(Next), Current, Cause::Promoted)
                | (Some(Current), Retiring { .. }, Cause::Superseded)
                | (Some(Current), Retired, Cause::Withdrawn)
                | (Some(Retiring { .. }), Retired, Cause::OverlapEnded | Cause::Withdrawn)
                | (Some(Next), Retired, Cause::Withdrawn)
        )
    }

    fn walk(ring: &KeyRing<u8>, now: u64, depth: u32, visited: &mut u32) {
        *visited += 1;
        let count = |state| ring.entries().iter().filter(|entry| entry.state == state).count();
        assert!(count(KeyState::Current) <= 1 && count(KeyState::Next) <= 1);
        if depth == 0 {
            return;
        }
        let operations = (0..3)
            .flat_map(|key| [Operation::Introduce(key), Operation::Withdraw(key)])
            .chain([Operation::Promote, Operation::ReplaceLeaked, Operation::Expire]);
        for operation in operations {
            for wait in [0, 1, 4] {
                let mut after = ring.clone();
                let now = now + wait;
                match apply(&mut after, operation, now) {
                    Err(_) => assert_eq!(&after, ring, "{operation:?} was refused and changed the ring"),
                    Ok(transitions) => {
                        let changed: Vec<u8> = transitions.iter().map(|change| change.key).collect();
                        for change in &transitions {
                            assert!(is_drawn(change), "{change:?}");
                            assert_eq!(change.at, now);
                        }
                        for entry in after.entries() {
                            let before = ring.entries().iter().find(|old| old.key == entry.key);
                            let same = before.is_some_and(|old| old == entry);
                            assert!(
                                same || changed.contains(&entry.key),
                                "{:?} changed in silence",
                                entry.key
                            );
                            let was_retired = before.is_some_and(|old| old.state == KeyState::Retired);
                            assert!(
                                !was_retired || entry.state == KeyState::Retired,
                                "a retired key came back"
                            );
                        }
                        assert!(
                            ring.current().is_none() || after.current().is_some(),
                            "the ring lost its current key"
                        );
                        if !transitions.is_empty() {
                            walk(&after, now, depth - 1, visited);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_short_history_keeps_the_rules_and_reports_every_change() {
        let mut visited = 0;
        walk(&KeyRing::new(POLICY), 10, 6, &mut visited);
        assert!(visited > 1_000, "only {visited} rings were visited");
    }

    #[test]
    fn a_rotation_overlaps_on_both_sides() {
        let mut ring = KeyRing::new(POLICY);
        ring.introduce('a', 0).unwrap();
        ring.promote(0).expect("the first key needs no announcement");
        ring.introduce('b', 10).unwrap();
        assert_eq!((ring.current(), ring.next()), (Some('a'), Some('b')));
        assert_eq!(ring.accepted(10).collect::<Vec<_>>(), ['a', 'b']);
        assert_eq!(ring.promote(11), Err(RingError::TooEarly { wait_seconds: 1 }));
        let changes = ring.promote(12).unwrap();
        assert_eq!(
            changes.iter().map(|it| (it.key, it.cause)).collect::<Vec<_>>(),
            [('a', Cause::Superseded), ('b', Cause::Promoted)]
        );
        assert_eq!(ring.accepted(14).collect::<Vec<_>>(), ['a', 'b']);
        assert_eq!(ring.accepted(15).collect::<Vec<_>>(), ['b'], "the overlap ends without a sweep");
        assert_eq!(ring.expire(15).unwrap().len(), 1);
        assert_eq!(ring.introduce('a', 16), Err(RingError::Known), "a name is never used twice");
    }

    #[test]
    fn a_leaked_current_key_is_refused_at_once() {
        let mut ring = KeyRing::new(POLICY);
        ring.introduce('a', 0).unwrap();
        ring.promote(0).unwrap();
        assert_eq!(ring.withdraw('a', 1), Err(RingError::IsCurrent));
        assert_eq!(ring.replace_leaked(1), Err(RingError::NoNext));
        ring.introduce('b', 1).unwrap();
        ring.replace_leaked(1).unwrap();
        assert_eq!(ring.accepted(1).collect::<Vec<_>>(), ['b']);
    }

    #[test]
    fn stored_entries_that_break_the_rules_are_not_restored() {
        let entry = |key, state| RingEntry { key, state, since: 5 };
        let restore = |entries| KeyRing::restore(POLICY, entries);
        assert!(restore(vec![entry('a', KeyState::Current), entry('b', KeyState::Current)]).is_none());
        assert!(restore(vec![entry('a', KeyState::Next), entry('b', KeyState::Next)]).is_none());
        assert!(restore(vec![entry('a', KeyState::Retired), entry('a', KeyState::Next)]).is_none());
        let mut ring = restore(vec![entry('a', KeyState::Current), entry('b', KeyState::Next)]).unwrap();
        assert_eq!(ring.promote(4), Err(RingError::TimeWentBack));
        assert_eq!(ring.promote(7).unwrap().len(), 2);
    }
}
