//! One network namespace: made, configured, entered and removed.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cleanup::Guard;

/// A network namespace under `/run/netns`, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    _undo: Guard,
}

impl Namespace {
    /// Makes the namespace `name` and brings its loopback up.
    ///
    /// # Errors
    /// When the caller is not root, `ip` is missing, or the name exists.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))
            .with_context(|| format!("making network namespace {name} (needs root and iproute2)"))?;
        let undo = {
            let name = name.to_owned();
            Guard::new(move || {
                let _ = run(Command::new("ip").args(["netns", "del", &name]));
            })
        };
        let namespace = Self { name: name.to_owned(), _undo: undo };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name in `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` commands inside, one per line.
    ///
    /// # Errors
    /// The first command that fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("running ip (package iproute2)")?;
        child.stdin.take().context("ip has no stdin")?.write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}: {batch}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Sets a kernel parameter of the namespace, for example `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the kernel has no such parameter.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("setting {key} in {}", self.name))
    }

    /// Runs `f` on a thread inside the namespace. Sockets that it opens stay there for their life.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, rustix::io::Errno>(f())
            });
            match inside.join() {
                Ok(result) => result.with_context(|| format!("entering {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The command line that runs `program` inside, with its process id being the one that is spawned, and dying with
    /// the thread that spawns it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
        command
    }
}

/// Runs a command to its end and fails with what it printed on stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
