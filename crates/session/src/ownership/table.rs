//! Every cell of (phase × event), as text. `table.txt` is the snapshot; a change of any cell is a change of the protocol.

use std::fmt::Write as _;

use super::*;
use crate::policy::{DevicePolicy, SessionPolicy};

const NOW: UnixMillis = 10_000_000;
/// The record's epoch and highest accepted sequence number.
const EPOCH: u64 = 5;
const STORED: u64 = 10;
/// The waiting claim's sequence number.
const CLAIMED: u64 = 12;

pub(super) fn owner(name: &str, run: u64) -> Owner {
    Owner { node: name.parse().unwrap(), incarnation: Incarnation(run) }
}

pub(super) fn request(claimant: Owner, seq: u64) -> AttachRequest {
    AttachRequest {
        claimant,
        device: DeviceKey::from_bytes([7; 32]),
        attach_seq: AttachSeq(seq),
        attempt: AttemptId::from_bytes([seq as u8; 16]),
        reason: Reason::GatewayUnresponsive,
        switch_ages: Vec::new(),
    }
}

pub(super) fn record(phase: Phase) -> SessionRecord {
    SessionRecord {
        id: SessionId::from_bytes([1; 16]),
        device: DeviceKey::from_bytes([7; 32]),
        device_name: "laptop".to_owned(),
        epoch: Epoch(EPOCH),
        attach_seq: AttachSeq(STORED),
        attempt: AttemptId::from_bytes([STORED as u8; 16]),
        phase,
        inner: vec!["10.64.0.2".parse().unwrap()],
        created: NOW - 1_000_000,
        changed: NOW - 30_000,
        expires: NOW + 1_000_000,
        reason: Reason::Birth,
        history: vec![HistoryEntry {
            epoch: Epoch(EPOCH),
            owner: owner("a", 1),
            since: NOW - 30_000,
            reason: Reason::Birth,
        }],
        recent_switches: vec![NOW - 30_000],
        moving: None,
        correlation: [3; 16],
        policy: DevicePolicy::default(),
    }
}

pub(super) fn handover() -> Phase {
    let to = Claim {
        owner: owner("b", 1),
        attach_seq: AttachSeq(CLAIMED),
        attempt: AttemptId::from_bytes([CLAIMED as u8; 16]),
        since: NOW - 1_000,
        reason: Reason::PathRefused,
        charged: true,
    };
    Phase::Handover { from: owner("a", 1), to }
}

pub(super) fn view(owner_registered: bool, target_registered: bool) -> View {
    View {
        claimant_registered: true,
        claimant_draining: false,
        owner_draining: false,
        owner_registered,
        target_registered,
        device: DeviceStanding::Active,
    }
}

fn name(owner: &Owner) -> String {
    format!("{}{}", owner.node.as_str().to_uppercase(), owner.incarnation)
}

fn phase_text(phase: &Phase) -> String {
    match phase {
        Phase::Released { .. } => "Released".to_owned(),
        Phase::Owned { owner } => format!("Owned {}", name(owner)),
        Phase::Handover { from, to } => {
            format!("Handover {}→{} #{}", name(from), name(&to.owner), to.attach_seq)
        }
        Phase::Terminated { .. } => "Terminated".to_owned(),
    }
}

fn transition_text(transition: &Transition) -> String {
    let next = &transition.next;
    let mut text =
        format!("{} e{} #{} {}", phase_text(&next.phase), next.epoch, next.attach_seq, next.reason);
    for condition in &transition.conditions {
        match condition {
            Condition::Registered(owner) => write!(text, " +{}", name(owner)).unwrap(),
            Condition::Gone(owner) => write!(text, " -{}", name(owner)).unwrap(),
        }
    }
    text
}

fn attach_text(outcome: &Result<Decision, Refusal>) -> String {
    match outcome {
        Ok(Decision::Commit(transition)) => format!("commit {}", transition_text(transition)),
        Ok(Decision::Intend(transition)) => format!("intend {}", transition_text(transition)),
        Ok(Decision::Wait) => "wait".to_owned(),
        Ok(Decision::AlreadyAccepted) => "already accepted".to_owned(),
        Err(refusal) => refusal_text(refusal),
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    let mut text = format!("{} e{} #{}", refusal.reason, refusal.current_epoch, refusal.current_attach_seq);
    if !refusal.is_final() {
        write!(text, " retry {} ms", refusal.retry_after.as_millis()).unwrap();
    }
    text
}

fn change_text(outcome: &Result<Option<Transition>, Refusal>) -> String {
    match outcome {
        Ok(Some(transition)) => format!("write {}", transition_text(transition)),
        Ok(None) => "nothing to do".to_owned(),
        Err(refusal) => refusal_text(refusal),
    }
}

fn changes() -> Vec<(String, Change)> {
    let mut changes = Vec::new();
    for by in [owner("a", 1), owner("b", 1)] {
        for epoch in [EPOCH - 1, EPOCH, EPOCH + 1] {
            let label = |what| format!("{what} {} e{epoch}", name(&by));
            let epoch = Epoch(epoch);
            changes.push((
                label("fenced"),
                Change::FenceAcknowledged { by: by.clone(), epoch, switch_ages: Vec::new() },
            ));
            let reason = Reason::Drained;
            changes.push((
                label("release"),
                Change::Release { by: by.clone(), epoch, reason, switch_ages: Vec::new() },
            ));
            let reason = Reason::ClientClosed;
            changes.push((label("terminate"), Change::Terminate { by: Some((by.clone(), epoch)), reason }));
        }
    }
    let reason = Reason::OperatorTerminated;
    changes.push(("terminate operator".to_owned(), Change::Terminate { by: None, reason }));
    for to in ["a", "b", "c"] {
        let change = Change::Move { to: Some(to.parse().unwrap()) };
        changes.push((format!("move to {}", to.to_uppercase()), change));
    }
    changes.push(("move anywhere".to_owned(), Change::Move { to: None }));
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    changes
}

fn section(table: &mut String, title: &str, record: &SessionRecord, view: &View, now: UnixMillis) {
    let policy = SessionPolicy::default();
    writeln!(table, "\n== {title}").unwrap();
    for claimant in [owner("a", 1), owner("a", 2), owner("b", 1), owner("c", 1)] {
        for seq in [STORED - 1, STORED, CLAIMED - 1, CLAIMED, CLAIMED + 1] {
            // The same run is registered or not, whatever it is called in the view.
            let view = View {
                claimant_registered: match record.owner() {
                    Some(owner) if *owner == claimant => view.owner_registered,
                    _ if claimant == owner("b", 1) => view.target_registered,
                    _ => true,
                },
                ..*view
            };
            let outcome = arbitrate(record, &view, &request(claimant.clone(), seq), &policy, now);
            writeln!(table, "attach {} #{seq:<8} {}", name(&claimant), attach_text(&outcome)).unwrap();
        }
    }
    for (label, event) in changes() {
        writeln!(table, "{label:<19} {}", change_text(&change(record, view, &event, now))).unwrap();
    }
    let expired = expire(record, view, &policy, now);
    writeln!(table, "{:<19} {}", "time", change_text(&Ok(expired))).unwrap();
}

#[test]
fn every_cell_of_phase_and_event_is_the_documented_one() {
    let owned = record(Phase::Owned { owner: owner("a", 1) });
    let handover = record(handover());
    let released = record(Phase::Released { since: NOW - 1_000 });
    let waited = record(Phase::Released { since: NOW - 120_000 });
    let ended = record(Phase::Terminated { at: NOW - 1_000 });
    let mut table = String::from(
        "e epoch, # attach_seq, + must be registered, - must be gone. The record: epoch 5, accepted attempt #10 by A1,\n\
         in Handover a claim #12 by B1. Each attempt's id goes with its #.\n",
    );
    let t = &mut table;
    section(t, "Owned by A1, which is alive", &owned, &view(true, true), NOW);
    section(t, "Owned by A1, which is gone", &owned, &view(false, true), NOW);
    section(t, "Handover from A1 (alive) to B1 (alive)", &handover, &view(true, true), NOW);
    section(t, "Handover from A1 (alive) to B1 (gone)", &handover, &view(true, false), NOW);
    section(t, "Handover from A1 (gone) to B1 (alive)", &handover, &view(false, true), NOW);
    section(t, "Handover from A1 (gone) to B1 (gone)", &handover, &view(false, false), NOW);
    let late = NOW + 200_000;
    section(t, "Handover from A1 (gone) to B1 (alive), abandoned", &handover, &view(false, true), late);
    section(t, "Released", &released, &view(false, true), NOW);
    section(t, "Released, recovery window over", &waited, &view(false, true), NOW);
    section(t, "Terminated", &ended, &view(false, true), NOW);
    let over = owned.expires;
    section(t, "Owned by A1, lifetime over", &owned, &view(true, true), over);
    section(t, "Handover from A1 (alive) to B1 (alive), lifetime over", &handover, &view(true, true), over);

    let snapshot = include_str!("table.txt");
    if table != snapshot {
        // Shows the whole table so that a wanted change can be reviewed and copied.
        println!("{table}");
    }
    for (line, (got, want)) in table.lines().zip(snapshot.lines()).enumerate() {
        assert_eq!(got, want, "line {} of table.txt", line + 1);
    }
    assert_eq!(table.len(), snapshot.len(), "table.txt has more or fewer lines");
}
