use super::*;

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
