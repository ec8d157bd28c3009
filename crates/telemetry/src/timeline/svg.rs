//! The picture of a timeline.

use std::fmt::Write as _;

use super::Timeline;

const WIDTH: f64 = 1000.0;
/// Where the lanes begin, left of it their names.
const LEFT: f64 = 120.0;
const LANE: f64 = 36.0;
const TOP: f64 = 50.0;

/// Colours that people with colour blindness tell apart (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

pub(super) fn draw(timeline: &Timeline) -> String {
    let mut lanes: Vec<&str> = Vec::new();
    for owner in &timeline.owners {
        if !lanes.contains(&owner.node.as_str()) {
            lanes.push(&owner.node);
        }
    }
    let start = timeline.entries.first().map_or(0, |entry| entry.time);
    let end = timeline.entries.last().map_or(start, |entry| entry.time).max(start + 1);
    let x = |time: u64| {
        LEFT + (time.clamp(start, end) - start) as f64 / (end - start) as f64 * (WIDTH - LEFT - 20.0)
    };
    let y = |lane: usize| TOP + lane as f64 * LANE;
    let marks = y(lanes.len()) + 14.0;
    let height = marks + 50.0;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"14\">session {}</text>\n",
        escape(&timeline.session)
    );
    for (lane, node) in lanes.iter().enumerate() {
        let middle = y(lane) + LANE / 2.0;
        let _ = writeln!(svg, "<text x=\"10\" y=\"{}\">{}</text>", middle + 4.0, escape(node));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{middle}\" x2=\"{}\" y2=\"{middle}\" stroke=\"#ddd\"/>",
            WIDTH - 20.0
        );
        for owner in timeline.owners.iter().filter(|owner| owner.node == **node) {
            let (from, to) = (x(owner.from), x(owner.to.unwrap_or(end)));
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"20\" fill=\"{}\"><title>epoch {} {}</title></rect>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"white\">{}</text>",
                y(lane) + 8.0,
                (to - from).max(1.0),
                COLOURS[lane % COLOURS.len()],
                owner.epoch,
                escape(owner.reason.as_deref().unwrap_or_default()),
                from + 4.0,
                y(lane) + 22.0,
                owner.epoch,
            );
        }
    }
    for entry in &timeline.entries {
        let at = x(entry.time);
        if let Some(micros) = entry.without_service_micros {
            // The time without service lies before its end.
            let from = x(entry.time.saturating_sub(micros.div_ceil(1000)));
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#d00\" fill-opacity=\"0.25\"><title>without service {:.1} ms</title></rect>",
                (at - from).max(1.5),
                marks - TOP,
                micros as f64 / 1000.0,
            );
        }
        let colour = if entry.failed { "#d00" } else { "#333" };
        let _ = writeln!(
            svg,
            "<circle cx=\"{at:.1}\" cy=\"{marks:.1}\" r=\"4\" fill=\"{colour}\"><title>{} {} {}</title></circle>",
            escape(&super::timestamp(entry.time)),
            escape(&entry.action),
            escape(entry.reason.as_deref().unwrap_or_default()),
        );
    }
    for (time, anchor) in [(start, "start"), (end, "end")] {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#666\">{}</text>",
            x(time),
            marks + 28.0,
            escape(&super::timestamp(time))
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Names and reasons come from files: nothing in them may become markup.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}
