//! The machine: device files, privileges, the kernel's features, clocks, randomness, networks, ports.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::time::Duration;

use jump_crypto::entropy::OsEntropy;

use crate::Finding;

/// Bytes that a record and its UDP and IPv6 headers add to an inner packet.
const OVERHEAD: u64 = 32 + 8 + 40;
/// The bit of `CAP_NET_ADMIN`.
const NET_ADMIN: u64 = 1 << 12;
/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// `/dev/net/tun` is there and can be opened.
pub fn tun() -> Finding {
    let path = Path::new("/dev/net/tun");
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::fine("tun", "/dev/net/tun can be opened"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::problem(
            "tun",
            "/dev/net/tun does not exist",
            "modprobe tun; in a container, pass the device /dev/net/tun",
        ),
        Err(error) => Finding::problem(
            "tun",
            format!("cannot open /dev/net/tun: {error}"),
            "run as root, or allow the device to this user or container",
        ),
    }
}

/// This process may create interfaces and routes.
pub fn net_admin() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective(&status) {
        Some(effective) if effective & NET_ADMIN != 0 => Finding::fine("net-admin", "CAP_NET_ADMIN is held"),
        Some(_) => Finding::problem(
            "net-admin",
            "CAP_NET_ADMIN is missing: no interface or route can be made",
            "run as root, or with AmbientCapabilities=CAP_NET_ADMIN",
        ),
        None => Finding::warning("net-admin", "/proc/self/status cannot be read", "mount /proc"),
    }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The kernel sends and receives runs of datagrams in one call.
pub fn udp_offload() -> Finding {
    let state =
        UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| quinn_udp::UdpSocketState::new((&socket).into()));
    match state {
        Ok(state) => {
            let (send, receive) = (state.max_gso_segments(), state.gro_segments());
            if send > 1 && receive > 1 {
                Finding::fine("udp-offload", format!("UDP segmentation {send}, receive offload {receive}"))
            } else {
                Finding::warning(
                    "udp-offload",
                    format!(
                        "UDP segmentation {send}, receive offload {receive}: every datagram costs a call"
                    ),
                    "use Linux 5.0 or newer",
                )
            }
        }
        Err(error) => Finding::problem("udp-offload", format!("no UDP socket: {error}"), "allow AF_INET"),
    }
}

/// The machine passes packets on between its interfaces.
pub fn forwarding() -> Finding {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim() == "1");
    match read("/proc/sys/net/ipv4/ip_forward") {
        Ok(true) => match read("/proc/sys/net/ipv6/conf/all/forwarding") {
            Ok(false) => Finding::warning(
                "forwarding",
                "IPv4 is forwarded, IPv6 is not",
                "sysctl -w net.ipv6.conf.all.forwarding=1, if there is an IPv6 pool",
            ),
            Ok(true) | Err(_) => Finding::fine("forwarding", "packets are forwarded"),
        },
        Ok(false) => Finding::problem(
            "forwarding",
            "IPv4 forwarding is off: nothing reaches the inner network",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        Err(error) => Finding::warning("forwarding", format!("cannot tell: {error}"), "mount /proc/sys"),
    }
}

/// The clock that leases are counted by is a good one, and the wall clock is not absurd. `now` is in seconds since the
/// Unix epoch, `built` the time of the program's build.
pub fn clocks(now: u64, built: u64) -> Finding {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    judge_clocks(source.as_deref().unwrap_or("unknown").trim(), now, built)
}

fn judge_clocks(source: &str, now: u64, built: u64) -> Finding {
    if now < built {
        return Finding::problem(
            "clocks",
            "the wall clock lies before this program's release: certificates and grants will be refused",
            "set the clock: timedatectl set-ntp true",
        );
    }
    match source {
        "jiffies" | "refined-jiffies" => Finding::warning(
            "clocks",
            format!("the clock source {source} is coarse and drifts; leases are counted by it"),
            "choose another in /sys/devices/system/clocksource, or another hypervisor setting",
        ),
        _ => Finding::fine("clocks", format!("clock source {source}, wall clock plausible")),
    }
}

/// The operating system's generator passes the tests of SP 800-90B.
pub fn entropy() -> Finding {
    match OsEntropy::new() {
        Ok(_) => Finding::fine("entropy", "the system's generator passes its tests"),
        Err(error) => Finding::problem(
            "entropy",
            error.to_string(),
            "do not run here: keys made on this machine could be guessed",
        ),
    }
}

/// Every interface that is up carries an inner packet of `inner` bytes whole.
pub fn mtu(inner: u16) -> Finding {
    let needed = u64::from(inner) + OVERHEAD;
    let mut small = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let up = read("operstate").trim() == "up";
        if let Ok(mtu) = read("mtu").trim().parse::<u64>()
            && up
            && mtu < needed
        {
            small.push(format!("{} has {mtu}", entry.file_name().to_string_lossy()));
        }
    }
    if small.is_empty() {
        Finding::fine("mtu", format!("no interface is too small for inner packets of {inner} bytes"))
    } else {
        small.sort();
        Finding::warning(
            "mtu",
            format!("an inner packet of {inner} bytes needs {needed} outside: {}", small.join(", ")),
            "raise the interface's MTU or lower the tunnel's, unless clients do not come this way",
        )
    }
}

/// The UDP port can be taken, or is taken already.
pub fn udp_port(check: &'static str, address: SocketAddr) -> Finding {
    judge_port(check, "UDP", address, UdpSocket::bind(address).map(drop))
}

/// The TCP port can be taken, or is taken already.
pub fn tcp_port(check: &'static str, address: SocketAddr) -> Finding {
    judge_port(check, "TCP", address, TcpListener::bind(address).map(drop))
}

fn judge_port(check: &'static str, kind: &str, address: SocketAddr, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::fine(check, format!("{kind} {address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::warning(
            check,
            format!("{kind} {address} is in use"),
            "fine if this program runs already; otherwise stop what uses it",
        ),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            Finding::problem(check, format!("this machine has no address {address}"), "correct the setting")
        }
        Err(error) => Finding::problem(
            check,
            format!("cannot listen on {kind} {address}: {error}"),
            "choose a port above 1023, or run as root",
        ),
    }
}

/// A TCP connection to `endpoint` (`host:port`, with or without a scheme) can be made. Blocks for two seconds at most for
/// each address.
pub fn reachable(check: &'static str, endpoint: &str) -> Finding {
    let bare = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/');
    let addresses: Vec<SocketAddr> = match bare.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return Finding::problem(
                check,
                format!("{bare} cannot be looked up: {error}"),
                "correct the name, or the machine's resolver",
            );
        }
    };
    let mut last = io::Error::other("it has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(_) => return Finding::fine(check, format!("{bare} answers")),
            Err(error) => last = error,
        }
    }
    Finding::problem(
        check,
        format!("{bare} cannot be reached: {last}"),
        "start it, or open the way: address, port, firewall",
    )
}

/// The directory's file system has room.
pub fn room(check: &'static str, directory: &Path, needed_bytes: u64) -> Finding {
    match rustix::fs::statvfs(directory) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let shown = format!("{} MiB are free at {}", free >> 20, directory.display());
            if free >= needed_bytes {
                Finding::fine(check, shown)
            } else {
                Finding::warning(check, shown, format!("make room: {} MiB at least", needed_bytes >> 20))
            }
        }
        Err(error) => Finding::problem(
            check,
            format!("cannot look at {}: {error}", directory.display()),
            "make the directory, or choose another",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn capabilities_are_read_as_the_kernel_writes_them() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000001000\n"), Some(NET_ADMIN));
        assert_eq!(effective("CapEff:\tzz"), None);
        assert_eq!(effective(""), None);
    }

    #[test]
    fn a_clock_before_the_release_is_a_problem_and_a_coarse_one_a_warning() {
        assert_eq!(judge_clocks("tsc", 100, 101).level, Level::Problem);
        assert_eq!(judge_clocks("jiffies", 101, 101).level, Level::Warning);
        assert_eq!(judge_clocks("tsc", 101, 101).level, Level::Fine);
    }

    #[test]
    fn a_port_in_use_is_named_and_a_foreign_address_is_a_problem() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert_eq!(tcp_port("port", taken.local_addr().unwrap()).level, Level::Warning);
        assert_eq!(tcp_port("port", "192.0.2.1:7443".parse().unwrap()).level, Level::Problem);
        assert_eq!(udp_port("port", "127.0.0.1:0".parse().unwrap()).level, Level::Fine);
    }

    #[test]
    fn an_endpoint_that_answers_is_fine_and_one_that_does_not_has_a_fix() {
        let there = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = there.local_addr().unwrap();
        assert_eq!(reachable("control", &format!("https://{address}")).level, Level::Fine);
        drop(there);
        let gone = reachable("control", &address.to_string());
        assert_eq!((gone.level, gone.fix.is_empty()), (Level::Problem, false));
        assert_eq!(reachable("control", "no port").level, Level::Problem);
    }

    #[test]
    fn every_check_of_this_machine_gives_a_finding_with_a_fix_unless_it_is_fine() {
        let findings =
            [tun(), net_admin(), udp_offload(), forwarding(), clocks(u64::MAX, 0), entropy(), mtu(1280)];
        for finding in findings {
            assert_eq!(finding.fix.is_empty(), finding.level == Level::Fine, "{finding:?}");
        }
        assert_eq!(room("room", Path::new("/nowhere/at/all"), 1).level, Level::Problem);
    }
}
