//! What a run ran on.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// Machine, kernel, versions, commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// When it began, UTC.
    pub date: String,
    /// The command line.
    pub command: String,
    /// The commit that the program was built from, `-dirty` when the tree had changes; where the build did not say, the
    /// checkout that it ran in, and that it is that.
    pub commit: String,
    /// Which build of the programs.
    pub profile: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Programs that others wrote.
    pub versions: Vec<String>,
    /// Load average of the last minute when it began: above the processors' number, others were at work.
    pub load: String,
}

/// What `make` says at build time; a plain `cargo build` says nothing.
const BUILT_FROM: Option<&str> = option_env!("JUMP_COMMIT");

impl Environment {
    /// Looks around.
    pub fn capture() -> Self {
        let first_line = |text: String| text.lines().next().unwrap_or_default().trim().to_owned();
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&file("/proc/meminfo"), "MemTotal");
        let memory_kib: u64 = memory.trim_end_matches("kB").trim().parse().unwrap_or(0);
        let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
        let commit = match BUILT_FROM {
            Some(commit) if !commit.is_empty() => commit.to_owned(),
            _ => format!(
                "not recorded by the build (ran in a checkout of {})",
                first_line(output("git", &describe))
            ),
        };
        let profile = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.file_name()?.to_string_lossy().into_owned()));
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        Self {
            date: first_line(output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
            command: format!("jump-lab {}", arguments.join(" ")),
            commit,
            profile: profile.unwrap_or_default(),
            kernel: first_line(file("/proc/sys/kernel/osrelease")),
            cpu: field(&file("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(0, Into::into),
            memory_mib: memory_kib / 1024,
            versions: vec![first_line(output("etcd", &["--version"])), first_line(output("ip", &["-V"]))],
            load: file("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
