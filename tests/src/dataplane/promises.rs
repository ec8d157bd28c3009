//! What is promised of the data plane beside other tunnels, and whether the samples keep it.

use std::fmt::Write as _;

use super::report::Results;

/// This tunnel, and the way without any.
const OWN: &str = "jump";
const RAW: &str = "raw";
/// The other tunnels.
const PEERS: [&str; 5] = ["wireguard-go", "gotatun", "boringtun", "openvpn", "nebula"];

/// Whom a promise compares with.
#[derive(Debug, Clone, Copy)]
enum Than {
    One(&'static str),
    /// Whichever of the others does best.
    BestPeer,
}

/// The bound on this tunnel's value as a multiple of the other's.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

struct Promise {
    text: &'static str,
    measures: &'static [&'static str],
    offloads: bool,
    than: Than,
    bound: Bound,
}

const TCP: &[&str] = &["tcp_up", "tcp_down"];

const PROMISES: [Promise; 9] = [
    Promise {
        text: "TCP, one stream, of wireguard-go's",
        measures: TCP,
        offloads: true,
        than: Than::One("wireguard-go"),
        bound: Bound::AtLeast(2.0),
    },
    Promise {
        text: "TCP, one stream, of gotatun's",
        measures: TCP,
        offloads: true,
        than: Than::One("gotatun"),
        bound: Bound::AtLeast(4.0),
    },
    Promise {
        text: "TCP, one stream, of forwarding without a tunnel",
        measures: TCP,
        offloads: true,
        than: Than::One(RAW),
        bound: Bound::AtLeast(0.30),
    },
    Promise {
        text: "gateway CPU per GB, of wireguard-go's",
        measures: &["cpu_up", "cpu_down"],
        offloads: true,
        than: Than::One("wireguard-go"),
        bound: Bound::AtMost(0.45),
    },
    Promise {
        text: "TCP without underlay offloads, of the best other's",
        measures: TCP,
        offloads: false,
        than: Than::BestPeer,
        bound: Bound::AtLeast(1.3),
    },
    Promise {
        text: "64 B packets/s at < 0.5 % loss, of the best other's",
        measures: &["udp_64_up", "udp_64_down"],
        offloads: true,
        than: Than::BestPeer,
        bound: Bound::AtLeast(2.0),
    },
    Promise {
        text: "1,200 B packets/s at < 0.5 % loss, of the best other's",
        measures: &["udp_1200_up", "udp_1200_down"],
        offloads: true,
        than: Than::BestPeer,
        bound: Bound::AtLeast(2.0),
    },
    Promise {
        text: "ping p50, of the best other's",
        measures: &["ping_p50"],
        offloads: true,
        than: Than::BestPeer,
        bound: Bound::AtMost(1.0),
    },
    Promise {
        text: "ping p99, of wireguard-go's",
        measures: &["ping_p99"],
        offloads: true,
        than: Than::One("wireguard-go"),
        bound: Bound::Below(1.0),
    },
];

/// The promises as a table, each with its ratios and a verdict. `open` where no sample speaks.
pub fn table(results: &Results) -> String {
    let mut text = "| Promise | Bound | Measured | |\n|---|---|---|---|\n".to_owned();
    for promise in &PROMISES {
        let ratios: Vec<_> =
            promise.measures.iter().map(|measure| ratio(results, promise, measure)).collect();
        let verdict = match ratios.iter().copied().collect::<Option<Vec<_>>>() {
            None => "open",
            Some(ratios) if ratios.iter().all(|(ratio, _)| promise.bound.holds(*ratio)) => "met",
            Some(_) => "**not met**",
        };
        let cells: Vec<String> = ratios
            .iter()
            .map(|ratio| match (ratio, promise.than) {
                (None, _) => "–".to_owned(),
                (Some((ratio, _)), Than::One(_)) => format!("{ratio:.2}×"),
                (Some((ratio, peer)), Than::BestPeer) => format!("{ratio:.2}× ({peer})"),
            })
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {verdict} |",
            promise.text,
            promise.bound.text(),
            cells.join(" / ")
        );
    }
    text
}

/// This tunnel's value as a multiple of the other's, and who that is.
fn ratio(results: &Results, promise: &Promise, measure: &str) -> Option<(f64, &'static str)> {
    let of = |peer| results.ratio(OWN, peer, promise.offloads, measure).map(|ratio| (ratio, peer));
    match promise.than {
        Than::One(peer) => of(peer),
        Than::BestPeer => {
            let all = PEERS.into_iter().filter_map(of);
            // The best other is the one beside whom this tunnel looks worst.
            match promise.bound {
                Bound::AtLeast(_) => all.min_by(|a, b| a.0.total_cmp(&b.0)),
                Bound::AtMost(_) | Bound::Below(_) => all.max_by(|a, b| a.0.total_cmp(&b.0)),
            }
        }
    }
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
            Self::Below(bound) => ratio < bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound:.2}×"),
            Self::AtMost(bound) => format!("≤ {bound:.2}×"),
            Self::Below(bound) => format!("< {bound:.2}×"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_other_decides_and_what_nobody_measured_stays_open() {
        let mut results = Results::empty();
        for (tunnel, pings, rate) in
            [("jump", 100.0, 200.0), ("wireguard-go", 150.0, 90.0), ("nebula", 90.0, 101.0)]
        {
            results.note(tunnel, true, "ping_p50", 1, pings);
            results.note(tunnel, true, "udp_64_up", 1, rate);
            results.note(tunnel, true, "udp_64_down", 1, 2.0 * rate);
        }
        let table = table(&results);
        let line = |text: &str| table.lines().find(|line| line.contains(text)).unwrap().to_owned();
        assert!(line("ping p50").contains("1.11× (nebula) | **not met**"), "{table}");
        assert!(line("64 B packets").contains("1.98× (nebula) / 1.98× (nebula) | **not met**"), "{table}");
        assert!(line("of gotatun's").contains("– / – | open"), "{table}");
    }
}
