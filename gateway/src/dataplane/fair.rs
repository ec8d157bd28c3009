//! Shares of a saturated pass: a session that floods is cut to its share, so that what the others send is opened in time.
//!
//! While the socket is emptied in every pass nobody is limited. Once a pass ends with datagrams still waiting, no session
//! may have more than one and a half times its equal share of the next pass, and never less than [`SHARE_MIN`]; what
//! comes beyond that is dropped before it is opened, which costs a tenth of opening it. Only authenticated records count
//! towards a session's share, so nobody can use up another's by forging its index.

/// Records of one pass that every session may have: a few superpackets, so that ordinary bursts are never cut.
const SHARE_MIN: u32 = 512;

/// What one session had of the current pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    pass: u32,
    used: u32,
}

/// The current pass over all sessions.
#[derive(Debug)]
pub(super) struct Fairness {
    pass: u32,
    sessions: u32,
    records: u32,
    /// Most records of one session in this pass.
    share_max: u32,
}

impl Fairness {
    pub(super) fn new() -> Self {
        Self { pass: 1, sessions: 0, records: 0, share_max: u32::MAX }
    }

    /// A pass begins; `backlogged` says that the last one left datagrams waiting.
    pub(super) fn begin_pass(&mut self, backlogged: bool) {
        self.share_max = match self.records.checked_div(self.sessions) {
            Some(equal) if backlogged && self.sessions > 1 => (equal + equal / 2).max(SHARE_MIN),
            Some(_) | None => u32::MAX,
        };
        self.pass = self.pass.wrapping_add(1);
        self.sessions = 0;
        self.records = 0;
    }

    /// True while the session may have another record opened.
    #[inline]
    pub(super) fn allows(&self, share: &Share) -> bool {
        share.pass != self.pass || share.used < self.share_max
    }

    /// An authenticated record of the session was opened.
    #[inline]
    pub(super) fn charge(&mut self, share: &mut Share) {
        if share.pass != self.pass {
            *share = Share { pass: self.pass, used: 0 };
            self.sessions += 1;
        }
        share.used += 1;
        self.records += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a pass in which session `i` sends `sends[i]` records, in turn; returns how many of each were taken.
    fn pass<const N: usize>(
        fairness: &mut Fairness,
        shares: &mut [Share; N],
        sends: [u32; N],
        backlogged: bool,
    ) -> [u32; N] {
        fairness.begin_pass(backlogged);
        let mut taken = [0; N];
        for record in 0..sends.into_iter().max().unwrap_or(0) {
            for i in 0..N {
                if record < sends[i] && fairness.allows(&shares[i]) {
                    fairness.charge(&mut shares[i]);
                    taken[i] += 1;
                }
            }
        }
        taken
    }

    #[test]
    fn a_flood_is_cut_to_its_share_only_while_datagrams_wait() {
        let (mut fairness, mut shares) = (Fairness::new(), [Share::default(); 4]);
        let sends = [8000, 60, 60, 60];
        assert_eq!(pass(&mut fairness, &mut shares, sends, false), sends);
        assert_eq!(pass(&mut fairness, &mut shares, sends, true), [3067, 60, 60, 60]);
        assert_eq!(pass(&mut fairness, &mut shares, sends, false), sends, "nothing waits any more");
    }

    #[test]
    fn one_session_alone_is_never_cut() {
        let (mut fairness, mut shares) = (Fairness::new(), [Share::default()]);
        for _ in 0..3 {
            assert_eq!(pass(&mut fairness, &mut shares, [8000], true), [8000]);
        }
    }

    #[test]
    fn a_burst_of_a_few_superpackets_is_never_cut() {
        let (mut fairness, mut shares) = (Fairness::new(), [Share::default(); 100]);
        let mut sends = [20; 100];
        sends[0] = SHARE_MIN;
        pass(&mut fairness, &mut shares, sends, true);
        assert_eq!(pass(&mut fairness, &mut shares, sends, true), sends);
    }
}
