//! `docs/state-machines.md`: the tables and drawings are made by running the machines themselves, and what is not drawn is
//! refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use jump_crypto::key_ring::{KeyRing, KeyState, RingPolicy};
use jump_session::client::state::{State as Client, Trigger};
use jump_session::gateway::{Event, Next, State as Gateway, transition};
use jump_session::ids::{AttachSeq, AttemptId, DeviceKey, Epoch, Incarnation, SessionId};
use jump_session::ownership::{
    self, AttachRequest, Change, Claim, Decision, DeviceStanding, HistoryEntry, Owner, Phase, SessionRecord,
    View,
};
use jump_session::policy::{DevicePolicy, SessionPolicy};
use jump_session::reason::Reason;

use crate::{document, root};

/// Edges of a drawing: from, to, and what leads there.
type Edges = BTreeMap<(String, String), BTreeSet<String>>;

/// Replaces the part of the document between its marks, or says that it is stale.
fn check(part: &str, expected: &str) {
    let text = document("state-machines.md");
    let (begin, end) = (format!("<!-- begin: {part} -->\n"), format!("<!-- end: {part} -->"));
    let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no mark {begin}"));
    let (found, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("no mark {end}"));
    if std::env::var_os("JUMP_WRITE_DOCS").is_some() {
        let path = root().join("docs/state-machines.md");
        return fs::write(path, format!("{head}{begin}{expected}{end}{tail}")).unwrap();
    }
    assert_eq!(found, expected, "docs/state-machines.md is stale: JUMP_WRITE_DOCS=1 makes it anew");
}

fn diagram(edges: &Edges, first: &str) -> String {
    let mut out = format!("```mermaid\nstateDiagram-v2\n    [*] --> {first}\n");
    for ((from, to), by) in edges {
        let by: Vec<&str> = by.iter().map(String::as_str).collect();
        writeln!(out, "    {from} --> {to}: {}", by.join(", ")).unwrap();
    }
    out + "```\n"
}

fn table(corner: &str, columns: &[String], rows: &[(String, Vec<String>)]) -> String {
    let mut out = format!("| {corner} | {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len() + 1));
    for (name, cells) in rows {
        writeln!(out, "| {name} | {} |", cells.join(" | ")).unwrap();
    }
    out
}

fn client_part() -> String {
    let mut edges = Edges::new();
    let mut rows = Vec::new();
    for state in Client::ALL {
        let cells = Trigger::ALL.map(|trigger| match state.after(trigger) {
            Ok(next) => {
                if next != state {
                    let edge = (state.code().to_owned(), next.code().to_owned());
                    edges.entry(edge).or_default().insert(format!("{trigger:?}"));
                }
                next.code().to_owned()
            }
            Err(_) => "refused".to_owned(),
        });
        rows.push((state.code().to_owned(), cells.to_vec()));
    }
    let columns = Trigger::ALL.map(|trigger| format!("{trigger:?}"));
    format!("{}\n{}", diagram(&edges, "BIRTH"), table("state", &columns, &rows))
}

const GATEWAY_STATES: [Gateway; 7] = [
    Gateway::Birth,
    Gateway::Attached,
    Gateway::Volatile,
    Gateway::Degraded,
    Gateway::Reattaching,
    Gateway::Recovering,
    Gateway::Terminated,
];

fn gateway_events() -> [(&'static str, Event); 8] {
    [
        ("Accepted", Event::Accepted),
        ("Rejected", Event::Rejected(Reason::StaleAttempt)),
        ("Heard", Event::Heard),
        ("Quiet", Event::Quiet),
        ("Silent", Event::Silent),
        ("MoveAsked", Event::MoveAsked(Reason::GatewayDraining)),
        ("Fenced", Event::Fenced),
        ("Ended", Event::Ended(Reason::ClientClosed)),
    ]
}

fn gateway_part() -> String {
    let mut edges = Edges::new();
    let mut rows = Vec::new();
    for state in GATEWAY_STATES {
        let cells = gateway_events().map(|(name, event)| match transition(state, event) {
            Ok(Next::To(next, _)) => {
                let edge = (state.name().to_owned(), next.name().to_owned());
                edges.entry(edge).or_default().insert(name.to_owned());
                next.name().to_owned()
            }
            Ok(Next::Stay) => "stays".to_owned(),
            Err(_) => "refused".to_owned(),
        });
        rows.push((state.name().to_owned(), cells.to_vec()));
    }
    let columns = gateway_events().map(|(name, _)| name.to_owned());
    format!("{}\n{}", diagram(&edges, "BIRTH"), table("state", &columns, &rows))
}

const NOW: u64 = 10_000_000;

fn owner(name: &str, run: u64) -> Owner {
    Owner { node: name.parse().unwrap(), incarnation: Incarnation(run) }
}

fn record(phase: Phase) -> SessionRecord {
    SessionRecord {
        id: SessionId::from_bytes([1; 16]),
        device: DeviceKey::from_bytes([7; 32]),
        device_name: "laptop".to_owned(),
        epoch: Epoch(5),
        attach_seq: AttachSeq(10),
        attempt: AttemptId::from_bytes([10; 16]),
        phase,
        inner: vec!["10.64.0.2".parse().unwrap()],
        created: NOW - 1_000_000,
        changed: NOW - 30_000,
        expires: NOW + 1_000_000,
        reason: Reason::Birth,
        history: vec![HistoryEntry {
            epoch: Epoch(5),
            owner: owner("a", 1),
            since: NOW - 30_000,
            reason: Reason::Birth,
        }],
        recent_switches: vec![],
        correlation: [3; 16],
        policy: DevicePolicy::default(),
        ..base()
    }
}

/// Whatever else a record has.
fn base() -> SessionRecord {
    let view = View {
        claimant_registered: true,
        claimant_draining: false,
        owner_registered: true,
        owner_draining: false,
        target_registered: true,
        device: DeviceStanding::Active,
    };
    let request = attach(owner("a", 1), 1);
    let id = SessionId::from_bytes([1; 16]);
    let inner = vec!["10.64.0.2".parse().unwrap()];
    let policy = SessionPolicy::default();
    ownership::birth(id, inner, String::new(), [0; 16], &view, &request, &policy, 1).unwrap().next
}

fn attach(claimant: Owner, seq: u64) -> AttachRequest {
    AttachRequest {
        claimant,
        device: DeviceKey::from_bytes([7; 32]),
        attach_seq: AttachSeq(seq),
        attempt: AttemptId::from_bytes([u8::try_from(seq).unwrap(); 16]),
        reason: Reason::GatewayUnresponsive,
        switch_ages: Vec::new(),
    }
}

fn phases() -> Vec<Phase> {
    let claim = |name: &str, run| Claim {
        owner: owner(name, run),
        attach_seq: AttachSeq(12),
        attempt: AttemptId::from_bytes([12; 16]),
        since: NOW - 1_000,
        reason: Reason::PathRefused,
        charged: true,
    };
    vec![
        Phase::Owned { owner: owner("a", 1) },
        Phase::Handover { from: owner("a", 1), to: claim("b", 1) },
        Phase::Released { since: NOW - 1_000 },
        Phase::Terminated { at: NOW - 1_000 },
    ]
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Owned { .. } => "Owned",
        Phase::Handover { .. } => "Handover",
        Phase::Released { .. } => "Released",
        Phase::Terminated { .. } => "Terminated",
    }
}

/// Every write that any decision makes of any phase, over all claimants, numbers, views and times that differ.
fn writes(mut each: impl FnMut(&SessionRecord, &str, &SessionRecord)) {
    let flags = [false, true];
    let policy = SessionPolicy::default();
    for phase in phases() {
        let record = record(phase);
        for (((owner_registered, target_registered), claimant_registered), claimant_draining) in flags
            .into_iter()
            .flat_map(|a| flags.map(|b| (a, b)))
            .flat_map(|ab| flags.map(|c| (ab, c)))
            .flat_map(|abc| flags.map(|d| (abc, d)))
        {
            for device in [DeviceStanding::Active, DeviceStanding::Revoked] {
                let view = View {
                    claimant_registered,
                    claimant_draining,
                    owner_registered,
                    target_registered,
                    device,
                    owner_draining: claimant_draining,
                };
                for now in [NOW, NOW + 200_000, record.expires] {
                    for claimant in [owner("a", 1), owner("a", 2), owner("b", 1), owner("c", 1)] {
                        for seq in 9..=13 {
                            let request = attach(claimant.clone(), seq);
                            match ownership::arbitrate(&record, &view, &request, &policy, now) {
                                Ok(Decision::Commit(write) | Decision::Intend(write)) => {
                                    each(&record, "attach", &write.next);
                                }
                                Ok(Decision::Wait | Decision::AlreadyAccepted) | Err(_) => {}
                            }
                        }
                    }
                    let by = [owner("a", 1), owner("a", 2), owner("b", 1)];
                    for (by, epoch) in
                        by.into_iter().flat_map(|by| (4..=6).map(move |e| (by.clone(), Epoch(e))))
                    {
                        let changes = [
                            (
                                "fence acknowledged",
                                Change::FenceAcknowledged { by: by.clone(), epoch, switch_ages: Vec::new() },
                            ),
                            (
                                "release",
                                Change::Release {
                                    by: by.clone(),
                                    epoch,
                                    reason: Reason::Drained,
                                    switch_ages: Vec::new(),
                                },
                            ),
                            (
                                "end",
                                Change::Terminate { by: Some((by, epoch)), reason: Reason::ClientClosed },
                            ),
                            ("end", Change::Terminate { by: None, reason: Reason::OperatorTerminated }),
                        ];
                        for (name, change) in changes {
                            if let Ok(Some(write)) = ownership::change(&record, &view, &change, now) {
                                each(&record, name, &write.next);
                            }
                        }
                    }
                    for to in [None, Some("b".parse().unwrap())] {
                        if let Ok(Some(write)) = ownership::change(&record, &view, &Change::Move { to }, now)
                        {
                            each(&record, "move asked", &write.next);
                        }
                    }
                    if let Some(write) = ownership::expire(&record, &view, &policy, now) {
                        each(&record, "time", &write.next);
                    }
                }
            }
        }
    }
}

fn ownership_part() -> String {
    let mut edges = Edges::new();
    writes(|from, by, to| {
        let edge = (phase_name(&from.phase).to_owned(), phase_name(&to.phase).to_owned());
        edges.entry(edge).or_default().insert(by.to_owned());
    });
    let names = ["Owned", "Handover", "Released", "Terminated"];
    let rows = names.map(|from| {
        let cells = names.map(|to| match edges.get(&(from.to_owned(), to.to_owned())) {
            Some(by) => by.iter().cloned().collect::<Vec<_>>().join(", "),
            None => "never".to_owned(),
        });
        (from.to_owned(), cells.to_vec())
    });
    format!("{}\n{}", diagram(&edges, "Owned"), table("from ↓ to →", &names.map(str::to_owned), &rows))
}

fn key_state_name(state: KeyState) -> &'static str {
    match state {
        KeyState::Next => "Next",
        KeyState::Current => "Current",
        KeyState::Retiring { .. } => "Retiring",
        KeyState::Retired => "Retired",
    }
}

/// Every change that any short history of operations makes.
fn ring_edges() -> Edges {
    fn walk(ring: &KeyRing<u8>, now: u64, depth: u32, edges: &mut Edges) {
        if depth == 0 {
            return;
        }
        for operation in 0..9 {
            for wait in [0, 5] {
                let (mut after, now) = (ring.clone(), now + wait);
                let done = match operation {
                    0..=2 => after.introduce(operation, now).map(|one| vec![one]),
                    3..=5 => after.withdraw(operation - 3, now).map(|one| vec![one]),
                    6 => after.promote(now),
                    7 => after.replace_leaked(now),
                    _ => after.expire(now),
                };
                let Ok(done) = done else {
                    assert_eq!(&after, ring, "a refused operation changed the ring");
                    continue;
                };
                for change in &done {
                    let from = change.from.map_or("[*]", key_state_name);
                    let edge = (from.to_owned(), key_state_name(change.to).to_owned());
                    edges.entry(edge).or_default().insert(format!("{:?}", change.cause));
                }
                if !done.is_empty() {
                    walk(&after, now, depth - 1, edges);
                }
            }
        }
    }
    let mut edges = Edges::new();
    walk(&KeyRing::new(RingPolicy { announce_seconds: 2, overlap_seconds: 3 }), 10, 6, &mut edges);
    edges
}

fn ring_part() -> String {
    let mut edges = ring_edges();
    let first = edges.remove(&("[*]".to_owned(), "Next".to_owned())).unwrap();
    assert_eq!(first.into_iter().collect::<Vec<_>>(), ["Introduced"]);
    let names = ["Next", "Current", "Retiring", "Retired"];
    let rows = names.map(|from| {
        let cells = names.map(|to| match edges.get(&(from.to_owned(), to.to_owned())) {
            Some(by) => by.iter().cloned().collect::<Vec<_>>().join(", "),
            None => "never".to_owned(),
        });
        (from.to_owned(), cells.to_vec())
    });
    format!("{}\n{}", diagram(&edges, "Next"), table("from ↓ to →", &names.map(str::to_owned), &rows))
}

#[test]
fn the_state_machines_in_the_document_are_those_of_the_code() {
    check("client", &client_part());
    check("gateway", &gateway_part());
    check("ownership", &ownership_part());
    check("key ring", &ring_part());
}

/// Loosening the client's table by one cell fails here and not only in the document.
#[test]
fn every_transition_that_the_client_must_refuse_is_refused() {
    use Trigger as T;
    const CONNECTED: [Client; 3] = [Client::Attached, Client::Volatile, Client::Degraded];
    let mut forbidden: Vec<(Client, Trigger)> = Vec::new();
    // The end is final.
    forbidden.extend(T::ALL.map(|trigger| (Client::Terminated, trigger)));
    // Nobody is believed who was not asked.
    forbidden.extend(
        CONNECTED.into_iter().flat_map(|s| [T::Proven, T::Accepted, T::Failed, T::Returned].map(|t| (s, t))),
    );
    // Before the first acceptance there is no path to judge, leave or take back.
    forbidden.extend([T::Unanswered, T::Answered, T::Lost, T::Move, T::Returned].map(|t| (Client::Birth, t)));
    // Another gateway was asked to confirm: the old path does not come back.
    forbidden.push((Client::Recovering, T::Returned));
    let mut refused = 0;
    for state in Client::ALL {
        for trigger in T::ALL {
            let is_forbidden = forbidden.contains(&(state, trigger));
            assert_eq!(state.after(trigger).is_err(), is_forbidden, "{state} {trigger:?}");
            refused += usize::from(is_forbidden);
        }
    }
    assert_eq!(refused, forbidden.len());
}

#[test]
fn every_transition_that_a_gateway_must_refuse_is_refused() {
    let serving = [Gateway::Attached, Gateway::Volatile, Gateway::Degraded, Gateway::Reattaching];
    let waiting = [Gateway::Birth, Gateway::Recovering];
    for state in GATEWAY_STATES {
        for (name, event) in gateway_events() {
            let forbidden = state == Gateway::Terminated
                // A session that is served is not decided a second time.
                || (serving.contains(&state) && matches!(name, "Accepted" | "Rejected"))
                // What is not served is neither quiet nor asked to move.
                || (waiting.contains(&state) && matches!(name, "Quiet" | "Silent" | "MoveAsked"))
                // Nothing was given that could be taken.
                || (state == Gateway::Birth && name == "Fenced");
            assert_eq!(transition(state, event).is_err(), forbidden, "{} {name}", state.name());
            if let Ok(Next::To(next, _)) = transition(state, event) {
                let stopped = matches!(name, "Fenced" | "Ended" | "Rejected");
                assert!(!(stopped && next.forwards()), "{} forwards after {name}", state.name());
                assert!(next != Gateway::Birth, "a session is born twice");
            }
        }
    }
}

#[test]
fn no_decision_writes_a_record_that_the_drawing_forbids() {
    let mut seen = 0;
    writes(|from, by, to| {
        seen += 1;
        assert!(!matches!(from.phase, Phase::Terminated { .. }), "{by} left the end");
        // Only an attach, or the owner's own word that it has stopped, makes an owner.
        let made = matches!(to.phase, Phase::Owned { .. })
            && (from.owner() != to.owner() || from.attempt != to.attempt);
        assert!(!made || matches!(by, "attach" | "fence acknowledged" | "release"), "{by} made an owner");
        // Every owner has an epoch of its own, and nothing else changes an epoch.
        assert_eq!(to.epoch.0, from.epoch.0 + u64::from(made), "{by}: {:?}", to.phase);
        // Only a live attempt opens a handover, and only against an owner.
        if let Phase::Handover { from: old, .. } = &to.phase {
            assert_eq!((by, Some(old)), ("attach", from.owner()));
        }
        assert!(to.highest_attach_seq() >= from.highest_attach_seq(), "{by} went back");
        assert_eq!(
            (to.id, to.device, &to.inner),
            (from.id, from.device, &from.inner),
            "{by} changed who it is"
        );
    });
    assert!(seen > 1_000, "only {seen} writes");
}

#[test]
fn no_operation_on_a_key_ring_makes_a_change_that_is_not_drawn() {
    let allowed = [
        ("[*]", "Next", "Introduced"),
        ("Next", "Current", "Promoted"),
        ("Next", "Retired", "Withdrawn"),
        ("Current", "Retiring", "Superseded"),
        ("Current", "Retired", "Withdrawn"),
        ("Retiring", "Retired", "OverlapEnded"),
        ("Retiring", "Retired", "Withdrawn"),
    ];
    let found: BTreeSet<(String, String, String)> = ring_edges()
        .into_iter()
        .flat_map(|((from, to), by)| by.into_iter().map(move |by| (from.clone(), to.clone(), by)))
        .collect();
    let allowed: BTreeSet<(String, String, String)> =
        allowed.map(|(from, to, by)| (from.to_owned(), to.to_owned(), by.to_owned())).into();
    assert_eq!(found, allowed);
}
