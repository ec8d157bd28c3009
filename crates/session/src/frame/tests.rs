use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::path::Transport;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn socket_address() -> impl Strategy<Value = SocketAddr> {
    (address(), any::<u16>()).prop_map(SocketAddr::from)
}

fn route() -> impl Strategy<Value = (IpAddr, u8)> {
    (address(), any::<u8>()).prop_map(|(ip, len)| (ip, len % if ip.is_ipv4() { 33 } else { 129 }))
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_millis)
}

fn reason() -> impl Strategy<Value = Reason> {
    proptest::sample::select(Reason::ALL)
}

fn door() -> impl Strategy<Value = Door> {
    (proptest::sample::select(Transport::ALL.as_slice()), any::<u16>())
        .prop_map(|(transport, port)| Door { transport, port })
}

fn accepted() -> impl Strategy<Value = AttachResult> {
    let ids = (any::<[u8; 16]>(), any::<u64>(), any::<[u8; 16]>(), vec(any::<u8>(), 0..=320));
    let lists = (
        vec(address(), 0..=INNER_MAX),
        vec(route(), 0..=16),
        vec(address(), 0..=DNS_MAX),
        vec(socket_address(), 0..=ROSTER_MAX),
        vec(door(), 0..=DOORS_MAX),
    );
    let bounds = (MTU_MIN.., any::<u16>(), duration(), duration(), duration(), duration());
    (ids, lists, bounds).prop_map(
        |((session, epoch, correlation, grant), (inner, routes, dns, roster, doors), bounds)| {
            let (mtu, switches_per_minute_max, switch_cooldown, recovery_window, expires_in, lease) = bounds;
            AttachResult::Accepted(Accepted {
                session: SessionId::from_bytes(session),
                epoch: Epoch(epoch),
                inner,
                grant,
                routes,
                dns,
                mtu,
                expires_in,
                lease,
                roster,
                doors,
                correlation,
                switches_per_minute_max,
                switch_cooldown,
                recovery_window,
            })
        },
    )
}

fn rejected() -> impl Strategy<Value = AttachResult> {
    (reason(), any::<u64>(), any::<u64>(), duration()).prop_map(|(reason, epoch, seq, retry_after)| {
        AttachResult::Rejected {
            reason,
            current_epoch: Epoch(epoch),
            current_attach_seq: AttachSeq(seq),
            retry_after,
        }
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        Just(Frame::Confirm),
        prop_oneof![accepted(), rejected()].prop_map(|result| Frame::AttachResult(Box::new(result))),
        any::<u64>().prop_map(|id| Frame::Ping { id }),
        any::<[u64; 3]>().prop_map(|[id, received, newest]| Frame::Pong { id, received, newest }),
        any::<[u8; 8]>().prop_map(|token| Frame::PathChallenge { token }),
        any::<[u8; 8]>().prop_map(|token| Frame::PathResponse { token }),
        (reason(), vec(socket_address(), 0..=ROSTER_MAX))
            .prop_map(|(reason, targets)| Frame::Migrate { reason, targets }),
        reason().prop_map(|reason| Frame::Terminated { reason }),
        reason().prop_map(|reason| Frame::Close { reason }),
        (any::<u64>(), MTU_PROBE_LEN_MIN..2000).prop_map(|(id, len)| Frame::MtuProbe { id, mtu: 0, len }),
        (any::<u64>(), MTU_MIN.., MTU_ANSWER_LEN_MIN..2000).prop_map(|(id, mtu, len)| Frame::MtuProbe {
            id,
            mtu,
            len
        }),
        (any::<u64>(), MTU_MIN.., MTU_ANSWER_LEN_MIN..2000).prop_map(|(id, mtu_max, len)| Frame::MtuAnswer {
            id,
            mtu_max,
            len
        }),
        any::<u64>().prop_map(|binding| Frame::Bound { binding }),
        vec(any::<u8>(), 0..=jump_crypto::key_set::KeySet::LEN_MAX)
            .prop_map(|key_set| Frame::Keys { key_set }),
        Just(Frame::Pending),
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = [0xaa; 2048];
    let len = frame.encode(&mut out).expect("fits");
    out[..len].to_vec()
}

proptest! {
    #[test]
    fn every_frame_survives_its_encoding(frame in frame()) {
        prop_assert_eq!(Frame::decode(&encoded(&frame)), Ok(frame));
    }

    #[test]
    fn no_truncated_or_extended_frame_is_read(frame in frame(), cut in any::<prop::sample::Index>()) {
        let mut bytes = encoded(&frame);
        let shorter = Frame::decode(&bytes[..cut.index(bytes.len())]);
        bytes.push(0);
        let longer = Frame::decode(&bytes);
        if let Frame::MtuProbe { id, mtu, len } = frame {
            prop_assert_eq!(longer, Ok(Frame::MtuProbe { id, mtu, len: len + 1 }));
        } else if let Frame::MtuAnswer { id, mtu_max, len } = frame {
            prop_assert_eq!(longer, Ok(Frame::MtuAnswer { id, mtu_max, len: len + 1 }));
        } else {
            prop_assert_eq!(shorter, Err(MalformedFrame));
            prop_assert_eq!(longer, Err(MalformedFrame));
        }
    }

    #[test]
    fn hostile_bytes_never_panic_and_what_is_read_has_one_encoding(
        tag in 0u8..15, kind in 0u8..4, body in vec(any::<u8>(), 0..1300)
    ) {
        let mut bytes = vec![tag, kind];
        bytes.extend(body);
        if let Ok(frame) = Frame::decode(&bytes)
            && !matches!(frame, Frame::MtuProbe { .. } | Frame::MtuAnswer { .. })
        {
            prop_assert_eq!(encoded(&frame), bytes);
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(
        frame in frame(), at in any::<prop::sample::Index>(), flip in 1u8..
    ) {
        let mut bytes = encoded(&frame);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn a_frame_that_does_not_fit_is_not_written(frame in frame(), room in any::<prop::sample::Index>()) {
        let len = encoded(&frame).len();
        let mut out = vec![0; room.index(len)];
        prop_assert_eq!(frame.encode(&mut out), None);
    }
}

#[test]
fn lists_and_numbers_beyond_their_bounds_are_neither_written_nor_read() {
    let target: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let many = Frame::Migrate { reason: Reason::GatewayDraining, targets: vec![target; ROSTER_MAX + 1] };
    assert_eq!(many.encode(&mut [0; 2048]), None);
    let full = Frame::Migrate { reason: Reason::GatewayDraining, targets: vec![target; ROSTER_MAX] };
    let mut bytes = encoded(&full);
    bytes[3] += 1;
    bytes.extend([4, 192, 0, 2, 1, 0, 1]);
    assert_eq!(Frame::decode(&bytes), Err(MalformedFrame));
    assert_eq!(Frame::MtuProbe { id: 1, mtu: 0, len: 8 }.encode(&mut [0; 2048]), None);
    assert_eq!(Frame::MtuProbe { id: 1, mtu: 1280, len: 10 }.encode(&mut [0; 2048]), None);
    assert_eq!(Frame::MtuProbe { id: 1, mtu: 575, len: 64 }.encode(&mut [0; 2048]), None);
    assert_eq!(Frame::MtuAnswer { id: 1, mtu_max: 575, len: 64 }.encode(&mut [0; 2048]), None);
    assert_eq!(Frame::decode(&[10, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0x3f]), Err(MalformedFrame), "an MTU of 575");
    assert_eq!(Frame::decode(&[8, 0xff, 0xff]), Err(MalformedFrame), "an unknown reason was read");
}
