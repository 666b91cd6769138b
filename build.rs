//! Generates the services that the sidecar serves; their messages are `consentd-proto`'s.

#[allow(clippy::disallowed_methods, reason = "cargo tells build scripts where to write by this")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/consent");
    let services = ["consent/v1/consent_service.proto", "consent/v1/record_service.proto"];
    let contract = protox::compile(services, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".consent.v1", "::consentd_proto::v1")
        // Our own codec tells a client whose bytes do not decode that its argument is invalid.
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds(contract)?;
    Ok(())
}
