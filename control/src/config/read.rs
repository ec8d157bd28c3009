//! Reading settings from their layers, collecting what is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jump_telemetry::settings::{Observability, Overrides};

/// Where settings come from, weakest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// The file's name and its TOML text.
    pub file: Option<(PathBuf, String)>,
    /// From the environment, by setting.
    pub environment: BTreeMap<String, String>,
    /// From flags, by setting.
    pub flags: BTreeMap<String, String>,
}

/// Everything that is wrong with the settings, one per line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// A setting's value and where it was set.
struct Found {
    values: Vec<String>,
    source: String,
}

pub(super) struct Reader {
    observability: Observability,
    settings: &'static [(&'static str, &'static str, &'static str)],
    found: BTreeMap<String, Found>,
    errors: Vec<String>,
}

impl Reader {
    pub(super) fn new(
        layers: Layers,
        settings: &'static [(&'static str, &'static str, &'static str)],
    ) -> Self {
        let mut reader = Self {
            observability: Observability::default(),
            settings,
            found: BTreeMap::new(),
            errors: Vec::new(),
        };
        let stronger = |name: &str| layers.flags.get(name).or_else(|| layers.environment.get(name));
        let overrides = Overrides {
            audit_file: stronger("audit.file").map(Path::new),
            trace_endpoint: stronger("trace.endpoint").map(String::as_str),
            trace_ratio: stronger("trace.ratio").map(String::as_str),
        };
        let (path, text) = layers.file.unwrap_or_default();
        reader.read_file(&path.display().to_string(), &text, overrides);
        for (name, value) in layers.environment {
            let source = variable(&name);
            reader.set(&name, split(&value), &source);
        }
        for (name, value) in layers.flags {
            reader.set(&name, split(&value), "command line");
        }
        reader
    }

    fn read_file(&mut self, path: &str, text: &str, overrides: Overrides<'_>) {
        let mut table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                self.errors.push(format!("{path}: {}", error.to_string().trim().replace('\n', " ")));
                return;
            }
        };
        let (observability, problems) = Observability::take(&mut table, overrides);
        self.observability = observability;
        self.errors.extend(problems.into_iter().map(|problem| format!("{path}: {problem}")));
        self.read_table("", &table, path);
    }

    pub(super) fn observability(&mut self) -> Observability {
        std::mem::take(&mut self.observability)
    }

    fn read_table(&mut self, prefix: &str, table: &toml::Table, path: &str) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match (value, texts(value)) {
                (toml::Value::Table(inner), _) => self.read_table(&format!("{name}."), inner, path),
                (_, Some(values)) => self.set(&name, values, path),
                (_, None) => {
                    self.errors
                        .push(format!("{path}: {name} must be a text, a number, true or false, or a list"));
                }
            }
        }
    }

    fn set(&mut self, name: &str, values: Vec<String>, source: &str) {
        if !self.settings.iter().any(|(known, _, _)| *known == name) {
            let nearest =
                self.settings.iter().map(|(known, _, _)| *known).min_by_key(|known| distance(known, name));
            let nearest = nearest.unwrap_or_default();
            self.errors.push(format!("{source}: unknown setting {name}: did you mean {nearest}?"));
            return;
        }
        self.found.insert(name.to_owned(), Found { values, source: source.to_owned() });
    }

    pub(super) fn wrong(&mut self, name: &str, what: &str) {
        let source = self.found.get(name).map_or("default", |found| &found.source);
        self.errors.push(format!("{source}: {name} {what}"));
    }

    fn values(&mut self, name: &'static str) -> Vec<String> {
        if let Some(found) = self.found.get(name) {
            return found.values.clone();
        }
        let setting = self.settings.iter().find(|(known, _, _)| *known == name);
        let (_, default, about) = setting.expect("every setting that is read is listed");
        if *default == "-" {
            let variable = variable(name);
            self.errors.push(format!(
                "{name} is missing ({about}): set it in the file, or as {variable}, or with --set {name}=..."
            ));
            return Vec::new();
        }
        split(default)
    }

    pub(super) fn text(&mut self, name: &'static str) -> String {
        self.values(name).join(",")
    }

    pub(super) fn path(&mut self, name: &'static str) -> PathBuf {
        self.text(name).into()
    }

    pub(super) fn list<T: FromStr>(&mut self, name: &'static str, what: &str) -> Vec<T> {
        let values = self.values(name);
        values
            .iter()
            .filter_map(|text| {
                let parsed = text.parse().ok();
                if parsed.is_none() {
                    self.wrong(name, &format!("must be {what}, not {text:?}"));
                }
                parsed
            })
            .collect()
    }

    pub(super) fn parse<T: FromStr + Placeholder>(&mut self, name: &'static str, what: &str) -> T {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| {
            self.wrong(name, &format!("must be {what}, not {text:?}"));
            T::placeholder()
        })
    }

    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        let text = self.text(name);
        humantime::parse_duration(&text).unwrap_or_else(|_| {
            self.wrong(name, &format!("must be a duration such as 30s or 300ms, not {text:?}"));
            Duration::from_secs(1)
        })
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.errors.is_empty() { Ok(value) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// Stands in for a value that could not be read, so that the rest is still checked.
pub(super) trait Placeholder {
    fn placeholder() -> Self;
}

impl Placeholder for std::net::SocketAddr {
    fn placeholder() -> Self {
        Self::from(([0, 0, 0, 0], 0))
    }
}

impl Placeholder for jump_telemetry::log::Format {
    fn placeholder() -> Self {
        Self::Json
    }
}

impl Placeholder for bool {
    fn placeholder() -> Self {
        true
    }
}

impl Placeholder for u16 {
    fn placeholder() -> Self {
        1280
    }
}

impl Placeholder for u32 {
    fn placeholder() -> Self {
        1
    }
}

/// The environment variable of a setting.
fn variable(setting: &str) -> String {
    match setting.starts_with("JUMP_CONTROL_") {
        true => setting.to_owned(),
        false => format!("JUMP_CONTROL_{}", setting.to_ascii_uppercase().replace('.', "_")),
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(split(text)),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(flag) => Some(vec![flag.to_string()]),
        toml::Value::Array(list) => {
            let parts: Option<Vec<Vec<String>>> = list.iter().map(texts).collect();
            Some(parts?.concat())
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// How many edits turn one text into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
