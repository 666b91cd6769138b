//! Compiles what ledgers store with protox, so that no `protoc` is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = Path::new("../../proto");
    println!("cargo::rerun-if-changed={}", protos.join("consentd").display());
    let stored = protox::compile(["consentd/ledger/v1/ledger.proto"], [protos])?;
    prost_build::Config::new().compile_fds(stored)?;
    Ok(())
}
