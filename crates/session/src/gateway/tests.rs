use std::fmt::Write as _;

use jump_crypto::entropy::EntropyError;

use super::*;

struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.0 += 1;
        bytes.fill(self.0);
        Ok(())
    }
}

const SECOND: Nanos = 1_000_000_000;

fn address(port: u16) -> Path {
    Path::from(SocketAddr::from(([192, 0, 2, 1], port)))
}

struct Rig {
    session: GatewaySession,
    entropy: Counting,
    out: Vec<Effect>,
    timing: Timing,
}

impl Rig {
    fn new() -> Self {
        Self::told(Vec::new())
    }

    /// Control has counted switches of these ages.
    fn told(switch_ages: Vec<Duration>) -> Self {
        let ownership = Ownership {
            epoch: Epoch(3),
            path: address(1000),
            expires: 86_400 * SECOND,
            idle_transport_max: Duration::from_secs(120),
            switches_per_minute_max: 3,
            switch_cooldown: Duration::ZERO,
            switch_ages,
            mtu: 1280,
            mtu_max: 1360,
        };
        Self {
            session: GatewaySession::accepted(&ownership, 0),
            entropy: Counting(0),
            out: Vec::new(),
            timing: Timing::default(),
        }
    }

    fn record(&mut self, now: Nanos, source: Path, newest: bool) -> Vec<Effect> {
        let record = Received { source, counter: 1, newest, len: 60, probes: false };
        self.session.on_record(now, record, &self.timing, &mut self.entropy, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn frame(&mut self, now: Nanos, source: Path, frame: Frame) -> Vec<Effect> {
        self.session.on_frame(now, source, &frame, &mut self.out).unwrap();
        std::mem::take(&mut self.out)
    }

    fn timeout(&mut self, now: Nanos) -> Vec<Effect> {
        self.session.on_timeout(now, &self.timing, &mut self.out);
        std::mem::take(&mut self.out)
    }
}

fn challenge_token(effects: &[Effect]) -> Option<[u8; 8]> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { frame: Frame::PathChallenge { token }, .. } => Some(*token),
        Effect::Send { .. }
        | Effect::Moved { .. }
        | Effect::Changed { .. }
        | Effect::MoveRefused { .. }
        | Effect::End { .. } => None,
    })
}

#[test]
fn a_probe_is_answered_as_long_as_it_is_and_tells_what_the_client_takes() {
    let mut rig = Rig::new();
    assert_eq!(rig.session.mtu(), 1280);
    let probe = |id, mtu, len| Frame::MtuProbe { id, mtu, len };
    let answer =
        |id, len| Effect::Send { to: address(1000), frame: Frame::MtuAnswer { id, mtu_max: 1360, len } };
    assert_eq!(rig.frame(0, address(1000), probe(9, 1300, 1340)), [answer(9, 1340)]);
    assert_eq!(rig.session.mtu(), 1300);
    // One that was overtaken tells nothing any more; one that wants too much is answered with what there is.
    assert_eq!(rig.frame(0, address(1000), probe(8, 1280, 1280)), [answer(8, 1280)]);
    assert_eq!(rig.session.mtu(), 1300);
    assert_eq!(rig.frame(0, address(1000), probe(10, 9000, 9000)), [answer(10, 1360)]);
    assert_eq!(rig.session.mtu(), 1360);
    let pong = Frame::Pong { id: 11, received: 0, newest: 0 };
    let told = rig.frame(0, address(1000), probe(11, 0, 1000));
    assert_eq!(told, [Effect::Send { to: address(1000), frame: pong }], "an announcement");
    assert_eq!(rig.session.mtu(), 1360);
}

#[test]
fn a_path_that_has_not_proved_itself_is_sent_no_answer_beyond_its_budget() {
    let mut rig = Rig::new();
    let record = Received { source: address(2000), counter: 1, newest: true, len: 60, probes: false };
    rig.session.on_record(0, record, &rig.timing, &mut rig.entropy, &mut rig.out);
    rig.out.clear();
    let probe = Frame::MtuProbe { id: 1, mtu: 1280, len: 1280 };
    assert_eq!(rig.frame(0, address(2000), probe.clone()), [], "60 bytes came from there");
    let record = Received { len: 1312, counter: 2, ..record };
    rig.session.on_record(0, record, &rig.timing, &mut rig.entropy, &mut rig.out);
    rig.out.clear();
    assert_eq!(rig.frame(0, address(2000), probe).len(), 1);
}

#[test]
fn the_endpoint_moves_only_after_the_new_address_has_answered_its_challenge() {
    let mut rig = Rig::new();
    let effects = rig.record(SECOND, address(2000), true);
    let token = challenge_token(&effects).expect("a challenge to the new address");
    assert_eq!(rig.session.path(), address(1000));
    // The right token from another address, and a wrong token from the right one, prove nothing.
    assert!(rig.frame(SECOND, address(3000), Frame::PathResponse { token }).is_empty());
    assert!(rig.frame(SECOND, address(2000), Frame::PathResponse { token: [9; 8] }).is_empty());
    assert_eq!((rig.session.path(), rig.session.binding()), (address(1000), Binding(0)));
    let effects = rig.frame(SECOND, address(2000), Frame::PathResponse { token });
    assert_eq!((rig.session.path(), rig.session.binding()), (address(2000), Binding(1)));
    assert!(effects.contains(&Effect::Moved {
        from: address(1000),
        to: address(2000),
        binding: Binding(1),
        reason: Reason::NatRebind
    }));
}

#[test]
fn a_record_that_is_not_the_newest_begins_no_move() {
    let mut rig = Rig::new();
    assert!(rig.record(SECOND, address(2000), false).is_empty());
    assert!(rig.session.candidate.is_none());
}

#[test]
fn an_unproven_address_is_sent_at_most_three_times_what_came_from_it() {
    let mut rig = Rig::new();
    let mut effects = rig.record(SECOND, address(2000), true);
    for i in 0..100 {
        effects.extend(rig.frame(SECOND + i, address(2000), Frame::Ping { id: i }));
        effects.extend(rig.timeout(SECOND + i * SECOND / 10));
    }
    let sends =
        effects.iter().filter(|e| matches!(e, Effect::Send { to, .. } if *to == address(2000))).count();
    let sent = sends * (9 + OVERHEAD);
    assert!(sent <= 3 * 60, "{sent} bytes were sent for 60 received");
}

#[test]
fn an_unanswered_challenge_leaves_the_old_path_in_use_and_stops() {
    let mut rig = Rig::new();
    rig.record(SECOND, address(2000), true);
    let mut challenges = 1;
    while rig.session.candidate.is_some() {
        let now = rig.session.poll_timeout(&rig.timing).unwrap();
        challenges += usize::from(challenge_token(&rig.timeout(now)).is_some());
        assert!(now < 20 * SECOND, "the candidate never ends");
    }
    assert!(challenges <= usize::from(CHALLENGES_MAX));
    assert_eq!(rig.session.path(), address(1000));
}

#[test]
fn path_moves_beyond_the_policys_rate_are_refused_and_one_is_kept_for_an_attach() {
    let mut rig = Rig::new();
    for port in [2000, 3000] {
        let token = challenge_token(&rig.record(SECOND, address(port), true)).unwrap();
        rig.frame(SECOND, address(port), Frame::PathResponse { token });
    }
    let effects = rig.record(SECOND, address(4000), true);
    assert_eq!(effects, [Effect::MoveRefused { to: address(4000), reason: Reason::SwitchRateExceeded }]);
    assert!(challenge_token(&rig.record(62 * SECOND, address(4000), true)).is_some());
}

#[test]
fn a_claim_that_waits_for_control_holds_a_path_move_back_that_it_may_make_one_too_many() {
    let mut rig = Rig::new();
    let token = challenge_token(&rig.record(SECOND, address(2000), true)).unwrap();
    rig.frame(SECOND, address(2000), Frame::PathResponse { token });
    rig.session.claim_waits();
    let effects = rig.record(2 * SECOND, address(3000), true);
    assert_eq!(effects, [Effect::MoveRefused { to: address(3000), reason: Reason::SwitchRateExceeded }]);
    rig.session.claim_ended();
    assert!(challenge_token(&rig.record(2 * SECOND, address(3000), true)).is_some());
}

#[test]
fn what_control_has_counted_counts_here_and_a_later_attach_to_the_same_gateway_forgets_no_path_move() {
    let mut first = Rig::new();
    let token = challenge_token(&first.record(SECOND, address(2000), true)).unwrap();
    first.frame(SECOND, address(2000), Frame::PathResponse { token });
    assert_eq!(first.session.switch_ages(3 * SECOND), [Duration::from_secs(2)]);

    let mut again = Rig::told(vec![Duration::ZERO]);
    assert!(challenge_token(&again.record(2 * SECOND, address(3000), true)).is_some());
    let mut again = Rig::told(vec![Duration::ZERO]);
    again.session.replaces(&first.session);
    assert_eq!(again.session.switch_ages(3 * SECOND), [Duration::from_secs(2)], "only its own");
    let effects = again.record(2 * SECOND, address(3000), true);
    assert_eq!(effects, [Effect::MoveRefused { to: address(3000), reason: Reason::SwitchRateExceeded }]);
}

#[test]
fn a_silent_client_is_probed_and_its_session_ends_at_the_policys_bound() {
    let mut rig = Rig::new();
    let mut states = vec![];
    let mut pings = 0;
    let mut steps = 0;
    while let Some(now) = rig.session.poll_timeout(&rig.timing) {
        for effect in rig.timeout(now) {
            match effect {
                Effect::Changed { to, .. } => states.push((now / SECOND, to)),
                Effect::Send { frame: Frame::Ping { .. }, .. } => pings += 1,
                Effect::End { reason } => assert_eq!(reason, Reason::TransportLost),
                Effect::Send { .. } | Effect::Moved { .. } | Effect::MoveRefused { .. } => {
                    panic!("{effect:?}")
                }
            }
        }
        steps += 1;
        assert!(steps < 100, "the timer does not advance");
    }
    assert_eq!(states, [(40, State::Volatile), (75, State::Degraded), (120, State::Terminated)]);
    assert!(pings >= 5);
}

#[test]
fn a_client_that_is_heard_again_is_attached_again() {
    let mut rig = Rig::new();
    rig.timeout(80 * SECOND);
    assert_eq!(rig.session.state(), State::Degraded);
    rig.record(81 * SECOND, address(1000), true);
    rig.record(82 * SECOND, address(1000), true);
    assert_eq!(rig.session.state(), State::Attached);
    let due = rig.session.poll_timeout(&rig.timing).unwrap();
    assert_eq!(due, 122 * SECOND);
}

#[test]
fn a_session_asked_to_move_is_served_until_it_is_fenced() {
    let mut rig = Rig::new();
    rig.session.ask_to_move(Reason::GatewayDraining, vec![address(9).peer], &mut rig.out);
    assert!(matches!(rig.out[1], Effect::Send { frame: Frame::Migrate { .. }, .. }));
    assert!(rig.session.forwards());
    // A session that is moving still has a timer that advances while it is heard and while it is not.
    rig.out.clear();
    rig.timeout(50 * SECOND);
    rig.record(51 * SECOND, address(1000), true);
    rig.timeout(66 * SECOND);
    assert!(rig.session.poll_timeout(&rig.timing).unwrap() > 66 * SECOND);
    rig.session.fence(&mut rig.out);
    rig.out.clear();
    assert!(!rig.session.forwards());
    assert!(rig.frame(67 * SECOND, address(1000), Frame::Ping { id: 1 }).is_empty());
}

#[test]
fn a_client_may_not_send_the_gateways_frames() {
    let mut rig = Rig::new();
    for frame in [
        Frame::Terminated { reason: Reason::Drained },
        Frame::Bound { binding: 1 },
        Frame::Migrate { reason: Reason::Drained, targets: vec![] },
    ] {
        assert_eq!(rig.session.on_frame(0, address(1000), &frame, &mut rig.out), Err(UnexpectedFrame));
    }
    assert!(rig.out.is_empty());
}

#[test]
fn the_transition_table_is_this_one() {
    const STATES: [State; 7] = [
        State::Birth,
        State::Attached,
        State::Volatile,
        State::Degraded,
        State::Reattaching,
        State::Recovering,
        State::Terminated,
    ];
    let events = [
        ("accepted", Event::Accepted),
        ("rejected", Event::Rejected(Reason::StaleAttempt)),
        ("heard", Event::Heard),
        ("quiet", Event::Quiet),
        ("silent", Event::Silent),
        ("move asked", Event::MoveAsked(Reason::GatewayDraining)),
        ("fenced", Event::Fenced),
        ("ended", Event::Ended(Reason::ClientClosed)),
    ];
    let mut table = String::new();
    for (name, event) in events {
        write!(table, "{name}:").unwrap();
        for state in STATES {
            match transition(state, event) {
                Ok(Next::To(to, reason)) => write!(table, " {}/{reason}", to.name()).unwrap(),
                Ok(Next::Stay) => table.push_str(" ="),
                Err(Illegal) => table.push_str(" !"),
            }
        }
        table.push('\n');
    }
    assert_eq!(table, include_str!("table.txt"), "{table}");
}
