//! Generates the gRPC code and the descriptor set that reflection serves.

use std::{env, io, path::PathBuf};

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is unset"))?);
    let protos = [
        "jump/control/v1/common.proto",
        "jump/control/v1/gateway.proto",
        "jump/control/v1/operator.proto",
        "jump/client/v1/enrolment.proto",
        "jump/store/v1/records.proto",
    ];
    println!("cargo:rerun-if-changed=jump");
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("jump.bin"))
        .compile_protos(&protos, &["."])
        .map_err(|e| io::Error::other(format!("{e}\nprotoc is missing? run scripts/install-deps.sh")))
}
