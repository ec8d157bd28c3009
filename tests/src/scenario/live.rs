//! A live cluster held against a pilot's criteria: by its metrics endpoints and its audit trail.
//!
//! Nobody but the cluster's operator breaks anything here; what happened meanwhile is read from the audit events. What
//! neither source can tell is not judged, and the verdict says so.

mod metrics;
pub(in crate::scenario) mod trail;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
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
        let addresses = authority.to_socket_addrs().with_context(|| format!("looking up {authority}"))?;
        let mut stream = Err(anyhow::anyhow!("{authority} has no address"));
        for address in addresses {
            stream = TcpStream::connect_timeout(&address, SCRAPE_MAX).map_err(Into::into);
            if stream.is_ok() {
                break;
            }
        }
        let mut stream = stream.with_context(|| format!("connecting to {authority}"))?;
        stream.set_read_timeout(Some(SCRAPE_MAX))?;
        stream.set_write_timeout(Some(SCRAPE_MAX))?;
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
    audit: Vec<AuditFile>,
}

/// An audit file, held open: it may be renamed meanwhile, and another one begun in its place.
#[derive(Debug)]
struct AuditFile {
    path: PathBuf,
    file: File,
    /// The whole lines that it held at the beginning.
    past: String,
    /// The beginning of a line whose end was not written yet.
    begun: Vec<u8>,
}

impl AuditFile {
    fn open(path: &Path) -> Result<Self> {
        let read = || {
            let mut file = File::open(path)?;
            let mut past = Vec::new();
            file.read_to_end(&mut past)?;
            Ok::<_, std::io::Error>((file, past))
        };
        let (file, mut past) = read().with_context(|| format!("reading {}", path.display()))?;
        let begun = past.split_off(past.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        let past = String::from_utf8_lossy(&past).into_owned();
        Ok(Self { path: path.to_owned(), file, past, begun })
    }

    /// What was written since: the rest of the file that was open, and those that followed it. Returns it after the past.
    fn finish(self) -> Result<(String, String)> {
        let path = self.path.clone();
        self.read_on().with_context(|| format!("reading {}", path.display()))
    }

    fn read_on(mut self) -> std::io::Result<(String, String)> {
        let identity = |file: &File| file.metadata().map(|is| (is.dev(), is.ino()));
        let ours = identity(&self.file)?;
        // Opened before the old one is read: nothing is written to a file that was replaced.
        let mut followers = Vec::new();
        let newest = match File::open(&self.path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(newest) = newest
            && identity(&newest)? != ours
        {
            followers.push(newest);
            // Between ours and the newest there may be more, PATH.1 the latest of them.
            let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
            let between = (1..).map_while(|n| File::open(numbered(n)).ok()).collect::<Vec<_>>();
            let ids = between.iter().map(identity).collect::<std::io::Result<Vec<_>>>()?;
            if let Some(at) = ids.iter().position(|id| *id == ours) {
                followers.extend(between.into_iter().take(at));
            }
        }
        let read_until = self.file.stream_position()?;
        if self.file.metadata()?.len() < read_until {
            // Emptied in place.
            self.file.rewind()?;
            self.begun.clear();
        }
        let mut bytes = self.begun;
        self.file.read_to_end(&mut bytes)?;
        for mut file in followers {
            bytes.push(b'\n');
            file.read_to_end(&mut bytes)?;
        }
        Ok((self.past, String::from_utf8_lossy(&bytes).into_owned()))
    }
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
        Ok(Self {
            before: texts.iter().map(|text| Scrape::parse(text)).collect(),
            audit: audit.iter().map(|path| AuditFile::open(path)).collect::<Result<_>>()?,
        })
    }

    /// Ends: judges what happened since by `profile`. `lease` is the cluster's node lease: the audit trail sees a lost
    /// machine only when its lease has ended, and the time before that counts too.
    ///
    /// An endpoint that does not answer any more has no text; what needs every endpoint is then not judged.
    ///
    /// # Errors
    /// When an audit file cannot be read, or there are not as many texts as there were at the beginning.
    pub fn end(self, texts: &[Option<String>], profile: &Scenario, lease: Duration) -> Result<Judgement> {
        ensure!(texts.len() == self.before.len(), "another number of endpoints than at the beginning");
        let after: Option<Vec<_>> = texts.iter().map(|text| text.as_deref().map(Scrape::parse)).collect();
        let (mut pasts, mut lines) = (Vec::new(), Vec::new());
        for file in self.audit {
            let (past, since) = file.finish()?;
            pasts.push(past);
            lines.push(since);
        }
        let past = pasts.iter().flat_map(|text| text.lines());
        let (mut metrics, mut notes) = trail::read(past, lines.iter().flat_map(|text| text.lines()), lease);
        if let Some(after) = after {
            metrics::add(&mut metrics, &self.before, &after);
        } else {
            let silent = texts.iter().filter(|text| text.is_none()).count();
            notes.push(format!(
                "{silent} of {} metrics endpoints did not answer at the end: nothing is judged by metrics",
                texts.len()
            ));
        }
        Ok(judge(profile, metrics, notes))
    }
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
    let visibility = visibility();
    let (seen, not_judged): (Vec<_>, Vec<_>) = profile.criteria.iter().chain(&visibility).partition(is_seen);
    let verdicts = seen.into_iter().map(|c| Verdict::of(c, &metrics)).collect();
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

    #[test]
    fn what_is_written_before_and_after_a_rotation_is_read_and_what_was_there_is_past() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let numbered = |n: u32| dir.path().join(format!("a.json.{n}"));
        let write = |text: &str| {
            let mut file = File::options().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        write("old\nbeg");
        let watched = AuditFile::open(&path).unwrap();
        write("un\nlast\n");
        std::fs::rename(&path, numbered(1)).unwrap();
        write("between\n");
        std::fs::rename(numbered(1), numbered(2)).unwrap();
        std::fs::rename(&path, numbered(1)).unwrap();
        write("new\n");
        let (past, since) = watched.finish().unwrap();
        assert_eq!(past, "old\n");
        let mut since: Vec<_> = since.lines().filter(|line| !line.is_empty()).collect();
        since.sort_unstable();
        assert_eq!(since, ["begun", "between", "last", "new"]);
    }

    #[test]
    fn an_endpoint_that_is_silent_at_the_end_costs_what_it_would_have_told_and_not_the_verdict() {
        let text = "name = 'x'\ntitle = 'x'\n[[devices]]\ncount = 1\n\
                    [[criteria]]\nmetric = 'sessions.lost'\nmax = 0\n[[criteria]]\nmetric = 'attaches.rejected'\nmax = 0\n";
        let profile = Scenario::parse(text, false).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(&path, "").unwrap();
        let watch = Watch::begin(&[String::new(), String::new()], &[path]).unwrap();
        let judged = watch.end(&[Some(String::new()), None], &profile, Duration::from_secs(3)).unwrap();
        let names: Vec<_> = judged.not_judged.iter().map(|criterion| criterion.metric.as_str()).collect();
        assert_eq!(names, ["attaches.rejected", "audit.dropped"]);
        assert!(
            judged
                .verdicts
                .iter()
                .any(|verdict| verdict.criterion.metric == "sessions.lost" && verdict.holds)
        );
        assert!(judged.notes.iter().any(|note| note.contains("1 of 2")), "{:?}", judged.notes);
    }
}
