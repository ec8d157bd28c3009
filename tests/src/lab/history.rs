//! Histories of a real run held against the promises: a pure checker.
//!
//! A session's ownership is a register whose value, the pair (epoch, owner), only ever grows in its epoch: each accepted
//! attach is a write, each answer to "who owns it" a read. Because epochs order the writes, such a history is
//! linearizable exactly when the order by epoch (a write before the reads of it) contradicts no operation that was over
//! before another began (Herlihy and Wing 1990), and each epoch has one value. That is decided in one pass.
//!
//! Packets that a gateway forwarded are witnesses of who held itself to be the owner: within a session their epochs must
//! never go back, each epoch must have one forwarder, and nothing of an older epoch may be forwarded once a device has
//! verified the grant of a newer one. A packet from a device that its owner took in and could not forward any more is handed
//! to the owner after it; it counts for the owner that forwarded it, and for nobody once the time is over for which gateways
//! keep old keys and parked packets. Towards a device nothing is handed on: only the owner of an epoch has its keys.

use std::collections::BTreeMap;

/// How long after the end of its epoch a packet from a device may still reach the next owner: gateways open records by
/// old keys for two seconds and park packets for two more.
const HANDED_MAX: u64 = 4_000_000_000;

/// Who owns a session in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The node.
    pub node: String,
    /// Its run.
    pub incarnation: u64,
}

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An accepted attach: it made the epoch.
    Attach,
    /// An answer to "who owns it".
    Read,
}

/// One finished operation on a session's register. Times are nanoseconds on one clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// When it was asked.
    pub invoked: u64,
    /// When the answer was there.
    pub answered: u64,
    /// What it did.
    pub kind: Kind,
    /// The epoch written or read.
    pub epoch: u64,
    /// The owner written or read; `None` when a read found none.
    pub owner: Option<Owner>,
}

/// Which way a packet went through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the device to the inner network.
    Up,
    /// From the inner network to the device.
    Down,
}

/// A packet that a gateway forwarded for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// When it left, in nanoseconds on the operations' clock.
    pub at: u64,
    /// Who forwarded it.
    pub node: String,
    /// Under the keys of which epoch.
    pub epoch: u64,
    /// Which way.
    pub way: Way,
}

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// One epoch has two owners.
    TwoOwners {
        /// The epoch.
        epoch: u64,
        /// One.
        first: Owner,
        /// The other.
        second: Owner,
    },
    /// An epoch was accepted twice.
    AcceptedTwice {
        /// The epoch.
        epoch: u64,
    },
    /// An operation that was over before another began saw a later value than it.
    NotLinearizable {
        /// Seen first, in real time.
        earlier: Operation,
        /// Seen later, and older.
        later: Operation,
    },
    /// A packet was forwarded under an epoch after a newer one was in use.
    Overlap {
        /// The late packet.
        late: Forward,
        /// The newer epoch.
        newer: u64,
        /// How much too late, in nanoseconds.
        by: u64,
    },
    /// A packet was forwarded by a node that did not own its epoch, and to which it could not be handed: it owned no later
    /// one, the packet went to a device, or it was handed on too late.
    Foreign {
        /// The packet.
        forward: Forward,
        /// The owner.
        owner: Owner,
    },
}

/// Checks the operations of one session.
pub fn check_register(operations: &[Operation]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut owners: BTreeMap<u64, &Owner> = BTreeMap::new();
    let mut accepted = BTreeMap::new();
    for operation in operations {
        if operation.kind == Kind::Attach && accepted.insert(operation.epoch, ()).is_some() {
            found.push(Violation::AcceptedTwice { epoch: operation.epoch });
        }
        let Some(owner) = &operation.owner else { continue };
        let known = owners.entry(operation.epoch).or_insert(owner);
        if *known != owner {
            found.push(Violation::TwoOwners {
                epoch: operation.epoch,
                first: (*known).clone(),
                second: owner.clone(),
            });
        }
    }
    let mut order: Vec<&Operation> = operations.iter().collect();
    order.sort_by_key(|operation| (operation.epoch, operation.kind, operation.invoked));
    // The one of the operations so far that began last: none after it in the order may have ended before that.
    let mut latest: Option<&Operation> = None;
    for operation in order {
        if let Some(before) = latest
            && operation.answered < before.invoked
            && (operation.epoch, operation.kind) > (before.epoch, before.kind)
        {
            found.push(Violation::NotLinearizable { earlier: operation.clone(), later: before.clone() });
        }
        if latest.is_none_or(|before| operation.invoked > before.invoked) {
            latest = Some(operation);
        }
    }
    found
}

/// Checks the forwarded packets of one session against each other and against the operations. A packet may be seen up to
/// `slack` nanoseconds after it left: the capture's own delay.
pub fn check_forwards(forwards: &[Forward], operations: &[Operation], slack: u64) -> Vec<Violation> {
    let mut found = Vec::new();
    let owners: BTreeMap<u64, &Owner> = operations
        .iter()
        .filter_map(|operation| Some((operation.epoch, operation.owner.as_ref()?)))
        .collect();
    // The end of an epoch: when a later one was certainly there. Whoever asks later for a later one knows nothing better.
    let ends = |epoch: u64| {
        let later =
            operations.iter().filter(|operation| operation.owner.is_some() && operation.epoch > epoch);
        later.map(|operation| operation.answered).min()
    };
    // The epoch under which a packet was forwarded: its own, or the next one of its forwarder to whom it was handed.
    let epoch_of = |forward: &Forward| match owners.get(&forward.epoch) {
        None => Some(forward.epoch),
        Some(owner) => {
            let own = (owner.node == forward.node).then_some(forward.epoch);
            let end = ends(forward.epoch)
                .filter(|end| forward.way == Way::Up && forward.at <= end + HANDED_MAX + slack);
            // Before the end of its epoch its owner forwards it as what it is.
            let end = end.filter(|end| own.is_none() || forward.at > *end);
            // Nobody owns an epoch before somebody asks for it.
            let asked = |epoch: u64| {
                let mut attaches = operations.iter().filter(|o| o.kind == Kind::Attach && o.epoch == epoch);
                attaches.next().is_none_or(|attach| attach.invoked <= forward.at)
            };
            let takes = |(epoch, owner): &(&u64, &&Owner)| owner.node == forward.node && asked(**epoch);
            let later = end.and_then(|_| owners.range(forward.epoch + 1..).find(takes));
            later.map(|(epoch, _)| *epoch).or(own)
        }
    };
    // When each epoch was certainly in use: its first packet, or the verified grant.
    let mut in_use: BTreeMap<u64, u64> = BTreeMap::new();
    let mut note = |epoch: u64, at: u64| {
        let first = in_use.entry(epoch).or_insert(at);
        *first = at.min(*first);
    };
    for forward in forwards {
        if let Some(epoch) = epoch_of(forward) {
            note(epoch, forward.at);
        }
    }
    for operation in operations.iter().filter(|operation| operation.owner.is_some()) {
        note(operation.epoch, operation.answered);
    }
    // The earliest use of any epoch above: filled from the top.
    let mut newer: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut earliest: Option<(u64, u64)> = None;
    for (epoch, at) in in_use.iter().rev() {
        if let Some(known) = earliest {
            newer.insert(*epoch, known);
        }
        if earliest.is_none_or(|(_, known)| *at < known) {
            earliest = Some((*epoch, *at));
        }
    }
    for forward in forwards {
        let Some(own) = epoch_of(forward) else {
            if let Some(owner) = owners.get(&forward.epoch) {
                found.push(Violation::Foreign { forward: forward.clone(), owner: (*owner).clone() });
            }
            continue;
        };
        if let Some((epoch, at)) = newer.get(&own)
            && forward.at > at + slack
        {
            found.push(Violation::Overlap { late: forward.clone(), newer: *epoch, by: forward.at - at });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(node: &str) -> Option<Owner> {
        Some(Owner { node: node.to_owned(), incarnation: 1 })
    }

    fn attach(invoked: u64, answered: u64, epoch: u64, node: &str) -> Operation {
        Operation { invoked, answered, kind: Kind::Attach, epoch, owner: owner(node) }
    }

    fn read(invoked: u64, answered: u64, epoch: u64, node: &str) -> Operation {
        Operation { kind: Kind::Read, ..attach(invoked, answered, epoch, node) }
    }

    fn forward(at: u64, epoch: u64, node: &str) -> Forward {
        Forward { at, node: node.to_owned(), epoch, way: Way::Up }
    }

    fn good() -> Vec<Operation> {
        vec![
            attach(10, 20, 1, "gw1"),
            read(15, 30, 1, "gw1"),
            attach(40, 60, 2, "gw2"),
            // Both answers are right while the attach is under way.
            read(45, 50, 1, "gw1"),
            read(45, 50, 2, "gw2"),
            read(70, 80, 2, "gw2"),
            attach(90, 95, 4, "gw1"),
        ]
    }

    #[test]
    fn a_history_in_which_every_answer_fits_is_accepted() {
        assert_eq!(check_register(&good()), []);
    }

    #[test]
    fn a_read_of_the_old_owner_after_the_new_one_was_seen_is_found() {
        let mut history = good();
        history.push(read(75, 85, 1, "gw1"));
        assert!(matches!(check_register(&history)[..], [Violation::NotLinearizable { .. }, ..]));
    }

    #[test]
    fn an_attach_that_is_answered_with_an_epoch_older_than_one_already_seen_is_found() {
        let mut history = good();
        history.push(attach(100, 110, 3, "gw2"));
        assert!(matches!(check_register(&history)[..], [Violation::NotLinearizable { .. }, ..]));
    }

    #[test]
    fn a_read_of_an_owner_before_anybody_asked_to_be_it_is_found() {
        let history = [attach(10, 20, 1, "gw1"), read(21, 22, 2, "gw2"), attach(40, 60, 2, "gw2")];
        assert!(matches!(check_register(&history)[..], [Violation::NotLinearizable { .. }]));
    }

    #[test]
    fn two_owners_of_one_epoch_are_found() {
        let mut history = good();
        history.push(read(46, 47, 2, "gw3"));
        assert!(check_register(&history).iter().any(|v| matches!(v, Violation::TwoOwners { epoch: 2, .. })));
        let history = [attach(10, 20, 1, "gw1"), attach(10, 20, 1, "gw1")];
        assert_eq!(check_register(&history), [Violation::AcceptedTwice { epoch: 1 }]);
    }

    #[test]
    fn packets_that_follow_the_owners_are_accepted() {
        let forwards = [forward(21, 1, "gw1"), forward(44, 1, "gw1"), forward(58, 2, "gw2")];
        assert_eq!(check_forwards(&forwards, &good(), 0), []);
    }

    #[test]
    fn a_packet_of_the_old_owner_after_one_of_the_new_owner_is_found() {
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw2")];
        let forwards = [forward(58, 2, "gw2"), forward(59, 1, "gw1")];
        assert!(matches!(check_forwards(&forwards, &operations, 0)[..], [Violation::Overlap { by: 1, .. }]));
        assert_eq!(check_forwards(&forwards, &operations, 1), []);
    }

    #[test]
    fn a_packet_of_the_old_owner_after_the_new_one_was_granted_or_told_is_found() {
        let forwards = [forward(61, 1, "gw1")];
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw2")];
        let found = check_forwards(&forwards, &operations, 0);
        assert!(matches!(found[..], [Violation::Overlap { newer: 2, by: 1, .. }]));
        // An operator had read the new owner before the device knew.
        let found = check_forwards(&forwards, &good(), 0);
        assert!(matches!(found[..], [Violation::Overlap { newer: 2, by: 11, .. }]));
    }

    #[test]
    fn a_packet_forwarded_by_a_node_that_owns_neither_its_epoch_nor_a_later_one_is_found() {
        let forwards = [forward(22, 1, "gw3")];
        assert!(matches!(check_forwards(&forwards, &good(), 0)[..], [Violation::Foreign { .. }]));
        // It owned an earlier epoch, not this one or a later one.
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw2")];
        let forwards = [forward(62, 2, "gw1")];
        assert!(matches!(check_forwards(&forwards, &operations, 0)[..], [Violation::Foreign { .. }]));
    }

    #[test]
    fn a_gateway_that_owns_the_next_epoch_too_opens_records_of_the_last_one_for_a_while() {
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw1"), attach(90, 100, 3, "gw2")];
        let received = [forward(58, 2, "gw1"), forward(65, 1, "gw1"), forward(66, 2, "gw1")];
        assert_eq!(check_forwards(&received, &operations, 0), []);
        // Not to the device, and not once another has it.
        let sent = [Forward { way: Way::Down, ..forward(65, 1, "gw1") }];
        assert!(matches!(check_forwards(&sent, &operations, 0)[..], [Violation::Overlap { newer: 2, .. }]));
        let after = [forward(101, 1, "gw1")];
        assert!(matches!(check_forwards(&after, &operations, 0)[..], [Violation::Overlap { newer: 3, .. }]));
    }

    #[test]
    fn a_packet_towards_a_device_is_handed_to_nobody() {
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw2")];
        let handed = [Forward { way: Way::Down, ..forward(58, 1, "gw2") }];
        assert!(matches!(check_forwards(&handed, &operations, 0)[..], [Violation::Foreign { .. }]));
        let own = [Forward { way: Way::Down, ..forward(58, 2, "gw2") }];
        assert_eq!(check_forwards(&own, &operations, 0), []);
    }

    #[test]
    fn a_packet_that_is_handed_on_after_every_gateway_has_forgotten_it_is_found() {
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw2")];
        let in_time = [forward(60 + HANDED_MAX, 1, "gw2")];
        assert_eq!(check_forwards(&in_time, &operations, 0), []);
        let late = [forward(61 + HANDED_MAX, 1, "gw2")];
        assert!(matches!(check_forwards(&late, &operations, 0)[..], [Violation::Foreign { .. }]));
    }

    #[test]
    fn a_packet_handed_past_an_owner_that_still_forwards_or_to_one_that_is_none_yet_is_found() {
        let operations =
            |invoked| [attach(10, 20, 1, "gw1"), attach(30, 40, 2, "gw2"), attach(invoked, 80, 3, "gw3")];
        let skipped = [forward(45, 1, "gw3"), forward(50, 2, "gw2")];
        let found = check_forwards(&skipped, &operations(42), 0);
        assert!(matches!(found[..], [Violation::Overlap { newer: 3, .. }]), "{found:?}");
        let found = check_forwards(&skipped, &operations(70), 0);
        assert!(matches!(found[..], [Violation::Foreign { .. }]), "{found:?}");
    }

    #[test]
    fn a_packet_handed_to_the_next_owner_counts_for_that_owner() {
        let operations = [attach(10, 20, 1, "gw1"), attach(40, 60, 2, "gw2")];
        let handed = [forward(55, 1, "gw1"), forward(58, 1, "gw2"), forward(59, 2, "gw2")];
        assert_eq!(check_forwards(&handed, &operations, 0), []);
        // Too early for the next owner, while the old one still forwards.
        let early = [forward(54, 1, "gw2"), forward(55, 1, "gw1")];
        assert!(matches!(check_forwards(&early, &operations, 0)[..], [Violation::Overlap { by: 1, .. }]));
    }
}
