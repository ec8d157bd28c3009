//! The recent past of the embedded store, in memory: what watches deliver and pinned reads undo.

use std::collections::{BTreeMap, VecDeque};

use jump_session::ids::Revision;

use super::super::{Event, KeyValue, Page, StoreError};

/// One change with what was there before.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) event: Event,
    pub(super) before: Option<KeyValue>,
}

/// The changes of one revision.
#[derive(Debug)]
struct Entry {
    revision: Revision,
    changes: Vec<Change>,
}

/// The last revisions, bounded; the oldest are dropped.
#[derive(Debug)]
pub(super) struct History {
    entries: VecDeque<Entry>,
    /// Everything after this revision is in `entries`.
    floor: Revision,
    revisions_max: usize,
}

impl History {
    /// Starts with nothing to look back on.
    pub(super) fn new(revision: Revision, revisions_max: usize) -> Self {
        Self { entries: VecDeque::new(), floor: revision, revisions_max: revisions_max.max(1) }
    }

    /// Adds the next revision.
    pub(super) fn push(&mut self, revision: Revision, changes: Vec<Change>) {
        self.entries.push_back(Entry { revision, changes });
        while self.entries.len() > self.revisions_max {
            if let Some(oldest) = self.entries.pop_front() {
                self.floor = oldest.revision;
            }
        }
    }

    /// Events of keys that start with `prefix`, after `after` and up to `last`.
    pub(super) fn events_after(
        &self,
        after: Revision,
        last: Revision,
        prefix: &str,
    ) -> Result<Vec<Event>, StoreError> {
        let events = self
            .since(after)?
            .take_while(|entry| entry.revision <= last)
            .flat_map(|entry| &entry.changes)
            .map(|change| &change.event)
            .filter(|event| event.key().starts_with(prefix))
            .cloned()
            .collect();
        Ok(events)
    }

    /// What the keys that start with `prefix` and changed after `at` were at `at`.
    pub(super) fn values_at(
        &self,
        at: Revision,
        prefix: &str,
    ) -> Result<BTreeMap<String, Option<KeyValue>>, StoreError> {
        let mut values = BTreeMap::new();
        for change in self.since(at)?.flat_map(|entry| &entry.changes) {
            let key = change.event.key();
            if key.starts_with(prefix) {
                values.entry(key.to_owned()).or_insert_with(|| change.before.clone());
            }
        }
        Ok(values)
    }

    fn since(&self, after: Revision) -> Result<impl Iterator<Item = &Entry>, StoreError> {
        if after < self.floor {
            return Err(StoreError::Compacted);
        }
        let start = self.entries.partition_point(|entry| entry.revision <= after);
        Ok(self.entries.range(start..))
    }
}

/// Turns a page of the newest state (read with room for `changed`) into the page as of `at`.
pub(super) fn as_of(
    page: Page,
    changed: BTreeMap<String, Option<KeyValue>>,
    after: &str,
    limit: usize,
    at: Revision,
) -> Page {
    // Beyond the last key of a cut page nothing is known, so old values there must wait for the next page.
    let end = page.more.then(|| page.values.last().map(|value| value.key.clone())).flatten();
    let mut values: BTreeMap<String, KeyValue> =
        page.values.into_iter().map(|value| (value.key.clone(), value)).collect();
    let mut more = page.more;
    for (key, old) in changed {
        if key.as_str() <= after {
            continue;
        }
        if end.as_ref().is_some_and(|end| key > *end) {
            more = true;
            continue;
        }
        match old {
            Some(old) => values.insert(key, old),
            None => values.remove(&key),
        };
    }
    more |= values.len() > limit;
    Page { revision: at, values: values.into_values().take(limit).collect(), more }
}
