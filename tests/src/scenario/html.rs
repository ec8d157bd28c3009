//! The report for people: one HTML file that needs nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::report::{GapSeen, Moment, Report, number};
use crate::lab::overhead::Overhead;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;
/// Room above and to the right.
const TOP: f64 = 8.0;
/// Colours of the curves, told apart by people who see red and green alike.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2rem auto;padding:0 1rem;color:#1a1a1a}\
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
.held{color:#00704a}.broken{color:#b00020;font-weight:600}.note{color:#555}svg{width:100%;height:auto;background:#fafafa}\
svg text{font:11px system-ui,sans-serif;fill:#444}details{margin:.5rem 0}code,pre{font-size:12px;overflow-x:auto}";

/// The whole page.
pub fn page(report: &Report) -> String {
    let scenario = &report.scenario;
    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style><h1>{0}</h1><p>{1}</p>",
        escape(&scenario.title),
        escape(&scenario.about)
    );
    let verdict =
        if report.passes() { ("held", "Everything held.") } else { ("broken", "Not everything held.") };
    let _ = write!(html, "<p class=\"{}\">{}</p>", verdict.0, verdict.1);
    verdicts(&mut html, report);
    recoveries(&mut html, report);
    timeline(&mut html, report);
    let _ = write!(
        html,
        "<h2>All numbers</h2><details><summary>{} metrics</summary><table>",
        report.metrics.len()
    );
    for (name, value) in &report.metrics {
        let _ = write!(html, "<tr><td>{}<td>{}", escape(name), number(*value));
    }
    html += "</table></details>";
    happened(&mut html, report);
    environment(&mut html, report);
    html += "</html>\n";
    html
}

fn verdicts(html: &mut String, report: &Report) {
    if !report.verdicts.is_empty() {
        *html += "<h2>Criteria</h2><table><tr><th>what must hold<th>measured<th>bound<th>";
    }
    for verdict in &report.verdicts {
        let criterion = &verdict.criterion;
        let over = criterion.over.as_ref().map(|over| format!(" / {over}")).unwrap_or_default();
        let bounds = [("≥ ", criterion.min), ("≤ ", criterion.max)];
        let bounds: Vec<_> =
            bounds.iter().filter_map(|(sign, bound)| Some(format!("{sign}{}", number((*bound)?)))).collect();
        let (class, word) = match (verdict.holds, verdict.value) {
            (true, Some(_)) => ("held", "held"),
            (true, None) => ("note", ""),
            (false, _) => ("broken", "broken"),
        };
        let _ = write!(
            html,
            "<tr><td>{}<br><span class=\"note\"><code>{}{}</code></span><td>{}<td>{}<td class=\"{class}\">{word}",
            escape(&criterion.says),
            escape(&criterion.metric),
            escape(&over),
            verdict.value.map_or("not measured".to_owned(), number),
            bounds.join(", ")
        );
    }
    *html += "</table>";
    for violation in &report.violations {
        let _ = write!(html, "<p class=\"broken\">{}</p>", escape(violation));
    }
}

fn recoveries(html: &mut String, report: &Report) {
    if report.recoveries.is_empty() {
        return;
    }
    *html += "<h2>Recovery by cause</h2><p class=\"note\">Milliseconds from the fault: to the first echo, over every device \
              that waited for an echo for longer than two probes and 50 ms; to the verified grant, over every device that changed \
              owner.</p><table><tr><th>cause<th>gaps<th>p50<th>p99<th>max<th>moved<th>p50<th>p99<th>max";
    for (cause, recovery) in &report.recoveries {
        let (echo, grant) = (&recovery.first_echo, &recovery.reattach);
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{:.0}<td>{:.0}<td>{:.0}<td>{}<td>{:.0}<td>{:.0}<td>{:.0}",
            escape(cause),
            echo.count,
            echo.p50_ms,
            echo.p99_ms,
            echo.max_ms,
            grant.count,
            grant.p50_ms,
            grant.p99_ms,
            grant.max_ms
        );
    }
    *html += "</table>";
    let curves: Vec<Curve> = report
        .recoveries
        .iter()
        .filter(|(_, recovery)| recovery.samples_ms.len() > 1)
        .map(|(cause, recovery)| {
            let last = (recovery.samples_ms.len() - 1) as f64;
            let points = recovery.samples_ms.iter().enumerate().map(|(i, ms)| (*ms, 100.0 * i as f64 / last));
            Curve { name: cause.clone(), points: points.collect() }
        })
        .collect();
    if !curves.is_empty() {
        chart(
            html,
            "Share of the interrupted devices that were back, in %, by milliseconds since the fault",
            &curves,
            &[],
        );
    }
}

fn timeline(html: &mut String, report: &Report) {
    if report.timeline.len() < 3 {
        return;
    }
    let marks: Vec<_> = report
        .done
        .iter()
        .filter(|step| !step.ends)
        .map(|step| (step.at_ms / 1000.0, step.cause.as_str()))
        .collect();
    *html += "<h2>While it ran</h2>";
    let per_second = |of: fn(&Moment) -> u64| -> Vec<(f64, f64)> {
        report
            .timeline
            .windows(6)
            .step_by((report.timeline.len() / 600).max(1))
            .filter_map(|window| {
                let (first, last) = (window.first()?, window.last()?);
                let seconds = (last.at_ms - first.at_ms) / 1000.0;
                Some((last.at_ms / 1000.0, (of(last) - of(first)) as f64 / seconds.max(0.001)))
            })
            .collect()
    };
    let traffic = [
        Curve { name: "sent".into(), points: per_second(|moment| moment.sent) },
        Curve { name: "answered".into(), points: per_second(|moment| moment.answered) },
    ];
    chart(html, "Probes per second, by seconds since the start", &traffic, &marks);
    let both = traffic[0].points.iter().zip(&traffic[1].points);
    let lost = both.filter(|((_, sent), _)| *sent > 0.0).map(|((at, sent), (_, answered))| {
        // An echo may come in the window after its probe's.
        (*at, 100.0 * (1.0 - answered / sent).clamp(0.0, 1.0))
    });
    let lost = [Curve { name: "unanswered".into(), points: lost.collect() }];
    chart(html, "Probes without an echo, in % of those sent", &lost, &marks);
    let attaches = [Curve { name: "reattached".into(), points: per_second(|moment| moment.reattached) }];
    chart(html, "Changes of owner per second", &attaches, &marks);
    gaps(html, report, &marks);
}

/// Each gap as a bar, one line per device that had any.
fn gaps(html: &mut String, report: &Report, marks: &[(f64, &str)]) {
    let low = report.timeline.first().map_or(0.0, |moment| moment.at_ms / 1000.0);
    let high = report.timeline.last().map_or(1.0, |moment| moment.at_ms / 1000.0);
    let shown = |gap: &&GapSeen| gap.to_ms / 1000.0 > low && gap.from_ms / 1000.0 < high;
    let gaps: Vec<_> = report.gaps.iter().filter(shown).collect();
    if gaps.is_empty() {
        return;
    }
    let devices: BTreeSet<u32> = gaps.iter().map(|gap| gap.device).collect();
    let place: BTreeMap<u32, f64> = devices.iter().copied().zip((0u32..).map(f64::from)).collect();
    let axes = Axes { low, high, top: devices.len() as f64 };
    let x_of = |ms: f64| axes.x_of((ms / 1000.0).clamp(low, high));
    let bars: String = gaps
        .iter()
        .map(|gap| {
            let y = axes.y_of(place[&gap.device] + 0.5);
            let (from, to) = (x_of(gap.from_ms), x_of(gap.to_ms));
            format!(
                "<line x1=\"{from:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"><title>device {}: {:.0} ms</title></line>",
                to.max(from + 1.0),
                gap.device,
                gap.to_ms - gap.from_ms
            )
        })
        .collect();
    let thickness = (0.7 * (HEIGHT - BOTTOM - TOP) / devices.len() as f64).clamp(1.0, 6.0);
    open_chart(
        html,
        "Gaps: each bar is a device's wait for an echo, each line a device that had one; by seconds since the start",
        &axes,
        marks,
        false,
    );
    let _ = write!(
        html,
        "<g stroke=\"{}\" stroke-width=\"{thickness:.1}\" stroke-opacity=\"0.75\">{bars}</g></svg>",
        COLOURS[1]
    );
}

struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What a chart shows: from `low` to `high` on one axis, from zero to `top` on the other.
struct Axes {
    low: f64,
    high: f64,
    top: f64,
}

impl Axes {
    fn x_of(&self, x: f64) -> f64 {
        LEFT + (x - self.low) / (self.high - self.low).max(1e-9) * (WIDTH - LEFT - TOP)
    }

    fn y_of(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - y / self.top * (HEIGHT - BOTTOM - TOP)
    }
}

/// The beginning of a chart, up to what it shows. `values`: whether the upright axis has numbers.
fn open_chart(html: &mut String, title: &str, axes: &Axes, marks: &[(f64, &str)], values: bool) {
    let _ = write!(
        html,
        "<p class=\"note\">{}</p><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{0}\">",
        escape(title),
        HEIGHT + 22.0
    );
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        let (x, y) = (axes.low + (axes.high - axes.low) * share, axes.top * share);
        let _ = write!(
            html,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#e3e3e3\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text><text x=\"{4:.1}\" y=\"{5}\" text-anchor=\"middle\">{6}</text>",
            axes.y_of(y),
            LEFT - 6.0,
            axes.y_of(y) + 4.0,
            if values { tick(y) } else { String::new() },
            axes.x_of(x),
            HEIGHT - BOTTOM + 16.0,
            tick(x)
        );
    }
    for (x, name) in marks.iter().filter(|(x, _)| (axes.low..=axes.high).contains(x)) {
        let _ = write!(
            html,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\" stroke=\"#b00020\" stroke-dasharray=\"3 3\"><title>{2}</title></line>",
            axes.x_of(*x),
            HEIGHT - BOTTOM,
            escape(name)
        );
    }
}

fn chart(html: &mut String, title: &str, curves: &[Curve], marks: &[(f64, &str)]) {
    let all = || curves.iter().flat_map(|curve| curve.points.iter());
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let axes = Axes { low, high, top: all().map(|(_, y)| *y).fold(1e-9, f64::max) * 1.05 };
    open_chart(html, title, &axes, marks, true);
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: String =
            curve.points.iter().map(|(x, y)| format!("{:.1},{:.1} ", axes.x_of(*x), axes.y_of(*y))).collect();
        let _ = write!(
            html,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"><title>{0}</title></polyline>\
             <rect x=\"{1:.0}\" y=\"{2}\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{3:.0}\" y=\"{4}\">{0}</text>",
            escape(&curve.name),
            LEFT + 105.0 * i as f64,
            HEIGHT + 6.0,
            LEFT + 105.0 * i as f64 + 14.0,
            HEIGHT + 15.0
        );
    }
    *html += "</svg>";
}

fn tick(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn happened(html: &mut String, report: &Report) {
    let _ = write!(
        html,
        "<h2>What was done</h2><p class=\"note\">Seed {}: the same seed gives the same schedule.</p><details><summary>{} steps</summary><table>",
        report.scenario.seed,
        report.done.len()
    );
    for step in &report.done {
        let over = if step.ends { " (over)" } else { "" };
        let _ = write!(
            html,
            "<tr><td>{}{over}<td>{}<td>{:.3} s<td>took {:.0} ms",
            escape(&step.cause),
            escape(&step.text),
            step.at_ms / 1000.0,
            step.took_ms
        );
    }
    *html += "</table></details>";
}

fn environment(html: &mut String, report: &Report) {
    let environment = &report.environment;
    *html += "<h2>Where</h2><table>";
    let rows = [
        ("date", environment.date.clone()),
        ("command", environment.command.clone()),
        ("commit, build", format!("{}, {}", environment.commit, environment.profile)),
        ("machine", format!("{} × {}, {} MiB", environment.cpus, environment.cpu, environment.memory_mib)),
        ("kernel", environment.kernel.clone()),
        ("load before", environment.load.clone()),
        ("with", environment.versions.join(", ")),
        ("relay", report.relay.as_ref().map_or("none".to_owned(), Overhead::text)),
    ];
    for (name, value) in rows {
        let _ = write!(html, "<tr><td>{name}<td>{}", escape(&value));
    }
    *html +=
        "</table><p class=\"note\">Devices, gateways, control, store and server share this one machine.</p>";
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
