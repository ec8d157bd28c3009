//! The gRPC services: they authenticate, convert, ask the domain, and answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use jump_crypto::entropy::Entropy;
use jump_proto::control_v1 as wire;
use jump_session::ownership::UnixMillis;
use jump_telemetry::Correlation;
use jump_telemetry::trace::set_correlation;
use tokio_util::sync::CancellationToken;
use tonic::Response;

use crate::arbiter::Arbiter;
use crate::bindings::Bindings;
use crate::devices::Devices;
use crate::keyring::{Keeper, KeyRings};
use crate::layout::Node;
use crate::registry::Registry;

mod caller;
mod device;
mod enrolment;
mod feed;
mod gateway;
mod keys;
mod log;
mod node;
mod ownership;
mod session;
mod status;

pub use device::DeviceApi;
pub use enrolment::EnrolmentApi;
pub use gateway::GatewayApi;
pub use keys::KeyApi;
pub use log::LogApi;
pub use node::NodeApi;
pub use ownership::OwnershipApi;
pub use session::SessionApi;
pub use status::ServiceError;

/// What clients are told beside their addresses, and gateways beside their lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Control's address as devices reach it, `host:port`; goes into enrolment tokens.
    pub advertise: String,
    /// The CA certificate, DER; goes into enrolment tokens.
    pub ca: Vec<u8>,
    /// Networks that clients send into the tunnel.
    pub routes: Vec<IpNet>,
    /// DNS servers inside.
    pub dns: Vec<std::net::IpAddr>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// How often gateways renew.
    pub renew_interval: Duration,
    /// How long before the end of its lease a gateway stops.
    pub guard_margin: Duration,
    /// How long a node certificate is valid.
    pub certificate_lifetime: Duration,
}

/// What every service works with.
pub struct Context {
    /// Decides ownership.
    pub arbiter: Arbiter,
    /// Keeps the nodes.
    pub registry: Registry,
    /// Keeps the devices.
    pub devices: Devices,
    /// The cache.
    pub bindings: Arc<Bindings>,
    /// Changes the key rings.
    pub keeper: Keeper,
    /// The keys in use.
    pub keys: Arc<ArcSwap<KeyRings>>,
    /// Makes token secrets and keys.
    pub entropy: Arc<Mutex<Box<dyn Entropy>>>,
    /// What is handed out.
    pub profile: Profile,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Context {
    /// Waits, for a moment at most, until the cache shows what the store held when this was called.
    pub(crate) async fn catch_up(&self) -> Result<(), ServiceError> {
        /// Another program's writes in the same etcd never reach the cache; do not wait for them.
        const CATCH_UP_MAX: Duration = Duration::from_millis(200);
        self.bindings.ready().await;
        let newest = self.arbiter.store.read(&[]).await?.revision;
        let mut reached = self.bindings.reached();
        let caught_up = reached.wait_for(|revision| *revision >= newest);
        // A cache that lags behind by more still answers.
        let _ = tokio::time::timeout(CATCH_UP_MAX, caught_up).await;
        Ok(())
    }
}

/// An answer about one session: its metadata names the session's correlation id.
pub(crate) fn about<T>(message: T, correlation: Correlation) -> Response<T> {
    let mut response = Response::new(message);
    set_correlation(response.metadata_mut(), correlation);
    response
}

/// A node as the API shows it.
pub(crate) fn node_message(node: &Node, drained: bool) -> wire::Node {
    let record = &node.record;
    wire::Node {
        node_id: node.id.to_string(),
        incarnation: node.incarnation.0,
        number: u32::from(node.number.0),
        endpoints: record.endpoints.clone(),
        mesh_endpoint: record.mesh_endpoint.clone(),
        mesh_public_key: record.mesh_public_key.clone(),
        draining: drained,
        register_time: Some(jump_proto::convert::timestamp(record.registered_ms)),
        tcp_endpoints: record.tcp_endpoints.clone(),
        quic_endpoints: record.quic_endpoints.clone(),
    }
}

/// A timestamp where 0 means none.
pub(crate) fn optional_time(at: UnixMillis) -> Option<prost_types::Timestamp> {
    (at != 0).then(|| jump_proto::convert::timestamp(at))
}
