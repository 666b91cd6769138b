//! Compiles the protos with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message as _;

#[allow(clippy::disallowed_methods, reason = "cargo tells build scripts where to write by this")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let services = ["consent/v1/consent_service.proto", "consent/v1/record_service.proto"];
    let public = protox::compile(services, ["proto"])?;
    std::fs::write(out.join("consent_descriptor.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        // Our own codec tells a client whose bytes do not decode that its argument is invalid.
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds(public)?;

    let ledger = protox::compile(["consentd/ledger/v1/ledger.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(ledger)?;
    Ok(())
}
