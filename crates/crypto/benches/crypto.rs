//! What the crypto module costs: `make bench-crypto`. Numbers and machine are in `docs/crypto.md`.
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(missing_docs, reason = "the macro at the end makes a public function")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use jump_crypto::certificate::{NodeCertificate, NodeClaims, NodeSigner};
use jump_crypto::cookie::Gate;
use jump_crypto::entropy::{Entropy, OsEntropy};
use jump_crypto::grant::{Grant, GrantClaims};
use jump_crypto::handshake::{
    AttachIntent, Established, INIT_LEN, Initiation, InitiationInput, REPLY_LEN_MAX, Responder, Suite,
};
use jump_crypto::ids::{AttachSeq, AttemptId, Epoch, Incarnation, ReceiverIndex, SessionId};
use jump_crypto::keys::{ClusterSecret, DeviceSecret, GrantSigner, GrantVerifier};
use jump_crypto::record::{Aead, Content, HEADER_LEN, OVERHEAD};
use jump_crypto::replay_window::ReplayWindow;

const NOW: u64 = 1_800_000_000;
const PLAINTEXT_LEN: usize = 1400;
const SUITES: [(&str, Suite); 2] =
    [("chacha20-poly1305", Suite::ChaChaPolyBlake2s), ("aes-256-gcm", Suite::AesGcmSha256)];
const HYBRID_SUITES: [(&str, Suite); 2] = [
    ("hybrid-chacha20-poly1305", Suite::HybridChaChaPolyBlake2s),
    ("hybrid-aes-256-gcm", Suite::HybridAesGcmSha256),
];

struct World {
    entropy: OsEntropy,
    device: DeviceSecret,
    cluster: ClusterSecret,
    signer: GrantSigner,
    responder: Responder,
}

impl World {
    fn new() -> Self {
        let mut entropy = OsEntropy::new().unwrap();
        let device = DeviceSecret::generate(&mut entropy).unwrap();
        let cluster = ClusterSecret::generate(&mut entropy).unwrap();
        let signer = GrantSigner::generate(&mut entropy).unwrap();
        let node = NodeSigner::generate(&mut entropy).unwrap();
        let claims = NodeClaims {
            node: "gw-1".parse().unwrap(),
            incarnation: Incarnation(1),
            verifying_key: node.verifying_key(),
            not_after: NOW + 60,
        };
        let certificate = NodeCertificate::issue(&claims, &signer);
        let responder = Responder::new(vec![cluster.clone()], certificate, node);
        Self { entropy, device, cluster, signer, responder }
    }

    fn start(&mut self, suite: Suite) -> (Initiation, Vec<u8>) {
        let mut init = vec![0; suite.init_len()];
        let intent = AttachIntent {
            session: None,
            attach_seq: AttachSeq(1),
            attempt: AttemptId::from_bytes([1; 16]),
            last_epoch: Epoch(0),
            reason: 0,
            capabilities: 0,
            rekey: false,
            holding: jump_crypto::handshake::Holding::default(),
        };
        let input = InitiationInput {
            device: &self.device,
            cluster: &self.cluster.public(),
            suite,
            intent: &intent,
            index: ReceiverIndex(1),
            cookie: None,
        };
        (Initiation::start(&input, &mut self.entropy, &mut init).unwrap(), init)
    }

    fn answer(&mut self, init: &[u8]) -> (Vec<u8>, Established) {
        let mut out = [0; REPLY_LEN_MAX];
        let pending = self.responder.read_init(init).unwrap();
        let (len, keys) = pending
            .write_reply(&self.responder, ReceiverIndex(2), [0; 16], &[], &mut self.entropy, &mut out)
            .unwrap();
        (out[..len].to_vec(), keys)
    }

    fn established(&mut self, suite: Suite) -> (Established, Established) {
        let (mut initiation, init) = self.start(suite);
        let (reply, gateway) = self.answer(&init);
        let verifier = GrantVerifier::new(&[self.signer.public()]);
        (initiation.finish(&reply, &verifier, NOW).unwrap().0, gateway)
    }
}

/// What a client has computed before the handshake that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: its own start is part of the handshake.
    Nothing,
    /// What is constant for the cluster key, as every client does at its start: the first attach to any gateway.
    Cluster,
    /// The gateway's certificate too: every later attach to it, and every rekey.
    Gateway,
}

impl Known {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "cold",
            Self::Cluster => "first",
            Self::Gateway => "warm",
        }
    }
}

fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    for ((name, suite), known) in SUITES
        .into_iter()
        .chain(HYBRID_SUITES)
        .flat_map(|suite| [Known::Nothing, Known::Cluster, Known::Gateway].map(|known| (suite, known)))
    {
        let mut world = World::new();
        let mut verifier = GrantVerifier::new(&[world.signer.public()]);
        group.bench_function(format!("client-{}/{name}", known.name()), |b| {
            // Both halves of the client's work; the gateway's answer is made outside the measurement.
            b.iter_custom(|rounds| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    if known != Known::Gateway {
                        world.device = DeviceSecret::from_bytes(*world.device.expose());
                        verifier = GrantVerifier::new(&[world.signer.public()]);
                    }
                    if known != Known::Nothing {
                        world.device.prepare(&world.cluster.public());
                    }
                    let begun = std::time::Instant::now();
                    let (mut initiation, init) = world.start(suite);
                    spent += begun.elapsed();
                    let (reply, _) = world.answer(&init);
                    let begun = std::time::Instant::now();
                    black_box(initiation.finish(&reply, &verifier, NOW).unwrap());
                    spent += begun.elapsed();
                }
                spent
            });
        });
        if known == Known::Nothing {
            group.bench_function(format!("gateway/{name}"), |b| {
                let (_, init) = world.start(suite);
                b.iter(|| black_box(world.answer(&init)));
            });
        }
    }
    group.finish();
}

/// What a handshake is made of, each primitive alone: where its microseconds go.
fn primitives(c: &mut Criterion) {
    use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
    use x25519_dalek::{PublicKey, StaticSecret};

    let mut group = c.benchmark_group("primitive");
    let (ours, peer) = (StaticSecret::from([1; 32]), PublicKey::from(&StaticSecret::from([2; 32])));
    group.bench_function("x25519-agree", |b| b.iter(|| black_box(&ours).diffie_hellman(black_box(&peer))));
    group.bench_function("x25519-public", |b| b.iter(|| PublicKey::from(black_box(&ours))));
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let signature = pair.sign(&[4; 58]);
    let verifier = UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref());
    let seed = ml_kem::Seed::from([5; 64]);
    let secret = ml_kem::ml_kem_768::DecapsulationKey::from_seed(seed);
    let (ciphertext, _) = secret.encapsulation_key().encapsulate_deterministic(&[6; 32].into());
    group.bench_function("ml-kem-768-generate", |b| {
        b.iter(|| ml_kem::ml_kem_768::DecapsulationKey::from_seed(black_box(seed)));
    });
    group.bench_function("ml-kem-768-encapsulate", |b| {
        b.iter(|| secret.encapsulation_key().encapsulate_deterministic(black_box(&[6; 32].into())));
    });
    group.bench_function("ml-kem-768-decapsulate", |b| {
        use ml_kem::Decapsulate as _;
        b.iter(|| secret.decapsulate(black_box(&ciphertext)));
    });
    group.bench_function("ed25519-sign", |b| b.iter(|| pair.sign(black_box(&[4; 58]))));
    group.bench_function("ed25519-verify", |b| {
        b.iter(|| verifier.verify(black_box(&[4; 58]), signature.as_ref()).unwrap());
    });
    group.finish();
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Bytes(PLAINTEXT_LEN as u64));
    for (name, suite) in SUITES {
        let algorithm = match suite.aead() {
            Aead::ChaCha20Poly1305 => &ring::aead::CHACHA20_POLY1305,
            Aead::Aes256Gcm => &ring::aead::AES_256_GCM,
        };
        let (mut client, mut gateway) = World::new().established(suite);
        let mut buffer = [0; PLAINTEXT_LEN + OVERHEAD];
        group.bench_function(format!("seal/{name}"), |b| {
            b.iter(|| client.sealing.seal(Content::Packet, black_box(&mut buffer), PLAINTEXT_LEN));
        });
        group.bench_function(format!("seal-raw-ring/{name}"), |b| {
            use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
            let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).unwrap());
            let mut counter = 0u64;
            b.iter(|| {
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&counter.to_le_bytes());
                counter += 1;
                let (header, text) = black_box(&mut buffer).split_at_mut(HEADER_LEN);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let text = &mut text[..PLAINTEXT_LEN];
                key.seal_in_place_separate_tag(nonce, Aad::from(header), text).unwrap()
            });
        });
        group.bench_function(format!("open/{name}"), |b| {
            b.iter_batched_ref(
                || {
                    let mut record = [0; PLAINTEXT_LEN + OVERHEAD];
                    client.sealing.seal(Content::Packet, &mut record, PLAINTEXT_LEN).unwrap();
                    record
                },
                |record| {
                    gateway.opening.open(record).unwrap();
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn window(c: &mut Criterion) {
    let mut group = c.benchmark_group("window");
    group.throughput(Throughput::Elements(1));
    group.bench_function("in-order", |b| {
        let (mut window, mut counter) = (ReplayWindow::new(), 0);
        b.iter(|| {
            counter += 1;
            let counter = black_box(counter);
            window.check(counter).and_then(|()| window.commit(counter))
        });
    });
    group.bench_function("reordered-by-3", |b| {
        let (mut window, mut counter) = (ReplayWindow::new(), 0u64);
        b.iter(|| {
            counter += 1;
            // 3 2 1 0, 7 6 5 4, …
            let counter = black_box(counter ^ 3);
            window.check(counter).and_then(|()| window.commit(counter))
        });
    });
    group.bench_function("duplicate", |b| {
        let mut window = ReplayWindow::new();
        for counter in 0..1000 {
            window.commit(counter).unwrap();
        }
        b.iter(|| window.check(black_box(500)));
    });
    group.finish();
}

fn gate(c: &mut Criterion) {
    let mut world = World::new();
    let (_, init) = world.start(Suite::ChaChaPolyBlake2s);
    let gate = Gate::new(&world.cluster);
    let source = "192.0.2.1:4000".parse().unwrap();
    let mut with_cookie = init.clone();
    with_cookie[INIT_LEN - 16..].fill(1);
    let mut group = c.benchmark_group("gate");
    group.bench_function("bad-mac1", |b| b.iter(|| gate.admit(black_box(&[1; INIT_LEN]), source, NOW)));
    group.bench_function("good-mac1", |b| b.iter(|| gate.admit(black_box(&init), source, NOW)));
    group.bench_function("bad-cookie", |b| b.iter(|| gate.admit(black_box(&with_cookie), source, NOW)));
    group.bench_function("cookie-reply", |b| {
        let mut out = [0; 56];
        b.iter(|| gate.cookie_reply(black_box(&init), source, NOW, [1; 16], &mut out));
    });
    group.finish();
}

fn statements(c: &mut Criterion) {
    let world = World::new();
    let claims = GrantClaims {
        handshake_hash: [1; 32],
        session: SessionId::from_bytes([1; 16]),
        device: world.device.public(),
        epoch: Epoch(1),
        node: "gw-1".parse().unwrap(),
        incarnation: Incarnation(1),
        not_after: NOW + 60,
    };
    let grant = Grant::issue(&claims, &world.signer);
    let verifier = GrantVerifier::new(&[world.signer.public()]);
    let mut group = c.benchmark_group("grant");
    group.bench_function("issue", |b| b.iter(|| Grant::issue(black_box(&claims), &world.signer)));
    group.bench_function("verify", |b| b.iter(|| black_box(&grant).verify(&verifier, &claims, NOW)));
    group.finish();
}

fn entropy(c: &mut Criterion) {
    let mut entropy = OsEntropy::new().unwrap();
    let mut key = [0; 32];
    c.bench_function("entropy/32-bytes", |b| b.iter(|| entropy.fill(black_box(&mut key))));
}

criterion_group!(benches, handshake, primitives, records, window, gate, statements, entropy);
criterion_main!(benches);
