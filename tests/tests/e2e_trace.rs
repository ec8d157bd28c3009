//! One trace goes from the client's decision to reattach to the first byte, over gateway, control and store.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use jump_session::ids::SessionId;
use jump_telemetry::Correlation;
use jump_tests::lab::cluster::{Cluster, Plan};
use jump_tests::lab::etcd::wait_until;
use jump_tests::lab::network::{Host, ReturnRoute};
use jump_tests::lab::probe::{EchoServer, Probe};
use jump_tests::support;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use rustix::process::Signal;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The first control replica's address in every lab, and a port of ours.
const COLLECTOR: &str = "10.90.0.20:4317";

/// A span and the program that recorded it.
type Recorded = (String, Span);

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Recorded>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for part in request.into_inner().resource_spans {
            let service = service(&part);
            let spans = part.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn service(part: &ResourceSpans) -> String {
    let attributes = part.resource.as_ref().map(|resource| resource.attributes.as_slice());
    attributes.and_then(|attributes| text_attribute(attributes, "service.name")).unwrap_or_default()
}

fn text_attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let named = attributes.iter().filter(|attribute| attribute.key == key);
    named
        .filter_map(|attribute| attribute.value.as_ref()?.value.as_ref())
        .find_map(|value| if let Value::StringValue(text) = value { Some(text.clone()) } else { None })
}

impl Collector {
    fn start(&self, host: &Host) -> tokio::runtime::Runtime {
        let listener = host.namespace.enter(|| TcpListener::bind(COLLECTOR)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = TraceServiceServer::new(self.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        runtime
    }

    /// Whether an operator has asked about the session of this correlation id.
    fn is_called(&self, correlation: &str) -> bool {
        let asks = |span: &Span| {
            let method = text_attribute(&span.attributes, "rpc.method");
            method.is_some_and(|method| method.ends_with("/GetSession"))
                && text_attribute(&span.attributes, "correlation").as_deref() == Some(correlation)
        };
        self.0.lock().unwrap().iter().any(|(_, span)| asks(span))
    }

    /// The trace with a root of the client's that began because the owner was lost.
    fn recovery(&self) -> Option<Vec<Recorded>> {
        let spans = self.0.lock().unwrap();
        let mut traces: BTreeMap<Vec<u8>, Vec<Recorded>> = BTreeMap::new();
        for recorded in spans.iter() {
            traces.entry(recorded.1.trace_id.clone()).or_default().push(recorded.clone());
        }
        traces.into_values().find(|trace| {
            trace.iter().any(|(_, span)| span.name == "reattach" && !format!("{span:?}").contains("BIRTH"))
                && EXPECTED
                    .iter()
                    .all(|(service, name)| trace.iter().any(|(by, span)| by == service && span.name == *name))
        })
    }
}

/// Who records what.
const EXPECTED: [(&str, &str); 10] = [
    ("jump-client", "reattach"),
    ("jump-client", "handshake"),
    ("jump-client", "commit"),
    ("jump-client", "first_byte"),
    ("jump-gateway", "answer_init"),
    ("jump-gateway", "claim"),
    ("jump-control", "rpc"),
    ("jump-control", "attach"),
    ("jump-control", "store.read"),
    ("jump-control", "store.commit"),
];

#[test]
fn one_trace_spans_client_gateway_control_and_store_from_the_decision_to_the_first_byte() {
    let _one = support::one_at_a_time().unwrap();
    let trace = format!("\n[trace]\nendpoint = \"http://{COLLECTOR}\"\nratio = 1.0\n");
    let plan = Plan {
        return_route: ReturnRoute::Ecmp,
        control_settings: trace.clone(),
        gateway_settings: trace.clone(),
        ..Plan::small("trace")
    };
    let mut cluster = Cluster::start(&plan).unwrap();
    std::fs::write(cluster.state_dir(0).with_extension("telemetry.toml"), &trace).unwrap();
    let collector = Collector::default();
    let _runtime = collector.start(&cluster.network.controls[0]);
    let echo = EchoServer::start(&cluster.network.inner, 7).unwrap();
    let before = cluster.up(0).unwrap();
    let probe = Probe::start(&cluster.network.devices[0], echo.address()).unwrap();
    probe.wait_for_echoes(40, support::SOON).unwrap();
    let owner = cluster.gateway_number(before.owner.as_deref().unwrap()).unwrap();
    cluster.signal_worker(owner, Signal::KILL).unwrap();
    wait_until("the whole trace is at the collector", support::SOON, || collector.recovery().is_some())
        .unwrap();

    let spans = collector.recovery().unwrap();
    let session = before.session.parse::<SessionId>().unwrap();
    let correlation = Correlation::from(session.correlation()).to_string();
    for (service, span) in &spans {
        let told = text_attribute(&span.attributes, "correlation");
        assert_eq!(told.as_deref(), Some(correlation.as_str()), "{service}'s {}", span.name);
    }
    let control = &cluster.network.controls[0];
    cluster.operator.json(control, &["sessions", "get", &before.session]).unwrap();
    wait_until("the operator's call is at the collector", support::SOON, || {
        collector.is_called(&correlation)
    })
    .unwrap();

    let ids: BTreeSet<&[u8]> = spans.iter().map(|(_, span)| span.span_id.as_slice()).collect();
    let roots: Vec<_> = spans.iter().filter(|(_, span)| span.parent_span_id.is_empty()).collect();
    assert_eq!(roots.len(), 1, "one root: {roots:?}");
    let (_, root) = roots[0];
    assert_eq!(root.name, "reattach");
    for (service, span) in &spans {
        let parent = span.parent_span_id.as_slice();
        assert!(parent.is_empty() || ids.contains(parent), "{service}'s {} hangs in the air", span.name);
    }
    let end_of = |name: &str| spans.iter().find(|(_, span)| span.name == name).unwrap().1.end_time_unix_nano;
    assert_eq!(end_of("first_byte"), root.end_time_unix_nano, "the trace ends with the first byte");
}
