//! Compiles the contract with protox, so that no `protoc` is needed.

use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", protos.join("consent").display());
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let services = ["consent/v1/consent_service.proto", "consent/v1/record_service.proto"];
    let contract = protox::compile(services, [protos])?;
    std::fs::write(out.join("consent_descriptor.bin"), contract.encode_to_vec())?;
    tonic_prost_build::configure().build_server(false).compile_fds(contract)?;
    Ok(())
}
