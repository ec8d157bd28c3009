//! Who may call what: one table over every RPC of the contract, tested cell by cell against the real server.
//!
//! The RPCs come from the descriptors of the build, so a new one without a row fails here. A cell is asked with an empty
//! request: what the role check lets pass fails later, for another reason.
use std::collections::BTreeMap;
use std::fmt::Write as _;

use jump_control::identity::Role;
use jump_proto::DESCRIPTOR_SET;
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use prost_types::FileDescriptorSet;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::cluster::{Gateway, Pki, Server, enrol, registration};
use crate::support::Harness;

/// Who calls. A device has no certificate; what it may do, it does through a gateway or by a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Gateway,
    Control,
    Operator,
    Reader,
    NoCertificate,
}

impl Caller {
    const ALL: [Self; 5] = [Self::Gateway, Self::Control, Self::Operator, Self::Reader, Self::NoCertificate];

    fn certificate(self) -> Option<&'static str> {
        match self {
            Self::Gateway => Some("gateway-gw1"),
            Self::Control => Some("control-c1"),
            Self::Operator => Some("operator-op"),
            Self::Reader => Some("reader-eye"),
            Self::NoCertificate => None,
        }
    }
}

/// Rows that many RPCs share, in the order of [`Caller::ALL`].
const GATEWAY_FOR_ITSELF: [bool; 5] = [true, false, false, false, false];
const OPERATOR: [bool; 5] = [false, false, true, false, false];
const READER: [bool; 5] = [false, false, true, true, false];
const ANYBODY: [bool; 5] = [true, true, true, true, true];

/// The role matrix. Add a row for every new RPC; the weakest role that can do its work.
const MATRIX: &[(&str, [bool; 5])] = &[
    ("jump.control.v1.GatewayService/Register", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.GatewayService/Renew", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.GatewayService/Deregister", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.GatewayService/Attach", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.GatewayService/AckFence", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.GatewayService/Release", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.GatewayService/WatchBindings", GATEWAY_FOR_ITSELF),
    ("jump.control.v1.SessionService/GetSession", READER),
    ("jump.control.v1.SessionService/ListSessions", READER),
    ("jump.control.v1.SessionService/WatchSessions", READER),
    ("jump.control.v1.SessionService/TerminateSession", OPERATOR),
    ("jump.control.v1.SessionService/MoveSession", OPERATOR),
    ("jump.control.v1.OwnershipService/GetOwnership", READER),
    ("jump.control.v1.OwnershipService/WatchOwnership", READER),
    ("jump.control.v1.NodeService/ListNodes", READER),
    ("jump.control.v1.NodeService/DrainNode", OPERATOR),
    ("jump.control.v1.NodeService/UndrainNode", OPERATOR),
    ("jump.control.v1.DeviceService/CreateEnrolmentToken", OPERATOR),
    ("jump.control.v1.DeviceService/EnrolDevice", OPERATOR),
    ("jump.control.v1.DeviceService/ListDevices", READER),
    ("jump.control.v1.DeviceService/RevokeDevice", OPERATOR),
    ("jump.control.v1.DeviceService/SetDevicePolicy", OPERATOR),
    ("jump.control.v1.DeviceService/RequireRotation", OPERATOR),
    ("jump.control.v1.KeyService/ListKeys", READER),
    ("jump.control.v1.KeyService/RotateKey", OPERATOR),
    ("jump.control.v1.KeyService/RetireKey", OPERATOR),
    ("jump.control.v1.LogService/GetLogLevels", READER),
    ("jump.control.v1.LogService/SetLogLevels", OPERATOR),
    // The calls of a device: its token says what it may, or its proof of both keys.
    ("jump.client.v1.EnrolmentService/Enrol", ANYBODY),
    ("jump.client.v1.EnrolmentService/RotateKey", ANYBODY),
];

/// What the descriptors say of one RPC.
#[derive(Debug)]
struct Rpc {
    /// The number of the request's field `node_id`.
    node_id: Option<i32>,
}

/// Every RPC of the contract, by `package.Service/Method`.
fn rpcs() -> BTreeMap<String, Rpc> {
    let files = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap().file;
    let fields: BTreeMap<String, Option<i32>> = files
        .iter()
        .flat_map(|file| {
            file.message_type.iter().map(|message| {
                let node_id = message.field.iter().find(|field| field.name() == "node_id");
                (format!(".{}.{}", file.package(), message.name()), node_id.map(|field| field.number()))
            })
        })
        .collect();
    let mut found = BTreeMap::new();
    for file in &files {
        for service in file.service.iter().filter(|_| file.package().starts_with("jump.")) {
            for method in &service.method {
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                found.insert(name, Rpc { node_id: fields[method.input_type()] });
            }
        }
    }
    found
}

/// Messages as bytes, so that one function can call every RPC.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// Calls `rpc`; for a stream, until its first message. The status, if it was refused or failed.
async fn call(channel: &Channel, rpc: &str, request: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path: PathAndQuery = format!("/{rpc}").parse().unwrap();
    let answer = client.server_streaming(Request::new(request), path, Bytes).await?;
    // A unary answer reads as a stream of one.
    answer.into_inner().message().await.map(|_| ())
}

/// Whether the role check let the call pass, whatever came of it afterwards.
fn passed(answer: &Result<(), Status>) -> bool {
    let Err(status) = answer else { return true };
    assert_ne!(status.code(), Code::Unimplemented, "{status}");
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match reason.as_str() {
        "UNAUTHENTICATED" | "FORBIDDEN" => false,
        _ => {
            assert_ne!(status.code(), Code::Unauthenticated, "{status}");
            true
        }
    }
}

/// A request with nothing but this node id.
fn speaking_for(field: i32, node: &str) -> Vec<u8> {
    let mut request = Vec::new();
    prost::encoding::string::encode(u32::try_from(field).unwrap(), &node.to_owned(), &mut request);
    request
}

struct Plane {
    pki: Pki,
    server: Server,
    gateway: Gateway,
    _store: Harness,
}

async fn plane() -> Plane {
    let pki = Pki::new();
    let store = Harness::embedded();
    let server = Server::start(&pki, store.open().await, &[]).await;
    let gateway = Gateway::register(&pki, &server, "gw1").await;
    Plane { pki, server, gateway, _store: store }
}

#[test]
fn every_rpc_of_the_contract_has_a_row_and_every_row_an_rpc() {
    let rows: BTreeMap<&str, _> = MATRIX.iter().copied().collect();
    assert_eq!(rows.len(), MATRIX.len(), "a row stands twice");
    let rpcs = rpcs();
    let missing: Vec<&String> = rpcs.keys().filter(|rpc| !rows.contains_key(rpc.as_str())).collect();
    assert!(
        missing.is_empty(),
        "these RPCs have no row in MATRIX (control/tests/service/roles.rs): {missing:?}"
    );
    let stale: Vec<&&str> = rows.keys().filter(|row| !rpcs.contains_key(**row)).collect();
    assert!(stale.is_empty(), "these rows of MATRIX name no RPC: {stale:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_of_the_role_matrix_is_what_the_server_does() {
    let Plane { pki, server, .. } = &plane().await;
    let mut wrong = Vec::new();
    for (at, caller) in Caller::ALL.into_iter().enumerate() {
        let channel = server.channel(pki, caller.certificate()).await;
        for (rpc, row) in MATRIX {
            let answer = call(&channel, rpc, Vec::new()).await;
            if passed(&answer) != row[at] {
                wrong.push(format!("{rpc} by {caller:?}: the table says {}, the server {answer:?}", row[at]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_a_gateway_is_taken_for_another_node() {
    let Plane { pki, server, .. } = &plane().await;
    let _gw2 = Gateway::register(pki, server, "gw2").await;
    let channel = server.channel(pki, Some("gateway-gw1")).await;
    let mut wrong = Vec::new();
    for (rpc, Rpc { node_id }) in rpcs() {
        if !rpc.starts_with("jump.control.v1.GatewayService/") {
            continue;
        }
        let field = node_id.unwrap_or_else(|| panic!("the request of {rpc} does not say which node asks"));
        for (node, may) in [("gw1", true), ("gw2", false), ("gw10", false), ("gw", false), ("GW1", false)] {
            let answer = call(&channel, &rpc, speaking_for(field, node)).await;
            if passed(&answer) != may {
                wrong.push(format!("{rpc} for {node}: {answer:?}"));
            }
        }
        // Who names nobody is told what is missing; nothing is done for it.
        let nobody = call(&channel, &rpc, Vec::new()).await;
        if nobody.as_ref().map_err(Status::code) != Err(Code::InvalidArgument) {
            wrong.push(format!("{rpc} for nobody: {nobody:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_a_role_may_no_more_than_none() {
    let Plane { pki, server, .. } = &plane().await;
    pki.issue_without_identity("nobody");
    let channel = server.channel(pki, Some("nobody")).await;
    for (rpc, [.., without]) in MATRIX {
        let answer = call(&channel, rpc, Vec::new()).await;
        assert_eq!(passed(&answer), *without, "{rpc}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_ca_or_past_its_end_opens_no_connection() {
    let Plane { pki, server, .. } = &plane().await;
    pki.issue_expired(Role::Operator, "late");
    let stranger = Pki::new();
    for tls in [
        pki.tls(Some("operator-late")),
        // Its own CA vouches for it, ours does not.
        pki.tls(None).identity(stranger.identity("operator-op")),
    ] {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
        // In TLS 1.3 the client learns of the refusal with its first request.
        let refused = match endpoint.tls_config(tls).unwrap().connect().await {
            Ok(channel) => {
                let mut client = tonic::client::Grpc::new(channel);
                match client.ready().await {
                    Ok(()) => {
                        let path = PathAndQuery::from_static("/jump.control.v1.NodeService/ListNodes");
                        let answer = client.server_streaming(Request::new(Vec::new()), path, Bytes).await;
                        answer.map(|_| ()).map_err(|status| status.code())
                    }
                    Err(_) => Err(Code::Unavailable),
                }
            }
            Err(_) => Err(Code::Unavailable),
        };
        // The code says where the request was when the connection went.
        assert!(matches!(refused, Err(Code::Unavailable | Code::Unknown | Code::Cancelled)), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_refused_caller_asked_for_did_not_happen() {
    let Plane { pki, server, gateway: gw1, .. } = &plane().await;
    const DEVICE: [u8; 32] = [0xd1; 32];
    enrol(pki, server, DEVICE).await;
    let born = gw1.accepted(gw1.attach_request(DEVICE, "", 1)).await;
    let gw2 = Gateway::register(pki, server, "gw2").await;
    let as_gw1 = |request: jump_proto::control_v1::AttachRequest| {
        let mut request = request;
        request.node_id = "gw1".to_owned();
        request.incarnation = gw1.incarnation;
        request
    };
    let mut client = gw2.client.clone();
    let release = jump_proto::control_v1::ReleaseRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        session_id: born.session_id.clone(),
        epoch: 1,
        reason: "CLIENT_CLOSED".to_owned(),
        terminate: true,
        switch_ages_ms: Vec::new(),
    };
    let fence = jump_proto::control_v1::AckFenceRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        session_id: born.session_id.clone(),
        epoch: 1,
        switch_ages_ms: Vec::new(),
    };
    let end = jump_proto::control_v1::DeregisterRequest {
        node_id: "gw1".to_owned(),
        incarnation: gw1.incarnation,
        reason: "NODE_LOST".to_owned(),
    };
    let mut reaped = registration("gw1");
    reaped.reaped_incarnation = gw1.incarnation;
    let refused = [
        client.release(release.clone()).await.unwrap_err(),
        client.ack_fence(fence).await.unwrap_err(),
        client.deregister(end).await.unwrap_err(),
        client.register(reaped).await.unwrap_err(),
        client.attach(as_gw1(gw2.attach_request(DEVICE, &born.session_id, 2))).await.unwrap_err(),
    ];
    assert!(refused.iter().all(|status| status.code() == Code::PermissionDenied), "{refused:?}");
    // It may say so in its own name, and is then not the owner.
    let own = jump_proto::control_v1::ReleaseRequest {
        node_id: "gw2".to_owned(),
        incarnation: gw2.incarnation,
        ..release
    };
    assert!(client.release(own).await.is_err());
    let mut sessions = jump_proto::control_v1::session_service_client::SessionServiceClient::new(
        server.channel(pki, Some("reader-eye")).await,
    );
    let get = jump_proto::control_v1::GetSessionRequest { session_id: born.session_id };
    let session = sessions.get_session(get).await.unwrap().into_inner().session.unwrap();
    assert_eq!(session.owner.map(|owner| owner.node_id).as_deref(), Some("gw1"));
    assert_eq!((session.epoch, session.attach_seq), (1, 1));
}

/// The table as `docs/roles.md` shows it.
fn rendered() -> String {
    let mut out = String::new();
    writeln!(out, "| RPC | gateway | control | operator | reader | no certificate |").unwrap();
    writeln!(out, "|---|---|---|---|---|---|").unwrap();
    for (rpc, row) in MATRIX {
        let own = *row == GATEWAY_FOR_ITSELF;
        let cells: Vec<&str> = row
            .iter()
            .map(|may| match (*may, own) {
                (true, true) => "for itself",
                (true, false) => "yes",
                (false, _) => "–",
            })
            .collect();
        let rpc = rpc.trim_start_matches("jump.");
        writeln!(out, "| `{rpc}` | {} |", cells.join(" | ")).unwrap();
    }
    out
}

#[test]
fn the_matrix_in_the_documents_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/roles.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- begin: roles -->\n\n", "\n<!-- end: roles -->");
    let (head, rest) = document.split_once(begin).expect("docs/roles.md has a begin mark");
    let (table, tail) = rest.split_once(end).expect("docs/roles.md has an end mark");
    if std::env::var_os("JUMP_WRITE_DOCS").is_some() {
        return std::fs::write(path, format!("{head}{begin}{}{end}{tail}", rendered())).unwrap();
    }
    assert_eq!(
        table,
        rendered(),
        "docs/roles.md is stale: JUMP_WRITE_DOCS=1 cargo test -p jump-control --test service roles"
    );
}
