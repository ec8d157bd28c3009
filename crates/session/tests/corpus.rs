//! Fuzzes the control frames and the client machine on stable: committed corpora and mutations of them.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, read files and look at the clock"
)]

use std::net::SocketAddr;
use std::time::Duration;

use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::handshake::Suite;
use jump_crypto::keys::{ClusterSecret, DeviceSecret, GrantSigner, GrantVerifier};
use jump_session::client::{Client, ClientConfig, Event, Now, PathId, Stored, Tuning};
use jump_session::frame::{FRAME_LEN_MAX, Frame};
use jump_session::ids::Epoch;
use jump_session::path::Transport;
use jump_session::reason::Reason;

#[path = "../../../fuzz/src/harness.rs"]
mod harness;

use harness::{Target, join, split};

#[test]
fn no_mutation_of_a_corpus_breaks_frames_or_the_client_machine() {
    let targets = [
        Target { name: "session_frame", run: frame, seeds: frame_seeds },
        Target { name: "session_client", run: client, seeds: client_seeds },
    ];
    harness::run(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), &targets);
}

/// What decodes has one encoding, within the bound.
fn frame(input: &[u8]) {
    let Ok(frame) = Frame::decode(input) else { return };
    let mut out = [0; FRAME_LEN_MAX];
    if let Some(len) = frame.encode(&mut out) {
        assert!(len <= FRAME_LEN_MAX);
        assert_eq!(Frame::decode(&out[..len]).as_ref(), Ok(&frame));
    }
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let frames = [
        Frame::Confirm,
        Frame::Ping { id: 7 },
        Frame::PathChallenge { token: [3; 8] },
        Frame::Migrate { reason: Reason::GatewayDraining, targets: vec!["192.0.2.1:51820".parse().unwrap()] },
        Frame::Terminated { reason: Reason::KeyRevoked },
        Frame::Close { reason: Reason::ClientClosed },
        Frame::Bound { binding: 9 },
    ];
    frames
        .iter()
        .map(|frame| {
            let mut out = [0; FRAME_LEN_MAX];
            let len = frame.encode(&mut out).unwrap();
            out[..len].to_vec()
        })
        .collect()
}

struct Counting(u64);

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.0 >> 33) as u8;
        }
        Ok(())
    }
}

/// A client in search of a gateway hears any datagrams, one after the other, at any pace: it neither panics nor believes.
fn client(input: &[u8]) {
    let mut entropy = Counting(1);
    let cluster = ClusterSecret::generate(&mut entropy).unwrap().public();
    let grants = GrantSigner::generate(&mut entropy).unwrap();
    let gateways: Vec<SocketAddr> =
        vec!["192.0.2.1:51820".parse().unwrap(), "192.0.2.2:51820".parse().unwrap()];
    let config = ClientConfig {
        device: DeviceSecret::generate(&mut entropy).unwrap(),
        cluster_keys: vec![cluster],
        verifier: GrantVerifier::new(&[grants.public()]),
        key_set: 0,
        transports: vec![Transport::Udp],
        gateways: gateways.clone(),
        suite: Suite::ChaChaPolyBlake2s,
        tuning: Tuning::default(),
    };
    let stored = Stored::default();
    let mut client = Client::new(config, stored, Box::new(entropy));
    let mut now = Now { at: Duration::from_secs(1), unix_seconds: 1_800_000_000 };
    client.start(now);
    for message in split(input) {
        settle(&mut client, now);
        let Some((head, datagram)) = message.split_first() else { continue };
        now.at += Duration::from_millis(u64::from(*head));
        let mut datagram = datagram.to_vec();
        assert!(client.handle_datagram(now, PathId(1 + u32::from(head % 3)), &mut datagram).is_none());
        client.handle_timeout(now);
        assert_eq!(client.status().epoch, Epoch(0), "it believed");
    }
    settle(&mut client, now);
}

/// Does what the process around the machine does.
fn settle(client: &mut Client, now: Now) {
    for _ in 0..1000 {
        match client.poll_event() {
            Some(Event::Persist { ticket, stored }) => client.persisted(now, ticket, &stored),
            Some(Event::Attached(_)) => panic!("it attached"),
            Some(_) => {}
            None => break,
        }
    }
    while client.poll_transmit().is_some() {}
}

fn client_seeds() -> Vec<Vec<u8>> {
    let datagram = |kind: u8, len: usize| {
        let mut bytes = vec![kind; 1];
        bytes.extend([kind, 1, 1, 0]);
        bytes.resize(1 + len, 7);
        bytes
    };
    vec![
        join(&[datagram(2, 400), datagram(2, 640)]),
        join(&[datagram(3, 56), datagram(5, 24)]),
        join(&[datagram(4, 33), datagram(4, 1400), datagram(2, 16)]),
    ]
}
