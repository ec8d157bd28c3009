//! A collector built from the protocol's own messages.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use tokio::sync::oneshot;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::support::{distinct, emit, epochs, eventually, free_address, listen, pki, start, stats};

type Answer = Arc<dyn Fn() -> Result<i64, Status> + Send + Sync>;

#[derive(Clone)]
struct Received {
    requests: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
    /// How many records of a request it refuses, or why it takes none.
    answer: Answer,
}

#[tonic::async_trait]
impl LogsService for Received {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let rejected_log_records = (self.answer)()?;
        self.requests.lock().expect("no panic").push(request.into_inner());
        let partial = ExportLogsPartialSuccess { rejected_log_records, error_message: "no room".into() };
        let partial_success = (rejected_log_records > 0).then_some(partial);
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

struct Collector {
    received: Received,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
}

impl Collector {
    fn start(address: SocketAddr, answer: impl Fn() -> Result<i64, Status> + Send + Sync + 'static) -> Self {
        Self::serve(address, None, Received { requests: Arc::default(), answer: Arc::new(answer) })
    }

    fn serve(address: SocketAddr, tls: Option<ServerTlsConfig>, received: Received) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).expect("valid files");
        }
        let router = server.add_service(LogsServiceServer::new(received.clone()));
        let listener = listen(&runtime, address);
        runtime.spawn(router.serve_with_incoming_shutdown(
            tokio_stream::wrappers::TcpListenerStream::new(listener),
            async move { stopped.await.unwrap_or_default() },
        ));
        Self { received, runtime: Some(runtime), stop: Some(stop) }
    }

    fn records(&self) -> Vec<LogRecord> {
        let requests = self.received.requests.lock().expect("no panic");
        requests
            .iter()
            .flat_map(|request| &request.resource_logs)
            .flat_map(|resource| &resource.scope_logs)
            .flat_map(|scope| scope.log_records.clone())
            .collect()
    }

    fn epochs(&self) -> Vec<u64> {
        let records = self.records();
        epochs(records.iter().map(|record| match record.body.as_ref().and_then(|body| body.value.as_ref()) {
            Some(Value::StringValue(text)) => text.as_str(),
            other => panic!("a body that is no text: {other:?}"),
        }))
    }

    /// Cuts every connection at once, answers on their way included.
    fn kill(mut self) -> Received {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        drop(self.stop.take());
        self.received.clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn sink(endpoint: &str, more: &str) -> String {
    format!("[[sinks]]\nkind = \"otlp\"\nname = \"collector\"\nendpoint = \"{endpoint}\"\n{more}")
}

#[test]
fn a_collector_gets_every_event_with_its_resource_and_attributes() {
    let address = free_address();
    let collector = Collector::start(address, || Ok(0));
    let (audit, guard) = start(&sink(&format!("http://{address}"), ""));
    emit(&audit, 0..1500);
    assert!(guard.close(Duration::from_secs(20)), "not everything was delivered");
    assert_eq!(collector.epochs(), (0..1500).collect::<Vec<_>>());

    let requests = collector.received.requests.lock().expect("no panic").clone();
    let resource = requests[0].resource_logs[0].resource.clone().expect("a resource");
    let text = format!("{:?}", resource.attributes);
    assert!(text.contains("jump-gateway") && text.contains("gw1"), "{text}");
    let record = &collector.records()[0];
    assert_eq!((record.event_name.as_str(), record.severity_number), ("session_owner_changed", 9));
    let text = format!("{:?}", record.attributes);
    assert!(text.contains("07070707-0707-0707-0707-070707070707") && text.contains("abababab-"), "{text}");
}

#[test]
fn a_collector_over_tls_gets_every_event() {
    let files = tempfile::tempdir().expect("a directory");
    pki(files.path());
    let read = |name: &str| std::fs::read(files.path().join(name)).expect("readable");
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(read("server.pem"), read("server-key.pem")));
    let address = free_address();
    let received = Received { requests: Arc::default(), answer: Arc::new(|| Ok(0)) };
    let collector = Collector::serve(address, Some(tls), received);
    let settings = format!("tls = {{ ca_file = {:?} }}", files.path().join("ca.pem"));
    let (audit, guard) = start(&sink(&format!("https://localhost:{}", address.port()), &settings));
    emit(&audit, 0..100);
    assert!(
        guard.close(Duration::from_secs(20)),
        "not everything was delivered: {:?}",
        collector.records().len()
    );
    assert_eq!(collector.epochs(), (0..100).collect::<Vec<_>>());
}

#[test]
fn events_are_kept_while_the_collector_is_away_and_what_it_refuses_is_counted() {
    let address = free_address();
    let (audit, guard) = start(&sink(&format!("http://{address}"), "timeout = \"1s\""));
    emit(&audit, 0..100);
    eventually("the sink fails", || stats(&guard, "collector").failures >= 2);

    let first = Collector::start(address, || Ok(0));
    eventually("the collector has all", || first.epochs().len() >= 100);
    emit(&audit, 100..200);
    eventually("the collector has more", || distinct(&first.epochs()).len() == 200);
    let received = first.kill();
    emit(&audit, 200..300);
    let second = Collector::serve(address, None, received);
    eventually("the new collector has all", || distinct(&second.epochs()).len() == 300);
    drop(second.kill());

    let overloaded = Collector::start(address, || Ok(3));
    emit(&audit, 300..310);
    eventually("the refused ones are counted", || stats(&guard, "collector").dropped_rejected >= 3);
    drop(overloaded.kill());
    let closed = Collector::start(address, || Err(Status::unauthenticated("who are you")));
    let before = stats(&guard, "collector").dropped_rejected;
    emit(&audit, 310..320);
    eventually("a refusal for good drops the batch", || {
        stats(&guard, "collector").dropped_rejected >= before + 10
    });
    drop(closed);
    eventually("the account is settled", || {
        let stats = stats(&guard, "collector");
        stats.queued == 320 && stats.queued == stats.sent + stats.dropped()
    });
}
