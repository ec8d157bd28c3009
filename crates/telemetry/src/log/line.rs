//! The layer that turns events, with the fields of the spans around them, into lines.

use std::fmt::Write as _;
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
            fields.add("trace_id", &Value::Text(ids.trace_id().to_string()));
            fields.add("span_id", &Value::Text(ids.span_id().to_string()));
        }
    }

    fn json(&self, level: &Level, target: &str, fields: &Fields) -> String {
        let mut line = String::with_capacity(256);
        line.push_str("{\"ts\":\"");
        line.push_str(&timestamp());
        let _ = write!(line, "\",\"level\":\"{}\"", level_name(level));
        push_text(&mut line, "target", target);
        push_text(&mut line, "message", fields.message());
        push_text(&mut line, "component", &self.component);
        if !self.instance.is_empty() {
            push_text(&mut line, "instance", &self.instance);
            if !fields.0.iter().any(|(name, _)| *name == "node") {
                push_text(&mut line, "node", &self.instance);
            }
        }
        let fixed = line.len();
        for (name, value) in &fields.0 {
            if !RESERVED.contains(name) {
                push_name(&mut line, name);
                value.push_json(&mut line);
            }
        }
        if line.len() > LINE_BYTES_MAX {
            line.truncate(fixed);
            line.push_str(",\"truncated\":true");
        }
        line.push_str("}\n");
        line
    }

    fn human(&self, level: &Level, target: &str, fields: &Fields) -> String {
        let mut line = format!("{} {:>5} {target}: ", timestamp(), level.as_str());
        push_printable(&mut line, fields.message());
        for (name, value) in fields.0.iter().filter(|(name, _)| *name != "message") {
            let _ = write!(line, " {name}=");
            value.push_human(&mut line);
        }
        line.push('\n');
        line
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
            let mut fields = Fields::default();
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
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Innermost span first: `add` keeps what is there already.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                outer.0.iter().for_each(|(name, value)| fields.add(name, value));
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
            Format::Human => self.human(metadata.level(), metadata.target(), &fields),
        };
        self.writer.push(line);
    }
}

/// Field names and values, in the order in which they were recorded.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, Value)>);

#[derive(Debug, Clone)]
enum Value {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Text(String),
}

impl Fields {
    fn message(&self) -> &str {
        self.0
            .iter()
            .find_map(|(name, value)| match value {
                Value::Text(text) if *name == "message" => Some(text.as_str()),
                Value::Text(_) | Value::Signed(_) | Value::Unsigned(_) | Value::Float(_) | Value::Bool(_) => {
                    None
                }
            })
            .unwrap_or_default()
    }

    fn add(&mut self, name: &'static str, value: &Value) {
        if !self.0.iter().any(|(existing, _)| *existing == name) {
            self.0.push((name, value.clone()));
        }
    }

    fn set(&mut self, field: &Field, value: Value) {
        match self.0.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, old)) => *old = value,
            None => self.0.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::Text(cut(value).to_owned()));
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
        let mut text = Bounded::default();
        // A full buffer ends the formatting early; what is there already counts.
        let _ = write!(text, "{value:?}");
        self.set(field, Value::Text(text.0));
    }
}

/// Stops a `Debug` implementation that would print without end.
#[derive(Default)]
struct Bounded(String);

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.push_str(cut(text));
        if self.0.len() > FIELD_BYTES_MAX {
            self.0.truncate(cut(&self.0).len());
            return Err(std::fmt::Error);
        }
        Ok(())
    }
}

impl Value {
    fn push_json(&self, line: &mut String) {
        let _ = match self {
            Self::Signed(n) => write!(line, "{n}"),
            Self::Unsigned(n) => write!(line, "{n}"),
            Self::Float(n) if n.is_finite() => write!(line, "{n:?}"),
            Self::Float(n) => write!(line, "\"{n}\""),
            Self::Bool(b) => write!(line, "{b}"),
            Self::Text(text) => {
                push_json_text(line, text);
                Ok(())
            }
        };
    }

    fn push_human(&self, line: &mut String) {
        let _ = match self {
            Self::Signed(n) => write!(line, "{n}"),
            Self::Unsigned(n) => write!(line, "{n}"),
            Self::Float(n) => write!(line, "{n}"),
            Self::Bool(b) => write!(line, "{b}"),
            Self::Text(text) => {
                push_printable(line, text);
                Ok(())
            }
        };
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(FIELD_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
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
    line.push(',');
    push_json_text(line, name);
    line.push(':');
}

fn push_text(line: &mut String, name: &str, text: &str) {
    push_name(line, name);
    push_json_text(line, text);
}

fn push_json_text(line: &mut String, text: &str) {
    line.push('"');
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
    line.push('"');
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
