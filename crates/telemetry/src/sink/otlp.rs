//! OpenTelemetry logs over gRPC: each event is a log record whose body is the OCSF object.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};
use tonic::{Code, Status};

use super::config::{OtlpConfig, TlsConfig};
use super::worker::{Deliver, Verdict};
use super::{Record, SinkError};
use crate::audit::{Identity, OCSF_VERSION};

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Exports batches to one collector.
#[derive(Debug)]
pub(super) struct OtlpSink {
    config: OtlpConfig,
    endpoint: Endpoint,
    /// Made on the sink's own runtime, by the first delivery.
    client: Option<LogsServiceClient<Channel>>,
    resource: Resource,
    scope: InstrumentationScope,
}

impl OtlpSink {
    pub(super) fn new(config: OtlpConfig, identity: &Identity) -> Result<Self, SinkError> {
        let endpoint = endpoint(&config.endpoint, config.tls.as_ref(), config.timeout)?;
        if config.batch_events_max == 0 {
            let problem = "must not be 0".to_owned();
            return Err(SinkError::Setting { setting: "batch_events_max", problem });
        }
        let mut attributes = vec![
            attribute("service.name", format!("jump-{}", identity.component)),
            attribute("service.version", identity.version.clone()),
        ];
        if !identity.node.is_empty() {
            attributes.push(attribute("service.instance.id", identity.node.clone()));
        }
        let scope = InstrumentationScope {
            name: "jump-audit".into(),
            version: OCSF_VERSION.into(),
            ..InstrumentationScope::default()
        };
        Ok(Self {
            config,
            endpoint,
            client: None,
            resource: Resource { attributes, ..Resource::default() },
            scope,
        })
    }

    fn request(&self, batch: &[Arc<Record>]) -> ExportLogsServiceRequest {
        let scope_logs = ScopeLogs {
            scope: Some(self.scope.clone()),
            log_records: batch.iter().map(|record| log_record(record)).collect(),
            schema_url: format!("https://schema.ocsf.io/{OCSF_VERSION}"),
        };
        ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![scope_logs],
                schema_url: String::new(),
            }],
        }
    }
}

impl Deliver for OtlpSink {
    fn batch(&self) -> (usize, Duration) {
        (self.config.batch_events_max, self.config.batch_wait)
    }

    async fn deliver(&mut self, batch: &[Arc<Record>]) -> Verdict {
        let request = self.request(batch);
        let client = self.client.get_or_insert_with(|| LogsServiceClient::new(self.endpoint.connect_lazy()));
        match tokio::time::timeout(self.config.timeout, client.export(request)).await {
            Ok(Ok(response)) => {
                let rejected =
                    response.into_inner().partial_success.map_or(0, |partial| partial.rejected_log_records);
                Verdict::Sent { rejected: usize::try_from(rejected).unwrap_or(0) }
            }
            Ok(Err(status)) if retryable(&status) => Verdict::retry(describe(&status)),
            Ok(Err(status)) => Verdict::Rejected { cause: describe(&status) },
            Err(_) => {
                // What the old connection still buffers goes with it.
                self.client = None;
                Verdict::retry(format!("no answer within {:?}", self.config.timeout))
            }
        }
    }
}

/// Builds a tonic endpoint for an OTLP collector.
pub(crate) fn endpoint(url: &str, tls: Option<&TlsConfig>, timeout: Duration) -> Result<Endpoint, SinkError> {
    let unusable = |problem: String| SinkError::Setting { setting: "endpoint", problem };
    let secure = url.starts_with("https://");
    if !secure && !url.starts_with("http://") {
        return Err(unusable(format!("{url:?} is neither http:// nor https://")));
    }
    if tls.is_some() != secure {
        let problem = "needed for, and only for, an https endpoint".to_owned();
        return Err(SinkError::Setting { setting: "tls", problem });
    }
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| unusable(error.to_string()))?
        .connect_timeout(timeout)
        .timeout(timeout)
        // A collector that is connected but dead must not hold the connection for ever.
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true);
    if let Some(tls) = tls {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|source| SinkError::Path { path: path.display().to_string(), source })
        };
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca_file)?));
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        match (&tls.certificate_file, &tls.key_file) {
            (None, None) => {}
            (Some(certificate), Some(key)) => {
                config = config.identity(TlsIdentity::from_pem(read(certificate)?, read(key)?));
            }
            (Some(_), None) | (None, Some(_)) => return Err(super::TlsError::Incomplete.into()),
        }
        endpoint = endpoint.tls_config(config).map_err(|error| unusable(error.to_string()))?;
    }
    Ok(endpoint)
}

/// The codes that OTLP calls retryable, and those that a broken connection turns into.
fn retryable(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unknown
        | Code::Internal => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn log_record(record: &Record) -> LogRecord {
    let definition = record.definition;
    let mut attributes = vec![
        attribute("jump.action", definition.name.to_owned()),
        KeyValue {
            key: "ocsf.class_uid".into(),
            value: Some(AnyValue { value: Some(Value::IntValue(definition.class.uid().into())) }),
            ..KeyValue::default()
        },
    ];
    if let Some(session) = &record.session {
        attributes.push(attribute("jump.session", session.clone()));
    }
    if let Some(correlation) = &record.correlation {
        attributes.push(attribute("jump.correlation", correlation.clone()));
    }
    LogRecord {
        time_unix_nano: nanos(record.time),
        observed_time_unix_nano: nanos(record.time),
        severity_number: definition.severity.opentelemetry(),
        severity_text: definition.severity.name().into(),
        body: Some(AnyValue { value: Some(Value::StringValue(record.json.clone())) }),
        attributes,
        event_name: definition.name.into(),
        ..LogRecord::default()
    }
}

fn attribute(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::StringValue(value)) }),
        ..KeyValue::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
