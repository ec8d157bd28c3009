//! The gRPC contract of Jumping VPN: generated code and conversions to domain values.

pub mod convert;
pub mod token;

/// Generated code of `jump.control.v1`, `jump.client.v1` and `jump.store.v1`; documented in the `.proto` files.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code; documented in the .proto files")]
mod generated {
    pub mod control {
        tonic::include_proto!("jump.control.v1");
    }
    pub mod client {
        tonic::include_proto!("jump.client.v1");
    }
    pub mod store {
        tonic::include_proto!("jump.store.v1");
    }
}

pub use generated::client as client_v1;
pub use generated::control as control_v1;
pub use generated::store as store_v1;

/// The descriptor set of every package, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("jump");
