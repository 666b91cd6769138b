//! Generates the gRPC services that the sidecar serves. Their messages are in `consentd-proto`.

#[allow(
    clippy::disallowed_methods,
    reason = "cargo names the output folder by an environment variable"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/consent");
    let services = ["consent/v1/consent_service.proto", "consent/v1/record_service.proto"];
    let contract = protox::compile(services, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".consent.v1", "::consentd_proto::v1")
        // Our own codec answers INVALID_ARGUMENT to bytes that do not decode.
        .codec_path("crate::grpc::codec::Codec")
        .compile_fds(contract)?;
    Ok(())
}
