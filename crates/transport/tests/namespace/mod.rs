//! Network namespaces for tests: made by `ip netns`, removed on drop, entered by single threads.

#![expect(dead_code, reason = "every test binary uses its own part of this module")]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace with its loopback up.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty namespace.
    pub(crate) fn new() -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("jump-t{}-{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        match made {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!(
                "cannot make a network namespace: run the tests as root or with CAP_SYS_ADMIN and CAP_NET_ADMIN ({})",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            Err(error) => panic!("cannot run `ip netns`: install iproute2 ({error})"),
        }
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside; returns what it prints.
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Runs a program inside; returns what it prints.
    pub(crate) fn exec(&self, arguments: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.name], arguments].concat())
    }

    /// Runs `work` on a new thread inside.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace was made");
        thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("cannot enter a network namespace: run the tests as root or with CAP_SYS_ADMIN");
            work()
        })
    }

    /// Runs `work` inside and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Joins two namespaces by a veth pair named `veth` in each, with an address of `network` (of 2) each.
pub(crate) fn join(left: &Namespace, right: &Namespace, addresses: [&str; 2]) {
    left.ip(&["link", "add", "veth", "type", "veth", "peer", "name", "veth", "netns", right.name()]);
    for (namespace, address) in [left, right].into_iter().zip(addresses) {
        namespace.ip(&["addr", "add", address, "dev", "veth", "nodad"]);
        namespace.ip(&["link", "set", "veth", "up"]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
