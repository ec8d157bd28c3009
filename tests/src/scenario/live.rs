//! A live cluster held against a pilot's criteria: by its metrics endpoints and its audit trail.
//!
//! Nobody but the cluster's operator breaks anything here; what happened meanwhile is read from the audit events. What
//! neither source can tell is not judged, and the verdict says so.

mod metrics;
mod trail;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::environment::Environment;
use super::report::{Verdict, number};
use super::{Criterion, Scenario};
use metrics::Scrape;

/// How long an endpoint may take to answer.
const SCRAPE_MAX: Duration = Duration::from_secs(10);

/// A metrics endpoint: `http://HOST:PORT/PATH`; without a path `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`.
    authority: String,
    path: String,
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("https://") {
            return Err("https is not read: put a local proxy before it, or scrape on the machine".to_owned());
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (authority, path) = rest.split_once('/').map_or((rest, "metrics"), |(a, path)| (a, path));
        if !authority.contains(':') {
            return Err(format!("{text:?} names no port"));
        }
        Ok(Self { authority: authority.to_owned(), path: format!("/{path}") })
    }
}

impl Endpoint {
    /// The endpoint of this address, with the usual path.
    pub fn at(authority: &str) -> Self {
        Self { authority: authority.to_owned(), path: "/metrics".to_owned() }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it does not answer with metrics.
    pub fn get(&self) -> Result<String> {
        let Self { authority, path } = self;
        let mut stream =
            TcpStream::connect(authority).with_context(|| format!("connecting to {authority}"))?;
        stream.set_read_timeout(Some(SCRAPE_MAX))?;
        // HTTP/1.0 has no chunks: what comes is the text itself.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("reading {authority}{path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{authority}: no HTTP"))?;
        ensure!(head.lines().next().is_some_and(|l| l.contains(" 200")), "{authority}{path}: {head}");
        Ok(body.to_owned())
    }
}

/// The time between two looks at a cluster.
#[derive(Debug)]
pub struct Watch {
    before: Vec<Scrape>,
    /// Audit files with how long they were at the beginning.
    audit: Vec<(PathBuf, u64)>,
}

/// What was seen in it, and what that says of the criteria.
#[derive(Debug, Serialize)]
pub struct Judgement {
    /// The profile.
    pub profile: String,
    /// Where and when the judging ran.
    pub environment: Environment,
    /// Named numbers.
    pub metrics: BTreeMap<String, f64>,
    /// One per criterion that could be judged, and those that every trail must hold.
    pub verdicts: Vec<Verdict>,
    /// Criteria that neither metrics nor audit events can tell of, or of a fault that did not happen.
    pub not_judged: Vec<Criterion>,
    /// What is to be known about the numbers.
    pub notes: Vec<String>,
}

impl Watch {
    /// Begins, with the metrics as they are now (one text per endpoint).
    ///
    /// # Errors
    /// When there is nothing to judge by.
    pub fn begin(texts: &[String], audit: &[PathBuf]) -> Result<Self> {
        ensure!(!texts.is_empty(), "no metrics endpoint");
        ensure!(!audit.is_empty(), "no audit file: without one nobody can say what happened");
        let length = |path: &PathBuf| {
            let file = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
            Ok((path.clone(), file.len()))
        };
        Ok(Self {
            before: texts.iter().map(|text| Scrape::parse(text)).collect(),
            audit: audit.iter().map(length).collect::<Result<_>>()?,
        })
    }

    /// Ends: judges what happened since by `profile`. `lease` is the cluster's node lease: the audit trail sees a lost
    /// machine only when its lease has ended, and the time before that counts too.
    ///
    /// # Errors
    /// When an audit file cannot be read.
    pub fn end(self, texts: &[String], profile: &Scenario, lease: Duration) -> Result<Judgement> {
        let after: Vec<_> = texts.iter().map(|text| Scrape::parse(text)).collect();
        let mut lines = Vec::new();
        for (path, from) in &self.audit {
            lines.push(since(path, *from)?);
        }
        let (mut metrics, notes) = trail::read(lines.iter().flat_map(|text| text.lines()), lease);
        metrics::add(&mut metrics, &self.before, &after);
        Ok(judge(profile, metrics, notes))
    }
}

/// What a file has got since it was `from` bytes long; all of it when it was replaced meanwhile.
fn since(path: &Path, from: u64) -> Result<String> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        if file.metadata()?.len() >= from {
            file.seek(SeekFrom::Start(from))?;
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    read().with_context(|| format!("reading {}", path.display()))
}

/// What every audit trail must hold, whatever the profile says.
fn visibility() -> [Criterion; 3] {
    let criterion = |metric: &str, min, max, says: &str| Criterion {
        metric: metric.to_owned(),
        over: None,
        min,
        max,
        if_measured: false,
        says: says.to_owned(),
    };
    [
        criterion("audit.events", Some(1.0), None, "the audit trail tells of something"),
        criterion("audit.missing", None, Some(0.0), "no number of an event is missing in it"),
        criterion("audit.dropped", None, Some(0.0), "no program dropped an event"),
    ]
}

fn judge(profile: &Scenario, metrics: BTreeMap<String, f64>, notes: Vec<String>) -> Judgement {
    let is_seen = |criterion: &&Criterion| {
        metrics.contains_key(&criterion.metric)
            && criterion.over.as_ref().is_none_or(|over| metrics.contains_key(over))
    };
    let (seen, not_judged): (Vec<_>, Vec<_>) = profile.criteria.iter().partition(is_seen);
    let visibility = visibility();
    let verdicts = seen.into_iter().chain(&visibility).map(|c| Verdict::of(c, &metrics)).collect();
    Judgement {
        profile: profile.name.clone(),
        environment: Environment::capture(),
        verdicts,
        not_judged: not_judged.into_iter().cloned().collect(),
        metrics,
        notes,
    }
}

impl Judgement {
    /// Whether everything that could be judged held; with `strict`, also whether everything could.
    pub fn passes(&self, strict: bool) -> bool {
        self.verdicts.iter().all(|verdict| verdict.holds) && (!strict || self.not_judged.is_empty())
    }

    /// For a terminal.
    pub fn summary(&self) -> String {
        let mut text = format!("{}, judged on a live cluster\n", self.profile);
        for verdict in &self.verdicts {
            let _ = writeln!(text, "  {}", verdict.text());
        }
        for criterion in &self.not_judged {
            let bound = criterion.max.or(criterion.min).map_or(String::new(), number);
            let _ =
                writeln!(text, "  not judged  {} (bound {bound})   ({})", criterion.metric, criterion.says);
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }

    /// Writes `NAME-live.json`; returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join(format!("{}-live.json", self.profile));
        std::fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_needs_a_port_and_takes_the_usual_path() {
        let endpoint: Endpoint = "http://gw1.example:9100".parse().unwrap();
        assert_eq!((endpoint.authority.as_str(), endpoint.path.as_str()), ("gw1.example:9100", "/metrics"));
        assert_eq!("gw1:1/m/x".parse::<Endpoint>().unwrap().path, "/m/x");
        assert!("gw1".parse::<Endpoint>().is_err());
        assert!("https://gw1:1".parse::<Endpoint>().is_err());
    }

    #[test]
    fn what_cannot_be_judged_breaks_only_a_strict_verdict_and_a_gap_in_the_trail_breaks_every_one() {
        let text = "name = 'x'\ntitle = 'x'\n[[devices]]\ncount = 1\n\
                    [[criteria]]\nmetric = 'sessions.lost'\nmax = 0\n[[criteria]]\nmetric = 'probes.delivery'\nmin = 0.9\n";
        let profile = Scenario::parse(text, false).unwrap();
        let metrics = |missing| {
            let names = [("sessions.lost", 0.0), ("audit.events", 4.0), ("audit.missing", missing)];
            let mut metrics: BTreeMap<_, _> = names.map(|(name, value)| (name.to_owned(), value)).into();
            metrics.insert("audit.dropped".to_owned(), 0.0);
            metrics
        };
        let judged = judge(&profile, metrics(0.0), Vec::new());
        assert_eq!(judged.not_judged.len(), 1);
        assert!(judged.passes(false) && !judged.passes(true));
        assert!(!judge(&profile, metrics(1.0), Vec::new()).passes(false));
    }
}
