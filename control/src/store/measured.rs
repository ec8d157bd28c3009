//! A store that measures: latency by operation and outcome, and a span for each that belongs to a traced request.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use jump_session::ids::Revision;
use jump_telemetry::Correlation;
use tracing::field::{DisplayValue, display};
use tracing::{Instrument as _, Span};

use super::{Lease, LeaseId, Outcome, Page, SharedStore, Snapshot, Store, StoreError, Txn, WatchStream};
use crate::metrics;

/// Wraps a store.
#[derive(Debug)]
pub struct MeasuredStore {
    inner: SharedStore,
}

impl MeasuredStore {
    /// Measures `inner`.
    pub fn new(inner: SharedStore) -> Self {
        Self { inner }
    }
}

async fn measured<T>(
    operation: &'static str,
    span: Span,
    call: impl Future<Output = Result<T, StoreError>> + Send,
    outcome: impl FnOnce(&T) -> &'static str,
) -> Result<T, StoreError> {
    let started = Instant::now();
    let result = call.instrument(span).await;
    let outcome = match &result {
        Ok(value) => outcome(value),
        Err(StoreError::Unknown(_)) => "unknown",
        Err(StoreError::Unavailable(_)) => "unavailable",
        Err(StoreError::LeaseNotFound | StoreError::Compacted | StoreError::Refused(_)) => "refused",
    };
    metrics::measure_store(operation, outcome, started.elapsed());
    result
}

/// Of the session that the caller works for, if it works for one.
fn correlation() -> Option<DisplayValue<Correlation>> {
    Correlation::current().map(display)
}

fn ok<T>(_: &T) -> &'static str {
    "ok"
}

#[async_trait]
impl Store for MeasuredStore {
    async fn read(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        let span = tracing::debug_span!("store.read", correlation = correlation(), keys = keys.len());
        measured("read", span, self.inner.read(keys), ok).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        let span = tracing::debug_span!("store.range", correlation = correlation(), prefix);
        measured("range", span, self.inner.range(prefix, after, limit, at), ok).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let (compares, ops) = (txn.compares.len(), txn.ops.len());
        let span = tracing::debug_span!("store.commit", correlation = correlation(), compares, ops);
        measured("commit", span, self.inner.commit(txn), |outcome| match outcome {
            Outcome::Committed(_) => "ok",
            Outcome::Conflict => "conflict",
        })
        .await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        measured("grant_lease", tracing::debug_span!("store.grant_lease"), self.inner.grant_lease(ttl), ok)
            .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        measured("keep_alive", tracing::debug_span!("store.keep_alive"), self.inner.keep_alive(lease), ok)
            .await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        measured(
            "revoke_lease",
            tracing::debug_span!("store.revoke_lease"),
            self.inner.revoke_lease(lease),
            ok,
        )
        .await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.inner.watch(prefix, after)
    }
}
