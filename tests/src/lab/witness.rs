//! Sees every packet that gateways forward for virtual devices, on both networks, and turns what it saw into histories.
//!
//! On the inner network a probe's link-layer source names the gateway that forwarded it; on the outer network the
//! source address of a record does. Both are stamped by the kernel on one clock.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use jump_crypto::record::OVERHEAD;
use jump_crypto::wire::DatagramType;

use super::capture::{Captured, Tap};
use super::cluster::gateway_name;
use super::fleet::Record;
use super::fleet::packet::Probe;
use super::history::{Forward, Kind, Operation, Owner, Way};
use super::network::{Host, LAN_LINK, Network, WAN_LINK};
use super::programs::GATEWAY_PORT;

/// Enough of a frame for the probe's fields.
const FRAME_BYTES: usize = 128;

/// A packet towards the inner network.
#[derive(Debug, Clone, Copy)]
struct Up {
    at: u64,
    gateway: u8,
    probe: Probe,
}

/// A record towards a device.
#[derive(Debug, Clone, Copy)]
struct Down {
    at: u64,
    gateway: u8,
    to: (Ipv4Addr, u16),
}

/// Two running captures.
#[derive(Debug)]
pub struct Witness {
    inner: Tap,
    outer: Tap,
    up: Arc<Mutex<Vec<Up>>>,
    down: Arc<Mutex<Vec<Down>>>,
    /// What to add to the devices' clock to get the wall clock.
    offset: u64,
}

/// What the witness saw, by device.
#[derive(Debug, Default)]
pub struct Testimony {
    /// Forwarded packets of each device, in the order of time.
    pub forwards: BTreeMap<u32, Vec<Forward>>,
    /// Packets whose epoch cannot be told: their path was never accepted, or their address is unknown.
    pub unattributed: u64,
    /// Frames that the captures lost; above zero, nothing is proved.
    pub dropped: u64,
}

impl Witness {
    /// Watches probes of any of `probe_lengths` bytes to `echo_port`.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(network: &Network, devices: &Host, probe_lengths: &[usize], echo_port: u16) -> Result<Self> {
        let macs = network
            .gateways
            .iter()
            .map(|gateway| gateway.namespace.enter(|| link_address(LAN_LINK))?)
            .collect::<Result<Vec<_>>>()?;
        let addresses: Vec<_> = network.gateways.iter().map(|gateway| gateway.wan).collect();
        let up = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&up);
        let filter = format!("inbound and udp dst port {echo_port}");
        let inner = Tap::start(&network.inner, LAN_LINK, &filter, FRAME_BYTES, move |frame| {
            if let Some(forward) = up_of(&frame, &macs) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(forward);
            }
        })?;
        let down = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&down);
        // Only records that carry a probe have its length: IPv4 and UDP header around the sealed packet.
        let lengths: Vec<_> =
            probe_lengths.iter().map(|length| format!("ip[2:2] = {}", 28 + OVERHEAD + length)).collect();
        let filter = format!("inbound and udp src port {GATEWAY_PORT} and ({})", lengths.join(" or "));
        let outer = Tap::start(devices, WAN_LINK, &filter, FRAME_BYTES, move |frame| {
            if let Some(forward) = down_of(&frame, &addresses) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(forward);
            }
        })?;
        Ok(Self { inner, outer, up, down, offset: clock_offset() })
    }

    /// Stops and attributes every packet to a device and an epoch.
    pub fn stop(mut self, records: &[Record]) -> Testimony {
        self.inner.end();
        self.outer.end();
        let dropped = [&self.inner, &self.outer].iter().map(|tap| tap.dropped().unwrap_or(u64::MAX)).max();
        let mut testimony = Testimony { dropped: dropped.unwrap_or(0), ..Testimony::default() };
        let epochs: BTreeMap<(u32, u32), u64> = records
            .iter()
            .flat_map(|record| {
                let attached = record.attaches.iter().map(|attach| (attach.path, attach.epoch));
                let all = attached.chain(record.moved_paths.iter().copied());
                all.map(|(path, epoch)| ((record.device, path), epoch))
            })
            .collect();
        let rides: BTreeMap<(u32, u64), u32> = records
            .iter()
            .flat_map(|record| record.rides.iter().map(|(serial, path)| ((record.device, *serial), *path)))
            .collect();
        let mut ports: BTreeMap<(Ipv4Addr, u16), Vec<(u32, u32)>> = BTreeMap::new();
        for record in records {
            for (port, path) in &record.ports {
                let address = super::fleet::device_address(record.device);
                ports.entry((address, *port)).or_default().push((record.device, *path));
            }
        }
        let mut add =
            |device: u32, path: u32, at: u64, gateway: u8, way: Way| match epochs.get(&(device, path)) {
                Some(epoch) => testimony.forwards.entry(device).or_default().push(Forward {
                    at,
                    node: gateway_name(gateway.into()),
                    epoch: *epoch,
                    way,
                }),
                None => testimony.unattributed += 1,
            };
        for seen in self.up.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let probe = &seen.probe;
            let path = rides.get(&(probe.device, probe.serial)).copied().unwrap_or(probe.path);
            add(probe.device, path, seen.at, seen.gateway, Way::Up);
        }
        let mut unknown = 0;
        for seen in self.down.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            match ports.get(&seen.to).map(Vec::as_slice) {
                // A port that served two paths does not tell which; ports are seldom used twice.
                Some([(device, path)]) => add(*device, *path, seen.at, seen.gateway, Way::Down),
                _ => unknown += 1,
            }
        }
        testimony.unattributed += unknown;
        for forwards in testimony.forwards.values_mut() {
            forwards.sort_by_key(|forward| forward.at);
        }
        testimony
    }

    /// What to add to a time of the devices' clock to compare it with the captures'.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// A device's accepted attaches as operations on its session's register, on the captures' clock.
pub fn operations(record: &Record, offset: u64) -> Vec<Operation> {
    let wall = |time: Duration| offset + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let operation = |attach: &super::fleet::Attach| Operation {
        invoked: wall(attach.began),
        answered: wall(attach.at),
        kind: Kind::Attach,
        epoch: attach.epoch,
        owner: Some(Owner { node: attach.node.clone(), incarnation: attach.incarnation }),
    };
    record.attaches.iter().map(operation).collect()
}

/// Nanoseconds of the wall clock minus nanoseconds of the devices' clock.
pub fn clock_offset() -> u64 {
    wall_nanos(SystemTime::now()).saturating_sub(jump_transport::clock::boottime_nanos())
}

/// Nanoseconds of the wall clock.
pub fn wall_now() -> u64 {
    wall_nanos(SystemTime::now())
}

fn wall_nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn up_of(frame: &Captured, macs: &[[u8; 6]]) -> Option<Up> {
    let source = frame.link_source()?;
    let gateway = macs.iter().position(|mac| *mac == source)?;
    let probe = Probe::of_packet(frame.bytes.get(14..)?)?;
    Some(Up { at: wall_nanos(frame.at), gateway: u8::try_from(gateway).ok()?, probe })
}

fn down_of(frame: &Captured, gateways: &[Ipv4Addr]) -> Option<Down> {
    let (source, to) = frame.ipv4()?;
    let gateway = gateways.iter().position(|gateway| *gateway == source)?;
    let (_, port) = frame.udp_ports()?;
    // Behind Ethernet, IPv4 and UDP headers.
    (DatagramType::of(frame.bytes.get(42..)?)? == DatagramType::Record).then_some(())?;
    Some(Down { at: wall_nanos(frame.at), gateway: u8::try_from(gateway).ok()?, to: (to, port) })
}

/// The link-layer address of an interface of the current namespace, from `ip`.
fn link_address(link: &str) -> Result<[u8; 6]> {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", "dev", link]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text.split_once("link/ether ").context("no link-layer address")?.1;
    let bytes = address
        .split(' ')
        .next()
        .unwrap_or_default()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<Vec<_>, _>>()?;
    <[u8; 6]>::try_from(bytes).ok().context("a link-layer address has six bytes")
}
