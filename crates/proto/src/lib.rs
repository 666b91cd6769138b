//! The gRPC contract of consentd, generated from `proto/consent/v1`: messages and clients. Its
//! meaning, shapes, units, bounds and errors are documented in the protos themselves, and so in the comments of
//! [`v1`]. Whoever asks consentd uses the crate `consentd-client`, which denies where it gets no answer.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

use tonic::Code;

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
    include!("generated/consent.v1.rs");
}

/// The contract as a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("generated/consent_descriptor.bin");

/// The name of a code as the gRPC specification writes it, such as `DEADLINE_EXCEEDED`.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_of_the_specification() {
        for (code, name) in
            [(4, "DEADLINE_EXCEEDED"), (14, "UNAVAILABLE"), (0, "OK"), (99, "UNKNOWN")]
        {
            assert_eq!(code_name(Code::from_i32(code)), name);
        }
    }
}
