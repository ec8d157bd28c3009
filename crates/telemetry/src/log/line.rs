//! The layer that turns events, with the fields of the spans around them, into lines.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::sync::OnceLock;

use opentelemetry::trace::TraceContextExt;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::dispatcher::WeakDispatch;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Level, Subscriber, span};
use tracing_opentelemetry::get_otel_context;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::writer::QueueWriter;
use super::{Format, LogConfig};

/// The longest text of one field, in bytes; the rest is cut off.
const FIELD_BYTES_MAX: usize = 4096;

/// The longest line, in bytes; a longer one is dropped down to its fixed names and message.
const LINE_BYTES_MAX: usize = 32 * 1024;

const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Names that an event's own fields cannot take.
const RESERVED: &[&str] = &["ts", "level", "target", "message", "component", "instance"];

/// Writes every event as one line into a [`QueueWriter`].
#[derive(Debug)]
pub struct LineLayer {
    format: Format,
    component: String,
    instance: String,
    writer: QueueWriter,
    /// Set where lines carry trace ids: the dispatcher that knows them, once there is one.
    dispatch: Option<OnceLock<WeakDispatch>>,
}

impl LineLayer {
    /// Builds the layer.
    pub fn new(config: &LogConfig, writer: QueueWriter) -> Self {
        Self {
            format: config.format,
            component: config.component.clone(),
            instance: config.node.clone(),
            writer,
            dispatch: None,
        }
    }

    /// Adds `trace_id` and `span_id` to the lines of sampled spans.
    #[must_use]
    pub fn with_trace_ids(mut self) -> Self {
        self.dispatch = Some(OnceLock::new());
        self
    }

    fn add_trace_ids(&self, span: &span::Id, fields: &mut Fields) {
        let dispatch = self.dispatch.as_ref().and_then(OnceLock::get).and_then(WeakDispatch::upgrade);
        let Some(context) = dispatch.and_then(|dispatch| get_otel_context(span, &dispatch)) else { return };
        let span = context.span();
        let ids = span.span_context();
        if ids.is_valid() && ids.is_sampled() {
            fields.add("trace_id", |value| value.text(format_args!("{}", ids.trace_id())));
            fields.add("span_id", |value| value.text(format_args!("{}", ids.span_id())));
        }
    }

    fn json(&self, level: &Level, target: &str, fields: &Fields) -> String {
        let names = self.component.len() + 2 * self.instance.len() + target.len();
        let mut line = String::with_capacity(160 + names + fields.message.len() + fields.text.len());
        line.push_str("{\"ts\":\"");
        line.push_str(&timestamp());
        line.push_str("\",\"level\":\"");
        line.push_str(level_name(level));
        line.push('"');
        push_member(&mut line, "target", target);
        line.push_str(",\"message\":");
        line.push_str(if fields.message.is_empty() { "\"\"" } else { &fields.message });
        push_member(&mut line, "component", &self.component);
        if !self.instance.is_empty() {
            push_member(&mut line, "instance", &self.instance);
            if !fields.has("node") {
                push_member(&mut line, "node", &self.instance);
            }
        }
        if line.len() + fields.text.len() <= LINE_BYTES_MAX {
            line.push_str(&fields.text);
        } else {
            line.push_str(",\"truncated\":true");
        }
        line.push_str("}\n");
        line
    }

    fn human(level: &Level, target: &str, fields: &Fields) -> String {
        format!("{} {:>5} {target}: {}{}\n", timestamp(), level.as_str(), fields.message, fields.text)
    }
}

impl<S> Layer<S> for LineLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        if let Some(slot) = &self.dispatch {
            let _ = slot.set(dispatch.downgrade());
        }
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::new(self.format);
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // An event that is logged while another one's field is formatted finds no buffer, and makes its own.
        let mut fields = BUFFER.take().unwrap_or_default();
        fields.begin(self.format);
        event.record(&mut fields);
        // Innermost span first: `add_all` keeps what is there already.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.add_all(outer);
            }
        }
        if self.dispatch.is_some()
            && let Some(span) = context.event_span(event)
        {
            self.add_trace_ids(&span.id(), &mut fields);
        }
        let metadata = event.metadata();
        let line = match self.format {
            Format::Json => self.json(metadata.level(), metadata.target(), &fields),
            Format::Human => Self::human(metadata.level(), metadata.target(), &fields),
        };
        self.writer.push(line);
        if fields.text.capacity() <= LINE_BYTES_MAX {
            BUFFER.set(Some(fields));
        }
    }
}

thread_local! {
    /// The memory of the last event's fields, for the next one.
    static BUFFER: Cell<Option<Fields>> = const { Cell::new(None) };
}

/// Fields as a line shows them, in the order in which they were recorded.
#[derive(Debug, Default)]
struct Fields {
    format: Format,
    /// Empty if there is none.
    message: String,
    /// `,"name":value` or ` name=value`, one after the other.
    text: String,
    /// Every name, and where its text ends.
    ends: Vec<(&'static str, usize)>,
}

impl Fields {
    fn new(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// Forgets the fields and keeps their memory.
    fn begin(&mut self, format: Format) {
        self.format = format;
        self.message.clear();
        self.text.clear();
        self.ends.clear();
    }

    fn has(&self, name: &str) -> bool {
        self.ends.iter().any(|(existing, _)| *existing == name)
    }

    /// Adds a field, unless there is one of that name.
    fn add(&mut self, name: &'static str, write: impl FnOnce(&mut Value<'_>)) {
        if self.has(name) {
            return;
        }
        match self.format {
            Format::Json => push_name(&mut self.text, name),
            Format::Human => self.text.extend([" ", name, "="]),
        }
        write(&mut Value { out: &mut self.text, format: self.format });
        self.ends.push((name, self.text.len()));
    }

    /// Adds the fields of a span further out, unless there are some of those names.
    fn add_all(&mut self, outer: &Self) {
        let mut start = 0;
        for (name, end) in &outer.ends {
            if !self.has(name) {
                self.text.push_str(&outer.text[start..*end]);
                self.ends.push((name, self.text.len()));
            }
            start = *end;
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(at) = self.ends.iter().position(|(existing, _)| *existing == name) else { return };
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before].1);
        let (_, end) = self.ends.remove(at);
        self.text.replace_range(start..end, "");
        self.ends[at..].iter_mut().for_each(|(_, later)| *later -= end - start);
    }

    /// Sets a field as an event or a span tells it: the last value of a name counts.
    fn set(&mut self, field: &Field, write: impl FnOnce(&mut Value<'_>)) {
        match field.name() {
            "message" => {
                self.message.clear();
                write(&mut Value { out: &mut self.message, format: self.format });
            }
            name if self.format == Format::Json && RESERVED.contains(&name) => {}
            name => {
                self.remove(name);
                self.add(name, write);
            }
        }
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, |text| text.plain(format_args!("{value}")));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, |text| text.plain(format_args!("{value}")));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, |text| match text.format {
            // JSON has no other numbers.
            Format::Json if value.is_finite() => text.plain(format_args!("{value:?}")),
            Format::Json | Format::Human => text.text(format_args!("{value}")),
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, |text| text.plain(format_args!("{value}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, |text| text.text(format_args!("{value}")));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.record_str(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.set(field, |text| text.text(format_args!("{value:?}")));
    }
}

/// Where the value of a field is written.
struct Value<'a> {
    out: &'a mut String,
    format: Format,
}

impl Value<'_> {
    /// Writes what can hold nothing to escape.
    fn plain(&mut self, value: fmt::Arguments<'_>) {
        let _ = self.out.write_fmt(value);
    }

    /// Writes a text: escaped, cut at its longest, in JSON within quotes.
    fn text(&mut self, value: fmt::Arguments<'_>) {
        let quote = match self.format {
            Format::Json => "\"",
            Format::Human => "",
        };
        self.out.push_str(quote);
        // A text that is full ends the formatting early; what is there already counts.
        let _ = Escaped { out: self.out, format: self.format, left: FIELD_BYTES_MAX }.write_fmt(value);
        self.out.push_str(quote);
    }
}

/// Escapes what is written, and stops a `Debug` implementation that would print without end.
struct Escaped<'a> {
    out: &'a mut String,
    format: Format,
    /// Bytes that may still come.
    left: usize,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut end = text.len().min(self.left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.left -= end;
        match self.format {
            Format::Json => push_json(self.out, &text[..end]),
            Format::Human => push_printable(self.out, &text[..end]),
        }
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

fn level_name(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn timestamp() -> String {
    OffsetDateTime::now_utc().format(TIMESTAMP).unwrap_or_default()
}

fn push_name(line: &mut String, name: &str) {
    line.push_str(",\"");
    push_json(line, name);
    line.push_str("\":");
}

fn push_member(line: &mut String, name: &str, text: &str) {
    push_name(line, name);
    line.push('"');
    push_json(line, text);
    line.push('"');
}

/// Adds a text as it stands between the quotes of a JSON string.
fn push_json(line: &mut String, text: &str) {
    // What needs no escape, which is nearly everything, goes in at once.
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && !matches!(byte, b'"' | b'\\' | 0x7f) {
            continue;
        }
        line.push_str(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => line.push_str("\\\""),
            b'\\' => line.push_str("\\\\"),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            control => {
                let _ = write!(line, "\\u{control:04x}");
            }
        }
    }
    line.push_str(&text[plain..]);
}

/// Escapes what could forge a line or steer a terminal: names and addresses come from the network.
fn push_printable(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt;

    use super::super::writer::memory;
    use super::*;

    fn lines_of(format: Format, say: impl FnOnce()) -> Vec<String> {
        let (sink, lines) = memory();
        let writer = QueueWriter::start(sink).expect("a thread starts");
        let config =
            LogConfig { format, component: "gateway".into(), node: "gw1".into(), ..LogConfig::default() };
        let subscriber = tracing_subscriber::registry().with(LineLayer::new(&config, writer.clone()));
        tracing::subscriber::with_default(subscriber, say);
        assert!(writer.flush(Duration::from_secs(5)), "the writer did not flush");
        lines.lock().expect("no panic").clone()
    }

    fn json_of(say: impl FnOnce()) -> serde_json::Value {
        let lines = lines_of(Format::Json, say);
        assert_eq!(lines.len(), 1);
        serde_json::from_str(&lines[0]).expect("one JSON object")
    }

    #[test]
    fn a_line_carries_the_stable_names_and_the_fields_of_its_spans() {
        let line = json_of(|| {
            let span = tracing::info_span!("attach", session = "s-1", correlation = "c-1", epoch = 4u64);
            let _in = span.enter();
            tracing::info!(reason = "NODE_LOST", epoch = 5u64, "accepted");
        });
        let expected = [
            ("level", "info"),
            ("message", "accepted"),
            ("component", "gateway"),
            ("instance", "gw1"),
            ("node", "gw1"),
            ("session", "s-1"),
            ("correlation", "c-1"),
            ("reason", "NODE_LOST"),
        ];
        for (name, value) in expected {
            assert_eq!(line[name], value, "{name}");
        }
        assert_eq!(line["epoch"], 5, "the event's own field hides the span's");
        assert_eq!(line["target"], module_path!());
        assert!(line["ts"].as_str().expect("text").ends_with('Z'));
    }

    #[test]
    fn a_line_about_another_node_keeps_the_logger_as_instance() {
        let line = json_of(|| tracing::warn!(node = "gw9", "gone"));
        assert_eq!((line["node"].as_str(), line["instance"].as_str()), (Some("gw9"), Some("gw1")));
    }

    #[test]
    fn text_from_the_network_can_neither_forge_a_line_nor_steer_a_terminal() {
        let hostile = "a\"}\n{\"level\":\"error\"\u{1b}[2J";
        let line = json_of(|| tracing::info!(peer = hostile, "seen"));
        assert_eq!(line["peer"], hostile);
        let human = lines_of(Format::Human, || tracing::info!(peer = %hostile, "seen"));
        assert_eq!(human.len(), 1);
        assert!(!human[0].trim_end().contains(['\n', '\u{1b}']));
    }

    #[test]
    fn every_character_comes_back_from_a_line() {
        let all: String =
            (0..=0x2ff_u32).filter_map(char::from_u32).chain("é\u{1f512}\"\\".chars()).collect();
        let line = json_of(|| tracing::info!(all = all.as_str(), "said"));
        assert_eq!(line["all"], all);
    }

    #[test]
    fn a_huge_field_is_cut_and_a_reserved_name_cannot_be_taken() {
        let line = json_of(|| tracing::info!(level = "error", blob = %"é".repeat(100_000), "big"));
        assert_eq!(line["level"], "info");
        assert!(line["blob"].as_str().expect("text").len() <= FIELD_BYTES_MAX);
    }

    #[test]
    fn a_value_recorded_later_appears_on_the_spans_lines() {
        let line = json_of(|| {
            let span = tracing::info_span!("attach", epoch = tracing::field::Empty);
            span.record("epoch", 7u64);
            span.in_scope(|| tracing::info!("done"));
        });
        assert_eq!(line["epoch"], 7);
    }

    #[test]
    fn a_value_recorded_again_takes_the_place_of_the_first_and_leaves_its_neighbours() {
        let line = json_of(|| {
            let span = tracing::info_span!("attach", epoch = 6u64, node = "gw7", device = "d-1");
            span.record("epoch", 12_345u64);
            span.record("node", "n");
            span.in_scope(|| tracing::info!("done"));
        });
        assert_eq!((line["epoch"].as_u64(), line["node"].as_str()), (Some(12_345), Some("n")));
        assert_eq!(line["device"], "d-1");
    }

    #[test]
    fn an_event_without_a_message_is_a_line_all_the_same() {
        let line = json_of(|| tracing::info!(epoch = 3u64));
        assert_eq!((line["message"].as_str(), line["epoch"].as_u64()), (Some(""), Some(3)));
    }

    #[test]
    fn a_line_inside_a_recorded_span_carries_its_trace_id() {
        use opentelemetry::trace::TracerProvider;
        use tracing_opentelemetry::OpenTelemetrySpanExt;

        let (sink, lines) = memory();
        let writer = QueueWriter::start(sink).expect("a thread starts");
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let subscriber = tracing_subscriber::registry()
            .with(LineLayer::new(&LogConfig::default(), writer.clone()).with_trace_ids())
            .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        let expected = tracing::subscriber::with_default(subscriber, || {
            tracing::info!("outside");
            let span = tracing::info_span!("attach");
            span.in_scope(|| tracing::info!("inside"));
            span.context().span().span_context().trace_id().to_string()
        });
        assert!(writer.flush(Duration::from_secs(5)));
        let lines = lines.lock().expect("no panic");
        let read = |n: usize| -> serde_json::Value { serde_json::from_str(&lines[n]).expect("JSON") };
        assert_eq!(read(0)["trace_id"], serde_json::Value::Null);
        assert_eq!(read(1)["trace_id"], expected);
    }
}
