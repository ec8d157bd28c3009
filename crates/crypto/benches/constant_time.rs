//! A statistical timing test of the compares, after dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant
//! time?", 2017): two classes of input in random order, the times of each call, Welch's t between the classes after
//! cropping the slowest. |t| above 10 means a leak; below 4.5 none was found in this many measurements. It proves
//! nothing: `make bench-crypto` prints it, no test depends on it.
//!
//! The class `first` differs from the right authenticator in its first byte, `last` in its last one: a compare that stops
//! early is slower on `last`. The leaky compare at the end shows that the method sees such a thing here.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::time::Instant;

use jump_crypto::cookie::{Gate, ReattachHint};
use jump_crypto::entropy::{Entropy, OsEntropy};
use jump_crypto::handshake::{AttachIntent, INIT_LEN, Initiation, InitiationInput, Suite};
use jump_crypto::ids::{AttachSeq, AttemptId, Epoch, ReceiverIndex};
use jump_crypto::keys::{ClusterSecret, DeviceSecret};

const SAMPLES: usize = 400_000;
/// Calls per sample, so that a sample is well above the clock's resolution.
const CALLS: usize = 8;
/// The share of samples kept, fastest first: interrupts and migrations are in the rest.
const KEPT: f64 = 0.90;

fn main() {
    let mut entropy = OsEntropy::new().expect("the operating system's generator works");
    let cluster = ClusterSecret::generate(&mut entropy).expect("the generator works");
    let gate = Gate::new(&cluster);
    let source = "192.0.2.1:4000".parse().expect("a socket address");
    let init = init(&cluster, &mut entropy);

    // mac1 lies at INIT_LEN - 32, before the cookie.
    let classes = differing_in(&init, INIT_LEN - 32, INIT_LEN - 17);
    report("Gate::admit, mac1", &mut entropy, |class| {
        black_box(gate.admit(black_box(&classes[class]), source, 0));
    });

    let index = ReceiverIndex(7);
    let token = gate.hint(index);
    let hints = differing_in(&gate.hint_datagram(index), 8, 23)
        .map(|datagram| ReattachHint::parse(&datagram).expect("a well-formed hint"));
    report("ReattachHint::carries", &mut entropy, |class| {
        black_box(black_box(&hints[class]).carries(black_box(&token)));
    });

    let secret = [7u8; 64];
    let guesses = differing_in(&secret, 0, 63);
    report("a compare that stops early (control)", &mut entropy, |class| {
        black_box(black_box(&guesses[class]).iter().zip(black_box(&secret)).all(|(a, b)| a == b));
    });
}

fn differing_in<const N: usize>(right: &[u8; N], first: usize, last: usize) -> [[u8; N]; 2] {
    [first, last].map(|at| {
        let mut wrong = *right;
        wrong[at] ^= 1;
        wrong
    })
}

fn init(cluster: &ClusterSecret, entropy: &mut OsEntropy) -> [u8; INIT_LEN] {
    let mut out = [0; INIT_LEN];
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
        device: &DeviceSecret::from_bytes([5; 32]),
        cluster: &cluster.public(),
        suite: Suite::ChaChaPolyBlake2s,
        intent: &intent,
        index: ReceiverIndex(1),
        cookie: None,
    };
    Initiation::start(&input, entropy, &mut out).expect("the generator works");
    out
}

fn report(name: &str, entropy: &mut OsEntropy, mut call: impl FnMut(usize)) {
    let mut order = vec![0; SAMPLES];
    entropy.fill(&mut order).expect("the generator works");
    let mut times: [Vec<f64>; 2] = Default::default();
    for byte in order {
        let class = usize::from(byte & 1);
        let begun = Instant::now();
        for _ in 0..CALLS {
            call(class);
        }
        times[class].push(begun.elapsed().as_nanos() as f64);
    }
    let mut all: Vec<f64> = times.concat();
    all.sort_by(f64::total_cmp);
    let limit = all[(all.len() as f64 * KEPT) as usize];
    let [a, b] = times.map(|class| moments(class.into_iter().filter(|time| *time <= limit)));
    let t = (a.mean - b.mean) / (a.variance / a.count + b.variance / b.count).sqrt();
    let verdict = match t.abs() {
        t if t > 10.0 => "LEAKS",
        t if t > 4.5 => "suspicious",
        _ => "no leak found",
    };
    println!(
        "{name:40} first {:8.1} ns, last {:8.1} ns, t = {t:8.2}: {verdict}",
        a.mean / CALLS as f64,
        b.mean / CALLS as f64
    );
}

struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

fn moments(times: impl Iterator<Item = f64>) -> Moments {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for time in times {
        count += 1.0;
        let delta = time - mean;
        mean += delta / count;
        squares += delta * (time - mean);
    }
    Moments { count, mean, variance: squares / (count - 1.0) }
}
