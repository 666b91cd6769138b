//! The gRPC contract of consentd, generated from `proto/consent/v1`: messages and clients. Its
//! meaning, shapes, units, bounds and errors are documented in the protos themselves.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

/// Messages, and a client for each service.
#[allow(
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    clippy::pedantic,
    clippy::large_enum_variant,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("consent.v1");
}

/// The contract as a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/consent_descriptor.bin"));
