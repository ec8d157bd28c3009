use super::table::{handover, owner, record, request, view};
use super::*;
use crate::policy::SessionPolicy;

const NOW: UnixMillis = 10_000_000;

#[test]
fn authority_ends_a_margin_before_the_lease_counted_from_the_send_time() {
    let authority = Authority::renewed(5_000, Duration::from_nanos(3_000), Duration::from_nanos(300));
    assert_eq!(authority.deadline, 7_700);
    assert!(authority.holds(7_699));
    assert!(!authority.holds(7_700), "authority held at its deadline");
}

#[test]
fn a_margin_as_long_as_the_lease_gives_no_authority() {
    let second = Duration::from_secs(1);
    assert!(!Authority::renewed(5, second, second).holds(5));
    assert!(!Authority::renewed(5, second, Duration::from_secs(2)).holds(5));
}

#[test]
fn an_accepting_answer_overtaken_by_a_fence_activates_nothing() {
    let mut tenure = Tenure::default();
    assert!(!tenure.give_up(Epoch(2)), "nothing was active");
    assert!(!tenure.accept(Epoch(2)), "a fenced epoch was activated");
    assert!(tenure.accept(Epoch(3)));
    assert!(!tenure.give_up(Epoch(2)), "a repeated old fence stopped a newer epoch");
    assert_eq!(tenure.active(), Some(Epoch(3)));
    assert!(tenure.give_up(Epoch(3)));
    assert_eq!(tenure.active(), None);
}

#[test]
fn a_late_answer_does_not_bring_an_older_epoch_of_the_same_gateway_back() {
    let mut tenure = Tenure::default();
    assert!(tenure.accept(Epoch(5)));
    assert!(!tenure.accept(Epoch(4)));
    assert!(tenure.accept(Epoch(5)), "a repeated answer is no news");
    assert_eq!(tenure.active(), Some(Epoch(5)));
}

fn owned() -> SessionRecord {
    record(Phase::Owned { owner: owner("a", 1) })
}

fn refusal(outcome: Result<Decision, Refusal>) -> Refusal {
    outcome.expect_err("was not refused")
}

#[test]
fn a_device_without_standing_learns_nothing_of_the_record() {
    let policy = SessionPolicy::default();
    for (device, reason) in [
        (DeviceStanding::Unknown, Reason::UnknownDevice),
        (DeviceStanding::Revoked, Reason::KeyRevoked),
        (DeviceStanding::Expired, Reason::KeyExpired),
    ] {
        let view = View { device, ..view(true, true) };
        let refusal = refusal(arbitrate(&owned(), &view, &request(owner("b", 1), 11), &policy, NOW));
        assert_eq!(refusal, Refusal::blank(reason, Duration::ZERO));
        let born = birth(
            SessionId::from_bytes([2; 16]),
            vec!["10.0.0.1".parse().unwrap()],
            String::new(),
            [0; 16],
            &view,
            &request(owner("b", 1), 1),
            &policy,
            NOW,
        );
        assert_eq!(born.expect_err("was born").reason, reason);
    }
    let stranger = AttachRequest { device: DeviceKey::from_bytes([8; 32]), ..request(owner("b", 1), 11) };
    let refusal = refusal(arbitrate(&owned(), &view(true, true), &stranger, &policy, NOW));
    assert_eq!(refusal, Refusal::blank(Reason::WrongDevice, Duration::ZERO));
}

#[test]
fn a_draining_node_takes_nothing_new_and_keeps_what_it_was_promised() {
    let policy = SessionPolicy::default();
    let draining = View { claimant_draining: true, ..view(true, true) };
    let decide = |record: &SessionRecord, claimant, seq| {
        arbitrate(record, &draining, &request(claimant, seq), &policy, NOW)
    };
    assert_eq!(refusal(decide(&owned(), owner("b", 1), 11)).reason, Reason::NodeDraining);
    assert_eq!(refusal(decide(&owned(), owner("a", 1), 11)).reason, Reason::NodeDraining);
    assert_eq!(decide(&owned(), owner("a", 1), 10), Ok(Decision::AlreadyAccepted));
    assert_eq!(decide(&record(handover()), owner("b", 1), 12), Ok(Decision::Wait));
}

#[test]
fn a_birth_is_epoch_one_and_needs_an_address_and_a_registered_node() {
    let policy = SessionPolicy::default();
    let born = |inner: &[&str], view: &View| {
        let inner = inner.iter().map(|ip| ip.parse().unwrap()).collect();
        let request = request(owner("a", 1), 1);
        birth(SessionId::from_bytes([2; 16]), inner, "l".to_owned(), [9; 16], view, &request, &policy, NOW)
    };
    let transition = born(&["10.0.0.1"], &view(false, false)).unwrap();
    assert_eq!(transition.next.epoch, Epoch(1));
    assert_eq!(transition.next.phase, Phase::Owned { owner: owner("a", 1) });
    assert_eq!(transition.next.expires, NOW + 24 * 3_600_000);
    assert_eq!(transition.conditions, [Condition::Registered(owner("a", 1))]);
    assert_eq!(born(&[], &view(false, false)).unwrap_err().reason, Reason::AddressPoolExhausted);
    let unregistered = View { claimant_registered: false, ..view(false, false) };
    assert_eq!(born(&["10.0.0.1"], &unregistered).unwrap_err().reason, Reason::NodeNotRegistered);
}

/// A policy under which no client may choose to switch.
fn no_choice() -> SessionPolicy {
    SessionPolicy { switches_per_minute_max: 0, ..SessionPolicy::default() }
}

/// The handover that `claimant`'s attach begins, and the record after the old owner's acknowledgement.
fn moved(record: &SessionRecord, view: &View, claimant: Owner) -> SessionRecord {
    let decision = arbitrate(record, view, &request(claimant, 11), &no_choice(), NOW);
    let Ok(Decision::Intend(intent)) = decision else { panic!("{decision:?}") };
    let acknowledged =
        Change::FenceAcknowledged { by: owner("a", 1), epoch: record.epoch, switch_ages: Vec::new() };
    change(&intent.next, view, &acknowledged, NOW).unwrap().unwrap().next
}

#[test]
fn leaving_a_draining_owner_is_never_refused_by_pace_and_never_charged() {
    let draining = View { owner_draining: true, ..view(true, true) };
    let next = moved(&owned(), &draining, owner("b", 1));
    assert_eq!(next.owner(), Some(&owner("b", 1)));
    assert_eq!(next.recent_switches, owned().recent_switches, "a drain was charged to the client");
    let stays = arbitrate(&owned(), &draining, &request(owner("a", 1), 11), &no_choice(), NOW);
    assert_eq!(refusal(stays).reason, Reason::SwitchRateExceeded, "new keys at the same node are a choice");
}

#[test]
fn an_operators_move_is_free_to_its_target_alone_and_only_while_it_stands() {
    let order = |to: Option<&str>| {
        let change = Change::Move { to: to.map(|to| to.parse().unwrap()) };
        super::change(&owned(), &view(true, true), &change, NOW).unwrap().unwrap().next
    };
    let ordered = order(Some("b"));
    assert_eq!((ordered.owner(), ordered.epoch), (owned().owner(), owned().epoch), "an order moves nobody");
    let next = moved(&ordered, &view(true, true), owner("b", 1));
    assert_eq!((next.owner(), next.moving.as_ref()), (Some(&owner("b", 1)), None));
    assert_eq!(next.recent_switches, owned().recent_switches);
    moved(&order(None), &view(true, true), owner("c", 1));
    let elsewhere = arbitrate(&ordered, &view(true, true), &request(owner("c", 1), 11), &no_choice(), NOW);
    assert_eq!(refusal(elsewhere).reason, Reason::SwitchRateExceeded);
    let late = NOW + MOVE_WINDOW.as_millis() as u64;
    let lapsed = arbitrate(&ordered, &view(true, true), &request(owner("b", 1), 11), &no_choice(), late);
    assert_eq!(refusal(lapsed).reason, Reason::SwitchRateExceeded);
}

#[test]
fn an_order_to_move_goes_with_its_owner() {
    let change = Change::Move { to: Some("b".parse().unwrap()) };
    let ordered = super::change(&owned(), &view(true, true), &change, NOW).unwrap().unwrap().next;
    for end in [
        Change::Release {
            by: owner("a", 1),
            epoch: Epoch(5),
            reason: Reason::Drained,
            switch_ages: Vec::new(),
        },
        Change::Terminate { by: None, reason: Reason::OperatorTerminated },
    ] {
        let next = super::change(&ordered, &view(true, true), &end, NOW).unwrap().unwrap().next;
        assert_eq!(next.moving, None);
    }
    // New keys at the same node do not fulfil it.
    let policy = SessionPolicy { switch_cooldown: Duration::ZERO, ..SessionPolicy::default() };
    let again = arbitrate(&ordered, &view(true, true), &request(owner("a", 1), 11), &policy, NOW);
    let Ok(Decision::Commit(same)) = again else { panic!("{again:?}") };
    assert_eq!(same.next.moving, ordered.moving);
}

#[test]
fn cooldown_and_rate_hold_back_a_chosen_switch_exactly_until_retry_after() {
    let policy = SessionPolicy { switches_per_minute_max: 3, ..SessionPolicy::default() };
    let mut hot = owned();
    hot.history[0].since = NOW - 40;
    let decide = |record: &SessionRecord, now| {
        arbitrate(record, &view(true, true), &request(owner("b", 1), 11), &policy, now)
    };
    let cooling = refusal(decide(&hot, NOW));
    assert_eq!((cooling.reason, cooling.retry_after), (Reason::SwitchCooldown, Duration::from_millis(60)));
    assert_eq!(refusal(decide(&hot, NOW + 59)).reason, Reason::SwitchCooldown);
    assert!(decide(&hot, NOW + 60).is_ok());

    hot.recent_switches = vec![NOW - 50_000, NOW - 20_000, NOW - 40];
    let limited = refusal(decide(&hot, NOW));
    assert_eq!((limited.reason, limited.retry_after), (Reason::SwitchRateExceeded, Duration::from_secs(11)));
    assert_eq!(refusal(decide(&hot, NOW + 10_999)).reason, Reason::SwitchRateExceeded);
    assert!(decide(&hot, NOW + 11_000).is_ok());

    let none = SessionPolicy { switches_per_minute_max: 0, ..policy };
    let never = arbitrate(&owned(), &view(true, true), &request(owner("b", 1), 11), &none, NOW);
    assert_eq!(refusal(never).retry_after, SWITCH_WINDOW);
}

#[test]
fn path_switches_count_for_an_attach_to_the_owner_that_made_them_and_for_all_once_it_has_stopped() {
    let seconds = |ages: &[u64]| ages.iter().map(|age| Duration::from_secs(*age)).collect::<Vec<_>>();
    let policy = SessionPolicy { switches_per_minute_max: 4, ..SessionPolicy::default() };
    let mut before = owned();
    before.recent_switches = vec![NOW - 30_000];
    let here = AttachRequest { switch_ages: seconds(&[20, 10]), ..request(owner("a", 1), 11) };
    let limited = refusal(arbitrate(&before, &view(true, true), &here, &policy, NOW));
    assert_eq!((limited.reason, limited.retry_after), (Reason::SwitchRateExceeded, Duration::from_secs(31)));
    let elsewhere = AttachRequest { switch_ages: here.switch_ages, ..request(owner("b", 1), 11) };
    let Ok(Decision::Intend(intent)) = arbitrate(&before, &view(true, true), &elsewhere, &policy, NOW) else {
        panic!("another gateway's word of the owner's path switches was believed");
    };
    let stopped =
        Change::FenceAcknowledged { by: owner("a", 1), epoch: before.epoch, switch_ages: seconds(&[20, 10]) };
    let next = change(&intent.next, &view(true, true), &stopped, NOW).unwrap().unwrap().next;
    assert_eq!(next.recent_switches, [NOW - 30_000, NOW - 20_000, NOW - 10_000, NOW]);
    assert_eq!(next.switch_ages(NOW + 1_000), seconds(&[31, 21, 11, 1]));
    assert_eq!(change(&next, &view(true, true), &stopped, NOW), Ok(None), "counted twice");
}

#[test]
fn a_client_whose_owner_is_gone_is_never_held_back_by_pace() {
    let policy = SessionPolicy { switches_per_minute_max: 0, ..SessionPolicy::default() };
    let mut hot = owned();
    hot.history[0].since = NOW;
    hot.recent_switches = vec![NOW; RECENT_SWITCHES_MAX];
    let outcome = arbitrate(&hot, &view(false, true), &request(owner("b", 1), 11), &policy, NOW);
    let Ok(Decision::Commit(transition)) = outcome else { panic!("held back: {outcome:?}") };
    assert_eq!(transition.next.recent_switches, hot.recent_switches, "a forced move was charged");
    hot.phase = Phase::Released { since: NOW };
    let outcome = arbitrate(&hot, &view(false, true), &request(owner("b", 1), 11), &policy, NOW);
    assert!(matches!(outcome, Ok(Decision::Commit(_))), "held back: {outcome:?}");
}

#[test]
fn a_waiting_claim_is_replaced_only_after_the_cooldown_unless_its_target_is_dead() {
    let policy = SessionPolicy::default();
    let mut waiting = record(handover());
    if let Phase::Handover { to, .. } = &mut waiting.phase {
        to.since = NOW - 30;
    }
    let decide =
        |target, now| arbitrate(&waiting, &view(true, target), &request(owner("c", 1), 13), &policy, now);
    let cooling = refusal(decide(true, NOW));
    assert_eq!((cooling.reason, cooling.retry_after), (Reason::SwitchCooldown, Duration::from_millis(70)));
    assert!(matches!(decide(true, NOW + 70), Ok(Decision::Intend(_))));
    assert!(matches!(decide(false, NOW), Ok(Decision::Intend(_))));
}

#[test]
fn a_switch_time_from_a_clock_that_had_jumped_ahead_strands_nobody() {
    let policy = SessionPolicy { switches_per_minute_max: 1, ..SessionPolicy::default() };
    let mut skewed = owned();
    skewed.recent_switches = vec![NOW + 3_600_000];
    skewed.history[0].since = NOW + 3_600_000;
    let outcome = arbitrate(&skewed, &view(true, true), &request(owner("b", 1), 11), &policy, NOW);
    assert!(matches!(outcome, Ok(Decision::Intend(_))), "stranded: {outcome:?}");
}

#[test]
fn the_last_epoch_is_the_end_and_not_a_reset() {
    let mut last = owned();
    last.epoch = Epoch(u64::MAX);
    let policy = SessionPolicy::default();
    let refused = refusal(arbitrate(&last, &view(false, true), &request(owner("b", 1), 11), &policy, NOW));
    assert_eq!((refused.reason, refused.is_final()), (Reason::AttemptsExceeded, true));
}
