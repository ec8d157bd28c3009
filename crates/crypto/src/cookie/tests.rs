use proptest::prelude::*;

use super::*;
use crate::handshake::{AttachIntent, INIT_LEN, Initiation, InitiationInput, Suite};
use crate::ids::{AttachSeq, AttemptId, Epoch};
use crate::keys::DeviceSecret;
use crate::testing::SeededEntropy;

const NOW: u64 = 1_800_000_000;

fn source() -> SocketAddr {
    "192.0.2.7:40000".parse().unwrap()
}

fn init(cluster: &ClusterSecret, cookie: Option<[u8; 16]>) -> Vec<u8> {
    init_of(Suite::ChaChaPolyBlake2s, cluster, cookie)
}

fn init_of(suite: Suite, cluster: &ClusterSecret, cookie: Option<[u8; 16]>) -> Vec<u8> {
    let mut out = vec![0; suite.init_len()];
    let input = InitiationInput {
        device: &DeviceSecret::from_bytes([5; 32]),
        cluster: &cluster.public(),
        suite,
        intent: &AttachIntent {
            session: None,
            attach_seq: AttachSeq(1),
            attempt: AttemptId::from_bytes([1; 16]),
            last_epoch: Epoch(0),
            reason: 0,
            capabilities: 0,
            rekey: false,
            holding: crate::handshake::Holding::default(),
        },
        index: ReceiverIndex(77),
        cookie,
    };
    Initiation::start(&input, &mut SeededEntropy::new(8), &mut out).unwrap();
    out
}

fn cluster() -> ClusterSecret {
    ClusterSecret::from_bytes([6; 32])
}

fn cookie_from(gate: &Gate, first: &[u8], source: SocketAddr, now: u64) -> [u8; 16] {
    let mut reply = [0; COOKIE_REPLY_LEN];
    assert_eq!(gate.cookie_reply(first, source, now, [9; 16], &mut reply), Some(COOKIE_REPLY_LEN));
    open_cookie_reply(&cluster().public(), first, &reply).expect("the client opens its own reply")
}

#[test]
fn a_cookie_of_one_replica_is_good_at_another_for_its_interval_and_the_next() {
    let (one, other) = (Gate::new(&cluster()), Gate::new(&cluster()));
    let first = init(&cluster(), None);
    assert_eq!(one.admit(&first, source(), NOW), Admission::NoCookie);
    let start = NOW / COOKIE_BUCKET_SECONDS * COOKIE_BUCKET_SECONDS;
    let second = init(&cluster(), Some(cookie_from(&one, &first, source(), start)));
    for (now, expected) in [
        (start, Admission::Cookie),
        (start + COOKIE_BUCKET_SECONDS - 1, Admission::Cookie),
        (start + 2 * COOKIE_BUCKET_SECONDS - 1, Admission::Cookie),
        (start + 2 * COOKIE_BUCKET_SECONDS, Admission::NoCookie),
        (start - 1, Admission::NoCookie),
    ] {
        assert_eq!(other.admit(&second, source(), now), expected, "at {now}");
    }
}

#[test]
fn a_cookie_is_worthless_from_another_address_or_port() {
    let gate = Gate::new(&cluster());
    let cookie = cookie_from(&gate, &init(&cluster(), None), source(), NOW);
    let second = init(&cluster(), Some(cookie));
    for other in ["192.0.2.7:40001", "192.0.2.8:40000", "[2001:db8::7]:40000"] {
        assert_eq!(gate.admit(&second, other.parse().unwrap(), NOW), Admission::NoCookie, "{other}");
    }
    let mapped = "[::ffff:192.0.2.7]:40000".parse().unwrap();
    assert_eq!(gate.admit(&second, mapped, NOW), Admission::Cookie, "the same host on a dual-stack socket");
}

#[test]
fn busy_tells_the_time_to_the_sender_of_the_message_and_to_nobody_else() {
    let gate = Gate::new(&cluster());
    let (first, public) = (init(&cluster(), None), cluster().public());
    let busy = gate.busy(&first, Duration::from_millis(1234)).unwrap();
    assert_eq!(open_busy(&public, &first, &busy), Some(Duration::from_millis(1234)));
    for at in 0..busy.len() {
        let mut damaged = busy;
        damaged[at] ^= 1;
        assert_eq!(open_busy(&public, &first, &damaged), None, "byte {at}");
    }
    let mut other = first.clone();
    other[INIT_LEN - 2 * MAC_LEN] ^= 1;
    assert_eq!(open_busy(&public, &other, &busy), None);
    assert_eq!(open_busy(&ClusterSecret::from_bytes([7; 32]).public(), &first, &busy), None);
    assert_eq!(gate.busy(&other, Duration::ZERO), None, "an unauthenticated message was answered");
    let far = gate.busy(&first, Duration::from_secs(1 << 20)).unwrap();
    assert_eq!(open_busy(&public, &first, &far), Some(Duration::from_millis(65_535)));
}

#[test]
fn every_changed_byte_of_an_init_is_caught_before_the_handshake() {
    let gate = Gate::new(&cluster());
    for suite in [Suite::ChaChaPolyBlake2s, Suite::HybridChaChaPolyBlake2s] {
        let cookie = cookie_from(&gate, &init_of(suite, &cluster(), None), source(), NOW);
        let good = init_of(suite, &cluster(), Some(cookie));
        assert_eq!(gate.admit(&good, source(), NOW), Admission::Cookie);
        let (_, mac2_at) = macs_at(&good);
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 0x10;
            let expected = if at < mac2_at { Admission::BadMac } else { Admission::NoCookie };
            assert_eq!(gate.admit(&damaged, source(), NOW), expected, "byte {at}");
        }
        for len in 0..good.len() {
            assert_eq!(gate.admit(&good[..len], source(), NOW), Admission::BadMac);
        }
        assert_eq!(gate.admit(&[good, vec![0]].concat(), source(), NOW), Admission::BadMac);
    }
}

#[test]
fn a_gate_admits_only_its_own_cluster_key() {
    let other = ClusterSecret::from_bytes([7; 32]);
    let first = init(&cluster(), None);
    assert_eq!(Gate::new(&other).admit(&first, source(), NOW), Admission::BadMac);
    let mut out = [0; COOKIE_REPLY_LEN];
    assert_eq!(Gate::new(&other).cookie_reply(&first, source(), NOW, [0; 16], &mut out), None);
    assert_eq!(Gate::new(&cluster()).cookie_reply(&first, source(), NOW, [0; 16], &mut out[1..]), None);
}

#[test]
fn a_cookie_reply_opens_only_for_the_init_that_it_answers_and_only_unchanged() {
    let gate = Gate::new(&cluster());
    let first = init(&cluster(), None);
    let mut reply = [0; COOKIE_REPLY_LEN];
    gate.cookie_reply(&first, source(), NOW, [9; 16], &mut reply).unwrap();
    let public = cluster().public();
    assert!(open_cookie_reply(&public, &first, &reply).is_some());
    for at in 0..reply.len() {
        let mut damaged = reply;
        damaged[at] ^= 1;
        assert_eq!(open_cookie_reply(&public, &first, &damaged), None, "byte {at}");
    }
    let mut other = first.clone();
    other[macs_at(&first).0] ^= 1;
    assert_eq!(open_cookie_reply(&public, &other, &reply), None);
    assert_eq!(open_cookie_reply(&ClusterSecret::from_bytes([7; 32]).public(), &first, &reply), None);
}

#[test]
fn a_hint_is_known_by_its_token_and_is_shorter_than_any_record() {
    let (one, other) = (Gate::new(&cluster()), Gate::new(&cluster()));
    let index = ReceiverIndex(0x0010_0001);
    let hint = ReattachHint::parse(&one.hint_datagram(index)).unwrap();
    assert_eq!(hint.index, index);
    assert!(hint.carries(&other.hint(index)));
    assert!(!hint.carries(&other.hint(ReceiverIndex(0x0010_0002))));
    assert!(!hint.carries(&Gate::new(&ClusterSecret::from_bytes([7; 32])).hint(index)));
    const { assert!(HINT_DATAGRAM_LEN < crate::record::OVERHEAD) };
    const { assert!(COOKIE_REPLY_LEN < INIT_LEN) };
}

proptest! {
    #[test]
    fn no_datagram_panics_or_passes(bytes in prop::collection::vec(any::<u8>(), 0..700), full in any::<bool>()) {
        let mut bytes = bytes;
        if full {
            bytes.resize(INIT_LEN, 0);
            bytes[..2].copy_from_slice(&[1, 1]);
            bytes[4..8].copy_from_slice(&cluster().public().id().0);
        }
        let gate = Gate::new(&cluster());
        prop_assert_eq!(gate.admit(&bytes, source(), NOW), Admission::BadMac);
        let _ = ReattachHint::parse(&bytes);
        prop_assert_eq!(open_cookie_reply(&cluster().public(), &[0; INIT_LEN], &bytes), None);
    }
}
