//! Virtual devices: thousands of real clients in one process, without TUN devices.
//!
//! Each device is the production client machine with its own key, its own sockets (one per path, as a real device has)
//! and its own outer address; handshakes, records, grants and rebindings are the real ones. Where a real device has
//! applications it sends numbered probes, which an echo server on the inner network returns. A few threads carry all of
//! them; everything that a device sees is in its [`Record`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use jump_crypto::entropy::OsEntropy;
use jump_crypto::handshake::Suite;
use jump_crypto::keys::DeviceSecret;
use jump_session::client::{Client, ClientConfig, Stored, Tuning};
use jump_transport::clock::boottime_nanos;

use super::bare_device::ClusterKeys;
use super::histogram::Histogram;
use super::network::Host;

mod crowd;
mod device;
mod lane;
pub mod packet;
pub mod record;

pub use crowd::Crowd;
pub use device::{Burst, PROBE_MAX, Traffic};
pub use record::{Attach, Gap, Record};

use device::Device;
use lane::Lane;

/// Groups of devices that are commanded and measured apart.
pub const GROUPS_MAX: usize = 8;
/// The network that virtual devices send from: every address of it belongs to the devices' host.
pub const NETWORK: &str = "10.64.0.0/14";
/// How many addresses of it devices use.
pub const ADDRESSES: u32 = 1 << 18;
/// Descriptors that the rest of the process may need.
const DESCRIPTORS_SPARE: u64 = 512;

/// Some devices that behave alike.
#[derive(Debug, Clone)]
pub struct Group {
    /// How many.
    pub devices: usize,
    /// How many start per second; `None` for those that wait for [`Fleet::release`].
    pub starts_per_second: Option<f64>,
    /// What they send.
    pub traffic: Traffic,
    /// Their patience.
    pub tuning: Tuning,
    /// They are there for what they do to the others: one more thread works for them, when nobody else on the machine wants
    /// to, so that their own cryptography does not stand in the way of those that are measured.
    pub aside: bool,
}

/// What to run.
pub struct FleetPlan {
    /// The devices' keys, enrolled; as many as all groups have devices.
    pub keys: Vec<DeviceSecret>,
    /// State directory of an enrolled device, for the cluster's keys.
    pub profile: PathBuf,
    /// The gateways that devices know from enrolment.
    pub gateways: Vec<SocketAddr>,
    /// Where datagrams for a gateway go instead, for example to a relay.
    pub via: BTreeMap<SocketAddr, SocketAddr>,
    /// The groups.
    pub groups: Vec<Group>,
    /// Threads; one more for the groups that are aside, if there are any.
    pub lanes: u32,
    /// Decides starting gateways and phases.
    pub seed: u64,
}

/// Totals over all devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Devices whose session was born.
    pub born: u64,
    /// Accepted attaches after the first.
    pub reattached: u64,
    /// Attempts sent.
    pub attempts: u64,
    /// Rejected attempts.
    pub rejected: u64,
    /// Ended sessions.
    pub terminated: u64,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub answered: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.born += other.born;
        self.reattached += other.reattached;
        self.attempts += other.attempts;
        self.rejected += other.rejected;
        self.terminated += other.terminated;
        self.sent += other.sent;
        self.answered += other.answered;
    }
}

#[derive(Debug, Default)]
struct Live {
    born: AtomicU64,
    reattached: AtomicU64,
    attempts: AtomicU64,
    rejected: AtomicU64,
    terminated: AtomicU64,
    sent: AtomicU64,
    answered: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    live: Live,
    commands: Vec<Mutex<Vec<Command>>>,
    finished: Mutex<Finished>,
}

/// A phase that ends.
#[derive(Debug, Default)]
struct Finished {
    phase: Phase,
    /// How many lanes have told what they saw in it.
    lanes: usize,
}

/// What devices saw in a phase.
#[derive(Debug)]
pub struct Phase {
    /// Round trips by group.
    pub round_trips: [Histogram; GROUPS_MAX],
    /// What happened in it.
    pub counts: Counts,
    /// Among the answered: probes that were sent before it began.
    pub late: u64,
}

impl Default for Phase {
    fn default() -> Self {
        Self {
            round_trips: std::array::from_fn(|_| Histogram::default()),
            counts: Counts::default(),
            late: 0,
        }
    }
}

impl Phase {
    fn add(&mut self, lane: &Self) {
        for (all, one) in self.round_trips.iter_mut().zip(&lane.round_trips) {
            all.merge(one);
        }
        self.counts.add(&lane.counts);
        self.late += lane.late;
    }
}

impl Shared {
    fn finish_phase(&self, lane: &Phase) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.phase.add(lane);
        finished.lanes += 1;
    }
}

#[derive(Debug, Clone)]
enum Command {
    Stop,
    Phase,
    Pace {
        group: usize,
        every: Option<Duration>,
    },
    Rebind {
        group: usize,
        share: f64,
        address_too: bool,
    },
    Move {
        group: usize,
        targets: Vec<SocketAddr>,
    },
    Spread {
        group: usize,
        targets: Vec<SocketAddr>,
        turn: usize,
    },
    /// Evenly within this time.
    Release {
        group: usize,
        over: Duration,
    },
}

/// Running devices; they stop when dropped.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<std::io::Result<Vec<Record>>>>,
    /// How many devices each group has.
    groups: Vec<usize>,
}

impl Fleet {
    /// Starts the devices inside `host`, whose addresses [`route`] has set up.
    ///
    /// # Errors
    /// When there are fewer keys than devices, the system allows too few sockets, or a thread cannot be made.
    pub fn start(host: &Host, plan: FleetPlan) -> Result<Self> {
        let devices: usize = plan.groups.iter().map(|group| group.devices).sum();
        ensure!(plan.keys.len() >= devices, "{} keys for {devices} devices", plan.keys.len());
        allow_descriptors(devices)?;
        let lanes = plan.lanes.max(1);
        let all_lanes = lanes + u32::from(plan.groups.iter().any(|group| group.aside));
        let shared = Arc::new(Shared {
            live: Live::default(),
            commands: (0..all_lanes).map(|_| Mutex::default()).collect(),
            finished: Mutex::default(),
        });
        let mut work: Vec<_> = (0..all_lanes)
            .map(|number| Lane {
                devices: Vec::new(),
                via: plan.via.clone(),
                seed: plan.seed.wrapping_add(u64::from(number)),
                yields: number >= lanes,
                shared: Arc::clone(&shared),
                number: number as usize,
            })
            .collect();
        let begin = clock() + Duration::from_millis(10);
        let mut keys = plan.keys.into_iter();
        let mut number = 0u32;
        for (group_number, group) in plan.groups.iter().enumerate() {
            for i in 0..group.devices {
                let key = keys.next().context("a key per device")?;
                let client = client(key, &plan.profile, &plan.gateways, number, group.tuning)?;
                let start =
                    group.starts_per_second.map(|rate| begin + Duration::from_secs_f64(i as f64 / rate));
                let device = Device::new(
                    client,
                    number,
                    group_number,
                    device_address(number),
                    group.traffic,
                    start.unwrap_or(begin),
                );
                let lane = if group.aside { lanes } else { number % lanes };
                work[lane as usize].devices.push((device, start));
                number += 1;
            }
        }
        // Threads made inside the namespace stay there.
        let threads = host.namespace.enter(|| {
            work.into_iter()
                .map(|lane| {
                    let name = format!("devices-{}", lane.number);
                    std::thread::Builder::new().name(name).spawn(move || lane.run())
                })
                .collect::<std::io::Result<Vec<_>>>()
        })??;
        Ok(Self { shared, threads, groups: plan.groups.iter().map(|group| group.devices).collect() })
    }

    /// How many devices there are.
    pub fn devices(&self) -> usize {
        self.groups.iter().sum()
    }

    /// Totals so far.
    pub fn counts(&self) -> Counts {
        let live = &self.shared.live;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            born: read(&live.born),
            reattached: read(&live.reattached),
            attempts: read(&live.attempts),
            rejected: read(&live.rejected),
            terminated: read(&live.terminated),
            sent: read(&live.sent),
            answered: read(&live.answered),
        }
    }

    /// Starts the waiting devices of a group.
    pub fn release(&self, group: usize, per_second: f64) {
        let devices = self.groups.get(group).copied().unwrap_or_default();
        let over = Duration::from_secs_f64(devices as f64 / per_second.max(0.001));
        self.command(&Command::Release { group, over });
    }

    /// Changes how often a group's devices send.
    pub fn pace(&self, group: usize, every: Option<Duration>) {
        self.command(&Command::Pace { group, every });
    }

    /// Gives a share of a group's devices new ports, and new addresses, without telling them.
    pub fn rebind(&self, group: usize, share: f64, address_too: bool) {
        self.command(&Command::Rebind { group, share, address_too });
    }

    /// Lets a group's devices leave their gateways for one of `targets`.
    pub fn request_move(&self, group: usize, targets: &[SocketAddr]) {
        self.command(&Command::Move { group, targets: targets.to_vec() });
    }

    /// Lets each of a group's devices leave for the gateway at the place of its own number plus `turn`, unless it is
    /// there already.
    pub fn spread(&self, group: usize, targets: &[SocketAddr], turn: usize) {
        self.command(&Command::Spread { group, targets: targets.to_vec(), turn });
    }

    /// Ends a phase: returns what was seen since the last call. Commands that were given before it have been carried out.
    ///
    /// # Errors
    /// When a lane has stopped.
    pub fn phase(&self) -> Result<Phase> {
        let finished = || self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner);
        *finished() = Finished::default();
        self.command(&Command::Phase);
        let lanes = self.threads.len();
        let done = || finished().lanes == lanes;
        super::etcd::wait_until("all devices' threads have answered", Duration::from_secs(30), done)?;
        Ok(std::mem::take(&mut finished().phase))
    }

    /// Stops all devices where they stand; returns what they saw, by number.
    ///
    /// # Errors
    /// When a thread failed.
    pub fn stop(mut self) -> Result<Vec<Record>> {
        self.command(&Command::Stop);
        let mut records = Vec::with_capacity(self.devices());
        for thread in self.threads.drain(..) {
            let lane = thread.join().map_err(|_| anyhow!("a thread of devices panicked"))?;
            records.extend(lane.context("a thread of devices")?);
        }
        records.sort_by_key(|record| record.device);
        Ok(records)
    }

    fn command(&self, command: &Command) {
        for lane in &self.shared.commands {
            lane.lock().unwrap_or_else(PoisonError::into_inner).push(command.clone());
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.command(&Command::Stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Gives `host` all addresses of [`NETWORK`], and the gateways a way there.
///
/// # Errors
/// When `ip` fails.
pub fn route(host: &Host, gateways: &[Host]) -> Result<()> {
    host.namespace.ip(&format!("route replace local {NETWORK} dev lo"))?;
    host.namespace.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    for gateway in gateways {
        gateway.namespace.ip(&format!("route replace {NETWORK} via {}", host.wan))?;
    }
    Ok(())
}

/// The outer address of device `number`, spread over many /24 networks as real devices are.
pub fn device_address(number: u32) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(10, 64, 0, 0));
    // Neighbours in number are 256 addresses apart.
    let place = number % ADDRESSES;
    let spread = (place % 1024) << 8 | (place / 1024) & 0xff;
    Ipv4Addr::from(base + spread)
}

/// The devices' clock: nanoseconds since boot, suspended time included.
pub fn clock() -> Duration {
    Duration::from_nanos(boottime_nanos())
}

fn client(
    key: DeviceSecret,
    profile: &std::path::Path,
    gateways: &[SocketAddr],
    number: u32,
    tuning: Tuning,
) -> Result<Client> {
    let keys = ClusterKeys::of_profile(profile)?;
    let mut gateways = gateways.to_vec();
    let count = gateways.len().max(1);
    gateways.rotate_left(number as usize % count);
    let config = ClientConfig {
        device: key,
        cluster_keys: vec![keys.cluster],
        verifier: keys.verifier,
        key_set: 0,
        gateways,
        suite: Suite::preferred(),
        transports: vec![jump_session::path::Transport::Udp],
        tuning,
    };
    let entropy = OsEntropy::new().context("randomness")?;
    Ok(Client::new(config, Stored::default(), Box::new(entropy)))
}

/// Raises this process's limit of open files as far as the system lets it.
fn allow_descriptors(devices: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // A device that changes gateways has two sockets for a while; a third of all may at once.
    let wanted = devices as u64 * 3 / 2 + DESCRIPTORS_SPARE;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_some_and(|limit| limit < wanted) {
        let limit = now.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        ensure!(limit >= wanted, "{devices} devices need {wanted} open files, the system allows {limit}");
        setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: now.maximum })?;
    }
    Ok(())
}
