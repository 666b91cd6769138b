//! Writes the code that is generated from the contract into `src/generated`, as it is committed. Run it in the
//! repository after each change of `proto/consent/v1`:
//!
//! ```sh
//! cargo run --package consentd-proto --example generate
//! ```
//!
//! The generators are those of `Cargo.lock`; protox compiles the contract, so that no `protoc` is needed.

use std::path::Path;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The test that the code is current has it written elsewhere.
    let out = std::env::args().nth(1);
    let out = out.map_or_else(|| package.join("src/generated"), Into::into);
    let services = ["consent/v1/consent_service.proto", "consent/v1/record_service.proto"];
    let contract = protox::compile(services, [package.join("../../proto")])?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("consent_descriptor.bin"), contract.encode_to_vec())?;
    tonic_prost_build::configure().build_server(false).out_dir(&out).compile_fds(contract)?;
    Ok(())
}
