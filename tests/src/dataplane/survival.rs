//! What tunnels live through: loss on the way, a new address of the client, the death of the gateway's process. One tunnel at
//! a time, each on a line of its own, with one gateway: this one too, which has a second one for that elsewhere.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::line::Line;
use super::peers::{self, Setup};
use crate::lab::histogram::millis;
use crate::lab::network::nft;
use crate::lab::probe::{EchoServer, INTERVAL, Probe};
use crate::lab::run_dir::RunDir;
use crate::scenario::environment::Environment;

/// How long a tunnel may take to come back.
const BACK_MAX: Duration = Duration::from_secs(30);
/// How long packets are lost.
const LOSSY: Duration = Duration::from_secs(10);
/// Of a hundred packets, each way.
const LOST_PERCENT: u32 = 2;
/// Echoes after which a tunnel is back.
const BACK: usize = 40;
const ECHO_PORT: u16 = 7;

/// What one tunnel lived through.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// What it says of itself.
    pub version: String,
    /// Share of probes answered while packets were lost each way.
    pub delivery: f64,
    /// The longest time without an echo after a new address; `None` when it was not back in time.
    pub roam: Option<Duration>,
    /// The same after SIGKILL of the gateway's process.
    pub killed: Option<Duration>,
}

/// Brings up one tunnel after another and takes them through all of it. Those that are not installed are left out.
///
/// # Errors
/// When a line cannot be made, or an installed tunnel does not come up.
pub fn measure(tools: &Path, wanted: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (n, (name, start)) in (1..).zip(peers::ALL) {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
        if name == "raw" || !is_wanted {
            continue;
        }
        let run = RunDir::create("survival")?;
        let line = Line::create(&run.prefix())?;
        let setup = Setup { line: &line, tools, dir: run.path() };
        let Some(tunnel) = start(&setup, n).with_context(|| format!("bringing {name} up"))? else {
            eprintln!("{name} is not installed and left out");
            continue;
        };
        let echo = EchoServer::start_at(&line.server, SocketAddr::from((tunnel.target, ECHO_PORT)))?;
        let probe = Probe::start(&line.client, echo.address())?;
        probe.wait_for_echoes(BACK, BACK_MAX).with_context(|| format!("{name} carries nothing"))?;
        eprintln!("{name} is up");

        let from = Instant::now();
        let lossy = format!("numgen random mod 100 < {LOST_PERCENT} drop");
        nft(
            &line.gateway.namespace,
            &format!(
                "table ip lossy {{ chain in {{ type filter hook prerouting priority -300; iifname \"wan\" {lossy}; }}; \
                 chain out {{ type filter hook postrouting priority 300; oifname \"wan\" {lossy}; }}; }}\n"
            ),
        )?;
        std::thread::sleep(LOSSY);
        let seen = probe.report_since(Some(from));
        nft(&line.gateway.namespace, "delete table ip lossy\n")?;
        let delivery = seen.answered as f64 / seen.sent.max(1) as f64;

        // Its own subnet, so that it does not go with the old one.
        let roam = gap(&probe, || {
            line.client.namespace.ip("addr add 10.90.0.77/25 dev wan\naddr del 10.90.0.2/24 dev wan")
        })?;
        let killed = match roam {
            Some(_) => gap(&probe, || tunnel.kill_gateway())?,
            // What is not there cannot be interrupted.
            None => None,
        };
        rows.push(Row { name, version: tunnel.version.clone(), delivery, roam, killed });
    }
    Ok(rows)
}

/// The longest time without an echo that `event` causes; `None` when there were too few after it in time.
fn gap(probe: &Probe, event: impl FnOnce() -> Result<()>) -> Result<Option<Duration>> {
    let from = Instant::now();
    event()?;
    // Echoes that were under way belong to before.
    std::thread::sleep(Duration::from_millis(50));
    let back = probe.wait_for_echoes(BACK, BACK_MAX);
    Ok(back.is_ok().then(|| probe.report_since(Some(from)).longest_gap))
}

/// What a tunnel needs, besides its program, to be back after the death of its gateway's process.
fn needs(name: &str) -> &'static str {
    match name {
        "jump" => "nothing: its supervisor starts another worker",
        "openvpn" => {
            "`--float` for a new address (given here); something that starts the process again, `--ping-restart` \
             on the client to notice, and its routes set again"
        }
        "nebula" => "something that starts the process again",
        _ => {
            "something that starts the process again and sets interface, address, routes, keys and peers \
             (as `wg-quick` does)"
        }
    }
}

/// The rows as Markdown, with where they were measured.
pub fn markdown(rows: &[Row]) -> String {
    let interval = INTERVAL.as_millis();
    let mut text = format!(
        "| Tunnel | {LOST_PERCENT} % lost each way: probes answered | New address: longest gap | Gateway's process killed: \
         longest gap | What that needs |\n|---|---|---|---|---|\n"
    );
    let back = |gap: Option<Duration>| match gap {
        Some(gap) => format!("{:.0} ms", millis(gap)),
        None => format!("not back after {} s", BACK_MAX.as_secs()),
    };
    for row in rows {
        let killed = if row.roam.is_some() { back(row.killed) } else { "not measured".to_owned() };
        let _ = writeln!(
            text,
            "| {} | {:.1} % | {} | {killed} | {} |",
            row.name,
            row.delivery * 100.0,
            back(row.roam),
            needs(row.name)
        );
    }
    let e = Environment::capture();
    let versions: Vec<_> = rows.iter().map(|row| format!("{} {}", row.name, row.version)).collect();
    let _ = writeln!(
        text,
        "\nA probe every {interval} ms, one gateway each. {}, commit {}, {} build, {} × {}, Linux {}. {}.",
        e.date,
        e.commit,
        e.profile,
        e.cpus,
        e.cpu,
        e.kernel,
        versions.join("; ")
    );
    text
}
