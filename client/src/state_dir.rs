//! The device's state directory: profile, device key, session, lock. Mode 0700; everything in it belongs to one device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jump_crypto::entropy::{Entropy, EntropyError};
use jump_crypto::key_set::KeySetClaims;
use jump_crypto::keys::{ClusterPublic, DeviceSecret, GrantVerifier};
use jump_session::client::Stored;
use jump_session::ids::{AttachSeq, Epoch};
use jump_session::path::{Door, Transport};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::failure::{Exit, Failure};
use crate::hex;

/// Where state is kept unless told otherwise.
pub const DEFAULT: &str = "/var/lib/jump";

const KEY: &str = "device.key";
const NEXT_KEY: &str = "device.key.next";
const ROTATED_KEY: &str = "device.key.rotated";

/// A state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// What enrolment gave the device: `profile.toml`. Public keys and addresses only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The device's name, as the operator chose it.
    pub device_name: String,
    /// Control's `host:port`, as the enrolment token named it.
    pub control: String,
    /// Cluster handshake keys, 64 hexadecimal digits each, current first.
    pub cluster_keys: Vec<String>,
    /// Keys that sign grants, 64 hexadecimal digits each.
    pub grant_keys: Vec<String>,
    /// Gateways' `ip:port`, best first.
    pub gateways: Vec<SocketAddr>,
    /// The serial of the key set that the keys are of; grows as control rotates keys.
    #[serde(default)]
    pub key_set_serial: u64,
    /// Whether attaches are hybrid (X25519 and ML-KEM-768), as control says.
    #[serde(default)]
    pub hybrid: bool,
    /// Control's CA certificate, PEM, as the enrolment token carried it.
    #[serde(default)]
    pub control_ca: String,
}

/// The session, as `session.json` keeps it. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SessionFile {
    session_id: Option<String>,
    epoch: u64,
    attach_seq: u64,
    inner_addresses: Vec<IpAddr>,
    roster: Vec<SocketAddr>,
    #[serde(default)]
    doors: Vec<DoorFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DoorFile {
    #[serde(with = "transport_name")]
    transport: Transport,
    port: u16,
}

impl From<Door> for DoorFile {
    fn from(Door { transport, port }: Door) -> Self {
        Self { transport, port }
    }
}

impl From<DoorFile> for Door {
    fn from(DoorFile { transport, port }: DoorFile) -> Self {
        Self { transport, port }
    }
}

mod transport_name {
    use jump_session::path::Transport;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(transport: &Transport, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(transport.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Transport, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Held while a process uses the directory.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Profile {
    /// The cluster keys.
    ///
    /// # Errors
    /// A line that names the bad entry.
    pub fn cluster(&self) -> Result<Vec<ClusterPublic>, Failure> {
        let keys = parse_keys("cluster_keys", &self.cluster_keys)?;
        Ok(keys.into_iter().map(ClusterPublic).collect())
    }

    /// The grant keys.
    ///
    /// # Errors
    /// A line that names the bad entry.
    pub fn verifier(&self) -> Result<GrantVerifier, Failure> {
        Ok(GrantVerifier::new(&parse_keys("grant_keys", &self.grant_keys)?))
    }
}

impl Profile {
    /// The same profile with the keys of a newer key set.
    #[must_use]
    pub fn with_keys(mut self, keys: &KeySetClaims) -> Self {
        self.cluster_keys = keys.cluster.iter().map(|key| hex::encode(&key.0)).collect();
        self.grant_keys = keys.grant.iter().map(|key| hex::encode(key)).collect();
        self.key_set_serial = keys.serial;
        self.hybrid = keys.hybrid;
        self
    }
}

fn parse_keys(name: &str, keys: &[String]) -> Result<Vec<[u8; 32]>, Failure> {
    let parsed: Option<Vec<_>> = keys.iter().map(|key| hex::decode_key(key)).collect();
    parsed.filter(|keys| !keys.is_empty()).ok_or_else(|| {
        Failure::new(
            Exit::NotEnrolled,
            format!("{name} in profile.toml must be keys of 64 hexadecimal digits: enrol the device again"),
        )
    })
}

impl StateDir {
    /// Names a directory; nothing is touched.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The daemon's control socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The file of the device's key.
    pub fn key(&self) -> PathBuf {
        self.path.join(KEY)
    }

    /// The background daemon's log.
    pub fn log(&self) -> PathBuf {
        self.path.join("jump.log")
    }

    /// Creates the directory where it is missing, and closes it to others.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn create(&self) -> Result<(), Failure> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.and_then(|()| fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)))
            .map_err(|error| self.failure(&self.path, &error))
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// [`Exit::AlreadyRunning`] when another process has it.
    pub fn lock(&self) -> Result<Lock, Failure> {
        self.lock_file("lock", "jump already runs")
    }

    fn lock_file(&self, name: &str, taken: &str) -> Result<Lock, Failure> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.failure(&path, &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::new(
                Exit::AlreadyRunning,
                format!("{taken} with {}: see jump status, or stop it with jump down", self.path.display()),
            )),
            Err(error) => Err(self.failure(&path, &error.into())),
        }
    }

    /// The profile.
    ///
    /// # Errors
    /// [`Exit::NotEnrolled`] when there is none.
    pub fn profile(&self) -> Result<Profile, Failure> {
        let path = self.path.join("profile.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.not_enrolled()),
            Err(error) => return Err(self.failure(&path, &error)),
        };
        toml::from_str(&text)
            .map_err(|error| Failure::because(Exit::Failed, format_args!("{}", path.display()), &error))
    }

    /// True when a profile is there.
    pub fn is_enrolled(&self) -> bool {
        self.path.join("profile.toml").exists()
    }

    /// Writes the profile.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn write_profile(&self, profile: &Profile) -> Result<(), Failure> {
        let text = toml::to_string_pretty(profile)
            .map_err(|error| Failure::because(Exit::Failed, "cannot write the profile", &error))?;
        self.write("profile.toml", text.as_bytes())
    }

    /// The device's key.
    ///
    /// # Errors
    /// [`Exit::NotEnrolled`] when there is none; a key that others can read is refused.
    pub fn device_key(&self) -> Result<DeviceSecret, Failure> {
        self.read_key(KEY)?.ok_or_else(|| self.not_enrolled())
    }

    /// The device's key, made where it is missing.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn device_key_or_new(&self, entropy: &mut dyn Entropy) -> Result<DeviceSecret, Failure> {
        self.key_or_new(KEY, entropy)
    }

    /// The key of an enrolment that will replace this one, kept beside the present key so that a retry finds it.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn next_device_key(&self, entropy: &mut dyn Entropy) -> Result<DeviceSecret, Failure> {
        self.key_or_new(NEXT_KEY, entropy)
    }

    /// The key that will replace the present one by rotation. On disk before control hears of it, so that a rotation that
    /// was interrupted at any point is finished by asking again.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn rotated_key(&self, entropy: &mut dyn Entropy) -> Result<DeviceSecret, Failure> {
        self.key_or_new(ROTATED_KEY, entropy)
    }

    /// True when a rotation was begun and not finished.
    pub fn is_rotating(&self) -> bool {
        self.path.join(ROTATED_KEY).exists()
    }

    /// Control has taken the rotated key: it becomes the device's key. The session goes on under it.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn finish_rotation(&self) -> Result<(), Failure> {
        let path = self.path.join(KEY);
        let renamed =
            fs::rename(self.path.join(ROTATED_KEY), &path).and_then(|()| File::open(&self.path)?.sync_all());
        renamed.map_err(|error| self.failure(&path, &error))
    }

    /// Keeps a second rotation from running beside the first.
    ///
    /// # Errors
    /// When one runs.
    pub fn lock_rotation(&self) -> Result<Lock, Failure> {
        self.lock_file("rotation.lock", "a key rotation already runs")
    }

    /// The next key becomes the device's key; profile and session of the old one are forgotten.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn replace_device(&self) -> Result<(), Failure> {
        for name in ["profile.toml", "session.json", ROTATED_KEY] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failure(&path, &error)),
            }
        }
        let path = self.path.join(KEY);
        fs::rename(self.path.join(NEXT_KEY), &path).map_err(|error| self.failure(&path, &error))
    }

    /// The stored session; an empty one when there is none. A damaged file is an error: guessing a sequence number
    /// could reuse one.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn session(&self) -> Result<Stored, Failure> {
        let path = self.path.join("session.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::default()),
            Err(error) => return Err(self.failure(&path, &error)),
        };
        let damaged = |error: &dyn std::error::Error| {
            let what = format!("{} is damaged; remove it to start a new session", path.display());
            Failure::because(Exit::Failed, what, error)
        };
        let file: SessionFile = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
        let session = file.session_id.map(|id| id.parse()).transpose().map_err(|error| damaged(&error))?;
        Ok(Stored {
            session,
            epoch: Epoch(file.epoch),
            attach_seq: AttachSeq(file.attach_seq),
            inner: file.inner_addresses,
            roster: file.roster,
            doors: file.doors.into_iter().map(Into::into).collect(),
        })
    }

    /// Writes the session durably: a crash leaves the old or the new one.
    ///
    /// # Errors
    /// A line that says what to do.
    pub fn write_session(&self, stored: &Stored) -> Result<(), Failure> {
        let file = SessionFile {
            session_id: stored.session.map(|id| id.to_string()),
            epoch: stored.epoch.0,
            attach_seq: stored.attach_seq.0,
            inner_addresses: stored.inner.clone(),
            roster: stored.roster.clone(),
            doors: stored.doors.iter().copied().map(Into::into).collect(),
        };
        let text = serde_json::to_string(&file)
            .map_err(|error| Failure::because(Exit::Failed, "cannot write the session", &error))?;
        self.write("session.json", text.as_bytes())
    }

    fn key_or_new(&self, name: &str, entropy: &mut dyn Entropy) -> Result<DeviceSecret, Failure> {
        if let Some(key) = self.read_key(name)? {
            return Ok(key);
        }
        let key = DeviceSecret::generate(entropy).map_err(|error: EntropyError| {
            Failure::because(Exit::Failed, "cannot make a device key", &error)
        })?;
        let text = Zeroizing::new(hex::encode(key.expose()) + "\n");
        self.write(name, text.as_bytes())?;
        Ok(key)
    }

    fn read_key(&self, name: &str) -> Result<Option<DeviceSecret>, Failure> {
        let path = self.path.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failure(&path, &error)),
        };
        let mode = file.metadata().map_err(|error| self.failure(&path, &error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Failure::other(format!(
                "{0} can be read by others: chmod 600 {0}, and enrol the device again if it may have been copied",
                path.display()
            )));
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(|error| self.failure(&path, &error))?;
        let bytes = hex::decode_key(text.trim()).map(Zeroizing::new).ok_or_else(|| {
            Failure::other(format!("{} is damaged: enrol the device again", path.display()))
        })?;
        Ok(Some(DeviceSecret::from_bytes(*bytes)))
    }

    /// Writes `name` so that a crash leaves the old content or the new one, and neither is lost afterwards.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!(".{name}.new"));
        let written = (|| {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        })();
        written.map_err(|error| self.failure(&path, &error))
    }

    fn not_enrolled(&self) -> Failure {
        Failure::new(
            Exit::NotEnrolled,
            format!(
                "this device is not enrolled ({} has no profile): get a token from the operator and run jump enroll",
                self.path.display()
            ),
        )
    }

    fn failure(&self, path: &Path, error: &io::Error) -> Failure {
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Failure::new(
                Exit::Permission,
                format!("no permission for {}: run as root, or give another --state-dir", path.display()),
            );
        }
        Failure::because(Exit::Failed, path.display(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jump_crypto::entropy::OsEntropy;

    fn dir() -> (tempfile::TempDir, StateDir) {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::new(&temporary.path().join("jump"));
        state.create().unwrap();
        (temporary, state)
    }

    #[test]
    fn the_session_survives_its_file() {
        let (_keep, state) = dir();
        assert_eq!(state.session().unwrap(), Stored::default());
        let stored = Stored {
            session: Some("6f2c1a58-57a0-4a6f-8a0f-2d1f7c3a9b10".parse().unwrap()),
            epoch: Epoch(7),
            attach_seq: AttachSeq(u64::MAX),
            inner: vec!["10.64.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            roster: vec!["192.0.2.1:51820".parse().unwrap()],
            doors: vec![Door { transport: Transport::Tls, port: 443 }],
        };
        state.write_session(&stored).unwrap();
        assert_eq!(state.session().unwrap(), stored);
    }

    #[test]
    fn a_damaged_session_is_not_guessed_at() {
        let (_keep, state) = dir();
        for bad in
            ["", "{", "{}", r#"{"session_id":"x","epoch":1,"attach_seq":1,"inner_addresses":[],"roster":[]}"#]
        {
            fs::write(state.path().join("session.json"), bad).unwrap();
            assert!(state.session().is_err(), "{bad:?} was read");
        }
    }

    #[test]
    fn the_device_key_is_made_once_and_closed_to_others() {
        let (_keep, state) = dir();
        let mut entropy = OsEntropy::new().unwrap();
        let first = state.device_key_or_new(&mut entropy).unwrap().public();
        assert_eq!(state.device_key_or_new(&mut entropy).unwrap().public(), first);
        let path = state.path().join("device.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(state.device_key().is_err(), "a key that others can read was used");
    }

    #[test]
    fn a_second_process_is_told_that_the_first_runs() {
        let (_keep, state) = dir();
        let _lock = state.lock().unwrap();
        assert_eq!(state.lock().unwrap_err().exit, Exit::AlreadyRunning);
    }

    #[test]
    fn a_device_that_is_not_enrolled_is_told_what_to_do() {
        let (_keep, state) = dir();
        let failure = state.profile().unwrap_err();
        assert_eq!(failure.exit, Exit::NotEnrolled);
        assert!(failure.text.contains("jump enroll"));
    }

    #[test]
    fn a_profile_with_an_unknown_key_is_refused() {
        let (_keep, state) = dir();
        fs::write(state.path().join("profile.toml"), "device_nam = \"x\"\n").unwrap();
        assert!(state.profile().unwrap_err().text.contains("device_nam"));
    }
}
