//! A device made of nothing but a key and a socket: it attaches message by message, so that a test can record,
//! withhold, replay and race what a well-behaved client sends once and in order.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};
use jump_crypto::cookie::open_cookie_reply;
use jump_crypto::entropy::{Entropy as _, OsEntropy};
use jump_crypto::handshake::{
    AttachIntent, Established, INIT_LEN, Initiation, InitiationInput, ReplyInfo, Suite,
};
use jump_crypto::ids::{AttachSeq, AttemptId, Epoch, ReceiverIndex, SessionId};
use jump_crypto::keys::{ClusterPublic, DeviceSecret, GrantVerifier};
use jump_crypto::record::{Content, HEADER_LEN, OVERHEAD, SealingKey};
use jump_crypto::wire::DatagramType;
use jump_session::frame::{AttachResult, FRAME_LEN_MAX, Frame};
use jump_session::reason::Reason;

/// How long one answer may take before the question is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(300);
const DATAGRAM_MAX: usize = 2048;

/// What a device knows of the cluster, from the profile of an enrolled one.
pub struct ClusterKeys {
    /// The key that gateways answer handshakes with.
    pub cluster: ClusterPublic,
    /// Checks grants and node certificates.
    pub verifier: GrantVerifier,
}

impl ClusterKeys {
    /// Reads `profile.toml` of a state directory.
    ///
    /// # Errors
    /// When it is not there or has no keys.
    pub fn of_profile(state: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(state.join("profile.toml")).context("reading the profile")?;
        let profile: toml::Table = text.parse().context("the profile")?;
        let keys = |name: &str| -> Result<Vec<[u8; 32]>> {
            let list =
                profile.get(name).and_then(toml::Value::as_array).with_context(|| format!("no {name}"))?;
            list.iter().map(|key| from_hex(key.as_str().unwrap_or_default())).collect()
        };
        let cluster = *keys("cluster_keys")?.first().context("no cluster key")?;
        Ok(Self { cluster: ClusterPublic(cluster), verifier: GrantVerifier::new(&keys("grant_keys")?) })
    }
}

/// Reads the device key of a state directory.
///
/// # Errors
/// When it is not there.
pub fn device_key(state: &Path) -> Result<DeviceSecret> {
    let text = std::fs::read_to_string(state.join("device.key")).context("reading the device key")?;
    Ok(DeviceSecret::from_bytes(from_hex(text.trim())?))
}

fn from_hex(text: &str) -> Result<[u8; 32]> {
    let key: jump_crypto::ids::DeviceKey = text.parse().map_err(|error| anyhow!("{error}"))?;
    Ok(*key.as_bytes())
}

/// A device at one local address.
pub struct BareDevice {
    key: DeviceSecret,
    keys: ClusterKeys,
    entropy: OsEntropy,
    socket: UdpSocket,
    cookie: Option<[u8; 16]>,
}

/// A first message, and the side that waits for its answer.
pub struct Started {
    /// The datagram.
    pub datagram: [u8; INIT_LEN],
    initiation: Initiation,
}

/// A handshake that both sides have finished, not confirmed yet.
pub struct Ready {
    /// Its keys.
    pub established: Established,
    /// What the gateway said of itself.
    pub info: ReplyInfo,
    gateway: SocketAddr,
}

impl BareDevice {
    /// Sends from `socket` under `key`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(key: DeviceSecret, keys: ClusterKeys, socket: UdpSocket) -> Result<Self> {
        let entropy = OsEntropy::new().context("randomness")?;
        Ok(Self { key, keys, entropy, socket, cookie: None })
    }

    /// Its socket.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Replaces the device's key.
    pub fn set_key(&mut self, key: DeviceSecret) {
        self.key = key;
    }

    /// A fresh random attempt id.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn fresh_attempt(&mut self) -> Result<AttemptId> {
        let mut bytes = [0u8; 16];
        self.entropy.fill(&mut bytes).context("randomness")?;
        Ok(AttemptId::from_bytes(bytes))
    }

    /// What a device asks when it goes on with `session`, or starts a new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn intent(
        &mut self,
        session: Option<SessionId>,
        attach_seq: u64,
        reason: Reason,
    ) -> Result<AttachIntent> {
        Ok(AttachIntent {
            session,
            attach_seq: AttachSeq(attach_seq),
            attempt: self.fresh_attempt()?,
            last_epoch: Epoch(0),
            reason: reason.number(),
            capabilities: 0,
            rekey: false,
            holding: jump_crypto::handshake::Holding::new(0, &self.keys.verifier),
        })
    }

    /// Makes a first message without sending it.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn start(&mut self, intent: &AttachIntent) -> Result<Started> {
        let mut index = [0u8; 4];
        self.entropy.fill(&mut index).context("randomness")?;
        let input = InitiationInput {
            device: &self.key,
            cluster: &self.keys.cluster,
            suite: Suite::preferred(),
            intent,
            index: ReceiverIndex(u32::from_ne_bytes(index)),
            cookie: self.cookie,
        };
        let mut datagram = [0u8; INIT_LEN];
        let initiation = Initiation::start(&input, &mut self.entropy, &mut datagram)?;
        Ok(Started { datagram, initiation })
    }

    /// Sends a first message and waits for the answer; shows a cookie when it is asked for one.
    ///
    /// # Errors
    /// When there is no valid answer within `timeout`.
    pub fn handshake(
        &mut self,
        intent: &AttachIntent,
        gateway: SocketAddr,
        timeout: Duration,
    ) -> Result<Ready> {
        let deadline = Instant::now() + timeout;
        'again: while Instant::now() < deadline {
            let mut started = self.start(intent)?;
            self.socket.send_to(&started.datagram, gateway)?;
            let repeat = Instant::now() + REPEAT_AFTER;
            while let Some((bytes, from)) = self.receive(repeat.min(deadline))? {
                if from != gateway {
                    continue;
                }
                if let Some(cookie) = open_cookie_reply(&self.keys.cluster, &started.datagram, &bytes) {
                    self.cookie = Some(cookie);
                    continue 'again;
                }
                if let Ok((established, info)) =
                    started.initiation.finish(&bytes, &self.keys.verifier, unix_seconds())
                {
                    return Ok(Ready { established, info, gateway });
                }
            }
        }
        bail!("{gateway} did not answer the first message within {timeout:?}")
    }

    /// Confirms a handshake and waits for the outcome of the attach.
    ///
    /// # Errors
    /// When no outcome comes within `timeout`.
    pub fn confirm(&mut self, ready: &mut Ready, timeout: Duration) -> Result<AttachResult> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            self.send_frame(&mut ready.established.sealing, &Frame::Confirm, ready.gateway)?;
            let repeat = Instant::now() + REPEAT_AFTER;
            while let Some((mut bytes, _)) = self.receive(repeat.min(deadline))? {
                let Ok(opened) = ready.established.opening.open(&mut bytes) else { continue };
                if let (Content::Control, Ok(Frame::AttachResult(result))) =
                    (opened.content, Frame::decode(opened.plaintext))
                {
                    return Ok(*result);
                }
            }
        }
        bail!("{} did not tell the outcome of the attach within {timeout:?}", ready.gateway)
    }

    /// Handshake and confirmation.
    ///
    /// # Errors
    /// When either is not answered within `timeout`.
    pub fn attach(
        &mut self,
        intent: &AttachIntent,
        gateway: SocketAddr,
        timeout: Duration,
    ) -> Result<(AttachResult, Ready)> {
        let mut ready = self.handshake(intent, gateway, timeout)?;
        let result = self.confirm(&mut ready, timeout)?;
        Ok((result, ready))
    }

    /// Seals and sends one control frame.
    ///
    /// # Errors
    /// When the socket refuses it.
    pub fn send_frame(&self, sealing: &mut SealingKey, frame: &Frame, gateway: SocketAddr) -> Result<()> {
        let mut buffer = [0u8; FRAME_LEN_MAX + OVERHEAD];
        let length = frame.encode(&mut buffer[HEADER_LEN..]).context("the frame does not fit")?;
        let length = sealing.seal(Content::Control, &mut buffer, length)?;
        self.socket.send_to(&buffer[..length], gateway)?;
        Ok(())
    }

    /// Asks the gateway of `ready` for a sign of life under its keys.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn is_answered(&mut self, ready: &mut Ready, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let id = 0x6a76_0001;
        while Instant::now() < deadline {
            self.send_frame(&mut ready.established.sealing, &Frame::Ping { id }, ready.gateway)?;
            let repeat = Instant::now() + REPEAT_AFTER;
            while let Some((mut bytes, _)) = self.receive(repeat.min(deadline))? {
                let Ok(opened) = ready.established.opening.open(&mut bytes) else { continue };
                if Frame::decode(opened.plaintext)
                    .is_ok_and(|frame| matches!(frame, Frame::Pong { id: of, .. } if of == id))
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The next datagram before `deadline`.
    fn receive(&self, deadline: Instant) -> Result<Option<(Vec<u8>, SocketAddr)>> {
        let mut bytes = vec![0u8; DATAGRAM_MAX];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut bytes) {
                Ok((length, from)) => {
                    bytes.truncate(length);
                    return Ok(Some((bytes, from)));
                }
                // A port that nobody listens on is reported here; the timeout ends the wait.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }

    /// How many datagrams of a type arrive before `deadline`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn count_received(&self, wanted: DatagramType, deadline: Instant) -> Result<usize> {
        let mut count = 0;
        while let Some((bytes, _)) = self.receive(deadline)? {
            count += usize::from(DatagramType::of(&bytes) == Some(wanted));
        }
        Ok(count)
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
