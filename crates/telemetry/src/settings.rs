//! The tables `[audit]` and `[trace]` of a configuration file: the same in every program. Files that hold nothing else
//! may have a `[log]` table too.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::audit::AuditConfig;
use crate::log::check_filter;
use crate::trace::TraceConfig;

/// Where audit events and spans go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observability {
    /// Audit events; nowhere by default.
    pub audit: AuditConfig,
    /// Spans, if anywhere.
    pub trace: Option<TraceConfig>,
    /// Log levels, where a file of its own says them ([`Self::parse`]).
    pub log_level: Option<String>,
}

/// `[log]` of a file that has nothing but these tables.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    level: String,
}

/// Settings from flags or the environment, stronger than the tables.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overrides<'a> {
    /// A file for audit events.
    pub audit_file: Option<&'a Path>,
    /// The collector of spans.
    pub trace_endpoint: Option<&'a str>,
    /// The share of traces that are recorded.
    pub trace_ratio: Option<&'a str>,
}

impl Observability {
    /// Takes both tables out of a file's top table, applies the overrides, and lists everything that is wrong.
    pub fn take(file: &mut Table, overrides: Overrides<'_>) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let audit: Option<AuditConfig> = table(file, "audit", &mut problems);
        let mut trace = file.remove("trace");
        if let (Some(endpoint), Some(Value::Table(trace))) = (overrides.trace_endpoint, &mut trace) {
            trace.insert("endpoint".to_owned(), Value::String(endpoint.to_owned()));
        }
        let mut trace: Option<TraceConfig> = trace.and_then(|value| read("trace", value, &mut problems));
        if trace.is_none() {
            trace = overrides.trace_endpoint.map(TraceConfig::new);
        }
        if let (Some(ratio), Some(trace)) = (overrides.trace_ratio, &mut trace) {
            match ratio.parse() {
                Ok(ratio) => trace.ratio = ratio,
                Err(_) => problems.push(format!("trace.ratio must be a number from 0 to 1, not {ratio:?}")),
            }
        }
        let mut audit = audit.unwrap_or_default();
        if let Some(path) = overrides.audit_file {
            audit.file = Some(path.to_owned());
        }
        problems.extend(audit.problems());
        problems.extend(trace.iter().flat_map(TraceConfig::problems));
        (Self { audit, trace, log_level: None }, problems)
    }

    /// Reads a file that has these tables and nothing else.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, overrides: Overrides<'_>) -> Result<Self, Vec<String>> {
        let mut file: Table = text.parse().map_err(|error: toml::de::Error| vec![error.to_string()])?;
        let (mut settings, mut problems) = Self::take(&mut file, overrides);
        settings.log_level = table(&mut file, "log", &mut problems).map(|log: LogTable| log.level);
        let levels = settings.log_level.iter().filter_map(|level| check_filter(level).err());
        problems.extend(levels.map(|error| format!("log.level: {error}")));
        problems
            .extend(file.keys().map(|name| format!("unknown table {name}: there are audit, log and trace")));
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }
}

fn table<T: DeserializeOwned>(file: &mut Table, name: &str, problems: &mut Vec<String>) -> Option<T> {
    file.remove(name).and_then(|value| read(name, value, problems))
}

fn read<T: DeserializeOwned>(name: &str, value: Value, problems: &mut Vec<String>) -> Option<T> {
    value
        .try_into()
        .map_err(|error: toml::de::Error| problems.push(format!("[{name}]: {}", error.message())))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[audit]\nfile = 'a.json'\n[[audit.sinks]]\nkind = 'otlp'\nname = 'c'\nendpoint = 'http://c'\n\
                        [trace]\nendpoint = 'http://c:4317'\nratio = 0.5\n[log]\nlevel = 'info,a=debug'\n";

    #[test]
    fn both_tables_are_read_and_flags_outweigh_them() {
        let settings = Observability::parse(GOOD, Overrides::default()).expect("valid");
        assert_eq!(settings.audit.all_sinks().len(), 2);
        assert_eq!(settings.log_level.as_deref(), Some("info,a=debug"));
        assert_eq!(settings.trace.as_ref().map(|trace| trace.ratio), Some(0.5));
        let overrides = Overrides {
            audit_file: Some(Path::new("b.json")),
            trace_endpoint: Some("http://d:1"),
            trace_ratio: Some("1"),
        };
        let settings = Observability::parse(GOOD, overrides).expect("valid");
        assert_eq!(settings.audit.file.as_deref(), Some(Path::new("b.json")));
        let trace = settings.trace.expect("a trace table");
        assert_eq!((trace.endpoint.as_str(), trace.ratio), ("http://d:1", 1.0));
        let alone = Observability::parse("", overrides).expect("valid");
        assert_eq!(alone.trace.map(|trace| trace.ratio), Some(1.0));
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let text = "[audit]\nqueue_events_max = 0\n[[audit.sinks]]\nkind = 'file'\nname = 'Disk!'\npath = 'x'\n\
                    [trace]\nendpoint = 'nowhere'\nratio = 2.0\nfilter = 'a=loud'\n[adit]\n[log]\nlevel = 'b=loud'\n";
        let problems = Observability::parse(text, Overrides::default()).expect_err("all of it is wrong");
        for part in ["queue_events_max", "Disk!", "nowhere", "ratio 2", "a=loud", "adit", "b=loud"] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part:?} is not in {problems:?}");
        }
        let typo =
            Observability::parse("[audit]\nsink = 1\n", Overrides::default()).expect_err("a typing error");
        assert!(typo[0].contains("sink") && typo[0].contains("sinks"), "{typo:?}");
    }
}
