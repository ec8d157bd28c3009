//! The device: the production client machine with its sockets, its disk and its traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jump_crypto::handshake::Suite;
use jump_crypto::keys::{DeviceSecret, GrantSigner, GrantVerifier};
use jump_crypto::record::{HEADER_LEN, OVERHEAD};
use jump_session::client::{
    Client, ClientConfig, Event as News, Now, PathError, PathId, State, Stored, Ticket, Tuning,
};
use jump_session::ids::{Epoch, SessionId};
use jump_session::ownership::Owner;
use jump_session::path::Transport;
use jump_session::reason::Reason;

use crate::event::{Event, Route};
use crate::random::Random;
use crate::world::{INNER, MS, Nanos, SECOND, SERVER, UNIX, World, cluster_secret};

/// How long a write to disk takes.
const DISK: Nanos = 3 * MS;

pub(crate) struct Device {
    client: Option<Client>,
    /// Starts of the process so far.
    pub(crate) life: u64,
    gateways: Vec<SocketAddr>,
    verifier: [u8; 32],
    random: Random,
    /// What is on disk.
    pub(crate) durable: Stored,
    writes: BTreeMap<Ticket, Stored>,
    paths: BTreeMap<PathId, (SocketAddr, u16)>,
    ports: BTreeMap<u16, Route>,
    next_port: u16,
    timer_at: Option<Nanos>,
    /// What the first acceptance gave: it must never change.
    identity: Option<(SessionId, Vec<IpAddr>)>,
    epoch: Epoch,
    sent_up: u64,
    sent_down: u64,
    up: BTreeSet<u64>,
    down: BTreeSet<u64>,
    pub(crate) last_up: Nanos,
    pub(crate) last_down: Nanos,
}

impl Device {
    pub(crate) fn new(gateways: Vec<SocketAddr>, grants: &GrantSigner, random: &mut Random) -> Self {
        Self {
            client: None,
            life: 0,
            gateways,
            verifier: grants.public(),
            random: random.fork(),
            durable: Stored::default(),
            writes: BTreeMap::new(),
            paths: BTreeMap::new(),
            ports: BTreeMap::new(),
            next_port: 10_000,
            timer_at: None,
            identity: None,
            epoch: Epoch(0),
            sent_up: 0,
            sent_down: 0,
            up: BTreeSet::new(),
            down: BTreeSet::new(),
            last_up: 0,
            last_down: 0,
        }
    }

    fn config(&self) -> ClientConfig {
        ClientConfig {
            device: DeviceSecret::from_bytes([5; 32]),
            cluster_keys: vec![cluster_secret().public()],
            verifier: GrantVerifier::new(&[self.verifier]),
            key_set: 0,
            gateways: self.gateways.clone(),
            suite: Suite::ChaChaPolyBlake2s,
            transports: vec![Transport::Udp],
            tuning: Tuning { rekey_after: Duration::from_secs(7), ..Tuning::default() },
        }
    }

    /// The session, once the disk knows it.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable.session.is_some()
    }

    pub(crate) fn state(&self) -> Option<State> {
        self.client.as_ref().map(|client| client.status().state)
    }

    fn source(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 1], port))
    }

    fn open_port(&mut self, path: PathId, gateway: SocketAddr) {
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).expect("ports enough for one run");
        self.paths.insert(path, (gateway, port));
        self.ports.insert(port, Route { life: self.life, path });
    }

    /// The NAT in front of the device forgets: every socket shows another port.
    pub(crate) fn rebind(&mut self) {
        self.ports.clear();
        for (path, (gateway, _)) in self.paths.clone() {
            self.open_port(path, gateway);
        }
    }

    pub(crate) fn kill(&mut self) {
        self.client = None;
        self.paths.clear();
        self.ports.clear();
        self.writes.clear();
        self.timer_at = None;
    }
}

impl World {
    fn clock(&self) -> Now {
        Now { at: Duration::from_nanos(self.now), unix_seconds: UNIX + self.now / SECOND }
    }

    pub(crate) fn device_starts(&mut self) {
        if self.device.client.is_some() {
            return;
        }
        self.device.life += 1;
        let entropy = Box::new(self.device.random.fork());
        let stored = self.device.durable.clone();
        self.device.client = Some(Client::new(self.device.config(), stored, entropy));
        self.with_client(|client, now| client.start(now));
    }

    /// Lets the client do something, and carries out what it asks for.
    pub(crate) fn with_client(&mut self, act: impl FnOnce(&mut Client, Now)) {
        let now = self.clock();
        let Some(client) = &mut self.device.client else { return };
        act(client, now);
        self.settle_client();
    }

    fn settle_client(&mut self) {
        loop {
            let Some(client) = &mut self.device.client else { return };
            let Some(event) = client.poll_event() else { break };
            self.client_event(event);
        }
        loop {
            let Some(client) = &mut self.device.client else { return };
            let Some(transmit) = client.poll_transmit() else { break };
            self.send_up(transmit.path, &transmit.datagram);
        }
        let life = self.device.life;
        let due = self.device.client.as_ref().and_then(Client::poll_timeout);
        let due = due.map(|due| u64::try_from(due.as_nanos()).unwrap_or(u64::MAX).max(self.now + 1));
        if let Some(due) = due
            && self.device.timer_at.is_none_or(|timer| timer > due)
        {
            self.device.timer_at = Some(due);
            self.push(due - self.now, Event::DeviceTimer { life });
        }
    }

    fn client_event(&mut self, event: News) {
        match event {
            News::OpenPath { path, gateway, .. } => self.device.open_port(path, gateway),
            News::ClosePath { path } => {
                if let Some((_, port)) = self.device.paths.remove(&path) {
                    self.device.ports.remove(&port);
                }
            }
            News::Persist { ticket, stored } => {
                self.device.writes.insert(ticket, stored);
                let life = self.device.life;
                self.push(DISK, Event::DiskDone { life, ticket });
            }
            News::Attached(attached) => {
                self.note(|_| {
                    format!("client: attached to {} in epoch {}", attached.node, attached.accepted.epoch)
                });
                let accepted = &attached.accepted;
                assert!(
                    accepted.epoch > self.device.epoch,
                    "G2: the client went from {} to {}",
                    self.device.epoch,
                    accepted.epoch
                );
                self.device.epoch = accepted.epoch;
                let identity = (accepted.session, accepted.inner.clone());
                let first = self.device.identity.get_or_insert_with(|| identity.clone());
                assert_eq!(*first, identity, "G4: the client's identity changed");
            }
            News::Rejected { reason, .. } => self.note(|_| format!("client: rejected, {reason}")),
            News::StateChanged { from, to, reason } => {
                self.note(|_| format!("client: {from:?} to {to:?}, {reason}"));
            }
            News::Terminated { reason } => panic!("G4: the session was lost: {reason}"),
            News::Untrusted { error, .. } => panic!("an honest gateway was not believed: {error}"),
            News::NoEntropy(error) => panic!("{error}"),
            News::PathChanged { .. }
            | News::MtuChanged { .. }
            | News::Bound { .. }
            | News::Attempted { .. }
            | News::FirstByte { .. }
            | News::Rekeyed { .. }
            | News::KeysChanged(_) => {}
        }
    }

    fn send_up(&mut self, path: PathId, datagram: &[u8]) {
        let Some((gateway, port)) = self.device.paths.get(&path).copied() else { return };
        let Some(at) = self.gateways.iter().position(|g| g.address == gateway) else { return };
        if self.gateways[at].is_cut_from_clients {
            return;
        }
        let path = Route { life: self.device.life, path };
        let source = Device::source(port);
        for delay in self.copies() {
            let datagram = datagram.to_vec();
            self.push(delay, Event::FromClient { at, path, source, datagram });
        }
    }

    pub(crate) fn arrive_at_device(&mut self, to: SocketAddr, mut datagram: Vec<u8>) {
        let Some(route) = self.device.ports.get(&to.port()).copied() else { return };
        if route.life != self.device.life {
            return;
        }
        let now = self.clock();
        let Some(client) = &mut self.device.client else { return };
        let number = client.handle_datagram(now, route.path, &mut datagram).map(|packet| number_of(packet));
        if let Some(number) = number {
            assert!(self.device.down.insert(number), "G6: downlink packet {number} arrived twice");
            self.device.last_down = self.now;
        }
        self.settle_client();
    }

    pub(crate) fn device_refused(&mut self, route: Route) {
        if route.life == self.device.life && self.device.paths.contains_key(&route.path) {
            self.with_client(|client, now| client.handle_path_error(now, route.path, PathError::Refused));
        }
    }

    pub(crate) fn device_timer(&mut self, life: u64) {
        if life == self.device.life {
            self.device.timer_at = None;
            self.with_client(Client::handle_timeout);
        }
    }

    pub(crate) fn disk_done(&mut self, life: u64, ticket: Ticket) {
        if life != self.device.life {
            return;
        }
        let Some(stored) = self.device.writes.remove(&ticket) else { return };
        self.device.durable = stored.clone();
        self.with_client(|client, now| client.persisted(now, ticket, &stored));
    }

    pub(crate) fn upload(&mut self) {
        let now = self.clock();
        let Some(client) = &mut self.device.client else { return };
        let number = self.device.sent_up;
        let packet = packet(INNER, SERVER, number);
        let mut frame = vec![0; packet.len() + OVERHEAD];
        frame[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(&packet);
        if let Ok(sealed) = client.seal(now, &mut frame, packet.len()) {
            self.device.sent_up += 1;
            self.send_up(sealed.path, &frame[..sealed.len]);
        }
        self.settle_client();
    }

    /// The server's packet reaches any gateway: the inner network routes the pool to all of them.
    pub(crate) fn download(&mut self) {
        let number = self.device.sent_down;
        self.device.sent_down += 1;
        let at = self.random.below(self.gateways.len());
        if self.gateways[at].run.is_some() {
            let packet = packet(SERVER, INNER, number);
            self.push(MS, Event::FromInner { at, packet });
        }
    }

    /// A gateway forwarded a packet of the device to the inner network: only the owner in the store may, at this very
    /// moment, and only once.
    pub(crate) fn forwarded(&mut self, by: Option<&Owner>, packet: &[u8]) {
        let number = number_of(packet);
        let session = self.device.identity.as_ref().map(|(session, _)| *session);
        let session = session.or_else(|| self.store.sessions.keys().next().copied());
        let record = session.and_then(|session| self.store.sessions.get(&session));
        let owner = record.and_then(|(record, _)| record.owner());
        assert_eq!(by, owner, "G1: packet {number} was forwarded by one that is not the owner in the store");
        assert!(self.device.up.insert(number), "G6: uplink packet {number} came out twice");
        self.device.last_up = self.now;
    }

    pub(crate) fn client_moves(&mut self) {
        self.with_client(|client, now| client.request_move(now, Reason::ClientRequest, &[]));
    }
}

fn packet(source: [u8; 4], destination: [u8; 4], number: u64) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(number.to_be_bytes());
    packet
}

fn number_of(packet: &[u8]) -> u64 {
    let number = packet.last_chunk::<8>().expect("packets of this simulation end with their number");
    u64::from_be_bytes(*number)
}
