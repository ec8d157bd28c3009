//! Racing attaches: every epoch has exactly one accepted claimant, and whoever loses is told why.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Barrier;

use jump_session::frame::AttachResult;
use jump_session::ids::SessionId;
use jump_session::reason::Reason;
use jump_tests::lab::bare_device::{BareDevice, ClusterKeys, device_key};
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::programs::GATEWAY_PORT;
use jump_tests::lab::rng::Rng;
use jump_tests::support;

/// Races over one session: at most two owners each, which stays below what a policy can allow in a minute.
const ROUNDS: usize = 50;

/// A cluster whose policy lets sessions move as often as a policy can: here moving is the point.
fn cluster(label: &'static str) -> Cluster {
    let plan = Plan {
        control_settings: "[policy]\nswitches_per_minute_max = 128\nswitch_cooldown = \"0s\"\nsessions_per_device_max = 1000\n"
            .to_owned(),
        gateway_settings: "[limits]\nattach_per_second = 100000\nattach_burst = 100000\n\
                           cookie_above_per_second = 100000\n"
            .to_owned(),
        ..Plan::small(label)
    };
    Cluster::start(&plan).unwrap()
}

/// One of the racers: the same identity every time, another socket.
fn racer(cluster: &Cluster) -> BareDevice {
    let (host, state) = (&cluster.network.devices[0], cluster.state_dir(0));
    let socket = host.namespace.enter(|| UdpSocket::bind(host.wan_socket(0))).unwrap().unwrap();
    BareDevice::new(device_key(&state).unwrap(), ClusterKeys::of_profile(&state).unwrap(), socket).unwrap()
}

fn birth(device: &mut BareDevice, gateway: SocketAddr) -> SessionId {
    let intent = device.intent(None, 1, Reason::Birth).unwrap();
    match device.attach(&intent, gateway, support::SOON).unwrap().0 {
        AttachResult::Accepted(accepted) => accepted.session,
        rejected @ AttachResult::Rejected { .. } => panic!("the birth was {rejected:?}"),
    }
}

/// Two attempts at the same moment; returns the outcome of each.
fn race(racers: &mut [BareDevice; 2], session: SessionId, runs: [(u64, SocketAddr); 2]) -> [AttachResult; 2] {
    let barrier = Barrier::new(2);
    let [first, second] = racers;
    let run = |device: &mut BareDevice, (seq, gateway): (u64, SocketAddr)| {
        let intent = device.intent(Some(session), seq, Reason::GatewayUnresponsive).unwrap();
        let mut ready = device.handshake(&intent, gateway, support::SOON).unwrap();
        // What is raced is the commit.
        barrier.wait();
        device.confirm(&mut ready, support::SOON).unwrap()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(second, runs[1]));
        let mine = run(first, runs[0]);
        [mine, other.join().unwrap()]
    })
}

/// What the clients were told over one session.
struct Told {
    /// Accepted epochs, with the round.
    accepted: BTreeMap<u64, usize>,
    /// The epochs that clients were told of whose attempts a later one had overtaken, with the round.
    overtaken: Vec<(u64, usize)>,
}

impl Told {
    /// Checks a round against what was told before; returns how many were accepted.
    fn judge(&mut self, round: usize, outcomes: &[AttachResult; 2]) -> usize {
        let mut count = 0;
        for outcome in outcomes {
            match outcome {
                AttachResult::Accepted(a) => {
                    count += 1;
                    let earlier = self.accepted.insert(a.epoch.0, round);
                    assert_eq!(earlier, None, "epoch {} was accepted twice, last in round {round}", a.epoch);
                }
                AttachResult::Rejected { reason, current_epoch, retry_after, .. } => {
                    assert!(current_epoch.0 > 0, "round {round}: {reason} without the stored epoch");
                    let known = [Reason::SupersededAttempt, Reason::StaleAttempt, Reason::HandoverPending];
                    assert!(known.contains(reason), "round {round}: rejected with {reason}");
                    if *reason == Reason::SupersededAttempt {
                        assert!(retry_after.is_zero(), "a superseded attempt was told to ask again");
                        self.overtaken.push((current_epoch.0, round));
                    }
                }
            }
        }
        assert!(count >= 1, "round {round}: nobody was accepted: {outcomes:?}");
        count
    }

    /// Every epoch from birth to the record's was accepted once, or overtaken before its client could be told; then that
    /// client was told that its attempt is superseded, with that epoch or a later one, in the round in which it was given.
    fn agrees_with_the_store(&mut self, cluster: &Cluster, session: SessionId) {
        let record = cluster.ownership(&session.to_string()).unwrap();
        assert_eq!(self.accepted.last_key_value().map(|(epoch, _)| *epoch), Some(record.epoch));
        for untold in (1..=record.epoch).filter(|epoch| !self.accepted.contains_key(epoch)) {
            let before = self.accepted.range(..untold).next_back().map_or(0, |(_, round)| *round);
            let after = self.accepted.range(untold..).next().map_or(usize::MAX, |(_, round)| *round);
            let told = self
                .overtaken
                .iter()
                .position(|(epoch, round)| *epoch >= untold && (before..=after).contains(round));
            let told =
                told.unwrap_or_else(|| panic!("nobody was told of epoch {untold}: {:?}", self.overtaken));
            self.overtaken.swap_remove(told);
        }
    }
}

#[test]
fn of_two_devices_with_one_identity_exactly_one_is_accepted_per_epoch() {
    let _one = support::one_at_a_time().unwrap();
    let cluster = cluster("race-devices");
    let gateways: Vec<_> = cluster.network.gateways.iter().map(|g| g.wan_socket(GATEWAY_PORT)).collect();
    let mut racers = [racer(&cluster), racer(&cluster)];
    let mut rng = Rng::new(11);
    for _ in 0..support::scaled(200, 1000) / ROUNDS {
        let session = birth(&mut racers[0], gateways[0]);
        let mut told = Told { accepted: BTreeMap::from([(1, 0)]), overtaken: Vec::new() };
        for round in 1..=ROUNDS {
            let seq = round as u64 + 1;
            let mut pick = || gateways[usize::try_from(rng.below(2)).unwrap()];
            let outcomes = race(&mut racers, session, [(seq, pick()), (seq, pick())]);
            assert_eq!(told.judge(round, &outcomes), 1, "round {round}: {outcomes:?}");
        }
        told.agrees_with_the_store(&cluster, session);
    }
}

#[test]
fn of_one_device_racing_two_gateways_exactly_one_is_accepted_per_epoch() {
    let _one = support::one_at_a_time().unwrap();
    let cluster = cluster("race-gateways");
    let gateways: Vec<_> = cluster.network.gateways.iter().map(|g| g.wan_socket(GATEWAY_PORT)).collect();
    let mut racers = [racer(&cluster), racer(&cluster)];
    for _ in 0..support::scaled(200, 1000) / ROUNDS {
        let session = birth(&mut racers[0], gateways[0]);
        let mut told = Told { accepted: BTreeMap::from([(1, 0)]), overtaken: Vec::new() };
        for round in 1..=ROUNDS {
            let seq = 2 * round as u64;
            let (one, other) = (gateways[round % 2], gateways[(round + 1) % 2]);
            let outcomes = race(&mut racers, session, [(seq, one), (seq + 1, other)]);
            told.judge(round, &outcomes);
        }
        told.agrees_with_the_store(&cluster, session);
    }
}
